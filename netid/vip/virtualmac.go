package vip

import (
	"bytes"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// vmacAlias marks the interfaces that we made; `ip link show` prints it.
const (
	vmacAlias   = "hanode virtual MAC"
	macvlanKind = "macvlan"
)

// virtualMAC is the MAC of an id, in the ranges that RFC 9568 section 7.3 gives to virtual routers. A VRRP router with
// the same id in the same network would have the same MAC: choose ids that differ.
func virtualMAC(id byte, v4 bool) net.HardwareAddr {
	if v4 {
		return net.HardwareAddr{0, 0, 0x5e, 0, 1, id}
	}
	return net.HardwareAddr{0, 0, 0x5e, 0, 2, id}
}

// vmacName is the name of the interface with the virtual MAC on a parent.
func vmacName(parent int, id byte, v4 bool) string {
	family := 6
	if v4 {
		family = 4
	}
	return fmt.Sprintf("hv%d-%02x.%d", family, id, parent)
}

// vmacLink returns the interface of a's virtual MAC on the parent, and makes it, down and without address, when it is
// not there.
func (k *Keeper) vmacLink(snap *snapshot, parent *link, a Address) (*link, error) {
	v4 := a.Prefix.Addr().Is4()
	mac, name := virtualMAC(a.vmacID(), v4), vmacName(parent.index, a.vmacID(), v4)
	if l := snap.byName(name); l != nil {
		same := l.kind == macvlanKind && l.parent == parent.index && bytes.Equal(l.mac, mac)
		if same && l.alias == vmacAlias {
			return l, nil
		}
		if l.alias != vmacAlias && !same { // the same without alias: made, but a crash came before its mark
			return nil, fmt.Errorf("VIP %v: an interface %s that is not ours is in the way: rename it", a.Prefix, name)
		}
		if err := k.handle.LinkDel(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Index: l.index, Name: name}}); err != nil {
			return nil, fmt.Errorf("VIP %v: remove the outdated interface %s: %w", a.Prefix, name, err)
		}
	}
	l, err := k.makeMacvlan(name, parent, mac)
	if err != nil {
		return nil, fmt.Errorf("VIP %v: make the interface %s with the virtual MAC %v on %s: %w; an interface that cannot carry a second MAC (wireless, many clouds) needs mac = \"own\"",
			a.Prefix, name, mac, parent.name, err)
	}
	snap.links = append(snap.links, *l)
	return l, nil
}

func (k *Keeper) makeMacvlan(name string, parent *link, mac net.HardwareAddr) (*link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.HardwareAddr = name, parent.index, mac
	// Private: nothing of the host may talk to it but through the wire or the loopback.
	if err := k.handle.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_PRIVATE}); err != nil {
		return nil, err
	}
	made, err := k.handle.LinkByName(name)
	if err != nil {
		return nil, err
	}
	index := made.Attrs().Index
	err = errors.Join(
		k.handle.LinkSetAlias(made, vmacAlias),
		k.ns.in(func() error { return setSysctls(name, vmacSysctls[:]) }),
	)
	if err != nil {
		return nil, errors.Join(err, k.handle.LinkDel(made))
	}
	k.log.Info("made an interface for a virtual MAC", "interface", name, "mac", mac.String(), "parent", parent.name)
	return &link{index: index, name: name, kind: macvlanKind, alias: vmacAlias, mac: mac, parent: parent.index}, nil
}

// dropMacvlans removes the interfaces that we made for VIPs that are no longer in the spec.
func (k *Keeper) dropMacvlans(snap *snapshot, used map[int]bool) error {
	var errs []error
	for _, l := range snap.links {
		if l.kind != macvlanKind || l.alias != vmacAlias || used[l.index] {
			continue
		}
		if err := k.handle.LinkDel(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Index: l.index, Name: l.name}}); err != nil {
			errs = append(errs, fmt.Errorf("remove %s, whose virtual MAC no VIP has any more: %w", l.name, err))
		}
	}
	return errors.Join(errs...)
}
