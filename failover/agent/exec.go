package agent

import (
	"context"
	"fmt"
	"slices"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/supervise/launch"
)

// checksGroup is the cgroup of the exec checks within the service's. No process of a spec can have this name.
const checksGroup = "_checks"

// maxOutput bounds what is kept of a program's output; the rest is read and dropped.
const maxOutput = 4 << 10

// runExec succeeds if the program exits with 0. At the end of ctx it is killed with everything that it started.
func runExec(ctx context.Context, spec *cluster.CheckSpec, d *Deps) (out string, err error) {
	p := launch.Program{Self: d.Self, Argv: spec.Argv, Env: append(d.Env[:len(d.Env):len(d.Env)], "HANODE_CHECK="+spec.Name, "HANODE_ROLE="+d.Role())}
	if d.Group != nil {
		all, err := d.Group.Sub(checksGroup)
		if err != nil {
			return "", err
		}
		defer all.Close()
		// Each run has a group of its own, so that one on demand and one by the clock do not kill each other.
		if p.Cgroup, err = all.Sub(fmt.Sprintf("%s.%d", spec.Name, d.Now())); err != nil {
			return "", err
		}
		defer func() {
			if err := p.Cgroup.Remove(); err != nil {
				d.Log.Debug("cgroup of a check", "check", spec.Name, "err", err)
			}
		}()
	}
	r, err := launch.Run(ctx, p, maxOutput)
	text := line(string(r.Output))
	switch {
	case err != nil:
		return text, err
	case r.Code < 0:
		return text, fmt.Errorf("%s was killed by a signal", spec.Argv[0])
	case r.Code != 0:
		return text, fmt.Errorf("exit status %d", r.Code)
	}
	return text, nil
}

// sweep removes the empty group of the exec checks.
func sweep(d *Deps, specs []cluster.CheckSpec) {
	if d.Group == nil || !slices.ContainsFunc(specs, func(s cluster.CheckSpec) bool { return s.Kind == "exec" }) {
		return
	}
	g, err := d.Group.Sub(checksGroup)
	if err == nil {
		err = g.Remove()
	}
	if err != nil {
		d.Log.Debug("cgroup of the checks", "err", err)
	}
}
