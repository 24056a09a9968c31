package core

import (
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/failover/plan"
)

const never = plan.Never

// view is this moment as this member sees it. It is good until the next call: it is made many times a second, and its memory is used again.
func (c *Core) view() *plan.View {
	v := &c.viewed
	*v = plan.View{Self: c.self, Up: c.now.Sub(c.started), Timing: c.st.Timing(), Group: &c.st.Group, Damping: 3, Members: v.Members[:0]}
	if s := c.st.Compiled(); s != nil {
		v.Damping = s.MaxFailovers
	}
	for i := range c.st.Members {
		m := &c.st.Members[i]
		if m.Removed {
			continue
		}
		v.Members = append(v.Members, plan.Member{No: m.No, Name: m.Name, Role: m.Role, Site: m.Site, Inc: c.st.Group.Admission(m.No).Inc,
			Age: c.age(m.No), Own: c.own(m.No), Drained: m.Drained})
	}
	return v
}

func (c *Core) spec(v *service) *cluster.ServiceSpec {
	s, all := c.rec(v), c.st.Compiled()
	if s == nil || all == nil {
		return nil
	}
	return all.Service(s.Name)
}

// facts is everything that is known of one service; good until the next call for this service.
func (c *Core) facts(v *service) *plan.Service {
	s := c.rec(v)
	out := &v.facts
	if out.Reports == nil {
		out.Reports = map[cluster.MemberNo]plan.Report{}
	}
	clear(out.Reports)
	*out = plan.Service{No: s.No, Name: s.Name, Spec: c.spec(v), Lock: &s.Lock, Stopped: s.Stopped, Paused: s.PausedUntil > c.wall,
		HeldWhy: s.HeldWhy, Reports: out.Reports}
	out.Approved, out.Approver = s.Approved()
	within := 10 * time.Minute
	if all := c.st.Compiled(); all != nil {
		within = all.FailoversWithin
	}
	for _, at := range s.Moves {
		if c.wall-at < within.Milliseconds() {
			out.Moves++
		}
	}
	own := v.report
	own.Serving, own.Epoch = c.tenure(v), v.holder.Epoch
	out.Reports[c.self] = own
	c.dataFacts(v, out)
	for i := range c.peers {
		p := &c.peers[i]
		if p.beat == nil || p.since == 0 {
			continue
		}
		for _, r := range p.beat.Reports {
			if r.Service == s.No {
				out.Reports[cluster.MemberNo(i)] = plan.Report{Ready: r.Ready, Unhealthy: r.Unhealthy, Serving: r.Serving, Epoch: r.Epoch}
			}
		}
	}
	if r, ok := v.released[s.Lock.Epoch]; ok {
		out.Released, out.Target, out.Kind, out.Why, out.By = true, r.To, r.What, r.Why, r.By
	}
	return out
}

// planEvery is how often the leader looks at every service while one of them may have to move, beside the moments at which something
// happens.
const planEvery = 10 * time.Millisecond

// planAgain is when the leader must look again: in calm with the next beat, or when the holder that was silent for longest would count
// as silent; at once while something moves or nobody serves.
func (c *Core) planAgain() cluster.Instant {
	again := c.nextTurn(c.renewEvery())
	kick := c.st.Timing().Kick
	if len(c.st.Group.Sets) > 1 {
		return c.now.Add(planEvery)
	}
	for _, v := range c.svcs {
		s := c.rec(v)
		if s == nil || (s.Stopped && v.move == nil) {
			continue
		}
		age := c.age(s.Lock.Holder.Node)
		if _, released := v.released[s.Lock.Epoch]; v.move != nil || released || s.Lock.Holder.Node == 0 || age >= kick {
			return c.now.Add(planEvery)
		}
		again = min(again, c.now.Add(max(kick-age, time.Millisecond)))
	}
	return again
}

// lead decides for every service, collects promises, and proposes what they suffice for.
func (c *Core) lead() {
	if c.now >= c.nextPlan {
		view := c.view()
		c.neighbours(view)
		for _, v := range c.inOrder() {
			c.decide(view, v)
			coming(view, c.name(v), v)
		}
		c.settle(view)
		c.standAside(view)
		c.nextPlan = c.planAgain()
	}
	for _, v := range c.svcs {
		c.collect(v)
	}
}

