// Package sim is the seeded simulator of a cluster: the very code that decides in the field (internal/core and what lies below it), driven by one
// goroutine through networks, clocks, disks and machines that fail as a seed says.
//
// A run has two phases. In the first everything fails at random, and safety is checked at every instant of simulated real time: at most
// one open gate per service, no Release before everything is shut, nothing served before an acknowledgement, the agreed state the same everywhere. In the
// second everything heals, and within a bound every service that is to run must have exactly one active.
//
// It is deterministic: the same seed and options give the same events and the same hash. It uses no clock, no socket and no goroutine; many
// runs go on in parallel. It models the contract of Raft (one log, terms, lost leaderships, unknown outcomes), not an implementation of it. It is used by
// tests only.
package sim

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/internal/core"
)

// Options say what is run.
type Options struct {
	Seed   uint64
	Faults time.Duration // of the first phase; default 40 s
	Calm   time.Duration // of the second; default 25 s
	Drift  int           // parts per million by which clocks may run wrong, at most; default 10,000 (1 %)
	Plant  string        // a bug to plant; see Plants
	Trace  bool          // keep a transcript
}

// Result is what came of a run.
type Result struct {
	Seed       uint64
	Err        error // the first violation
	Hash       uint64
	Events     uint64
	Faults     int
	Grants     int
	Moves      int // Grants to another node than before
	Bumps      int
	Stickies   int
	Settles    int
	Restores   int
	Acked      int // operations on volumes
	Lost       int // of these, given up by an operator or by a power loss of all
	Alones     int // times that an active went on alone
	Powerless  int // Grants after a power loss of all
	Simulated  time.Duration
	Transcript []string
}

// Kinds of events.
const (
	evFunc = iota
	evTick
	evFrame
)

type event struct {
	at    int64
	seq   uint64
	fn    func()
	frame core.Frame
	life  uint32
	host  int16
	from  int16
	kind  uint8
}

// world is everything that is simulated.
type world struct {
	o       Options
	rng     *rand.Rand
	t       int64 // simulated real time, ns
	seq     uint64
	queue   []event
	hosts   []*host
	links   [][]link
	raft    raft
	res     Result
	healed  bool
	trace   []string
	wan     bool
	buggify bool
	quiet   bool // few random faults
	digests []uint64
	top     map[cluster.ServiceNo]lock.Service // the record after the last first Apply
	specNo  int
	specs   specState
	acks    []*acks
	present map[cluster.ServiceNo]bool
	lastOp  uint64
}

type violation struct{ text string }

// Run simulates one seed.
func Run(o Options) (res Result) {
	if o.Faults == 0 {
		o.Faults = 40 * time.Second
	}
	if o.Calm == 0 {
		o.Calm = 25 * time.Second
	}
	if o.Drift == 0 {
		o.Drift = 10_000
	}
	w := &world{o: o, rng: rand.New(rand.NewPCG(o.Seed, 0x68616e6f6465)), top: map[cluster.ServiceNo]lock.Service{}}
	w.res.Hash = 14695981039346656037
	defer func() {
		res = w.res
		res.Seed, res.Simulated, res.Transcript = o.Seed, time.Duration(w.t), w.trace
		switch r := recover().(type) {
		case nil:
		case violation:
			res.Err = fmt.Errorf("at %v: %s", time.Duration(w.t), r.text)
		default:
			res.Err = fmt.Errorf("at %v: panic: %v\n%s", time.Duration(w.t), r, debug.Stack())
		}
	}()
	w.build()
	w.run(int64(o.Faults))
	w.heal()
	w.run(int64(o.Faults + o.Calm))
	w.alive()
	return w.res
}

// fail ends the run with a violation.
func (w *world) fail(format string, a ...any) { panic(violation{fmt.Sprintf(format, a...)}) }

// log writes a line of the transcript.
func (w *world) log(h *host, format string, a ...any) {
	if !w.o.Trace {
		return
	}
	who, up := "-", ""
	if h != nil {
		who = h.name
		if h.paused {
			up = "(paused)"
		}
	}
	if len(w.trace) > 200_000 {
		w.trace = w.trace[100_000:]
	}
	w.trace = append(w.trace, fmt.Sprintf("%12.3f ms %-3s%s %s", float64(w.t)/1e6, who, up, fmt.Sprintf(format, a...)))
}

func (w *world) mix(x uint64) { w.res.Hash = (w.res.Hash ^ x) * 1099511628211 }

// run processes events until a moment.
func (w *world) run(until int64) {
	for len(w.queue) > 0 && w.queue[0].at <= until {
		e := w.pop()
		w.t = e.at
		w.res.Events++
		w.mix(uint64(e.at)<<8 ^ uint64(e.kind)<<4 ^ uint64(e.host))
		switch e.kind {
		case evFunc:
			e.fn()
		case evTick:
			h := w.hosts[e.host]
			if h.life == e.life && h.up && h.tickAt == e.at {
				h.tickAt = 0
				if h.paused {
					continue
				}
				h.tick()
			}
		case evFrame:
			w.deliver(e)
		}
	}
	w.t = until
}

// at runs f after d of real time.
func (w *world) after(d time.Duration, f func()) {
	w.push(event{at: w.t + int64(max(d, 0)), kind: evFunc, fn: f})
}

func (w *world) push(e event) {
	w.seq++
	e.seq = w.seq
	q := append(w.queue, e)
	i := len(q) - 1
	for i > 0 {
		p := (i - 1) / 2
		if !before(&q[i], &q[p]) {
			break
		}
		q[i], q[p] = q[p], q[i]
		i = p
	}
	w.queue = q
	if len(q) > 100_000 {
		w.fail("more than 100,000 events wait")
	}
}

func before(a, b *event) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

func (w *world) pop() event {
	q := w.queue
	top := q[0]
	n := len(q) - 1
	q[0] = q[n]
	q[n] = event{}
	q = q[:n]
	i := 0
	for {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && before(&q[c+1], &q[c]) {
			c++
		}
		if !before(&q[c], &q[i]) {
			break
		}
		q[i], q[c] = q[c], q[i]
		i = c
	}
	w.queue = q
	return top
}

// chance is true once in n times.
func (w *world) chance(n int) bool { return n > 0 && w.rng.IntN(n) == 0 }

// between is a duration in [a, b).
func (w *world) between(a, b time.Duration) time.Duration {
	return a + time.Duration(w.rng.Int64N(int64(b-a)))
}

// pick is one of the hosts that are members.
func (w *world) pick() *host {
	for {
		if h := w.hosts[w.rng.IntN(len(w.hosts))]; !h.gone {
			return h
		}
	}
}
