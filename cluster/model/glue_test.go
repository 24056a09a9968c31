package model

import (
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/lock"
)

// The code under test, each call replaceable by a broken one.
type code struct {
	renew    func(v *lease.Voter, now cluster.Instant, e cluster.Epoch, ttl time.Duration, k lease.Known) lease.Answer
	promise  func(v *lease.Voter, now cluster.Instant, e cluster.Epoch, holder bool, k lease.Known) lease.Answer
	release  func(v *lease.Voter, e cluster.Epoch)
	ack      func(h *lease.Holder, now cluster.Instant, voter cluster.MemberNo, e cluster.Epoch, ttl time.Duration, at cluster.Instant) bool
	bumped   func(h *lease.Holder, e cluster.Epoch, ttl time.Duration) bool
	stick    func(h *lease.Holder, now cluster.Instant, on bool)
	fresh    func(h *lease.Holder, now cluster.Instant) cluster.Instant
	confirms func(h *lease.Holder, now cluster.Instant) bool
	tick     func(h *lease.Holder, now cluster.Instant) (ended, began bool)
	ready    func(c *lease.Coordinator, s *lock.Service, g *lock.Group) (lock.Grant, bool)
	grant    func(s *lock.Service, g *lock.Group, c lock.Grant) lock.Result
	force    func(s *lock.Service, g *lock.Group, c lock.ForceGrant) lock.Result
	bump     func(s *lock.Service, c lock.Bump) lock.Result
	degrade  func(s *lock.Service, c lock.Degrade) lock.Result
	inSync   func(s *lock.Service, g *lock.Group, c lock.InSync) lock.Result
	sticky   func(s *lock.Service, c lock.Sticky) lock.Result
	confirm  func(s *lock.Service, g *lock.Group, c lock.Confirm) lock.Result
	join     func(g *lock.Group, n cluster.MemberNo, inc cluster.Incarnation, boot cluster.BootID) lock.Result
	settle   func(g *lock.Group, c uint64, services []*lock.Service, closed map[*lock.Service][]lock.Promise) lock.Result
	faults
}

// faults are the rules that the callers of the code keep, broken.
type faults struct {
	vincUnchecked       bool // a holder counts answers of runs that the log does not know
	notMute             bool // a restarted voter answers before its Join is applied
	restartForgetsWait  bool // a restarted voter does not wait from its start
	releaseOpen         bool // Release before the gates are closed
	renewFenced         bool // renews after having fenced, and reopens when it is acknowledged
	reopenReleased      bool // reopens after its Release, because the Grant seemed to have failed
	promiseServing      bool // a holder that is asked promises before it stops
	promiseAhead        bool // a holder that is asked for its own next epoch answers as any voter
	serveClosed         bool // serves on a Grant of an epoch that it has promised
	grantIsEnough       bool // serves from the Grant, without an acknowledgement
	pushedGrant         bool // a Grant heard of before it is applied is counted under the voter sets that are applied
	noGateShutOnStart   bool // a restarted daemon leaves its predecessor's gates open
	restickOnTimeout    bool // relies on sticky again when its end's proposal timed out
	unstickStaysPushed  bool // proposes the end of sticky while its gates are still open by sticky
	stickyWithoutQuorum bool // a restarted daemon serves while sticky
	ttlAlone            bool // a member raises its TTL by itself
	grantUnjoined       bool // the leader grants to a run whose Join is not committed
	receiptTime         bool // counts from the receipt

	// Data.
	pendingSurvive   bool // pending operations survive deposition
	degradeUnapplied bool // acknowledges alone before Degrade is applied
	inSyncEarly      bool // proposes InSync before it waits for the standby
	inSyncUnfsynced  bool // proposes InSync before the standby has fsynced what was acknowledged as fsynced
	oldAccepts       bool // counts what a standby accepted before it was resynchronised
	noStreamEpoch    bool // the standby accepts frames of any epoch
	visibleEarly     bool // bytes can be read before they are replicated
	aloneNotCarried  bool // Unsticky does not say that the active was alone
	acceptsPromised  bool // the standby accepts frames of an epoch that it has promised (not a fault, see TestFramesOfAPromisedEpoch)
	syncAlone        bool // a Sync is answered when the own disk has everything
	syncReceipt      bool // a Sync is answered when the standby has received everything
	acceptsGaps      bool // the standby accepts an operation without those before it
	syncSurvives     bool // a Sync that waits is answered after the deposition
}

