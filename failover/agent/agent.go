// Package agent runs the checks of one service on one node and judges them: connect to a port (tcp), ask for a page
// (http), run a program (exec).
//
// It never decides what follows from a failed check, never restarts or moves anything, and never reads the lease: it
// says what it saw. It knows nothing of start_timeout.
//
// # Readiness
//
// A service is starting until every check that counts has succeeded once (Ready), or its start_timeout has ended. Checks
// condemn only after that: until then the caller shows what Failed says but does not act on it. "Once" is counted anew
// whenever the role of this node, or the life of the service (Deps.Life: a new epoch, a restart), changes; without that a
// service that is being restarted for a failed check would be condemned again before it could come up.
//
// # Why it is correct
//
// Each check has one goroutine, which alone touches its Judge, and at most one run at a time; a run that belongs to an
// earlier role or life is cancelled, and its result is dropped. Judge is pure: it has no clock. Runs are due at whole
// multiples of `every` after the first one, so that they do not drift; what was missed is left out. Until a check has
// succeeded for the first time it runs more often, so that readiness is seen soon, but its failures count only at the
// pace of the spec.
//
// Programs start through the exec step of failover/supervise/launch, so that they inherit neither the real-time class nor
// the locked memory of the daemon, in a cgroup of their own below the service's: a kill of the service reaches them, and
// whatever a program leaves in the background ends with it.
//
// # What callers must do
//
// onChange must return quickly: one call delays the checks of the same service. A frozen service freezes its exec checks
// too; they then fail by their timeout.
package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/supervise/launch"
	"github.com/hanode/hanode/internal/cgroup"
	"github.com/hanode/hanode/internal/rt"
)

// Result is what one run of a check found.
type Result struct {
	OK     bool
	Output string          // one line of at most 256 bytes, without control characters
	Took   time.Duration   // of the run
	At     cluster.Instant // when it began
}

// Deps is what the checks need of their surroundings. Log, Now, Self, Group, Life and Env are optional.
type Deps struct {
	Log  *slog.Logger           // nil: none
	Now  func() cluster.Instant // nil: rt.Now
	Role func() string          // "active" or "standby"; a check runs only where its `from` names the role. Must not block
	Turn func() <-chan struct{} // closed when the process next wakes up anyway: role and life are looked at then; nil: every 50 ms
	Life func() uint64          // changes whenever the service starts anew (epoch, restart): judges start anew then. Must not block

	Paused func(check string) bool // an operator has paused it: it is not run. nil: none is. Must not block

	Self  string        // path of our own binary for the exec step; "": /proc/self/exe
	Group *cgroup.Group // of the service, for exec checks; nil: they are killed by process group only
	Env   []string      // added to the environment of exec checks, such as HANODE_SERVICE=db
}

func (d Deps) filled() Deps {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = rt.Now
	}
	if d.Role == nil {
		d.Role = func() string { return "active" }
	}
	if d.Paused == nil {
		d.Paused = func(string) bool { return false }
	}
	if d.Life == nil {
		d.Life = func() uint64 { return 0 }
	}
	d.Env = append(launch.BaseEnv("", ""), d.Env...)
	return d
}

// Run runs the checks of specs until ctx ends and returns nil then; nothing of them is left. It refuses (see Check) before
// it starts anything. onChange is called for the first result of each check, whenever a state changes, and when a
// check starts anew (its state is "unknown" again then); from one goroutine at a time, never after Run has returned.
func Run(ctx context.Context, specs []cluster.CheckSpec, d Deps, onChange func(Status)) error {
	return run(ctx, specs, d.filled(), probe, onChange)
}

// prober runs one check once.
type prober func(context.Context, *cluster.CheckSpec, *Deps) Result

