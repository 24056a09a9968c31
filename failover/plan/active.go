package plan

import (
	"fmt"
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

// Refusal is an order that is not carried out, with the way on.
type Refusal struct {
	What string // "switchover of web to b refused"
	Why  string
	Do   string
}

func (r *Refusal) Error() string { return r.What + ": " + r.Why + "; " + r.Do }

// Active is what the active knows of its own tenure.
type Active struct {
	GaveUp string                             // the processes or checks have failed for good; the text says how
	Heard  map[cluster.MemberNo]time.Duration // for how long each other node has been heard without a break
}

// Leave says whether the active should give the service up of its own accord, to whom and why.
func (v *View) Leave(s *Service, a Active) (to *Member, kind, why string) {
	self := v.Member(v.Self)
	switch {
	case self == nil || s.Paused || s.Lock.Held || s.Spec == nil:
		return nil, "", ""
	case a.GaveUp != "" && v.asks(s) == "":
		if v.Damping > 0 && s.Moves >= v.Damping {
			return nil, "", ""
		}
		if to := v.other(s.unstuck(), true); to != nil {
			return to, "failover", a.GaveUp
		}
	case !slices.Contains(s.Spec.Nodes, self.Name):
		if to := v.other(s.unstuck(), false); to != nil {
			return to, "drain", self.Name + " is no longer one of its nodes"
		}
	case self.Drained:
		if to := v.other(s.unstuck(), false); to != nil {
			return to, "drain", self.Name + " is drained"
		}
	case s.Spec.Failback == "automatic" && len(s.Spec.Nodes) > 0 && s.Spec.Nodes[0] != self.Name:
		pref := v.byName(s.Spec.Nodes[0])
		if pref == nil || a.Heard[pref.No] < s.Spec.FailbackAfter {
			return nil, "", ""
		}
		if why, _ := v.rank(s, pref, pref.Name, 0); why == "" && !s.Reports[pref.No].Unhealthy {
			return pref, "failback", fmt.Sprintf("%s, the preferred node, has been well for %s", pref.Name, s.Spec.FailbackAfter)
		}
	}
	return nil, "", ""
}

// unstuck is the service as it is when the active gives it up itself: before its Release it ends the state in which nobody else may take it, because the
// witness was lost.
func (s *Service) unstuck() *Service {
	if !s.Lock.Sticky {
		return s
	}
	out, l := *s, *s.Lock
	l.Sticky = false
	out.Lock = &l
	return &out
}

// other is the best node beside the active that can take the service now.
func (v *View) other(s *Service, healthy bool) *Member {
	var best *Member
	bestRank := -1
	for i, name := range s.Spec.Nodes {
		m := v.byName(name)
		why, rank := v.rank(s, m, name, i)
		if why != "" || m.No == v.Self || (healthy && s.Reports[m.No].Unhealthy) {
			continue
		}
		if rank > bestRank {
			best, bestRank = m, rank
		}
	}
	return best
}

// Successor is the best other node that can take over at once from an active that cannot go on.
func (v *View) Successor(s *Service) *Member { return v.other(s, true) }

// Switchover checks an operator's order to move the service to a named node, or to the best one, and answers where it goes.
func (v *View) Switchover(s *Service, to string) (*Member, *Refusal) {
	what := fmt.Sprintf("switchover of %s refused", s.Name)
	if to != "" {
		what = fmt.Sprintf("switchover of %s to %s refused", s.Name, to)
	}
	no := func(why, do string) (*Member, *Refusal) { return nil, &Refusal{What: what, Why: why, Do: do} }
	self := v.Member(v.Self)
	switch {
	case s.Stopped:
		return no("the service is stopped", "start it: hanode service start "+s.Name)
	case s.Lock.Held:
		return no("the service is held: "+s.HeldWhy, "release it: hanode service clear "+s.Name)
	case self != nil && to == self.Name:
		return no(to+" is the active already", "nothing to do: hanode status")
	}
	s = s.unstuck()
	if to == "" {
		m := v.other(s, true)
		if m == nil {
			return no("no other node can take it now", "see which node is missing: hanode status")
		}
		return m, nil
	}
	m := v.byName(to)
	if m == nil {
		return no(fmt.Sprintf("there is no node %s", to), "choose one of the members: hanode member list")
	}
	why, _ := v.rank(s, m, to, 0)
	if why != "" && s.Lock.MayHold(v.Group, lock.Holder{Node: m.No, Inc: m.Inc}) == lock.NotInSync {
		return no(why, "wait until hanode status shows "+to+" in sync (hanode wait "+s.Name+" --for in-sync), or accept the loss: hanode force "+s.Name+" --to "+to+" --accept-loss")
	}
	if why != "" {
		return no(why, "wait until hanode status shows it ready, or choose another node")
	}
	if s.Reports[m.No].Unhealthy {
		return no("the service's processes or checks have failed on "+to+" of late", "mend them there, then hanode service clear "+s.Name)
	}
	return m, nil
}

// Outlook is what happens if the active dies now: protected, with who takes over, or not, and why.
type Outlook struct {
	Protected bool
	Text      string   // "b takes over by itself", "DOWN until a returns"
	Reasons   []string // no-standby, standby-behind, witness-lost, approval-needed, paused, held
	Standby   cluster.MemberNo
}

// Outlook judges one service from the active's or the leader's view.
func (v *View) Outlook(s *Service) Outlook {
	h := s.Lock.Holder
	name := v.name(h.Node)
	var o Outlook
	if s.Spec == nil || h.Node == 0 {
		return Outlook{Text: "-", Reasons: []string{"no-standby"}}
	}
	var best *Member
	bestRank := -1
	for i, n := range s.Spec.Nodes {
		m := v.byName(n)
		if m == nil || m.No == h.Node {
			continue
		}
		if why, rank := v.rank(s, m, n, i); why == "" && rank > bestRank {
			best, bestRank = m, rank
		} else if m.Own < v.Timing.Kick && s.Lock.MayHold(v.Group, lock.Holder{Node: m.No, Inc: m.Inc}) == lock.NotInSync {
			o.Reasons = append(o.Reasons, "standby-behind")
		}
	}
	if best != nil {
		o.Standby = best.No
	}
	if s.Lock.Sticky || v.witnessSilent() || (best != nil && !v.survivesLossOf(h.Node)) {
		o.Reasons = append(o.Reasons, "witness-lost")
	}
	if s.Paused {
		o.Reasons = append(o.Reasons, "paused")
	}
	if s.Lock.Held {
		o.Reasons = append(o.Reasons, "held")
	}
	if best == nil && len(o.Reasons) == 0 {
		o.Reasons = append(o.Reasons, "no-standby")
	}
	switch {
	case s.Lock.Held:
		o.Text = "held: " + s.HeldWhy
	case best != nil && len(s.Spec.Approvers) > 0 && !s.Paused && s.Spec.Failover != "manual":
		o.Text = best.Name + ", after approval"
		o.Reasons = append(o.Reasons, "approval-needed")
	case best != nil && (s.Paused || s.Spec.Failover == "manual"):
		o.Text = best.Name + ", by your order"
		if !s.Paused {
			o.Reasons = append(o.Reasons, "approval-needed")
		}
	case best != nil && len(o.Reasons) == 0:
		o.Protected, o.Text = true, best.Name+" takes over by itself"
	default:
		o.Text = "DOWN until " + name + " returns"
	}
	return o
}

// witnessSilent says whether a witness that votes is heard by nobody.
func (v *View) witnessSilent() bool {
	for i := range v.Members {
		if m := &v.Members[i]; m.Role == cluster.RoleWitness && v.Group.IsVoter(m.No) && v.Silent(m.No) {
			return true
		}
	}
	return false
}

// survivesLossOf says whether the voters that are heard, without this member, are still a majority.
func (v *View) survivesLossOf(n cluster.MemberNo) bool {
	var alive cluster.MemberSet
	for i := range v.Members {
		if m := &v.Members[i]; m.No != n && m.Age < v.Timing.Kick {
			alive = alive.With(m.No)
		}
	}
	return v.Group.Majority(alive)
}
