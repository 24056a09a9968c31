package model

import (
	"time"
	"unsafe"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/lock"
)

const (
	tick = 50 * time.Millisecond
	slow = tick * (100 - cluster.DriftPercent) / 100 // a tick by the clock of a holder
	fast = tick * (100 + cluster.DriftPercent) / 100 // ... of a voter
	now  = cluster.Instant(time.Hour)                // every clock's reading: ages are kept, not instants

	maxNo    = 4 // members are numbered from 1
	maxLog   = 5
	maxEpoch = 6
	noIndex  = 255
)

// left is the rest of a deadline by a slow clock: age<<0 | ttl<<4, in ticks; 0 when it has passed.
type left uint8

func leftOf(ttl, age int) left {
	if time.Duration(ttl)*tick <= time.Duration(age)*slow {
		return 0
	}
	return left(ttl<<4 | age)
}

func (l left) ttl() int { return int(l >> 4) }
func (l left) age() int { return int(l & 15) }

func (l left) at() cluster.Instant {
	if l == 0 {
		return 0
	}
	return now.Add(time.Duration(l.ttl())*tick - time.Duration(l.age())*slow)
}

func (l left) older() left {
	if l == 0 {
		return 0
	}
	return leftOf(l.ttl(), l.age()+1)
}

// leftAt is the inverse of at, for deadlines that were made of whole ticks.
func leftAt(i cluster.Instant) left {
	if i <= now {
		return 0
	}
	n := int(i.Sub(now) / (tick / 100))
	age := n % 100
	return leftOf((n-age)/100+age, age)
}

// record is the replicated state at one index of the log. Everything in a world is a byte, so that a world is its own encoding.
type record struct {
	epoch, holder, inc uint8
	inSync             uint8
	boots              [maxNo + 1]uint8
	gen                uint8
	sticky, held       bool
	forced             uint8
	ttl, ttlMax        uint8
	confirmed          uint8
	adm, admBoot       [maxNo + 1]uint8
	lo, hi             uint8 // the voter sets that count are config.sets[lo..hi]
}

// ackMsg is an acknowledgement on its way: of epoch e, with the rest of the lease that it carries.
type ackMsg struct {
	e    uint8
	vinc uint8
	sent left
}

// grantMsg tells a member of its Grant before the log does.
type grantMsg struct{ to, inc, ttl, hi uint8 }

type member struct {
	up        bool
	inc, boot uint8
	at        uint8 // index of the log up to which it has applied; noIndex: its run is not yet admitted
	joinAt    uint8 // where its Join stands in the log
	gate      left  // until when its gates are open, as last set; survives the daemon

	// Voter.
	quiet    uint8 // ticks since its start or its last acknowledgement
	closed   uint8
	acked    uint8
	ackedTTL uint8
	released uint8
	promised bool

	// Holder.
	phase      uint8
	epoch      uint8
	ttl        uint8
	acks       [maxNo + 1]left
	sticky     bool
	stickyLeft left
	carried    left
	bumping    uint8
	lo, hi     uint8
	closing    bool
	releasing  uint8 // the epoch of the Release that waits or is sent
	confirmedC uint8
	sticking   bool
	unstuck    uint8 // the generation in which it has proposed the end of sticky

	inbox [maxNo + 1]ackMsg // acknowledgements on their way to it, by voter

	data store
}

// world is one state of the model. Member 0 is nobody.
type world struct {
	log  [maxLog]record
	n    uint8 // entries of the log that are kept
	m    [maxNo + 1]member
	prom [maxNo + 1]uint8 // promises of the newest epoch: a bit for each incarnation
	rel  uint8            // a bit for each epoch that its holder has released

	told [maxEpoch + 1]grantMsg // by epoch

	joins     [maxNo + 1]uint8 // Joins on their way: a bit for each incarnation
	bumpE     uint8            // a Bump on its way
	bumpTTL   uint8
	on        [2]uint8 // a Sticky on its way: epoch, generation
	off       [2]uint8 // an Unsticky on its way
	offAlone  bool
	confirm   [2]uint8 // a Confirm on its way: epoch, voter set
	crashes   uint8
	sticks    uint8
	forcedOff bool

	disk platter
}

func (w *world) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(w)), unsafe.Sizeof(*w))
}

func (w *world) newest() *record { return &w.log[w.n-1] }

// sees is what a member's replicated state says.
func (w *world) sees(m int) *record { return &w.log[w.m[m].at] }

func (m *member) renews() bool {
	return m.phase == uint8(lease.Granted) || m.phase == uint8(lease.Serving)
}

// bench is one worker's scratch: the product's own structures, filled anew for each event.
type bench struct {
	c       *config
	voter   lease.Voter
	holder  lease.Holder
	acks    []lease.Ack
	svc     lock.Service
	group   lock.Group
	adm     [maxNo + 1]lock.Admission
	boots   [maxNo]lock.MemberBoot
	proms   []lock.Promise
	sets    []lock.VoterSet
	emitted func(*world, action)
	next    world
}

