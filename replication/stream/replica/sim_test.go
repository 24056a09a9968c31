package replica

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

var (
	oneSeed = flag.Uint64("seed", 0, "replay one seed of TestSimulation")
	seeds   = flag.Int("seeds", 5000, "how many seeds TestSimulation runs")
)

// A simulated world: nodes with disks, processes that use the cores as stream does, connections that keep their order and break at any
// time, and the real rules of the log (cluster/lock). No clocks: a Grant may come at any time, whoever still believes to be active.

type rec struct {
	pos cluster.Position
	op  int // 0: a mark
}

type disk struct {
	recs       []rec
	durable    int
	header     cluster.Epoch
	hist       History
	consistent bool
	flag       Flag
}

type pending struct {
	seq   uint64
	op    int
	grant cluster.Epoch
}

type simSync struct {
	seq   uint64
	grant cluster.Epoch
}

type proc struct {
	act     *Active
	sb      *Standby
	applied uint64
	redone  uint64 // what may have been applied
	grant   cluster.Epoch
	buf     []rec
	last    uint64
	pend    []pending
	syncs   []simSync
}

type msg struct {
	kind              string
	epoch             cluster.Epoch
	gen               cluster.Generation
	hist              History
	last, applied     uint64
	dirty, whole      bool
	plan              Plan
	fork              uint64
	recs              []rec
	accepted, durable uint64
}

type sess struct {
	id         uint64
	a, f       int
	pa, pf     *proc
	toF, toA   []msg
	stream     bool // the active streams
	based      bool // the follower has taken the start
	whole      bool
	durable    uint64
	ending     bool // a resync is to be ended
	epoch      cluster.Epoch
	baseDone   bool
	plan       Plan
	fork       uint64
	reportedAt uint64
}

type simNode struct {
	no   cluster.MemberNo
	d    disk
	p    *proc
	inc  cluster.Incarnation
	boot byte
	at   int // index of the facts that it has applied; -1: not joined
	join bool
	led  cluster.Epoch
}

type proposal struct {
	what string
	e    cluster.Epoch
	g    cluster.Generation
	r    Run
	by   lock.Holder
	on   bool
}

type sim struct {
	r     *rand.Rand
	bug   string
	mode  Mode
	nodes []*simNode
	svc   lock.Service
	grp   lock.Group
	facts []Facts
	props []proposal
	sess  []*sess
	ids   uint64
	now   cluster.Instant
	ops   int
	grant cluster.Epoch // of the log's present tenure

	acked, seen, synced map[int]bool
	tenureOf            map[int]cluster.Epoch
	at                  map[cluster.Position]int
	failed              string
	story               []string
	cuts, acks, syncAcks,
	leads, inSyncs, rewinds, resyncs, alones int
	proposedOff map[cluster.Generation]bool
}

func (s *sim) note(f string, a ...any) { s.story = append(s.story, fmt.Sprintf(f, a...)) }

func (s *sim) fail(f string, a ...any) {
	if s.failed == "" {
		s.failed = fmt.Sprintf(f, a...)
	}
}

func newSim(seed uint64, copies int, mode Mode, bug string) *sim {
	s := &sim{r: rand.New(rand.NewPCG(seed, 7)), bug: bug, mode: mode, acked: map[int]bool{}, seen: map[int]bool{}, synced: map[int]bool{},
		tenureOf: map[int]cluster.Epoch{}, at: map[cluster.Position]int{}, proposedOff: map[cluster.Generation]bool{}}
	set := cluster.SetOf(cluster.MemberNo(copies + 1)) // the witness
	for i := range copies {
		n := &simNode{no: cluster.MemberNo(i + 1), at: -1, inc: 1, boot: 1}
		n.d.consistent = true
		s.nodes = append(s.nodes, n)
		set = set.With(n.no)
		s.svc.Eligible = s.svc.Eligible.With(n.no)
		s.grp.Join(n.no, 1, cluster.BootID{1})
	}
	s.grp.Join(cluster.MemberNo(copies+1), 1, cluster.BootID{1})
	s.grp.SetVoters(set)
	s.svc.Data, s.svc.InSync = true, cluster.SetOf(1)
	s.commitGrant(0)
	for _, n := range s.nodes {
		s.boot(n)
	}
	return s
}

