package sim

import (
	"slices"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
)

// leader is the host that coordinates, as a look at all of them shows.
func (w *world) leader() *host {
	for _, h := range w.hosts {
		if h.up && !h.paused && h.raft.mine && h.raft.barrier && h.raft.term == w.raft.term {
			return h
		}
	}
	return nil
}

// order has an operator's command proposed at a host.
func (w *world) order(h *host, c *state.Command) {
	c.At = h.wall()
	w.propose(h, c.Encode(), nil, nil)
}

// operator gives orders, sensible and not.
func (w *world) operator() {
	if w.healed {
		return
	}
	w.after(w.between(500*time.Millisecond, 6*time.Second), w.operator)
	h := w.pick()
	if !h.up || h.paused || len(h.core.State().Services) == 0 {
		return
	}
	st := h.core.State()
	s := &st.Services[w.rng.IntN(len(st.Services))]
	want := func(word string, until int64) {
		w.log(h, "OPERATOR: %s %s", word, s.Name)
		w.order(h, &state.Command{Who: "operator", Reason: "trial", Desired: &state.Desired{Service: s.Name, Want: word, Until: until}})
	}
	switch w.rng.IntN(12) {
	case 0, 1, 2, 3:
		w.switchover(s)
	case 4:
		want([]string{"stop", "run", "restart"}[w.rng.IntN(3)], 0)
		w.after(w.between(time.Second, 3*time.Second), func() { w.again(s.Name, "run") })
	case 5:
		want("pause", h.wall()+w.rng.Int64N(3000))
	case 6:
		want("hold", 0)
		w.after(w.between(time.Second, 3*time.Second), func() { w.again(s.Name, "clear") })
	case 7:
		want("clear", 0)
		// A word on the loss of the active, whether it is lost or not: it may hasten a takeover, and must never make one unsafe.
		w.order(h, &state.Command{Who: "operator", Approval: &state.Approval{Service: s.Name, Epoch: s.Lock.Epoch, Yes: s.Lock.Epoch%3 != 0, Who: "operator"}})
	case 8:
		m := w.hosts[w.rng.IntN(2)]
		w.log(h, "OPERATOR: drain %s", m.name)
		w.order(h, &state.Command{Who: "operator", MemberSet: &state.MemberSet{Name: m.name, Drain: true}})
		w.after(w.between(time.Second, 4*time.Second), func() {
			if h.up {
				w.order(h, &state.Command{Who: "operator", MemberSet: &state.MemberSet{Name: m.name, Undrain: true}})
			}
		})
	case 9:
		w.respec(h)
	case 10:
		w.replace(h)
	case 11:
		want("resume", 0)
	}
}

func (w *world) again(service, word string) {
	if h := w.pick(); h.up && !h.paused {
		w.order(h, &state.Command{Who: "operator", Desired: &state.Desired{Service: service, Want: word}})
	}
}

func (w *world) switchover(s *state.Service) {
	for _, h := range w.hosts {
		if !h.up || h.paused {
			continue
		}
		g := h.gate(s.No)
		if !g.open {
			continue
		}
		w.specNo++
		to := ""
		if w.chance(2) {
			to = w.pick().name
		}
		o := &core.Order{ID: uint64(w.specNo), Service: s.No, To: to, What: "switchover", By: "operator", Reason: "trial"}
		if w.chance(10) {
			o.Reason = strings.Repeat("a long reason ", 200)
		}
		w.log(h, "OPERATOR: switchover of %s to %q, order %d", s.Name, to, o.ID)
		h.orders[o.ID] = "switchover of " + s.Name + " to " + to
		h.step(o)
		return
	}
}

// respec changes the spec: another profile, a service more or less.
func (w *world) respec(h *host) {
	s := &w.specs.spec
	nodes := 0
	for _, x := range w.hosts {
		if x.role == cluster.RoleNode {
			nodes++
		}
	}
	w.specs.removed = nil
	switch w.rng.IntN(5) {
	case 0, 1:
		s.Profile, s.Lease = []string{"fast", "normal", "wan", "fastest"}[w.rng.IntN(4)], 0
		if w.wan && strings.HasPrefix(s.Profile, "fast") {
			s.Profile = "normal"
		}
	case 2:
		s.Lease = w.between(300*time.Millisecond, 2*time.Second).Round(time.Millisecond)
	case 3:
		if n := len(s.Services); n > 1 {
			w.specs.removed = []string{s.Services[n-1].Name}
			s.Services = s.Services[:n-1]
		} else {
			s.Services = append(s.Services, w.newService("db", nodes))
		}
	case 4:
		for _, name := range []string{"web", "db"} {
			if s.Service(name) == nil {
				s.Services = append(s.Services, w.newService(name, nodes))
				break
			}
		}
	}
	w.specs.removed = []string{"web", "db"}
	w.specs.removed = slices.DeleteFunc(w.specs.removed, func(n string) bool { return s.Service(n) != nil })
	w.log(h, "OPERATOR: spec with profile %s, lease %v, %d services", s.Profile, s.Lease, len(s.Services))
	w.order(h, w.specCommand(h.core.State().Spec.N))
	if w.chance(3) && len(w.specs.removed) > 0 { // deleted and at once made again
		s.Services = append(s.Services, w.newService(w.specs.removed[0], nodes))
		n := h.core.State().Spec.N + 1
		w.order(h, w.specCommand(n))
	}
}