func (b *bench) loadVoter(w *world, m int) *lease.Voter {
	x := &w.m[m]
	b.voter = lease.Voter{Open: x.at != noIndex, Started: now - cluster.Instant(x.quiet)*cluster.Instant(fast),
		Closed: cluster.Epoch(x.closed), Acked: cluster.Epoch(x.acked), AckedTTL: time.Duration(x.ackedTTL) * tick,
		Released: cluster.Epoch(x.released), Promised: x.promised}
	b.voter.LastAck = b.voter.Started
	return &b.voter
}

func (b *bench) storeVoter(w *world, m int) {
	x, v := &w.m[m], &b.voter
	if v.LastAck == now {
		x.quiet = 0
	}
	x.closed, x.acked, x.ackedTTL = uint8(v.Closed), uint8(v.Acked), uint8(v.AckedTTL/tick)
	x.released, x.promised = uint8(v.Released), v.Promised
}

func known(r *record) lease.Known {
	return lease.Known{Epoch: cluster.Epoch(r.epoch), TTLMax: time.Duration(r.ttlMax) * tick}
}

func (b *bench) loadHolder(w *world, m int) *lease.Holder {
	x := &w.m[m]
	b.acks = b.acks[:0]
	for v := 1; v <= b.c.members; v++ {
		switch {
		case b.c.timeless && v != m:
			b.acks = append(b.acks, lease.Ack{Voter: cluster.MemberNo(v), Until: now.Add(time.Duration(x.ttl) * tick)})
		case x.acks[v] != 0:
			b.acks = append(b.acks, lease.Ack{Voter: cluster.MemberNo(v), Until: x.acks[v].at()})
		}
	}
	b.holder = lease.Holder{Self: cluster.MemberNo(m), Phase: lease.Phase(x.phase), Epoch: cluster.Epoch(x.epoch), TTL: time.Duration(x.ttl) * tick,
		Since: now, Acks: b.acks, Sticky: x.sticky, Bumping: cluster.Epoch(x.bumping), Sets: b.setsOf(x.lo, x.hi)}
	b.holder.Carried = x.carried.at()
	if x.stickyLeft != 0 {
		b.holder.StickyAt = x.stickyLeft.at().Add(-b.holder.TTL)
	}
	return &b.holder
}

func (b *bench) storeHolder(w *world, m int) {
	x, h := &w.m[m], &b.holder
	x.phase, x.epoch, x.ttl = uint8(h.Phase), uint8(h.Epoch), uint8(h.TTL/tick)
	x.acks = [maxNo + 1]left{}
	for _, a := range h.Acks {
		x.acks[a.Voter] = leftAt(a.Until)
	}
	x.sticky, x.bumping = h.Sticky, uint8(h.Bumping)
	x.carried = leftAt(h.Carried)
	x.stickyLeft = 0
	if h.StickyAt != 0 {
		x.stickyLeft = leftAt(h.StickyAt.Add(h.TTL))
	}
}

func (b *bench) setsOf(lo, hi uint8) []lock.VoterSet {
	if lo > hi {
		return nil
	}
	return b.c.sets[lo : hi+1 : hi+1]
}

func (b *bench) loadRecord(r *record) (*lock.Service, *lock.Group) {
	b.svc = lock.Service{Epoch: cluster.Epoch(r.epoch), Holder: lock.Holder{Node: cluster.MemberNo(r.holder), Inc: cluster.Incarnation(r.inc)},
		Data: b.c.data, Eligible: b.c.nodes, InSync: cluster.MemberSet(r.inSync), Gen: cluster.Generation(r.gen), Sticky: r.sticky, Held: r.held,
		Forced: cluster.Epoch(r.forced), TTL: time.Duration(r.ttl) * tick, TTLMax: time.Duration(r.ttlMax) * tick, Confirmed: uint64(r.confirmed)}
	boots := b.boots[:0]
	for n := 1; n <= b.c.members; n++ {
		if r.boots[n] != 0 {
			boots = append(boots, lock.MemberBoot{Node: cluster.MemberNo(n), Boot: cluster.BootID{r.boots[n]}})
		}
		b.adm[n] = lock.Admission{Inc: cluster.Incarnation(r.adm[n]), Boot: cluster.BootID{r.admBoot[n]}}
	}
	b.svc.Boots = boots
	b.group = lock.Group{Admitted: b.adm[:], Sets: b.setsOf(r.lo, r.hi)}
	return &b.svc, &b.group
}

// storeRecord reads back what the product has made of it.
func (b *bench) storeRecord(r *record) {
	s, g := &b.svc, &b.group
	r.epoch, r.holder, r.inc = uint8(s.Epoch), uint8(s.Holder.Node), uint8(s.Holder.Inc)
	r.inSync, r.gen, r.sticky, r.held, r.forced = uint8(s.InSync), uint8(s.Gen), s.Sticky, s.Held, uint8(s.Forced)
	r.ttl, r.ttlMax, r.confirmed = uint8(s.TTL/tick), uint8(s.TTLMax/tick), uint8(s.Confirmed)
	r.boots = [maxNo + 1]uint8{}
	for _, x := range s.Boots {
		r.boots[x.Node] = x.Boot[0]
	}
	for n := 1; n <= b.c.members; n++ {
		r.adm[n], r.admBoot[n] = uint8(g.Admitted[n].Inc), g.Admitted[n].Boot[0]
	}
	r.lo, r.hi = uint8(g.Sets[0].C-1), uint8(g.Sets[len(g.Sets)-1].C-1)
}
