package sim

import (
	"errors"
	"time"

	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
)

// raft is a model of what Raft promises: one log; a leader of a term chosen by a majority whose logs are not newer than its own; commits
// only with a majority; a deposed leader's entries may still be committed by its successor; followers learn late.
type raft struct {
	log    []entry // committed; log[i] has index i+1
	voters []int
	term   uint64
	limbo  []*proposal // of leaders that were deposed, in order
}

type entry struct {
	data   []byte
	voters []string
	hosts  []int // the voters as hosts
}

type proposal struct {
	data    []byte
	voters  []int // a change of the configuration, instead of data
	by      *host
	life    uint32
	id      uint64
	reply   func(state.Outcome, error)
	done    bool
	ready   int64
	outcome state.Outcome
}

// part is one host's part in Raft.
type part struct {
	leader  int // -1: unknown
	mine    bool
	term    uint64
	contact int64
	timeout time.Duration
	stored  int // entries on its disk
	applied int
	quorum  int64 // when this leader last had a majority
	pending []*proposal
	kicked  int64
	barrier bool // the core knows that it leads
}

const (
	raftT    = 300 * time.Millisecond
	raftTick = 50 * time.Millisecond
)

var errUnknown = errors.New("the outcome is not known")

func (w *world) raftLoop() {
	for _, h := range w.hosts {
		if h.up && !h.paused {
			w.raftStep(h)
		}
	}
	w.after(raftTick, w.raftLoop)
}

// alike says whether a reaches b, which runs. A member that either knows to be removed is not let in any more.
func (w *world) alike(a, b *host) bool {
	if !b.up || b.paused || !w.conn(a.i, b.i) {
		return false
	}
	return len(w.specs.adding) == 0 || !(a.up && a.removed(b)) && !b.removed(a)
}

func (w *world) majority(n int) bool { return n > len(w.raft.voters)/2 }

func (w *world) isVoter(h *host) bool {
	for _, v := range w.raft.voters {
		if v == h.i {
			return true
		}
	}
	return false
}

func (w *world) raftStep(h *host) {
	r := &h.raft
	if !r.mine {
		if time.Duration(w.t-r.contact) > r.timeout {
			r.contact, r.timeout = w.t, w.between(raftT, 2*raftT)
			w.follow(h, -1, r.term)
			w.candidate(h, false)
		}
		return
	}
	n := 0
	for _, f := range w.hosts {
		if !h.up || h.paused || !r.mine {
			return // something of what followers did has stopped it
		}
		if f == h || f.gone || !w.alike(h, f) {
			continue
		}
		if f.raft.term > r.term {
			w.stepDown(h)
			return
		}
		if f.raft.mine && f.raft.term == r.term {
			w.fail("two leaders of term %d", r.term)
		}
		f.raft.contact, f.raft.term = w.t, r.term
		w.follow(f, h.i, r.term)
		if f.raft.applied < r.applied {
			w.learn(f, h, r.applied)
		}
	}
	for _, v := range w.raft.voters {
		if f := w.hosts[v]; f == h || w.alike(h, f) {
			n++
		}
	}
	if w.majority(n) {
		r.quorum = w.t
	} else if time.Duration(w.t-r.quorum) > raftT/2 {
		w.stepDown(h)
	}
	w.pump(h)
}

// follow tells a host who leads.
func (w *world) follow(f *host, leader int, term uint64) {
	r := &f.raft
	if r.leader == leader && r.term == term {
		return
	}
	if r.mine {
		w.dropPending(f)
	}
	r.leader, r.term, r.mine, r.barrier = leader, term, false, false
	life := f.life
	w.after(w.between(0, 3*time.Millisecond), func() {
		if f.life != life || !f.up || f.raft.mine {
			return
		}
		id := ""
		if f.raft.leader >= 0 {
			id = w.hosts[f.raft.leader].serverID()
		}
		f.post(core.Leadership{ServerID: id})
	})
}

func (w *world) stepDown(h *host) {
	w.log(h, "does not lead any more (term %d)", h.raft.term)
	h.raft.contact = w.t
	w.dropPending(h)
	h.raft.mine = true
	w.follow(h, -1, h.raft.term)
	h.raft.mine = false
}

// dropPending leaves what a deposed leader had not committed to chance.
func (w *world) dropPending(h *host) {
	for _, p := range h.raft.pending {
		if h.raft.term == w.raft.term { // nobody has been elected since: it may yet be found on a disk
			w.raft.limbo = append(w.raft.limbo, p)
		}
		w.answer(p, h, errUnknown)
	}
	h.raft.pending = nil
}

