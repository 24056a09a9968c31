// Package core is what a member decides: everything between what it hears and what it does.
//
// It joins the pure parts: the replicated state machine (cluster/state), the lease (cluster/lease) and the plans (failover/plan). Step and
// Apply take the time and an event and answer actions; there is no clock, socket, goroutine, lock or random number here, so that the simulator
// (internal/sim) drives the very code that runs in the field, and any failure can be replayed.
//
// What makes it safe is in cluster/lock and cluster/lease; this package keeps their conditions: a tenure's gates are shut (Close, answered
// by Shut) before its Release is sent; nothing is served on a Grant before the first acknowledgement; a holder that has stopped renewing never begins
// again without a Grant; a restarted member says nothing of leases before the log has admitted its run.
//
// Callers run all of it on one goroutine, carry the actions out in order, and pass on every frame, applied command and answer.
package core

import (
	"fmt"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/failover/plan"
)

// Config is what a member knows of itself when its daemon starts.
type Config struct {
	ID      cluster.NodeID
	Role    cluster.Role
	Inc     cluster.Incarnation
	Boot    cluster.BootID
	Version string
	// Retry is after how long an unanswered question is asked again. Default 20 ms.
	Retry time.Duration
}

// Core is the deciding core of one member.
type Core struct {
	cfg     Config
	st      *state.State
	self    cluster.MemberNo // 0 until this member finds itself in the state
	started cluster.Instant
	now     cluster.Instant
	wall    int64

	joined   bool // the log has admitted this run
	joinedAt cluster.Instant
	joining  bool
	peers    [cluster.MaxMembers + 1]peer
	svcs     []*service // in order of ServiceNo
	gone     []*service // of deleted services: what was promised and acknowledged stays promised, and the name may come back

	leads     bool // this member leads the group and has applied everything that was committed before
	leader    cluster.MemberNo
	leaderID  string // its name in the Raft configuration, as last told
	nextKick  cluster.Instant
	nextBeat  cluster.Instant
	nextRenew cluster.Instant
	nextPlan  cluster.Instant
	nextJoin  cluster.Instant
	settling  bool
	relatedOf *cluster.Spec // the spec that related has looked at
	relatedIs bool
	lastTick  cluster.Instant
	lastBeat  cluster.Instant
	quorumAt  cluster.Instant // when a majority was heard last
	followed  bool            // beats go out with the answers to renewals, see withRenewal

	proposals map[uint64]func(*Core, state.Outcome, error)
	lastProp  uint64
	out       []Action
	viewed    plan.View // memory of view
}

// service is what the core keeps of one service.
type service struct {
	no     cluster.ServiceNo
	voter  lease.Voter
	holder lease.Holder
	gen    cluster.Generation // of the last Grant seen: tells a Grant from a Bump

	// Holder side.
	closing   bool          // Close was ordered and Shut has not come, or came with an error
	closeOf   cluster.Epoch // the epoch that the Close named
	closedAt  cluster.Instant
	releasing *Release
	nextRel   cluster.Instant
	order     *Order // a planned move under way
	drained   bool   // the order's preparation is done
	deadline  cluster.Instant
	restarts  uint64
	sticking  bool               // a Sticky or Unsticky is on its way
	unstuck   cluster.Generation // of the Sticky whose end was proposed: never relied on again, whatever became of the proposal
	confirmed uint64
	report    plan.Report
	gaveUp    string
	clash     cluster.Instant // since when it is in the way of another service
	gaveAt    cluster.Instant
	nextLook  cluster.Instant // when to ask again whether to leave
	facts     plan.Service    // memory of facts
	data      data

	// Leader side.
	move     *move
	closer   *lease.Coordinator // promises for an epoch that nobody follows, while voters change
	released map[cluster.Epoch]Release
	holding  bool
	verdict  string // why nothing moves, as last decided
	notified string
}

// move is a Grant in preparation.
type move struct {
	coord   lease.Coordinator
	verdict plan.Verdict
	zero    cluster.Instant // when the old active was last heard, or the move began
	steps   []state.Step
	prop    bool
}

// New makes the core of a member. st is the replicated state as restored from disk; the core owns it from here on.
func New(cfg Config, now cluster.Instant, st *state.State) *Core {
	if cfg.Retry == 0 {
		cfg.Retry = 20 * time.Millisecond
	}
	c := &Core{cfg: cfg, st: st, started: now, now: now, lastTick: now, proposals: map[uint64]func(*Core, state.Outcome, error){}}
	c.refresh()
	return c
}

// State is the replicated state, to be read between two calls, on the core's goroutine only.
func (c *Core) State() *state.State { return c.st }

// Self is this member's number; 0 until the log has named it.
func (c *Core) Self() cluster.MemberNo { return c.self }

