package vip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"
)

// Clean removes every address of ours that a crash left behind, and sets the interfaces of virtual MACs down: what has
// our mark, what is in the list in the state directory, and what equals a VIP given to SetKnown. What is claimed stays.
// It is to be called before anything else, and may be called again.
func (k *Keeper) Clean(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	k.prep.Lock()
	defer k.prep.Unlock()
	if k.isClosed() {
		return errClosed
	}
	listed, lerr := readList(k.cfg.StateDir)
	if lerr != nil {
		// The mark finds the addresses too where the kernel keeps it; the list is written anew below.
		k.log.Warn("cleaning up VIPs by their mark alone", "err", lerr)
	}
	var extra []Address
	for _, ip := range listed {
		extra = append(extra, Address{Prefix: netip.PrefixFrom(ip, ip.BitLen())})
	}
	if err := k.clear(extra); err != nil {
		return fmt.Errorf("clean up VIPs left by an earlier run: %w", err)
	}
	return writeList(k.cfg.StateDir, addrsOf(k.known))
}

// clear removes what is ours, or one of these, and not wanted. prep is held.
func (k *Keeper) clear(extra []Address) error {
	known := map[netip.Addr]bool{}
	for _, ip := range addrsOf(extra) {
		known[ip] = true
	}
	return k.untilQuiet(func(gen uint64) (bool, error) {
		snap, err := k.lists.list()
		if err != nil {
			return false, err
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.gen != gen {
			return false, nil
		}
		ours := k.isOurs()
		also := func(a kernelAddr) bool { return ours(a) || known[a.prefix.Addr()] }
		var errs []error
		for _, c := range reconcile(k.wants(), snap.addrs, also, k.lifetime()) {
			if c.op == remove {
				errs = append(errs, k.apply(c, &snap))
			}
		}
		return true, errors.Join(append(errs, k.switchMacvlans(&snap)...)...)
	})
}

// compare brings the kernel to what is wanted. withLinks: interfaces may have changed too. prep is held.
func (k *Keeper) compare(withLinks bool) error {
	return k.untilQuiet(func(gen uint64) (bool, error) {
		snap := snapshot{links: k.links}
		var err error
		if withLinks || len(k.links) == 0 {
			snap, err = k.lists.list()
		} else {
			err = k.lists.listAddrs(&snap)
		}
		if err != nil {
			return false, err
		}
		perr := k.place(&snap)
		k.closeWires()
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.gen != gen {
			return false, perr
		}
		errs := append([]error{perr}, k.switchMacvlans(&snap)...)
		for _, c := range reconcile(k.wants(), snap.addrs, k.isOurs(), k.lifetime()) {
			_ = k.apply(c, &snap) // an event tells of it
		}
		return true, errors.Join(errs...)
	})
}

// untilQuiet calls fn until it says that no Claim, Drop or SetKnown came between its look at the kernel and its deeds,
// and then tells the events. After a few tries it leaves the rest to the next tick.
func (k *Keeper) untilQuiet(fn func(gen uint64) (bool, error)) error {
	var err error
	for done, n := false, 0; !done && n < 5; n++ {
		k.mu.Lock()
		gen := k.gen
		k.mu.Unlock()
		if done, err = fn(gen); err != nil {
			break
		}
	}
	k.mu.Lock()
	now := time.Now()
	news := slices.DeleteFunc(k.news, func(e Event) bool {
		return e.often() && !k.limiter.allow(now, fmt.Sprint(e.Kind, e.Prefix, e.Interface, e.Err))
	})
	k.news = nil
	k.mu.Unlock()
	for _, e := range news {
		k.tell(e)
	}
	return err
}

func (k *Keeper) lifetime() uint32 { return uint32(k.cfg.Lifetime.Seconds()) }

// wants lists the addresses of the claimed services. mu is held.
func (k *Keeper) wants() []want {
	var out []want
	for _, s := range k.slots {
		if s.err == nil && k.tenures[s.Service] != nil {
			up := s.at.virtual || k.state[s.at.index].admin
			out = append(out, want{prefix: s.Prefix, link: s.at.index, linkUp: up, noPrefixRoute: s.at.noPrefixRoute})
		}
	}
	return out
}

// apply carries out one change and notes what the operator should know of it. mu is held.
func (k *Keeper) apply(c change, snap *snapshot) error {
	e := Event{Prefix: c.prefix, Service: k.ours[c.prefix.Addr()]}
	if l := snap.byIndex(c.link); l != nil {
		e.Interface = l.name
	}
	s := k.slotOf(c.prefix.Addr())
	var err error
	switch c.op {
	case remove:
		e.Kind = Removed
		if err = k.route.do(deleteRequest(c.link, c.prefix))[0]; gone(err) {
			return nil
		}
	case add:
		e.Kind = Restored
		if !k.tenures[s.Service].on[c.prefix] {
			e.Kind = Added
		}
		err = k.addAll([]*slot{s})[0]
	case reseat:
		if err = k.route.do(s.del)[0]; err == nil || gone(err) {
			err = k.addAll([]*slot{s})[0]
		}
	case refresh:
		err = k.addAll([]*slot{s})[0]
	}
	k.log.Debug("VIP compared with the kernel", "vip", c.prefix, "interface", e.Interface, "do", c.op, "err", err)
	if err != nil {
		e.Kind, e.Err = Failing, fmt.Errorf("%v: %w", c.op, err)
		k.news = append(k.news, e)
		return fmt.Errorf("VIP %v on %s: %w", c.prefix, e.Interface, e.Err)
	}
	if c.op == add || c.op == reseat {
		k.tenures[s.Service].on[c.prefix] = true
		k.awaitLocal(s, time.Now().Add(localWait))
		k.announceAgain(s.Service)
	}
	if e.Kind != "" {
		k.news = append(k.news, e)
	}
	return nil
}

// switchMacvlans sets the interfaces of virtual MACs up where a claimed service has a VIP, and down elsewhere. mu is held.
func (k *Keeper) switchMacvlans(snap *snapshot) (errs []error) {
	for _, l := range snap.links {
		if l.kind != macvlanKind || l.alias != vmacAlias {
			continue
		}
		if up := k.raised(l.index); up != l.admin {
			if err := k.route.do(linkMessage(l.index, up))[0]; err != nil && !gone(err) {
				errs = append(errs, fmt.Errorf("set %s up=%v: %w", l.name, up, err))
			}
		}
	}
	return errs
}

// tell logs an event and hands it on; the same trouble only once in a while.
func (k *Keeper) tell(e Event) {
	level := slog.LevelWarn
	if e.Kind == LinkUp || e.Kind == Added {
		level = slog.LevelInfo
	}
	k.log.Log(context.Background(), level, e.String(), "event", string(e.Kind), "service", uint32(e.Service), "vip", e.Prefix, "interface", e.Interface)
	k.cfg.OnEvent(e)
}