// candidate holds an election.
func (w *world) candidate(h *host, force bool) {
	if !h.up || h.paused || h.raft.mine || !w.isVoter(h) {
		return
	}
	votes := 0
	for _, v := range w.raft.voters {
		f := w.hosts[v]
		switch {
		case f == h:
			votes++
		case !w.alike(h, f) || f.raft.stored > h.raft.stored:
		case force || (f.raft.leader < 0 && !f.raft.mine) || time.Duration(w.t-f.raft.contact) > raftT:
			votes++
		}
	}
	if !w.majority(votes) {
		w.log(h, "is no leader: %d votes of %d", votes, len(w.raft.voters))
		return
	}
	w.raft.term++
	term := w.raft.term
	for _, v := range w.raft.voters {
		if f := w.hosts[v]; f != h && w.alike(h, f) {
			f.raft.contact = w.t
			w.deposed(f)
			w.follow(f, h.i, term)
		}
	}
	// What leaders of before had not committed: a prefix of it may be on this disk, and is committed with the first entry of the new term.
	left := w.raft.limbo
	for _, f := range w.hosts {
		if f.raft.mine {
			left = append(left, f.raft.pending...)
		}
	}
	w.raft.limbo = nil
	if n := len(left); n > 0 {
		left = left[:w.rng.IntN(n+1)]
	}
	r := &h.raft
	r.leader, r.mine, r.term, r.quorum, r.barrier, r.pending = h.i, true, term, w.t, false, nil
	for _, p := range left {
		w.log(h, "finds an entry of an earlier leader on its disk")
		q := *p
		q.reply, q.done, q.ready = nil, true, w.t
		r.pending = append(r.pending, &q)
	}
	w.log(h, "leads term %d", term)
	w.after(w.between(2*time.Millisecond, 15*time.Millisecond)+w.disk(), func() { w.lead(h, term) })
}

// deposed marks a leader that has voted for another one.
func (w *world) deposed(f *host) {
	if f.raft.mine {
		for _, p := range f.raft.pending {
			w.raft.limbo = append(w.raft.limbo, p)
			w.answer(p, f, errUnknown)
		}
		f.raft.pending, f.raft.mine = nil, false
	}
}

// lead begins to coordinate once everything committed before is applied.
func (w *world) lead(h *host, term uint64) {
	r := &h.raft
	if !h.up || !r.mine || r.term != term || r.barrier {
		return
	}
	if h.paused || !w.pump(h) {
		w.after(10*time.Millisecond, func() { w.lead(h, term) })
		return
	}
	r.barrier = true
	w.apply(h, len(w.raft.log))
	h.step(core.Leadership{ServerID: h.serverID(), Mine: true})
}

// disk is how long an fsync takes.
func (w *world) disk() time.Duration {
	if w.chance(50) {
		return w.between(10*time.Millisecond, 200*time.Millisecond)
	}
	return w.between(300*time.Microsecond, 4*time.Millisecond)
}

// pump commits what waits at a leader, if it has a majority. It says whether it has.
func (w *world) pump(h *host) bool {
	r := &h.raft
	if !h.up || h.paused || !r.mine || r.term != w.raft.term {
		return false
	}
	n := 0
	for _, v := range w.raft.voters {
		if f := w.hosts[v]; f == h || (w.alike(h, f) && f.raft.term <= r.term) {
			n++
		}
	}
	if !w.majority(n) {
		return false
	}
	w.apply(h, len(w.raft.log))
	for len(r.pending) > 0 && r.pending[0].ready <= w.t && r.mine {
		p := r.pending[0]
		r.pending = r.pending[1:]
		w.commit(h, p)
	}
	for _, v := range w.raft.voters {
		if f := w.hosts[v]; f == h || w.alike(h, f) {
			f.raft.stored = len(w.raft.log)
		}
	}
	return true
}

func (w *world) commit(h *host, p *proposal) {
	e := entry{data: p.data}
	if p.voters != nil {
		for _, v := range p.voters {
			e.voters = append(e.voters, w.hosts[v].serverID())
		}
		e.hosts = p.voters
	}
	w.raft.log = append(w.raft.log, e)
	if e.hosts != nil {
		w.raft.voters = e.hosts
		w.log(h, "commits %d: voters %v", len(w.raft.log), e.voters)
	}
	for _, v := range w.raft.voters {
		if f := w.hosts[v]; f == h || w.alike(h, f) {
			f.raft.stored = len(w.raft.log)
		}
	}
	p.outcome = w.apply(h, len(w.raft.log))
	w.answer(p, h, nil)
	upto := len(w.raft.log)
	for _, f := range w.hosts {
		if f == h || f.gone {
			continue
		}
		d := w.latency(h.i, f.i) + w.between(0, 15*time.Millisecond)
		if w.chance(20) {
			d += w.between(0, 200*time.Millisecond)
		}
		life := f.life
		w.after(d, func() {
			if f.life == life && h.up && !h.paused && w.alike(h, f) {
				w.learn(f, h, upto)
			}
		})
	}
}

// answer tells a proposer what came of its command.
func (w *world) answer(p *proposal, at *host, err error) {
	if p.done || p.reply == nil {
		return
	}
	w.after(w.latency(at.i, p.by.i), func() {
		if p.done || p.by.life != p.life || !w.conn(at.i, p.by.i) {
			return // the time-out answers
		}
		p.done = true
		p.by.call(func() { p.reply(p.outcome, err) })
	})
}