func (s *sim) snapshot() {
	f := Facts{Epoch: s.svc.Epoch, Grant: s.grant, Gen: s.svc.Gen, Holder: Run{s.svc.Holder.Node, s.svc.Holder.Inc}, InSync: s.svc.InSync, Sticky: s.svc.Sticky}
	for _, n := range s.nodes {
		f.Admitted = append(f.Admitted, Run{n.no, s.grp.Admission(n.no).Inc})
	}
	s.facts = append(s.facts, f)
}

func (s *sim) commitGrant(i int) {
	n := s.nodes[i]
	a := s.grp.Admission(n.no)
	var p []lock.Promise
	for m := range s.grp.Admitted {
		if m > 0 && !(s.svc.Sticky && cluster.MemberNo(m) == s.svc.Holder.Node) {
			p = append(p, lock.Promise{Node: cluster.MemberNo(m), Inc: s.grp.Admission(cluster.MemberNo(m)).Inc})
		}
	}
	in, boots := s.svc.InSync, s.svc.Boots
	if s.svc.Grant(&s.grp, lock.Grant{Epoch: s.svc.Epoch, To: lock.Holder{Node: n.no, Inc: a.Inc}, TTL: time.Second, Promises: p}) == lock.Accepted {
		if s.bug == "a grant keeps the in-sync set" {
			s.svc.InSync, s.svc.Boots = in.With(n.no), boots
		}
		s.grant = s.svc.Epoch
		s.note("log: grant of e%d to %d", s.svc.Epoch, n.no)
		s.snapshot()
	}
}

// boot starts a process on a node.
func (s *sim) boot(n *simNode) {
	d := &n.d
	d.hist = d.hist.Cut(uint64(len(d.recs)))
	last := uint64(len(d.recs))
	n.p = &proc{act: NewActive(Run{n.no, n.inc}, []Mode{s.mode}, true, last, d.flag), sb: NewStandby(d.header, last), last: last, redone: last, applied: last}
	if n.at >= 0 {
		s.tell(n)
	}
}

func (s *sim) tell(n *simNode) {
	f := s.facts[n.at]
	p := n.p
	p.sb.SetFacts(f)
	s.do(n, p.act.SetFacts(s.now, f))
	if n.p != p {
		return
	}
	me := Run{n.no, n.inc}
	if f.Holder == me && !p.act.Leads() && (n.led < f.Grant || s.bug == "leads twice in a tenure") {
		header := n.d.header
		if s.bug == "leads twice in a tenure" {
			header = 0
		}
		if err := p.act.MayLead(f.Epoch, header, n.d.consistent); err != nil {
			if !n.d.consistent {
				s.fail("node %d was granted e%d with an inconsistent copy", n.no, f.Epoch)
			}
			n.led = f.Grant
			return
		}
		s.lead(n, f)
	}
}

func (s *sim) lead(n *simNode, f Facts) {
	p := n.p
	s.drop(func(x *sess) bool { return x.pf == p })
	n.led = f.Grant
	s.leads++
	s.note("%d leads e%d g%d at %d", n.no, f.Epoch, f.Gen, len(n.d.recs))
	have := map[int]bool{}
	for _, r := range n.d.recs {
		have[r.op] = true
	}
	must := []map[int]bool{s.synced}
	if s.mode == Sync {
		must = append(must, s.acked, s.seen)
	}
	for i, m := range must {
		for op := range m {
			if !have[op] && f.Epoch == s.svc.Epoch {
				s.fail("node %d leads e%d without operation %d, which was %s", n.no, f.Epoch, op, [...]string{"synced", "acknowledged", "read"}[i])
			}
		}
	}
	for op := range have {
		if op != 0 && s.mode == Sync && f.Epoch == s.svc.Epoch {
			s.seen[op] = true // everything that it holds can be read now
		}
	}
	last := uint64(len(n.d.recs))
	n.d.hist = n.d.hist.Add(cluster.Position{Epoch: f.Epoch, Gen: f.Gen, Seq: last + 1})
	n.d.header = f.Epoch
	p.grant, p.last, p.applied = f.Grant, last, last
	s.do(n, p.act.Lead(last))
	s.write(n, 0)
}

