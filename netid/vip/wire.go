package vip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/netid/arp"
	"github.com/hanode/hanode/netid/ndp"
)

// wire is a packet socket on one interface for ARP or for IPv6: it sends ready frames without ever blocking and reads
// the claims that its filter lets through.
type wire struct {
	conn  *packet.Conn
	raw   syscall.RawConn
	to    unix.SockaddrLinklayer
	name  string // of the interface
	index int
	v6    bool
}

type wireKey struct {
	index int
	v6    bool
}

// claim is somebody's word that it has an address.
type claim struct {
	ip    netip.Addr
	mac   net.HardwareAddr
	iface string
}

// openWire opens a socket in the network namespace of the calling thread. It takes about 10 ms.
func openWire(l *link, v6 bool, watch []netip.Addr) (*wire, error) {
	proto := arp.EtherType
	if v6 {
		proto = ndp.EtherType
	}
	filter, err := assemble(v6, watch)
	if err != nil {
		return nil, err
	}
	ifi := &net.Interface{Index: l.index, Name: l.name, HardwareAddr: l.mac}
	conn, err := packet.Listen(ifi, packet.Raw, proto, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket on %s: %w", l.name, err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open a packet socket on %s: %w", l.name, err)
	}
	w := &wire{conn: conn, raw: raw, name: l.name, index: l.index, v6: v6}
	w.to = unix.SockaddrLinklayer{Ifindex: l.index, Protocol: uint16(proto>>8 | proto&0xff<<8), Halen: 6}
	return w, nil
}

func assemble(v6 bool, watch []netip.Addr) ([]bpf.RawInstruction, error) {
	prog := arp.Filter(watch)
	if v6 {
		prog = ndp.Filter(watch)
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return nil, fmt.Errorf("socket filter for %d addresses: %w", len(watch), err)
	}
	return raw, nil
}

func (w *wire) watch(addrs []netip.Addr) error {
	filter, err := assemble(w.v6, addrs)
	if err == nil {
		err = w.conn.SetBPF(filter)
	}
	if err != nil {
		return fmt.Errorf("set the filter of the packet socket on %s: %w", w.name, err)
	}
	return nil
}

func (w *wire) close() { w.conn.Close() }

// send sends one frame at once or not at all.
func (w *wire) send(frame []byte) error {
	var err error
	cerr := w.raw.Control(func(fd uintptr) {
		for range 2 {
			to := w.to
			copy(to.Addr[:], frame[:6])
			err = unix.Sendto(int(fd), frame, unix.MSG_DONTWAIT, &to)
			// A socket reports once that its interface was down, also when it is up again.
			if err != unix.ENETDOWN && err != unix.EINTR {
				return
			}
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		return fmt.Errorf("send on %s: %w", w.name, err)
	}
	return nil
}

// read waits for the next claim. Frames that are none are skipped.
func (w *wire) read(buf []byte) (claim, error) {
	for {
		n, _, err := w.conn.ReadFrom(buf)
		if err != nil {
			return claim{}, err
		}
		parse := arp.Claim
		if w.v6 {
			parse = ndp.Claim
		}
		if ip, mac, ok := parse(buf[:n]); ok {
			return claim{ip, mac, w.name}, nil
		}
	}
}

// listen hands claims to out until ctx ends or the socket is closed. When out is full, claims are lost: the next will do.
func (w *wire) listen(ctx context.Context, out chan<- claim) {
	buf := make([]byte, 1514)
	for ctx.Err() == nil {
		c, err := w.read(buf)
		switch {
		case err == nil:
			select {
			case out <- c:
			default:
			}
		case errors.Is(err, unix.ENETDOWN):
			// Said once; the socket works again when the interface is up.
		case ctx.Err() != nil, errors.Is(err, net.ErrClosed), errors.Is(err, unix.EBADF):
			return
		default:
			select { // unknown trouble: do not spin
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}