func (c *Core) decide(view *plan.View, v *service) {
	if v.move != nil && v.move.prop {
		return
	}
	f := c.facts(v)
	d := view.Decide(f)
	v.verdict = d.Sentence
	switch {
	case d.Hold && !v.holding && !f.Lock.Held:
		v.holding = true
		c.propose(&state.Command{Reason: d.Sentence, Desired: &state.Desired{Service: f.Name, Want: "hold"},
			Decision: &state.Decision{Kind: "hold", Service: f.Name, OrderedBy: "policy", Sentence: d.Sentence, Outcome: "done", Seen: c.seen(v)}},
			func(*Core, state.Outcome, error) { v.holding = false })
	case !d.Move:
		v.move = nil
	case v.move != nil && v.move.coord.To == d.To && v.move.coord.Epoch == f.Lock.Epoch:
		v.move.coord.Ask(c.now, d.Ask)
	default:
		v.move = &move{coord: lease.Begin(c.now, f.Lock.Epoch, d.To, c.st.Timing().TTL, d.Ask), verdict: d, zero: c.zero(v, f)}
		if r, ok := v.released[f.Lock.Epoch]; ok {
			v.move.coord.Promises = []lock.Promise{{Node: f.Lock.Holder.Node, Inc: r.Inc}}
		}
	}
}

// zero is the zero of the time line: when the old active was last heard, or when the order was given.
func (c *Core) zero(v *service, f *plan.Service) cluster.Instant {
	if r, ok := v.released[f.Lock.Epoch]; ok {
		return c.now.Add(-r.Since)
	}
	if n := f.Lock.Holder.Node; n != 0 {
		if age := c.age(n); age < time.Minute {
			return c.now.Add(-age)
		}
	}
	return c.now
}

func (m *move) step(now cluster.Instant, what, who string) {
	if len(m.steps) < 16 {
		m.steps = append(m.steps, state.Step{Us: now.Sub(m.zero).Microseconds(), What: what, Who: who})
	}
}

// collect asks for the promises that are due and proposes the Grant that they suffice for.
func (c *Core) collect(v *service) {
	m := v.move
	if m == nil || m.prop {
		return
	}
	for _, n := range m.coord.Due(c.now, c.cfg.Retry) {
		if n == c.self {
			if p := c.promise(v, m.coord.Epoch); p != nil {
				c.onPromise(c.self, p)
			}
			if v.move != m {
				return
			}
			continue
		}
		c.do(Send{n, &PromiseReq{Service: v.no, Epoch: m.coord.Epoch}})
	}
	c.grant(v, m)
}

func (c *Core) onPromise(from cluster.MemberNo, p *Promise) {
	v := c.find(p.Service)
	if v != nil && v.closer != nil && v.closer.Epoch == p.Epoch {
		if p.Yes {
			v.closer.Promises = append(without(v.closer.Promises, from), lock.Promise{Node: from, Inc: p.Inc})
		} else {
			v.closer.Later(c.now, from, p.Epoch, p.In)
		}
	}
	if v == nil || v.move == nil || v.move.prop || v.move.coord.Epoch != p.Epoch {
		return
	}
	if !p.Yes {
		v.move.coord.Later(c.now, from, p.Epoch, p.In)
		return
	}
	v.move.step(c.now, "promise not to renew the lease of "+c.st.MemberName(c.rec(v).Lock.Holder.Node), c.st.MemberName(from))
	v.move.coord.Promises = append(without(v.move.coord.Promises, from), lock.Promise{Node: from, Inc: p.Inc})
	c.grant(v, v.move)
}

func without(ps []lock.Promise, n cluster.MemberNo) []lock.Promise {
	out := ps[:0]
	for _, p := range ps {
		if p.Node != n {
			out = append(out, p)
		}
	}
	return out
}

// grant proposes the Grant if the promises suffice.
func (c *Core) grant(v *service, m *move) {
	s := c.rec(v)
	g, ok := m.coord.Ready(&s.Lock, &c.st.Group)
	if !ok {
		return
	}
	lost := "nothing acknowledged"
	if reports, all := c.afterPowerLoss(v); all && s.Lock.Data {
		g.Reports = reports
		lost = "all copies lost their power: what was not fsynced may be missing"
	}
	m.prop = true
	d := m.verdict
	m.step(c.now, "promises suffice", c.st.MemberName(c.self))
	dec := &state.Decision{Kind: d.Kind, Service: s.Name, From: c.st.MemberName(s.Lock.Holder.Node), To: c.st.MemberName(d.To.Node), EpochFrom: s.Lock.Epoch,
		OrderedBy: d.By, Sentence: d.Sentence, WhyNot: d.WhyNot, Seen: c.seen(v), Steps: m.steps, Policy: c.policy(), Lost: lost}
	if r, ok := v.released[s.Lock.Epoch]; ok {
		dec.Reason = r.Reason
	}
	cmd := &state.Command{Who: d.By, Grant: &state.Grant{Grant: g, Service: v.no, Automatic: d.Automatic}, Decision: dec}
	c.propose(cmd, func(c *Core, o state.Outcome, err error) {
		if v.move == m {
			v.move = nil
		}
		if err != nil || o.Err() != nil {
			v.notified = fmt.Sprint(err, " ", o.Err())
			return
		}
		c.tellGranted(v, m, g, o)
	})
}

