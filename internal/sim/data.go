package sim

import (
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
)

// A volume as the simulator knows it: each copy is a list of operations, those of the page cache and those that are durable. The active appends, sends,
// waits for whom the log names, and acknowledges while its gate is open. What was acknowledged must be there wherever the service begins
// anew (I2), except what an operator gave up, and what was not fsynced after a power loss of all.

// op is one operation.
type op struct {
	id   uint64
	pos  cluster.Position
	sync bool // acknowledged only when it is durable on both sides
}

// volume is one node's copy of a service's data, and its volume server.
type volume struct {
	h    *host
	no   cluster.ServiceNo
	ops  []op
	disk int // how many of them are durable

	run     uint32 // the life of the daemon that it belongs to
	facts   core.Facts
	leads   cluster.Epoch // the epoch in which it is the active; 0: it is not
	acked   int           // how many of ops it has acknowledged, or may no longer
	conns   map[cluster.MemberNo]*stream
	waits   cluster.MemberSet // caught up, and not in sync by the log yet
	alone   cluster.Generation
	highest cluster.Epoch // of the frames that it has taken
}

// stream is the active's side of the connection to one follower.
type stream struct {
	got, durable int     // of the active's ops
	flight       []int64 // when what has not been answered was sent
	next         int64   // frames keep their order
	open         bool
	dead         bool
}

func (h *host) volume(n cluster.ServiceNo) *volume {
	for _, v := range h.volumes {
		if v.no == n {
			return v
		}
	}
	v := &volume{h: h, no: n}
	h.volumes = append(h.volumes, v)
	return v
}

// reset is a new run of the volume server, as standby.
func (v *volume) reset() {
	v.run, v.leads, v.acked, v.waits, v.alone, v.facts = v.h.life, 0, 0, 0, 0, core.Facts{}
	v.hangUp()
}

// lostPower is a reboot: what was not durable is gone.
func (v *volume) lostPower() { v.ops = v.ops[:v.disk:v.disk] }

func (v *volume) last() cluster.Position {
	if len(v.ops) == 0 {
		return cluster.Position{}
	}
	return v.ops[len(v.ops)-1].pos
}

// live says whether the volume server of this run is there: it ends with its daemon.
func (v *volume) live() bool { return v.h.up && v.run == v.h.life }

// toldFacts takes what the log says.
func (v *volume) toldFacts(f core.Facts) {
	if !v.live() || v.conns == nil {
		v.reset()
	}
	if f.Gen != v.facts.Gen || f.Epoch != v.facts.Epoch {
		v.waits = 0
	}
	if v.alone != 0 && f.Alone == 0 {
		v.alone = 0
	}
	v.facts = f
	if v.leads != 0 && (f.Holder != f.Self || f.Epoch < v.leads) {
		v.depose()
	}
	if v.leads != 0 {
		v.leads = f.Epoch // a Bump goes on
	}
	if g := v.h.gate(v.no); v.leads == 0 && g.open && g.epoch == f.Epoch && f.Holder == f.Self {
		v.lead(f.Epoch) // it was opened before the log had come here
	}
	v.settle()
	v.h.post(core.Replica{Service: v.no, Member: no(v.h.i), Pos: v.last(), Good: true, Connected: true})
}

// depose ends the time as the active: nothing that is pending is ever acknowledged.
func (v *volume) depose() {
	v.leads, v.waits, v.alone = 0, 0, 0
	v.hangUp()
}

// lead is the promotion: everything that was acknowledged must be here.
func (v *volume) lead(e cluster.Epoch) {
	w := v.h.w
	if !v.live() || v.facts.Epoch != e || v.leads == e {
		return
	}
	w.checkAcked(v, "")
	v.leads, v.acked = e, len(v.ops)
	w.log(v.h, "leads the data of service %d in epoch %d with %d operations", v.no, e, len(v.ops))
	v.hangUp()
}

// hangUp ends all connections to followers.
func (v *volume) hangUp() {
	for _, s := range v.conns {
		s.dead = true
	}
	v.conns = map[cluster.MemberNo]*stream{}
}

// checkAcked is I2 and I3: what was acknowledged is in this copy, with which an epoch begins. excuse says why something may be missing: "power",
// what was not fsynced; "force", anything.
func (w *world) checkAcked(v *volume, excuse string) {
	a := w.acked(v.no)
	have := make(map[uint64]bool, len(v.ops))
	for _, o := range v.ops {
		have[o.id] = true
	}
	kept := a.ops[:0]
	for _, o := range a.ops {
		switch {
		case have[o.id]:
			kept = append(kept, o)
		case o.pos.Epoch <= a.floor:
		case excuse == "force", excuse == "power" && !o.sync:
			w.res.Lost++
		case w.o.Plant == "" || slices.Contains(DataPlants(), w.o.Plant):
			w.fail("I2: %s begins with service %d without operation %d at %v, which was acknowledged (fsync %v, %s)", v.h.name, v.no, o.id, o.pos, o.sync, excuse)
		}
	}
	a.ops = kept
}