func (s *sim) write(n *simNode, op int) {
	p, f := n.p, n.p.act.Facts()
	p.last++
	pos := cluster.Position{Epoch: f.Epoch, Gen: f.Gen, Seq: p.last}
	p.buf = append(p.buf, rec{pos, op})
	p.act.Submitted(p.last)
	p.pend = append(p.pend, pending{p.last, op, p.grant})
	s.tenureOf[op] = p.grant
	if s.bug == "bytes visible before they are replicated" && op != 0 {
		s.seen[op] = true
	}
}

func (s *sim) flush(n *simNode) {
	p, f := n.p, n.p.act.Facts()
	if len(p.buf) == 0 {
		return
	}
	for _, x := range s.sess {
		if x.pa == p && x.stream {
			x.toF = append(x.toF, msg{kind: "data", epoch: f.Epoch, gen: f.Gen, recs: p.buf})
		}
	}
	if s.r.IntN(40) == 0 {
		s.note("%d dies between sending and journalling", n.no)
		s.kill(n)
		return
	}
	for _, r := range p.buf {
		s.append(n, r)
	}
	p.buf = nil
	p.act.Written(p.last)
}

func (s *sim) append(n *simNode, r rec) {
	if r.pos.Seq != uint64(len(n.d.recs))+1 {
		s.fail("node %d journals %v after %d", n.no, r.pos, len(n.d.recs))
	}
	if op, ok := s.at[r.pos]; ok && op != r.op {
		s.fail("two operations at %v: %d and %d", r.pos, op, r.op)
	}
	s.at[r.pos] = r.op
	n.d.recs = append(n.d.recs, r)
	n.d.hist = n.d.hist.Add(r.pos)
}

// settle acknowledges what the core allows.
func (s *sim) settle(n *simNode) {
	p := n.p
	if p == nil || !p.act.leading || p.act.deposed && s.bug != "pending operations survive deposition" {
		return
	}
	may := p.act.MayAck(s.mode)
	for len(p.pend) > 0 && p.pend[0].seq <= may {
		x := p.pend[0]
		p.pend = p.pend[1:]
		p.applied = max(p.applied, x.seq)
		if x.op == 0 {
			continue
		}
		s.acks++
		s.acked[x.op], s.seen[x.op] = true, true
		if p.act.deposed {
			s.fail("operation %d was acknowledged after the deposition", x.op)
		}
		if x.seq > uint64(len(n.d.recs)) || n.d.recs[x.seq-1].op != x.op {
			s.fail("operation %d was acknowledged and is not in the journal of %d", x.op, n.no)
		}
	}
	sync := p.act.MaySync(s.mode)
	if s.bug == "sync waits for receipt only" {
		sync = min(p.act.durable, func() uint64 { a, _, _ := p.act.held(); return a }())
	}
	for len(p.syncs) > 0 && p.syncs[0].seq <= sync {
		x := p.syncs[0]
		p.syncs = p.syncs[1:]
		s.syncAcks++
		for _, r := range n.d.recs[:x.seq] {
			if r.op != 0 {
				s.synced[r.op] = true
			}
		}
		if x.seq > uint64(n.d.durable) {
			s.fail("node %d answered a sync to %d with %d on its disk", n.no, x.seq, n.d.durable)
		}
		s.onDisk("a sync was answered")
	}
}

// onDisk: what was synced is on the disk of every member that may be granted.
func (s *sim) onDisk(when string) {
	for _, n := range s.nodes {
		if !s.svc.InSync.Has(n.no) || s.svc.Sticky && s.svc.Holder.Node != n.no || s.svc.MayHold(&s.grp, lock.Holder{Node: n.no, Inc: s.grp.Admission(n.no).Inc}) != lock.Accepted || s.grp.Admission(n.no).Boot[0] != n.boot {
			continue
		}
		have := map[int]bool{}
		for _, r := range n.d.recs[:n.d.durable] {
			have[r.op] = true
		}
		for op := range s.synced {
			if !have[op] {
				s.fail("%s: operation %d was synced and is not on the disk of %d, which is in sync", when, op, n.no)
			}
		}
	}
}

