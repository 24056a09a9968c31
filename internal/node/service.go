package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/failover/agent"
	"github.com/hanode/hanode/failover/supervise"
	"github.com/hanode/hanode/internal/cgroup"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/page"
)

// identity is what a service needs of netid. It is declared here so that the runner can be tested without the kernel.
type identity interface {
	Claim(cluster.ServiceNo) (map[netip.Prefix]string, error)
	Drop(cluster.ServiceNo) error
}

// processes is what a service needs of failover/supervise.
type processes interface {
	Run(context.Context) error
	Start(ctx context.Context, role string, epoch cluster.Epoch) error
	Promote(ctx context.Context, epoch cluster.Epoch) error
	Demote(ctx context.Context, epoch cluster.Epoch) error
	Stop(context.Context) error
	Kill(context.Context) error
	Freeze(context.Context) error
	Thaw() error
	Processes() []supervise.ProcessState
}

// world is what the runner reports to and asks for.
type world struct {
	now      func() cluster.Instant
	step     func(core.Event)                       // hands an event to the core
	record   func(service string, d state.Decision) // adds steps to the service's last decision
	sever    func([]netip.Addr) (int, error)        // destroys the sockets on these addresses
	identity identity
	onLoop   func(func())                                                  // runs on the loop, where the page is written
	look     func()                                                        // tells the guard that a page has changed its state
	stopped  func(cluster.ServiceNo) bool                                  // by order of an operator
	moved    func(context.Context, cluster.ServiceNo, cluster.Epoch) *move // what the log says of the move that made an epoch
	run      func(ctx context.Context, argv, env []string) error           // runs the program of a hook
	raise    func(code, object, severity, text, remedy string)
	clear    func(code, object string)
	self     string
	log      *slog.Logger
}

// service runs one service on this node: one goroutine carries out the orders of the core, in order, which may take as long as
// processes take to start and stop. What must be at once (deadline page and gate) has been done by then, on the loop.
type service struct {
	no    cluster.ServiceNo
	name  string
	spec  *cluster.ServiceSpec
	w     world
	page  *page.Writer
	procs processes
	addrs []netip.Addr
	group *cgroup.Group
	data  data          // nil: it has no volumes
	vol   *volumes      // the same, for what is not the runner's
	ended chan struct{} // closed when its goroutine has ended

	orders   chan any
	rechecks chan struct{} // the checks of the spec have changed
	// shut is set on the loop, at once, so that an order of a tenure that is over does not begin anything.
	epoch   atomic.Uint64 // of the present tenure here; 0: none
	active  atomic.Bool
	since   atomic.Int64 // of the last Begin: time since the zero of the time line
	granted atomic.Int64 // of the last Begin: when it came
	// restarted counts the orders to restart that were carried out, well or not.
	restarted atomic.Uint64
	life      atomic.Uint64 // counts the starts of the processes, for the checks

	paused atomic.Pointer[[]state.CheckPause]

	telling   sync.Mutex
	mu        sync.Mutex
	health    healthState
	checks    map[string]agent.Status
	readyAt   cluster.Instant
	openedAt  cluster.Instant
	claimedAt cluster.Instant // the addresses were taken
	restarts  []time.Time     // for failed checks, of late
	asked     uint64          // restarted when the last restart for a failed check is done
	gaveUpAt  time.Time
	zero      cluster.Instant // of the time line
	steps     []state.Step
	told      state.Decision // what the log was told last of this tenure, without steps
}

type healthState struct {
	up        bool // the processes of the present role run
	unhealthy string
	byCheck   bool
	gaveUp    string
	then      string
}

// Orders to the runner.
type (
	orderOpen struct {
		epoch cluster.Epoch
		at    cluster.Instant
		since time.Duration
	}
	orderClose struct {
		epoch   cluster.Epoch
		planned bool
		why     string
	}
	orderPrepare struct {
		epoch cluster.Epoch
		stop  bool
	}
	orderRestore struct{ epoch cluster.Epoch }
	orderRestart struct{ why string }
	orderStandby struct{}
	orderReady   struct{ epoch cluster.Epoch } // the service has become ready: what waits for that
)

// run carries out orders until ctx ends; then it stops what runs. An orderly end has given the service away before.
func (s *service) run(ctx context.Context) error {
	done := make(chan error, 1)
	procCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go func() { done <- s.procs.Run(procCtx) }()
	if s.data != nil {
		held := make(chan struct{})
		dataCtx, end := context.WithCancel(context.WithoutCancel(ctx))
		go func() {
			defer close(held)
			s.data.Run(dataCtx)
		}()
		defer func() { end(); <-held }() // after the processes
	}
	for {
		select {
		case <-ctx.Done():
			s.leave()
			stop()
			return <-done
		case err := <-done:
			return err
		case o := <-s.orders:
			s.do(ctx, o)
		}
	}
}

