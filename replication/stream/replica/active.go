package replica

import (
	"fmt"
	"time"

	"github.com/hanode/hanode/cluster"
)

const (
	// tailLag is how many operations a member may lack to be at the tail.
	tailLag = 256
	// repeat is after what time an InSync or a Degrade that did not come is asked for again.
	repeat = time.Second
)

// Active is the view of the member that holds the service. Make it with NewActive.
type Active struct {
	self      Run
	aloneDisk bool // alone, an operation counts when it is on the own disk
	counts    bool // a volume is not async: the in-sync set matters

	facts   Facts
	leading bool
	deposed bool

	last, written, durable uint64
	wanted                 uint64 // up to where a Sync was asked for
	ackFloor, syncFloor    uint64 // what was said before

	flag       Flag
	flagStored bool
	members    []member
	out        []Action
}

type member struct {
	Run
	session           uint64 // 0: none
	phase             Phase
	plan              Plan
	counted           bool // its acknowledgements are of the present epoch
	accepted, durable uint64
	whole             bool   // its copy is consistent, durably
	mark              uint64 // what it must have before the next phase
	waits             bool
	proposed          Flag // InSync may be on its way for this epoch and generation
	askedAt           cluster.Instant
	since             cluster.Instant // since when it owes an acknowledgement without progress; 0: it owes none
}

// NewActive makes the view of a member that does not lead yet. last is what its journal ends with, flag what it finds on its disk.
func NewActive(self Run, modes []Mode, aloneDisk bool, last uint64, flag Flag) *Active {
	a := &Active{self: self, aloneDisk: aloneDisk, last: last, written: last, flag: flag, flagStored: flag != Flag{}}
	for _, m := range modes {
		a.counts = a.counts || m != Async
	}
	return a
}

// MayLead says whether the tenure of the epoch that the facts name may begin on a copy whose durable header is this one. A copy that was already led in
// this tenure, by a process that has ended, may differ from what the standby holds under the same positions: it needs a new Grant.
func (a *Active) MayLead(epoch, header cluster.Epoch, consistent bool) error {
	switch {
	case a.deposed || a.leading:
		return fmt.Errorf("this process has already led the service: it leads again only as a new process")
	case !consistent:
		return fmt.Errorf("this copy is marked inconsistent: a resync of it has not ended; only a member that is in sync can be made active")
	case header >= a.facts.Grant:
		return fmt.Errorf("this copy was already led in the tenure of epoch %d by a process that has ended: the service needs a new grant", header)
	case a.facts.Epoch != epoch || a.facts.Holder != a.self:
		return fmt.Errorf("the log says epoch %d of member %d run %d, and not epoch %d of member %d run %d", a.facts.Epoch, a.facts.Holder.Member, a.facts.Holder.Inc, epoch, a.self.Member, a.self.Inc)
	}
	return nil
}

// Lead begins the tenure. The caller has asked MayLead and then made epoch and generation durable (D10).
func (a *Active) Lead(last uint64) []Action {
	a.leading = true
	a.last, a.written, a.ackFloor = last, last, last
	return a.done()
}

// SetFacts takes what the log says now.
func (a *Active) SetFacts(now cluster.Instant, f Facts) []Action {
	if f.older(&a.facts) {
		return nil
	}
	was := a.facts
	a.facts = f
	if a.leading && !a.deposed {
		if f.Holder != a.self || f.Grant != was.Grant {
			a.depose(fmt.Sprintf("the log says epoch %d, granted to member %d", f.Epoch, f.Holder.Member))
			return a.done()
		}
		if f.Epoch != was.Epoch || f.Gen != was.Gen {
			a.out = append(a.out, Turned{f.Epoch, f.Gen})
		}
	}
	if a.flag != (Flag{}) && f.Gen > a.flag.Gen && !f.Sticky {
		a.flag, a.flagStored = Flag{}, false
		a.out = append(a.out, StoreAlone{})
	}
	for i := range a.members {
		m := &a.members[i]
		if f.Epoch != was.Epoch {
			m.counted, m.accepted, m.durable = false, 0, 0
		}
		if f.Epoch != was.Epoch || f.Gen != was.Gen {
			m.proposed, m.askedAt = Flag{}, 0 // an InSync of before is void now
		}
		if !f.InSync.Has(m.Member) && m.phase >= AtTail && (f.Gen != was.Gen || was.InSync.Has(m.Member)) {
			m.fallBack(a.last) // also when the Degrade was meant for this one, which was about to be in sync
		}
		if m.session != 0 && f.Inc(m.Member) != m.Inc {
			a.out = append(a.out, Drop{m.Member, m.session, "another run of this member was admitted"})
			m.lost()
		}
		a.advance(now, m)
	}
	return a.done()
}

