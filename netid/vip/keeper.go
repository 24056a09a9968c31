package vip

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// Keeper keeps the VIPs of one node. Its methods are safe for concurrent use.
//
// Lock order: prep, then mu. What takes long (lists, opening sockets, making interfaces) is done under prep alone, so
// that Claim, Drop and Announce wait only for each other's netlink batch.
type Keeper struct {
	cfg Config
	log *slog.Logger
	ns  *namespace

	prep   sync.Mutex
	lists  *routeSocket
	handle *netlink.Handle
	wires  map[wireKey]*wire
	known  []Address // the spec's
	links  []link    // as last listed

	mu      sync.Mutex
	route   *routeSocket
	slots   []*slot
	ours    map[netip.Addr]cluster.ServiceNo // the VIPs that we know, for those whose mark the kernel did not keep
	tenures map[cluster.ServiceNo]*tenure
	state   map[int]link // by index, as last listed
	gen     uint64       // changes with each Claim, Drop and SetKnown
	news    []Event      // to be told when mu is free
	limiter seldom
	closed  bool

	poke   chan struct{} // Run has something new to look at
	claims chan claim
}

// tenure is a claimed service.
type tenure struct {
	start time.Time             // of the present series of announcements
	next  time.Time             // when the next one is due
	on    map[netip.Prefix]bool // the VIPs that were in the kernel
}

var errClosed = errors.New("the keeper of the VIPs is closed")

// New opens what it needs in the calling thread's network namespace. It starts nothing. Close it after Run has returned.
func New(cfg Config) (*Keeper, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	ns, err := currentNamespace()
	if err != nil {
		return nil, err
	}
	k := &Keeper{
		cfg: cfg, log: cfg.Log, ns: ns,
		wires:   map[wireKey]*wire{},
		tenures: map[cluster.ServiceNo]*tenure{},
		poke:    make(chan struct{}, 1),
		claims:  make(chan claim, 64),
		limiter: seldom{},
	}
	err = ns.in(func() (err error) {
		if k.lists, err = openRoute(); err != nil {
			return err
		}
		if k.route, err = openRoute(); err != nil {
			return err
		}
		if k.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open a netlink socket for interfaces: %w", err)
		}
		return nil
	})
	if err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// Close closes the sockets. Addresses stay as they are.
func (k *Keeper) Close() error {
	k.prep.Lock()
	defer k.prep.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	k.closed = true
	for _, w := range k.wires {
		w.close()
	}
	for _, s := range []*routeSocket{k.lists, k.route} {
		if s != nil {
			s.close()
		}
	}
	if k.handle != nil {
		k.handle.Close()
	}
	k.ns.close()
	return nil
}

// Claim makes this node answer for the service's VIPs: it adds the addresses and announces them at once, and from then
// on keeps them there. It returns the interface of each VIP that is in the kernel now. VIPs that could not be added are
// in the error and are tried again at each tick; Drop gives them up. A second Claim does it all again.
func (k *Keeper) Claim(svc cluster.ServiceNo) (map[netip.Prefix]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, errClosed
	}
	now := time.Now()
	k.gen++
	t := &tenure{start: now, next: k.cfg.Announce.next(now, now), on: map[netip.Prefix]bool{}}
	k.tenures[svc] = t
	slots, errs := k.placed(svc)
	on := make(map[netip.Prefix]string, len(slots))
	for i, err := range k.addAll(slots) {
		if err != nil {
			errs = append(errs, fmt.Errorf("add VIP %v to %s: %w", slots[i].Prefix, slots[i].at.name, err))
			continue
		}
		on[slots[i].Prefix] = slots[i].at.name
		t.on[slots[i].Prefix] = true
	}
	late := now.Add(localWait)
	for _, v6 := range []bool{false, true} { // IPv4 does not wait for IPv6
		for _, s := range slots {
			if _, ok := on[s.Prefix]; ok && s.Prefix.Addr().Is6() == v6 {
				k.awaitLocal(s, late)
				k.announceOr(t, s, false, now)
			}
		}
	}
	k.wake()
	return on, errors.Join(errs...)
}

