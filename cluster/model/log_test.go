package model

import (
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/lock"
)

// stickySteps are the holder's way into and out of the state in which it relies on nobody.
func (b *bench) stickySteps(w *world, m int) {
	c, x, r, u := b.c, &w.m[m], w.sees(m), uint8(m)
	if c.sticks == 0 || r.epoch != x.epoch || x.phase != uint8(lease.Serving) {
		return
	}
	if x.sticking {
		b.try(w, action{k: doStickGiveUp, a: u}, func(n *world) bool {
			n.m[m].sticking = false
			b.followSticky(n, m)
			return true
		})
		return
	}
	if !r.sticky && w.sticks < c.sticks {
		b.try(w, action{k: doStick, a: u}, func(n *world) bool {
			n.m[m].sticking = true
			n.on = [2]uint8{r.epoch, r.gen}
			n.sticks++
			return true
		})
	}
	if r.sticky && x.unstuck != r.gen {
		b.try(w, action{k: doUnstick, a: u}, func(n *world) bool {
			h := b.loadHolder(n, m)
			y := &n.m[m]
			f := c.code.fresh(h, now)
			if f <= now.Add(h.TTL/2) {
				return false
			}
			c.code.stick(h, now, false)
			b.storeHolder(n, m)
			if d := leftAt(b.loadHolder(n, m).Deadline(now)); d.at() < y.gate.at() && !c.code.unstickStaysPushed {
				y.gate = d
			}
			y.sticking, y.unstuck = true, r.gen
			n.off = [2]uint8{r.epoch, r.gen}
			n.offAlone = b.saysAlone(n, m)
			return true
		})
	}
}

// commit lets the log take a command.
func (b *bench) commit(w *world, a action, f func(s *lock.Service, g *lock.Group) lock.Result, after func(n *world)) {
	if int(w.n) > b.c.lag {
		return
	}
	b.try(w, a, func(n *world) bool {
		r := *n.newest()
		if f(b.loadRecord(&r)) != lock.Accepted {
			return false
		}
		b.storeRecord(&r)
		if r == *n.newest() {
			return false
		}
		if r.epoch != n.newest().epoch {
			n.prom = [maxNo + 1]uint8{}
		}
		n.log[n.n] = r
		n.n++
		if after != nil {
			after(n)
		}
		return true
	})
}

// promises are all that were ever given for the newest epoch.
func (b *bench) promises(w *world) []lock.Promise {
	b.proms = b.proms[:0]
	for m := 1; m <= b.c.members; m++ {
		for i := uint8(1); i < 8; i++ {
			if w.prom[m]>>i&1 == 1 {
				b.proms = append(b.proms, lock.Promise{Node: cluster.MemberNo(m), Inc: cluster.Incarnation(i)})
			}
		}
	}
	return b.proms
}

func (b *bench) logSteps(w *world) {
	c, r := b.c, w.newest()
	if r.epoch < c.epochs {
		for m := 1; m <= c.members; m++ {
			if c.nodes.Has(cluster.MemberNo(m)) {
				for _, ttl := range c.grantTTLs {
					b.grant(w, m, ttl)
				}
				if c.forces && !w.forcedOff {
					b.forced(w, m)
				}
			}
		}
		if w.bumpE != 0 && (w.bumpE == r.epoch || c.bumpsOfAnyEpoch) {
			b.commit(w, action{k: doBumpCommit}, func(s *lock.Service, _ *lock.Group) lock.Result {
				return c.code.bump(s, lock.Bump{Epoch: cluster.Epoch(w.bumpE), Holder: s.Holder, TTL: time.Duration(w.bumpTTL) * tick})
			}, nil)
		}
	}
	for m := 1; m <= c.members; m++ {
		for i := uint8(1); i < 8; i++ {
			if w.joins[m]>>i&1 == 1 {
				b.joined(w, m, i)
			}
		}
	}
	b.stickyCommits(w)
	if c.voterChange {
		b.voterSet(w)
	}
}

