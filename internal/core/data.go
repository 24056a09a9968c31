package core

import (
	"fmt"
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/failover/plan"
)

// What follows is the active's side of the data rules D4, D6 and of going on alone (docs/protocol.md, "Data"). The stream says what it sees; the
// core proposes; only what the log has taken changes for whom an operation waits.

// How long a follower may keep operations waiting, or be away from the stream, while its beats go on.
const (
	slowStream = 200 * time.Millisecond // alarm
	lostStream = 2 * time.Second        // Degrade
)

// Facts is what the log says of a service's data, for its volume server.
type Facts struct {
	Service  cluster.ServiceNo
	Epoch    cluster.Epoch
	Grant    cluster.Epoch // with which the holder's tenure began: a Bump raises Epoch and leaves it
	Closed   cluster.Epoch // up to which this member has promised, if that is Epoch or later: it takes nothing of these any more
	Gen      cluster.Generation
	Holder   lock.Holder
	Self     lock.Holder
	InSync   cluster.MemberSet
	Members  []Node             // the service's nodes that the log has admitted
	Sticky   bool               // the active stays without the witness
	Alone    cluster.Generation // of the state in which this active goes on alone; 0: it does not
	HasData  bool
	Forced   cluster.Epoch // the last epoch that an operator forced
	Rebooted bool          // this member's host was rebooted since it was in sync
	LogTime  int64         // wall clock of the newest entry, ms; no reason to tell anything anew
}

// Node is a node of a service with its admitted run.
type Node struct {
	lock.Holder
	ID   cluster.NodeID
	Name string
}

func (f *Facts) same(g *Facts) bool {
	a, b := *f, *g
	a.Members, b.Members = nil, nil
	return slices.Equal(f.Members, g.Members) && a.key() == b.key()
}

type factsKey struct {
	service          cluster.ServiceNo
	epoch, forced    cluster.Epoch
	grant, closed    cluster.Epoch
	gen, alone       cluster.Generation
	holder, self     lock.Holder
	inSync           cluster.MemberSet
	sticky, data, re bool
}

func (f *Facts) key() factsKey {
	return factsKey{f.Service, f.Epoch, f.Forced, f.Grant, f.Closed, f.Gen, f.Alone, f.Holder, f.Self, f.InSync, f.Sticky, f.HasData, f.Rebooted}
}

// FactsChanged tells the node what the log says of a service's data, at each change.
type FactsChanged struct{ Facts Facts }

// GoAlone orders the active's volume server to go on without its followers although no Degrade can be committed: the witness is lost, and nobody else
// can be granted the service. It makes that known on its disk before it acknowledges anything alone.
type GoAlone struct {
	Service cluster.ServiceNo
	Epoch   cluster.Epoch
	Gen     cluster.Generation
}

func (FactsChanged) action() {}
func (GoAlone) action()      {}

// Replica is the volume server's word on a copy of a service's data: on the active, of each follower; on every node, of its own.
type Replica struct {
	Service   cluster.ServiceNo
	Member    cluster.MemberNo
	Pos       cluster.Position // the last operation that it holds; of the own copy after a start: that is durable
	Good      bool             // the own copy is consistent; a follower follows
	Connected bool
	Waiting   time.Duration // for how long something has been waiting for it
	LagBytes  int64
	Failed    string // it cannot hold more, and why
}

// CaughtUp says that a follower holds everything, durably, and that the active waits for it again (rule D6).
type CaughtUp struct {
	Service cluster.ServiceNo
	Member  cluster.MemberNo
	Inc     cluster.Incarnation
	Epoch   cluster.Epoch
	Gen     cluster.Generation
}

// HigherEpoch says that a follower refused with an epoch that it knows.
type HigherEpoch struct {
	Service cluster.ServiceNo
	Epoch   cluster.Epoch
}

// DiskFailed says that the active's copy cannot be served any more: its disk hangs or fails, or its server ended.
type DiskFailed struct {
	Service cluster.ServiceNo
	Text    string
	Ended   bool // nothing is served here until a new Grant, whoever gets it
}

