package core

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/failover/plan"
)

// begin announces a tenure to the node; sinceZero is filled in by a Granted frame.
func (c *Core) begin(v *service, since time.Duration) {
	c.do(Begin{Service: v.no, Epoch: v.holder.Epoch, TTL: v.holder.TTL, Since: since})
	if _, began := v.holder.Tick(c.now); began {
		c.extend(v)
	}
}

// sinceZero is where the time line of the last move stands, as far as the log tells: at its last step.
func (c *Core) sinceZero(s *state.Service) time.Duration {
	if d := c.st.Decision(s.LastMove); d != nil && len(d.Steps) > 0 {
		return time.Duration(d.Steps[len(d.Steps)-1].Us) * time.Microsecond
	}
	return 0
}

// closingLasts is how long a holder that shuts its service down is believed to be about to release it.
const closingLasts = time.Second

// tenure says, for the others, that the holder serves, or that its Release is still to be waited for: one that says neither has fenced itself
// and could not make sure that all is shut.
func (c *Core) tenure(v *service) bool {
	return v.holder.Renews() || v.closing && c.now.Sub(v.closedAt) < closingLasts || v.releasing != nil && v.holder.Phase == lease.Released
}

// extend passes a deadline on that has grown.
func (c *Core) extend(v *service) {
	d := v.holder.Deadline(c.now)
	if d <= v.deadline || d <= c.now {
		return
	}
	c.do(Extend{Service: v.no, Epoch: v.holder.Epoch, Deadline: d, TTL: v.holder.TTL, First: v.deadline == 0})
	v.deadline = d
}

// renewPart is how many renewals there are at least in a lease, whatever profile it was given under.
const renewPart = 5

// renewEvery is the time between two renewals. A lease keeps the time that it was given with (rule V6): when the profile becomes a slower one, those
// that are held from before are renewed at their own pace until the next Grant.
func (c *Core) renewEvery() time.Duration {
	every := c.st.Timing().Renew
	for _, v := range c.svcs {
		if v.holder.Renews() && v.holder.TTL > 0 {
			every = min(every, v.holder.TTL/renewPart)
		}
	}
	return every
}

// renew asks the voters to extend all leases held here.
func (c *Core) renew() {
	var leases []Lease
	for _, v := range c.svcs {
		if v.holder.Renews() {
			leases = append(leases, Lease{Service: v.no, Epoch: v.holder.Epoch, TTL: v.holder.TTL})
		}
	}
	if len(leases) == 0 || !c.joined {
		return
	}
	const most = 40 // leases in one frame of at most 1200 bytes
	for len(leases) > 0 {
		n := min(most, len(leases))
		for _, to := range c.st.Group.Voters().Without(c.self).List() {
			c.do(Send{to, &Renew{Inc: c.cfg.Inc, Sent: c.now, Leases: leases[:n]}})
		}
		leases = leases[n:]
	}
}

// onAck counts the acknowledgements of a voter.
func (c *Core) onAck(from cluster.MemberNo, a *Ack) {
	if a.Inc != c.cfg.Inc || a.VoterInc != c.st.Group.Admission(from).Inc {
		return
	}
	for _, l := range a.Leases {
		v := c.find(l.Service)
		if v == nil {
			continue
		}
		if l.Refused {
			c.refused(v, l)
			continue
		}
		v.holder.Ack(c.now, from, l.Epoch, l.TTL, a.Sent)
		c.extend(v)
		if v.holder.Sticky {
			c.tendSticky(v) // its end needs fresh acknowledgements: now they are
		}
	}
}

// refused reacts to a voter that does not extend an epoch any more.
func (c *Core) refused(v *service, l Lease) {
	if l.Epoch != v.holder.Epoch {
		return
	}
	if v.holder.Saw(l.Highest) {
		c.end(v, fmt.Sprintf("a voter knows of epoch %d", l.Highest), true)
		return
	}
	if !v.holder.WantBump(c.now, l.Highest) || v.order != nil || v.closing {
		return
	}
	e := v.holder.Epoch
	v.holder.Bumping = e
	b := lock.Bump{Epoch: e, Holder: c.me(), TTL: v.holder.TTL}
	c.propose(&state.Command{Bump: &state.Bump{Bump: b, Service: v.no}}, func(c *Core, o state.Outcome, err error) {
		if v.holder.Bumping == e && (err != nil || o.Err() != nil) {
			v.holder.Bumping = 0 // an accepted one counts as under way until it is applied here
		}
	})
}

