package vip

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// The rtnetlink messages that this package needs, written here and not taken from a library for two reasons: they can be
// built before the takeover, and the library at hand does not know IFA_PROTO. See rtnetlink(7), linux/if_addr.h.

const (
	ifaProto  = 11 // IFA_PROTO, linux/if_addr.h
	forever   = 0xffffffff
	headerLen = unix.SizeofNlMsghdr
	skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS, linux/rtnetlink.h
)

// link is an interface as the kernel reports it.
type link struct {
	index  int
	name   string
	kind   string // "macvlan", "veth", ...; "" for hardware
	alias  string
	mac    net.HardwareAddr // nil unless Ethernet
	parent int              // of a macvlan or VLAN
	admin  bool             // set up by the administrator
	up     bool             // and it has a carrier
}

// kernelAddr is an address as the kernel reports it.
type kernelAddr struct {
	link   int
	prefix netip.Prefix
	flags  uint32
	proto  uint8
	valid  uint32 // seconds that it still lives, or forever
}

// addOptions is how an address is to sit in the kernel.
type addOptions struct {
	noPrefixRoute bool
	lifetime      uint32 // seconds; 0: forever
}

// addMessage is the request that adds the address, or renews the one that is there.
func addMessage(ifindex int, p netip.Prefix, o addOptions) []byte {
	b := addrHeader(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, ifindex, p)
	var flags uint32
	if o.noPrefixRoute {
		flags |= unix.IFA_F_NOPREFIXROUTE
	}
	valid, preferred := uint32(forever), uint32(forever)
	if o.lifetime != 0 {
		valid, preferred = o.lifetime, o.lifetime
	}
	if p.Addr().Is6() {
		flags |= unix.IFA_F_NODAD
		preferred = 0
	}
	b = attr32(b, unix.IFA_FLAGS, flags)
	b = attr(b, ifaProto, []byte{Proto})
	var ci [16]byte
	binary.NativeEndian.PutUint32(ci[0:], preferred)
	binary.NativeEndian.PutUint32(ci[4:], valid)
	return finish(attr(b, unix.IFA_CACHEINFO, ci[:]))
}

// DeleteMessage is the RTM_DELADDR request that takes the address from the interface: the bytes to send, as they are, on
// a NETLINK_ROUTE socket of the network namespace. It asks for no answer, so that a process that must not allocate or
// wait (the guard) can send it and be done; the address is gone when send(2) returns. The kernel answers only a refusal,
// and that is harmless: EADDRNOTAVAIL means that it was gone already.
func DeleteMessage(ifindex int, p netip.Prefix) []byte {
	return finish(addrHeader(unix.RTM_DELADDR, 0, ifindex, p))
}

// deleteRequest is DeleteMessage with an answer.
func deleteRequest(ifindex int, p netip.Prefix) []byte {
	return finish(addrHeader(unix.RTM_DELADDR, unix.NLM_F_ACK, ifindex, p))
}

func addrHeader(typ, flags uint16, ifindex int, p netip.Prefix) []byte {
	family := byte(unix.AF_INET)
	if p.Addr().Is6() {
		family = unix.AF_INET6
	}
	b := header(typ, flags)
	b = append(b, family, byte(p.Bits()), 0, unix.RT_SCOPE_UNIVERSE)
	b = binary.NativeEndian.AppendUint32(b, uint32(ifindex))
	ip := p.Addr().AsSlice()
	b = attr(b, unix.IFA_LOCAL, ip)
	return attr(b, unix.IFA_ADDRESS, ip)
}

