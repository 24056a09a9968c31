package gate

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a connection between a VIP and a client.
type pair struct {
	name           string
	server, client net.Conn
}

func connect(t *testing.T, w world, network string, at netip.Addr, listen string) (pair, net.Listener) {
	t.Helper()
	p := pair{name: network + " " + at.String() + " on " + listen}
	var l net.Listener
	w.node.must(t, "listen", func() (err error) { l, err = net.Listen(network, net.JoinHostPort(listen, "0")); return err })
	to := netip.AddrPortFrom(at, uint16(l.Addr().(*net.TCPAddr).Port))
	w.client.must(t, "connect", func() (err error) { p.client, err = net.DialTimeout("tcp", to.String(), time.Second); return err })
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	p.server = server
	t.Cleanup(func() { p.server.Close(); p.client.Close(); l.Close() })
	return p, l
}

func TestDestroySocketsEndsEveryConnectionOfTheVIPAndNoOther(t *testing.T) {
	w := newWorld(t)
	p4, l4 := connect(t, w, "tcp4", vip4, vip4.String())
	mapped, _ := connect(t, w, "tcp", vip4, "") // an IPv6 socket that serves IPv4
	p6, _ := connect(t, w, "tcp6", vip6, vip6.String())
	other, _ := connect(t, w, "tcp4", netip.MustParseAddr("10.9.0.1"), "10.9.0.1")
	var udp, free *net.UDPConn
	w.node.must(t, "open UDP sockets", func() error {
		var e1, e2 error
		udp, e1 = net.DialUDP("udp", &net.UDPAddr{IP: vip4.AsSlice()}, &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 9})
		free, e2 = net.ListenUDP("udp", &net.UDPAddr{IP: vip6.AsSlice()})
		return errors.Join(e1, e2)
	})
	defer udp.Close()
	defer free.Close()

	w.node.must(t, "destroy", func() error {
		began := time.Now()
		n, err := DestroySockets([]netip.Addr{vipF, vip4, vip6, netip.MustParseAddr("fd09::77")})
		t.Logf("%d sockets destroyed in %v", n, time.Since(began))
		if n != 4 {
			t.Errorf("%d sockets destroyed, want 4: three TCP connections and a connected UDP socket", n)
		}
		return err
	})
	for _, p := range []pair{p4, mapped, p6} {
		_ = p.server.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := p.server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("%s: the server reads %v, want ECONNABORTED", p.name, err)
		}
		_ = p.client.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := p.client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: the client reads %v, want ECONNRESET", p.name, err)
		}
	}
	_ = udp.SetReadDeadline(time.Now().Add(time.Second))
	_ = other.server.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := udp.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("the connected UDP socket reads %v, want ECONNABORTED", err)
	}
	if _, err := other.client.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(other.server, make([]byte, 1)); err != nil {
		t.Errorf("a connection to another address of the host: %v", err)
	}
	w.client.must(t, "connect again: the listener has to be alive", func() error {
		again, err := net.DialTimeout("tcp", l4.Addr().String(), time.Second)
		if err == nil {
			again.Close()
		}
		return err
	})
}

func TestDestroySocketsAsksForManyAddressesAtOnce(t *testing.T) {
	s := newSpace(t)
	s.up(t, "lo")
	var many []netip.Addr
	a4, a6 := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd01::1")
	for range 400 {
		many = append(many, a4, a6)
		a4, a6 = a4.Next(), a6.Next()
	}
	many = append(many, netip.MustParseAddr("127.0.0.1"))
	s.must(t, "destroy the one on the last address", func() error {
		c, err := net.Dial("udp", "127.0.0.1:9")
		if err != nil {
			return err
		}
		defer c.Close()
		n, err := DestroySockets(many)
		if n != 1 {
			t.Errorf("%d sockets destroyed, want 1", n)
		}
		return err
	})
}

func BenchmarkDestroySockets(b *testing.B) {
	s := newSpace(b)
	s.up(b, "lo")
	s.must(b, "measure", func() error {
		for b.Loop() {
			if _, err := DestroySockets([]netip.Addr{vip4, vip6}); err != nil {
				return err
			}
		}
		return nil
	})
}