func (s *sim) kill(n *simNode) {
	p := n.p
	n.p = nil
	s.drop(func(x *sess) bool { return x.pa == p || x.pf == p })
	if p.act.leading && s.bug == "pending operations survive deposition" {
		for _, x := range p.pend {
			if x.seq <= uint64(len(n.d.recs)) && x.op != 0 && s.r.IntN(2) == 0 && p.act.deposed {
				s.acked[x.op] = true
			}
		}
	}
}

func (s *sim) drop(which func(*sess) bool) {
	out := s.sess[:0]
	for _, x := range s.sess {
		if !which(x) {
			out = append(out, x)
			continue
		}
		if n := s.nodes[x.a]; n.p == x.pa && n.p != nil {
			s.do(n, n.p.act.Lost(s.now, s.nodes[x.f].no, x.id))
		}
		if n := s.nodes[x.f]; n.p == x.pf && n.p != nil {
			n.p.sb.End()
		}
	}
	s.sess = out
}

func (s *sim) do(n *simNode, acts []Action) {
	p := n.p
	for _, a := range acts {
		if n.p != p {
			return
		}
		f := p.act.Facts()
		switch a := a.(type) {
		case Deposed:
			s.note("%d is deposed: %s", n.no, a.Why)
			s.settle(n)
			s.kill(n)
		case Turned:
			n.d.header = max(n.d.header, a.Epoch)
			for _, x := range s.sess {
				if x.pa == p && x.stream {
					x.toF = append(x.toF, msg{kind: "turn", epoch: a.Epoch, gen: a.Gen, last: p.last})
				}
			}
			s.write(n, 0)
		case StoreAlone:
			n.d.flag = a.Flag
			if a.Flag != (Flag{}) {
				s.alones++
				s.do(n, p.act.AloneStored(a.Flag))
			}
		case AskSync:
			s.flush(n)
			for _, x := range s.sess {
				if x.pa == p && s.nodes[x.f].no == a.Member && x.stream {
					x.toF = append(x.toF, msg{kind: "sync", epoch: f.Epoch, gen: f.Gen})
				}
			}
		case CaughtUp:
			s.props = append(s.props, proposal{what: "insync", e: a.Epoch, g: a.Gen, r: a.Run})
		case WantDegrade:
			s.props = append(s.props, proposal{what: "degrade", e: f.Epoch, g: f.Gen, r: Run{Member: a.Member}})
		case Go:
			for _, x := range s.sess {
				if x.pa == p && x.id == a.Session {
					s.start(n, x)
				}
			}
		case Drop:
			s.drop(func(x *sess) bool { return x.pa == p && x.id == a.Session })
		}
	}
}

// start sends what the follower lacks.
func (s *sim) start(n *simNode, x *sess) {
	p, f := n.p, n.p.act.Facts()
	m := msg{kind: "start", epoch: f.Epoch, gen: f.Gen, plan: x.plan, fork: x.fork, last: x.fork}
	from := x.fork
	all := append(append([]rec{}, n.d.recs...), p.buf...)
	if x.plan == PlanResync {
		from = min(p.applied, uint64(len(n.d.recs)))
		m.fork, m.recs, m.hist = from, all[:from], n.d.hist.Cut(from)
		x.ending = true
	}
	x.toF = append(x.toF, m)
	sent := n.d.recs[from:]
	if len(sent) > 0 {
		x.toF = append(x.toF, msg{kind: "data", epoch: f.Epoch, gen: f.Gen, recs: append([]rec{}, sent...)})
	}
	if m := p.act.of(s.nodes[x.f].no, x.id); s.bug == "what was accepted before a resync counts" && x.plan == PlanResync {
		m.counted, m.accepted, m.durable, m.whole = true, p.last, p.last, true
	}
	x.stream = true // what is in buf goes with the next flush
}