// end shuts a service here. already says that the holder has left its serving phase before.
func (c *Core) end(v *service, why string, already bool) {
	if !v.holder.Fence() && !already {
		return
	}
	c.dropOrder(v, "the tenure ended meanwhile: "+why)
	v.closing, v.closeOf, v.closedAt, v.deadline = true, v.holder.Epoch, c.now, 0
	v.holder.Sticky = false
	v.releasing = &Release{Service: v.no, Epoch: v.holder.Epoch, Inc: c.cfg.Inc, Why: clip(why, 300)}
	c.do(Close{Service: v.no, Epoch: v.holder.Epoch, Why: why})
}

// dropOrder answers an order that will not be carried out.
func (c *Core) dropOrder(v *service, why string) {
	if v.order != nil {
		c.do(OrderDone{Service: v.no, ID: v.order.ID, Err: errors.New(why)})
		v.order = nil
	}
}

// expire ends the tenures whose gates have shut by themselves. It comes before anything else that is done with an event: a daemon that was
// stopped must not renew, on whatever it hears first, what has run out meanwhile.
func (c *Core) expire() {
	for _, v := range c.svcs {
		if v.deadline != 0 && c.now >= v.deadline {
			c.end(v, "no voter has renewed its lease in time", false)
		}
	}
}

// closeAll is for a member that was removed.
func (c *Core) closeAll(why string) {
	for _, v := range c.svcs {
		v.voter.CloseAll()
		c.end(v, why, false)
		c.dropOrder(v, why)
	}
	c.joined = false
}

// onShut sends the Release that waited for everything to be shut.
func (c *Core) onShut(e Shut) {
	v := c.find(e.Service)
	if v == nil {
		for _, g := range c.gone {
			if g.no == e.Service && e.Err == nil && e.Epoch == g.closeOf && g.closing {
				g.closing = false
				g.holder.Shut()
			}
		}
		return
	}
	if !v.closing || e.Epoch != v.closeOf {
		return
	}
	if e.Err != nil {
		// Not yet: another Shut comes when what could not be stopped has been killed.
		c.do(Alarm{Code: "not-shut", Object: c.name(v), Severity: "crit", Text: "could not make sure that everything is shut: " + e.Err.Error(),
			Remedy: "the lease runs out by itself; look at the processes of the service"})
		return
	}
	v.closing = false
	if o := v.order; o != nil && o.What == "stop" {
		c.do(OrderDone{Service: v.no, ID: o.ID, Epoch: v.holder.Epoch})
		v.order = nil
	}
	v.holder.Shut()
	v.voter.Release(v.holder.Epoch)
	c.sendRelease(v)
}

// fencedByBump is for a holder whose own Bump was committed after it had ended its tenure: it does not serve on it, and releases
// the new epoch as it would have released the old one.
func (c *Core) fencedByBump(v *service) {
	if v.releasing == nil {
		v.releasing = &Release{Service: v.no, Inc: c.cfg.Inc, Why: "its lease had ended before its next epoch was committed"}
	}
	r := *v.releasing
	r.Epoch = v.holder.Epoch
	v.releasing = &r
	if !v.closing {
		v.holder.Shut()
		v.voter.Release(v.holder.Epoch)
		c.sendRelease(v)
	}
}

func (c *Core) sendRelease(v *service) {
	r := v.releasing
	if r == nil || v.holder.Phase != lease.Released {
		return
	}
	v.nextRel = c.now.Add(c.renewEvery())
	for i := range c.st.Members {
		if m := &c.st.Members[i]; !m.Removed && m.No != c.self {
			c.do(Send{m.No, r})
		}
	}
	c.onRelease(c.self, r)
}