func (Replica) event()     {}
func (CaughtUp) event()    {}
func (HigherEpoch) event() {}
func (DiskFailed) event()  {}

// replica is the last word on a copy.
type replica struct {
	Replica
	at   cluster.Instant
	gone cluster.Instant // since when it has been away from the stream
}

// data is what the core keeps of a service's data.
type data struct {
	told      Facts
	replicas  map[cluster.MemberNo]replica
	waits     cluster.MemberSet // caught up, waited for again, and not in sync by the log yet
	entering  cluster.MemberSet // an InSync of it is on its way
	degrading bool
	retry     cluster.Instant
	alone     cluster.Generation // under which the active goes on alone
	slow      cluster.MemberSet  // about which an alarm stands
	failed    string
}

// tellFacts passes on what the log says, if it has changed.
func (c *Core) tellFacts(v *service) {
	s := c.rec(v)
	if s == nil || c.cfg.Role != cluster.RoleNode || !s.Lock.Data && !v.data.told.HasData {
		return
	}
	l := &s.Lock
	d := &v.data
	if l.Epoch < d.told.Epoch {
		return // the leader's word was quicker than the log
	}
	if l.Holder != c.me() || !l.Sticky && l.Gen > d.alone {
		d.alone = 0
	}
	if d.told.Epoch != l.Epoch || d.told.Gen != l.Gen || d.told.Holder != l.Holder {
		d.waits, d.entering = 0, 0
	}
	d.waits &^= l.InSync
	f := Facts{Service: v.no, Epoch: l.Epoch, Gen: l.Gen, Holder: l.Holder, Self: c.me(), InSync: l.InSync, Sticky: l.Sticky, Alone: d.alone, HasData: l.Data,
		Forced: l.Forced, Members: c.nodes(l.Eligible)}
	f.Grant = l.Epoch
	if d.told.Holder == l.Holder && d.told.Gen == l.Gen && d.told.Epoch != 0 || d.told.Epoch == l.Epoch {
		f.Grant = d.told.Grant // nothing but Bumps since
	}
	if v.voter.Closed >= l.Epoch {
		f.Closed = v.voter.Closed
	}
	f.Rebooted = l.InSync.Has(c.self) && l.MayHold(&c.st.Group, c.me()) == lock.Rebooted
	f.LogTime = c.st.LogTime
	if !f.same(&d.told) {
		d.told = f
		c.do(FactsChanged{f})
	}
}

func (c *Core) nodes(set cluster.MemberSet) []Node {
	var out []Node
	for _, n := range set.List() {
		m, inc := c.st.Member(n), c.st.Group.Admission(n).Inc
		if m != nil && inc != 0 {
			out = append(out, Node{lock.Holder{Node: n, Inc: inc}, m.ID, m.Name})
		}
	}
	return out
}

// Facts is what the log says of a service's data now, as last passed on.
func (c *Core) Facts(no cluster.ServiceNo) (Facts, bool) {
	v := c.find(no)
	if v == nil || !v.data.told.HasData {
		return Facts{}, false
	}
	return v.data.told, true
}

// pushed takes the leader's word for a Grant before the log says it here.
func (c *Core) pushed(v *service, g *Granted) {
	s := c.rec(v)
	if s == nil || !s.Lock.Data || g.Gen == 0 || g.Epoch <= v.data.told.Epoch || c.cfg.Role != cluster.RoleNode {
		return
	}
	f := v.data.told
	f.Service, f.Self, f.HasData = v.no, c.me(), true
	f.Epoch, f.Gen, f.Holder, f.InSync = g.Epoch, g.Gen, g.To, cluster.SetOf(g.To.Node)
	f.Sticky, f.Alone, f.Rebooted = false, 0, false
	f.Grant, f.Closed = g.Epoch, 0
	f.Members = c.nodes(s.Lock.Eligible)
	v.data.told = f
	v.data.alone, v.data.waits, v.data.entering = 0, 0, 0
	c.do(FactsChanged{f})
}

