package vip

import (
	"fmt"
	"net/netip"
)

// snapshot is what the kernel has: interfaces and addresses.
type snapshot struct {
	links []link
	addrs []kernelAddr
}

func (s *snapshot) byIndex(index int) *link {
	for i := range s.links {
		if s.links[i].index == index {
			return &s.links[i]
		}
	}
	return nil
}

func (s *snapshot) byName(name string) *link {
	for i := range s.links {
		if s.links[i].name == name {
			return &s.links[i]
		}
	}
	return nil
}

// isOurs says that an address in the kernel belongs to us: by its mark, or because it is a VIP that we know.
type isOurs func(kernelAddr) bool

// networkOf returns the longest network of an own (not ours) address of the interface that contains ip.
func (s *snapshot) networkOf(index int, ip netip.Addr, ours isOurs) (netip.Prefix, bool) {
	best, found := netip.Prefix{}, false
	for _, a := range s.addrs {
		if a.link != index || ours(a) || a.prefix.IsSingleIP() || !a.prefix.Masked().Contains(ip) {
			continue
		}
		if !found || a.prefix.Bits() > best.Bits() {
			best, found = a.prefix.Masked(), true
		}
	}
	return best, found
}

// find returns the interface on which a VIP goes: the named one, else the one whose network contains it, the longest
// network first, then the lowest index. Others that fit as well are returned too.
func (s *snapshot) find(a Address, ours isOurs) (*link, []string, error) {
	if a.Interface != "" {
		if l := s.byName(a.Interface); l != nil {
			return l, nil, nil
		}
		return nil, nil, fmt.Errorf("VIP %v: this node has no interface %s; create it or name another with interface =", a.Prefix, a.Interface)
	}
	var best *link
	var fits []string
	bits := -1
	for i := range s.links {
		l := &s.links[i]
		if l.kind == macvlanKind && l.alias == vmacAlias {
			continue
		}
		network, ok := s.networkOf(l.index, a.Prefix.Addr(), ours)
		if !ok {
			continue
		}
		if network.Bits() > bits {
			best, bits, fits = l, network.Bits(), nil
		}
		if network.Bits() == bits {
			fits = append(fits, l.name)
		}
	}
	if best == nil {
		return nil, nil, fmt.Errorf("VIP %v: no interface of this node has an address in %v; add one or name interface =",
			a.Prefix, a.Prefix.Masked())
	}
	return best, fits, nil
}