func product() code {
	return code{
		renew:    (*lease.Voter).Renew,
		promise:  (*lease.Voter).Promise,
		release:  (*lease.Voter).Release,
		ack:      (*lease.Holder).Ack,
		bumped:   (*lease.Holder).Bumped,
		stick:    (*lease.Holder).Stick,
		fresh:    (*lease.Holder).Fresh,
		confirms: (*lease.Holder).MayConfirm,
		tick:     (*lease.Holder).Tick,
		ready:    (*lease.Coordinator).Ready,
		grant:    (*lock.Service).Grant,
		force:    (*lock.Service).Force,
		bump:     (*lock.Service).Bump,
		degrade:  (*lock.Service).Degrade,
		inSync:   (*lock.Service).AddInSync,
		sticky:   (*lock.Service).Stick,
		confirm:  func(s *lock.Service, _ *lock.Group, c lock.Confirm) lock.Result { return s.Confirm(c) },
		join:     (*lock.Group).Join,
		settle:   (*lock.Group).Settle,
	}
}

// extend sets the gates as far as the holder's deadline goes; they never close by it.
func (b *bench) extend(w *world, m int) {
	h := b.loadHolder(w, m)
	if d := leftAt(h.Deadline(now)); d.at() > w.m[m].gate.at() {
		w.m[m].gate = d
	}
}

// end stops a tenure: what is open is ordered to be shut, and the Release waits for that.
func (b *bench) end(w *world, m int) {
	x := &w.m[m]
	h := b.loadHolder(w, m)
	if !h.Fence() {
		return
	}
	h.Sticky = false
	b.storeHolder(w, m)
	x.closing, x.releasing = true, x.epoch
	x.stickyLeft = 0
	b.depose(w, m)
}

// granted begins a tenure.
func (b *bench) granted(w *world, m int, e, ttl uint8) {
	x := &w.m[m]
	if e <= x.epoch {
		return
	}
	if x.renews() {
		b.end(w, m)
	}
	h := b.loadHolder(w, m)
	if !h.Grant(now, cluster.Epoch(e), time.Duration(ttl)*tick, b.setsOf(w.sees(m).lo, w.sees(m).hi)) {
		return
	}
	b.storeHolder(w, m)
	x.lo, x.hi = w.sees(m).lo, w.sees(m).hi
	x.gate = 0 // Close is done before Begin
	x.closing, x.releasing, x.sticking, x.unstuck = false, 0, false, 0
	x.confirmedC = w.sees(m).hi + 1
	x.inbox = [maxNo + 1]ackMsg{}
	b.promote(w, m)
	switch {
	case e <= x.closed && !b.c.code.serveClosed:
		b.end(w, m) // it has promised this epoch away, before it knew that it was its own
		return
	case b.c.code.grantIsEnough:
		x.phase, x.gate = uint8(lease.Serving), leftOf(int(ttl), 0)
	}
	b.daemon(w, m)
}

// daemon lets a holder look at its clock.
func (b *bench) daemon(w *world, m int) {
	if b.c.timeless {
		return
	}
	h := b.loadHolder(w, m)
	ended, _ := b.c.code.tick(h, now)
	b.storeHolder(w, m)
	x := &w.m[m]
	if ended {
		x.closing, x.releasing, x.sticky, x.stickyLeft = true, x.epoch, false, 0
		b.depose(w, m)
		return
	}
	if x.phase == uint8(lease.Serving) {
		b.extend(w, m)
	}
}