func (c *Core) onReplica(r Replica) {
	v := c.find(r.Service)
	if v == nil {
		return
	}
	d := &v.data
	if d.replicas == nil {
		d.replicas = map[cluster.MemberNo]replica{}
	}
	was, known := d.replicas[r.Member]
	n := replica{Replica: r, at: c.now}
	if !r.Connected || r.Failed != "" {
		n.gone = c.now
		if known && was.gone != 0 {
			n.gone = was.gone
		}
	}
	d.replicas[r.Member] = n
	if v.holder.Phase == lease.Serving && r.Member != c.self {
		c.tendData(v)
	}
}

// waiting is for how long something has been waiting for a copy, or it has been away.
func (r *replica) waiting(now cluster.Instant) time.Duration {
	d := time.Duration(0)
	if r.Waiting > 0 {
		d = r.Waiting + now.Sub(r.at)
	}
	if r.gone != 0 {
		d = max(d, now.Sub(r.gone))
	}
	return d
}

// lost says why a follower can no longer be waited for; "": it can.
func (c *Core) lost(v *service, n cluster.MemberNo) string {
	name := c.st.MemberName(n)
	own := c.own(n)
	r, known := v.data.replicas[n]
	if !known { // this active has just begun
		r = replica{gone: v.holder.Since}
	}
	wait := r.waiting(c.now)
	beats := 3 * c.renewEvery()
	switch {
	case r.Failed != "":
		return fmt.Sprintf("%s cannot hold more: %s", name, r.Failed)
	case own >= beats && (wait > 0 || own >= lostStream):
		return fmt.Sprintf("%s was not heard by %s for %s, and its copy has not answered", name, c.st.MemberName(c.self), min(own, time.Hour).Round(time.Millisecond))
	case wait >= lostStream:
		return fmt.Sprintf("the copy on %s has not answered for %s", name, wait.Round(time.Millisecond))
	}
	return ""
}

// tendData looks after the followers of a service that is served here: those that are lost leave the in-sync set, whether or not something is
// being written, so that the set is true.
func (c *Core) tendData(v *service) {
	s := c.rec(v)
	if s == nil || !s.Lock.Data || v.closing || s.Lock.Epoch != v.holder.Epoch || s.Lock.Holder != c.me() {
		return
	}
	l, d := &s.Lock, &v.data
	var out cluster.MemberSet
	why := ""
	for _, n := range (l.InSync | d.waits).Without(c.self).List() {
		w := c.lost(v, n)
		if w == "" && d.alone != 0 && d.alone == l.Gen && l.InSync.Has(n) {
			w = fmt.Sprintf("%s went on alone while the witness was lost", c.st.MemberName(c.self))
		}
		if w != "" {
			out = out.With(n)
			why = w
		}
		r := d.replicas[n]
		c.slowAlarm(v, n, r.waiting(c.now))
	}
	for _, n := range (d.slow &^ (l.InSync | d.waits)).List() {
		c.slowAlarm(v, n, 0)
	}
	if out == 0 {
		return
	}
	if _, _, _, quorum := c.Quorum(); !quorum {
		c.goAlone(v, l)
		return
	}
	if !d.degrading && c.now >= d.retry {
		c.degrade(v, l, out, why)
	}
}

// dataLate says that a follower may have to be left behind soon.
func (c *Core) dataLate(v *service) bool {
	if !v.data.told.HasData || v.holder.Phase != lease.Serving {
		return false
	}
	for _, n := range (v.data.told.InSync | v.data.waits).Without(c.self).List() {
		r := v.data.replicas[n]
		if c.own(n) > 3*c.renewEvery()/2 || r.waiting(c.now) > 0 {
			return true
		}
	}
	return false
}