func (s *service) do(ctx context.Context, o any) {
	switch o := o.(type) {
	case orderOpen:
		s.open(ctx, o)
	case orderClose:
		s.close(ctx, o)
	case orderPrepare:
		s.w.step(core.Drained{Service: s.no, Epoch: o.epoch, Err: s.prepare(ctx, o)})
	case orderRestore:
		s.restore(ctx, o)
	case orderRestart:
		s.restart(ctx, o)
	case orderStandby:
		s.standby(ctx)
	case orderReady:
		s.nowReady(ctx, o.epoch)
	}
}

// current says whether the tenure that an order belongs to still lasts.
func (s *service) current(e cluster.Epoch) bool {
	return s.epoch.Load() == uint64(e) && s.active.Load()
}

// open makes the service serve: addresses, then processes. The gate has been opened already.
func (s *service) open(ctx context.Context, o orderOpen) {
	if !s.current(o.epoch) {
		return
	}
	s.begin(o)
	if s.data != nil && !s.lead(ctx, o.epoch) {
		return
	}
	move := s.move(ctx, o.epoch)
	if move.failover() {
		s.hook(ctx, "before-failover", move)
	}
	if !s.late() {
		if err := s.announce(ctx, move); err != nil {
			return
		}
	}
	if !s.current(o.epoch) {
		return // closed meanwhile: the order to close is next in line and takes the addresses away
	}
	hot := s.spec.Hot()
	if err := s.hook(ctx, "before-start", move); err != nil {
		s.failed(err.Error(), s.spec.OnFailure.Then)
		s.flush("")
		return
	}
	if err := s.procs.Promote(ctx, o.epoch); err != nil {
		if errors.Is(err, context.Canceled) {
			return
		}
		s.failed("the processes could not be started: "+err.Error(), s.spec.OnFailure.Then)
		s.flush("")
		return
	}
	switch {
	case len(s.spec.Processes) == 0:
	case hot:
		s.step("processes told that they are active", "")
	default:
		s.step("processes started", "")
	}
	s.hook(ctx, "after-start", move)
	s.up()
	if len(s.spec.Checks) == 0 {
		s.ready("processes run")
	}
	s.flush("")
}

func (s *service) begin(o orderOpen) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life.Add(1)
	s.openedAt, s.readyAt, s.steps, s.claimedAt, s.told = o.at, 0, nil, 0, state.Decision{}
	s.zero = o.at.Add(-o.since)
	s.health = healthState{up: s.health.up && s.spec.Hot()}
	s.checks = nil
}

func (s *service) step(what, detail string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, state.Step{Us: s.w.now().Sub(s.zero).Microseconds(), What: what, Who: s.w.self, Detail: detail})
}

// ready notes that the service has become ready in this tenure, once.
func (s *service) ready(how string) {
	s.mu.Lock()
	if s.readyAt != 0 || !s.serving() {
		s.mu.Unlock()
		return
	}
	s.readyAt = s.w.now()
	s.mu.Unlock()
	s.tell()
	s.step(how, "")
	if len(s.spec.Hooks) > 0 || s.late() {
		s.post(orderReady{cluster.Epoch(s.epoch.Load())})
	}
}

// flush adds the steps so far to the decision that made this tenure.
func (s *service) flush(outcome string) {
	s.mu.Lock()
	if s.everywhere() { // no decision made it run here
		s.steps = nil
		s.mu.Unlock()
		return
	}
	d := state.Decision{Steps: s.steps, Outcome: outcome}
	if at := s.answeredAt(); at != 0 {
		d.OutageMs = max(1, at.Sub(s.zero).Milliseconds()) // 0 means: not yet
	}
	if s.readyAt != 0 {
		d.ReadyMs, d.Outcome = max(1, s.readyAt.Sub(s.zero).Milliseconds()), "done"
	}
	now := d
	now.Steps = nil
	news := len(d.Steps) > 0 || d.Outcome != s.told.Outcome || d.OutageMs != s.told.OutageMs || d.ReadyMs != s.told.ReadyMs
	s.steps, s.told = nil, now
	s.mu.Unlock()
	if news && (len(d.Steps) > 0 || d.Outcome != "") {
		s.w.record(s.name, d)
	}
}

// freezeWait bounds how long a Release waits for the application to stand still (rule H6).
const freezeWait = 50 * time.Millisecond