// linkMessage sets an interface up or down.
func linkMessage(ifindex int, up bool) []byte {
	var flags uint32
	if up {
		flags = unix.IFF_UP
	}
	b := header(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	b = append(b, unix.AF_UNSPEC, 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, uint32(ifindex))
	b = binary.NativeEndian.AppendUint32(b, flags)
	b = binary.NativeEndian.AppendUint32(b, unix.IFF_UP)
	return finish(b)
}

// routeMessage asks for the route to an IPv6 address.
func routeMessage(ip netip.Addr) []byte {
	b := header(unix.RTM_GETROUTE, 0)
	b = append(b, unix.AF_INET6, 128)
	b = append(b, make([]byte, unix.SizeofRtMsg-2)...)
	return finish(attr(b, unix.RTA_DST, ip.AsSlice()))
}

// dumpMessage asks for all interfaces (RTM_GETLINK) or all addresses (RTM_GETADDR).
func dumpMessage(typ uint16) []byte {
	b := header(typ, unix.NLM_F_DUMP)
	if typ == unix.RTM_GETADDR {
		return finish(append(b, make([]byte, unix.SizeofIfAddrmsg)...))
	}
	b = append(b, make([]byte, unix.SizeofIfInfomsg)...)
	return finish(attr32(b, unix.IFLA_EXT_MASK, skipStats))
}

func header(typ, flags uint16) []byte {
	b := make([]byte, 4, 128)
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0) // sequence number, set when it is sent; port 0: the kernel
}

func finish(b []byte) []byte {
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

func attr(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func attr32(b []byte, typ uint16, v uint32) []byte {
	return attr(b, typ, binary.NativeEndian.AppendUint32(nil, v))
}

// attrs calls fn for each attribute of b, and stops at one whose length is wrong.
func attrs(b []byte, fn func(typ uint16, data []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		fn(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// parseAddr reads the body of RTM_NEWADDR.
func parseAddr(b []byte) (kernelAddr, bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return kernelAddr{}, false
	}
	a := kernelAddr{link: int(binary.NativeEndian.Uint32(b[4:])), flags: uint32(b[2]), valid: forever}
	var local, remote netip.Addr
	attrs(b[unix.SizeofIfAddrmsg:], func(typ uint16, data []byte) {
		switch {
		case typ == unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(data)
		case typ == unix.IFA_ADDRESS:
			remote, _ = netip.AddrFromSlice(data)
		case typ == unix.IFA_FLAGS && len(data) >= 4:
			a.flags = binary.NativeEndian.Uint32(data)
		case typ == unix.IFA_CACHEINFO && len(data) >= 8:
			a.valid = binary.NativeEndian.Uint32(data[4:])
		case typ == ifaProto && len(data) >= 1:
			a.proto = data[0]
		}
	})
	if !local.IsValid() { // IPv6 sends only IFA_ADDRESS unless there is a peer
		local = remote
	}
	a.prefix = netip.PrefixFrom(local, int(b[1]))
	return a, a.prefix.IsValid()
}

// parseLink reads the body of RTM_NEWLINK.
func parseLink(b []byte) (link, bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return link{}, false
	}
	flags := binary.NativeEndian.Uint32(b[8:])
	l := link{
		index: int(int32(binary.NativeEndian.Uint32(b[4:]))),
		admin: flags&unix.IFF_UP != 0,
		up:    flags&unix.IFF_UP != 0 && flags&unix.IFF_LOWER_UP != 0,
	}
	ether := binary.NativeEndian.Uint16(b[2:]) == unix.ARPHRD_ETHER
	attrs(b[unix.SizeofIfInfomsg:], func(typ uint16, data []byte) {
		switch {
		case typ == unix.IFLA_IFNAME:
			l.name = strings.TrimRight(string(data), "\x00")
		case typ == unix.IFLA_IFALIAS:
			l.alias = strings.TrimRight(string(data), "\x00")
		case typ == unix.IFLA_ADDRESS && ether && len(data) == 6:
			l.mac = append(net.HardwareAddr(nil), data...)
		case typ == unix.IFLA_LINK && len(data) >= 4:
			l.parent = int(int32(binary.NativeEndian.Uint32(data)))
		case typ == unix.IFLA_LINKINFO:
			attrs(data, func(typ uint16, data []byte) {
				if typ == unix.IFLA_INFO_KIND {
					l.kind = strings.TrimRight(string(data), "\x00")
				}
			})
		}
	})
	return l, l.index > 0 && l.name != ""
}