// dataGranted checks a Grant at the moment at which the log takes it.
func (w *world) dataGranted(st *state.State, no cluster.ServiceNo, to cluster.MemberNo, reports int, forced bool) {
	h := w.hosts[to-1]
	if h.boot != st.Group.Admission(to).Boot {
		return // it has lost its power since, and will not serve on this Grant
	}
	excuse := ""
	switch {
	case forced:
		excuse = "force"
	case reports > 0:
		excuse = "power"
		w.res.Powerless++
	}
	w.checkAcked(h.volume(no), excuse)
}

// dataMade forgets what a deleted service had acknowledged, as it is made again.
func (w *world) dataMade(st *state.State) {
	now := map[cluster.ServiceNo]bool{}
	for i := range st.Services {
		s := &st.Services[i]
		now[s.No] = s.Lock.Data
		if s.Lock.Data && !w.present[s.No] {
			a := w.acked(s.No)
			a.floor, a.ops = s.Lock.Epoch, nil
		}
	}
	w.present = now
}

// acks are the acknowledged operations of a service.
type acks struct {
	no    cluster.ServiceNo
	ops   []op
	floor cluster.Epoch // what was acknowledged up to this epoch was deleted with the service
}

func (w *world) acked(n cluster.ServiceNo) *acks {
	for _, a := range w.acks {
		if a.no == n {
			return a
		}
	}
	a := &acks{no: n}
	w.acks = append(w.acks, a)
	return a
}

// open says whether the page lets the volume server act.
func (v *volume) open() bool {
	g := v.h.gate(v.no)
	return v.live() && g.open && v.leads != 0 && v.leads == g.epoch && v.h.now() < g.deadline
}

// volumeLoop lets the volume servers do what they do.
func (w *world) volumeLoop() {
	w.after(w.between(5*time.Millisecond, 40*time.Millisecond), w.volumeLoop)
	for _, h := range w.hosts {
		for _, v := range h.volumes {
			if !v.live() || v.leads == 0 {
				continue
			}
			if v.open() && len(v.ops) < 40_000 && w.chance(2) {
				w.lastOp++
				seq := uint64(1)
				if n := len(v.ops); n > 0 {
					seq = v.ops[n-1].pos.Seq + 1
				}
				v.ops = append(v.ops, op{id: w.lastOp, pos: cluster.Position{Epoch: v.leads, Gen: v.facts.Gen, Seq: seq}, sync: w.chance(3)})
			}
			for _, m := range v.facts.Members {
				if m.Node != no(h.i) {
					v.feed(m.Holder)
				}
			}
			v.settle()
		}
	}
}

// feed sends a follower what it lacks, or connects to it.
func (v *volume) feed(m lock.Holder) {
	w := v.h.w
	s := v.conns[m.Node]
	up := w.conn(v.h.i, int(m.Node)-1)
	if s != nil && (s.dead || !up) {
		s.dead, s.open = true, false
		if w.chance(3) {
			delete(v.conns, m.Node)
		}
		v.tell(m, s)
		return
	}
	if !up {
		v.tell(m, &stream{dead: true})
		return
	}
	if s == nil {
		s = &stream{}
		v.conns[m.Node] = s
	}
	if len(s.flight) < 100 {
		v.transmit(m, s)
	}
	v.tell(m, s)
}

// transmit is one frame and its answer. It carries the whole copy: the follower takes what it lacks, after it has put aside what it has beyond.
func (v *volume) transmit(m lock.Holder, s *stream) {
	w := v.h.w
	to := w.hosts[m.Node-1]
	ops, e, run := v.ops[:len(v.ops):len(v.ops)], v.leads, v.run
	durably := !v.facts.InSync.Has(m.Node)
	sent := w.t
	s.flight = append(s.flight, sent)
	s.next = max(s.next, w.t+int64(w.latency(v.h.i, to.i)))
	w.after(time.Duration(s.next-w.t), func() {
		f := to.volume(v.no)
		if s.dead || !w.conn(v.h.i, to.i) {
			s.dead = true
			return
		}
		highest, durable, ok := f.take(v.h, e, ops, m.Inc, durably)
		if !ok {
			w.log(to, "refuses the data of %s in epoch %d: %v, run %v, knows %d, %d, leads %d", v.h.name, e, f.live(), to.inc == m.Inc, f.facts.Epoch, f.highest, f.leads)
		}
		life := v.h.life
		w.after(w.latency(to.i, v.h.i), func() {
			switch {
			case !v.live() || v.run != run || v.h.life != life || s.dead || !w.conn(v.h.i, to.i):
				s.dead = true
			case !ok && highest > e:
				v.h.post(core.HigherEpoch{Service: v.no, Epoch: highest})
				s.dead = true
			case !ok:
				s.dead = true
			case ok && v.conns[m.Node] == s:
				s.open = true
				s.got = max(s.got, len(ops))
				s.durable = max(s.durable, durable)
				s.flight = slices.DeleteFunc(s.flight, func(t int64) bool { return t <= sent })
				v.settle()
			}
		})
	})
}

