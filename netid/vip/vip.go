// Package vip keeps the VIPs of a node: it adds a service's addresses when the node becomes active, takes them away when
// it is not, tells the neighbours at once, and watches that nobody else claims them.
//
// It never decides who is active: Claim and Drop are orders. It never adds an address outside a tenure: a standby that
// has the VIP, even on an interface that is down, can answer for it (ARP flux). It never leaves the comparison with the
// kernel: wanted and real addresses are compared at every tick, at every change that the kernel reports, and at start;
// whatever is ours (marked with our protocol number, kept in our list, or equal to a VIP of the spec) and not wanted is
// removed, whoever put it there.
//
// Why at most one host answers is not settled here but by the lease and the gate, which drops a VIP's packets in the
// kernel when the deadline has passed. This package's part is that a VIP that was claimed is reached within
// milliseconds: packet sockets are open and frames and netlink requests built before the takeover, so that Claim is one
// netlink batch and one send per frame.
//
// # What callers must do
//
// Call Clean first of all at start, then SetKnown with every VIP of the spec (and again whenever the spec changes), and
// run Run for as long as the daemon lives. Claim at the start of a tenure, Drop at its end, also when Claim returned an
// error. A gate that is shut drops our announcements like everything else of the VIP: open it before Claim, or call
// Announce when it is open. Call Announce after every healing of the network and every change of membership.
// Run does not drop what is claimed when it ends.
//
// # How an address sits in the kernel
//
// It has the operator's prefix length, our protocol number (IFA_PROTO, Linux 5.18; before that the list in the state
// directory stands for it) and, where the interface has an own address in the network, no prefix route: the network's
// route stays the own address's. IPv6 addresses skip duplicate address detection (with it they are unusable for 1 to
// 2 s) and are deprecated, so that the host does not choose them for its own connections. The sysctl
// promote_secondaries is set, so that taking a VIP away never takes another address with it.
//
// With a virtual MAC the address lives on a macvlan interface made beforehand and kept down without address until
// Claim. It must be down: an interface that is up sends frames by itself, and a switch would learn its MAC at the
// standby's port.
package vip

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
)

// Proto marks our addresses in the kernel: IFA_PROTO, `ip address show` prints it as "proto 0x68". Values below 4 are
// the kernel's own.
const Proto = 0x68

// maxKnown bounds the VIPs of a node; the socket filters have two instructions for each of them (the kernel's limit is
// 4096).
const maxKnown = 1024

// Address is one VIP of a service.
type Address struct {
	Service    cluster.ServiceNo
	Prefix     netip.Prefix // the address itself with its network's length
	Interface  string       // "": the one that has an address in a network that contains the VIP
	VirtualMAC bool         // the MAC moves with the VIP, 00:00:5e:00:01:<id> (IPv6: 00:00:5e:00:02:<id>)
	VMACID     byte         // 0: made from the service's number; the same on every node
}

func (a Address) vmacID() byte {
	if a.VMACID != 0 {
		return a.VMACID
	}
	return byte((uint32(a.Service)+254)%255) + 1
}

// Config is what New needs.
type Config struct {
	Log      *slog.Logger
	StateDir string        // holds the list of our addresses, for the clean-up after a crash
	Tick     time.Duration // between two comparisons with the kernel; 0: 1 s
	Announce AnnounceConfig
	// Lifetime is the kernel's own limit for an address (valid_lft), renewed by Run: a second safety net under the gate,
	// in whole seconds, at least three ticks. 0: addresses have no limit.
	Lifetime time.Duration
	OnEvent  func(Event) // called by Run, Clean and SetKnown, one at a time for each; must not block. May be nil
}

func (c *Config) setDefaults() error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Tick == 0 {
		c.Tick = time.Second
	}
	if c.OnEvent == nil {
		c.OnEvent = func(Event) {}
	}
	c.Announce.setDefaults()
	var errs []error
	if c.StateDir == "" {
		errs = append(errs, errors.New("vip: no state directory given: name one, its list is what cleans up after a crash"))
	}
	if c.Tick < 10*time.Millisecond || c.Tick > time.Minute {
		errs = append(errs, fmt.Errorf("vip: tick %v: choose 10ms to 1m", c.Tick))
	}
	if c.Lifetime != 0 && (c.Lifetime < 2*time.Second || c.Lifetime%time.Second != 0 || c.Lifetime < 3*c.Tick) {
		errs = append(errs, fmt.Errorf("vip: lifetime %v: choose whole seconds, at least 2s and three ticks (%v), or 0 for none",
			c.Lifetime, 3*c.Tick))
	}
	return errors.Join(append(errs, c.Announce.check())...)
}