func (b *bench) joined(w *world, m int, inc uint8) {
	b.commit(w, action{k: doJoin, a: uint8(m), b: inc}, func(_ *lock.Service, g *lock.Group) lock.Result {
		return b.c.code.join(g, cluster.MemberNo(m), cluster.Incarnation(inc), cluster.BootID{w.m[m].boot})
	}, func(n *world) {
		n.joins[m] &^= 1 << inc
		if x := &n.m[m]; x.up && x.inc == inc {
			x.joinAt = n.n - 1
		}
	})
}

func (b *bench) grant(w *world, m int, ttl uint8) {
	c, r := b.c, w.newest()
	inc := r.adm[m]
	if c.code.grantUnjoined {
		inc = w.m[m].inc
	}
	to := lock.Holder{Node: cluster.MemberNo(m), Inc: cluster.Incarnation(inc)}
	b.commit(w, action{k: doGrant, a: uint8(m), b: ttl}, func(s *lock.Service, g *lock.Group) lock.Result {
		co := lease.Coordinator{Epoch: s.Epoch, To: to, TTL: time.Duration(ttl) * tick}
		co.Promises = append(co.Promises, b.promises(w)...)
		cmd, ok := c.code.ready(&co, s, g)
		if !ok {
			return lock.NoMajority
		}
		return c.code.grant(s, g, cmd)
	}, func(n *world) {
		x := n.newest()
		n.told[x.epoch] = grantMsg{x.holder, x.inc, x.ttl, x.hi}
	})
}

// forced is an operator who is right: nobody serves.
func (b *bench) forced(w *world, m int) {
	for o := 1; o <= b.c.members; o++ {
		if x := &w.m[o]; x.gate != 0 || x.renews() || w.told[w.newest().epoch].to == uint8(o) && x.up && o != m {
			return
		}
	}
	r := w.newest()
	b.commit(w, action{k: doForce, a: uint8(m)}, func(s *lock.Service, g *lock.Group) lock.Result {
		return b.c.code.force(s, g, lock.ForceGrant{Off: true, Grant: lock.Grant{Epoch: s.Epoch, To: lock.Holder{Node: cluster.MemberNo(m), Inc: cluster.Incarnation(r.adm[m])},
			TTL: time.Duration(b.c.grantTTLs[0]) * tick}})
	}, func(n *world) {
		n.forcedOff = true
		b.accept(n, m)
	})
}

func (b *bench) stickyCommits(w *world) {
	c, r := b.c, w.newest()
	for i, p := range [2][2]uint8{w.on, w.off} {
		if p[0] == 0 || p[0] != r.epoch {
			continue
		}
		b.commit(w, action{k: doStickCommit + kind(i)*(doUnstickCommit-doStickCommit)}, func(s *lock.Service, _ *lock.Group) lock.Result {
			return c.code.sticky(s, lock.Sticky{Epoch: cluster.Epoch(p[0]), Gen: cluster.Generation(p[1]), Holder: s.Holder, Off: i == 1, Alone: i == 1 && w.offAlone})
		}, nil)
	}
}

func (b *bench) voterSet(w *world) {
	c, r := b.c, w.newest()
	if int(r.hi)+1 < len(c.sets) {
		b.commit(w, action{k: doVoters}, func(_ *lock.Service, g *lock.Group) lock.Result {
			g.SetVoters(c.sets[r.hi+1].Set)
			return lock.Accepted
		}, nil)
	}
	if w.confirm[0] == r.epoch {
		b.commit(w, action{k: doConfirmCommit}, func(s *lock.Service, g *lock.Group) lock.Result {
			return c.code.confirm(s, g, lock.Confirm{Epoch: cluster.Epoch(w.confirm[0]), Holder: s.Holder, C: uint64(w.confirm[1])})
		}, nil)
	}
	if r.hi > r.lo {
		b.commit(w, action{k: doSettle}, func(s *lock.Service, g *lock.Group) lock.Result {
			return c.code.settle(g, g.C(), []*lock.Service{s}, map[*lock.Service][]lock.Promise{s: b.promises(w)})
		}, nil)
	}
}

func (b *bench) catchUp(w *world, m int) {
	x := &w.m[m]
	if x.at == noIndex {
		if x.joinAt == noIndex {
			return
		}
		x.at, x.joinAt = x.joinAt, noIndex
		b.follow(w, m, noIndex)
	}
	for x.at+1 < w.n {
		gen := w.sees(m).gen
		x.at++
		b.follow(w, m, gen)
	}
}

