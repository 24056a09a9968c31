package model

import (
	"fmt"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/lock"
)

type kind uint8

const (
	doTick kind = iota
	doRenew
	doAck
	doDaemon
	doFence
	doShut
	doAsk
	doHearRelease
	doGrant
	doHearGrant
	doApply
	doBump
	doBumpCommit
	doBumpGiveUp
	doCrash
	doRestart
	doReboot
	doJoin
	doStick
	doStickCommit
	doStickGiveUp
	doUnstick
	doUnstickCommit
	doForce
	doVoters
	doConfirm
	doConfirmCommit
	doSettle
	doReopen
	doRaise
	doWrite
	doAccept
	doComplete
	doFsync
	doFsyncAck
	doRead
	doResync
	doInSync
	doInSyncCommit
	doDegrade
	doDegradeCommit
	doGoAlone
	doReport
)

// action is one event; the letters are its arguments.
type action struct {
	k       kind
	a, b, c uint8
}

var words = [...]string{
	doTick: "50 ms pass", doRenew: "%[1]s's renewal reaches %[2]s, which answers", doAck: "%[2]s's acknowledgement reaches %[1]s",
	doDaemon: "%[1]s's daemon looks at its clock", doFence: "%[1]s fences itself", doShut: "%[1]s has shut everything and releases",
	doAsk: "%[1]s is asked to promise epoch %[2]d", doHearRelease: "%[1]s hears the Release of epoch %[2]d",
	doGrant: "the log takes a Grant to %[1]s for %[2]d ticks", doHearGrant: "%[1]s is told of its Grant", doApply: "%[1]s applies the next entry",
	doBump: "%[1]s proposes a Bump with %[2]d ticks", doBumpCommit: "the log takes the Bump", doBumpGiveUp: "%[1]s gives up waiting for its Bump",
	doCrash: "%[1]s's daemon dies", doRestart: "%[1]s's daemon starts anew", doReboot: "%[1]s's host was rebooted and its daemon starts", doJoin: "the log takes the Join of %[1]s, run %[2]d",
	doStick: "%[1]s proposes Sticky", doStickCommit: "the log takes the Sticky", doStickGiveUp: "%[1]s gives up waiting for its Sticky or Unsticky",
	doUnstick: "%[1]s proposes Unsticky", doUnstickCommit: "the log takes the Unsticky", doForce: "an operator forces %[1]s to be active",
	doVoters: "the log takes another voter set", doConfirm: "%[1]s proposes Confirm", doConfirmCommit: "the log takes the Confirm", doSettle: "the log takes Settled",
	doReopen: "%[1]s reopens after its Release", doRaise: "%[1]s counts with %[2]d ticks on its own", doWrite: "%[1]s writes operation %[2]d", doAccept: "%[1]s accepts operation %[2]d",
	doComplete: "%[1]s acknowledges operation %[2]d", doFsync: "%[1]s fsyncs", doFsyncAck: "%[1]s acknowledges an fsync", doRead: "somebody reads at %[1]s",
	doResync: "%[1]s is resynchronised from %[2]s", doInSync: "%[1]s proposes InSync for %[2]s", doInSyncCommit: "the log takes the InSync", doDegrade: "%[1]s proposes Degrade of %[2]s",
	doReport: "%[1]s hears what is on the disk of %[2]s", doDegradeCommit: "the log takes the Degrade", doGoAlone: "%[1]s goes on alone",
}

func (c *config) name(n uint8) string { return c.names[n] }

func (c *config) text(a action) string {
	var x any = c.name(min(a.a, maxNo))
	var y any = a.b
	switch a.k {
	case doRenew, doAck, doResync, doInSync, doDegrade, doReport:
		y = c.name(a.b)
	case doTick, doBumpCommit, doVoters, doSettle, doStickCommit, doUnstickCommit, doConfirmCommit, doInSyncCommit, doDegradeCommit:
		return words[a.k]
	}
	return fmt.Sprintf(words[a.k]+"%.0[1]s%.0[2]v", x, y)
}

// expand calls b.emitted with every state that follows from w.
func (b *bench) expand(w *world) {
	c := b.c
	if !c.timeless {
		b.pass(w)
	}
	for m := 1; m <= c.members; m++ {
		b.memberSteps(w, m)
	}
	b.logSteps(w)
	if c.data {
		b.dataSteps(w)
	}
}

// try hands out the state that f makes of w, unless it is the same.
func (b *bench) try(w *world, a action, f func(n *world) bool) {
	if b.c.never[a.k] {
		return
	}
	b.next = *w
	if f(&b.next) {
		b.canon(&b.next)
		if b.next != *w {
			b.emitted(&b.next, a)
		}
	}
}

