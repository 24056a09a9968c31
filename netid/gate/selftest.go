package gate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"

	"github.com/hanode/hanode/cluster"
)

// testSlot is the last one, which a service gets only when all others are taken.
const testSlot = maxSlots - 1

// specimen is a packet by which the programs are tested: an Ethernet frame.
type specimen struct {
	name string
	dir  direction
	addr netip.Addr
	data []byte
}

func specimens(v4, v6 netip.Addr) []specimen {
	frame := func(ethertype uint16, size int, at int, a netip.Addr) []byte {
		f := make([]byte, max(14+size, 64))
		f[12], f[13] = byte(ethertype>>8), byte(ethertype)
		copy(f[14+at:], a.AsSlice())
		return f
	}
	ip4 := func(at int) []byte { f := frame(0x0800, 20, at, v4); f[14] = 0x45; return f }
	ip6 := func(at int) []byte { f := frame(0x86dd, 40, at, v6); f[14] = 0x60; return f }
	arp := frame(0x0806, 28, 14, v4)
	copy(arp[14:], []byte{0, 1, 8, 0, 6, 4, 0, 2})
	na := frame(0x86dd, 72, 48, v6)
	na[14], na[14+6], na[14+40] = 0x60, 58, 136
	return []specimen{
		{"IPv4 to it", ingress, v4, ip4(16)},
		{"IPv4 from it", egress, v4, ip4(12)},
		{"IPv6 to it", ingress, v6, ip6(24)},
		{"IPv6 from it", egress, v6, ip6(8)},
		{"ARP from it", egress, v4, arp},
		{"neighbour advertisement for it", egress, v6, na},
	}
}

// selfTest runs the programs on specimens: shut, open, and past a deadline.
func selfTest(kernel enforcer) error {
	b, ok := kernel.(*bpfGate)
	if !ok {
		return nil // form nft is tested live only
	}
	v4, v6 := netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8::77") // documentation: RFC 5737, RFC 3849
	for _, a := range []netip.Addr{v4, v6} {
		if err := b.maps.put(a, testSlot); err != nil {
			return err
		}
	}
	now := boottime()
	for _, step := range []struct {
		name     string
		deadline cluster.Instant
		verdict  int32
	}{
		{"shut", 0, verdictDrop},
		{"open", now.Add(time.Minute), verdictNext},
		{"past its deadline", now.Add(-time.Millisecond), verdictDrop},
	} {
		b.setDeadline(testSlot, step.deadline)
		for _, s := range specimens(v4, v6) {
			for _, fr := range []framing{ethernet, bare} {
				got, err := b.progs[s.dir][fr].Run(&ebpf.RunOptions{Data: s.data})
				if err != nil {
					return fmt.Errorf("test the program: %w", err)
				}
				if int32(got) != step.verdict {
					return fmt.Errorf("the program answers %d to %s while %s; %d would be right: this kernel cannot be used with this form",
						int32(got), s.name, step.name, step.verdict)
				}
			}
		}
	}
	b.setDeadline(testSlot, 0)
	return errors.Join(b.maps.forget(v4), b.maps.forget(v6))
}

// liveTest sends a datagram over lo to an address of its own: it has to arrive while open only, and no more after the
// deadline. Where lo is down there is nothing to test with.
func liveTest(kernel enforcer, log *slog.Logger) error {
	lo, err := net.InterfaceByName("lo")
	if err != nil || lo.Flags&net.FlagUp == 0 {
		log.Warn("the gate was not tested with real packets, because lo is down")
		return nil
	}
	vip := netip.AddrFrom4([4]byte{127, 0xf0 | byte(os.Getpid()>>16&0xf), byte(os.Getpid() >> 8), byte(os.Getpid())})
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(vip, 0)))
	if err != nil {
		return fmt.Errorf("test with real packets: %w", err)
	}
	defer conn.Close()
	if err := kernel.put(vip, testSlot); err != nil {
		return err
	}
	err = liveSteps(kernel, conn)
	return errors.Join(err, kernel.refresh(testSlot, 0), kernel.forget(vip))
}

func liveSteps(kernel enforcer, conn *net.UDPConn) error {
	const lease = 30 * time.Millisecond // more than what form nft takes off
	if err := kernel.refresh(testSlot, 0); err != nil {
		return err
	}
	if passes(conn, 1, 3*time.Millisecond) {
		return errors.New("a packet to a shut address arrived: the kernel does not run the gate")
	}
	deadline := boottime().Add(10 * time.Second)
	if err := kernel.refresh(testSlot, deadline); err != nil {
		return err
	}
	if !passes(conn, 2, time.Second) {
		return errors.New("a packet to an open address did not arrive")
	}
	deadline = boottime().Add(lease)
	if err := kernel.refresh(testSlot, deadline); err != nil {
		return err
	}
	for boottime() < deadline {
		time.Sleep(deadline.Sub(boottime()))
	}
	if passes(conn, 3, 3*time.Millisecond) {
		return errors.New("a packet arrived after the deadline: the kernel does not close the gate by itself")
	}
	return nil
}

// passes sends a numbered datagram from 127.0.0.1 to conn's own address and waits for it. Over lo it arrives before the
// system call returns, or soon after.
func passes(conn *net.UDPConn, number uint64, wait time.Duration) bool {
	from, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, conn.LocalAddr().(*net.UDPAddr))
	if err != nil {
		return false
	}
	defer from.Close()
	_, _ = from.Write(binary.BigEndian.AppendUint64(nil, number))
	_ = conn.SetReadDeadline(time.Now().Add(wait))
	buf := make([]byte, 16)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return false
		}
		if n == 8 && binary.BigEndian.Uint64(buf) == number {
			return true
		}
	}
}