func (s *sim) deliverF(x *sess) {
	m := x.toF[0]
	x.toF = x.toF[1:]
	n, src := s.nodes[x.f], s.nodes[x.a]
	p, d := n.p, &n.d
	from := Run{src.no, x.pa.act.self.Inc}
	switch m.kind {
	case "start":
		v, why := p.sb.Begin(from, m.epoch)
		if s.bug == "no epoch in the stream" {
			p.sb.from, p.sb.epoch, v = from, m.epoch, Accept
		}
		if v != Accept {
			s.refused(x, v, why)
			return
		}
		d.header = max(d.header, m.epoch)
		p.sb.Stored(m.epoch)
		switch m.plan {
		case PlanResync:
			s.resyncs++
			d.consistent = false
			s.lose(n, d.recs, append(append([]rec{}, src.d.recs...), x.pa.buf...))
			d.recs = append([]rec{}, m.recs...)
			d.hist = m.hist
			d.durable = 0
			p.redone, p.applied = m.fork, m.fork
			x.whole = false
		default:
			if m.plan == PlanRewind {
				s.rewinds++
				s.lose(n, d.recs, append(append([]rec{}, src.d.recs...), x.pa.buf...))
				d.recs = d.recs[:m.fork:m.fork]
				d.hist = d.hist.Cut(m.fork)
				d.durable = min(d.durable, len(d.recs))
			}
			x.whole = d.consistent
		}
		p.sb.Based(uint64(len(d.recs)))
		x.based, x.epoch = true, m.epoch
		x.durable = uint64(d.durable)
		s.ack(x)
	case "turn":
		if v, _, why := p.sb.Frame(m.epoch, m.gen, uint64(len(d.recs))+1, uint64(len(d.recs))); v != Accept {
			s.refused(x, v, why)
			return
		}
		d.header = max(d.header, m.epoch)
		p.sb.Stored(m.epoch)
		x.epoch = m.epoch
		s.ack(x)
	case "data":
		v, store, why := p.sb.Frame(m.epoch, m.gen, m.recs[0].pos.Seq, m.recs[len(m.recs)-1].pos.Seq)
		if s.bug == "no epoch in the stream" && m.recs[0].pos.Seq == uint64(len(d.recs))+1 {
			v = Accept
		}
		if v != Accept {
			s.refused(x, v, why)
			return
		}
		if store {
			d.header = max(d.header, m.epoch)
		}
		p.sb.Stored(m.epoch)
		x.epoch = m.epoch
		if m.epoch < d.header || m.epoch < p.sb.facts.Epoch {
			s.fail("node %d, which knows of epoch %d, accepts a frame of epoch %d", n.no, p.sb.Epoch(), m.epoch)
		}
		for _, r := range m.recs {
			s.append(n, r)
		}
		p.sb.Took(uint64(len(d.recs)))
		s.ack(x)
	case "sync":
		if s.bug != "a standby that reports what it has not synced" {
			d.durable = len(d.recs)
		}
		x.durable = uint64(len(d.recs))
		s.ack(x)
	case "done":
		d.durable, d.consistent, x.whole = len(d.recs), true, true
		if s.bug == "in sync before the standby has fsynced" {
			d.durable = 0
		}
		x.durable = uint64(len(d.recs))
		s.ack(x)
	}
}

// lose: no acknowledged operation may be taken out of a copy that is not far behind anyway.
func (s *sim) lose(n *simNode, old, now []rec) {
	keep := map[int]bool{}
	for _, r := range now {
		keep[r.op] = true
	}
	for _, r := range old {
		if keep[r.op] || r.op == 0 {
			continue
		}
		if s.synced[r.op] || s.mode == Sync && s.acked[r.op] {
			s.fail("operation %d was acknowledged and is taken out of the copy of %d", r.op, n.no)
		}
	}
}

func (s *sim) refused(x *sess, v Verdict, why string) {
	s.note("%d says %v to %d: %s", s.nodes[x.f].no, v, s.nodes[x.a].no, why)
	if src := s.nodes[x.a]; v == Refuse && s.nodes[x.f].p.sb.Epoch() > x.pa.act.Facts().Epoch {
		s.do(src, x.pa.act.Fence(why))
	}
	s.drop(func(y *sess) bool { return y == x })
}

func (s *sim) ack(x *sess) {
	n := s.nodes[x.f]
	m := msg{kind: "ack", epoch: x.epoch, accepted: uint64(len(n.d.recs)), durable: x.durable, whole: x.whole}
	if s.bug == "in sync before the standby has fsynced" {
		m.durable = m.accepted
	}
	x.toA = append(x.toA, m)
}

