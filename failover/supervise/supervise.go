// Package supervise runs the processes of one service on one node: it starts them in the order of the spec, promotes
// those that run on the standby too, restarts what exits, stops in reverse order, and freezes or kills all of them at
// once when the lease demands it.
//
// It never decides where a service runs, never touches an address or a volume, and never leaves a process behind: when
// Run has returned, or Kill returned nil, the service's cgroup is empty.
//
// # Why it is correct
//
// Every process is born into its own cgroup <service>/<process>, through the exec step of package launch, so a kill of
// the service's cgroup reaches all of them, including sessions of their own, orphans, and what is just being forked.
// Each process has one goroutine (an actor) that alone touches its state; commands, exits and timers reach it one by
// one. Stop, Kill and Demote raise the supervisor's generation before anything else, and an actor refuses a start that
// carries an older one: a start that was under way cannot undo a stop. Whether an exit is followed by a restart is
// decided by restartLog, which is pure. A restart of an active process waits for as long as the deadline page says that
// the service may not act.
//
// # How a process learns its role
//
// At its start, by its environment:
//
//	HANODE_SERVICE, HANODE_PROCESS   names
//	HANODE_ROLE                      active or standby
//	HANODE_EPOCH                     the epoch that it was started in
//	HANODE_PAGE_FD                   descriptor of the deadline page (internal/page), where role and deadline are always current
//	NOTIFY_SOCKET                    with ready = "notify" and for hot processes: sd_notify(3)
//
// Later, for processes with standby = "hot": by the page; by promote = [argv]; and by SIGUSR1 (promoted) and SIGUSR2
// (demoted), but only if it asked for these signals (HANODE_ROLE_SIGNALS=1 in the env of its spec, or as a message on
// NOTIFY_SOCKET) and /proc/PID/status says that it catches them. Asking is needed besides catching, because these
// signals mean other things to other programs: haproxy stops on SIGUSR1, nginx starts a second master on SIGUSR2.
//
// # What callers must do
//
// Run must run before anything else works. Give every process a Group that nobody else uses. On the fence: Kill first
// and ask later. Output and Events must return quickly; a slow Output blocks the program that writes.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/supervise/launch"
	"github.com/hanode/hanode/internal/cgroup"
	"github.com/hanode/hanode/internal/page"
)

// Roles of a service on a node.
const (
	Active  = "active"
	Standby = "standby"
)

// Config is what a Supervisor needs.
type Config struct {
	Service   string
	Specs     []cluster.ProcessSpec
	OnFailure cluster.OnFailure
	Group     *cgroup.Group // of the service; belongs to the caller
	Self      string        // path of our own binary for the exec step; "": /proc/self/exe
	Page      *os.File      // the deadline page; nil: the service has no lease
	Env       []string      // added to every process, before the env of its spec
	Log       *slog.Logger  // nil: none
	Output    func(process string, line []byte)
	Events    func(Event)
}

// Supervisor runs the processes of one service.
type Supervisor struct {
	cfg     Config
	log     *slog.Logger
	procs   []*proc
	page    *page.Reader
	events  *eventQueue
	gen     atomic.Uint64 // raised by Stop, Kill and Demote: older starts are refused
	killGen atomic.Uint64 // the generation of the last Kill: what was started before it and ends was killed
	running chan struct{} // closed by Run
	ended   chan struct{} // closed when Run has returned
	once    atomic.Bool
}

// ProcessState is what status shows of a process.
type ProcessState struct {
	Name     string
	State    string // stopped, starting, running, stopping, restarting, failed
	Role     string
	PID      int
	Restarts int // within the window of on_failure
	Since    cluster.Instant
	Status   string // last STATUS= of sd_notify, or why it failed
}

