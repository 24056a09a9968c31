package vip

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/netid/arp"
	"github.com/hanode/hanode/netid/ndp"
)

// slot is a known VIP with everything built that its takeover needs. It is replaced, never changed; only the sequence
// numbers in its requests are written, under mu.
type slot struct {
	Address
	at              place
	err             error // it has no place on this node now
	add, del, raise []byte
	local           []byte // asks whether the kernel takes packets to it; nil for IPv4
	frames          [][]byte
	probe           []byte
	wire            *wire // nil on an interface that is not Ethernet
	incomplete      bool  // something beside the address itself could not be made; tried again
}

// place is where a VIP goes.
type place struct {
	index         int
	name          string
	mac           string // its 6 bytes
	parent        int    // the interface whose network it is; the same one unless virtual
	parentName    string
	virtual       bool
	noPrefixRoute bool
}

// SetKnown tells which VIPs the spec has, of all services, whether they are to run here or not. It makes ready what a
// takeover needs (sockets, interfaces of virtual MACs, kernel settings), and takes addresses away that are no longer
// known or that belong to a service that is not claimed. VIPs that a claimed service gained are added by Run.
//
// A list that contradicts itself is refused whole. A VIP that has no place on this node (no interface in its network) is
// kept and looked for again at each tick; it is in the error, and so are kernel settings that could not be made.
func (k *Keeper) SetKnown(addrs []Address) error {
	if err := validate(addrs); err != nil {
		return err
	}
	k.prep.Lock()
	defer k.prep.Unlock()
	if k.isClosed() {
		return errClosed
	}
	// First the list with both the old and the new, then the new addresses, then, with the old ones gone, the new list.
	now := addrsOf(addrs)
	if err := writeList(k.cfg.StateDir, append(addrsOf(k.known), now...)); err != nil {
		return err
	}
	snap, err := k.lists.list()
	if err != nil {
		return err
	}
	old := k.known
	k.known = slices.Clone(addrs)
	perr := k.place(&snap)
	for _, w := range k.wires {
		perr = errors.Join(perr, w.watch(now))
	}
	k.closeWires()
	cerr := k.clear(old)
	if cerr == nil {
		cerr = writeList(k.cfg.StateDir, now)
	}
	if snap, err := k.lists.list(); err == nil {
		perr = errors.Join(perr, k.dropMacvlans(&snap, k.usedLinks()))
	}
	k.wake()
	return errors.Join(perr, cerr)
}

// place finds each known VIP's place in the snapshot and makes its slot ready. prep is held.
func (k *Keeper) place(snap *snapshot) error {
	k.mu.Lock()
	old := k.slots
	ours := make(map[netip.Addr]cluster.ServiceNo, len(k.known))
	for _, a := range k.known {
		ours[a.Prefix.Addr()] = a.Service
	}
	k.mu.Unlock()
	mine := func(a kernelAddr) bool {
		_, ok := ours[a.prefix.Addr()]
		return ok || a.proto == Proto
	}
	var errs []error
	slots := make([]*slot, 0, len(k.known))
	for _, a := range k.known {
		before := slotFor(old, a)
		at, err := k.find(snap, a, before, mine)
		switch {
		case err != nil:
			errs = append(errs, err)
			slots = append(slots, &slot{Address: a, err: err})
		case before != nil && before.err == nil && !before.incomplete && before.at == at:
			slots = append(slots, before)
		default:
			s, err := k.build(a, at)
			if err != nil {
				errs = append(errs, err)
			}
			slots = append(slots, s)
		}
	}
	k.links = snap.links
	k.swap(slots, ours, snap.links)
	return errors.Join(errs...)
}

// slotFor returns the slot of the same VIP in a list.
func slotFor(slots []*slot, a Address) *slot {
	for _, s := range slots {
		if s.Address == a {
			return s
		}
	}
	return nil
}

// find returns where a VIP goes. It stays where it was when the network's own address is missing for now.
func (k *Keeper) find(snap *snapshot, a Address, before *slot, ours isOurs) (place, error) {
	parent, _, err := snap.find(a, ours)
	if err != nil {
		if before == nil || before.err != nil || snap.byIndex(before.at.parent) == nil {
			return place{}, err
		}
		parent = snap.byIndex(before.at.parent)
	}
	target := parent
	if a.VirtualMAC {
		if parent.mac == nil {
			return place{}, fmt.Errorf("VIP %v: %s is not an Ethernet interface and cannot carry a virtual MAC; use mac = \"own\"", a.Prefix, parent.name)
		}
		if target, err = k.vmacLink(snap, parent, a); err != nil {
			return place{}, err
		}
	}
	_, routed := snap.networkOf(parent.index, a.Prefix.Addr(), ours)
	return place{
		index: target.index, name: target.name, mac: string(target.mac), parent: parent.index, parentName: parent.name,
		virtual: a.VirtualMAC, noPrefixRoute: routed,
	}, nil
}

