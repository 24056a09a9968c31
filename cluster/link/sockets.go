package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socket is one local address: its TCP listener and its UDP socket.
type socket struct {
	addr netip.AddrPort // as bound
	tcp  *net.TCPListener
	udp  *os.File // not watched by the runtime, see reader
	raw  syscall.RawConn
	v6   bool // takes IPv6 socket addresses only
}

// control runs f with the UDP socket's descriptor, which stays open meanwhile.
func (s *socket) control(f func(fd uintptr) error) error {
	var err error
	if cerr := s.raw.Control(func(fd uintptr) { err = f(fd) }); cerr != nil {
		return cerr
	}
	return err
}

// openSocket binds both protocols of addr. With port 0 it takes one that is free in both.
func openSocket(addr netip.AddrPort) (*socket, error) {
	for try := 0; ; try++ {
		s, err := bindBoth(addr)
		if err == nil || addr.Port() != 0 || try == 20 || !errors.Is(err, unix.EADDRINUSE) {
			return s, err
		}
	}
}

func bindBoth(addr netip.AddrPort) (*socket, error) {
	suffix := "4"
	if addr.Addr().Is6() {
		suffix = "6"
		if addr.Addr().IsUnspecified() {
			suffix = "" // both families
		}
	}
	lc := net.ListenConfig{Control: beforeBind, KeepAliveConfig: keepAlive()}
	l, err := lc.Listen(context.Background(), "tcp"+suffix, addr.String())
	if err != nil {
		return nil, bindError("tcp", addr, err)
	}
	tcp := l.(*net.TCPListener)
	bound := netip.AddrPortFrom(addr.Addr(), tcp.Addr().(*net.TCPAddr).AddrPort().Port())
	pc, err := lc.ListenPacket(context.Background(), "udp"+suffix, bound.String())
	if err != nil {
		tcp.Close()
		return nil, bindError("udp", bound, err)
	}
	// A copy of the descriptor is out of the runtime's poll set; with the first one closed the socket is.
	udp, err := pc.(*net.UDPConn).File()
	pc.Close()
	if err != nil {
		tcp.Close()
		return nil, fmt.Errorf("udp socket of %v: %w", bound, err)
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		tcp.Close()
		udp.Close()
		return nil, fmt.Errorf("udp socket of %v: %w", bound, err)
	}
	return &socket{addr: bound, tcp: tcp, udp: udp, raw: raw, v6: suffix != "4"}, nil
}

// keepAlive finds a dead TCP path within ten seconds where nothing else does.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: time.Second, Count: 5}
}

func bindError(proto string, addr netip.AddrPort, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("listen on %s %v: %w: another program has the port; `ss -lnp sport = :%d` names it: stop it, or choose another port with --advertise IP:PORT",
			proto, addr, err, addr.Port())
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("listen on %s %v: %w: choose a port above 1023, or run as root", proto, addr, err)
	}
	return fmt.Errorf("listen on %s %v: %w", proto, addr, err)
}

// beforeBind lets the socket bind before its address is there (IP_FREEBIND, ip(7)): a link that is down at boot must not
// keep the daemon from starting. Datagrams get the priority and class of network control, so that bulk traffic in
// the same queueing discipline waits for them. Only the first matters; the others are best effort.
func beforeBind(network, _ string, c syscall.RawConn) error {
	var freebind error
	err := c.Control(func(fd uintptr) {
		s := int(fd)
		v6 := network[len(network)-1] != '4'
		freebind = unix.SetsockoptInt(s, unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
		if v6 {
			freebind = unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
		}
		if network[:3] != "udp" {
			return
		}
		const cs6 = 48 << 2 // RFC 2474 section 4.2.2.2
		unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_PRIORITY, 6)
		unix.SetsockoptInt(s, unix.IPPROTO_IP, unix.IP_TOS, cs6)
		unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_PRIORITY, 6) // IP_TOS changes it
		if v6 {
			unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, cs6)
		}
		unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
	})
	return errors.Join(err, freebind)
}

func (s *socket) close() {
	s.tcp.Close()
	s.udp.Close()
}

func zoneID(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index)
	}
	n, _ := strconv.ParseUint(zone, 10, 32)
	return uint32(n)
}

// sender writes datagrams from one socket to one address. It never waits: what the kernel does not take at once is lost, as
// it would be on the wire, so that a stuck path cannot hold up the others. It allocates nothing per datagram.
type sender struct {
	raw   syscall.RawConn
	to    rawAddr
	data  []byte
	err   error
	write func(fd uintptr) bool
}

func newSender(s *socket, to netip.AddrPort) *sender {
	w := &sender{raw: s.raw, to: s.rawSockaddr(to)}
	w.write = func(fd uintptr) bool {
		w.err = sendRaw(fd, w.data, &w.to)
		return true // also on EAGAIN: do not wait
	}
	return w
}

// send is called under the member's sendMu.
func (w *sender) send(b []byte) error {
	w.data, w.err = b, nil
	if err := w.raw.Write(w.write); err != nil {
		return err
	}
	w.data = nil
	return w.err
}