func (c *Core) name(v *service) string {
	if s := c.rec(v); s != nil {
		return s.Name
	}
	return fmt.Sprint(v.no)
}

// onOrder begins a planned move, or refuses it.
func (c *Core) onOrder(o *Order) {
	v := c.find(o.Service)
	deny := func(err error) { c.do(OrderDone{Service: o.Service, ID: o.ID, Err: err}) }
	switch {
	case v == nil:
		deny(fmt.Errorf("there is no such service"))
		return
	case v.holder.Phase != lease.Serving:
		deny(fmt.Errorf("%s is not active here", c.name(v)))
		return
	case v.order != nil || v.closing:
		deny(fmt.Errorf("%s is being moved already", c.name(v)))
		return
	}
	view := c.view()
	c.neighbours(view)
	to, refusal := view.Switchover(c.facts(v), o.To)
	if refusal != nil {
		deny(refusal)
		return
	}
	o.to = to.No
	c.moveAway(v, o)
}

// clip bounds what goes into a Release, which is one frame.
func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n-3], "") + "..."
	}
	return s
}

// moveAway begins to give the service up.
func (c *Core) moveAway(v *service, o *Order) {
	o.at = c.now
	v.order, v.drained = o, false
	s := c.rec(v)
	if s.Lock.Sticky {
		// The active stops relying on it as it proposes its end, and needs fresh acknowledgements for that.
		c.unstick(v)
	}
	c.do(Prepare{Service: v.no, Epoch: v.holder.Epoch, To: o.to, Stop: o.What == "stop"})
}

func (c *Core) onDrained(e Drained) {
	v := c.find(e.Service)
	if v == nil || v.order == nil || e.Epoch != v.holder.Epoch || v.holder.Phase != lease.Serving {
		return
	}
	if e.Err != nil {
		c.abort(v, e.Err)
		return
	}
	v.drained = true
	c.goOn(v)
}

// goOn passes the point from which the gates are shut: everything is prepared, and the target can still take over.
func (c *Core) goOn(v *service) {
	o := v.order
	s := c.rec(v)
	if !v.drained || s.Lock.Sticky {
		return
	}
	if o.to != 0 {
		view := c.view()
		c.neighbours(view)
		if _, refusal := view.Switchover(c.facts(v), c.st.MemberName(o.to)); refusal != nil {
			c.abort(v, refusal)
			return
		}
	}
	if !v.holder.Fence() {
		return
	}
	v.closing, v.closeOf, v.closedAt, v.deadline = true, v.holder.Epoch, c.now, 0
	v.releasing = &Release{Service: v.no, Epoch: v.holder.Epoch, Inc: c.cfg.Inc, To: o.to, What: clip(o.What, 20), By: clip(o.By, 100),
		Reason: clip(o.Reason, 300), Why: clip(o.Reason, 300), Since: c.now.Sub(o.at)}
	c.do(Close{Service: v.no, Epoch: v.holder.Epoch, Why: o.What + " ordered by " + o.By, Planned: true})
}

// abort ends a planned move before its Release: the service goes on here.
func (c *Core) abort(v *service, err error) {
	o := v.order
	v.order, v.drained = nil, false
	c.do(Restore{Service: v.no, Epoch: v.holder.Epoch, Why: err.Error()})
	c.do(OrderDone{Service: v.no, ID: o.ID, Err: err})
	d := &state.Decision{Kind: o.What, Service: c.name(v), From: c.st.MemberName(c.self), To: c.st.MemberName(o.to), EpochFrom: v.holder.Epoch, EpochTo: v.holder.Epoch,
		OrderedBy: o.By, Reason: o.Reason, Outcome: "restored", Sentence: fmt.Sprintf("the %s of %s was given up before it was given away, and it stays on %s: %v",
			o.What, c.name(v), c.st.MemberName(c.self), err)}
	c.propose(&state.Command{Who: o.By, Reason: o.Reason, Decision: d}, nil)
}

