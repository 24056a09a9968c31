package core

import (
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/state"
)

// peer is what is known of another member from its beats.
type peer struct {
	inc   cluster.Incarnation
	heard cluster.Instant // 0: never since this member started
	since cluster.Instant // since when it has been heard without a break; 0: it is silent
	beat  *Beat
	at    cluster.Instant // when that beat came
}

// Step takes one event and answers what is to be done. now is CLOCK_BOOTTIME, wall the wall clock in ms, for people only.
func (c *Core) Step(now cluster.Instant, wall int64, ev Event) []Action {
	c.now, c.wall = now, wall
	c.expire()
	switch e := ev.(type) {
	case Tick:
		c.followed = false
		c.tick()
	case Received:
		c.receive(e.From, e.Frame)
	case Leadership:
		c.leader, c.leaderID = e.Leader, e.ServerID
		c.findLeader()
		if e.Mine != c.leads {
			c.leads = e.Mine
			c.dropMoves()
		}
		if c.leads {
			c.lead()
		}
	case Proposed:
		if done, ok := c.proposals[e.ID]; ok {
			delete(c.proposals, e.ID)
			done(c, e.Outcome, e.Err)
		}
	case Drained:
		c.onDrained(e)
	case Shut:
		c.onShut(e)
	case Health:
		c.onHealth(e)
	case *Order:
		c.onOrder(e)
	case Replica:
		c.onReplica(e)
	case CaughtUp:
		c.onCaughtUp(e)
	case HigherEpoch:
		c.onHigherEpoch(e)
	case DiskFailed:
		c.onDiskFailed(e)
	}
	return c.take()
}

// Next is when a Tick is due. It is counted from the last Tick, so that no flood of other events can put it off: callers let a Tick
// come when this moment has passed, whatever else there is to do.
func (c *Core) Next(now cluster.Instant) cluster.Instant {
	next := c.lastTick.Add(c.idle())
	at := func(i cluster.Instant) {
		if i != 0 && i < next {
			next = i
		}
	}
	at(c.nextBeat)
	if c.leads {
		at(c.nextPlan)
	} else if c.leader != 0 && c.leader != c.self {
		if silent := c.peers[c.leader].heard.Add(c.st.Timing().Kick); silent > now {
			at(silent)
		}
	}
	for _, v := range c.svcs {
		if v.holder.Renews() {
			at(c.nextRenew)
			at(v.deadline)
		}
		if v.move != nil && !v.move.prop {
			at(v.move.coord.Next())
		}
	}
	return max(next, now.Add(time.Millisecond))
}

// busyTick is how often time passes while something is under way that no frame or answer drives on.
const busyTick = 20 * time.Millisecond

// idle is how long nothing need be looked at: in calm, as long as the beats leave between them, so that a quiet member wakes up no more
// often than it has to send.
func (c *Core) idle() time.Duration {
	if c.self == 0 || !c.joined || c.leader == 0 || c.own(c.leader) >= c.st.Timing().Kick {
		return busyTick
	}
	for _, v := range c.svcs {
		if v.order != nil || v.closing || v.releasing != nil || v.move != nil || v.sticking || v.gaveUp != "" || c.dataLate(v) {
			return busyTick
		}
	}
	return min(max(busyTick, c.renewEvery()*9/8), 6*busyTick) // the turns of beats and renewals come first
}

// nextTurn is when what recurs every d is due again. Turns begin at whole multiples of d, so that all that recurs meets, and a late turn does not
// put the next one off. A member that beats with the renewals of another one leaves them an eighth more, because a turn of its own just before the renewal would make two
// wake-ups of one.
func (c *Core) nextTurn(d time.Duration) cluster.Instant {
	if c.followed {
		return c.now.Add(d + d/8)
	}
	return c.now.Add(d - time.Duration(c.now)%d)
}

// withRenewal lets time pass at the arrival of a renewal, if the member's own turn is near: its beat goes out together with the acknowledgement. When renewals end,
// its own turns go on an eighth of an interval later.
func (c *Core) withRenewal() {
	every := c.renewEvery()
	if c.now.Sub(c.lastBeat) < every*3/4 {
		return
	}
	c.followed = true
	c.nextBeat = c.now
	if c.nextPlan.Sub(c.now) < every/2 {
		c.nextPlan = c.now
	}
	c.tick()
}

