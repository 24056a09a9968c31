package probe

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/demoapp"
)

// serveDemo runs the service on a port of its own until the test ends.
func serveDemo(t *testing.T) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().(*net.TCPAddr).AddrPort()
	ln.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	s := &demoapp.Service{Name: "a", Listen: addr.String(), Epoch: func() uint64 { return 5 }}
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if c, err := net.Dial("tcp4", addr.String()); err == nil {
			c.Close()
			return addr
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func collect(t *testing.T) (*Collector, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sink")
	c, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c, path
}

func TestTheClientsRecordsReachTheCollector(t *testing.T) {
	addr := serveDemo(t)
	coll, path := collect(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	probing, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	dial := func() (io.WriteCloser, error) { return net.Dial("unix", path) }
	wg.Go(func() {
		w, err := dial()
		if err == nil {
			defer w.Close()
			err = Fast{Target: addr, Every: 2 * time.Millisecond}.Run(probing, "c", w)
		}
		if err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := (Plain{Target: addr, Every: 5 * time.Millisecond}).Run(probing, dial); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"c", PlainName, KeptName} {
		if _, err := coll.Await(ctx, name, 0, func(r Record) bool { return r.Node == "a" && r.Epoch == 5 && r.Count > 20 }); err != nil {
			t.Error(err)
		}
	}
	stop()
	wg.Wait()
	coll.Forget(Now())
	if left := coll.Since("c", 0); len(left) > 1 {
		t.Errorf("%d records were not forgotten", len(left))
	}
}

func TestAClosedPortIsRefusedAndASilentOneTimesOut(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0") // connects, but nobody answers
	if err != nil {
		t.Fatal(err)
	}
	silent := ln.Addr().(*net.TCPAddr).AddrPort()
	defer ln.Close()
	closed, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := closed.Addr().(*net.TCPAddr).AddrPort()
	closed.Close()
	for _, tc := range []struct {
		to   netip.AddrPort
		want Why
	}{{silent, Timeout}, {refused, Refused}} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		var buf bytes.Buffer
		err := Fast{Target: tc.to, Timeout: 50 * time.Millisecond}.Run(ctx, "c", &buf)
		cancel()
		if err != nil || buf.Len() < headerLen+5*recordLen {
			t.Fatalf("%v: %v, %d bytes", tc.to, err, buf.Len())
		}
		r, err := decode(buf.Bytes()[headerLen : headerLen+recordLen])
		if err != nil || r.Why != tc.want {
			t.Errorf("%v: %+v, %v; want %v", tc.to, r, err, tc.want)
		}
		if took := r.End.Sub(r.Start); tc.want == Timeout && (took < 50*time.Millisecond || took > 150*time.Millisecond) {
			t.Errorf("timed out after %v, want 50 ms", took)
		}
	}
}