// New checks the specs and prepares; it starts nothing. Its error names every spec that this node cannot run.
func New(cfg Config) (*Supervisor, error) {
	if cfg.Group == nil {
		return nil, fmt.Errorf("service %s: no process group was given", cfg.Service)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Supervisor{cfg: cfg, log: cfg.Log.With("service", cfg.Service), running: make(chan struct{}), ended: make(chan struct{})}
	s.events = newEventQueue(s.log)
	var errs []error
	for i := range cfg.Specs {
		if err := Check(&cfg.Specs[i], cfg.Group); err != nil {
			errs = append(errs, err)
		}
		s.procs = append(s.procs, newProc(s, cfg.Specs[i]))
	}
	if cfg.Page != nil {
		r, err := page.OpenFD(int(cfg.Page.Fd()))
		errs = append(errs, err)
		s.page = r
	}
	if err := errors.Join(errs...); err != nil {
		if s.page != nil {
			s.page.Close()
		}
		return nil, err
	}
	return s, nil
}

// Run owns everything until ctx ends; then it kills what runs (call Stop before for an orderly end) and returns when
// nothing is left: nil, or an error that names what could not be killed.
func (s *Supervisor) Run(ctx context.Context) error {
	if !s.once.CompareAndSwap(false, true) {
		return fmt.Errorf("service %s: its supervisor ran already", s.cfg.Service)
	}
	defer close(s.ended)
	for _, p := range s.procs {
		if err := p.prepare(); err != nil {
			return errors.Join(err, s.release())
		}
	}
	if err := s.cfg.Group.Thaw(); err != nil { // an earlier freeze would hold everything that starts
		return errors.Join(fmt.Errorf("thaw %s: %w", s.cfg.Service, err), s.release())
	}
	done := make(chan struct{})
	var listener, actors sync.WaitGroup
	listener.Go(func() { s.events.run(done, s.cfg.Events) })
	stop := make(chan struct{})
	for _, p := range s.procs {
		actors.Go(func() { p.loop(stop) })
	}
	close(s.running)
	<-ctx.Done()

	killCtx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := s.Kill(killCtx)
	close(stop)
	actors.Wait()
	close(done)
	listener.Wait()
	return errors.Join(err, s.release())
}

// release frees what New and prepare took.
func (s *Supervisor) release() error {
	var errs []error
	for _, p := range s.procs {
		errs = append(errs, p.release())
	}
	if s.page != nil {
		errs = append(errs, s.page.Close())
	}
	return errors.Join(errs...)
}

// Start brings the service to a role: "active" starts every process in file order and promotes those that run as
// standby; "standby" starts the hot ones. It waits for each to be ready by its own rule before it goes on (with
// ready = "checks": until it runs). What runs already in this role stays. It returns the first error: a process that
// could not be started, was given up, or was stopped meanwhile.
func (s *Supervisor) Start(ctx context.Context, role string, epoch cluster.Epoch) error {
	if role != Active && role != Standby {
		return fmt.Errorf("service %s: role %q: choose active or standby", s.cfg.Service, role)
	}
	if err := s.awaitRun(ctx); err != nil {
		return err
	}
	gen := s.gen.Load()
	for _, p := range s.procs {
		if role == Standby && p.spec.Standby != "hot" {
			continue
		}
		done := make(chan error, 1)
		if err := s.ask(ctx, p, func() { p.start(gen, role, epoch, done) }); err != nil {
			return err
		}
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("service %s: process %s: %w", s.cfg.Service, p.spec.Name, err)
			}
		case <-ctx.Done():
			return fmt.Errorf("service %s: process %s is not ready: %w", s.cfg.Service, p.spec.Name, ctx.Err())
		case <-s.ended:
			return s.notRunning()
		}
	}
	return nil
}

// Promote makes the standby active. Hot processes are told within a millisecond, besides what their promote = [argv]
// takes; cold ones are started. It is Start with role active.
func (s *Supervisor) Promote(ctx context.Context, epoch cluster.Epoch) error {
	return s.Start(ctx, Active, epoch)
}

// Demote makes the active a standby without waiting for more than the service's release needs: cold processes stop, in
// reverse order; hot ones that asked for signals get SIGUSR2; hot ones with promote = [argv] cannot be demoted in place
// and stop; the others stay and see it on the page. Call Start with role standby afterwards, for those that stopped.
func (s *Supervisor) Demote(ctx context.Context, epoch cluster.Epoch) error {
	s.gen.Add(1)
	return s.reverse(ctx, func(p *proc, done chan error) { p.demote(epoch, done) })
}

