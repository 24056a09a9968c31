// Package plan decides what is to become of each service: observations, agreed state and policy in; moves and reasons out.
//
// It is pure: no clock, no I/O, no goroutine; the same view gives the same verdict, so that any decision can be replayed from what was
// recorded with it. It never makes anything safe: that two members are never active is the business of cluster/lock and cluster/lease, which
// refuse what plan may wrongly propose. It decides only what is wise.
package plan

import (
	"fmt"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

// Never is the age of a member that was not heard since the observer started.
const Never = time.Duration(1<<62 - 1)

// Member is what the deciding member knows of another one, or of itself.
type Member struct {
	No      cluster.MemberNo
	Name    string
	Role    cluster.Role
	Site    string
	Inc     cluster.Incarnation // the admitted one
	Age     time.Duration       // since anybody heard it; 0 for oneself
	Own     time.Duration       // since the deciding member itself heard it
	Drained bool
}

// Report is what a node says of a service on itself, in its beats.
type Report struct {
	Ready     bool // its processes run (hot), or nothing stands against starting them
	Unhealthy bool // its processes or checks have failed here of late
	Serving   bool // holds Epoch and has not ended its tenure
	Epoch     cluster.Epoch
}

// Service is everything that is known of one service.
type Service struct {
	No       cluster.ServiceNo
	Name     string
	Spec     *cluster.ServiceSpec
	Lock     *lock.Service
	Stopped  bool
	Paused   bool
	HeldWhy  string
	Moves    int                         // automatic failovers within the damping window
	Reports  map[cluster.MemberNo]Report // of the members that were heard of late
	Released bool                        // the holder has released its epoch
	Target   cluster.MemberNo            // the member that the Release names; 0: none
	Kind     string                      // what the Release is for: switchover, failover, failback, drain, stop; empty: fenced
	Why      string                      // the releasing side's reason
	By       string                      // who ordered it

	Lag       map[cluster.MemberNo]int64 // bytes that each other copy of the data lacks, on the active
	PowerLost bool                       // every copy that was in sync was rebooted: the one that has found most durable goes on
	Durable   []lock.Durable             // what they have found
	Approved  bool                       // an approver agreed to the failover from this epoch
	Approver  string                     // who said so, or declined it; "": nobody has said anything
}

// View is one moment, as the member that decides sees it.
type View struct {
	Self    cluster.MemberNo
	Up      time.Duration // since this member's daemon started
	Timing  cluster.Timing
	Group   *lock.Group
	Members []Member
	Damping int // automatic failovers allowed within the window

	Others   []Neighbour              // all services, if any of them says something of another one, or of its load; else none
	Capacity map[cluster.MemberNo]int // of the nodes for which the spec says it
}

// Verdict is what to do with one service: a move, or to leave it and why.
type Verdict struct {
	Move      bool
	To        lock.Holder
	Ask       cluster.MemberSet // whose promises to collect
	Kind      string            // start, failover, switchover, failback, drain, return
	Automatic bool              // counts for the damping
	Hold      bool              // too many automatic failovers: hold the service
	Sentence  string            // the reason, for people: why it moves, or why it does not
	WhyNot    []string          // why not the other nodes
	By        string
}

// coldSettle is how long after its own start a member waits for the previous active of a service without data before it
// settles for another node: long enough for machines that were switched on together.
const coldSettle = 5 * time.Second

// Member returns the member with this number.
func (v *View) Member(n cluster.MemberNo) *Member {
	for i := range v.Members {
		if v.Members[i].No == n {
			return &v.Members[i]
		}
	}
	return nil
}

func (v *View) name(n cluster.MemberNo) string {
	if m := v.Member(n); m != nil {
		return m.Name
	}
	return "nobody"
}

// Silent says that nobody has heard a member for the time after which the group acts.
func (v *View) Silent(n cluster.MemberNo) bool {
	m := v.Member(n)
	return m == nil || m.Age >= v.Timing.Kick
}

// Decide is the leader's verdict on one service.
func (v *View) Decide(s *Service) Verdict {
	switch {
	case s.Spec == nil || s.Spec.Run == "everywhere":
		return Verdict{Sentence: "runs everywhere, without a lease"}
	case s.Stopped:
		return Verdict{Sentence: "stopped by order"}
	}
	h := s.Lock.Holder
	holder := v.Member(h.Node)
	rep := s.Reports[h.Node]
	ended := rep.Epoch == s.Lock.Epoch && !rep.Serving // it has fenced itself, and could not release
	if h.Node != 0 && !s.Released && holder != nil && holder.Inc == h.Inc && !v.Silent(h.Node) && !ended {
		return Verdict{Sentence: v.name(h.Node) + " is active and is heard"}
	}
	planned := s.Released && s.Kind != "" && s.Kind != "stop"
	switch {
	case s.Lock.Held:
		return Verdict{Sentence: "held: " + s.HeldWhy}
	case s.Paused && h.Node != 0 && !planned && !s.Approved:
		return Verdict{Sentence: "automatic actions are paused"}
	case h.Node != 0 && !planned && v.asks(s) != "" && !v.mayReturn(s):
		return Verdict{Sentence: v.asks(s)}
	}
	automatic := h.Node != 0 && !(planned && s.By != "policy") && !s.Approved
	if automatic && v.Damping > 0 && s.Moves >= v.Damping {
		return Verdict{Hold: true, Sentence: fmt.Sprintf("%d automatic failovers of late: held until hanode service clear %s", s.Moves, s.Name)}
	}
	to, whyNot := v.choose(s)
	if h.Node != 0 && !planned && v.asks(s) != "" {
		to, whyNot, automatic = v.Member(h.Node), nil, false
	}
	if to == nil {
		return Verdict{WhyNot: whyNot, Sentence: "nobody can take it: " + strings.Join(whyNot, "; ")}
	}
	out := Verdict{Move: true, To: lock.Holder{Node: to.No, Inc: to.Inc}, Automatic: automatic && to.No != h.Node, WhyNot: whyNot, By: "policy"}
	out.Ask = v.Group.Voters()
	if h.Node == 0 {
		out.Ask = 0 // no lease was ever given: nobody has anything to promise
	}
	if holder != nil && holder.Inc == h.Inc && !s.Released {
		out.Ask = out.Ask.Without(h.Node) // a holder that is asked stops; this one is silent
	}
	v.tell(&out, s, holder, to)
	if s.Released && s.By != "" {
		out.By = s.By
	}
	if s.Approved && to.No != h.Node {
		out.By = s.Approver
		out.Sentence += "; " + s.Approver + " agreed to it"
	}
	return out
}

// tell words the reason.
func (v *View) tell(out *Verdict, s *Service, holder, to *Member) {
	h := s.Lock.Holder
	switch {
	case h.Node == 0:
		out.Kind, out.Sentence = "start", fmt.Sprintf("%s starts %s: it is the first of its nodes that can", to.Name, s.Name)
	case s.Released && s.Kind != "" && s.Kind != "stop" && to.No != h.Node:
		out.Kind = s.Kind
		out.Sentence = fmt.Sprintf("%s took over because %s gave it up: %s", to.Name, v.name(h.Node), orElse(s.Why, s.Kind))
	case s.Released && to.No != h.Node:
		out.Kind = "failover"
		out.Sentence = fmt.Sprintf("%s took over because %s, the active, had stopped serving: %s", to.Name, v.name(h.Node), orElse(s.Why, "its lease ran out"))
	case to.No == h.Node:
		out.Kind, out.Automatic = "return", false
		out.Sentence = fmt.Sprintf("%s is active again: it was the active before and can serve", to.Name)
	case holder != nil && holder.Inc != h.Inc:
		out.Kind = "failover"
		out.Sentence = fmt.Sprintf("%s took over because hanode on %s, the active, was started anew", to.Name, holder.Name)
	default:
		out.Kind = "failover"
		out.Sentence = fmt.Sprintf("%s took over because %s, the active, was heard by nobody for %s", to.Name, v.name(h.Node), ageText(holder))
		if s.Lock.Data {
			out.Sentence += fmt.Sprintf(", and %s held every acknowledged write", to.Name)
		}
	}
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func ageText(m *Member) string {
	if m == nil || m.Age == Never {
		return "as long as this member runs"
	}
	return m.Age.Round(time.Millisecond).String()
}

// choose picks who is to take the service: the member that the Release names if it can; else the first that can, those
// ready before those that are not, in the order of the spec. It answers why not each of the others.
func (v *View) choose(s *Service) (*Member, []string) {
	var best *Member
	bestRank := -1
	var whyNot []string
	for i, name := range s.Spec.Nodes {
		m := v.byName(name)
		why, rank := v.rank(s, m, name, i)
		if why != "" {
			whyNot = append(whyNot, why)
			continue
		}
		if rank > bestRank {
			if best != nil {
				whyNot = append(whyNot, best.Name+" could, but "+name+" is the better choice")
			}
			best, bestRank = m, rank
		} else {
			whyNot = append(whyNot, name+" could, but "+best.Name+" is the better choice")
		}
	}
	return best, whyNot
}

func (v *View) byName(name string) *Member {
	for i := range v.Members {
		if v.Members[i].Name == name {
			return &v.Members[i]
		}
	}
	return nil
}

// rank says why a node cannot take the service, or how good a choice it is.
func (v *View) rank(s *Service, m *Member, name string, place int) (string, int) {
	h := s.Lock.Holder
	switch {
	case m == nil:
		return name + " has not joined", 0
	case m.Own >= v.Timing.Kick:
		return name + " is not heard", 0
	case s.Lock.Sticky && m.No != h.Node:
		return fmt.Sprintf("%s may not: the witness was lost and %s may be going on alone (hanode force %s)", name, v.name(h.Node), s.Name), 0
	}
	to := lock.Holder{Node: m.No, Inc: m.Inc}
	switch r := s.Lock.MayHold(v.Group, to); {
	case r == lock.Rebooted && s.PowerLost && s.Lock.Highest(v.Group, to, s.Durable):
	case r == lock.Rebooted && s.PowerLost:
		return fmt.Sprintf("%s: all copies of the data lost their power, and %d of %d have said what they found; the one with most goes on", name, len(s.Durable), s.Lock.InSync.Len()), 0
	case r == lock.NotInSync:
		return v.behind(s, m), 0
	case r != lock.Accepted:
		return name + ": " + r.String(), 0
	}
	if why := v.together(s, m); why != "" {
		return why, 0
	}
	if wait := v.coldWait(s); m.No != h.Node && wait > 0 {
		return fmt.Sprintf("%s waits up to %s for %s, the previous active", name, wait.Round(time.Second), v.name(h.Node)), 0
	}
	rep, known := s.Reports[m.No]
	rank := 100 - place
	switch {
	case m.No == s.Target:
		rank += 10000
	case m.Drained:
		return name + " is drained", 0
	case known && rep.Unhealthy && !(m.No == h.Node && len(s.Spec.Nodes) == 1):
		rank -= 1000 // only where nobody else can
	}
	if known && rep.Ready {
		rank += 1000
	}
	if m.No == h.Node {
		// The previous active is preferred after a full outage; while the others kept running, a standby is quicker.
		if v.Up < s.Spec.ColdStartWait && m.Inc != h.Inc || s.Released && s.Kind == "stop" {
			rank += 1500 // more than being ready is worth
		} else {
			rank -= 200
		}
	}
	return "", rank + 2000
}

// behind says how far a copy of the data is from being able to take over.
func (v *View) behind(s *Service, m *Member) string {
	if lag := s.Lag[m.No]; lag > 0 {
		return fmt.Sprintf("%s is not in sync: its copy of the data is %s behind", m.Name, bytesText(lag))
	}
	return m.Name + " is not in sync: its copy of the data may lack acknowledged writes"
}

func bytesText(n int64) string {
	switch {
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}

// coldWait is how long to wait still for the previous active after a full outage: this member started only just now, and has never heard it
// since, or hears that it is coming up, too.
func (v *View) coldWait(s *Service) time.Duration {
	m := v.Member(s.Lock.Holder.Node)
	if m == nil || s.Released {
		return 0
	}
	rep := s.Reports[m.No]
	comingUp := m.Inc != s.Lock.Holder.Inc && !v.Silent(m.No) && !rep.Ready && !rep.Unhealthy
	if m.Age != Never && !comingUp {
		return 0
	}
	wait := s.Spec.ColdStartWait
	if !s.Lock.Data {
		wait = min(wait, coldSettle)
	}
	return max(wait-v.Up, 0)
}