// Joined says whether the log has admitted this run.
func (c *Core) Joined() bool { return c.joined }

// Leads says whether this member coordinates.
func (c *Core) Leads() bool { return c.leads }

func (c *Core) do(a Action) { c.out = append(c.out, a) }

// take hands the actions over.
func (c *Core) take() []Action {
	out := c.out
	c.out = nil
	return out
}

// refresh follows the state: finds itself, makes the voter and holder of each new service, forgets those that are gone.
func (c *Core) refresh() {
	c.findLeader()
	m := c.st.MemberByID(c.cfg.ID)
	if m != nil {
		c.self = m.No
	}
	if m != nil && !m.Removed {
		if c.st.Group.Admission(m.No).Inc == c.cfg.Inc {
			if !c.joined {
				c.joinedAt = c.now
			}
			c.joined = true
		}
	} else if m != nil {
		c.closeAll("this member was removed from the cluster")
	}
	kept := c.svcs[:0:0]
	for i := range c.st.Services {
		s := &c.st.Services[i]
		v := c.find(s.No)
		if v == nil {
			v = c.dig(s.No)
		}
		if v == nil {
			v = &service{no: s.No, gen: s.Lock.Gen, restarts: s.Restarts, released: map[cluster.Epoch]Release{}}
			v.voter.Started = c.now // whatever may have been acknowledged for it before
			v.holder.Self = c.self
		}
		v.holder.Self = c.self
		v.voter.Open = c.joined
		kept = append(kept, v)
	}
	for _, v := range c.svcs {
		if c.st.Service(v.no) == nil {
			c.end(v, "the service was removed from the spec", false)
			c.dropOrder(v, "the service was removed from the spec")
			v.move, v.releasing = nil, nil
			c.gone = append(c.gone, v)
			if len(c.gone) > maxGone {
				c.gone = c.gone[1:]
			}
		}
	}
	c.svcs = kept
}

// maxGone is more than the state keeps of them.
const maxGone = 128

// dig takes up again what is known of a deleted service.
func (c *Core) dig(no cluster.ServiceNo) *service {
	for i, v := range c.gone {
		if v.no == no {
			c.gone = append(c.gone[:i:i], c.gone[i+1:]...)
			return v
		}
	}
	return nil
}

func (c *Core) find(no cluster.ServiceNo) *service {
	for _, v := range c.svcs {
		if v.no == no {
			return v
		}
	}
	return nil
}

func (c *Core) rec(v *service) *state.Service { return c.st.Service(v.no) }

func (c *Core) known(v *service) lease.Known {
	s := c.rec(v)
	if s == nil {
		return lease.Known{}
	}
	return lease.Known{Epoch: s.Lock.Epoch, TTLMax: s.Lock.TTLMax}
}

// me is this run as a holder.
func (c *Core) me() lock.Holder { return lock.Holder{Node: c.self, Inc: c.cfg.Inc} }

// propose sends a command towards the leader; done is called with what came of it.
func (c *Core) propose(cmd *state.Command, done func(*Core, state.Outcome, error)) {
	c.lastProp++
	if cmd.Who == "" {
		cmd.Who = "policy"
	}
	cmd.At = c.wall
	if done != nil {
		c.proposals[c.lastProp] = done
	}
	c.do(Propose{ID: c.lastProp, Command: cmd})
}

// Apply applies one command of the log, at once and in order, and answers what follows from it.
func (c *Core) Apply(now cluster.Instant, wall int64, index uint64, cmd *state.Command) (state.Outcome, []Action, error) {
	c.now, c.wall = now, wall
	c.expire()
	o, err := c.st.Apply(index, cmd)
	if err != nil {
		return o, nil, err
	}
	c.refresh()
	if o.Result == lock.Accepted {
		if cmd.Nop == nil {
			c.nextPlan = c.now
		}
		c.applied(cmd)
	}
	return o, c.take(), nil
}

// Voters passes on the voters of the Raft configuration, in the order of the log.
func (c *Core) Voters(now cluster.Instant, serverIDs []string) []Action {
	c.now = now
	c.st.VotersChanged(serverIDs)
	c.nextRenew = now // under the new set as soon as can be
	for _, v := range c.svcs {
		v.holder.SetVoters(c.now, c.st.Group.Sets)
	}
	return c.take()
}

// Restore replaces the state by a snapshot. A tenure cannot survive it: whatever the log did meanwhile is unknown, and a Grant to this run
// that lies within it is seen as a new one.
func (c *Core) Restore(now cluster.Instant, st *state.State) []Action {
	c.now = now
	for _, v := range c.svcs {
		c.end(v, "the state was replaced by a newer snapshot", false)
	}
	c.st = st
	c.refresh()
	for _, v := range c.svcs {
		c.follow(v)
	}
	return c.take()
}