func (a *Active) depose(why string) {
	a.deposed = true
	for i := range a.members {
		a.members[i].since = 0
	}
	a.out = append(a.out, Deposed{why})
}

// Fence ends the tenure.
func (a *Active) Fence(why string) []Action {
	if !a.leading || a.deposed {
		a.deposed = true
		return nil
	}
	a.depose(why)
	return a.done()
}

// GoAlone is the daemon's word that the witness and every standby are silent while sticky: the active goes on without them, once the flag is stored.
func (a *Active) GoAlone() []Action {
	if !a.leading || a.deposed || !a.facts.Sticky || a.flag != (Flag{}) {
		return nil
	}
	a.flag = Flag{a.facts.Epoch, a.facts.Gen}
	a.out = append(a.out, StoreAlone{a.flag})
	return a.done()
}

// AloneStored: the flag is durable.
func (a *Active) AloneStored(f Flag) []Action {
	if f == a.flag && f != (Flag{}) {
		a.flagStored = true
	}
	return a.done()
}

// Submitted, Written and Durable are the hot path of the own side: no allocation.
func (a *Active) Submitted(seq uint64) { a.last = seq }
func (a *Active) Written(seq uint64)   { a.written = max(a.written, seq) }
func (a *Active) Durable(seq uint64)   { a.durable = max(a.durable, seq) }

// Wanted notes that a Sync up to seq waits.
func (a *Active) Wanted(seq uint64) { a.wanted = max(a.wanted, seq) }

// Outstanding is up to where a Sync was asked for last: a new session is asked at once.
func (a *Active) Outstanding() uint64 { return a.wanted }

// Connected begins a session with another run; its copy is being compared.
func (a *Active) Connected(now cluster.Instant, r Run, session uint64) []Action {
	if a.facts.Inc(r.Member) != r.Inc {
		a.out = append(a.out, Drop{r.Member, session, fmt.Sprintf("run %d of this member is not the admitted one", r.Inc)})
		return a.done()
	}
	m := a.member(r.Member)
	if m.session != 0 {
		a.out = append(a.out, Drop{m.Member, m.session, "a newer connection took its place"})
	}
	m.lost()
	m.Run, m.session, m.phase = r, session, Comparing
	return a.done()
}

// Compared says what the copy of the session needs. Go follows when it may be done: what takes something away from a copy waits until the log does
// not call it in sync any more.
func (a *Active) Compared(now cluster.Instant, no cluster.MemberNo, session uint64, p Plan) []Action {
	if m := a.of(no, session); m != nil && m.phase == Comparing {
		m.plan = p
		a.advance(now, m)
	}
	return a.done()
}

// Ack is what a follower reports (no allocation for one that is in sync; MayAck and MaySync may have grown after every call): the epoch of the session's frames, what it has accepted and made durable since it was compared, and whether its copy is whole.
func (a *Active) Ack(now cluster.Instant, no cluster.MemberNo, session uint64, epoch cluster.Epoch, accepted, durable uint64, whole bool) []Action {
	m := a.of(no, session)
	if m == nil || epoch != a.facts.Epoch || m.phase < CatchUp {
		return nil
	}
	if accepted > m.accepted || durable > m.durable || !m.counted {
		m.since = 0
	}
	m.counted = true
	m.accepted, m.durable, m.whole = max(m.accepted, accepted), max(m.durable, durable), whole
	if m.since == 0 && a.owes(m) {
		m.since = now
	}
	if m.phase == InSync {
		return nil
	}
	a.advance(now, m)
	return a.done()
}

