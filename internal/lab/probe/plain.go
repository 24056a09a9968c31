package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Plain is what an ordinary program does: one connection after the other with the kernel's own patience (a SYN that is
// lost is repeated after 1 s, then 2 s, ...), and beside it one connection that is kept as long as it lives. Its
// figures are larger than those of Fast and are reported apart: they contain TCP's timers besides the service's outage.
type Plain struct {
	Target netip.AddrPort
	Every  time.Duration // between two connections, and between two lines on the kept one; default 100 ms
}

// Names under which Plain's two streams of records arrive.
const (
	PlainName = "plain"
	KeptName  = "kept"
)

// Run probes until ctx ends; dial opens a stream of records for each of its two clients.
func (p Plain) Run(ctx context.Context, dial func() (io.WriteCloser, error)) error {
	if p.Every <= 0 {
		p.Every = 100 * time.Millisecond
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, 2)
	for name, client := range map[string]func(context.Context, *sink) error{PlainName: p.plain, KeptName: p.kept} {
		wg.Go(func() {
			defer cancel()
			w, err := dial()
			if err != nil {
				errs <- err
				return
			}
			defer w.Close()
			if _, err := w.Write(header(name)); err != nil {
				errs <- err
				return
			}
			if err := client(ctx, &sink{w: w}); err != nil && ctx.Err() == nil {
				errs <- fmt.Errorf("%s client: %w", name, err)
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// connect dials without any time-out but the kernel's.
func (p Plain) connect(ctx context.Context) (*net.TCPConn, error) {
	d := net.Dialer{KeepAlive: -1}
	c, err := d.DialContext(ctx, "tcp4", p.Target.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func ask(c *net.TCPConn, br *bufio.Reader, r *Record) error {
	if _, err := c.Write(hello); err != nil {
		return err
	}
	line, err := br.ReadString('\n')
	if err != nil {
		return err
	}
	if r.Node, r.Epoch, r.Count = parse(line); r.Node == "" {
		return errors.New("empty answer")
	}
	return nil
}

func (p Plain) plain(ctx context.Context, out *sink) error {
	for ctx.Err() == nil {
		r := Record{Start: Now()}
		c, err := p.connect(ctx)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { c.Close() })
			_ = c.SetDeadline(time.Now().Add(5 * time.Second)) // an answer that never comes is not TCP's business
			err = ask(c, bufio.NewReader(c), &r)
			stop()
			_ = c.SetLinger(0)
			c.Close()
		}
		r.End, r.Why = Now(), goReason(err)
		if ctx.Err() != nil {
			break
		}
		out.add(r)
		if err := out.flush(0, true); err != nil {
			return err
		}
		if !pause(ctx, p.Every) {
			break
		}
	}
	return nil
}

// kept holds one connection and asks on it. A failed record marks the moment when it broke.
func (p Plain) kept(ctx context.Context, out *sink) error {
	for ctx.Err() == nil {
		if err := p.session(ctx, out); err != nil {
			return err
		}
		if !pause(ctx, p.Every) {
			break
		}
	}
	return nil
}

func (p Plain) session(ctx context.Context, out *sink) error {
	r := Record{Start: Now()}
	c, err := p.connect(ctx)
	if err == nil {
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		br := bufio.NewReader(c)
		for err == nil {
			if err = ask(c, br, &r); err == nil {
				r.End = Now()
				out.add(r)
				if e := out.flush(0, true); e != nil {
					return e
				}
				if !pause(ctx, p.Every) {
					return nil
				}
				r = Record{Start: Now()}
			}
		}
		_ = c.SetLinger(0)
	}
	if ctx.Err() != nil {
		return nil
	}
	out.add(Record{Start: r.Start, End: Now(), Why: goReason(err)})
	return out.flush(0, true)
}

func goReason(err error) Why {
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return Timeout
	}
	return reason(err)
}