func (s *sim) deliverA(x *sess) {
	m := x.toA[0]
	x.toA = x.toA[1:]
	n := s.nodes[x.a]
	p := n.p
	switch m.kind {
	case "hello":
		plan, fork := Compare(n.d.hist, p.last, s.reach(n), m.hist, m.last, m.applied, m.dirty)
		if s.bug == "a resync of a member in sync" && plan != PlanTail {
			x.plan, x.fork = plan, fork
			s.do(n, p.act.Compared(s.now, s.nodes[x.f].no, x.id, PlanTail))
			return
		}
		if s.bug == "histories are not compared" && !m.dirty && m.last <= p.last {
			plan, fork = PlanTail, m.last
		}
		x.plan, x.fork = plan, fork
		s.do(n, p.act.Compared(s.now, s.nodes[x.f].no, x.id, plan))
	case "ack":
		s.do(n, p.act.Ack(s.now, s.nodes[x.f].no, x.id, m.epoch, m.accepted, m.durable, m.whole))
	}
}

// reach is the first record that the journal of a node still has.
func (s *sim) reach(n *simNode) uint64 {
	if s.r.IntN(4) > 0 {
		return 1
	}
	return 1 + uint64(s.r.IntN(len(n.d.recs)+1))
}

func (s *sim) connect(a, f int) {
	n, t := s.nodes[a], s.nodes[f]
	if a == f || n.p == nil || t.p == nil || !n.p.act.Leads() || t.p.act.Leads() || t.at < 0 {
		return
	}
	s.drop(func(x *sess) bool { return x.pa == n.p && x.f == f || x.pf == t.p })
	s.ids++
	x := &sess{id: s.ids, a: a, f: f, pa: n.p, pf: t.p}
	s.sess = append(s.sess, x)
	x.toA = append(x.toA, msg{kind: "hello", hist: t.d.hist, last: uint64(len(t.d.recs)), applied: t.p.redone, dirty: !t.d.consistent})
	s.do(n, n.p.act.Connected(s.now, Run{t.no, t.inc}, x.id))
}

func (s *sim) commit(i int) {
	p := s.props[i]
	if s.r.IntN(3) > 0 {
		s.props = append(s.props[:i], s.props[i+1:]...)
	}
	r := lock.Unknown
	switch p.what {
	case "insync":
		if s.bug == "in sync without generation" {
			p.g = s.svc.Gen
		}
		r = s.svc.AddInSync(&s.grp, lock.InSync{Epoch: p.e, Gen: p.g, Node: lock.Holder{Node: p.r.Member, Inc: p.r.Inc}})
		if r == lock.Accepted {
			s.inSyncs++
			s.onDisk("in sync")
		}
	case "degrade":
		r = s.svc.Degrade(lock.Degrade{Epoch: p.e, Gen: p.g, Out: cluster.SetOf(p.r.Member)})
	case "bump":
		r = s.svc.Bump(lock.Bump{Epoch: p.e, Holder: p.by, TTL: time.Second})
	case "sticky":
		r = s.svc.Stick(lock.Sticky{Epoch: p.e, Gen: p.g, Holder: p.by, Off: !p.on, Alone: !p.on && p.r.Inc == 1})
	}
	if r == lock.Accepted {
		s.note("log: %s of %d: e%d g%d in sync %v", p.what, p.r.Member, s.svc.Epoch, s.svc.Gen, s.svc.InSync.List())
		s.snapshot()
	}
}

