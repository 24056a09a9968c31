package probe

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/hanode/hanode/cluster"
)

// Collector takes the records of several probes in. A path of the file system joins hosts whose networks are apart.
type Collector struct {
	ln net.Listener

	mu   sync.Mutex
	recs map[string][]Record
	seen map[string]bool
	wake chan struct{} // closed and renewed with each batch
}

// Listen makes the socket at path.
func Listen(path string) (*Collector, error) {
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket for the probes: %w", err)
	}
	return &Collector{ln: ln, recs: map[string][]Record{}, seen: map[string]bool{}, wake: make(chan struct{})}, nil
}

// Run serves until ctx ends. It returns when all connections have been closed.
func (c *Collector) Run(ctx context.Context) error {
	var g errgroup.Group
	stop := context.AfterFunc(ctx, func() { c.ln.Close() })
	defer stop()
	for {
		conn, err := c.ln.Accept()
		if err != nil {
			_ = g.Wait() // a probe that was killed in the middle of a record is no fault
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		g.Go(func() error {
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			defer conn.Close()
			return c.take(conn)
		})
	}
}

func (c *Collector) take(r io.Reader) error {
	br := bufio.NewReaderSize(r, 16<<10)
	var head [headerLen]byte
	if _, err := io.ReadFull(br, head[:]); err != nil {
		return err
	}
	name := string(bytes.TrimRight(head[:], "\x00"))
	c.add(name, nil)
	var batch []Record
	for {
		var b [recordLen]byte
		if _, err := io.ReadFull(br, b[:]); err != nil {
			return err
		}
		rec, err := decode(b[:])
		if err != nil {
			return err
		}
		if batch = append(batch, rec); br.Buffered() < recordLen {
			c.add(name, batch)
			batch = batch[:0]
		}
	}
}

func (c *Collector) add(name string, batch []Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recs[name] = append(c.recs[name], batch...)
	c.seen[name] = true
	close(c.wake)
	c.wake = make(chan struct{})
}

// Since returns what a probe recorded of attempts that ended at t or later.
func (c *Collector) Since(name string, t cluster.Instant) []Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	rs := c.recs[name]
	i := len(rs)
	for i > 0 && rs[i-1].End >= t { // records come in the order of their ends
		i--
	}
	return append([]Record(nil), rs[i:]...)
}

// Forget drops what ended before t, so that a long run does not grow.
func (c *Collector) Forget(t cluster.Instant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, rs := range c.recs {
		i := 0
		for i < len(rs) && rs[i].End < t {
			i++
		}
		c.recs[name] = append([]Record(nil), rs[i:]...)
	}
}

// Await returns the first good answer that a probe got to an attempt which started at t or later.
func (c *Collector) Await(ctx context.Context, name string, t cluster.Instant, good func(Record) bool) (Record, error) {
	for {
		c.mu.Lock()
		wake := c.wake
		c.mu.Unlock()
		for _, r := range c.Since(name, t) {
			if r.Start >= t && r.Why == OK && (good == nil || good(r)) {
				return r, nil
			}
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return Record{}, fmt.Errorf("probe %s got no such answer: %w", name, ctx.Err())
		}
	}
}