// applied reacts to an accepted command.
func (c *Core) applied(cmd *state.Command) {
	switch {
	case cmd.Join != nil && cmd.Join.ID == c.cfg.ID && cmd.Join.Inc == c.cfg.Inc:
		c.joined = true
		c.do(Joined{})
	case cmd.Settle != nil:
		for _, v := range c.svcs {
			v.holder.SetVoters(c.now, c.st.Group.Sets)
		}
	case cmd.Desired != nil:
		c.desired(cmd.Desired)
	case cmd.MemberAdd != nil:
		for _, v := range c.svcs {
			v.holder.SetVoters(c.now, c.st.Group.Sets)
		}
		c.do(SpecChanged{})
	case cmd.SpecApply != nil, cmd.MemberSet != nil, cmd.MemberRemove != nil:
		c.do(SpecChanged{})
	}
	for _, v := range c.svcs {
		c.follow(v)
	}
}

// follow compares a holder with what the log says of its service.
func (c *Core) follow(v *service) {
	s := c.rec(v)
	if s == nil {
		return // an answer that came after the service was deleted
	}
	l := &s.Lock
	c.tellFacts(v)
	for e := range v.released {
		if e < l.Epoch {
			delete(v.released, e)
		}
	}
	if v.move != nil && v.move.coord.Epoch != l.Epoch {
		v.move = nil
	}
	mine := c.joined && l.Holder == c.me() && l.Epoch > 0
	bumped := mine && l.Gen == v.gen && l.Epoch == v.holder.Epoch+1 && v.holder.Phase != lease.Idle
	v.gen = l.Gen
	switch {
	case bumped:
		if v.holder.Bumped(l.Epoch, l.TTL) {
			c.do(Bumped{Service: v.no, Epoch: l.Epoch})
			c.extend(v)
		} else {
			c.fencedByBump(v)
		}
	case mine:
		c.granted(v, l.Epoch, l.TTL, c.sinceZero(s))
	case l.Epoch > v.holder.Epoch || (l.Epoch == v.holder.Epoch && l.Holder != c.me()):
		if v.holder.Saw(l.Epoch) || (v.holder.Renews() && l.Holder != c.me()) {
			c.end(v, fmt.Sprintf("epoch %d was granted to %s", l.Epoch, c.st.MemberName(l.Holder.Node)), false)
		}
	}
	if v.releasing != nil && l.Epoch > v.releasing.Epoch {
		v.releasing = nil
		if v.order != nil {
			c.do(OrderDone{Service: v.no, ID: v.order.ID, Epoch: l.Epoch, Holder: l.Holder.Node})
			v.order = nil
		}
	}
	c.followSticky(v, l)
}

func (c *Core) followSticky(v *service, l *lock.Service) {
	if v.holder.Phase != lease.Serving || l.Epoch != v.holder.Epoch || v.sticking {
		return
	}
	if l.Sticky && l.Gen == v.unstuck {
		return
	}
	if l.Sticky != v.holder.Sticky {
		v.holder.Stick(c.now, l.Sticky)
	}
}

// granted begins a tenure; what it may do waits for the first acknowledgement.
func (c *Core) granted(v *service, e cluster.Epoch, ttl, since time.Duration) {
	if e <= v.holder.Epoch {
		return
	}
	if v.holder.Renews() {
		c.end(v, "a new epoch begins", true)
	}
	if !v.holder.Grant(c.now, e, ttl, c.st.Group.Sets) {
		return
	}
	if v.order != nil {
		c.do(OrderDone{Service: v.no, ID: v.order.ID, Epoch: e, Holder: c.self})
	}
	v.order, v.drained, v.deadline, v.releasing, v.gaveUp = nil, false, 0, nil, ""
	if e <= v.voter.Closed {
		// It was asked for its promise before it heard of its Grant, and gave it.
		v.holder.Fence()
		v.closing = true
		v.closeOf, v.closedAt = e, c.now
		v.releasing = &Release{Service: v.no, Epoch: e, Inc: c.cfg.Inc, Why: "the epoch was promised away before its Grant was heard of"}
		c.do(Close{Service: v.no, Epoch: e, Why: v.releasing.Why})
		return
	}
	v.closing, v.unstuck = false, 0
	v.confirmed = c.st.Group.C()
	c.nextRenew = c.now
	c.renew()
	c.begin(v, since)
}

// Verdict says why a service is where it is, or why nothing moves, as this member last decided while it led.
func (c *Core) Verdict(no cluster.ServiceNo) string {
	if v := c.find(no); v != nil {
		return v.verdict
	}
	return ""
}
