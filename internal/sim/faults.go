package sim

import (
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
)

// nemesis lets something fail, again and again.
func (w *world) nemesis() {
	if w.healed {
		return
	}
	w.fault()
	if w.chance(4) { // two at once
		w.fault()
	}
	next := w.between(50*time.Millisecond, 2500*time.Millisecond)
	if w.quiet {
		next *= 4
	}
	if w.chance(10) {
		next += 5 * time.Second
	}
	w.after(next, w.nemesis)
}

// span is how long a fault lasts: mostly about as long as leases do.
func (w *world) span() time.Duration {
	if w.chance(6) {
		return w.between(2*time.Second, 9*time.Second)
	}
	return w.between(5*time.Millisecond, 1500*time.Millisecond)
}

func (w *world) fault() {
	w.res.Faults++
	h, o := w.pick(), w.pick()
	d := w.span()
	switch w.rng.IntN(17) {
	case 0, 1:
		w.log(h, "FAULT: cut from %s for %v", o.name, d)
		w.cut(h, o, d)
		w.cut(o, h, d)
	case 2:
		w.log(h, "FAULT: %s does not hear it for %v", o.name, d)
		w.cut(h, o, d)
	case 3, 4:
		w.isolate(h, d)
	case 5:
		w.log(h, "FAULT: cut from all but %s for %v", o.name, d)
		for _, x := range w.hosts {
			if x != h && x != o {
				w.cut(h, x, d)
				w.cut(x, h, d)
			}
		}
	case 6:
		w.impair(h, o, d)
	case 7, 8:
		h.pause(d)
	case 9, 10:
		w.crash(h, d, false)
	case 11:
		w.crash(h, d+time.Second, true)
	case 12:
		if w.chance(3) {
			w.log(nil, "FAULT: power cut of all")
			for _, x := range w.hosts {
				if !x.gone {
					w.crash(x, w.between(500*time.Millisecond, 4*time.Second), true)
				}
			}
		}
	case 13:
		h.wallOff += w.rng.Int64N(1 << 32)
		h.slow = w.between(0, 300*time.Millisecond)
	case 14:
		w.witnessAway(d)
	case 15:
		w.fails(h)
	case 16: // the nodes lose each other, and then the witnesses forget
		w.log(nil, "FAULT: the nodes are cut from each other for %v", d)
		for _, x := range w.hosts {
			if x.gone {
				continue
			}
			if x.role == cluster.RoleWitness {
				w.after(w.between(0, d+1), func() {
					if !w.healed {
						w.crash(x, w.between(5*time.Millisecond, 200*time.Millisecond), false)
					}
				})
				continue
			}
			for _, y := range w.hosts {
				if y.role == cluster.RoleNode {
					w.cut(x, y, d)
				}
			}
		}
	}
}

func (w *world) cut(a, b *host, d time.Duration) {
	if a == b {
		return
	}
	w.link(a.i, b.i).cut++
	w.after(d, func() {
		if l := w.link(a.i, b.i); l.cut > 0 {
			l.cut--
		}
	})
}

func (w *world) isolate(h *host, d time.Duration) {
	w.log(h, "FAULT: isolated for %v", d)
	for _, x := range w.hosts {
		w.cut(h, x, d)
		w.cut(x, h, d)
	}
}

func (w *world) impair(h, o *host, d time.Duration) {
	if h == o {
		return
	}
	w.log(h, "FAULT: a bad link to %s for %v", o.name, d)
	l := w.link(h.i, o.i)
	was := *l
	switch w.rng.IntN(4) {
	case 0:
		l.loss = w.rng.IntN(900)
	case 1:
		l.delay, l.jitter = w.between(0, 300*time.Millisecond), w.between(time.Millisecond, 500*time.Millisecond)
	case 2:
		l.dup, l.late = w.rng.IntN(500), w.rng.IntN(200)
	case 3: // flaps
		for i := range 6 {
			w.after(d*time.Duration(i)/6, func() {
				if !w.healed {
					w.cut(h, o, d/12)
				}
			})
		}
	}
	w.after(d*4, func() {
		if w.healed {
			return // what was before may have been another fault, which is over by now
		}
		c := l.cut
		*l = was
		l.cut = c
	})
}

func (w *world) crash(h *host, d time.Duration, power bool) {
	if !h.up {
		return
	}
	h.crash()
	if power {
		h.reboot()
		w.log(h, "FAULT: power cut")
	}
	life := h.life
	w.after(d, func() {
		if h.life == life {
			h.start()
		}
	})
}