// Drop makes this node stop answering for the service's VIPs. The addresses are gone when it returns nil; after an error
// they are tried again at each tick. Dropping what is not claimed removes what may be left of it.
func (k *Keeper) Drop(svc cluster.ServiceNo) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	k.gen++
	delete(k.tenures, svc)
	slots, _ := k.placed(svc)
	var reqs [][]byte
	for _, s := range slots {
		reqs = append(reqs, s.del)
	}
	answers := k.route.do(reqs...)
	var errs []error
	for i, err := range answers {
		if err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("remove VIP %v from %s: %w", slots[i].Prefix, slots[i].at.name, err))
		}
	}
	// Before the other side can claim: an interface that is up may still send a farewell (MLD) with the virtual MAC, and
	// the switch would send the other side's traffic here. It takes about 10 ms.
	errs = append(errs, k.lowerMacvlans(slots)...)
	k.wake()
	return errors.Join(errs...)
}

// Announce tells the neighbours again, now and as after a takeover, where the VIPs of these services are; of all that
// are claimed when none is named. Services that are not claimed are left out.
func (k *Keeper) Announce(svcs ...cluster.ServiceNo) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return
	}
	for svc := range k.tenures {
		if len(svcs) == 0 || slices.Contains(svcs, svc) {
			k.announceAgain(svc)
		}
	}
	k.wake()
}

// Holding returns what the kernel has of ours now, wanted or not, each with the interface that it is on. An address that
// is not in the spec any more has service 0.
func (k *Keeper) Holding() ([]Address, error) {
	k.prep.Lock()
	defer k.prep.Unlock()
	if k.isClosed() {
		return nil, errClosed
	}
	snap, err := k.lists.list()
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	ours := k.isOurs()
	var out []Address
	for _, a := range snap.addrs {
		if !ours(a) {
			continue
		}
		h := Address{Prefix: a.prefix}
		if s := k.slotOf(a.prefix.Addr()); s != nil {
			h = s.Address
		}
		h.Prefix, h.Interface = a.prefix, ""
		if l := snap.byIndex(a.link); l != nil {
			h.Interface = l.name
		}
		out = append(out, h)
	}
	return out, nil
}

// Deletions returns the requests that take the service's VIPs from the kernel, for a process that must do it without
// the daemon; see DeleteMessage. They change with SetKnown and when interfaces come and go.
func (k *Keeper) Deletions(svc cluster.ServiceNo) [][]byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	slots, _ := k.placed(svc)
	var out [][]byte
	for _, s := range slots {
		out = append(out, DeleteMessage(s.at.index, s.Prefix))
	}
	return out
}

// placed returns the service's VIPs that have an interface, and the reasons of those that have none.
func (k *Keeper) placed(svc cluster.ServiceNo) (slots []*slot, errs []error) {
	for _, s := range k.slots {
		switch {
		case s.Service != svc:
		case s.err != nil:
			errs = append(errs, s.err)
		default:
			slots = append(slots, s)
		}
	}
	return slots, errs
}

// addAll adds the addresses in one batch, interfaces of virtual MACs being set up first, and returns each one's error.
func (k *Keeper) addAll(slots []*slot) []error {
	errs := make([]error, len(slots))
	var reqs [][]byte
	var of []int // index of the slot that a request is for
	for i, s := range slots {
		if s.at.virtual {
			reqs, of = append(reqs, s.raise), append(of, i)
		} else if l, ok := k.state[s.at.index]; ok && !l.admin {
			errs[i] = errors.New("the interface is down: set it up, the address follows")
			continue
		}
		reqs, of = append(reqs, s.add), append(of, i)
	}
	for i, err := range k.route.do(reqs...) {
		if err != nil && errs[of[i]] == nil {
			errs[of[i]] = err
		}
	}
	return errs
}