// follow is what a member does when it has applied an entry; gen is the generation before it.
func (b *bench) follow(w *world, m int, gen uint8) {
	x, r := &w.m[m], w.sees(m)
	if x.lo != r.lo || x.hi != r.hi {
		h := b.loadHolder(w, m)
		h.SetVoters(now, b.setsOf(r.lo, r.hi))
		b.storeHolder(w, m)
		x.lo, x.hi = r.lo, r.hi
	}
	mine := int(r.holder) == m && r.inc == x.inc && r.epoch > 0
	bumped := mine && r.gen == gen && r.epoch == x.epoch+1 && x.phase != uint8(lease.Idle)
	if int(r.holder) == m && r.sticky && r.inc != x.inc && b.c.code.stickyWithoutQuorum {
		x.phase, x.epoch, x.ttl, x.sticky, x.stickyLeft = uint8(lease.Serving), r.epoch, r.ttl, true, leftOf(int(r.ttl), 0)
		b.daemon(w, m)
		return
	}
	switch {
	case bumped:
		h := b.loadHolder(w, m)
		on := b.c.code.bumped(h, cluster.Epoch(r.epoch), time.Duration(r.ttl)*tick)
		b.storeHolder(w, m)
		b.resend(w, m)
		if on {
			b.extend(w, m)
		} else {
			x.releasing = r.epoch
			if !x.closing {
				b.shut(w, m)
			}
		}
	case mine:
		b.granted(w, m, r.epoch, r.ttl)
	case r.epoch > x.epoch || (r.epoch == x.epoch && !mine):
		h := b.loadHolder(w, m)
		if h.Saw(cluster.Epoch(r.epoch)) {
			b.storeHolder(w, m)
			x.closing, x.releasing, x.sticky, x.stickyLeft = true, x.epoch, false, 0
			b.depose(w, m)
		} else if h.Renews() && !mine {
			b.end(w, m)
		}
	}
	if x.releasing != 0 && r.epoch > x.releasing {
		x.releasing = 0
	}
	b.followSticky(w, m)
	b.followData(w, m)
}

func (b *bench) followSticky(w *world, m int) {
	x, r := &w.m[m], w.sees(m)
	if x.phase != uint8(lease.Serving) || r.epoch != x.epoch || x.sticking || r.sticky == x.sticky {
		return
	}
	if r.sticky && x.unstuck == r.gen && !b.c.code.restickOnTimeout {
		return // its end may be committed yet
	}
	h := b.loadHolder(w, m)
	b.c.code.stick(h, now, r.sticky)
	b.storeHolder(w, m)
	b.extend(w, m)
}

// shut sends the Release, once nothing is open any more.
func (b *bench) shut(w *world, m int) {
	x := &w.m[m]
	h := b.loadHolder(w, m)
	h.Shut()
	b.storeHolder(w, m)
	x.closing = false
	if !b.c.code.releaseOpen {
		x.gate = 0
	}
	v := b.loadVoter(w, m)
	b.c.code.release(v, cluster.Epoch(x.epoch))
	b.storeVoter(w, m)
	b.sendRelease(w, m)
}

func (b *bench) sendRelease(w *world, m int) {
	x := &w.m[m]
	if x.releasing == 0 || x.phase != uint8(lease.Released) {
		return
	}
	w.rel |= 1 << x.releasing
	if n := w.newest(); n.epoch == x.releasing && int(n.holder) == m && n.inc == x.inc {
		w.prom[m] |= 1 << x.inc
	}
	x.releasing = 0
}

// ask is the request to promise epoch e.
func (b *bench) ask(w *world, m int, e uint8) {
	x := &w.m[m]
	if x.at == noIndex && !b.c.code.notMute {
		return
	}
	var own bool
	k := lease.Known{}
	if x.at != noIndex {
		r := w.sees(m)
		own = int(r.holder) == m && r.epoch == e
		k = known(r)
	} else {
		k.Epoch = cluster.Epoch(e) // the log as it was before
	}
	same := x.epoch == e || x.epoch < e && uint8(k.Epoch) <= x.epoch && !b.c.code.promiseAhead
	if same && (x.renews() || x.closing) {
		if x.renews() {
			b.end(w, m)
		}
		if !b.c.code.promiseServing {
			return
		}
	}
	if same && x.phase == uint8(lease.Fenced) && !b.c.code.promiseServing {
		return
	}
	v := b.loadVoter(w, m)
	v.Open = v.Open || b.c.code.notMute
	a := b.c.code.promise(v, now, cluster.Epoch(e), own, k)
	b.storeVoter(w, m)
	if a.Yes && e == w.newest().epoch {
		w.prom[m] |= 1 << x.inc
	}
}