func (b *bench) pass(w *world) {
	b.try(w, action{k: doTick}, func(n *world) bool {
		for m := 1; m <= b.c.members; m++ {
			x := &n.m[m]
			x.gate = x.gate.older()
			x.stickyLeft, x.carried = x.stickyLeft.older(), x.carried.older()
			for v := range x.acks {
				x.acks[v] = x.acks[v].older()
				x.inbox[v].sent = x.inbox[v].sent.older()
			}
			if x.up && x.quiet < b.c.longest {
				x.quiet++
			}
		}
		return true
	})
}

func (b *bench) memberSteps(w *world, m int) {
	c, x, u := b.c, &w.m[m], uint8(m)
	if !x.up {
		b.starts(w, m)
		return
	}
	if int(w.crashes) < c.crashes && (c.crashing == 0 || c.crashing.Has(cluster.MemberNo(m))) {
		b.try(w, action{k: doCrash, a: u}, func(n *world) bool {
			y := &n.m[m]
			*y = member{inc: y.inc, boot: y.boot, gate: y.gate, at: noIndex, joinAt: noIndex, data: b.survive(w, m)}
			n.crashes++
			return true
		})
	}
	switch {
	case x.at == noIndex && x.joinAt != noIndex:
		b.try(w, action{k: doApply, a: u}, func(n *world) bool {
			y := &n.m[m]
			y.at, y.joinAt = y.joinAt, noIndex
			b.follow(n, m, noIndex)
			return true
		})
	case x.at != noIndex && x.at+1 < w.n:
		b.try(w, action{k: doApply, a: u}, func(n *world) bool {
			gen := n.sees(m).gen
			n.m[m].at++
			b.follow(n, m, gen)
			return true
		})
	}
	if x.at == noIndex && !c.code.notMute {
		return
	}
	b.voterSteps(w, m)
	if x.at != noIndex {
		b.holderSteps(w, m)
	}
}

func (b *bench) starts(w *world, m int) {
	start := func(k kind) {
		b.try(w, action{k: k, a: uint8(m)}, func(n *world) bool {
			y := &n.m[m]
			y.up, y.inc, y.quiet = true, y.inc+1, 0
			if !b.c.code.noGateShutOnStart {
				y.gate = 0
			}
			if b.c.code.restartForgetsWait {
				y.quiet, y.promised = b.c.longest, true
			}
			if k == doReboot {
				y.gate = 0
				y.boot++
				b.powerLost(n, m)
			}
			if b.c.reboots {
				n.joins[m] = 0 // an older Join would name the older boot
			}
			n.joins[m] |= 1 << y.inc
			return true
		})
	}
	start(doRestart)
	if b.c.reboots {
		start(doReboot)
	}
}

// voterSteps are what a member answers to others.
func (b *bench) voterSteps(w *world, m int) {
	c, u := b.c, uint8(m)
	low := w.newest().epoch
	r := w.newest()
	if w.m[m].at != noIndex {
		r = w.sees(m)
		low = r.epoch
	}
	voters := b.union(r)
	if voters.Has(cluster.MemberNo(m)) || int(r.holder) == m {
		for e := max(low, 1); e <= w.newest().epoch; e++ {
			b.try(w, action{k: doAsk, a: u, b: e}, func(n *world) bool { b.ask(n, m, e); return true })
		}
	}
	if w.m[m].at != noIndex && w.rel>>low&1 == 1 && w.m[m].released < low && int(r.holder) != m {
		b.try(w, action{k: doHearRelease, a: u, b: low}, func(n *world) bool {
			v := b.loadVoter(n, m)
			c.code.release(v, cluster.Epoch(low))
			b.storeVoter(n, m)
			return true
		})
	}
	if c.keepAcks && w.m[m].at != noIndex {
		// A repeated Release of an older epoch.
		for e := uint8(1); e < low; e++ {
			if w.rel>>e&1 == 1 && c.lateRelease {
				b.try(w, action{k: doHearRelease, a: u, b: e}, func(n *world) bool {
					v := b.loadVoter(n, m)
					c.code.release(v, cluster.Epoch(e))
					b.storeVoter(n, m)
					return true
				})
			}
		}
	}
	if c.timeless {
		return
	}
	for h := 1; h <= c.members; h++ {
		y := &w.m[h]
		if h == m || !y.up || y.at == noIndex || !(y.renews() || c.code.renewFenced && y.closing) || !voters.Has(cluster.MemberNo(m)) {
			continue
		}
		if r.adm[h] != y.inc || (y.epoch == r.epoch && int(r.holder) != h) || !b.union(w.sees(h)).Has(cluster.MemberNo(m)) {
			continue
		}
		b.try(w, action{k: doRenew, a: uint8(h), b: u}, func(n *world) bool {
			k := lease.Known{}
			if n.m[m].at != noIndex {
				k = known(n.sees(m))
			}
			v := b.loadVoter(n, m)
			v.Open = v.Open || c.code.notMute
			z := &n.m[h]
			ans := c.code.renew(v, now, cluster.Epoch(z.epoch), time.Duration(z.ttl)*tick, k)
			b.storeVoter(n, m)
			if ans.Yes {
				z.inbox[m] = ackMsg{z.epoch, n.m[m].inc, leftOf(int(z.ttl), 0)}
			}
			return ans.Yes
		})
	}
}