func run(ctx context.Context, specs []cluster.CheckSpec, d Deps, p prober, onChange func(Status)) error {
	var errs []error
	for i := range specs {
		if runsHere(&specs[i]) {
			errs = append(errs, Check(specs[i]))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var mu sync.Mutex
	tell := func(st Status) {
		mu.Lock()
		defer mu.Unlock()
		onChange(st)
	}
	var loops []*loop
	for i := range specs {
		if runsHere(&specs[i]) {
			loops = append(loops, newLoop(specs[i], &d, p, tell))
		}
	}
	if len(loops) == 0 {
		<-ctx.Done()
		return nil
	}
	var wg sync.WaitGroup
	wg.Go(func() { watch(ctx, &d, loops) })
	for _, l := range loops {
		wg.Go(func() { l.run(ctx) })
	}
	wg.Wait()
	sweep(&d, specs)
	return nil
}

// watch tells all loops when role or life have changed.
func watch(ctx context.Context, d *Deps, loops []*loop) {
	every := lookEvery
	if d.Turn != nil {
		every *= 20 // if nobody took turns any more
	}
	look := time.NewTicker(every)
	defer look.Stop()
	var role string
	var life uint64
	paused := make([]bool, len(loops))
	for {
		r, n := d.Role(), d.Life()
		for i, l := range loops {
			if p := d.Paused(l.spec.Name); r != role || n != life || p != paused[i] {
				paused[i] = p
				select {
				case l.look <- struct{}{}:
				default:
				}
			}
		}
		role, life = r, n
		var turn <-chan struct{}
		if d.Turn != nil {
			turn = d.Turn()
			look.Reset(every)
		}
		select {
		case <-ctx.Done():
			return
		case <-turn:
		case <-look.C:
		}
	}
}

// runsHere says that a node may have to run the check: those of the witness alone are not ours.
func runsHere(s *cluster.CheckSpec) bool {
	return slices.Contains(s.From, "active") || slices.Contains(s.From, "standby")
}

// Once runs a check now, whatever the role, for at most its timeout.
func Once(ctx context.Context, spec cluster.CheckSpec, d Deps) Result {
	d = d.filled()
	if err := Check(spec); err != nil {
		return Result{Output: line(err.Error()), At: d.Now()}
	}
	return probe(ctx, &spec, &d)
}

// probe runs a check once: it returns at the end of its timeout or of ctx, and nothing of it is left.
func probe(ctx context.Context, spec *cluster.CheckSpec, d *Deps) Result {
	ctx, cancel := context.WithTimeout(ctx, spec.Timeout)
	defer cancel()
	r := Result{At: d.Now()}
	var err error
	switch spec.Kind {
	case "tcp":
		r.Output, err = dialTCP(ctx, spec.Target)
	case "http":
		r.Output, err = getHTTP(ctx, spec.Target)
	case "exec":
		r.Output, err = runExec(ctx, spec, d)
	default:
		err = Check(*spec)
	}
	r.Took = d.Now().Sub(r.At)
	if err != nil {
		r.Output = explain(ctx, err, r.Output, min(spec.Timeout, r.Took))
	}
	r.OK, r.Output = err == nil, line(r.Output)
	return r
}

// explain says why a run failed in the words of an operator.
func explain(ctx context.Context, err error, output string, took time.Duration) string {
	why := err.Error()
	var slow interface{ Timeout() bool } // a dial may give up some microseconds before ctx does
	if errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.As(err, &slow) && slow.Timeout() {
		why = "no answer within " + took.Round(time.Millisecond).String()
	}
	if output != "" {
		return why + ": " + output
	}
	return why
}

// maxLine bounds what is kept of an output, in bytes.
const maxLine = 256

// line is the first line of s that is not empty, cut, and harmless for a terminal.
func line(s string) string {
	s = strings.TrimSpace(s)
	s, _, _ = strings.Cut(s, "\n")
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), 4*maxLine)], "?"))
	return strings.TrimSpace(strings.ToValidUTF8(s[:min(len(s), maxLine)], ""))
}