// Lost ends a session.
func (a *Active) Lost(now cluster.Instant, no cluster.MemberNo, session uint64) []Action {
	if m := a.of(no, session); m != nil {
		m.lost()
		a.advance(now, m)
	}
	return a.done()
}

// fallBack lets a member show anew that it keeps up.
func (m *member) fallBack(last uint64) { m.phase, m.mark, m.waits = CatchUp, last, false }

func (m *member) lost() {
	m.session, m.phase, m.plan, m.counted, m.accepted, m.durable, m.whole, m.askedAt = 0, Absent, 0, false, 0, 0, false, 0
}

// Tick is to be called some times in a second.
func (a *Active) Tick(now cluster.Instant) []Action {
	if !a.leading || a.deposed {
		return nil
	}
	for _, no := range a.facts.InSync.Without(a.self.Member).List() {
		a.member(no)
	}
	for i := range a.members {
		m := &a.members[i]
		switch owes := a.owes(m); {
		case !owes:
			m.since = 0
		case m.since == 0:
			m.since = now
		}
		if m.askedAt != 0 && now.Sub(m.askedAt) >= repeat {
			m.askedAt = 0
		}
		a.advance(now, m)
	}
	return a.done()
}

// advance moves a member to the phase that it has reached.
func (a *Active) advance(now cluster.Instant, m *member) {
	in := a.facts.InSync.Has(m.Member)
	if a.deposed || !a.leading {
		return
	}
	if m.waits && !in && m.proposed == (Flag{}) && m.phase < AtTail {
		m.waits = false // nothing is on its way that could make it in sync
	}
	ask := func(x Action) {
		if m.askedAt == 0 {
			m.askedAt = now
			a.out = append(a.out, x)
		}
	}
	switch m.phase {
	case Absent:
		if m.waits && !in {
			ask(WantDegrade{m.Member, "it was lost while it was about to be in sync"})
		}
	case Comparing:
		switch {
		case m.plan == 0:
		case m.plan != PlanTail && (in || m.waits || a.flagStored):
			if !a.flagStored {
				ask(WantDegrade{m.Member, "its copy must be changed before it can follow"})
			}
		default:
			m.phase, m.mark = CatchUp, a.last
			if m.plan == PlanResync {
				m.phase = Resync
			}
			a.out = append(a.out, Go{m.Member, m.session})
		}
	case CatchUp, Resync:
		if m.whole && m.counted && m.accepted >= m.mark && m.accepted+tailLag >= a.last {
			m.phase, m.mark, m.askedAt = AtTail, a.last, 0
			if !in {
				a.out = append(a.out, AskSync{m.Member, m.mark})
			}
			a.advance(now, m)
		}
	case AtTail, Waiting, InSync:
		a.atTail(now, m, in, ask)
	}
}

func (a *Active) atTail(now cluster.Instant, m *member, in bool, ask func(Action)) {
	switch {
	case in:
		m.phase, m.waits = InSync, true
	case m.phase == InSync:
		m.fallBack(a.last)
	case !a.counts || a.flagStored || !m.counted || !m.whole || m.durable < m.mark:
	case m.phase == AtTail: // its disk keeps up too: from now on nothing is acknowledged without it
		m.phase, m.waits, m.mark, m.askedAt = Waiting, true, a.last, 0
		a.out = append(a.out, AskSync{m.Member, m.mark})
	case m.phase == Waiting:
		m.proposed = Flag{a.facts.Epoch, a.facts.Gen}
		ask(CaughtUp{m.Run, a.facts.Epoch, a.facts.Gen})
	}
}

// needed says whether nothing is acknowledged without m.
func (a *Active) needed(m *member) bool {
	return a.counts && !a.flagStored && (m.waits || a.facts.InSync.Has(m.Member))
}

// Needed says whether nothing is acknowledged without this member.
func (a *Active) Needed(no cluster.MemberNo) bool {
	for i := range a.members {
		if a.members[i].Member == no {
			return a.needed(&a.members[i])
		}
	}
	return false
}

