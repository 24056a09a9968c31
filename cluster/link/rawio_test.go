package link

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
)

func TestARawAddressIsReadAsItWasWritten(t *testing.T) {
	for _, s := range []struct {
		v6   bool
		addr string
		want string
	}{
		{false, "10.77.0.2:7400", "10.77.0.2:7400"},
		{true, "[2001:db8::7]:7400", "[2001:db8::7]:7400"},
		{true, "10.77.0.2:7400", "10.77.0.2:7400"}, // mapped on the way
		{true, "[fe80::1%9]:7400", "[fe80::1%9]:7400"},
	} {
		r := (&socket{v6: s.v6}).rawSockaddr(netip.MustParseAddrPort(s.addr))
		if got := r.addrPort().String(); got != s.want {
			t.Errorf("%s (v6 socket: %v) is read as %s", s.addr, s.v6, got)
		}
	}
	if got := (&rawAddr{len: 2}).addrPort(); got.IsValid() {
		t.Errorf("a short address is read as %v", got)
	}
}

func TestAQuietConnectionBehavesAsAnyOther(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a, b := quiet(dialled.(*net.TCPConn)), quiet(accepted.(*net.TCPConn))
	defer a.Close()
	defer b.Close()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // more than the kernel takes at once
	done := make(chan error, 1)
	go func() {
		n, err := a.Write(sent)
		if err == nil && n != len(sent) {
			err = io.ErrShortWrite
		}
		done <- err
	}()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("what came is not what was sent: %v", err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := b.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after its deadline a read ends with %v", err)
	}
	b.SetReadDeadline(time.Time{})
	a.Close()
	if _, err := b.Read(got); err != io.EOF {
		t.Errorf("after the other end was closed a read ends with %v", err)
	}
	if _, err := a.Write(sent); !errors.Is(err, net.ErrClosed) {
		t.Errorf("on a closed connection a write ends with %v", err)
	}
	for range 100 { // until the reset has come
		if _, err = b.Write(sent[:1024]); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a write to an end that is closed ends with %v", err)
	}
}
