package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
)

func no(i int) cluster.MemberNo { return cluster.MemberNo(i + 1) }

// host is one member and the machine that it runs on.
type host struct {
	w    *world
	i    int
	name string
	role cluster.Role
	id   cluster.NodeID

	// The clock: CLOCK_BOOTTIME runs from offset at real time base, wrong by ppm.
	base    int64
	offset  int64
	ppm     int64
	boot    cluster.BootID
	wallOff int64 // ms

	up      bool
	gone    bool // no longer one of the group
	paused  bool
	life    uint32
	started int64
	inc     cluster.Incarnation
	core    *core.Core
	raft    part
	snap    []byte // on disk
	snapAt  int

	tickAt    int64
	inbox     []event
	deferred  []func()
	rest      []core.Action // of a step that a pause has cut in two
	late      bool          // these are being done
	gates     []*gate
	volumes   []*volume
	lastFrame core.Frame
	lastSent  core.Frame
	proposals int
	orders    map[uint64]string
	slow      time.Duration // of the local machine
	pauses    int
	seenInc   []cluster.Incarnation // admitted so far, by member
}

// gate is the kernel's gate and the processes of one service on one host.
type gate struct {
	no       cluster.ServiceNo
	name     string
	epoch    cluster.Epoch
	deadline cluster.Instant // by the host's clock
	until    int64           // real time until which something of it may still act
	open     bool
	closing  int           // orders to close that were not yet answered
	closeOf  cluster.Epoch // the epoch that the last order to close named
	failed   bool          // its answer was that it could not be made sure
	acked    cluster.Epoch // the newest epoch that a voter has acknowledged
	busy     int64         // until when earlier orders to the processes take: one goroutine does them in order
}

func (h *host) gate(n cluster.ServiceNo) *gate {
	for _, g := range h.gates {
		if g.no == n {
			return g
		}
	}
	g := &gate{no: n}
	h.gates = append(h.gates, g)
	return g
}

func (h *host) serverID() string { return cluster.ServerID(h.name, h.id) }

// now is the host's CLOCK_BOOTTIME.
func (h *host) now() cluster.Instant {
	d := h.w.t - h.base
	return cluster.Instant(h.offset + d + d/1000*h.ppm/1000)
}

// real is the moment at which the host's clock reaches an instant.
func (h *host) real(i cluster.Instant) int64 {
	d := int64(i) - h.offset
	r := h.base + d - d/1000*h.ppm/(1000+h.ppm/1000)
	for h.clock(r) < i {
		r += 1 + (int64(i)-int64(h.clock(r)))/2
	}
	return r
}

func (h *host) clock(t int64) cluster.Instant {
	d := t - h.base
	return cluster.Instant(h.offset + d + d/1000*h.ppm/1000)
}

func (h *host) wall() int64 { return 1_700_000_000_000 + h.w.t/1e6 + h.wallOff }

// reboot begins a new boot: the clock starts afresh.
func (h *host) reboot() {
	w := h.w
	h.base, h.offset = w.t, w.rng.Int64N(int64(time.Hour))
	h.ppm = w.rng.Int64N(int64(2*w.o.Drift+1)) - int64(w.o.Drift)
	if w.chance(2) { // at the bounds
		h.ppm = int64(w.o.Drift)
		if w.chance(2) {
			h.ppm = -h.ppm
		}
	}
	binary.BigEndian.PutUint64(h.boot[:], w.rng.Uint64()|1)
	for _, g := range h.gates {
		g.open, g.until, g.closing = false, min(g.until, w.t), 0
	}
	for _, v := range h.volumes {
		v.lostPower()
	}
}

// start begins a run of the daemon. What an earlier run left is gone before it says a word (rule V0).
func (h *host) start() {
	w := h.w
	if h.up {
		return
	}
	if w.o.Plant != "restart-forgets" || h.inc == 0 {
		h.inc++
	}
	h.up, h.paused, h.life = true, false, h.life+1
	for _, g := range h.gates {
		g.open, g.until, g.closing, g.failed, g.acked, g.busy = false, min(g.until, w.t), 0, false, 0, 0
	}
	h.inbox, h.deferred, h.rest, h.tickAt, h.proposals = nil, nil, nil, 0, 0
	h.orders = map[uint64]string{}
	h.started = w.t
	for _, v := range h.volumes {
		v.reset()
	}
	h.core = core.New(core.Config{ID: h.id, Role: h.role, Inc: h.inc, Boot: h.boot, Version: "sim"}, h.now(), new(state.State))
	h.raft = part{leader: -1, term: h.raft.term, contact: w.t, timeout: w.between(raftT, 2*raftT), stored: h.raft.stored}
	if h.snap != nil {
		st, err := state.Restore(h.snap)
		if err != nil {
			w.fail("restore: %v", err)
		}
		h.raft.applied = h.snapAt
		h.carry(h.core.Restore(h.now(), st))
	}
	w.log(h, "starts, incarnation %d, log from %d", h.inc, h.raft.applied)
	h.tickAt = w.t
	w.push(event{at: w.t, kind: evTick, host: int16(h.i), life: h.life})
}

// crash ends the daemon at once. The kernel's gates stay as they are.
func (h *host) crash() {
	w := h.w
	if !h.up {
		return
	}
	if w.chance(3) {
		h.snap, h.snapAt = h.core.State().Snapshot(), h.raft.applied
	}
	w.log(h, "crashes")
	w.deposed(h)
	h.up, h.paused, h.life, h.core = false, false, h.life+1, nil
	h.raft.leader = -1
}

// pause stops the daemon; the kernel goes on.
func (h *host) pause(d time.Duration) {
	w := h.w
	if !h.up || h.paused {
		return
	}
	w.log(h, "is paused for %v", d)
	h.paused = true
	h.pauses++
	life, n := h.life, h.pauses
	w.after(d, func() {
		if h.life == life && h.pauses == n {
			h.resume()
		}
	})
}

func (h *host) resume() {
	w := h.w
	if !h.up || !h.paused {
		return
	}
	h.paused = false
	w.log(h, "goes on")
	h.raft.contact = w.t
	life := h.life
	rest := h.rest
	h.rest = nil
	h.late = true
	h.carry(rest)
	h.late = false
	if h.up && !h.paused && h.life == life && w.chance(2) { // the timer first
		h.tick()
	}
	for len(h.inbox)+len(h.deferred) > 0 && h.up && !h.paused && h.life == life {
		if len(h.inbox) > 0 && (len(h.deferred) == 0 || w.chance(2)) {
			e := h.inbox[0]
			h.inbox = h.inbox[1:]
			h.receive(int(e.from), e.frame)
		} else {
			f := h.deferred[0]
			h.deferred = h.deferred[1:]
			f()
		}
	}
	if h.up && !h.paused && h.life == life {
		h.tick()
	}
}

// call runs f on the daemon's loop: later, if it is paused.
func (h *host) call(f func()) {
	switch {
	case !h.up:
	case h.paused:
		h.deferred = append(h.deferred, f)
	default:
		f()
	}
}

func (h *host) post(ev core.Event) { h.call(func() { h.step(ev) }) }

func (h *host) tick() {
	h.step(core.Tick{})
	if h.w.o.Plant != "" && h.up {
		h.plantedTick()
	}
}

func (h *host) step(ev core.Event) {
	if !h.up {
		return
	}
	h.carry(h.core.Step(h.now(), h.wall(), ev))
	h.again()
}

// again sets the timer. Timers are late, sometimes very late.
func (h *host) again() {
	if !h.up {
		return
	}
	w := h.w
	r := h.real(h.core.Next(h.now()))
	if h.tickAt != 0 && h.tickAt <= r {
		return
	}
	r += w.rng.Int64N(int64(200 * time.Microsecond))
	if w.chance(500) {
		r += w.rng.Int64N(int64(30 * time.Millisecond))
	}
	h.tickAt = max(r, w.t)
	w.push(event{at: h.tickAt, kind: evTick, host: int16(h.i), life: h.life})
}