// canon brings worlds that cannot be told apart any more into one form.
func (b *bench) canon(w *world) {
	c := b.c
	for m := 1; m <= c.members; m++ {
		if c.prompt.Has(cluster.MemberNo(m)) && w.m[m].up {
			b.catchUp(w, m)
		}
	}
	for m := 1; m <= c.members; m++ {
		b.canonMember(w, m)
	}
	// The log is kept from the last entry that every running member has applied.
	low := w.n - 1
	for m := 1; m <= c.members; m++ {
		switch x := &w.m[m]; {
		case x.up && x.at != noIndex:
			low = min(low, x.at)
		case x.up && x.joinAt != noIndex:
			low = min(low, x.joinAt)
		}
	}
	if low > 0 {
		copy(w.log[:], w.log[low:w.n])
		for i := w.n - low; i < w.n; i++ {
			w.log[i] = record{}
		}
		w.n -= low
		for m := 1; m <= c.members; m++ {
			if x := &w.m[m]; x.up && x.at != noIndex {
				x.at -= low
			} else if x.up && x.joinAt != noIndex {
				x.joinAt -= low
			}
		}
	}
	b.canonMessages(w)
}

func (b *bench) canonMember(w *world, m int) {
	c, x := b.c, &w.m[m]
	if !x.up || x.at == noIndex {
		return
	}
	r := w.sees(m)
	if !x.renews() {
		if !c.code.renewFenced && !c.code.reopenReleased {
			x.acks, x.inbox, x.ttl = [maxNo + 1]left{}, [maxNo + 1]ackMsg{}, 0
		}
		x.carried = 0
		x.sticky, x.stickyLeft, x.bumping, x.sticking, x.unstuck, x.confirmedC = false, 0, 0, false, 0, 0
		if !x.closing && r.epoch > x.epoch && !c.code.reopenReleased {
			x.phase, x.epoch = uint8(lease.Idle), r.epoch
		}
	}
	if !x.sticky {
		x.stickyLeft = 0
	}
	if x.unstuck < r.gen {
		x.unstuck = 0
	}
	if !c.voterChange {
		x.confirmedC = 0
	}
	if !c.keepAcks {
		for v := range x.inbox {
			if x.inbox[v].e != x.epoch || x.inbox[v].sent == 0 || x.acks[v].at() >= x.inbox[v].sent.at() {
				x.inbox[v] = ackMsg{}
			}
		}
		if x.released < r.epoch {
			x.released = 0
		}
	}
	if x.acked <= x.closed {
		x.acked, x.ackedTTL = 0, 0
		if x.promised {
			x.quiet = c.longest
		}
		if !c.lateRelease {
			x.closed = max(x.closed, r.epoch-min(r.epoch, 1))
		}
	}
	if c.timeless {
		x.quiet, x.gate, x.acks, x.stickyLeft, x.carried = 0, 0, [maxNo + 1]left{}, 0, 0
	}
}

func (b *bench) canonMessages(w *world) {
	c, r := b.c, w.newest()
	if c.data {
		b.canonData(w)
	}
	for m := 1; m <= c.members; m++ {
		if !c.keepPromises {
			w.prom[m] &= 1 << r.adm[m]
		}
		w.joins[m] &= 0xff << (r.adm[m] + 1)
	}
	if !c.lateRelease {
		w.rel &= 0xff << w.log[0].epoch
	}
	for e := range w.told {
		t := &w.told[e]
		if t.to == 0 {
			continue
		}
		if x := &w.m[t.to]; !x.up || x.inc != t.inc || int(x.epoch) >= e {
			*t = grantMsg{}
		}
	}
	if w.bumpE != r.epoch && !c.bumpsOfAnyEpoch {
		w.bumpE, w.bumpTTL = 0, 0
	}
	if w.on[0] != r.epoch || w.on[1] != r.gen {
		w.on = [2]uint8{}
	}
	if w.off[0] != r.epoch || w.off[1] != r.gen {
		w.off, w.offAlone = [2]uint8{}, false
	}
	if w.confirm[0] != r.epoch {
		w.confirm = [2]uint8{}
	}
}
