package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/supervise/launch"
	"github.com/hanode/hanode/internal/cgroup"
	"github.com/hanode/hanode/internal/rt"
)

const (
	execWait   = 10 * time.Second      // for the exec step to become the program
	killWait   = 10 * time.Second      // for killed processes to be gone
	leaseRetry = 10 * time.Millisecond // between two looks at the page while a restart is held
	signalWait = 5 * time.Millisecond  // between two looks whether a process catches its role signal yet
)

// proc is the actor of one process. Everything below "actor" is touched by its loop only.
type proc struct {
	s     *Supervisor
	spec  cluster.ProcessSpec
	group *cgroup.Group
	inbox chan func()
	quit  chan struct{}  // closed when the loop has returned
	wg    sync.WaitGroup // goroutines that post to the inbox

	mu   sync.Mutex
	view ProcessState

	// actor
	want      bool
	gen       uint64 // of the last start
	role      string
	epoch     cluster.Epoch
	run       *run          // the program that runs, or nil
	clearing  bool          // what its predecessor left is being killed
	clearErr  error         // it could not be
	restarts  *restartLog   //
	restartAt *decision     // a restart is due
	starting  []chan error  // who waits for ready
	stopping  []chan error  // who waits for the end
	idle      []chan<- bool // who waits until nothing of it is left
	timers    timers
	failed    bool         // given up
	promoting []chan error // who waits for the promote command, which waits for ready
	commands  int          // stop and promote commands that run
	killedBy  string
}

// run is one life of the program.
type run struct {
	*launch.Running
	started cluster.Instant
	execErr error
	ready   bool
	role    string // as last told
	asked   bool   // for role signals
	failed  string
	output  *os.File
	notify  *notifySocket
}

// timers of an actor: at most one of each kind; firing is checked against a number, so that a timer that was stopped too
// late does nothing.
type timers struct {
	stop, ready, restart, signal *time.Timer
}

func newProc(s *Supervisor, spec cluster.ProcessSpec) *proc {
	return &proc{
		s: s, spec: spec,
		inbox:    make(chan func(), 64),
		quit:     make(chan struct{}),
		restarts: newRestartLog(s.cfg.OnFailure),
		view:     ProcessState{Name: spec.Name, State: "stopped", Since: rt.Now()},
	}
}

func (p *proc) prepare() error {
	g, err := p.s.cfg.Group.Sub(p.spec.Name)
	if err != nil {
		return fmt.Errorf("process %s: %w", p.spec.Name, err)
	}
	p.group = g
	return nil
}

// release is called after the loop has ended.
func (p *proc) release() error {
	p.wg.Wait()
	if p.group == nil {
		return nil
	}
	return p.group.Remove()
}

// post hands f to the actor; false: it has ended.
func (p *proc) post(f func()) bool {
	select {
	case p.inbox <- f:
		return true
	case <-p.quit:
		return false
	}
}

func (p *proc) loop(stop <-chan struct{}) {
	defer close(p.quit)
	for {
		select {
		case f := <-p.inbox:
			f()
		case <-stop:
			p.cancelTimers()
			p.unwant("the supervisor ends")
			return
		}
	}
}

// after posts f to the actor after d.
func (p *proc) after(d time.Duration, f func()) *time.Timer {
	return time.AfterFunc(d, func() { p.post(f) })
}

// start is the actor's part of Supervisor.Start.
func (p *proc) start(gen uint64, role string, epoch cluster.Epoch, done chan error) {
	switch {
	case gen != p.s.gen.Load():
		done <- errors.New("was stopped meanwhile")
		return
	case p.run != nil && !p.want:
		done <- errors.New("is still stopping")
		return
	case p.failed:
		p.want, p.failed = false, false // an order to start begins anew
	}
	promote := p.want && p.role == Standby && role == Active
	if p.want && p.role == Active && role == Standby {
		done <- errors.New("is active: demote it first")
		return
	}
	first := !p.want
	p.gen = gen
	p.want, p.role, p.epoch = true, role, epoch
	p.show(func(v *ProcessState) { v.Role = role })
	switch {
	case first:
		p.restarts.reset()
		p.starting = append(p.starting, done)
		p.spawn()
	case promote && p.run != nil:
		p.promote(done)
	case promote && p.restartAt != nil: // the standby's back-off does not delay a takeover
		p.starting = append(p.starting, done)
		stopTimer(&p.timers.restart)
		p.spawn()
	case p.run != nil && p.run.ready:
		done <- nil
	default: // it starts or waits for its restart already
		p.starting = append(p.starting, done)
	}
}

