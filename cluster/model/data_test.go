package model

import (
	"fmt"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/lock"
)

const maxOps = 2

// store is a member's copy of a volume. Sets of operations have a bit for each.
type store struct {
	has, dur uint8 // in the page cache; on the disk
	hdr      uint8 // the epoch in its header
	pend     uint8 // as the active: not acknowledged yet
	wait     uint8 // as the active: members that it waits for although the log does not say so yet
	waitGen  uint8
	alone    uint8 // the generation of the Sticky in which it has gone on alone; on the disk
}

// platter is what is on its way, and what clients were told.
type platter struct {
	ops               uint8
	acked, fsynced    uint8 // acknowledged; acknowledged as fsynced
	seen              uint8 // read by somebody
	old               uint8 // pending when another tenure began
	frameE, frameBase [maxOps]uint8
	took              [maxNo + 1][maxOps]uint8 // in which epoch a member accepted an operation
	inSync            [4]uint8                 // an InSync on its way: epoch, generation, member, run
	degrade           [3]uint8                 // a Degrade on its way
	told              [maxNo + 1]uint8         // sync-on-fsync: what the active knows to be on a member's disk
}

func (b *bench) survive(w *world, m int) store {
	d := w.m[m].data
	if !b.c.code.pendingSurvive {
		d.pend = 0
	}
	d.wait = 0
	return d
}

func (b *bench) powerLost(w *world, m int) {
	d := &w.m[m].data
	d.has, d.pend = d.dur, 0
	if !b.c.code.oldAccepts {
		w.disk.took[m], w.disk.told[m] = [maxOps]uint8{}, 0 // they were another run's
	}
}

func (b *bench) depose(w *world, m int) {
	d := &w.m[m].data
	d.wait = 0
	if !b.c.code.pendingSurvive {
		d.pend = 0
	}
}

func (b *bench) promote(w *world, m int) {
	if !b.c.data {
		return
	}
	x := &w.m[m]
	x.data.hdr = x.epoch
	x.data.wait = 0
	w.disk.old |= x.data.pend
	if !b.c.code.oldAccepts {
		w.disk.told = [maxNo + 1]uint8{}
	}
	if b.c.timeless {
		x.phase = uint8(lease.Serving)
	}
	b.resend(w, m)
}

// resend sends what is pending again, in the holder's present epoch.
func (b *bench) resend(w *world, m int) {
	x := &w.m[m]
	for o := range maxOps {
		if x.renews() && x.data.pend>>o&1 == 1 {
			w.disk.frameE[o] = x.epoch
			x.data.hdr = x.epoch
		}
	}
}

func (b *bench) followData(w *world, m int) {
	x, r := &w.m[m], w.sees(m)
	if x.data.waitGen != r.gen {
		x.data.wait, x.data.waitGen = 0, 0
	}
	if x.data.alone != 0 && r.gen > x.data.alone && !r.sticky {
		x.data.alone = 0
	}
}

func (b *bench) saysAlone(w *world, m int) bool {
	return w.m[m].data.alone != 0 && !b.c.code.aloneNotCarried
}

// accept is an operator who takes the loss.
func (b *bench) accept(w *world, m int) {
	if b.c.forceKeeps {
		return
	}
	d, has := &w.disk, w.m[m].data.has
	d.acked, d.seen, d.fsynced = d.acked&has, d.seen&has, d.fsynced&w.m[m].data.dur
}

func (b *bench) dataSteps(w *world) {
	for m := 1; m <= b.c.members; m++ {
		x := &w.m[m]
		if !x.up || x.at == noIndex || !b.c.nodes.Has(cluster.MemberNo(m)) {
			continue
		}
		b.standbySteps(w, m)
		if x.renews() && (w.sees(m).epoch == x.epoch || b.c.code.pendingSurvive) {
			b.activeSteps(w, m)
		} else if b.c.code.syncSurvives {
			b.syncs(w, m, b.needs(w, m))
		}
	}
	b.dataCommits(w)
}

func (b *bench) standbySteps(w *world, m int) {
	x := &w.m[m]
	if x.data.dur != x.data.has {
		b.try(w, action{k: doFsync, a: uint8(m)}, func(n *world) bool { n.m[m].data.dur = n.m[m].data.has; return true })
	}
	for o := range int(w.disk.ops) {
		e, below := w.disk.frameE[o], uint8(1)<<o-1
		fits := (e > x.closed || b.c.code.acceptsPromised) && e >= w.sees(m).epoch && e >= x.data.hdr || b.c.code.noStreamEpoch
		if x.renews() && !b.c.code.noStreamEpoch || !fits || x.data.has&below != w.disk.frameBase[o]&below && !b.c.code.acceptsGaps {
			continue
		}
		b.try(w, action{k: doAccept, a: uint8(m), b: uint8(o)}, func(n *world) bool {
			d := &n.m[m].data
			d.has |= 1 << o
			d.hdr = max(d.hdr, e)
			n.disk.took[m][o] = e
			return true
		})
	}
}