// tellGranted pushes the news on the lease channel: followers learn the commit index late.
func (c *Core) tellGranted(v *service, m *move, g lock.Grant, o state.Outcome) {
	f := &Granted{Service: v.no, Epoch: o.Epoch, To: g.To, TTL: g.TTL, Index: o.Index, Since: c.now.Sub(m.zero), VoterSets: c.st.Group.C()}
	if s := c.rec(v); s != nil && s.Lock.Epoch == o.Epoch && s.Lock.Data {
		f.Gen = s.Lock.Gen
	}
	for i := range c.st.Members {
		if p := &c.st.Members[i]; !p.Removed && p.No != c.self {
			c.do(Send{p.No, f})
		}
	}
	c.onGranted(f)
	if o.Decision != 0 {
		step := state.Step{Us: c.now.Sub(m.zero).Microseconds(), What: fmt.Sprintf("grant of epoch %d to %s committed", o.Epoch, c.st.MemberName(g.To.Node)), Who: c.st.MemberName(c.self),
			Detail: fmt.Sprintf("log index %d", o.Index)}
		c.propose(&state.Command{Decision: &state.Decision{ID: o.Decision, Steps: []state.Step{step}}}, nil)
	}
}

func (c *Core) policy() string {
	t := c.st.Timing()
	return fmt.Sprintf("profile %s: %d beats, lease %d ms (spec version %d)", t.Profile, t.Kick/t.Renew, t.TTL.Milliseconds(), c.st.Spec.N)
}

// seen is what was known of each member at the moment of a decision.
func (c *Core) seen(v *service) []state.Seen {
	heard := state.Seen{What: "heard by", Answers: map[string]string{}}
	health := state.Seen{What: "health", Answers: map[string]string{}}
	sync := state.Seen{What: "in sync", Answers: map[string]string{}}
	f := c.facts(v)
	for i := range c.st.Members {
		m := &c.st.Members[i]
		if m.Removed {
			continue
		}
		heard.Answers[m.Name] = c.hearers(m.No)
		if m.Role != cluster.RoleNode {
			continue
		}
		r, known := f.Reports[m.No]
		switch {
		case !known:
			health.Answers[m.Name] = "not heard"
		case r.Unhealthy:
			health.Answers[m.Name] = "unwell"
		case r.Serving:
			health.Answers[m.Name] = "ok, serving"
		case r.Ready:
			health.Answers[m.Name] = "ok, ready"
		default:
			health.Answers[m.Name] = "ok"
		}
		if f.Lock.Data {
			sync.Answers[m.Name] = map[bool]string{true: "yes", false: "no"}[f.Lock.InSync.Has(m.No)]
		}
	}
	out := []state.Seen{heard, health}
	if f.Lock.Data {
		out = append(out, sync)
	}
	return out
}

// hearers names who has heard a member within the time after which it counts as silent.
func (c *Core) hearers(n cluster.MemberNo) string {
	kick := c.st.Timing().Kick
	var names []string
	if n != c.self && c.own(n) < kick {
		names = append(names, c.st.MemberName(c.self))
	}
	for i := range c.peers {
		p := &c.peers[i]
		if p.beat == nil || p.since == 0 || cluster.MemberNo(i) == n {
			continue
		}
		for _, h := range p.beat.Heard {
			if h.No == n && c.now.Sub(p.at)+time.Duration(h.Ms)*time.Millisecond < kick {
				names = append(names, c.st.MemberName(cluster.MemberNo(i)))
			}
		}
	}
	if len(names) == 0 {
		return "nobody"
	}
	sort.Strings(names)
	out := names[0]
	for _, s := range names[1:] {
		out += ", " + s
	}
	return out
}

func (c *Core) dropMoves() {
	for _, v := range c.svcs {
		v.move, v.closer, v.holding, v.verdict = nil, nil, false, ""
	}
	c.settling = false
}