// close makes sure that nothing of the service acts any more, says so, and then clears up.
func (s *service) close(ctx context.Context, o orderClose) {
	err := s.quiet(ctx, o)
	s.w.step(core.Shut{Service: s.no, Epoch: o.epoch, Err: err})
	if len(s.addrs) > 0 {
		if e := s.w.identity.Drop(s.no); e != nil {
			s.w.log.Error("take the addresses away", "service", s.name, "err", e)
		}
		if _, e := s.w.sever(s.addrs); e != nil {
			s.w.log.Warn("destroy the sockets on the addresses", "service", s.name, "err", e)
		}
	}
	if o.planned && err == nil && s.spec.Hot() && s.data == nil && s.running() {
		if e := s.demote(ctx, o.epoch); e == nil {
			s.hook(ctx, "after-stop", nil)
			s.up()
			return
		}
	}
	if e := s.procs.Kill(ctx); e != nil {
		s.w.log.Error("kill the processes", "service", s.name, "err", e)
		if err != nil {
			return
		}
	}
	// A process that is born into a frozen group never gets to its exec, and the thread that made it waits for that.
	if e := s.procs.Thaw(); e != nil {
		s.w.log.Error("thaw the group of the processes", "service", s.name, "err", e)
		return
	}
	if s.data != nil {
		c, cancel := context.WithTimeout(ctx, goneWait)
		e := s.data.Gone(c)
		cancel()
		if e != nil {
			s.w.log.Error("end the volume server", "service", s.name, "err", e)
			return
		}
	}
	if err != nil { // what could not be frozen is dead now
		s.w.step(core.Shut{Service: s.no, Epoch: o.epoch})
	}
	s.hook(ctx, "after-stop", nil)
	s.standby(ctx)
}

// still freezes the application, or kills it where it cannot be frozen in time.
func (s *service) still(ctx context.Context) error {
	if len(s.spec.Processes) == 0 {
		return nil
	}
	c, cancel := context.WithTimeout(ctx, freezeWait)
	defer cancel()
	if err := s.procs.Freeze(c); err != nil {
		k, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return s.procs.Kill(k)
	}
	return nil
}

func (s *service) running() bool {
	for _, p := range s.procs.Processes() {
		if p.State != "running" {
			return false
		}
	}
	return true
}

// asStandby says on the page that the service does not act here, and that the guard has nothing to kill; health begins anew.
func (s *service) asStandby() {
	s.w.onLoop(func() {
		if !s.active.Load() {
			s.page.Set(cluster.Epoch(s.epoch.Load()), 0, page.Standby)
			s.w.look()
		}
	})
	s.mu.Lock()
	s.health, s.checks = healthState{}, nil
	s.mu.Unlock()
}

func (s *service) demote(ctx context.Context, e cluster.Epoch) error {
	s.asStandby()
	if err := s.procs.Thaw(); err != nil {
		return err
	}
	return s.procs.Demote(ctx, e)
}

// standby starts what runs on a standby too.
func (s *service) standby(ctx context.Context) {
	if s.active.Load() {
		return
	}
	s.asStandby()
	if s.w.stopped(s.no) {
		s.stopped(ctx)
		return
	}
	if s.everywhere() {
		s.startEverywhere(ctx)
		return
	}
	if s.spec.Hot() {
		if s.data != nil {
			if err := s.data.Ready(ctx); err != nil {
				return
			}
		}
		if err := s.procs.Start(ctx, supervise.Standby, cluster.Epoch(s.epoch.Load())); err != nil {
			if ctx.Err() == nil {
				s.failed("the standby could not be started: "+err.Error(), "ignore")
			}
			return
		}
	}
	s.up()
}

// prepare stops, in good order, what must not run on two nodes: everything cold; everything at all when the service is to stop.
func (s *service) prepare(ctx context.Context, o orderPrepare) error {
	if !s.current(o.epoch) {
		return errors.New("the tenure has ended meanwhile")
	}
	s.hook(ctx, "before-stop", nil)
	if !s.spec.Hot() || o.stop {
		if err := s.procs.Stop(ctx); err != nil {
			return fmt.Errorf("stop the processes of %s: %w", s.name, err)
		}
	}
	return s.drain(ctx)
}

// restore brings back what prepare stopped.
func (s *service) restore(ctx context.Context, o orderRestore) {
	if !s.current(o.epoch) {
		return
	}
	if s.data != nil {
		s.data.Undrain()
	}
	if err := s.hook(ctx, "before-start", nil); err != nil {
		s.failed(err.Error(), s.spec.OnFailure.Then)
		return
	}
	defer s.hook(ctx, "after-start", nil)
	if err := s.procs.Start(ctx, supervise.Active, o.epoch); err != nil {
		s.failed("it could not be started again after a move that did not take place: "+err.Error(), s.spec.OnFailure.Then)
	}
}

