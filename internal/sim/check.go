package sim

import (
	"fmt"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
)

// checkOne is I1: as a gate opens, or stays open, nothing of this service may act anywhere else. Two intervals overlap exactly if one is open
// as the other begins, so that asking at each opening asks at every instant. It goes by the name: a service that was deleted and made
// again has the same addresses.
func (w *world) checkOne(h *host, g *gate) {
	for _, o := range w.hosts {
		if o == h {
			continue
		}
		for _, x := range o.gates {
			if x.name == g.name && x.until > w.t {
				what := "its gate is open"
				if !x.open {
					what = "its processes still act"
				}
				w.fail("I1: %s serves %s in epoch %d while %s has it in epoch %d: %s for %v more", h.name, g.name, g.epoch, o.name, x.epoch, what,
					time.Duration(x.until-w.t))
			}
		}
	}
}

// checkRelease is H6: a Release is sent only when everything is shut.
func (h *host) checkRelease(r *core.Release) {
	g := h.gate(r.Service)
	if (g.open || g.closing > 0 || g.failed) && h.w.o.Plant == "" {
		h.w.fail("%s releases epoch %d of service %d: gate open %v, %d orders to close not answered, last one failed %v", h.name, r.Epoch, r.Service,
			g.open, g.closing, g.failed)
	}
}

// beforeApply keeps what the checks need of the record that a command is about, the first time that it is applied anywhere.
func (w *world) beforeApply(h *host, cmd *state.Command) *lock.Service {
	if h.raft.applied <= len(w.digests) {
		return nil
	}
	if cmd.Grant != nil {
		if s := h.core.State().Service(cmd.Grant.Service); s != nil {
			c := s.Lock.Clone()
			return &c
		}
	}
	return nil
}

func (w *world) afterApply(h *host, cmd *state.Command, o state.Outcome, before *lock.Service) {
	first := h.raft.applied > len(w.digests)
	if first && o.Result == lock.Accepted {
		w.count(h, cmd, o, before)
	}
	w.applied(h, cmd, o)
}

func (w *world) count(h *host, cmd *state.Command, o state.Outcome, before *lock.Service) {
	st := h.core.State()
	switch {
	case cmd.Grant != nil && before != nil:
		w.res.Grants++
		to := cmd.Grant.To
		if before.Holder.Node != 0 && before.Holder.Node != to.Node {
			w.res.Moves++
		}
		if before.Data && !before.InSync.Has(to.Node) {
			w.fail("K8: service %d was granted to %s, which is not in sync", cmd.Grant.Service, st.MemberName(to.Node))
		}
		if a := st.Group.Admission(to.Node); a.Inc != to.Inc {
			w.fail("service %d was granted to a run that is not admitted", cmd.Grant.Service)
		}
		if d := st.Decision(o.Decision); d == nil || d.Sentence == "" || d.EpochTo != o.Epoch {
			w.fail("no decision was recorded for epoch %d of service %d", o.Epoch, cmd.Grant.Service)
		}
		if before.Data {
			w.dataGranted(st, cmd.Grant.Service, to.Node, len(cmd.Grant.Reports), false)
		}
	case cmd.Force != nil:
		w.dataGranted(st, cmd.Force.Service, cmd.Force.To.Node, 0, true)
	case cmd.SpecApply != nil:
		w.dataMade(st)
	case cmd.Bump != nil:
		w.res.Bumps++
	case cmd.Sticky != nil && !cmd.Sticky.Off:
		w.res.Stickies++
	case cmd.Settle != nil:
		w.res.Settles++
	case cmd.MemberAdd != nil:
		w.added(o, cmd.MemberAdd)
	}
}