// needs are the members without whose acceptance nothing is acknowledged.
func (b *bench) needs(w *world, m int) uint8 {
	x := &w.m[m]
	s := w.sees(m).inSync | x.data.wait
	if x.data.alone != 0 {
		s = 0
	}
	if b.c.code.degradeUnapplied && w.disk.degrade[0] != 0 {
		s &^= 1 << w.disk.degrade[2]
	}
	return s &^ (1 << m)
}

func (b *bench) activeSteps(w *world, m int) {
	c, x, u := b.c, &w.m[m], uint8(m)
	if int(w.disk.ops) < c.ops {
		b.try(w, action{k: doWrite, a: u, b: w.disk.ops}, func(n *world) bool {
			d, o := &n.m[m].data, n.disk.ops
			n.disk.frameE[o], n.disk.frameBase[o] = x.epoch, d.has|d.pend
			switch {
			case c.onFsync:
				d.has |= 1 << o
			case c.code.visibleEarly:
				d.has |= 1 << o
				fallthrough
			default:
				d.pend |= 1 << o
			}
			n.disk.ops++
			return true
		})
	}
	b.completes(w, m)
	if seen := w.disk.seen | x.data.has; seen != w.disk.seen && !c.onFsync {
		b.try(w, action{k: doRead, a: u}, func(n *world) bool { n.disk.seen = seen; return true })
	}
	for o := 1; o <= c.members; o++ {
		if y := &w.m[o]; o != m && c.nodes.Has(cluster.MemberNo(o)) && y.up && y.at != noIndex {
			b.peerSteps(w, m, o)
		}
	}
	if r := w.sees(m); r.sticky && x.sticky && x.data.alone == 0 {
		b.try(w, action{k: doGoAlone, a: u}, func(n *world) bool { n.m[m].data.alone = r.gen; return true })
	}
}

func (b *bench) completes(w *world, m int) {
	c, x, u := b.c, &w.m[m], uint8(m)
	need := b.needs(w, m)
	for o := range int(w.disk.ops) {
		if x.data.pend>>o&1 == 0 || x.data.pend&(1<<o-1) != 0 || !accepted(w, need, o, x.epoch) {
			continue
		}
		b.try(w, action{k: doComplete, a: u, b: uint8(o)}, func(n *world) bool {
			d := &n.m[m].data
			d.pend &^= 1 << o
			d.has |= 1 << o
			if need == 0 {
				d.dur = d.has
			}
			n.disk.acked |= 1 << o
			return true
		})
	}
	if c.onFsync {
		b.syncs(w, m, need)
		return
	}
	all := x.data.dur
	for n := 1; n <= c.members; n++ {
		if need>>n&1 == 1 {
			all &= w.m[n].data.dur
		}
	}
	if w.disk.acked&^all == 0 && w.disk.acked != w.disk.fsynced {
		b.try(w, action{k: doFsyncAck, a: u}, func(n *world) bool { n.disk.fsynced = n.disk.acked; return true })
	}
}

// syncs answers a Sync of mode sync-on-fsync: everything done so far is on the own disk, and, as far as was reported in the present epoch, on that of
// every member that is needed.
func (b *bench) syncs(w *world, m int, need uint8) {
	x := &w.m[m]
	all := x.data.dur
	for n := 1; n <= b.c.members; n++ {
		switch {
		case need>>n&1 == 0 || b.c.code.syncAlone:
		case b.c.code.syncReceipt:
			all &= w.m[n].data.has
		default:
			all &= w.disk.told[n]
		}
	}
	if x.data.has&^all == 0 && w.disk.fsynced|x.data.has != w.disk.fsynced {
		b.try(w, action{k: doFsyncAck, a: uint8(m)}, func(n *world) bool { n.disk.fsynced |= x.data.has; return true })
	}
}

func accepted(w *world, need uint8, o int, e uint8) bool {
	for n := 1; n <= maxNo; n++ {
		if need>>n&1 == 1 && w.disk.took[n][o] != e {
			return false
		}
	}
	return true
}