func (c *Core) tick() {
	c.lastTick = c.now
	if c.self == 0 {
		return
	}
	c.silences()
	c.join()
	for _, v := range c.svcs {
		c.tend(v)
	}
	if c.now >= c.nextRenew {
		c.nextRenew = c.now.Add(c.renewEvery() - time.Duration(c.now)%c.renewEvery())
		c.renew()
	}
	if c.now >= c.nextBeat {
		c.nextBeat, c.lastBeat = c.nextTurn(c.renewEvery()), c.now
		c.beat()
	}
	c.kick()
	if c.leads {
		c.lead()
	}
}

// join asks the log to admit this run, until it has.
func (c *Core) join() {
	if c.joined || c.joining || c.now < c.nextJoin {
		return
	}
	c.joining = true
	c.nextJoin = c.now.Add(200 * time.Millisecond)
	c.propose(&state.Command{Join: &state.Join{ID: c.cfg.ID, Inc: c.cfg.Inc, Boot: c.cfg.Boot, Version: c.cfg.Version, Level: state.FeatureLevel}},
		func(c *Core, o state.Outcome, err error) {
			c.joining = false
			m := c.st.MemberByID(c.cfg.ID)
			// A repeated question is refused too: only a newer run, or the removal of this member, is a reason to say so.
			if err == nil && o.Err() != nil && !c.joined && (m == nil || m.Removed || c.st.Group.Admission(m.No).Inc > c.cfg.Inc) {
				c.nextJoin = c.now.Add(10 * time.Second) // nothing but an operator changes that
				c.do(Alarm{Code: "not-admitted", Severity: "crit", Text: o.Text, Remedy: "join this member again with a new token: hanode token create"})
			}
		})
}

// maxDurable bounds how many reports of a beat tell a position too, so that it stays one frame.
const maxDurable = 20

// beat tells all members that this one lives.
func (c *Core) beat() {
	b := &Beat{Inc: c.cfg.Inc, Leader: c.leader}
	for n := range c.peers {
		if p := &c.peers[n]; p.heard != 0 {
			b.Heard = append(b.Heard, Heard{cluster.MemberNo(n), uint32(min(c.now.Sub(p.heard)/time.Millisecond, 1<<31))})
		}
	}
	for _, v := range c.svcs {
		if len(b.Reports) >= 60 {
			break // a frame's worth; what is not reported counts as not ready
		}
		if c.cfg.Role == cluster.RoleNode {
			r := Report{Service: v.no, Epoch: v.holder.Epoch, Ready: v.report.Ready, Unhealthy: v.report.Unhealthy, Serving: c.tenure(v)}
			if len(b.Reports) < maxDurable {
				c.durable(v, &r)
			}
			b.Reports = append(b.Reports, r)
		}
	}
	for i := range c.st.Members {
		if m := &c.st.Members[i]; !m.Removed && m.No != c.self {
			c.do(Send{m.No, b})
		}
	}
}

func (c *Core) receive(from cluster.MemberNo, f Frame) {
	m := c.st.Member(from)
	if m == nil || m.Removed || from == c.self || c.self == 0 {
		return
	}
	c.heard(from)
	switch f := f.(type) {
	case *Beat:
		c.onBeat(from, f)
	case *Renew:
		c.onRenew(from, f)
	case *Ack:
		c.onAck(from, f)
	case *PromiseReq:
		c.onPromiseReq(from, f)
	case *Promise:
		c.onPromise(from, f)
	case *Release:
		c.onRelease(from, f)
	case *Granted:
		c.onGranted(f)
	}
}

func (c *Core) heard(from cluster.MemberNo) {
	p := &c.peers[from]
	if p.since == 0 {
		p.since = c.now
		c.nextPlan = c.now
		c.do(Announce{})
	}
	p.heard = c.now
}

// silences ends the unbroken hearing of members that have gone silent.
func (c *Core) silences() {
	kick := c.st.Timing().Kick
	for n := range c.peers {
		if p := &c.peers[n]; p.since != 0 && c.now.Sub(p.heard) >= kick {
			p.since = 0
		}
	}
	if _, _, _, ok := c.Quorum(); ok {
		c.quorumAt = c.now
	}
}