// OnOwnDisk says that operations count when they are on the own disk, because nobody else is needed.
func (a *Active) OnOwnDisk() bool {
	if !a.Leads() || !a.aloneDisk {
		return false
	}
	_, _, alone := a.held()
	return alone
}

// owes says whether something waits for m.
func (a *Active) owes(m *member) bool {
	return a.needed(m) && (m.accepted < a.last || m.durable < a.wanted)
}

func (a *Active) done() []Action {
	if !a.deposed && a.leading {
		a.out = append(a.out, Settled{})
	}
	out := a.out
	a.out = nil
	return out
}

// held is up to where every needed member holds the operations, in memory and on disk. alone says that none is needed.
func (a *Active) held() (accepted, durable uint64, alone bool) {
	accepted, durable, alone = a.last, a.last, true
	need := a.facts.InSync.Without(a.self.Member)
	for i := range a.members {
		m := &a.members[i]
		need = need.Without(m.Member)
		if !a.needed(m) {
			continue
		}
		alone = false
		if !m.counted {
			return 0, 0, false
		}
		accepted, durable = min(accepted, m.accepted), min(durable, m.durable)
	}
	if need != 0 && a.counts && !a.flagStored {
		return 0, 0, false // one of whom nothing was heard yet
	}
	return accepted, durable, alone
}

// MayAck is up to where operations of a volume of this mode are done: they may be applied and acknowledged.
func (a *Active) MayAck(mode Mode) uint64 {
	if !a.leading {
		return 0
	}
	if mode != Sync {
		if a.deposed {
			return 0
		}
		return a.written
	}
	if !a.deposed {
		accepted, _, alone := a.held()
		ok := min(accepted, a.written)
		if alone && a.aloneDisk {
			ok = min(ok, a.durable)
		}
		a.ackFloor = max(a.ackFloor, ok)
	}
	return a.ackFloor
}

// MaySync is up to where a Sync of a volume of this mode is done.
func (a *Active) MaySync(mode Mode) uint64 {
	if !a.leading {
		return 0
	}
	if mode == Async {
		return a.durable
	}
	if !a.deposed {
		_, durable, _ := a.held()
		a.syncFloor = max(a.syncFloor, min(durable, a.durable))
	}
	return a.syncFloor
}

// Alone says whether the active has gone on alone while sticky: Unsticky must carry it.
func (a *Active) Alone() bool { return a.flag != Flag{} }

// Leads says whether the tenure is on.
func (a *Active) Leads() bool { return a.leading && !a.deposed }

// Facts is what the log said last.
func (a *Active) Facts() *Facts { return &a.facts }

// Replica is what is known of a member's copy.
type Replica struct {
	Run
	Phase             Phase
	Needed            bool
	Accepted, Durable uint64
	Stalled           time.Duration // how long it has owed an acknowledgement without any progress
}

// Replicas lists the members that were heard of or are needed.
func (a *Active) Replicas(now cluster.Instant, out []Replica) []Replica {
	for i := range a.members {
		m := &a.members[i]
		r := Replica{Run: m.Run, Phase: m.phase, Needed: a.needed(m), Accepted: m.accepted, Durable: m.durable}
		r.Member = m.Member
		if m.since != 0 {
			r.Stalled = now.Sub(m.since)
		}
		out = append(out, r)
	}
	return out
}

// Lowest is the lowest sequence that a connected follower still needs from the journal; last if none.
func (a *Active) Lowest() uint64 {
	low := a.last
	for i := range a.members {
		if m := &a.members[i]; m.session != 0 && m.phase >= CatchUp {
			low = min(low, m.accepted)
		}
	}
	return low
}

func (a *Active) of(no cluster.MemberNo, session uint64) *member {
	for i := range a.members {
		if m := &a.members[i]; m.Member == no && m.session == session && session != 0 {
			return m
		}
	}
	return nil
}

// member finds or makes the entry of a member. Pointers to others are void after it.
func (a *Active) member(no cluster.MemberNo) *member {
	for i := range a.members {
		if a.members[i].Member == no {
			return &a.members[i]
		}
	}
	a.members = append(a.members, member{Run: Run{Member: no}})
	return &a.members[len(a.members)-1]
}