// peerSteps are what the active m does about another node.
func (b *bench) peerSteps(w *world, m, o int) {
	c, x, y, r, u := b.c, &w.m[m], &w.m[o], w.sees(m), uint8(m)
	in := r.inSync>>o&1 == 1
	if c.onFsync && (y.data.hdr <= x.epoch && (y.closed < x.epoch || c.code.acceptsPromised) || c.code.noStreamEpoch) && y.data.dur&x.data.has&^w.disk.told[o] != 0 {
		b.try(w, action{k: doReport, a: u, b: uint8(o)}, func(n *world) bool { n.disk.told[o] = y.data.dur; return true })
	}
	if in && w.disk.degrade != [3]uint8{r.epoch, r.gen, uint8(o)} {
		b.try(w, action{k: doDegrade, a: u, b: uint8(o)}, func(n *world) bool { n.disk.degrade = [3]uint8{r.epoch, r.gen, uint8(o)}; return true })
	}
	if in || x.data.alone != 0 {
		return
	}
	if waits := x.data.wait>>o&1 == 1; !waits && (w.sees(o).epoch >= x.epoch && y.data.hdr <= x.epoch && y.closed < x.epoch && !y.renews()) {
		b.try(w, action{k: doResync, a: uint8(o), b: u}, func(n *world) bool {
			d := &n.m[o].data
			d.has, d.hdr = x.data.has, x.epoch
			d.dur &= d.has
			if c.onFsync {
				d.dur = 0 // what was copied anew is in the page cache
			}
			if !c.code.oldAccepts {
				n.disk.took[o], n.disk.told[o] = [maxOps]uint8{}, 0
			}
			return true
		})
	}
	if x.data.has&^y.data.has == 0 && (w.disk.fsynced&^y.data.dur == 0 || c.code.inSyncUnfsynced) && y.data.hdr == x.epoch && r.adm[o] == y.inc {
		b.try(w, action{k: doInSync, a: u, b: uint8(o)}, func(n *world) bool {
			if d := &n.m[m].data; !c.code.inSyncEarly {
				d.wait |= 1 << o
				d.waitGen = r.gen
			}
			n.disk.inSync = [4]uint8{r.epoch, r.gen, uint8(o), y.inc}
			return true
		})
	}
}

func (b *bench) dataCommits(w *world) {
	c, d, r := b.c, &w.disk, w.newest()
	if p := d.inSync; p[0] != 0 {
		b.commit(w, action{k: doInSyncCommit}, func(s *lock.Service, g *lock.Group) lock.Result {
			return c.code.inSync(s, g, lock.InSync{Epoch: cluster.Epoch(p[0]), Gen: cluster.Generation(p[1]), Node: lock.Holder{Node: cluster.MemberNo(p[2]), Inc: cluster.Incarnation(p[3])}})
		}, nil)
	}
	if p := d.degrade; p[0] != 0 && p[0] == r.epoch && (c.gens == 0 || r.gen < c.gens) {
		b.commit(w, action{k: doDegradeCommit}, func(s *lock.Service, _ *lock.Group) lock.Result {
			return c.code.degrade(s, lock.Degrade{Epoch: cluster.Epoch(p[0]), Gen: cluster.Generation(p[1]), Out: cluster.SetOf(cluster.MemberNo(p[2]))})
		}, nil)
	}
}

func (b *bench) canonData(w *world) {
	d, r := &w.disk, w.newest()
	if !b.c.keepAcks {
		if d.inSync[0] != r.epoch || d.inSync[1] != r.gen {
			d.inSync = [4]uint8{}
		}
		if d.degrade[0] != r.epoch || d.degrade[1] != r.gen {
			d.degrade = [3]uint8{}
		}
	}
}

func (c *config) dataBroken(w *world) string {
	if !c.data {
		return ""
	}
	r, must := w.newest(), w.disk.acked|w.disk.seen
	if w.disk.acked&w.disk.old != 0 {
		return "an operation of an ended tenure was acknowledged"
	}
	for _, no := range c.nodes.List() {
		n := int(no)
		x := &w.m[n]
		if free := !r.sticky || int(r.holder) == n; free && r.inSync>>n&1 == 1 && r.boots[n] == x.boot && w.disk.fsynced&^x.data.dur != 0 {
			return "an fsynced operation is not on the disk of a member in sync"
		}
		for o := range int(w.disk.ops) {
			if x.data.has>>o&1 == 1 && w.disk.frameBase[o]&^x.data.has != 0 {
				return "an operation is in a copy without one that came before it"
			}
		}
		if c.onFsync {
			must = w.disk.fsynced
		}
		if !x.up || x.at == noIndex || must&^x.data.has == 0 {
			continue
		}
		if x.renews() && x.epoch == r.epoch {
			return "the active lacks an acknowledged operation, or one that was read"
		}
		free := !r.sticky || int(r.holder) == n
		if r.adm[n] == x.inc && r.inSync>>n&1 == 1 && r.boots[n] == r.admBoot[n] && free {
			return "a member that may be granted lacks an acknowledged operation, or one that was read"
		}
	}
	return ""
}

func (c *config) describeData(w *world) string {
	if !c.data {
		return ""
	}
	s := fmt.Sprintf(" || in sync %v, acked %b, fsynced %b, read %b", cluster.MemberSet(w.newest().inSync).List(), w.disk.acked, w.disk.fsynced, w.disk.seen)
	for _, n := range c.nodes.List() {
		d := &w.m[n].data
		s += fmt.Sprintf(", %s has %b/%b pending %b", c.name(uint8(n)), d.has, d.dur, d.pend)
	}
	return s
}