func (c *Core) onBeat(from cluster.MemberNo, b *Beat) {
	p := &c.peers[from]
	p.inc, p.beat, p.at = b.Inc, b, c.now
	for _, r := range b.Reports {
		v := c.find(r.Service)
		if v != nil && v.holder.Saw(r.Epoch) {
			c.end(v, "another member knows of a newer epoch", true)
		}
		if s := c.st.Service(r.Service); s != nil && s.Lock.Holder.Node == from && s.Lock.Epoch == r.Epoch && !r.Serving {
			c.nextPlan = c.now // its tenure has ended
		}
	}
}

// onRenew answers a holder. A voter with a vote in no set that counts stays silent, as does one that the log has not admitted.
func (c *Core) onRenew(from cluster.MemberNo, r *Renew) {
	if !c.st.Group.Voters().Has(c.self) || r.Inc != c.st.Group.Admission(from).Inc {
		return
	}
	a := &Ack{Inc: r.Inc, Sent: r.Sent, VoterInc: c.cfg.Inc, VoterSets: c.st.Group.C()}
	for _, l := range r.Leases {
		v := c.find(l.Service)
		if v == nil {
			continue
		}
		s := c.rec(v)
		if l.Epoch == s.Lock.Epoch && s.Lock.Holder.Node != from {
			continue // not the holder of that epoch
		}
		ans := v.voter.Renew(c.now, l.Epoch, l.TTL, c.known(v))
		if ans.Mute {
			continue
		}
		l.Refused, l.Highest = !ans.Yes, ans.Highest
		a.Leases = append(a.Leases, l)
	}
	if len(a.Leases) > 0 {
		c.do(Send{from, a})
		c.withRenewal()
	}
}

func (c *Core) onPromiseReq(from cluster.MemberNo, r *PromiseReq) {
	v := c.find(r.Service)
	if v == nil {
		return
	}
	if p := c.promise(v, r.Epoch); p != nil {
		c.do(Send{from, p})
	}
}

// promise is this member's answer as a voter; nil: it says nothing.
func (c *Core) promise(v *service, e cluster.Epoch) *Promise {
	s := c.rec(v)
	own := s.Lock.Holder.Node == c.self && s.Lock.Epoch == e
	if v.holder.Epoch <= e && (v.holder.Renews() || v.closing || v.holder.Phase == lease.Fenced) {
		// The holder stops first; its Release, sent when all is shut, is its promise. That holds as well for a later epoch than the one that
		// it serves: its word counts as that of the holder, whatever of the log it has not seen yet.
		if v.holder.Renews() {
			c.end(v, "another member asked for its epoch", false)
		}
		return nil
	}
	a := v.voter.Promise(c.now, e, own, c.known(v))
	if a.Mute {
		return nil
	}
	if a.Yes {
		c.tellFacts(v)
	}
	return &Promise{Service: v.no, Epoch: e, Inc: c.cfg.Inc, Yes: a.Yes, In: a.In, Highest: a.Highest}
}

func (c *Core) onRelease(from cluster.MemberNo, r *Release) {
	v := c.find(r.Service)
	if v == nil {
		return
	}
	s := c.rec(v)
	if s.Lock.Epoch != r.Epoch || s.Lock.Holder.Node != from || s.Lock.Holder.Inc != r.Inc {
		return // it comes again until the log has moved on
	}
	v.voter.Release(r.Epoch)
	c.tellFacts(v)
	if _, ok := v.released[r.Epoch]; !ok {
		v.released[r.Epoch] = *r
		c.nextPlan = c.now
	}
	if v.move != nil && !v.move.prop {
		v.move = nil // decide anew, with what the Release says
	}
	if c.leads {
		c.lead()
	}
}

