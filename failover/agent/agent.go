// Package agent runs the checks of a service and says how they stand: a TCP connection, an HTTP request, or a program
// that a user wrote (an agent).
//
// It never decides what a failed check leads to; it tells its listener, and failover/plan decides. It never runs a check
// twice at once, and a program that does not end in time is killed with everything that it started.
//
// Why it is correct: a verdict is made by Judge, which is pure (results and times in, verdict out); the shell round it only
// runs probes one after the other, each bounded by its time-out. A check that hangs is a failure after its time-out, and
// delays only itself.
//
// A verdict is for one tenure: start a new Agent when the service starts, ends with the tenure, so that a late result of
// the old tenure cannot condemn the new one. While the processes of the service are suspended, Pause: results of a frozen
// program prove nothing.
package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/cgroup"
	"github.com/hanode/hanode/internal/rt"
)

// Deps is the agent's world.
type Deps struct {
	Self         string        // path of our own binary for the exec step; "": /proc/self/exe
	Group        *cgroup.Group // exec checks run in groups below it; it must not be within the service's own group, which may be frozen. nil: none
	Env          []string      // added to the environment of exec checks: HANODE_SERVICE, HANODE_ROLE ...
	StartTimeout time.Duration // the longest start_timeout of the service's processes: until then nothing is condemned that never succeeded
	Log          *slog.Logger  // nil: none
}

// State is how one check stands.
type State struct {
	Name    string
	Verdict Verdict
	Ready   bool   // it has succeeded once
	Output  string // of the last run
	Took    time.Duration
	Row     int             // failures in a row
	Since   cluster.Instant // when the verdict became this one
	At      cluster.Instant // of the last run; 0: none yet
}

// Agent runs the checks of one service on one member for one tenure.
type Agent struct {
	deps     Deps
	log      *slog.Logger
	checks   []*check
	onChange func(State)
	paused   atomic.Bool

	mu sync.Mutex // guards the states, and keeps the calls of onChange in order
}

type check struct {
	spec  cluster.CheckSpec
	probe probe
	state State
}

// New prepares the checks and starts nothing. Its error names every check that cannot be run. onChange is called when
// the verdict or the readiness of a check changes, one call at a time; it must return quickly.
func New(specs []cluster.CheckSpec, deps Deps, onChange func(State)) (*Agent, error) {
	a := &Agent{deps: deps, log: deps.Log, onChange: onChange}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	var errs []error
	for _, spec := range specs {
		p, err := newProbe(spec, deps)
		errs = append(errs, err)
		a.checks = append(a.checks, &check{spec: spec, probe: p, state: State{Name: spec.Name, Verdict: Unknown}})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return a, nil
}

// Run runs the checks until ctx ends: New and Agent.Run in one.
func Run(ctx context.Context, specs []cluster.CheckSpec, deps Deps, onChange func(State)) error {
	a, err := New(specs, deps, onChange)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// From returns the checks that are run from a role: active, standby or witness.
func From(specs []cluster.CheckSpec, role string) []cluster.CheckSpec {
	var out []cluster.CheckSpec
	for _, s := range specs {
		if slices.Contains(s.From, role) || len(s.From) == 0 && role == "active" {
			out = append(out, s)
		}
	}
	return out
}

// Run runs every check at once and then each at its interval, until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, c := range a.checks {
		wg.Go(func() { a.loop(ctx, c) })
	}
	wg.Wait()
	<-ctx.Done()
	return nil
}

// Pause and resume: while paused no check runs, and a result of a run that was under way is dropped.
func (a *Agent) Pause(paused bool) { a.paused.Store(paused) }

// States returns how the checks stand, in file order.
func (a *Agent) States() []State {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]State, 0, len(a.checks))
	for _, c := range a.checks {
		out = append(out, c.state)
	}
	return out
}

// Ready says whether every check has succeeded at least once.
func (a *Agent) Ready() bool {
	for _, s := range a.States() {
		if !s.Ready {
			return false
		}
	}
	return true
}

func (a *Agent) loop(ctx context.Context, c *check) {
	judge := NewJudge(c.spec, rt.Now(), a.deps.StartTimeout)
	defer a.tidy(c)
	tick := time.NewTicker(c.spec.Every)
	defer tick.Stop()
	for {
		if !a.paused.Load() {
			r := once(ctx, c.probe, c.spec.Timeout)
			if ctx.Err() != nil {
				return // what ended with us proves nothing
			}
			if !a.paused.Load() {
				a.take(c, judge, r)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// tidy removes the group of an exec check.
func (a *Agent) tidy(c *check) {
	if a.deps.Group == nil || c.spec.Kind != "exec" {
		return
	}
	g, err := a.deps.Group.Sub(c.spec.Name)
	if err == nil {
		wait, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		err = errors.Join(g.WaitEmpty(wait), g.Remove())
	}
	if err != nil {
		a.log.Warn("the group of a check was not removed", "check", c.spec.Name, "error", err)
	}
}

// take judges a result and tells of a change.
func (a *Agent) take(c *check, judge *Judge, r Result) {
	now := rt.Now()
	v := judge.Step(now, r)
	a.mu.Lock()
	defer a.mu.Unlock()
	old := c.state
	c.state = State{Name: c.spec.Name, Verdict: v, Ready: judge.Ready(), Output: r.Output, Took: r.Took, Row: judge.Row(), Since: old.Since, At: now}
	if old.Verdict == v && old.Ready == c.state.Ready {
		return
	}
	c.state.Since = now
	a.log.Info("a check changed", "check", c.spec.Name, "from", string(old.Verdict), "to", string(v), "output", r.Output, "took", r.Took)
	if a.onChange != nil {
		a.onChange(c.state)
	}
}

// insecure: see probeHTTP.
func insecure() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }
