package replica

import (
	"fmt"

	"github.com/hanode/hanode/cluster"
)

// Verdict is what a standby says to a frame.
type Verdict uint8

const (
	Accept Verdict = iota
	Later          // it may be right, but this member's log does not say so yet, or it has promised the epoch: try again
	Refuse         // never: the sender must be told the epoch that Standby.Epoch names
	Gap            // it does not follow what this copy holds: compare again
)

func (v Verdict) String() string {
	return [...]string{"accept", "later", "refuse", "gap"}[min(int(v), 3)]
}

// Standby is the view of a member that follows.
type Standby struct {
	facts  Facts
	header cluster.Epoch // durable
	last   uint64        // the last sequence in its journal

	from  Run // of the session; zero: none
	gen   cluster.Generation
	epoch cluster.Epoch
}

// NewStandby makes the view of a copy with this durable header whose journal ends with last.
func NewStandby(header cluster.Epoch, last uint64) *Standby {
	return &Standby{header: header, last: last}
}

// SetFacts takes what the log says now.
func (s *Standby) SetFacts(f Facts) {
	if !f.older(&s.facts) {
		closed := max(s.facts.Closed, f.Closed)
		s.facts = f
		s.facts.Closed = closed
	}
}

// Epoch is the highest that this member knows of.
func (s *Standby) Epoch() cluster.Epoch { return max(s.facts.Epoch, s.header) }

// Begin judges a source's wish to be followed, in the epoch that it gives.
func (s *Standby) Begin(from Run, epoch cluster.Epoch) (Verdict, string) {
	v, why := s.judge(from, epoch)
	if v == Accept {
		s.from, s.epoch, s.gen = from, epoch, 0
	}
	return v, why
}

func (s *Standby) judge(from Run, epoch cluster.Epoch) (Verdict, string) {
	switch {
	case epoch < s.facts.Epoch || epoch < s.header:
		return Refuse, fmt.Sprintf("epoch %d is over: this member knows of epoch %d", epoch, s.Epoch())
	case epoch > s.facts.Epoch:
		return Later, fmt.Sprintf("this member's log has not come to epoch %d yet", epoch)
	case from != s.facts.Holder:
		return Refuse, fmt.Sprintf("member %d run %d does not hold epoch %d", from.Member, from.Inc, epoch)
	case epoch <= s.facts.Closed:
		return Later, fmt.Sprintf("this member has promised epoch %d away", epoch)
	}
	return Accept, ""
}

// Based says that the copy now ends with last, after a comparison or a resync.
func (s *Standby) Based(last uint64) { s.last = last }

// End ends the session.
func (s *Standby) End() { s.from = Run{} }

// Frame judges a frame of the session with the records first to last. store says that epoch and history must be made durable, and Stored be called, before it is
// accepted.
func (s *Standby) Frame(epoch cluster.Epoch, gen cluster.Generation, first, last uint64) (v Verdict, store bool, why string) {
	if s.from == (Run{}) {
		return Gap, false, "no session"
	}
	if v, why = s.judge(s.from, epoch); v != Accept {
		return v, false, why
	}
	if epoch < s.epoch || epoch == s.epoch && gen < s.gen {
		return Refuse, false, fmt.Sprintf("epoch %d generation %d after epoch %d generation %d", epoch, gen, s.epoch, s.gen)
	}
	if first != s.last+1 || last+1 < first {
		return Gap, false, fmt.Sprintf("operations %d to %d do not follow %d", first, last, s.last)
	}
	store = epoch > s.header || gen > s.gen
	s.epoch, s.gen = epoch, gen
	return Accept, store, ""
}

// Stored: the header is durable.
func (s *Standby) Stored(epoch cluster.Epoch) { s.header = max(s.header, epoch) }

// Took: the records up to last are in the journal.
func (s *Standby) Took(last uint64) { s.last = last }

// Session is the epoch and generation of the last accepted frame.
func (s *Standby) Session() (Run, cluster.Epoch, cluster.Generation) { return s.from, s.epoch, s.gen }

// Facts is what the log said last.
func (s *Standby) Facts() *Facts { return &s.facts }

// Compare says what must happen so that a follower can follow a source. from and last describe the follower's copy (its history and the last record of its
// journal), reach is the first record that the source's journal still has, dirty says that the follower's tree may hold effects of
// operations beyond what it reports (an unclean end in another boot, an unfinished resync), applied up to which record the follower may have
// applied. fork is the last record that both hold.
func Compare(source History, sourceLast, reach uint64, follower History, last, applied uint64, dirty bool) (p Plan, fork uint64) {
	fork, ok := Fork(source, sourceLast, follower, last)
	switch {
	case !ok || dirty || fork+1 < reach || applied > fork:
		return PlanResync, fork
	case fork < last:
		return PlanRewind, fork
	}
	return PlanTail, fork
}