// witnessAway takes a witness away long enough for the active to go on without it.
func (w *world) witnessAway(d time.Duration) {
	for _, h := range w.hosts {
		if h.role != cluster.RoleWitness || h.gone {
			continue
		}
		d += w.between(5*time.Second, 9*time.Second)
		if w.chance(2) {
			w.crash(h, d, w.chance(2))
		} else {
			w.isolate(h, d)
		}
	}
}

// fails lets a service fail on a host.
func (w *world) fails(h *host) {
	if !h.up || h.paused {
		return
	}
	st := h.core.State()
	if len(st.Services) == 0 {
		return
	}
	n := st.Services[w.rng.IntN(len(st.Services))].No
	then := []string{"failover", "failover", "failover", "stop", "ignore"}[w.rng.IntN(5)]
	w.log(h, "FAULT: service %d fails, then %s", n, then)
	h.step(core.Health{Service: n, Unhealthy: true, GaveUp: "process web: exit status 1", Then: then})
}

// meddle lets something fail just as a member does something delicate.
func (w *world) meddle(h *host, a core.Action) bool {
	if w.healed {
		return false
	}
	n := 0
	switch a := a.(type) {
	case core.Propose:
		switch c := a.Command; {
		case c.Sticky != nil && c.Sticky.Off:
			n = 3
		case c.Grant != nil, c.Bump != nil, c.Sticky != nil, c.Settle != nil, c.Confirm != nil:
			n = 10
		}
	case core.Send:
		switch f := a.Frame.(type) {
		case *core.Promise:
			if f.Yes {
				n = 15
			}
		case *core.Release, *core.Granted:
			n = 25
		}
	case core.Extend:
		if a.First {
			n = 8
		}
	case core.Close, core.Begin, core.Bumped:
		n = 8
	}
	if n == 0 || !w.chance(n) {
		return false
	}
	w.res.Faults++
	d := w.span()
	switch w.rng.IntN(6) {
	case 0:
		h.pause(d)
	case 1:
		w.crash(h, d, false)
	case 2:
		w.isolate(h, d)
	case 3:
		o := w.pick()
		w.log(h, "FAULT: cut from %s for %v", o.name, d)
		w.cut(h, o, d)
		w.cut(o, h, d)
	case 4: // what is under way still gets through
		w.after(w.between(time.Millisecond, 30*time.Millisecond), func() {
			if w.healed {
				return
			}
			w.isolate(h, d)
			if w.chance(3) {
				h.pause(d)
			}
		})
	case 5:
		w.crash(w.pick(), w.between(5*time.Millisecond, 300*time.Millisecond), false)
	}
	return true
}

// heal ends all faults.
func (w *world) heal() {
	w.healed = true
	w.log(nil, "---- everything heals ----")
	for i := range w.links {
		for j := range w.links[i] {
			w.links[i][j] = w.calmLink()
		}
	}
	for _, h := range w.hosts {
		h.slow = 0
		if h.gone {
			continue
		}
		if !h.up {
			h.start()
		}
		h.resume()
	}
	for i := range w.specs.spec.Services {
		s := &w.specs.spec.Services[i]
		s.Failover = "automatic"
		s.Load = 0 // one that only the node of a worthier one may hold would wait for it for ever
	}
	w.specs.spec.MaxFailovers = 999 // tells this spec from all before
	w.mend()
}

// mend is an operator who puts everything right, for a while.
func (w *world) mend() {
	left := w.o.Faults + w.o.Calm - time.Duration(w.t)
	if left < w.o.Calm/2 {
		return
	}
	w.after(500*time.Millisecond, w.mend)
	h := w.leader()
	if h == nil {
		return
	}
	st := h.core.State()
	if c := st.Compiled(); c != nil && (c.MaxFailovers != 999 || len(c.Services) != len(w.specs.spec.Services)) {
		w.order(h, w.specCommand(st.Spec.N))
	}
	for i := range st.Services {
		s := &st.Services[i]
		want := func(word string) {
			w.order(h, &state.Command{Who: "operator", Desired: &state.Desired{Service: s.Name, Want: word}})
		}
		if s.Stopped && w.o.Seed%2 == 0 { // in every other run it stays stopped
			want("run")
		}
		if s.PausedUntil != 0 {
			want("resume")
		}
		if s.Lock.Held || len(s.Moves) > 0 {
			want("clear")
		}
		if yes, who := s.Approved(); who != "" && !yes {
			w.order(h, &state.Command{Who: "operator", Approval: &state.Approval{Service: s.Name, Epoch: s.Lock.Epoch, Yes: true, Who: "operator"}})
		}
		w.force(h, s)
	}
	for i := range st.Members {
		if m := &st.Members[i]; m.Drained && !m.Removed {
			w.order(h, &state.Command{Who: "operator", MemberSet: &state.MemberSet{Name: m.Name, Undrain: true}})
		}
	}
}