// learn brings a follower forward: entry by entry, or by a snapshot where it is far behind.
func (w *world) learn(f, from *host, upto int) {
	upto = min(upto, len(w.raft.log), from.raft.applied)
	if !f.up || f.paused || f.raft.applied >= upto || f.gone {
		return
	}
	if upto-f.raft.applied > 12 && w.chance(4) {
		st, err := state.Restore(from.core.State().Snapshot())
		if err != nil {
			w.fail("restore: %v", err)
		}
		w.res.Restores++
		f.raft.applied = from.raft.applied
		f.raft.stored = max(f.raft.stored, f.raft.applied)
		w.log(f, "gets a snapshot of index %d", f.raft.applied)
		f.carry(f.core.Restore(f.now(), st))
		f.again()
		return
	}
	f.raft.stored = max(f.raft.stored, upto)
	w.apply(f, upto)
}

// apply applies committed entries in order and answers the outcome of the last one.
func (w *world) apply(h *host, upto int) (out state.Outcome) {
	for h.raft.applied < upto && h.up && !h.paused {
		e := &w.raft.log[h.raft.applied]
		h.raft.applied++
		if e.voters != nil {
			h.carry(h.core.Voters(h.now(), e.voters))
			w.applied(h, nil, out)
			continue
		}
		cmd, err := state.Decode(e.data)
		if err != nil {
			w.fail("a command of the log cannot be read: %v", err)
		}
		before := w.beforeApply(h, cmd)
		o, acts, err := h.core.Apply(h.now(), h.wall(), uint64(h.raft.applied), cmd)
		if err != nil {
			w.fail("apply %d: %v", h.raft.applied, err)
		}
		out = o
		if w.o.Trace && len(w.raft.log)-h.raft.applied < 50 {
			w.log(h, "applies %d: %s -> %v", h.raft.applied, showCommand(cmd), o.Result)
		}
		w.afterApply(h, cmd, o, before)
		h.carry(acts)
	}
	h.again()
	return out
}

// propose brings a command to the leader: directly, or through one other member.
func (w *world) propose(h *host, data []byte, voters []int, reply func(state.Outcome, error)) {
	p := &proposal{data: data, voters: voters, by: h, life: h.life, reply: reply}
	h.proposals++
	if h.proposals > 300 {
		w.fail("%s has more than 300 proposals under way", h.name)
	}
	was := p.reply
	p.reply = func(o state.Outcome, err error) {
		h.proposals--
		if was != nil {
			was(o, err)
		}
	}
	w.route(p, w.t+int64(3*time.Second))
	w.after(3*time.Second, func() {
		if !p.done && h.life == p.life {
			p.done = true
			h.call(func() { p.reply(state.Outcome{}, errUnknown) })
		}
	})
}

func (w *world) route(p *proposal, until int64) {
	h := p.by
	if p.done || h.life != p.life || w.t >= until {
		return
	}
	again := func() { w.after(w.between(5*time.Millisecond, 30*time.Millisecond), func() { w.route(p, until) }) }
	if h.paused {
		again()
		return
	}
	to, d := -1, time.Duration(0)
	if l := h.raft.leader; l >= 0 && w.conn(h.i, l) && w.hosts[l].up {
		to, d = l, w.latency(h.i, l)
	} else {
		for _, r := range w.hosts {
			if r == h || r.gone || !w.alike(h, r) {
				continue
			}
			if l := r.raft.leader; l >= 0 && w.conn(r.i, l) && w.hosts[l].up {
				to, d = l, w.latency(h.i, r.i)+w.latency(r.i, l)
				break
			}
		}
	}
	if to < 0 {
		again()
		return
	}
	l := w.hosts[to]
	life := l.life
	w.after(d, func() { w.arrive(p, l, life, until, again) })
}

// arrive is a proposal at the member that was believed to lead.
func (w *world) arrive(p *proposal, l *host, life uint32, until int64, again func()) {
	switch {
	case l.life != life || !l.up:
		return // it died with it: the time-out answers
	case l.paused:
		if w.t < until+int64(3*time.Second) {
			w.after(50*time.Millisecond, func() { w.arrive(p, l, life, until, again) })
		}
	case !l.raft.mine:
		again()
	case l.removed(p.by):
		// its certificate is no longer taken: the time-out answers
	default:
		p.ready = w.t + int64(w.disk()+w.latency(l.i, p.by.i))
		l.raft.pending = append(l.raft.pending, p)
		w.after(time.Duration(p.ready-w.t), func() {
			if l.life == life {
				w.pump(l)
			}
		})
	}
}

// removed says whether this member has applied the removal of another one.
func (h *host) removed(o *host) bool {
	m := h.core.State().Member(no(o.i))
	return m != nil && m.Removed
}