// replace puts a new member in the place of a witness, or removes one.
func (w *world) replace(h *host) {
	if len(w.hosts) >= 8 {
		return
	}
	var old *host
	for _, x := range w.hosts {
		if x.role == cluster.RoleWitness && !x.gone {
			old = x
		}
	}
	if old == nil {
		return
	}
	hash := []byte{byte(100 + len(w.hosts)), byte(len(w.specs.adding))}
	w.log(h, "OPERATOR: a new member takes the place of %s", old.name)
	w.order(h, &state.Command{Who: "operator", TokenCreate: &state.Token{Hash: hash, Role: cluster.RoleWitness, Until: 1 << 60, Replace: old.name}})
	n := w.newHost(old.name, cluster.RoleWitness)
	w.specs.adding = append(w.specs.adding, n)
	w.after(time.Second, func() {
		if h.up && !w.healed {
			w.order(h, &state.Command{Who: "operator", MemberAdd: &state.MemberAdd{Member: n.member(), TokenHash: hash}})
		}
	})
}

// added starts a member as the log admits it.
func (w *world) added(o state.Outcome, c *state.MemberAdd) {
	for _, n := range w.specs.adding {
		if n.id != c.Member.ID || int(o.Member) != len(w.hosts)+1 {
			continue
		}
		n.i = len(w.hosts)
		w.hosts = append(w.hosts, n)
		w.growLinks()
		w.after(w.between(0, time.Second), n.start)
	}
}

// roster makes the Raft configuration follow the members, as internal/member does.
func (w *world) roster() {
	w.after(300*time.Millisecond, w.roster)
	h := w.leader()
	if h == nil || len(h.raft.pending) > 0 {
		return
	}
	st := h.core.State()
	settled := len(st.Group.Sets) <= 1
	var candidates []int
	for i := range st.Members {
		m, x := &st.Members[i], w.hosts[i]
		voter := slices.Contains(w.raft.voters, i)
		switch {
		case m.Removed && voter && settled && x != h:
			w.revote(h, without(w.raft.voters, i))
			return
		case m.Removed && !voter && !x.gone:
			x.gone = true
			w.log(x, "is no longer one of the group")
		case !m.Removed && !voter && w.alike(h, x) && x.raft.applied+5 > len(w.raft.log):
			candidates = append(candidates, i)
		}
	}
	if !settled {
		return
	}
	n := len(w.raft.voters)
	switch {
	case n%2 == 1 && len(candidates) >= 2:
		w.revote(h, append(slices.Clone(w.raft.voters), candidates[0], candidates[1]))
	case n%2 == 0 && len(candidates) >= 1:
		w.revote(h, append(slices.Clone(w.raft.voters), candidates[0]))
	}
}

func without(l []int, x int) []int {
	return slices.DeleteFunc(slices.Clone(l), func(y int) bool { return y == x })
}

func (w *world) revote(h *host, voters []int) {
	w.log(h, "wants the voters %v", voters)
	w.propose(h, nil, voters, nil)
}

// force is the operator's way out where the active was going on without the witness and has been rebooted: only it may be granted the service, and
// what it had not fsynced is gone. Nothing must run then.
func (w *world) force(h *host, s *state.Service) {
	l := &s.Lock
	if !l.Data || !l.Sticky || l.Holder.Node == 0 {
		return
	}
	st := h.core.State()
	var to lock.Holder
	for _, n := range l.Eligible.List() {
		c := lock.Holder{Node: n, Inc: st.Group.Admission(n).Inc}
		if l.MayHold(&st.Group, c) == lock.Accepted && (!l.Sticky || n == l.Holder.Node) {
			return
		}
		if w.hosts[n-1].core.Joined() && (to.Node == 0 || l.InSync.Has(n)) {
			to = c
		}
	}
	if l.AllRebooted(&st.Group) && l.InSync.Has(l.Holder.Node) {
		return // they say what they have found, and it goes on by itself
	}
	for _, x := range w.hosts {
		for _, g := range x.gates {
			if g.name == s.Name && g.until > w.t {
				return
			}
		}
	}
	if to.Node == 0 || (l.Holder.Node != 0 && st.Group.Admission(l.Holder.Node).Inc == l.Holder.Inc) {
		return
	}
	w.log(h, "OPERATOR: force %s to member %d", s.Name, to.Node)
	w.order(h, &state.Command{Who: "operator", Force: &state.ForceGrant{Service: s.No, ForceGrant: lock.ForceGrant{
		Grant: lock.Grant{Epoch: l.Epoch, To: to, TTL: st.Timing().TTL}, Off: true}}})
}