// spawn starts the program, unless something stands in the way: then it comes back later.
func (p *proc) spawn() {
	p.restartAt = nil
	if p.clearing {
		p.restartAt = &decision{Restart: true} // cleared() comes back
		return
	}
	if !p.mayAct() {
		p.show(func(v *ProcessState) { v.State, v.Status = "restarting", "held: the lease is not renewed" })
		p.restartAt = &decision{Restart: true}
		p.timers.restart = p.after(leaseRetry, p.due)
		return
	}
	r, err := p.launch()
	if err != nil {
		p.s.log.Error("a process could not be started", "process", p.spec.Name, "error", err)
		p.giveUp(decision{Why: err.Error()})
		return
	}
	p.run = r
	p.show(func(v *ProcessState) { v.State, v.PID, v.Since, v.Status = "starting", r.Pid, r.started, "" })
	p.wg.Go(func() {
		execErr := r.Exec(execWait)
		at := rt.Now()
		p.post(func() { p.launched(r, execErr, at) })
		state, err := r.Wait()
		ended := rt.Now()
		p.post(func() { p.exited(r, state, err, ended) })
	})
}

// mayAct holds back restarts of an active process while its lease is not valid. The first start is the caller's
// decision.
func (p *proc) mayAct() bool {
	return p.s.page == nil || p.role != Active || len(p.restarts.past) == 0 || p.s.page.MayAct(rt.Now())
}

func (p *proc) launched(r *run, err error, at cluster.Instant) {
	if p.run != r {
		return
	}
	if err != nil {
		r.execErr = err
		r.Signal(syscall.SIGKILL)
		return // exited follows
	}
	if !p.want || p.s.killGen.Load() > p.gen {
		return // an exec step that was killed says nothing either
	}
	p.emit(Event{Kind: Started, Pid: r.Pid, At: at})
	if p.spec.Ready == "notify" {
		if d := p.spec.StartTimeout; d > 0 && !r.ready {
			p.timers.ready = p.after(d, func() { p.notReady(r) })
		}
		return
	}
	p.ready(r, at)
}

func (p *proc) ready(r *run, at cluster.Instant) {
	if p.run != r || r.ready {
		return
	}
	r.ready = true
	stopTimer(&p.timers.ready)
	if !p.want {
		return
	}
	p.show(func(v *ProcessState) { v.State = "running" })
	if p.spec.Ready != "checks" {
		p.emit(Event{Kind: Ready, Pid: r.Pid, At: at})
	}
	p.answer(&p.starting, nil)
	p.runPromote(r)
}

func (p *proc) notReady(r *run) {
	if p.run != r || r.ready || !p.want {
		return
	}
	r.failed = fmt.Sprintf("it did not say READY=1 within start_timeout = %v", p.spec.StartTimeout)
	p.group.Kill()
}

// exited is told within a fraction of a millisecond after the program's end.
func (p *proc) exited(r *run, ps *os.ProcessState, err error, at cluster.Instant) {
	if p.run != r {
		return
	}
	p.run = nil
	stopTimer(&p.timers.ready)
	stopTimer(&p.timers.stop)
	stopTimer(&p.timers.signal)
	e := Event{Kind: Exited, Pid: r.Pid, At: at, Reason: r.failed}
	e.Code, e.Signal = outcome(ps)
	switch {
	case err != nil:
		e.Reason = err.Error()
	case r.execErr != nil:
		e.Reason = r.execErr.Error()
	case e.Reason == "":
		e.Reason = sentence(e.Code, e.Signal)
	}
	p.show(func(v *ProcessState) { v.PID, v.Since, v.Status = 0, at, e.Reason })
	if p.want && p.s.killGen.Load() > p.gen {
		p.killed() // the end is here before the order
	}
	if !p.want {
		p.clear(r)
		return // cleared answers those who wait
	}
	p.emit(e)
	p.starting = append(p.starting, p.promoting...)
	p.promoting = nil
	defer p.clear(r)
	if r.execErr != nil { // trying again would not make it executable
		p.giveUp(decision{Why: r.execErr.Error()})
		return
	}
	d := p.restarts.exited(at)
	if !d.Restart {
		d.Why = e.Reason + "; " + d.Why
		p.giveUp(d)
		return
	}
	p.emit(Event{Kind: Restarting, At: at, RestartAt: d.At, Reason: d.Why})
	p.show(func(v *ProcessState) { v.State, v.Restarts = "restarting", d.Nth })
	p.restartAt = &d
	p.timers.restart = p.after(d.At.Sub(rt.Now()), p.due)
}