// closeEpoch collects promises for the epoch of a holder that is over and will not be followed by another one (its service is stopped, held or paused):
// nobody else can say that it does not count under an older voter set.
func (c *Core) closeEpoch(view *plan.View, v *service) {
	l := &c.rec(v).Lock
	over := c.st.Group.Admission(l.Holder.Node).Inc != l.Holder.Inc
	if l.Holder.Node == 0 || l.Confirmed >= c.st.Group.C() || v.move != nil || !(over || view.Silent(l.Holder.Node)) {
		v.closer = nil
		return
	}
	ask := c.st.Group.Voters()
	if over {
		ask = ask.With(l.Holder.Node)
	} else {
		ask = ask.Without(l.Holder.Node)
	}
	if v.closer == nil || v.closer.Epoch != l.Epoch {
		b := lease.Begin(c.now, l.Epoch, lock.Holder{}, 0, ask)
		v.closer = &b
	}
	v.closer.Promises = slices.DeleteFunc(v.closer.Promises, func(p lock.Promise) bool { return c.st.Group.Admission(p.Node).Inc != p.Inc })
	v.closer.Ask(c.now, ask)
	for _, n := range v.closer.Due(c.now, 5*c.cfg.Retry) {
		if n != c.self {
			c.do(Send{n, &PromiseReq{Service: v.no, Epoch: l.Epoch}})
		} else if p := c.promise(v, l.Epoch); p != nil {
			c.onPromise(c.self, p)
		}
	}
}

// settle ends the joint phase of a change of voters as soon as it may end.
func (c *Core) settle(view *plan.View) {
	sets := c.st.Group.Sets
	if len(sets) < 2 || c.settling {
		return
	}
	for _, v := range c.svcs {
		c.closeEpoch(view, v)
	}
	cmd := &state.Settle{C: c.st.Group.C()}
	var services []*lock.Service
	closed := map[*lock.Service][]lock.Promise{}
	for _, v := range c.svcs {
		s := c.rec(v)
		services = append(services, &s.Lock)
		var p []lock.Promise
		if r, ok := v.released[s.Lock.Epoch]; ok && r.Inc == c.st.Group.Admission(s.Lock.Holder.Node).Inc {
			p = []lock.Promise{{Node: s.Lock.Holder.Node, Inc: r.Inc}}
		} else if v.closer != nil && v.closer.Epoch == s.Lock.Epoch {
			p = append(p, v.closer.Promises...)
		}
		if len(p) > 0 {
			closed[&s.Lock] = p
			cmd.Closed = append(cmd.Closed, state.Closed{Service: v.no, Epoch: s.Lock.Epoch, Promises: p})
		}
	}
	trial := c.st.Group.Clone()
	if trial.Settle(cmd.C, services, closed) != lock.Accepted {
		return
	}
	c.settling = true
	c.propose(&state.Command{Settle: cmd}, func(c *Core, _ state.Outcome, _ error) { c.settling = false })
}

// standAside hands the leadership to a witness when this leader no longer hears an active that the witness hears: the active's
// commands would not reach it.
func (c *Core) standAside(view *plan.View) {
	if c.now < c.nextKick {
		return
	}
	if m := c.st.Member(c.self); m != nil && m.Removed {
		// Only another leader can take this member's vote away.
		for _, n := range c.st.Group.Voters().Without(c.self).List() {
			if p := c.st.Member(n); p != nil && !p.Removed && c.own(n) < view.Timing.Kick {
				c.nextKick = c.now.Add(500 * time.Millisecond)
				c.do(Transfer{To: n, Why: "this member was removed"})
				return
			}
		}
	}
	for i := range c.st.Services {
		h := c.st.Services[i].Lock.Holder.Node
		if h == 0 || h == c.self || c.own(h) < view.Timing.Kick || c.age(h) >= view.Timing.Kick {
			continue
		}
		for _, n := range c.st.Group.Voters().List() {
			m := c.st.Member(n)
			if m != nil && n != c.self && n != h && c.own(n) < view.Timing.Kick && m.Role == cluster.RoleWitness {
				c.nextKick = c.now.Add(500 * time.Millisecond)
				c.do(Transfer{To: n, Why: fmt.Sprintf("%s, the active, reaches %s and not this leader", c.st.MemberName(h), m.Name)})
				return
			}
		}
	}
}

// Alive says whether this member has heard another one of late.
func (c *Core) Alive(n cluster.MemberNo) bool { return c.own(n) < c.st.Timing().Kick }
