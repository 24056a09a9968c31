package lease

import (
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

// Phase is where a holder stands within its tenure.
type Phase uint8

const (
	Idle     Phase = iota // holds nothing
	Granted               // an epoch was granted; the first acknowledgement of it is awaited
	Serving               // may serve while now is before the deadline
	Fenced                // has ended its tenure; sends Release once everything is shut
	Released              // has said so; only a new Grant begins another tenure
)

func (p Phase) String() string {
	return [...]string{"idle", "granted", "serving", "fenced", "released"}[p]
}

// Ack is one voter's acknowledgement: until when it may be relied on, counted from the sending of the renewal that the voter
// acknowledged, with the TTL that this renewal carried. (Counting an older epoch's acknowledgement with a newer TTL
// would outlast what the voter waits.)
type Ack struct {
	Voter cluster.MemberNo
	Until cluster.Instant
}

// Holder is one member's side of the lease of one service.
type Holder struct {
	Self  cluster.MemberNo
	Phase Phase
	Epoch cluster.Epoch
	TTL   time.Duration
	Since cluster.Instant // of the Grant
	Acks  []Ack           // of this tenure: a Bump carries them over, a Grant does not
	// Sticky: the log says that the holder stays without the witness; its own daemon refreshes the deadline.
	Sticky   bool
	StickyAt cluster.Instant // the last refresh
	Bumping  cluster.Epoch   // the epoch that an own Bump in flight is to end; 0: none
	Sets     []lock.VoterSet
	// Carried is the deadline that the voter sets gave before the last change of them. It still stands: until the holder confirms the
	// new set, a Grant needs a majority of the old one too, and those voters wait it out.
	Carried cluster.Instant
}

// Clone returns a copy that shares nothing with h.
func (h *Holder) Clone() Holder {
	c := *h
	c.Acks = append([]Ack(nil), h.Acks...)
	return c
}

// Grant begins a tenure: the log, or the leader that committed it, says that this incarnation holds epoch e. Older news is ignored.
func (h *Holder) Grant(now cluster.Instant, e cluster.Epoch, ttl time.Duration, sets []lock.VoterSet) bool {
	if e <= h.Epoch {
		return false
	}
	*h = Holder{Self: h.Self, Phase: Granted, Epoch: e, TTL: ttl, Sets: sets, Since: now}
	return true
}

// Bumped takes note of an applied Bump to epoch e. It says whether the holder goes on serving in e: not if it has fenced itself meanwhile,
// in which case it must send Release(e) and ask for a Grant.
func (h *Holder) Bumped(e cluster.Epoch, ttl time.Duration) (serving bool) {
	if e <= h.Epoch {
		return h.Phase == Serving
	}
	h.Bumping = 0
	h.Epoch, h.TTL = e, ttl
	switch h.Phase {
	case Serving, Granted:
		// The lease of the old epoch carries over until its own end: nobody can have been granted another one meanwhile, because a
		// Grant based on the old epoch is refused from the Bump on. Acknowledgements of the old epoch no longer arrive.
		return true
	}
	h.Phase = Fenced
	return false
}

// WantBump says whether a refusal that names highest calls for a Bump: a promise was made for the current epoch, no later epoch exists, and
// the holder still serves. That goes for Sticky too: its end needs fresh acknowledgements, which nobody gives for an epoch that was promised away.
func (h *Holder) WantBump(now cluster.Instant, highest cluster.Epoch) bool {
	return highest == h.Epoch && h.Bumping == 0 && h.MayServe(now)
}

// SetVoters tells under which voter sets acknowledgements are counted from now on. What the sets of before gave stands until its end.
func (h *Holder) SetVoters(now cluster.Instant, sets []lock.VoterSet) {
	if len(sets) == len(h.Sets) && (len(sets) == 0 || sets[len(sets)-1].C == h.Sets[len(h.Sets)-1].C) {
		return
	}
	if h.Phase == Serving {
		h.Carried = max(h.Carried, h.deadline(now))
	}
	h.Sets = sets
}

// MayConfirm says whether the acknowledgements under the present voter sets alone reach as far as what was carried over from older
// ones: only then may the log be told that the holder counts by the present ones, because the older ones may be dropped upon that.
func (h *Holder) MayConfirm(now cluster.Instant) bool {
	return h.Phase == Serving && h.deadline(now) > max(now, h.Carried)
}

// Renews says whether the holder asks for its lease to be extended.
func (h *Holder) Renews() bool { return h.Phase == Granted || h.Phase == Serving }

// Ack takes note that a voter acknowledged the renewal of epoch e that carried ttl and was sent at at. It says whether
// this was the acknowledgement with which the tenure begins to serve.
func (h *Holder) Ack(now cluster.Instant, voter cluster.MemberNo, e cluster.Epoch, ttl time.Duration, at cluster.Instant) (begins bool) {
	if e != h.Epoch || ttl != h.TTL || voter == h.Self || !h.Renews() || at > now {
		return false
	}
	h.record(voter, at.Add(ttl))
	return h.begin(now)
}

// Self-acknowledgement is not counted; a lone voter, or a holder that needs nobody, begins by Tick.
func (h *Holder) begin(now cluster.Instant) bool {
	if h.Phase == Granted && now < h.deadline(now) {
		h.Phase = Serving
		return true
	}
	return false
}

func (h *Holder) record(voter cluster.MemberNo, until cluster.Instant) {
	for i := range h.Acks {
		if h.Acks[i].Voter == voter {
			h.Acks[i].Until = max(h.Acks[i].Until, until)
			return
		}
	}
	h.Acks = append(h.Acks, Ack{voter, until})
}

// firstAck is how many TTLs a holder waits for the first acknowledgement before it gives an epoch up again: somebody else may reach
// the voters.
const firstAck = 4

// Tick lets time pass: a deadline that has gone by ends the tenure. It answers whether the tenure ended just now, or began (only where the
// holder needs nobody's acknowledgement).
func (h *Holder) Tick(now cluster.Instant) (ended, began bool) {
	if h.Phase == Serving && now >= h.Deadline(now) {
		h.Phase = Fenced
		return true, false
	}
	if h.Phase == Granted && now.Sub(h.Since) > firstAck*h.TTL && !h.begin(now) {
		h.Phase = Fenced
		return true, false
	}
	if h.Sticky && h.Phase == Serving {
		h.StickyAt = now
	}
	return false, h.begin(now)
}

// Stick enters or leaves the state in which the holder relies on nobody's acknowledgement. It must be left before its end is
// proposed, and only with fresh acknowledgements; gates that were given more than these must be lowered first, because they keep what they were
// given even if this daemon is stopped in the next moment. Whoever has proposed the end may enter it again only for a later generation: a
// proposal without an answer may be committed yet.
func (h *Holder) Stick(now cluster.Instant, on bool) {
	if on && h.Phase == Serving && now < h.Deadline(now) {
		h.Sticky, h.StickyAt = true, now
		return
	}
	h.Sticky = false
}

// Deadline is the instant from which the holder may not serve any more; 0 when it does not serve at all.
func (h *Holder) Deadline(now cluster.Instant) cluster.Instant {
	if h.Phase != Serving {
		return 0
	}
	d := max(h.deadline(now), h.Carried)
	if h.Sticky {
		d = max(d, h.StickyAt.Add(h.TTL))
	}
	return d
}

// deadline by acknowledgements alone.
func (h *Holder) deadline(now cluster.Instant) cluster.Instant {
	if len(h.Sets) == 0 {
		return 0
	}
	earliest := now.Add(h.TTL) // where the holder needs nobody beside itself, it renews by asking
	for _, set := range h.Sets {
		need := set.Set.Majority()
		if set.Set.Has(h.Self) {
			need--
		}
		if need > 0 {
			earliest = min(earliest, h.kthLatest(set.Set, need))
		}
	}
	return earliest
}

// kthLatest is the instant until which at least k distinct voters of the set may be relied on; 0 if fewer acknowledged. Sets are
// small: a selection by counting.
func (h *Holder) kthLatest(set cluster.MemberSet, k int) cluster.Instant {
	for _, a := range h.Acks {
		if !set.Has(a.Voter) || a.Voter == h.Self {
			continue
		}
		later, same := 0, 0
		for _, b := range h.Acks {
			switch {
			case !set.Has(b.Voter) || b.Voter == h.Self:
			case b.Until > a.Until:
				later++
			case b.Until == a.Until:
				same++
			}
		}
		if later < k && k <= later+same {
			return a.Until
		}
	}
	return 0
}

// Fresh is the deadline that acknowledgements alone give: what must be in the future before the holder stops relying on Sticky.
func (h *Holder) Fresh(now cluster.Instant) cluster.Instant { return h.deadline(now) }

// MayServe says whether the holder may serve at this instant. It is asked anew for each operation.
func (h *Holder) MayServe(now cluster.Instant) bool {
	return h.Phase == Serving && now < h.Deadline(now)
}

// Fence ends the tenure at once; the caller closes the gates before it does anything else. It says whether there was one to end.
func (h *Holder) Fence() bool {
	if h.Phase == Granted || h.Phase == Serving {
		h.Phase = Fenced
		return true
	}
	return false
}

// Saw takes note of an epoch of this service that somebody else named. It says whether the holder must fence itself: a higher one
// exists, other than its own Bump's.
func (h *Holder) Saw(e cluster.Epoch) bool {
	if !h.Renews() || e <= h.Epoch || (h.Bumping == h.Epoch && e == h.Epoch+1) {
		return false
	}
	return h.Fence()
}

// Shut says that everything is closed and nothing is in flight: from now on the holder may send Release.
func (h *Holder) Shut() {
	if h.Phase == Fenced {
		h.Phase = Released
	}
}