// orderTimeout bounds how long a prepared move may take until its Release, beyond what the node's own time-outs allow.
const orderTimeout = 15 * time.Minute

// tend runs what a holder does with time.
func (c *Core) tend(v *service) {
	ended, began := v.holder.Tick(c.now)
	switch {
	case ended:
		c.end(v, "no voter has renewed its lease in time", true)
	case began, v.holder.Phase == lease.Serving:
		c.extend(v)
	}
	if v.holder.Phase == lease.Released && v.releasing != nil && c.now >= v.nextRel {
		c.sendRelease(v)
	}
	if v.holder.Phase != lease.Serving {
		return
	}
	c.tendOrder(v)
	c.tendSticky(v)
	c.tendData(v)
	c.tendVoters(v)
}

// lookEvery is how often the active asks itself whether it should leave, beside the moment at which something fails.
const lookEvery = 50 * time.Millisecond

func (c *Core) tendOrder(v *service) {
	if o := v.order; o != nil {
		if s := c.rec(v); s != nil && s.Lock.Sticky {
			c.unstick(v) // until it has worked
		}
		if v.drained && !v.closing {
			c.goOn(v)
		} else if c.now.Sub(o.at) > orderTimeout {
			c.abort(v, fmt.Errorf("the service could not be made ready to move within %s", orderTimeout))
		}
		return
	}
	s := c.rec(v)
	if s == nil || v.closing || s.Lock.Epoch != v.holder.Epoch {
		return
	}
	if s.Stopped {
		c.moveAway(v, &Order{Service: v.no, What: "stop", By: s.StoppedBy, Reason: "stopped by order"})
		return
	}
	if s.Restarts != v.restarts {
		v.restarts = s.Restarts
		c.do(Restart{Service: v.no, Why: "ordered"})
	}
	if c.now < v.nextLook {
		return
	}
	v.nextLook = c.now.Add(lookEvery)
	view := c.view()
	c.neighbours(view)
	a := plan.Active{GaveUp: v.gaveUp, Heard: map[cluster.MemberNo]time.Duration{}}
	for n := range c.peers {
		if p := &c.peers[n]; p.since != 0 {
			a.Heard[cluster.MemberNo(n)] = c.now.Sub(p.since)
		}
	}
	to, what, why := view.Leave(c.facts(v), a)
	switch {
	case to != nil:
		c.moveAway(v, &Order{Service: v.no, to: to.No, To: to.Name, What: what, By: "policy", Reason: why})
	case c.giveWay(view, v):
	case v.gaveUp != "" && c.now.Sub(v.gaveAt) > time.Second:
		v.gaveUp = ""
		c.do(Restart{Service: v.no, Why: "no other node can take it"})
	}
}

// tendVoters tells the log under which voter sets this holder counts.
func (c *Core) tendVoters(v *service) {
	newest := c.st.Group.C()
	s := c.rec(v)
	if v.confirmed >= newest || s == nil || !v.holder.MayConfirm(c.now) || s.Lock.Epoch != v.holder.Epoch || s.Lock.Confirmed >= newest {
		return
	}
	before := v.confirmed
	v.confirmed = newest
	c.propose(&state.Command{Confirm: &state.Confirm{Service: v.no, Confirm: lock.Confirm{Epoch: v.holder.Epoch, Holder: c.me(), C: newest}}},
		func(c *Core, o state.Outcome, err error) {
			if (err != nil || o.Err() != nil) && v.confirmed == newest {
				v.confirmed = before
			}
		})
}

// The witness is given up after this time without a word from it, and trusted again after it was heard for this time.
const (
	witnessLost = 5 * time.Second
	witnessBack = 1 * time.Second
)

// tendSticky enters and leaves the state in which the active stays without the witness.
func (c *Core) tendSticky(v *service) {
	s := c.rec(v)
	if s == nil || v.sticking || v.order != nil || v.closing || s.Lock.Epoch != v.holder.Epoch {
		return
	}
	spec := c.spec(v)
	if spec == nil {
		return
	}
	lost, back := c.witness()
	switch {
	case lost && spec.WitnessLost != "hold" && (!s.Lock.Sticky || v.unstuck == s.Lock.Gen):
		v.sticking = true
		c.stick(v, false)
	case s.Lock.Sticky && back && v.holder.Fresh(c.now) > c.now.Add(v.holder.TTL/2):
		c.unstick(v)
	}
}