func (b *bench) union(r *record) cluster.MemberSet {
	var s cluster.MemberSet
	for _, v := range b.setsOf(r.lo, r.hi) {
		s |= v.Set
	}
	return s
}

// holderSteps are what a member does with the lease that it has or had.
func (b *bench) holderSteps(w *world, m int) {
	c, x, u := b.c, &w.m[m], uint8(m)
	for e := x.epoch + 1; e <= c.epochs; e++ {
		t := w.told[e]
		if int(t.to) != m || t.inc != x.inc || t.hi > w.sees(m).hi && !c.code.pushedGrant {
			continue
		}
		b.try(w, action{k: doHearGrant, a: u}, func(n *world) bool { b.granted(n, m, e, t.ttl); return true })
	}
	if x.closing {
		b.try(w, action{k: doShut, a: u}, func(n *world) bool { b.shut(n, m); return true })
	}
	if c.code.reopenReleased && x.phase == uint8(lease.Released) {
		b.try(w, action{k: doReopen, a: u}, func(n *world) bool {
			n.m[m].phase, n.m[m].gate = uint8(lease.Serving), leftOf(int(n.m[m].ttl), 0)
			return true
		})
	}
	if !c.timeless {
		for v := 1; v <= c.members; v++ {
			if x.inbox[v].sent != 0 {
				b.try(w, action{k: doAck, a: u, b: uint8(v)}, func(n *world) bool { b.acknowledged(n, m, v); return true })
			}
		}
	}
	if !x.renews() {
		return
	}
	if !c.timeless {
		b.try(w, action{k: doDaemon, a: u}, func(n *world) bool { b.daemon(n, m); return true })
	}
	b.try(w, action{k: doFence, a: u}, func(n *world) bool { b.end(n, m); return true })
	if c.code.ttlAlone && x.ttl < 3 {
		b.try(w, action{k: doRaise, a: u, b: 3}, func(n *world) bool { n.m[m].ttl = 3; return true })
	}
	b.bumpSteps(w, m)
	b.stickySteps(w, m)
	if newest := w.sees(m).hi + 1; c.voterChange && x.confirmedC < newest && w.sees(m).epoch == x.epoch && w.sees(m).confirmed < newest && x.phase == uint8(lease.Serving) {
		b.try(w, action{k: doConfirm, a: u}, func(n *world) bool {
			h := b.loadHolder(n, m)
			if !c.code.confirms(h, now) {
				return false
			}
			n.m[m].confirmedC = newest
			n.confirm = [2]uint8{x.epoch, newest}
			return true
		})
	}
}

func (b *bench) acknowledged(w *world, m, v int) {
	x := &w.m[m]
	a := x.inbox[v]
	x.inbox[v] = ackMsg{}
	if a.vinc != w.sees(m).adm[v] && !b.c.code.vincUnchecked {
		return
	}
	at := now - cluster.Instant(a.sent.age())*cluster.Instant(slow)
	if b.c.code.receiptTime {
		at = now
	}
	h := b.loadHolder(w, m)
	b.c.code.ack(h, now, cluster.MemberNo(v), cluster.Epoch(a.e), time.Duration(a.sent.ttl())*tick, at)
	b.storeHolder(w, m)
	b.extend(w, m)
}

func (b *bench) bumpSteps(w *world, m int) {
	c, x, u := b.c, &w.m[m], uint8(m)
	if !c.bumps || w.sees(m).epoch != x.epoch {
		return
	}
	if x.bumping != 0 {
		b.try(w, action{k: doBumpGiveUp, a: u}, func(n *world) bool { n.m[m].bumping = 0; return true })
		return
	}
	h := b.loadHolder(w, m)
	if !h.WantBump(now, h.Epoch) || x.closing {
		return
	}
	for _, ttl := range c.bumpTTLs {
		if ttl < x.ttl && !c.lowerBumps {
			continue
		}
		b.try(w, action{k: doBump, a: u, b: ttl}, func(n *world) bool {
			n.m[m].bumping = x.epoch
			n.bumpE, n.bumpTTL = x.epoch, ttl
			return true
		})
	}
}

func (b *bench) holderOf(w *world, m int) lock.Holder {
	return lock.Holder{Node: cluster.MemberNo(m), Inc: cluster.Incarnation(w.m[m].inc)}
}