func (s *service) restart(ctx context.Context, o orderRestart) {
	defer s.restarted.Add(1)
	s.w.log.Info("restarting the processes", "service", s.name, "why", o.why)
	role := s.role()
	s.hook(ctx, "before-stop", nil)
	if err := s.procs.Stop(ctx); err != nil {
		s.failed("stop for a restart: "+err.Error(), s.spec.OnFailure.Then)
		return
	}
	s.life.Add(1)
	s.mu.Lock()
	s.health, s.checks, s.readyAt, s.openedAt = healthState{}, nil, 0, s.w.now()
	s.mu.Unlock()
	s.hook(ctx, "after-stop", nil)
	if s.data != nil && role == supervise.Active && !s.data.Leads() && !s.lead(ctx, cluster.Epoch(s.epoch.Load())) {
		return
	}
	if err := s.hook(ctx, "before-start", nil); err != nil {
		s.failed(err.Error(), s.spec.OnFailure.Then)
		return
	}
	if err := s.procs.Start(ctx, role, cluster.Epoch(s.epoch.Load())); err != nil {
		s.failed("start again: "+err.Error(), s.spec.OnFailure.Then)
		return
	}
	s.hook(ctx, "after-start", nil)
	s.up()
	if len(s.spec.Checks) == 0 {
		s.ready("processes run again")
	}
}

// leave is the end of the daemon: nothing of the service stays.
func (s *service) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), s.stopTime())
	defer cancel()
	if s.everywhere() {
		s.hook(ctx, "before-stop", nil)
	}
	if err := s.procs.Stop(ctx); err != nil {
		s.w.log.Warn("stop the processes", "service", s.name, "err", err)
	}
	if s.everywhere() {
		s.hook(ctx, "after-stop", nil)
	}
	if len(s.addrs) > 0 {
		if err := s.w.identity.Drop(s.no); err != nil {
			s.w.log.Warn("take the addresses away", "service", s.name, "err", err)
		}
	}
}

func (s *service) stopTime() time.Duration {
	d := 5 * time.Second
	for i := range s.spec.Processes {
		d += s.spec.Processes[i].StopTimeout
	}
	return d
}

// setSpec takes over changes of policy, which need no stop.
func (s *service) setSpec(spec cluster.ServiceSpec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !reflect.DeepEqual(s.spec.Checks, spec.Checks) {
		s.checks = nil
		select {
		case s.rechecks <- struct{}{}:
		default:
		}
	}
	s.spec = &spec
}

// up notes that the processes of the present role run.
func (s *service) up() {
	s.mu.Lock()
	s.health.up = true
	s.mu.Unlock()
	s.tell()
}

// failed notes that the service cannot run here.
func (s *service) failed(why, then string) {
	s.mu.Lock()
	s.health.unhealthy, s.health.gaveUp, s.health.then, s.gaveUpAt = why, why, then, time.Now()
	s.mu.Unlock()
	s.w.log.Warn("the service does not run here", "service", s.name, "why", why)
	s.step(why, "")
	s.tell()
}

// tell passes the health on to the core.
func (s *service) tell() {
	s.telling.Lock() // what is told last is what was true last
	defer s.telling.Unlock()
	s.mu.Lock()
	if s.everywhere() && s.health.then == "failover" {
		s.health.then = "ignore" // there is nobody to take it over
	}
	// A standby is ready when its processes run; the active when its checks have succeeded, too: until then it is starting.
	ready := s.health.up && s.health.unhealthy == "" && (!s.active.Load() || s.readyAt != 0)
	h := core.Health{Service: s.no, Ready: ready, Unhealthy: s.health.unhealthy != "", GaveUp: s.health.gaveUp, Then: s.health.then}
	s.mu.Unlock()
	s.w.step(h)
}

// onProcess takes what the supervisor reports. It runs on the supervisor's own goroutine.
func (s *service) onProcess(e supervise.Event) {
	log := s.w.log.With("service", s.name, "process", e.Process)
	switch e.Kind {
	case supervise.GaveUp:
		if e.Role != s.role() {
			// It was killed at the end of a tenure, or ended with it: what runs in the new role is not ill because of that.
			log.Info("a process of the role of before ended", "role", e.Role, "why", e.Reason)
			return
		}
		log.Warn("a process is not started again", "why", e.Reason, "then", e.Then)
		s.failed(fmt.Sprintf("process %s: %s", e.Process, e.Reason), e.Then)
	case supervise.Exited, supervise.Restarting, supervise.StopKilled:
		log.Info("process "+e.Kind.String(), "pid", e.Pid, "code", e.Code, "signal", e.Signal.String(), "why", e.Reason)
	case supervise.Ready, supervise.Started:
		log.Debug("process "+e.Kind.String(), "pid", e.Pid)
	}
}
