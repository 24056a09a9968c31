// Package lock is the cluster lock: for each service the record of who may be active and in which epoch, and the rules by
// which the replicated log changes it. It is the per-service part of the replicated state machine.
//
// It is pure and deterministic: no clock, no I/O, no map order. Every command carries the state that it is based on and is a
// compare-and-set; a command that is not accepted changes nothing and answers with a Result that says why.
//
// Why at most one member is active (docs/protocol.md, sections 2 and 3): an epoch is held by one incarnation of one member.
// The next epoch is granted to another one only when the holder itself has promised or released its epoch, or when a majority of
// the voters (of every voter set that is not yet settled) has promised never to extend it again; and a voter promises only after
// every lease that it had extended has run out. A promise names the incarnation that gave it, and counts only while that is the one
// which the log has admitted: a voter that restarted has forgotten what it promised.
package lock

import (
	"fmt"
	"time"

	"github.com/hanode/hanode/cluster"
)

// Holder is one incarnation of one member. The zero Holder is nobody.
type Holder struct {
	Node cluster.MemberNo    `pb:"1"`
	Inc  cluster.Incarnation `pb:"2"`
}

// Promise is a member's word, given in one incarnation, that it will not extend the epoch that it was asked about.
// A Release counts as the holder's promise.
type Promise = Holder

// MemberBoot remembers in which boot of its host a member became in-sync.
type MemberBoot struct {
	Node cluster.MemberNo `pb:"1"`
	Boot cluster.BootID   `pb:"2"`
}

// Admission is what the log knows of a member's present run.
type Admission struct {
	Inc  cluster.Incarnation `pb:"1"`
	Boot cluster.BootID      `pb:"2"`
}

// VoterSet is one numbered set of voters.
type VoterSet struct {
	C   uint64            `pb:"1"`
	Set cluster.MemberSet `pb:"2"`
}

// Group is what the records of all services share: who is admitted, and who votes.
type Group struct {
	Admitted []Admission `pb:"1"` // indexed by MemberNo
	// Sets are the voter sets that count: the settled one first, then each that a change has brought and that is not yet
	// settled. Between a change and its settling a Grant, and a lease, needs a majority of every one of them.
	Sets []VoterSet `pb:"2"`
}

// Clone returns a copy that shares nothing with g.
func (g *Group) Clone() Group {
	return Group{Admitted: append([]Admission(nil), g.Admitted...), Sets: append([]VoterSet(nil), g.Sets...)}
}

// Admission returns what is known of a member; the zero Admission for one that never joined.
func (g *Group) Admission(n cluster.MemberNo) Admission {
	if int(n) < len(g.Admitted) {
		return g.Admitted[n]
	}
	return Admission{}
}

// C is the number of the newest voter set.
func (g *Group) C() uint64 {
	if len(g.Sets) == 0 {
		return 0
	}
	return g.Sets[len(g.Sets)-1].C
}

// IsVoter says whether n has a vote in the newest set.
func (g *Group) IsVoter(n cluster.MemberNo) bool {
	return len(g.Sets) > 0 && g.Sets[len(g.Sets)-1].Set.Has(n)
}

// Voters is the union of the sets that count.
func (g *Group) Voters() cluster.MemberSet {
	var s cluster.MemberSet
	for _, v := range g.Sets {
		s |= v.Set
	}
	return s
}

// Majority says whether the members of s are a majority of every voter set that counts.
func (g *Group) Majority(s cluster.MemberSet) bool {
	if len(g.Sets) == 0 {
		return false
	}
	for _, v := range g.Sets {
		if (s & v.Set).Len() < v.Set.Majority() {
			return false
		}
	}
	return true
}

// Service is the lock record of one service.
type Service struct {
	Epoch    cluster.Epoch      `pb:"1"`
	Holder   Holder             `pb:"2"`
	Data     bool               `pb:"3"` // has a volume or a synchronous region: only an in-sync member may be granted it
	Eligible cluster.MemberSet  `pb:"4"` // the nodes of its list
	InSync   cluster.MemberSet  `pb:"5"`
	Boots    []MemberBoot       `pb:"6"` // of the in-sync members, in rising order
	Gen      cluster.Generation `pb:"7"`
	Sticky   bool               `pb:"8"`  // the active stays although the witness is lost; no Grant to another node
	Held     bool               `pb:"9"`  // no Grant may move it
	Forced   cluster.Epoch      `pb:"10"` // the last epoch that an operator's ForceGrant made; 0: none
	TTL      time.Duration      `pb:"11"`
	TTLMax   time.Duration      `pb:"12"` // the largest TTL of any epoch since the last Grant
	// Confirmed is the number of the newest voter set under which the present holder is known to count its
	// acknowledgements: it was granted after that set came, or has committed Confirm.
	Confirmed uint64 `pb:"13"`
}

// Clone returns a copy that shares nothing with s.
func (s *Service) Clone() Service {
	c := *s
	c.Boots = append([]MemberBoot(nil), s.Boots...)
	return c
}

// Result says what became of a command.
type Result uint8

const (
	Accepted        Result = iota
	StaleEpoch             // the service is in another epoch than the command is based on
	StaleGeneration        // ... in another generation
	NotHolder              // the command is the holder's and its sender is not, or no longer, the holder
	NotAdmitted            // an incarnation that the log has not admitted, or that a newer one has replaced
	NotInSync              // the target does not hold every acknowledged operation
	NotEligible            // the target is not in the service's list of nodes
	Rebooted               // the target's host was rebooted since it became in-sync: what it had not fsynced is gone
	IsHeld                 // an operator or the damping holds the service where it is
	IsSticky               // the witness is lost and the active may be going on alone
	NotSticky              //
	NoMajority             // neither the holder nor a majority of the voters has promised
	LowerTTL               // only a Grant may lower the TTL
	NotSettled             // a holder may still count under the older voter set
	Unknown                // no such member, service or voter set
	Conflict               // the name is taken, or the command contradicts the state
)

var resultText = [...]string{
	Accepted: "accepted", StaleEpoch: "another epoch by now", StaleGeneration: "another generation by now",
	NotHolder: "not the holder", NotAdmitted: "its run is not the admitted one", NotInSync: "not in sync",
	NotEligible: "not in the service's list of nodes", Rebooted: "rebooted since it was in sync", IsHeld: "held",
	IsSticky: "the active may be alone", NotSticky: "was not alone", NoMajority: "no majority has promised",
	LowerTTL: "a lower lease needs a new grant", NotSettled: "voters not settled", Unknown: "unknown", Conflict: "conflict",
}

func (r Result) String() string {
	if int(r) < len(resultText) {
		return resultText[r]
	}
	return fmt.Sprintf("result(%d)", uint8(r))
}

// Error makes a Result that is not Accepted usable as an error.
func (r Result) Error() string { return r.String() }