// goAlone is for an active that relies on nobody: the witness is lost, the log says that nobody else may be granted the service, and there is no
// majority to take a Degrade.
func (c *Core) goAlone(v *service, l *lock.Service) {
	if !l.Sticky || !v.holder.Sticky || v.sticking || v.data.alone == l.Gen || v.unstuck == l.Gen {
		return
	}
	v.data.alone = l.Gen // from now on it may acknowledge alone, whatever else becomes of it
	c.do(GoAlone{Service: v.no, Epoch: l.Epoch, Gen: l.Gen})
	c.tellFacts(v)
}

// slowAlarm tells of a follower that keeps operations waiting.
func (c *Core) slowAlarm(v *service, n cluster.MemberNo, wait time.Duration) {
	d := &v.data
	object := c.name(v) + " on " + c.st.MemberName(n)
	switch slow := wait >= slowStream; {
	case slow && !d.slow.Has(n):
		d.slow = d.slow.With(n)
		c.do(Alarm{Code: "standby-slow", Object: object, Severity: "warn", Text: fmt.Sprintf("writes of %s wait for the copy on %s", c.name(v), c.st.MemberName(n)),
			Remedy: fmt.Sprintf("look at the disk of %s and at the links to it; after %s it is left behind", c.st.MemberName(n), lostStream)})
	case !slow && d.slow.Has(n):
		d.slow = d.slow.Without(n)
		c.do(Alarm{Code: "standby-slow", Object: object, Clear: true})
	}
}

func (c *Core) degrade(v *service, l *lock.Service, out cluster.MemberSet, why string) {
	d := &v.data
	d.degrading, d.retry = true, c.now.Add(c.renewEvery())
	me := c.st.MemberName(c.self)
	dec := &state.Decision{Kind: "degrade", Service: c.name(v), From: me, To: me, EpochFrom: l.Epoch, EpochTo: l.Epoch, OrderedBy: "policy", Outcome: "done", Seen: c.seen(v),
		Policy: c.policy(), Sentence: fmt.Sprintf("%s goes on without %s: %s", me, c.names(out), why)}
	c.propose(&state.Command{Degrade: &state.Degrade{Service: v.no, Degrade: lock.Degrade{Epoch: l.Epoch, Gen: l.Gen, Out: out}}, Decision: dec},
		func(c *Core, o state.Outcome, err error) {
			d.degrading = false
			if o.Err() == nil && err == nil {
				d.retry = 0
			}
		})
}

func (c *Core) names(set cluster.MemberSet) string {
	text := ""
	for i, n := range set.List() {
		if i > 0 {
			text += ", "
		}
		text += c.st.MemberName(n)
	}
	return text
}

// onCaughtUp proposes that a follower is in sync again, if the source has returned to waiting for it under what the log says now.
func (c *Core) onCaughtUp(e CaughtUp) {
	v := c.find(e.Service)
	if v == nil || v.holder.Phase != lease.Serving || v.closing {
		return
	}
	s := c.rec(v)
	if s == nil || s.Lock.Epoch != e.Epoch || s.Lock.Gen != e.Gen || s.Lock.Holder != c.me() || c.st.Group.Admission(e.Member).Inc != e.Inc {
		return // it will be said again under what holds by then
	}
	d := &v.data
	if s.Lock.InSync.Has(e.Member) || !s.Lock.Eligible.Has(e.Member) {
		return
	}
	d.waits = d.waits.With(e.Member) // the source waits for it, whatever comes of this
	if d.entering.Has(e.Member) || d.degrading {
		return
	}
	d.entering = d.entering.With(e.Member)
	name := c.st.MemberName(e.Member)
	me := c.st.MemberName(c.self)
	dec := &state.Decision{Kind: "in-sync", Service: c.name(v), From: me, To: me, EpochFrom: e.Epoch, EpochTo: e.Epoch, OrderedBy: "policy", Outcome: "done", Seen: c.seen(v),
		Sentence: fmt.Sprintf("%s holds every acknowledged write again and can take over", name)}
	c.propose(&state.Command{InSync: &state.InSync{Service: v.no, InSync: lock.InSync{Epoch: e.Epoch, Gen: e.Gen, Node: lock.Holder{Node: e.Member, Inc: e.Inc}}}, Decision: dec},
		func(_ *Core, _ state.Outcome, _ error) { d.entering = d.entering.Without(e.Member) })
}

