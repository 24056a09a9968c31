package vip

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// want is one address that must be in the kernel now.
type want struct {
	prefix        netip.Prefix
	link          int
	linkUp        bool // set up by the administrator; addresses are not added to an interface that is down
	noPrefixRoute bool
}

type op uint8

const (
	remove op = iota + 1
	add
	reseat  // remove and add: it is there, but not as it must be
	refresh // renew the lifetime, the mark or the flags of what is there
)

func (o op) String() string { return [...]string{"?", "remove", "add", "reseat", "refresh"}[o] }

// change is one step towards the wanted state.
type change struct {
	op     op
	link   int
	prefix netip.Prefix
}

func (c change) String() string { return fmt.Sprintf("{%v %d %v}", c.op, c.link, c.prefix) }

// reconcile compares what is wanted with what the kernel has and returns what to do, removals first. It is pure.
//
// lifetime is the limit that ours have in the kernel, in seconds; 0 for none. What is not ours is never touched.
func reconcile(wants []want, kern []kernelAddr, ours isOurs, lifetime uint32) []change {
	var removals, rest []change
	found := make([]bool, len(wants))
	marks := marksKept(kern)
	for _, a := range kern {
		if !ours(a) {
			continue
		}
		i := wanted(wants, a)
		if i < 0 {
			removals = append(removals, change{remove, a.link, a.prefix})
			continue
		}
		found[i] = true
		if o := repair(wants[i], a, kern, ours, marks, lifetime); o != 0 {
			rest = append(rest, change{o, a.link, a.prefix})
		}
	}
	for i, w := range wants {
		if !found[i] && w.linkUp && w.link != 0 {
			rest = append(rest, change{add, w.link, w.prefix})
		}
	}
	return append(removals, rest...)
}

// wanted returns the index of the want that a fulfils, or -1. The same address on another interface or with another
// length fulfils nothing: two of them would answer with two MACs.
func wanted(wants []want, a kernelAddr) int {
	for i, w := range wants {
		if w.prefix == a.prefix && w.link == a.link {
			return i
		}
	}
	return -1
}

// repair says what to do about an address that is there and wanted; 0 for nothing.
func repair(w want, a kernelAddr, kern []kernelAddr, ours isOurs, marks bool, lifetime uint32) op {
	const unusable = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	if a.prefix.Addr().Is6() && a.flags&unusable != 0 {
		return reseat
	}
	if !a.prefix.IsSingleIP() && (a.flags&unix.IFA_F_NOPREFIXROUTE != 0) != w.noPrefixRoute {
		if a.prefix.Addr().Is4() {
			return reseat // the kernel changes this flag of an IPv4 address only with a new one
		}
		return refresh
	}
	if stoleNetwork(a, kern, ours) {
		return reseat
	}
	if marks && a.proto != Proto {
		return refresh
	}
	switch {
	case lifetime == 0 && a.valid != forever, lifetime != 0 && (a.valid == forever || a.valid*3 <= lifetime*2):
		return refresh
	}
	return 0
}

// stoleNetwork says that our IPv4 address is the primary one of its network while an own address of the interface is
// secondary to it: that one's network route would be missing. It happens when the own address is taken away and comes
// back while the VIP stays.
func stoleNetwork(a kernelAddr, kern []kernelAddr, ours isOurs) bool {
	if !a.prefix.Addr().Is4() || a.flags&unix.IFA_F_SECONDARY != 0 {
		return false
	}
	for _, b := range kern {
		if b.link == a.link && b.flags&unix.IFA_F_SECONDARY != 0 && b.prefix.Masked() == a.prefix.Masked() && !ours(b) {
			return true
		}
	}
	return false
}

// marksKept says that this kernel keeps IFA_PROTO (5.18 and later): it marks its own loopback and link-local addresses.
func marksKept(kern []kernelAddr) bool {
	for _, a := range kern {
		if a.proto != 0 {
			return true
		}
	}
	return false
}