func (c *Core) onGranted(g *Granted) {
	v := c.find(g.Service)
	if v == nil || !c.joined {
		return
	}
	if g.To == c.me() {
		if c.st.Group.C() < g.VoterSets {
			return // it would count under voters of before the Grant: its log tells it soon
		}
		c.pushed(v, g)
		c.granted(v, g.Epoch, g.TTL, g.Since)
		return
	}
	if v.order != nil && v.releasing != nil && g.Epoch > v.releasing.Epoch {
		// The log may be long in saying so: its disk may be the reason for the move.
		c.do(OrderDone{Service: v.no, ID: v.order.ID, Epoch: g.Epoch, Holder: g.To.Node})
		v.order = nil
	}
	if v.holder.Saw(g.Epoch) {
		c.end(v, "the next epoch was granted to "+c.st.MemberName(g.To.Node), true)
	}
	c.pushed(v, g)
}

// age is how long ago anybody whom this member can ask heard a member.
func (c *Core) age(n cluster.MemberNo) time.Duration {
	if n == c.self {
		return 0
	}
	best := c.own(n)
	for i := range c.peers {
		p := &c.peers[i]
		if cluster.MemberNo(i) == n || p.beat == nil || p.since == 0 {
			continue
		}
		for _, h := range p.beat.Heard {
			if h.No == n {
				best = min(best, c.now.Sub(p.at)+time.Duration(h.Ms)*time.Millisecond)
			}
		}
	}
	return best
}

// own is how long ago this member itself heard another one.
func (c *Core) own(n cluster.MemberNo) time.Duration {
	if n == c.self {
		return 0
	}
	if c.peers[n].heard == 0 {
		return never
	}
	return c.now.Sub(c.peers[n].heard)
}

// kick makes this member a candidate when the leader has gone silent and it is the one to do so: the first of the voters that are heard, nodes that
// serve nothing before those that do, witnesses last, so that only one does it.
func (c *Core) kick() {
	if m := c.st.Member(c.self); m == nil || m.Removed {
		return // nobody sends it beats any more
	}
	t := c.st.Timing()
	if c.leads || c.leader == 0 || c.leader == c.self || c.now < c.nextKick || !c.st.Group.IsVoter(c.self) || c.age(c.leader) < t.Kick {
		return
	}
	if !c.joined || c.now.Sub(c.joinedAt) < t.Kick {
		return // a member that has just learned who the others are has not heard them yet
	}
	if _, _, _, quorum := c.Quorum(); !quorum {
		return // it would only disturb those whom it does not hear, and who may hear it
	}
	place := c.candidacy()
	if place < 0 || c.now.Sub(c.started) < t.Kick || c.age(c.leader) < t.Kick+time.Duration(place)*nextCandidate {
		return
	}
	c.nextKick = c.now.Add(300 * time.Millisecond)
	c.do(Kick{Why: c.st.MemberName(c.leader) + ", the leader, is heard by nobody"})
}

// nextCandidate is how long the next candidate waits for the one before it: a candidate whose log is behind is refused by those whose log
// is not, and one of these must then come forward.
const nextCandidate = 100 * time.Millisecond

// candidacy is this member's place among those that may become candidates, 0 being the first: nodes that serve nothing before those
// that do, witnesses last. -1: it may not.
func (c *Core) candidacy() int {
	mine, before := c.candidateRank(c.self), 0
	if mine < 0 {
		return -1
	}
	for _, n := range c.st.Group.Voters().List() {
		if r := c.candidateRank(n); n != c.self && (r > mine || r == mine && n < c.self) {
			before++
		}
	}
	return before
}

func (c *Core) candidateRank(n cluster.MemberNo) int {
	m := c.st.Member(n)
	switch {
	case m == nil || n == c.leader || !c.st.Group.IsVoter(n) || n != c.self && c.own(n) >= c.st.Timing().Kick:
		return -1
	case m.Role == cluster.RoleWitness:
		return 0
	case c.holdsAny(n):
		return 1
	}
	return 2
}

// findLeader finds the number of the member that leads: its name may be known before it is.
func (c *Core) findLeader() {
	if c.leaderID == "" {
		return
	}
	c.leader = 0
	for i := range c.st.Members {
		if c.st.Members[i].ServerID() == c.leaderID {
			c.leader = c.st.Members[i].No
		}
	}
}

func (c *Core) holdsAny(n cluster.MemberNo) bool {
	for i := range c.st.Services {
		if s := &c.st.Services[i]; s.Lock.Holder.Node == n && !s.Stopped {
			return true
		}
	}
	return false
}