// build makes everything for a VIP at its place. The address itself can be added even if there is an error.
func (k *Keeper) build(a Address, at place) (*slot, error) {
	life := uint32(k.cfg.Lifetime.Seconds())
	s := &slot{
		Address: a, at: at,
		add:   addMessage(at.index, a.Prefix, addOptions{noPrefixRoute: at.noPrefixRoute, lifetime: life}),
		del:   deleteRequest(at.index, a.Prefix),
		raise: linkMessage(at.index, true),
	}
	if a.Prefix.Addr().Is6() {
		s.local = routeMessage(a.Prefix.Addr())
	}
	err := k.ns.in(func() error {
		err := setSysctls(at.name, carrierSysctls[:])
		if at.virtual {
			err = errors.Join(err, setSysctls(at.parentName, carrierSysctls[:]))
		}
		return errors.Join(err, k.buildFrames(s))
	})
	if err != nil {
		s.incomplete = true
		return s, fmt.Errorf("VIP %v: %w", a.Prefix, err)
	}
	return s, nil
}

func (k *Keeper) buildFrames(s *slot) (err error) {
	if len(s.at.mac) != 6 || s.at.name == "lo" {
		return nil
	}
	mac, ip := net.HardwareAddr(s.at.mac), s.Prefix.Addr()
	if s.probe, err = probeFrame(mac, ip); err != nil {
		return err
	}
	if ip.Is4() {
		s.frames, err = arp.Announce(mac, ip)
	} else {
		s.frames = make([][]byte, 1)
		s.frames[0], err = ndp.Announce(mac, ip, forwards(s.at.name))
	}
	if err != nil {
		return err
	}
	s.wire, err = k.wireFor(s.at, ip.Is6())
	return err
}

func probeFrame(mac net.HardwareAddr, ip netip.Addr) ([]byte, error) {
	if ip.Is4() {
		return arp.Probe(mac, ip)
	}
	return ndp.Probe(mac, ip)
}

// wireFor returns the open socket of an interface, or opens it.
func (k *Keeper) wireFor(at place, v6 bool) (*wire, error) {
	key := wireKey{at.index, v6}
	if w := k.wires[key]; w != nil {
		return w, nil
	}
	w, err := openWire(&link{index: at.index, name: at.name, mac: net.HardwareAddr(at.mac)}, v6, addrsOf(k.known))
	if err != nil {
		return nil, err
	}
	k.wires[key] = w
	return w, nil
}

// swap puts new slots in place. A claimed VIP whose place is another one, or whose
// interface came up, is announced.
func (k *Keeper) swap(slots []*slot, ours map[netip.Addr]cluster.ServiceNo, links []link) {
	state := make(map[int]link, len(links))
	for _, l := range links {
		state[l.index] = l
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	again := map[cluster.ServiceNo]bool{}
	for _, s := range slots {
		if s.err != nil || k.tenures[s.Service] == nil {
			continue
		}
		before, known := k.state[s.at.parent]
		after := state[s.at.parent]
		if known && before.up != after.up {
			kind := LinkDown
			if after.up {
				kind = LinkUp
			}
			k.news = append(k.news, Event{Kind: kind, Service: s.Service, Prefix: s.Prefix, Interface: s.at.parentName})
		}
		if !slices.Contains(k.slots, s) || known && after.up && !before.up {
			again[s.Service] = true
		}
	}
	if !slices.EqualFunc(k.slots, slots, func(a, b *slot) bool { return a.Address == b.Address }) {
		k.gen++
	}
	k.slots, k.ours, k.state = slots, ours, state
	for svc := range again {
		k.announceAgain(svc)
	}
}

// closeWires closes the sockets that no slot uses any more. prep is held, and the slots in place are the new ones.
func (k *Keeper) closeWires() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, w := range k.wires {
		if !slices.ContainsFunc(k.slots, func(s *slot) bool { return s.wire == w }) {
			w.close()
			delete(k.wires, key)
		}
	}
}

// usedLinks returns the interfaces that slots are on.
func (k *Keeper) usedLinks() map[int]bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	used := map[int]bool{}
	for _, s := range k.slots {
		if s.err == nil {
			used[s.at.index] = true
		}
	}
	return used
}

func addrsOf(addrs []Address) []netip.Addr {
	out := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, a.Prefix.Addr())
	}
	return out
}
