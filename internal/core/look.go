package core

import (
	"maps"
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/failover/plan"
)

// Look is what this member knows of one service at a moment, for people to read.
type Look struct {
	Facts    *plan.Service
	Outlook  plan.Outlook
	Verdict  string // why nothing moves: the leader's verdict, or what this member's would be
	Phase    lease.Phase
	Deadline cluster.Instant // of the lease held here; 0: none
	Epoch    cluster.Epoch   // of that lease
	TTL      time.Duration
	Moving   bool
	GaveUp   string
}

// View is this moment as this member sees it. It is the caller's own, except for what it says of the agreed state.
func (c *Core) View(now cluster.Instant, wall int64) *plan.View {
	c.now, c.wall = max(c.now, now), wall
	v := *c.view()
	v.Members = slices.Clone(v.Members)
	c.neighbours(&v)
	return &v
}

// Look tells of one service.
func (c *Core) Look(view *plan.View, no cluster.ServiceNo) (Look, bool) {
	v := c.find(no)
	if v == nil {
		return Look{}, false
	}
	own := *c.facts(v) // facts uses its memory again
	own.Reports = maps.Clone(own.Reports)
	f := &own
	verdict := v.verdict
	if verdict == "" { // the leader may be a witness, which nobody can ask: what it thinks is what this member would think
		verdict = view.Decide(f).Sentence
	}
	return Look{Facts: f, Outlook: view.Outlook(f), Verdict: verdict, Phase: v.holder.Phase, Deadline: v.holder.Deadline(c.now), Epoch: v.holder.Epoch, TTL: v.holder.TTL,
		Moving: v.move != nil || v.order != nil, GaveUp: v.gaveUp}, true
}

// Holds says whether this member holds a service, or is about to release it.
func (c *Core) Holds(no cluster.ServiceNo) bool {
	v := c.find(no)
	return v != nil && c.tenure(v)
}

// Leader is who leads, as far as Raft knows here.
func (c *Core) Leader() cluster.MemberNo { return c.leader }

// Age is how long ago anybody heard a member; plan.Never: nobody has.
func (c *Core) Age(n cluster.MemberNo) time.Duration { return c.age(n) }

// QuorumLost is for how long no majority of the voters has been heard here, counted from the start of this run at most; 0: it is.
func (c *Core) QuorumLost(now cluster.Instant) time.Duration {
	if _, _, _, ok := c.Quorum(); ok {
		return 0
	}
	return now.Sub(max(c.quorumAt, c.started))
}

// Quorum says whether the voters that this member hears, with itself, are a majority of every set that counts.
func (c *Core) Quorum() (heard, total, needed int, ok bool) {
	g := &c.st.Group
	if len(g.Sets) == 0 {
		return 0, 0, 0, false
	}
	newest := g.Sets[len(g.Sets)-1].Set
	var alive cluster.MemberSet
	for _, n := range newest.List() {
		if n == c.self || c.Alive(n) {
			alive = alive.With(n)
		}
	}
	return alive.Len(), newest.Len(), newest.Majority(), g.Majority(alive)
}