// due is the restart timer.
func (p *proc) due() {
	if !p.want || p.run != nil || p.restartAt == nil || p.restartAt.At.Sub(rt.Now()) > time.Millisecond {
		return // a timer that was stopped too late
	}
	p.timers.restart = nil
	p.spawn()
}

func (p *proc) giveUp(d decision) {
	p.restartAt, p.failed = nil, true
	p.show(func(v *ProcessState) { v.State, v.PID, v.Status = "failed", 0, d.Why })
	p.emit(Event{Kind: GaveUp, At: rt.Now(), Then: p.s.cfg.OnFailure.Then, Reason: d.Why})
	p.answer(&p.starting, errors.New(d.Why))
}

// clear kills what the program left behind in its group, and then frees what belonged to this run.
func (p *proc) clear(r *run) {
	p.clearing = true
	if err := p.group.Kill(); err != nil {
		p.s.log.Error("what a process left behind could not be killed", "process", p.spec.Name, "error", err)
	}
	p.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), killWait)
		defer cancel()
		err := p.group.WaitEmpty(ctx)
		r.closeIO()
		p.post(func() { p.cleared(err) })
	})
}

func (p *proc) cleared(err error) {
	p.clearing, p.clearErr = false, err
	if err != nil {
		p.s.log.Error("processes outlive their kill", "process", p.spec.Name, "error", err)
	}
	if !p.want {
		p.show(func(v *ProcessState) { v.State, v.Role = "stopped", "" })
		p.emit(Event{Kind: Stopped, At: rt.Now(), Reason: p.killedBy})
		p.answer(&p.stopping, err)
	} else if p.restartAt != nil && p.timers.restart == nil {
		p.spawn() // it was due before its predecessor was gone
	}
	p.tellIdle()
}

// tellIdle answers those who wait until nothing lives, if so.
func (p *proc) tellIdle() {
	if p.run != nil || p.clearing || p.commands > 0 {
		return
	}
	for _, w := range p.idle {
		w <- true
	}
	p.idle = nil
}

func (p *proc) state() ProcessState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.view
}

func (p *proc) show(change func(*ProcessState)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.view)
}

func (p *proc) emit(e Event) {
	e.Service, e.Process, e.Role, e.Epoch = p.s.cfg.Service, p.spec.Name, p.role, p.epoch
	p.s.events.put(e)
}

func (p *proc) answer(waiting *[]chan error, err error) {
	for _, w := range *waiting {
		w <- err
	}
	*waiting = nil
}

func (p *proc) cancelTimers() {
	stopTimer(&p.timers.stop)
	stopTimer(&p.timers.ready)
	stopTimer(&p.timers.restart)
	stopTimer(&p.timers.signal)
}

func stopTimer(t **time.Timer) {
	if *t != nil {
		(*t).Stop()
		*t = nil
	}
}

func outcome(ps *os.ProcessState) (code int, sig syscall.Signal) {
	if ps == nil {
		return -1, 0
	}
	if ws, ok := ps.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return -1, ws.Signal()
	}
	return ps.ExitCode(), 0
}

func sentence(code int, sig syscall.Signal) string {
	if sig != 0 {
		return "ended by " + unix.SignalName(sig)
	}
	return fmt.Sprintf("exited with status %d", code)
}