// Stop stops all processes in reverse order: by their stop = [argv] or signal, and by a kill after their stop_timeout or
// at the end of ctx. It returns when nothing of them is left; an error names what could not be killed.
func (s *Supervisor) Stop(ctx context.Context) error {
	s.gen.Add(1)
	return s.reverse(ctx, (*proc).stop)
}

// reverse asks each process in turn, the last one first, even when ctx has ended: then it kills.
func (s *Supervisor) reverse(ctx context.Context, what func(*proc, chan error)) error {
	var errs []error
	for i := len(s.procs) - 1; i >= 0; i-- {
		p := s.procs[i]
		done := make(chan error, 1)
		if err := s.ask(context.WithoutCancel(ctx), p, func() { what(p, done) }); err != nil {
			return err
		}
		errs = append(errs, s.finish(ctx, p, done))
	}
	return errors.Join(errs...)
}

// finish waits for a stop; at the end of ctx it kills and waits a little more.
func (s *Supervisor) finish(ctx context.Context, p *proc, done chan error) error {
	select {
	case err := <-done:
		return err
	case <-s.ended:
		return s.notRunning()
	case <-ctx.Done():
	}
	p.group.Kill()
	select {
	case err := <-done:
		return err
	case <-s.ended:
		return s.notRunning()
	case <-time.After(killWait):
		return fmt.Errorf("service %s: process %s outlives its kill", s.cfg.Service, p.spec.Name)
	}
}

// Kill kills every process of the service at once, frozen ones included, and waits until none is left or ctx ends. What
// was to be restarted is not.
func (s *Supervisor) Kill(ctx context.Context) error {
	s.killGen.Store(s.gen.Add(1))
	killErr := s.cfg.Group.Kill() // before anybody is asked anything
	select {
	case <-s.running:
	default:
		return errors.Join(killErr, s.cfg.Group.WaitEmpty(ctx))
	}
	for _, p := range s.procs {
		p.post(p.killed)
	}
	for _, p := range s.procs { // a start that was under way has come to its end or been refused
		ack := make(chan struct{})
		if p.post(func() { close(ack) }) {
			select {
			case <-ack:
			case <-p.quit:
			}
		}
	}
	killErr = errors.Join(killErr, s.cfg.Group.Kill())
	for _, p := range s.procs {
		if err := p.awaitGone(ctx); err != nil {
			return err
		}
	}
	return killErr
}

// Freeze stops all processes of the service where they are and waits until they are frozen or ctx ends.
func (s *Supervisor) Freeze(ctx context.Context) error {
	if err := s.cfg.Group.Freeze(); err != nil {
		return fmt.Errorf("freeze %s: %w", s.cfg.Service, err)
	}
	return s.cfg.Group.WaitFrozen(ctx)
}

// Thaw undoes Freeze.
func (s *Supervisor) Thaw() error {
	if err := s.cfg.Group.Thaw(); err != nil {
		return fmt.Errorf("thaw %s: %w", s.cfg.Service, err)
	}
	return nil
}

// Processes returns the state of all processes, in file order.
func (s *Supervisor) Processes() []ProcessState {
	out := make([]ProcessState, 0, len(s.procs))
	for _, p := range s.procs {
		out = append(out, p.state())
	}
	return out
}

func (s *Supervisor) awaitRun(ctx context.Context) error {
	select {
	case <-s.running:
		return nil
	case <-s.ended:
		return s.notRunning()
	case <-ctx.Done():
		return fmt.Errorf("service %s: its supervisor does not run: %w", s.cfg.Service, ctx.Err())
	}
}

// ask posts f to the actor of p, once Run runs.
func (s *Supervisor) ask(ctx context.Context, p *proc, f func()) error {
	if err := s.awaitRun(ctx); err != nil {
		return err
	}
	if !p.post(f) {
		return s.notRunning()
	}
	return nil
}

func (s *Supervisor) notRunning() error {
	return fmt.Errorf("service %s: its supervisor has ended", s.cfg.Service)
}

// ExecChild is the hidden subcommand launch.Subcommand of cmd/hanode. It returns only with an error; the caller exits
// with status 127.
func ExecChild(args []string) error { return launch.Child(args) }