// daemon lets the daemon of the active propose something.
func (s *sim) daemon(n *simNode) {
	p := n.p
	if p == nil || !p.act.Leads() {
		return
	}
	f := p.act.Facts()
	by := lock.Holder{Node: f.Holder.Member, Inc: f.Holder.Inc}
	switch k := s.r.IntN(12); {
	case k < 4:
		var stalled []cluster.MemberNo
		for _, r := range p.act.Replicas(s.now, nil) {
			if r.Needed && r.Phase != InSync || r.Stalled > 40 {
				stalled = append(stalled, r.Member)
			}
		}
		if len(stalled) > 0 {
			m := stalled[s.r.IntN(len(stalled))]
			s.props = append(s.props, proposal{what: "degrade", e: f.Epoch, g: f.Gen, r: Run{Member: m}})
			if s.bug == "degrade without commit" {
				g := *f
				g.InSync = g.InSync.Without(m)
				p.act.facts = g
			}
		}
	case k == 4:
		s.props = append(s.props, proposal{what: "bump", e: f.Epoch, by: by})
	case k == 5 && !f.Sticky && s.r.IntN(4) == 0:
		s.props = append(s.props, proposal{what: "sticky", e: f.Epoch, g: f.Gen, by: by, on: true})
	case k == 6 && f.Sticky:
		if !s.proposedOff[f.Gen] {
			s.do(n, p.act.GoAlone())
		}
	case k == 7 && f.Sticky:
		x := proposal{what: "sticky", e: f.Epoch, g: f.Gen, by: by}
		if p.act.Alone() && s.bug != "Unsticky does not say alone" {
			x.r.Inc = 1
		}
		s.proposedOff[f.Gen] = true
		s.props = append(s.props, x)
	case k == 8 && s.bug == "in sync proposed before waiting":
		for _, r := range p.act.Replicas(s.now, nil) {
			if r.Phase >= CatchUp && r.Accepted+1 >= p.applied && r.Durable+1 >= p.applied {
				s.props = append(s.props, proposal{what: "insync", e: f.Epoch, g: f.Gen, r: r.Run})
			}
		}
	}
}

func (s *sim) step() {
	s.now += 1
	pick := s.nodes[s.r.IntN(len(s.nodes))]
	switch k := s.r.IntN(100); {
	case k < 14:
		if p := pick.p; p != nil && p.act.Leads() && len(p.pend) < 8 {
			s.ops++
			s.write(pick, s.ops)
		}
	case k < 24:
		if p := pick.p; p != nil && p.act.Leads() {
			s.flush(pick)
		}
	case k < 28:
		if p := pick.p; p != nil && p.act.Leads() {
			pick.d.durable = len(pick.d.recs)
			p.act.Durable(uint64(len(pick.d.recs)))
		}
	case k < 32:
		if p := pick.p; p != nil && p.act.Leads() && len(p.syncs) < 3 {
			s.flush(pick)
			if pick.p == nil {
				break
			}
			p.syncs = append(p.syncs, simSync{p.last, p.grant})
			p.act.Wanted(p.last)
			for _, x := range s.sess {
				if x.pa == p && x.stream {
					x.toF = append(x.toF, msg{kind: "sync"})
				}
			}
		}
	case k < 66:
		if len(s.sess) > 0 {
			x := s.sess[s.r.IntN(len(s.sess))]
			switch {
			case s.r.IntN(2) == 0 && len(x.toF) > 0:
				s.deliverF(x)
			case len(x.toA) > 0:
				s.deliverA(x)
			case x.ending && x.based && s.r.IntN(3) == 0:
				x.ending = false
				x.toF = append(x.toF, msg{kind: "done"})
			}
		}
	case k < 72:
		s.connect(s.r.IntN(len(s.nodes)), s.r.IntN(len(s.nodes)))
	case k < 82:
		if pick.at+1 < len(s.facts) && (pick.at >= 0 || s.facts[len(s.facts)-1].Inc(pick.no) == pick.inc) {
			if pick.at < 0 { // a new run begins where its Join stands
				for i, f := range s.facts {
					if f.Inc(pick.no) == pick.inc {
						pick.at = i
						break
					}
				}
			} else {
				pick.at++
			}
			if pick.p != nil {
				s.tell(pick)
			}
		}
	case k < 88:
		if len(s.props) > 0 {
			s.commit(s.r.IntN(len(s.props)))
		}
	case k < 92:
		s.daemon(pick)
	case k < 94:
		if p := pick.p; p != nil {
			s.do(pick, p.act.Tick(s.now))
		}
	case k < 96:
		if pick.p == nil {
			s.boot(pick)
		}
	case k == 96:
		if len(s.sess) > 0 && s.r.IntN(2) == 0 {
			x := s.sess[s.r.IntN(len(s.sess))]
			s.drop(func(y *sess) bool { return y == x })
		}
	case k == 97 && s.r.IntN(2) == 0:
		s.commitGrant(s.r.IntN(len(s.nodes)))
	case k == 98 && s.r.IntN(3) == 0:
		s.crash(pick)
	case k == 99:
		if pick.p != nil {
			pick.p.redone = uint64(len(pick.d.recs)) // its applier has come to the end
		}
		for len(s.props) > 6 {
			s.props = s.props[1:]
		}
	}
	for _, n := range s.nodes {
		s.settle(n)
	}
}