// validate checks what can be checked without looking at the machine.
func validate(addrs []Address) error {
	if len(addrs) > maxKnown {
		return fmt.Errorf("%d VIPs: at most %d on a node", len(addrs), maxKnown)
	}
	var errs []error
	seen := map[netip.Addr]cluster.ServiceNo{}
	type vmac struct {
		iface string
		id    byte
		v4    bool
	}
	macs := map[vmac]cluster.ServiceNo{}
	for _, a := range addrs {
		if err := validateOne(a); err != nil {
			errs = append(errs, err)
			continue
		}
		ip := a.Prefix.Addr()
		if other, ok := seen[ip]; ok {
			errs = append(errs, fmt.Errorf("VIP %v is in the spec twice (services %d and %d): remove one", a.Prefix, other, a.Service))
		}
		seen[ip] = a.Service
		if a.VirtualMAC {
			key := vmac{a.Interface, a.vmacID(), ip.Is4()}
			if other, ok := macs[key]; ok && other != a.Service {
				errs = append(errs, fmt.Errorf("VIP %v: services %d and %d have the same virtual MAC id %d and may run on different nodes: choose another id",
					a.Prefix, other, a.Service, a.vmacID()))
			}
			macs[key] = a.Service
		}
	}
	return errors.Join(errs...)
}

func validateOne(a Address) error {
	ip := a.Prefix.Addr()
	switch {
	case !a.Prefix.IsValid() || ip.Zone() != "":
		return fmt.Errorf("VIP %q: want an address with its network's length, such as 10.0.0.50/24 or fd00::50/64", a.Prefix)
	case ip.Is4In6():
		return fmt.Errorf("VIP %v: write it as the IPv4 address %v", a.Prefix, ip.Unmap())
	case ip.IsUnspecified() || ip.IsLoopback() || ip.IsMulticast() || ip.IsLinkLocalUnicast():
		return fmt.Errorf("VIP %v: unspecified, loopback, multicast and link-local addresses cannot move between nodes; choose a unicast address of the network", a.Prefix)
	case len(a.Interface) > 15:
		return fmt.Errorf("VIP %v: interface %q: names have at most 15 characters", a.Prefix, a.Interface)
	}
	if ip.Is4() && a.Prefix.Bits() < 31 && (ip == a.Prefix.Masked().Addr() || ip == broadcast(a.Prefix)) {
		return fmt.Errorf("VIP %v is the network's own or its broadcast address: choose a host's address", a.Prefix)
	}
	return nil
}

func broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := range b {
		if n := p.Bits() - 8*i; n < 8 {
			b[i] |= 0xff >> max(n, 0)
		}
	}
	return netip.AddrFrom4(b)
}

// AnnounceConfig says when a VIP is announced.
type AnnounceConfig struct {
	Burst []time.Duration // offsets from the takeover, rising; nil: 0, 50, 200 and 500 ms, 1, 2, 3 and 5 s
	Every time.Duration   // afterwards; 0: 1 minute
}

func (c *AnnounceConfig) setDefaults() {
	if c.Burst == nil {
		const ms = time.Millisecond
		c.Burst = []time.Duration{0, 50 * ms, 200 * ms, 500 * ms, 1000 * ms, 2000 * ms, 3000 * ms, 5000 * ms}
	}
	if c.Every == 0 {
		c.Every = time.Minute
	}
}

func (c *AnnounceConfig) check() error {
	if !slices.IsSorted(c.Burst) || len(c.Burst) > 100 || (len(c.Burst) > 0 && c.Burst[0] < 0) {
		return errors.New("vip: announcement burst: want at most 100 rising offsets from 0")
	}
	if c.Every < 100*time.Millisecond {
		return fmt.Errorf("vip: announce every %v: choose at least 100ms", c.Every)
	}
	return nil
}

// next is when the announcement after one at now is due, for a series that began at start. Offsets that have passed,
// because the host was stopped, are not made up for.
func (c *AnnounceConfig) next(start, now time.Time) time.Time {
	for _, off := range c.Burst {
		if at := start.Add(off); at.After(now) {
			return at
		}
	}
	return now.Add(c.Every)
}
