package lab

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"
)

// Fault is one thing that happens to the cluster. Names are stable: scripts select by them.
type Fault struct {
	Name  string
	Title string        // for people
	Moves bool          // the service is expected to be taken over by the other node
	Plan  bool          // an operator orders it: the budget of a switchover holds, not that of a failover
	Watch time.Duration // between the fault and its healing

	prepare, inject, heal func(context.Context, *scene) error // nil: nothing to do
}

// scene is what a fault knows about the moment in which it happens.
type scene struct {
	*product
	active, standby string
	service         string // "": serviceName
	pid             int    // noted by prepare
}

const watch = 3 * time.Second

// Faults lists all of them: the ten of the demonstration, then those that only the benchmark has unless asked for.
func Faults() []Fault {
	return []Fault{
		{Name: "app-killed", Title: "application killed", Moves: true, Watch: watch,
			prepare: func(_ context.Context, s *scene) (err error) { s.pid, err = s.appPID(s.active); return err },
			inject:  func(ctx context.Context, s *scene) error { return s.bed.signal(ctx, s.active, s.pid, syscall.SIGKILL) }},
		{Name: "daemon-killed", Title: "daemon killed (SIGKILL)", Moves: true, Watch: watch,
			inject: func(ctx context.Context, s *scene) error { return s.signalDaemon(ctx, s.active, syscall.SIGKILL) },
			heal:   func(ctx context.Context, s *scene) error { return s.startDaemon(ctx, s.active) }},
		{Name: "daemon-stopped", Title: "daemon stopped (SIGSTOP)", Moves: true, Watch: watch,
			inject: func(ctx context.Context, s *scene) error { return s.signalDaemon(ctx, s.active, syscall.SIGSTOP) },
			heal:   func(ctx context.Context, s *scene) error { return s.signalDaemon(ctx, s.active, syscall.SIGCONT) }},
		{Name: "node-dead", Title: "node dead", Moves: true, Watch: watch,
			inject: func(ctx context.Context, s *scene) error { return s.bed.world.Host(s.active).Die(ctx) },
			heal:   func(ctx context.Context, s *scene) error { return s.revive(ctx, s.active) }},
		{Name: "node-isolated", Title: "node isolated", Moves: true, Watch: watch,
			inject: func(ctx context.Context, s *scene) error {
				return s.bed.world.Isolate(ctx, s.active, pinnedOf(s.active)) // that client shows whether it still answers
			},
			heal: healNetwork},
		{Name: "nodes-cut", Title: "nodes cut from each other", Watch: watch,
			inject: func(ctx context.Context, s *scene) error { return s.bed.world.Cut(ctx, nodeA, nodeB) },
			heal:   healNetwork},
		{Name: "witness-dead", Title: "witness dead", Watch: 7 * time.Second, // the active goes on without it after 5 s
			inject: func(ctx context.Context, s *scene) error { return s.bed.world.Host(witnessHost).Die(ctx) },
			heal:   func(ctx context.Context, s *scene) error { return s.revive(ctx, witnessHost) }},
		{Name: "host-frozen", Title: "host frozen, then thawed", Moves: true, Watch: watch,
			inject: func(ctx context.Context, s *scene) error { return s.bed.world.Host(s.active).Freeze(ctx) },
			heal:   func(ctx context.Context, s *scene) error { return s.bed.world.Host(s.active).Thaw(ctx) }},
		{Name: "switchover", Title: "planned switchover", Moves: true, Plan: true, Watch: 2 * time.Second,
			inject: func(ctx context.Context, s *scene) error {
				return s.switchover(ctx, cmp.Or(s.service, serviceName), s.active, s.standby)
			}},
		{Name: "node-back", Title: "repaired node back", Watch: watch,
			prepare: func(ctx context.Context, s *scene) error {
				if err := s.bed.world.Host(s.standby).Die(ctx); err != nil {
					return err
				}
				return sleep(ctx, 2*time.Second)
			},
			inject: func(ctx context.Context, s *scene) error { return s.revive(ctx, s.standby) }},
		{Name: "none", Title: "nothing happens", Watch: 10 * time.Second},
		{Name: "cpu-load", Title: "8 busy loops on the active", Watch: 10 * time.Second,
			inject: func(ctx context.Context, s *scene) error { return s.bed.hog(ctx, s) },
			heal:   func(ctx context.Context, s *scene) error { return s.bed.signal(ctx, s.active, -s.pid, syscall.SIGKILL) }},
		{Name: "node-unplugged", Title: "all cables of the active pulled", Moves: true, Watch: watch,
			inject: func(ctx context.Context, s *scene) error { return s.bed.world.Host(s.active).Unplug(ctx) },
			heal:   func(ctx context.Context, s *scene) error { return s.bed.world.Host(s.active).Plug(ctx) }},
		{Name: "standby-dead", Title: "standby dead", Watch: watch,
			inject: func(ctx context.Context, s *scene) error { return s.bed.world.Host(s.standby).Die(ctx) },
			heal:   func(ctx context.Context, s *scene) error { return s.revive(ctx, s.standby) }},
	}
}

// demoFaults is how many of Faults the demonstration shows when none are named; benchFaults, the benchmark.
const demoFaults, benchFaults = 10, 12

func healNetwork(ctx context.Context, s *scene) error { return s.bed.world.Heal(ctx) }

// hog starts the busy loops; their pid is their process group's too.
func (b *bed) hog(ctx context.Context, s *scene) error {
	h := b.world.Host(s.active)
	pid, err := h.Spawn(ctx, hogCmd(b.self, h))
	s.pid = pid
	return err
}

// faults are those of the configuration, the first n without one.
func (c Config) faults(n int) ([]Fault, error) {
	out, err := selectFaults(c.Faults, n)
	for i := range out {
		if c.watch > 0 {
			out[i].Watch = c.watch
		}
	}
	return out, err
}

// selectFaults picks faults by name, in the given order; the first n of all when there are no names.
func selectFaults(names []string, n int) ([]Fault, error) {
	all := Faults()
	if len(names) == 0 {
		return all[:n], nil
	}
	var out []Fault
	for _, name := range names {
		found := false
		for _, f := range all {
			if f.Name == name {
				out, found = append(out, f), true
			}
		}
		if !found {
			var known []string
			for _, f := range all {
				known = append(known, f.Name)
			}
			return nil, fmt.Errorf("no fault %q: choose among %s", name, strings.Join(known, ", "))
		}
	}
	return out, nil
}