// carry does the actions in order. A pause may come between any two.
func (h *host) carry(acts []core.Action) {
	w := h.w
	if len(acts) > 600 {
		w.fail("%s answers %d actions to one event", h.name, len(acts))
	}
	if h.paused {
		h.rest = append(h.rest, acts...)
		return
	}
	h.lastFrame = nil
	for i, a := range acts {
		if !h.up {
			return
		}
		if w.buggify && w.meddle(h, a) {
			if !h.up {
				return
			}
			if h.paused {
				h.rest = append(h.rest, acts[i:]...)
				return
			}
		}
		h.act(a)
	}
}

func (h *host) act(a core.Action) {
	w := h.w
	w.mix(actionCode(a))
	switch a := a.(type) {
	case core.Send:
		if r, ok := a.Frame.(*core.Release); ok {
			h.checkRelease(r)
		}
		w.send(h, int(a.To)-1, a.Frame)
	case core.Propose:
		w.log(h, "proposes %s", showCommand(a.Command))
		life := h.life
		w.propose(h, a.Command.Encode(), nil, func(o state.Outcome, err error) {
			if h.life == life {
				h.step(core.Proposed{ID: a.ID, Outcome: o, Err: err})
			}
		})
	case core.Kick:
		w.log(h, "kicks: %s", a.Why)
		if time.Duration(w.t-h.raft.kicked) >= raftT {
			h.raft.kicked = w.t
			life := h.life
			w.after(w.between(time.Millisecond, 5*time.Millisecond)+w.disk(), func() {
				if h.life == life {
					w.candidate(h, true)
				}
			})
		}
	case core.Transfer:
		w.log(h, "hands the lead to %d: %s", a.To, a.Why)
		to := w.hosts[a.To-1]
		life := h.life
		w.after(w.between(time.Millisecond, 10*time.Millisecond), func() {
			if h.life == life && h.raft.mine && w.conn(h.i, to.i) && w.pump(h) {
				w.candidate(to, true)
			}
		})
	default:
		h.local(a)
	}
}

// orderly is a time for an order to the processes, after those before it.
func (g *gate) orderly(t int64, d time.Duration) time.Duration {
	g.busy = max(g.busy, t) + int64(d)
	return time.Duration(g.busy - t)
}

// later runs f on this run's loop after a while.
func (h *host) later(d time.Duration, f func()) {
	life := h.life
	h.w.after(d, func() {
		if h.life == life {
			h.call(f)
		}
	})
}

var errLocal = errors.New("it did not work")

// local is the machine's side: gates and processes.
func (h *host) local(a core.Action) {
	w := h.w
	if e, ok := a.(core.Extend); w.o.Trace && !(ok && !e.First) {
		w.log(h, "does %s", showAction(a))
	}
	switch a := a.(type) {
	case core.Extend:
		h.extend(a)
	case core.Close:
		h.close(a)
	case core.Prepare:
		d := w.between(0, 20*time.Millisecond) + h.slow
		if w.chance(4) {
			d += w.between(0, 800*time.Millisecond)
		}
		var err error
		if w.chance(8) {
			err = errLocal
		}
		d = h.gate(a.Service).orderly(w.t, d)
		h.later(d, func() { h.step(core.Drained{Service: a.Service, Epoch: a.Epoch, Err: err}) })
	case core.Restart, core.Restore:
		n := cluster.ServiceNo(0)
		if r, ok := a.(core.Restart); ok {
			n = r.Service
		} else {
			n = a.(core.Restore).Service
		}
		h.later(h.gate(n).orderly(w.t, w.between(time.Millisecond, 200*time.Millisecond)), func() { h.step(core.Health{Service: n, Ready: true}) })
	case core.Joined, core.SpecChanged:
		if h.role == cluster.RoleNode {
			h.later(w.between(0, 100*time.Millisecond), h.ready)
		}
	case core.OrderDone:
		delete(h.orders, a.ID)
	case core.FactsChanged:
		if h.role == cluster.RoleNode {
			h.volume(a.Facts.Service).toldFacts(a.Facts)
		}
	case core.GoAlone:
		h.goAlone(a)
	}
}

// ready reports all services that do not run here as able to.
func (h *host) ready() {
	st := h.core.State()
	for i := range st.Services {
		if !h.up || h.paused {
			return
		}
		h.step(core.Health{Service: st.Services[i].No, Ready: true})
	}
}