// take is the standby's side (D2, D5): what it knows of a higher epoch, how much of it is durable, and whether it took it.
func (v *volume) take(from *host, e cluster.Epoch, ops []op, inc cluster.Incarnation, durably bool) (cluster.Epoch, int, bool) {
	if !v.live() || v.h.inc != inc {
		return 0, 0, false
	}
	known := max(v.facts.Epoch, v.highest)
	if e < known || v.facts.Epoch != e || v.facts.Holder.Node != no(from.i) || v.leads != 0 {
		return known, 0, false
	}
	v.highest = max(v.highest, e)
	n := 0
	for n < len(v.ops) && n < len(ops) && v.ops[n].id == ops[n].id {
		n++
	}
	if n == len(ops) && len(v.ops) > n && v.ops[n].pos.Epoch >= e {
		return 0, min(v.disk, n), true // an older frame of the same stream
	}
	v.disk = min(v.disk, n)
	v.ops = append(v.ops[:n:n], ops[n:]...)
	for i, o := range v.ops {
		if o.sync || durably {
			v.disk = max(v.disk, i+1)
		}
	}
	return 0, v.disk, true
}

// tell is what the volume server says of a follower.
func (v *volume) tell(m lock.Holder, s *stream) {
	r := core.Replica{Service: v.no, Member: m.Node, Connected: !s.dead && s.open, Good: s.open}
	if len(s.flight) > 0 {
		r.Waiting = time.Duration(v.h.w.t - s.flight[0])
	}
	v.h.post(r)
}

// settle acknowledges what everybody who is waited for has accepted, and says who has caught up.
func (v *volume) settle() {
	w := v.h.w
	if v.leads == 0 || !v.live() {
		return
	}
	f := &v.facts
	wait := (f.InSync | v.waits).Without(no(v.h.i))
	if v.alone != 0 && v.alone == f.Gen {
		wait = 0
	}
	if w.o.Plant == "degrade-without-commit" {
		for _, n := range wait.List() {
			if s := v.conns[n]; s == nil || s.dead {
				wait = wait.Without(n)
			}
		}
	}
	upTo := len(v.ops)
	for _, n := range wait.List() {
		s := v.conns[n]
		if s == nil || !s.open || s.dead {
			upTo = min(upTo, v.acked)
			continue
		}
		upTo = min(upTo, s.got) // (what it has taken of an operation with fsync is durable)
	}
	if v.open() {
		a := w.acked(v.no)
		for ; v.acked < upTo; v.acked++ {
			o := v.ops[v.acked]
			if o.sync || wait == 0 { // a lone active acknowledges what is on its disk
				v.disk = max(v.disk, v.acked+1)
			}
			a.ops = append(a.ops, o)
			w.res.Acked++
		}
	}
	for _, m := range f.Members {
		s := v.conns[m.Node]
		if s == nil || !s.open || s.dead || f.InSync.Has(m.Node) || s.durable < v.acked {
			continue
		}
		if w.o.Plant != "in-sync-before-waiting" {
			if s.got+20 < len(v.ops) && !v.waits.Has(m.Node) {
				continue
			}
			v.waits = v.waits.With(m.Node)
		}
		v.h.post(core.CaughtUp{Service: v.no, Member: m.Node, Inc: m.Inc, Epoch: f.Epoch, Gen: f.Gen})
	}
}

// goAlone makes it durable that this copy goes on alone, and only then does.
func (h *host) goAlone(a core.GoAlone) {
	v := h.volume(a.Service)
	life := h.life
	h.w.after(h.w.disk(), func() {
		if h.life == life && v.live() && v.leads == a.Epoch && v.facts.Gen == a.Gen && v.facts.Alone == a.Gen {
			v.alone = a.Gen
			h.w.res.Alones++
			v.settle()
		}
	})
}

// DataPlants are bugs of the data path. Each must be caught: see TestThePlantedBugsOfTheDataAreCaught. (An end of sticky that does not say that the active
// was alone is not among them: as soon as there is a majority again, a Degrade comes first. The model in cluster/model has it.)
func DataPlants() []string {
	return []string{"degrade-without-commit", "in-sync-before-waiting"}
}