func (c *Core) unstick(v *service) {
	if v.sticking || v.holder.Fresh(c.now) <= c.now.Add(v.holder.TTL/2) {
		return
	}
	v.sticking = true
	v.unstuck = c.rec(v).Lock.Gen
	v.holder.Stick(c.now, false)
	if d := v.holder.Deadline(c.now); d < v.deadline {
		// The gates were set to a deadline that no voter has promised to wait for.
		v.deadline = d
		c.do(Extend{Service: v.no, Epoch: v.holder.Epoch, Deadline: d, TTL: v.holder.TTL})
	}
	c.stick(v, true)
}

func (c *Core) stick(v *service, off bool) {
	l := c.rec(v).Lock
	cmd := &state.Command{Sticky: &state.Sticky{Service: v.no, Sticky: lock.Sticky{Epoch: l.Epoch, Gen: l.Gen, Holder: c.me(), Off: off, Alone: off && v.data.alone != 0}}}
	text := "the witness was lost: the active stays where it is and nobody takes over by itself"
	if off {
		text = "the witness is back: a standby takes over by itself again"
	}
	cmd.Decision = &state.Decision{Kind: "witness", Service: c.name(v), From: c.st.MemberName(c.self), To: c.st.MemberName(c.self), OrderedBy: "policy",
		EpochFrom: l.Epoch, EpochTo: l.Epoch, Sentence: text, Outcome: "done", Seen: c.seen(v)}
	c.propose(cmd, func(c *Core, o state.Outcome, err error) {
		v.sticking = false
		c.follow(v)
		c.extend(v)
	})
}

// witness says whether a voting witness was lost, and whether all voting witnesses are back.
func (c *Core) witness() (lost, back bool) {
	back = true
	for i := range c.st.Members {
		m := &c.st.Members[i]
		if m.Removed || m.Role != cluster.RoleWitness || !c.st.Group.IsVoter(m.No) {
			continue
		}
		p := &c.peers[m.No]
		if c.age(m.No) >= witnessLost && c.now.Sub(c.started) >= witnessLost {
			lost = true
		}
		if p.since == 0 || c.now.Sub(p.since) < witnessBack {
			back = false
		}
	}
	return lost, back && !lost
}

func (c *Core) desired(d *state.Desired) {
	s := c.st.ServiceByName(d.Service)
	if s == nil {
		return
	}
	v := c.find(s.No)
	switch d.Want {
	case "clear":
		v.gaveUp, v.report.Unhealthy = "", false
	case "run", "stop":
		if !c.tenure(v) {
			c.do(Standby{Service: v.no})
		}
	}
}

func (c *Core) onHealth(h Health) {
	v := c.find(h.Service)
	if v == nil {
		return
	}
	v.report.Ready, v.report.Unhealthy = h.Ready, h.Unhealthy
	if h.GaveUp == "" || v.gaveUp != "" {
		return
	}
	s := c.rec(v)
	switch {
	case h.Then == "ignore" || s == nil:
	case h.Then == "stop" && v.holder.Renews():
		c.propose(&state.Command{Reason: h.GaveUp, Desired: &state.Desired{Service: s.Name, Want: "stop"},
			Decision: &state.Decision{Kind: "stop", Service: s.Name, From: c.st.MemberName(c.self), OrderedBy: "policy", EpochFrom: s.Lock.Epoch,
				Outcome: "done", Sentence: fmt.Sprintf("%s was stopped, as its on_failure says: %s", s.Name, h.GaveUp)}}, nil)
	case h.Then != "stop":
		v.gaveUp, v.gaveAt = h.GaveUp, c.now
		if v.holder.Phase == lease.Serving {
			v.nextLook = c.now
			c.tendOrder(v)
		}
	}
}