func (h *host) extend(a core.Extend) {
	w := h.w
	g := h.gate(a.Service)
	now := h.now()
	if s := h.core.State().Service(a.Service); s != nil {
		g.name = s.Name
	}
	if a.First && g.acked < a.Epoch && !h.alone() {
		w.fail("%s serves %s in epoch %d before any voter has acknowledged it", h.name, g.name, a.Epoch)
	}
	// (What a pause has held back may do that: the lease was extended, and only this order came late.)
	if !a.First && !h.late && a.Deadline > now && (!g.open || now >= g.deadline) && w.o.Plant == "" {
		w.fail("%s opens %s again in epoch %d, %v after its gate had shut", h.name, g.name, a.Epoch, now.Sub(g.deadline))
	}
	g.epoch, g.deadline, g.open, g.failed = a.Epoch, a.Deadline, true, false
	if w.o.Plant == "serve-past-deadline" {
		g.deadline = g.deadline.Add(a.TTL / 2)
	}
	if g.deadline > now { // an order that a pause has held back opens nothing
		w.checkOne(h, g)
		g.until = h.real(g.deadline)
	}
	if a.First {
		h.volume(a.Service).lead(a.Epoch)
		h.later(w.between(0, 100*time.Millisecond), func() { h.step(core.Health{Service: a.Service, Ready: true}) })
	}
}

// alone says that this member needs nobody's acknowledgement.
func (h *host) alone() bool {
	for _, s := range h.core.State().Group.Sets {
		if s.Set.Without(no(h.i)) != 0 {
			return false
		}
	}
	return true
}

// close shuts a gate at once, and answers when nothing is in flight any more.
func (h *host) close(a core.Close) {
	w := h.w
	g := h.gate(a.Service)
	if w.o.Plant == "sticky-relied-on" && g.open && h.sticks(a.Service) {
		return // the plant keeps it open
	}
	g.closing++
	g.failed, g.closeOf = false, a.Epoch
	d := w.between(0, 5*time.Millisecond) + h.slow
	if w.chance(5) {
		d += w.between(0, 3*time.Second)
	}
	shut := func() { g.open, g.deadline, g.until = false, 0, min(g.until, w.t) }
	if w.o.Plant == "release-before-shut" {
		h.later(d+50*time.Millisecond, shut)
		g.closing--
		h.later(0, func() { h.step(core.Shut{Service: a.Service, Epoch: a.Epoch}) })
		return
	}
	g.open, g.deadline = false, 0
	h.volume(a.Service).depose()
	if h.role == cluster.RoleWitness {
		d = 0
	}
	d = g.orderly(w.t, d)
	var err error
	kill := time.Duration(0)
	if w.chance(12) {
		err = errLocal
		kill = g.orderly(w.t, w.between(time.Millisecond, 2*time.Second)) - d // what could not be stopped is killed
	}
	e := g.epoch
	h.later(d, func() {
		g.closing--
		if err == nil {
			if g.epoch == e && !g.open {
				shut()
			}
		} else {
			g.failed = g.closeOf == a.Epoch
			h.later(kill, func() {
				if g.closeOf == a.Epoch {
					g.failed = false
				}
				if g.epoch == e && !g.open {
					shut()
				}
				h.step(core.Shut{Service: a.Service, Epoch: a.Epoch})
			})
		}
		h.step(core.Shut{Service: a.Service, Epoch: a.Epoch, Err: err})
		if h.up && !h.paused {
			h.later(w.between(time.Millisecond, 300*time.Millisecond), func() { h.step(core.Health{Service: a.Service, Ready: true}) })
		}
	})
}

// sticks says whether this host, as far as it has applied the log, holds a service without the witness.
func (h *host) sticks(n cluster.ServiceNo) bool {
	s := h.core.State().Service(n)
	return s != nil && s.Lock.Sticky && s.Lock.Holder.Node == no(h.i) && s.Lock.Holder.Inc == h.inc
}

func show(f core.Frame) string { return fmt.Sprintf("%T%+v", f, f)[len("*core."):] }