func (c *Core) onHigherEpoch(e HigherEpoch) {
	if v := c.find(e.Service); v != nil && v.holder.Saw(e.Epoch) {
		c.end(v, fmt.Sprintf("a copy of its data knows of epoch %d", e.Epoch), true)
	}
}

// onDiskFailed gives the service to a standby that holds everything. There is nothing to wait for on a disk that does not answer: the tenure ends at
// once, and what was in flight ends with an error.
func (c *Core) onDiskFailed(e DiskFailed) {
	v := c.find(e.Service)
	if v == nil {
		return
	}
	what := "the data of " + c.name(v) + " cannot be served here: " + e.Text
	c.do(Alarm{Code: "disk-failed", Object: c.name(v), Severity: "crit", Text: what, Remedy: "look at the disk and the log of this node, then hanode volume status " + c.name(v)})
	if !v.holder.Renews() || v.closing {
		return
	}
	view := c.view()
	var to *plan.Member
	if f := c.facts(v); f.Spec != nil && !f.Lock.Held && !f.Paused && !f.Lock.Sticky {
		to = view.Successor(f)
	}
	if to == nil && !e.Ended {
		v.data.failed = e.Text
		return
	}
	c.end(v, what, false)
	if v.releasing != nil && to != nil {
		v.releasing.To, v.releasing.What, v.releasing.By = to.No, "failover", "policy"
	}
}

// afterPowerLoss says whether every member that was in sync has been rebooted since, and what each has reported to have found durable.
func (c *Core) afterPowerLoss(v *service) (reports []lock.Durable, lost bool) {
	l := &c.rec(v).Lock
	if !l.AllRebooted(&c.st.Group) {
		return nil, false
	}
	for _, n := range l.InSync.List() {
		d := lock.Durable{Node: lock.Holder{Node: n, Inc: c.st.Group.Admission(n).Inc}}
		if n == c.self {
			r, ok := v.data.replicas[n]
			if !ok || !r.Good {
				continue
			}
			d.Epoch, d.Gen, d.Seq = r.Pos.Epoch, r.Pos.Gen, r.Pos.Seq
			reports = append(reports, d)
			continue
		}
		p := &c.peers[n]
		if p.beat == nil || p.since == 0 || p.inc != d.Node.Inc {
			continue
		}
		for _, r := range p.beat.Reports {
			if r.Service == v.no && r.Durable {
				d.Epoch, d.Gen, d.Seq = r.DurEpoch, r.DurGen, r.DurSeq
				reports = append(reports, d)
			}
		}
	}
	return reports, true
}

// durable fills in what this member has found durable, for the leader that asks after a power loss.
func (c *Core) durable(v *service, r *Report) {
	s := c.rec(v)
	own, ok := v.data.replicas[c.self]
	if s == nil || !ok || !own.Good || !s.Lock.Data || !s.Lock.AllRebooted(&c.st.Group) {
		return
	}
	r.Durable, r.DurEpoch, r.DurGen, r.DurSeq = true, own.Pos.Epoch, own.Pos.Gen, own.Pos.Seq
}

// dataFacts adds what is known of the copies to what the plan judges by.
func (c *Core) dataFacts(v *service, out *plan.Service) {
	if !out.Lock.Data {
		return
	}
	for n, r := range v.data.replicas {
		if n != c.self && v.holder.Phase == lease.Serving {
			if out.Lag == nil {
				out.Lag = map[cluster.MemberNo]int64{}
			}
			out.Lag[n] = r.LagBytes
		}
	}
	if reports, lost := c.afterPowerLoss(v); lost {
		out.PowerLost, out.Durable = true, reports
	}
}