// applied compares the states of all members at the same index (K5), and looks that nothing goes back (I5).
func (w *world) applied(h *host, cmd *state.Command, o state.Outcome) {
	st := h.core.State()
	d := digest(st)
	i := h.raft.applied - 1
	switch {
	case i < len(w.digests):
		if w.digests[i] != d {
			w.fail("K5: the state of %s at index %d differs from that of others", h.name, i+1)
		}
		return
	case i > len(w.digests):
		w.fail("index %d was applied before %d", i+1, len(w.digests)+1)
	}
	w.digests = append(w.digests, d)
	w.mix(d)
	for i := range st.Services {
		s := &st.Services[i]
		if was, ok := w.top[s.No]; ok && (was.Epoch > s.Lock.Epoch || was.Gen > s.Lock.Gen) {
			w.fail("I5: epoch or generation of %s went back", s.Name)
		}
		w.top[s.No] = s.Lock
	}
	for n := range st.Group.Admitted {
		for len(h.seenInc) <= n {
			h.seenInc = append(h.seenInc, 0)
		}
		if a := st.Group.Admitted[n].Inc; a < h.seenInc[n] {
			w.fail("I5: the incarnation of member %d went back", n)
		} else {
			h.seenInc[n] = a
		}
	}
}

func digest(st *state.State) uint64 {
	x := uint64(14695981039346656037)
	mix := func(v uint64) { x = (x ^ v) * 1099511628211 }
	for i := range st.Services {
		l := &st.Services[i].Lock
		mix(uint64(st.Services[i].No))
		mix(uint64(l.Epoch))
		mix(uint64(l.Holder.Node)<<32 | uint64(l.Holder.Inc))
		mix(uint64(l.Gen)<<2 | bit(l.Held)<<1 | bit(l.Sticky))
		mix(uint64(l.InSync)<<32 ^ uint64(l.Eligible))
		mix(uint64(l.TTLMax))
		mix(l.Confirmed)
	}
	for _, s := range st.Group.Sets {
		mix(s.C<<40 ^ uint64(s.Set))
	}
	for _, a := range st.Group.Admitted {
		mix(uint64(a.Inc))
	}
	mix(st.LastDecision)
	mix(st.LastEvent)
	mix(st.Spec.N)
	return x
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// alive is the liveness check, after everything has healed.
func (w *world) alive() {
	var leader *host
	for _, h := range w.hosts {
		if h.gone {
			continue
		}
		if !h.up || h.paused {
			w.fail("%s is not back", h.name)
		}
		if h.raft.mine {
			leader = h
		}
	}
	if leader == nil {
		w.fail("liveness: nobody leads")
	}
	if !leader.core.Leads() {
		w.fail("liveness: %s leads and does not coordinate", leader.name)
	}
	st := leader.core.State()
	if n := len(st.Group.Sets); n != 1 {
		w.fail("liveness: %d voter sets are not settled", n)
	}
	for _, h := range w.hosts {
		if h.gone {
			continue
		}
		if h.raft.applied != len(w.raft.log) {
			w.fail("liveness: %s has applied %d of %d", h.name, h.raft.applied, len(w.raft.log))
		}
		if !h.core.Joined() {
			w.fail("liveness: %s is not admitted", h.name)
		}
		for _, o := range h.orders {
			w.fail("liveness: %s has not answered the order: %s", h.name, o)
		}
	}
	for i := range st.Services {
		w.aliveService(leader, &st.Services[i])
	}
}

func (w *world) aliveService(leader *host, s *state.Service) {
	var at *host
	for _, h := range w.hosts {
		for _, g := range h.gates {
			if g.no == s.No && g.until > w.t {
				at = h
			}
		}
	}
	if s.Stopped {
		if at != nil {
			w.fail("liveness: %s is stopped and runs on %s", s.Name, at.name)
		}
		return
	}
	if at == nil {
		w.fail("liveness: %s is served by nobody: %s", s.Name, leader.why(s.No))
	}
	if s.Lock.Holder.Node != no(at.i) {
		w.fail("liveness: %s is served by %s, the log says member %d", s.Name, at.name, s.Lock.Holder.Node)
	}
	if s.Lock.Sticky {
		w.fail("liveness: %s is still sticky", s.Name)
	}
	if s.Lock.Data && s.Lock.InSync != s.Lock.Eligible {
		w.fail("liveness: %s has copies that are not in sync again: %s", s.Name, leader.why(s.No))
	}
}

// why is the record of a service and what each member says.
func (h *host) why(n cluster.ServiceNo) string {
	s := h.core.State().Service(n)
	return fmt.Sprintf("%+v; stopped %v, moves %d, admitted %v, %s", s.Lock, s.Stopped, len(s.Moves), h.core.State().Group.Admitted, h.core.Verdict(n))
}