// An IPv6 address that was added is usable only some time after the kernel has acknowledged it, even without duplicate
// address detection: a kernel worker makes its route and joins its multicast group (addrconf_dad_work; 0.1 to 0.5 ms
// when idle, more when the routing lock is busy). An announcement before that makes clients send what the host then
// drops, and TCP tries again only after a second. So each announcement asks first; Claim waits a little, the rest is
// Run's. IPv4 addresses are usable at once.
const (
	localWait  = 2 * time.Millisecond   // in all, within Claim
	localAgain = time.Millisecond       // until Run asks again
	localFor   = 500 * time.Millisecond // from the takeover; then only with the series
)

// isLocal says that the kernel takes packets to the VIP.
func (k *Keeper) isLocal(s *slot) bool {
	if s.local == nil {
		return true
	}
	typ, err := k.route.routeType(s.local)
	return err == nil && typ == unix.RTN_LOCAL
}

func (k *Keeper) awaitLocal(s *slot, until time.Time) {
	for !k.isLocal(s) && time.Now().Before(until) {
		time.Sleep(30 * time.Microsecond)
	}
}

// announceOr announces, or has Run try again very soon when the kernel is not ready.
func (k *Keeper) announceOr(t *tenure, s *slot, probe bool, now time.Time) {
	if !k.announce(s, probe) && now.Sub(t.start) < localFor {
		t.next = now.Add(localAgain)
	}
}

// lowerMacvlans sets the interfaces of the slots' virtual MACs down, unless a claimed service has a VIP there.
func (k *Keeper) lowerMacvlans(slots []*slot) (errs []error) {
	done := map[int]bool{}
	for _, s := range slots {
		if !s.at.virtual || done[s.at.index] || k.raised(s.at.index) {
			continue
		}
		done[s.at.index] = true
		if err := k.route.do(linkMessage(s.at.index, false))[0]; err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("set %s down: %w", s.at.name, err))
		}
	}
	return errs
}

// raised says that a claimed service has a VIP on the interface.
func (k *Keeper) raised(index int) bool {
	return slices.ContainsFunc(k.slots, func(s *slot) bool {
		return s.err == nil && s.at.index == index && k.tenures[s.Service] != nil
	})
}

// gone says that what was to be removed was not there.
func gone(err error) bool {
	return errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}

// announce sends a VIP's frames, and with probe also the question whether somebody else has it. What cannot be sent now
// is sent with the next announcement of the series. It is false when the kernel does not have the address yet.
func (k *Keeper) announce(s *slot, probe bool) bool {
	if s.wire == nil {
		return true
	}
	if !k.isLocal(s) {
		return false
	}
	frames := s.frames
	if probe {
		frames = append(slices.Clone(frames), s.probe)
	}
	for _, f := range frames {
		if err := s.wire.send(f); err != nil {
			k.log.Debug("announcement not sent", "vip", s.Prefix, "interface", s.at.name, "err", err)
		}
	}
	return true
}

// announceAgain begins the service's series of announcements anew.
func (k *Keeper) announceAgain(svc cluster.ServiceNo) {
	t := k.tenures[svc]
	if t == nil {
		return
	}
	now := time.Now()
	t.start, t.next = now, k.cfg.Announce.next(now, now)
	slots, _ := k.placed(svc)
	for _, s := range slots {
		k.announceOr(t, s, true, now)
	}
}

func (k *Keeper) slotOf(ip netip.Addr) *slot {
	for _, s := range k.slots {
		if s.Prefix.Addr() == ip {
			return s
		}
	}
	return nil
}

// isOurs tells our addresses from others. Holds for as long as mu is held, or for its copy of what is known.
func (k *Keeper) isOurs() isOurs {
	known := k.ours // never changed in place
	return func(a kernelAddr) bool {
		_, ok := known[a.prefix.Addr()]
		return ok || a.proto == Proto
	}
}

func (k *Keeper) isClosed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.closed
}

func (k *Keeper) wake() {
	select {
	case k.poke <- struct{}{}:
	default:
	}
}
