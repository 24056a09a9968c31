// Package arp builds and reads the ARP frames by which a VIP is announced, probed and watched (RFC 826, RFC 5227).
//
// It is pure: bytes in, bytes out. Sockets belong to netid/vip, which opens one per interface at start and keeps it,
// because opening and closing a packet socket costs about 10 ms and sending on an open one 0.1 ms.
//
// Two forms of announcement are sent together, because no single one moves every neighbour: Linux takes a gratuitous
// request at once; it takes a gratuitous reply at once only when the reply's target MAC is the announcer's own. A reply
// to ff:ff:ff:ff:ff:ff is taken for unsolicited broadcast noise while the neighbour's entry is younger than its
// locktime (1 s), which is exactly the case that matters in a takeover.
package arp

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"golang.org/x/net/bpf"
)

// EtherType is that of ARP frames.
const EtherType = 0x0806

// frameLen bounds what Parse looks at: an Ethernet header, an ARP packet for IPv4, and the padding to 60 bytes.
const frameLen = 14 + 28

// Announce returns the frames that make the neighbours send traffic for ip to hw: a gratuitous request and a gratuitous
// reply whose target MAC is hw. Both are broadcast.
func Announce(hw net.HardwareAddr, ip netip.Addr) ([][]byte, error) {
	// RFC 5227 section 3: in an announcement (a request) the target hardware address is ignored and should be zero.
	request, err := frame(arp.OperationRequest, hw, ip, make(net.HardwareAddr, 6), ip)
	if err != nil {
		return nil, err
	}
	reply, err := frame(arp.OperationReply, hw, ip, hw, ip)
	if err != nil {
		return nil, err
	}
	return [][]byte{request, reply}, nil
}

// Probe returns the frame that asks whether anybody has ip without saying that we have it: sender address 0.0.0.0
// (RFC 5227 section 2.1.1). Nobody changes a neighbour table because of it, and every holder answers.
func Probe(hw net.HardwareAddr, ip netip.Addr) ([]byte, error) {
	return frame(arp.OperationRequest, hw, netip.IPv4Unspecified(), make(net.HardwareAddr, 6), ip)
}

func frame(op arp.Operation, src net.HardwareAddr, srcIP netip.Addr, dst net.HardwareAddr, dstIP netip.Addr) ([]byte, error) {
	if len(src) != 6 {
		return nil, fmt.Errorf("ARP for %v: the interface's hardware address %q is not an Ethernet one", dstIP, src)
	}
	p, err := arp.NewPacket(op, src, srcIP, dst, dstIP)
	if err != nil {
		return nil, fmt.Errorf("ARP for %v: %w", dstIP, err)
	}
	payload, err := p.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("ARP for %v: %w", dstIP, err)
	}
	f := ethernet.Frame{Destination: ethernet.Broadcast, Source: src, EtherType: ethernet.EtherTypeARP, Payload: payload}
	return f.MarshalBinary()
}

// Claim reads a frame and says who claims which address in it: the sender of any ARP request or reply claims its
// sender address. A probe claims nothing (false), and so does a malformed frame.
func Claim(b []byte) (netip.Addr, net.HardwareAddr, bool) {
	if len(b) < frameLen || b[12] != EtherType>>8 || b[13] != EtherType&0xff {
		return netip.Addr{}, nil, false
	}
	// Only Ethernet and IPv4, checked before the library sees the lengths.
	if !bytes.Equal(b[14:20], []byte{0, 1, 8, 0, 6, 4}) {
		return netip.Addr{}, nil, false
	}
	var p arp.Packet
	if err := p.UnmarshalBinary(b[14:frameLen]); err != nil || p.SenderIP.IsUnspecified() {
		return netip.Addr{}, nil, false
	}
	return p.SenderIP, p.SenderHardwareAddr, true
}

// Filter is the socket filter that lets through only claims of one of these addresses, so that an ARP storm costs the
// daemon nothing. Addresses that are not IPv4 are left out.
func Filter(addrs []netip.Addr) []bpf.Instruction {
	prog := []bpf.Instruction{bpf.LoadAbsolute{Off: 28, Size: 4}} // sender protocol address
	for _, a := range addrs {
		if !a.Is4() {
			continue
		}
		b := a.As4()
		val := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: val, SkipFalse: 1}, bpf.RetConstant{Val: 0xffff})
	}
	return append(prog, bpf.RetConstant{Val: 0})
}
