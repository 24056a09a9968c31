// Package ndp builds and reads the IPv6 neighbour discovery frames by which a VIP is announced, probed and watched
// (RFC 4861, RFC 4862).
//
// It is pure: bytes in, bytes out. The frames are whole Ethernet frames for the packet sockets of netid/vip, and not
// messages for an ICMPv6 socket, for three reasons: a probe must come from the unspecified address, which the kernel
// refuses on such a socket; the interface of a virtual MAC has no link-local address to bind to; and an announcement
// must not wait for anything that the kernel does with addresses or routes.
package ndp

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/bpf"
)

// EtherType is that of IPv6 frames.
const EtherType = 0x86dd

const (
	ethernetLen  = 14
	ip6Len       = 40
	nextICMPv6   = 58
	typeNA       = 136
	messageStart = ethernetLen + ip6Len
	targetStart  = messageStart + 8
)

// Announce returns the frame that makes the neighbours send traffic for ip to hw: an unsolicited neighbour advertisement
// with the Override flag to all nodes (RFC 4861 section 7.2.6). router is the R flag: whether the interface forwards, as
// the kernel's own advertisements say; a flag that differs would make hosts drop the address as their router.
func Announce(hw net.HardwareAddr, ip netip.Addr, router bool) ([]byte, error) {
	na := &ndp.NeighborAdvertisement{
		Router:        router,
		Override:      true,
		TargetAddress: ip,
		Options:       []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: hw}},
	}
	return frame(na, hw, ip, ip, netip.IPv6LinkLocalAllNodes())
}

// Probe returns the frame that asks whether anybody has ip without saying that we have it: the neighbour solicitation
// of duplicate address detection, from the unspecified address (RFC 4862 section 5.4.2). A holder answers to all nodes.
func Probe(hw net.HardwareAddr, ip netip.Addr) ([]byte, error) {
	dst, err := ndp.SolicitedNodeMulticast(ip)
	if err != nil {
		return nil, fmt.Errorf("neighbour solicitation for %v: %w", ip, err)
	}
	return frame(&ndp.NeighborSolicitation{TargetAddress: ip}, hw, ip, netip.IPv6Unspecified(), dst)
}

func frame(m ndp.Message, hw net.HardwareAddr, about, src, dst netip.Addr) ([]byte, error) {
	if len(hw) != 6 {
		return nil, fmt.Errorf("neighbour discovery for %v: the interface's hardware address %q is not an Ethernet one", about, hw)
	}
	if !about.Is6() || about.Is4In6() || about.Zone() != "" {
		return nil, fmt.Errorf("neighbour discovery for %v: want an IPv6 address without zone", about)
	}
	body, err := ndp.MarshalMessageChecksum(m, src, dst)
	if err != nil {
		return nil, fmt.Errorf("neighbour discovery for %v: %w", about, err)
	}
	b := make([]byte, messageStart, messageStart+len(body))
	d, s := dst.As16(), src.As16()
	copy(b[0:], []byte{0x33, 0x33, d[12], d[13], d[14], d[15]}) // RFC 2464 section 7
	copy(b[6:], hw)
	b[12], b[13] = EtherType>>8, EtherType&0xff
	ip := b[ethernetLen:]
	ip[0] = 6 << 4
	ip[4], ip[5] = byte(len(body)>>8), byte(len(body))
	ip[6], ip[7] = nextICMPv6, ndp.HopLimit
	copy(ip[8:], s[:])
	copy(ip[24:], d[:])
	return append(b, body...), nil
}

// Claim reads a frame and says who claims which address in it: a neighbour advertisement claims its target for the MAC
// in its option, or for the frame's sender when there is none. Anything else claims nothing (false): a solicitation of
// duplicate address detection only asks, and a frame that crossed a router (hop limit below 255) is not to be believed.
func Claim(b []byte) (netip.Addr, net.HardwareAddr, bool) {
	if len(b) < targetStart+16 || b[12] != EtherType>>8 || b[13] != EtherType&0xff {
		return netip.Addr{}, nil, false
	}
	if b[20] != nextICMPv6 || b[21] != ndp.HopLimit || b[messageStart] != typeNA {
		return netip.Addr{}, nil, false
	}
	end := messageStart + int(b[18])<<8 + int(b[19])
	if end > len(b) || end < targetStart+16 {
		return netip.Addr{}, nil, false
	}
	m, err := ndp.ParseMessage(b[messageStart:end])
	if err != nil {
		return netip.Addr{}, nil, false
	}
	na, ok := m.(*ndp.NeighborAdvertisement)
	if !ok {
		return netip.Addr{}, nil, false
	}
	hw := net.HardwareAddr(append([]byte(nil), b[6:12]...))
	for _, o := range na.Options {
		if lla, ok := o.(*ndp.LinkLayerAddress); ok && lla.Direction == ndp.Target && len(lla.Addr) == 6 {
			hw = lla.Addr
		}
	}
	return na.TargetAddress, hw, true
}

// Filter is the socket filter that lets through only neighbour advertisements whose target ends like one of these
// addresses; Claim and the caller compare the rest. Addresses that are not IPv6 are left out.
func Filter(addrs []netip.Addr) []bpf.Instruction {
	drop := bpf.RetConstant{Val: 0}
	prog := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 20, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: nextICMPv6, SkipTrue: 1}, drop,
		bpf.LoadAbsolute{Off: messageStart, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeNA, SkipTrue: 1}, drop,
		bpf.LoadAbsolute{Off: targetStart + 12, Size: 4},
	}
	for _, a := range addrs {
		if !a.Is6() || a.Is4In6() {
			continue
		}
		b := a.As16()
		val := uint32(b[12])<<24 | uint32(b[13])<<16 | uint32(b[14])<<8 | uint32(b[15])
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: val, SkipFalse: 1}, bpf.RetConstant{Val: 0xffff})
	}
	return append(prog, drop)
}