// crash ends the volume server, the daemon or the whole host.
func (s *sim) crash(n *simNode) {
	if n.p != nil {
		s.kill(n)
	}
	switch s.r.IntN(3) {
	case 0:
		s.note("the volume server of %d dies", n.no)
		return
	case 1:
		s.note("the daemon of %d dies", n.no)
	case 2:
		if s.cuts > 0 {
			return
		}
		s.cuts++
		s.note("the power of %d is cut", n.no)
		n.boot++
		n.d.recs = n.d.recs[:n.d.durable:n.d.durable]
		n.d.hist = n.d.hist.Cut(uint64(n.d.durable))
	}
	n.inc++
	n.at = -1
	s.grp.Join(n.no, n.inc, cluster.BootID{n.boot})
	s.snapshot()
}

func runSim(seed uint64, bug string) *sim {
	r := rand.New(rand.NewPCG(seed, 1))
	copies := 2 + r.IntN(2)
	mode := Sync
	if r.IntN(3) == 0 {
		mode = SyncOnFsync
	}
	s := newSim(seed, copies, mode, bug)
	for range 1200 {
		s.step()
		if s.failed != "" {
			break
		}
	}
	return s
}

func TestSimulation(t *testing.T) {
	if *oneSeed != 0 {
		s := runSim(*oneSeed, "")
		t.Logf("%d copies, %v\n%s", len(s.nodes), s.mode, strings.Join(s.story, "\n"))
		if s.failed != "" {
			t.Fatal(s.failed)
		}
		return
	}
	var acks, syncs, leads, in, rew, res, alones int
	start := time.Now()
	for seed := uint64(1); seed <= uint64(*seeds); seed++ {
		s := runSim(seed, "")
		if s.failed != "" {
			t.Fatalf("%s\n%d copies, %v; replay: go test ./replication/stream/replica -run Simulation -seed=%d\n%s", s.failed, len(s.nodes), s.mode, seed, strings.Join(s.story, "\n"))
		}
		acks, syncs, leads, in, rew, res, alones = acks+s.acks, syncs+s.syncAcks, leads+s.leads, in+s.inSyncs, rew+s.rewinds, res+s.resyncs, alones+s.alones
	}
	t.Logf("%d seeds in %v: %d acknowledgements, %d syncs, %d tenures, %d InSync, %d rewinds, %d resyncs, %d times alone", *seeds, time.Since(start).Round(time.Millisecond), acks, syncs, leads, in, rew, res, alones)
	for what, n := range map[string]int{"acknowledgements": acks, "syncs": syncs, "tenures": leads - *seeds, "InSync": in, "rewinds": 100 * rew, "resyncs": res, "alone": alones} {
		if n < *seeds/100 {
			t.Errorf("%s happened %d times only: the simulation shows little", what, n)
		}
	}
}

// Each rule broken once: the simulation must find it.
func TestTheSimulationFindsEveryPlantedBug(t *testing.T) {
	for _, bug := range []string{
		"bytes visible before they are replicated",
		"pending operations survive deposition",
		"degrade without commit",
		"in sync without generation",
		"in sync proposed before waiting",
		"in sync before the standby has fsynced",
		"a standby that reports what it has not synced",
		"sync waits for receipt only",
		"a grant keeps the in-sync set",
		"a resync of a member in sync",
		"histories are not compared",
		"leads twice in a tenure",
		"Unsticky does not say alone",
		"no epoch in the stream",
		"what was accepted before a resync counts",
	} {
		t.Run(bug, func(t *testing.T) {
			for seed := uint64(1); seed <= 6000; seed++ {
				if s := runSim(seed, bug); s.failed != "" {
					t.Logf("seed %d: %s", seed, s.failed)
					return
				}
			}
			t.Error("not found in 6000 seeds")
		})
	}
}
