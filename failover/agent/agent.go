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
// A verdict is for one role: when the member's role changes, every check begins anew, and the result of a run that was
// under way is dropped, so that it cannot condemn the new tenure. Between two roles, and while the service is suspended,
// Role returns "": then no check runs, because the results of a frozen program prove nothing.
package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/cgroup"
	"github.com/hanode/hanode/internal/rt"
)

// Deps is the agent's world.
type Deps struct {
	Log          *slog.Logger           // nil: none
	Now          func() cluster.Instant // nil: CLOCK_BOOTTIME
	Role         func() string          // of this member now: active, standby, witness; "": run nothing. nil: active
	Self         string                 // path of our own binary for the exec step; "": /proc/self/exe
	Group        *cgroup.Group          // of the service: exec checks are killed with it, and never frozen. nil: none
	Env          []string               // added to the environment of exec checks
	StartTimeout time.Duration          // the longest start_timeout of the service's processes: until then nothing is condemned that never succeeded
}

// Status is how one check stands.
type Status struct {
	Name     string
	State    State
	Output   string          // of the last run
	Took     time.Duration   // of the last run
	Since    cluster.Instant // when the state became this one
	Failures int             // in a row
	LastOK   cluster.Instant // 0: not since this member has its role
}

// Agent runs the checks of one service on one member.
type Agent struct {
	deps     Deps
	log      *slog.Logger
	checks   []*check
	onChange func(Status)

	mu sync.Mutex // guards the states, and keeps the calls of onChange in order
}

type check struct {
	spec  cluster.CheckSpec
	probe probe
	state Status
}

// New prepares the checks and starts nothing. Its error names every check that cannot be run. onChange is called when
// the state of a check changes and after each failed run, one call at a time; it must return quickly.
func New(specs []cluster.CheckSpec, deps Deps, onChange func(Status)) (*Agent, error) {
	if deps.Now == nil {
		deps.Now = rt.Now
	}
	if deps.Role == nil {
		deps.Role = func() string { return "active" }
	}
	a := &Agent{deps: deps, log: deps.Log, onChange: onChange}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	var errs []error
	for _, spec := range specs {
		p, err := newProbe(spec, deps)
		errs = append(errs, err)
		a.checks = append(a.checks, &check{spec: spec, probe: p, state: Status{Name: spec.Name, State: StateUnknown}})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return a, nil
}

// Run runs the checks until ctx ends: New and Agent.Run in one.
func Run(ctx context.Context, specs []cluster.CheckSpec, deps Deps, onChange func(Status)) error {
	a, err := New(specs, deps, onChange)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// runsIn says whether a check is run by members of a role.
func runsIn(spec *cluster.CheckSpec, role string) bool {
	if role == "" {
		return false
	}
	return slices.Contains(spec.From, role) || len(spec.From) == 0 && role == "active"
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

// States returns how the checks stand, in file order.
func (a *Agent) States() []Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]Status, 0, len(a.checks))
	for _, c := range a.checks {
		out = append(out, c.state)
	}
	return out
}

func (a *Agent) loop(ctx context.Context, c *check) {
	defer a.tidy(c)
	tick := time.NewTicker(c.spec.Every)
	defer tick.Stop()
	role, judge := "", NewJudge(c.spec, a.deps.Now(), a.deps.StartTimeout)
	for {
		if now := a.deps.Role(); now != role { // a new tenure
			role, judge = now, NewJudge(c.spec, a.deps.Now(), a.deps.StartTimeout)
			a.reset(c)
		}
		if runsIn(&c.spec, role) {
			r := once(ctx, c.probe, c.spec.Timeout)
			if ctx.Err() != nil {
				return // what ended with us proves nothing
			}
			if a.deps.Role() == role {
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
	g, err := a.deps.Group.Sub(groupOf(c.spec))
	if err == nil {
		wait, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		err = errors.Join(g.WaitEmpty(wait), g.Remove())
	}
	if err != nil {
		a.log.Warn("the group of a check was not removed", "check", c.spec.Name, "error", err)
	}
}

// groupOf keeps a check apart from a process of the same name.
func groupOf(spec cluster.CheckSpec) string { return "check." + spec.Name }

// reset forgets what a former role's runs have shown.
func (a *Agent) reset(c *check) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := c.state.State
	c.state = Status{Name: c.spec.Name, State: StateUnknown, Since: a.deps.Now()}
	if old != StateUnknown && a.onChange != nil {
		a.onChange(c.state)
	}
}

// take judges a result and tells of it if somebody should know.
func (a *Agent) take(c *check, judge *Judge, r Result) {
	now := a.deps.Now()
	state := judge.Step(now, r)
	a.mu.Lock()
	defer a.mu.Unlock()
	old := c.state
	c.state = Status{Name: c.spec.Name, State: state, Output: r.Output, Took: r.Took, Since: old.Since, Failures: judge.Row(), LastOK: old.LastOK}
	if r.OK {
		c.state.LastOK = now
	}
	if old.State != state {
		c.state.Since = now
		a.log.Info("a check changed", "check", c.spec.Name, "from", string(old.State), "to", string(state), "output", r.Output, "took", r.Took)
	} else if r.OK {
		return
	}
	if a.onChange != nil {
		a.onChange(c.state)
	}
}

// insecure: see probeHTTP.
func insecure() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }
