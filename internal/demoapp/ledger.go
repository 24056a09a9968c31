package demoapp

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// LedgerCommand and ClerkCommand are the words behind which LedgerMain and ClerkMain are reached.
const (
	LedgerCommand = "ledger"
	ClerkCommand  = "clerk"
)

// Ledger is the service with data: it keeps entries in one file and acknowledges an entry only when it is written, and synced if Sync is set.
// "add TEXT" is answered by "ok TEXT"; "all" by every entry, one a line, and a line with a dot.
type Ledger struct {
	Listen string
	Dir    string
	Sync   bool

	mu    sync.Mutex // one entry after the other in the file
	file  *os.File
	conns map[net.Conn]bool
	cmu   sync.Mutex
}

// Run serves until ctx ends. A file that cannot be written to ends it: then the service must go elsewhere.
func (l *Ledger) Run(ctx context.Context) error {
	var err error
	if l.file, err = os.OpenFile(filepath.Join(l.Dir, "ledger"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644); err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	defer l.file.Close()
	ln, err := net.Listen("tcp4", l.Listen)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	l.conns = map[net.Conn]bool{}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { ln.Close(); l.hangUp() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			l.hangUp()
			if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
				return fmt.Errorf("ledger: %w", cause)
			}
			return nil
		}
		l.cmu.Lock()
		l.conns[c] = true
		l.cmu.Unlock()
		wg.Go(func() {
			defer func() {
				c.Close()
				l.cmu.Lock()
				delete(l.conns, c)
				l.cmu.Unlock()
			}()
			if err := l.serve(c); err != nil {
				cancel(err)
			}
		})
	}
}

func (l *Ledger) hangUp() {
	l.cmu.Lock()
	defer l.cmu.Unlock()
	for c := range l.conns {
		c.Close()
	}
}

// serve answers one client. Its error is the file's.
func (l *Ledger) serve(c net.Conn) error {
	br := bufio.NewReaderSize(c, maxLine)
	for {
		_ = c.SetDeadline(time.Now().Add(idle))
		line, err := br.ReadString('\n')
		if err != nil {
			return nil
		}
		word, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch word {
		case "add":
			if err := l.add(text); err != nil {
				return err
			}
			if _, err := fmt.Fprintf(c, "ok %s\n", text); err != nil {
				return nil
			}
		case "all":
			b, err := os.ReadFile(l.file.Name())
			if err != nil {
				return err
			}
			if _, err := c.Write(append(b, ".\n"...)); err != nil {
				return nil
			}
		default:
			return nil
		}
	}
}

func (l *Ledger) add(text string) error {
	l.mu.Lock()
	_, err := l.file.WriteString(text + "\n")
	l.mu.Unlock()
	if err == nil && l.Sync {
		err = l.file.Sync()
	}
	return err
}

// LedgerMain is the ledger as a process of its own.
func LedgerMain(args []string, stderr io.Writer) int {
	l := &Ledger{}
	fs := flag.NewFlagSet(LedgerCommand, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&l.Listen, "listen", ":8081", "address and port")
	fs.StringVar(&l.Dir, "dir", ".", "where the file lies")
	fs.BoolVar(&l.Sync, "fsync", true, "acknowledge what is synced only")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := l.Run(ctx); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

// Clerk enters into a ledger, from several workers at once, until its time is over. What was acknowledged it writes to Out, one line each:
// the entry, and when it was sent and acknowledged, in ns of CLOCK_BOOTTIME as the lab's probes count.
type Clerk struct {
	Target   string
	Workers  int
	Prefix   string
	Patience time.Duration // for one answer
	Every    time.Duration // between two entries of a worker
	Now      func() int64
	Out      io.Writer

	mu sync.Mutex
}

// Run works until ctx ends.
func (k *Clerk) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for w := range k.Workers {
		wg.Go(func() { k.work(ctx, w) })
	}
	wg.Wait()
}

func (k *Clerk) work(ctx context.Context, w int) {
	var c net.Conn
	var br *bufio.Reader
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	for n := 0; ctx.Err() == nil; {
		if c == nil {
			var err error
			if c, err = net.DialTimeout("tcp4", k.Target, k.Patience); err != nil {
				c = nil
				pause(ctx, 10*time.Millisecond)
				continue
			}
			br = bufio.NewReader(c)
		}
		entry := fmt.Sprintf("%s-%d-%d", k.Prefix, w, n)
		sent := k.Now()
		_ = c.SetDeadline(time.Now().Add(k.Patience))
		_, err := fmt.Fprintf(c, "add %s\n", entry)
		var line string
		if err == nil {
			line, err = br.ReadString('\n')
		}
		if err != nil || line != "ok "+entry+"\n" {
			c.Close()
			c = nil
			n++ // whether it was entered is not known: another one
			pause(ctx, 5*time.Millisecond)
			continue
		}
		k.mu.Lock()
		fmt.Fprintf(k.Out, "%s %d %d\n", entry, sent, k.Now())
		k.mu.Unlock()
		n++
		if k.Every > 0 {
			pause(ctx, k.Every)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// ClerkMain is the clerk as a process of its own.
func ClerkMain(args []string, stderr io.Writer) int {
	k := &Clerk{Now: bootNow}
	var out string
	var lasts time.Duration
	fs := flag.NewFlagSet(ClerkCommand, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&k.Target, "target", "", "address and port of the ledger")
	fs.IntVar(&k.Workers, "workers", 4, "how many enter at once")
	fs.StringVar(&k.Prefix, "prefix", "e", "of the entries")
	fs.DurationVar(&k.Patience, "patience", 500*time.Millisecond, "how long an answer is waited for")
	fs.DurationVar(&k.Every, "every", 0, "pause between two entries of one worker")
	fs.DurationVar(&lasts, "for", time.Hour, "how long to work")
	fs.StringVar(&out, "out", "", "file for what was acknowledged")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	f, err := os.OpenFile(out, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	defer f.Close()
	k.Out = f
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, lasts)
	defer cancel()
	k.Run(ctx)
	return 0
}
