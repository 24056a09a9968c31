package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// LimitMemory sets the hard limit (memory.max, bytes) of all processes of g together. Where the memory controller is not
// on cgroup v2 it is refused with the reason: a limit that is only believed in is worse than none, and the limits of
// setrlimit(2) count something else (address space, one process).
func (g *Group) LimitMemory(limit int64) error {
	if err := g.CanLimitMemory(); err != nil {
		return err
	}
	// Pass the controller down from the parent of the root to the parent of g.
	top := filepath.Dir(g.root.dir)
	rel, err := filepath.Rel(top, filepath.Dir(g.run))
	if err != nil {
		return fmt.Errorf("memory limit of %s: %w", g.run, err)
	}
	dir := top
	for _, part := range append([]string{"."}, strings.Split(rel, "/")...) {
		dir = filepath.Join(dir, part)
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
			return fmt.Errorf("memory limit: pass the memory controller down from %s: %w (a cgroup with processes of its own cannot: set Delegate=yes and DelegateSubgroup=daemon in the unit)", dir, err)
		}
	}
	if err := write(g.run, "memory.max", strconv.FormatInt(limit, 10)); err != nil {
		return fmt.Errorf("memory limit: %w", err)
	}
	return nil
}

// CanLimitMemory says, with the reason, when LimitMemory is sure to be refused.
func (g *Group) CanLimitMemory() error {
	switch {
	case g.dirs == nil:
		return fmt.Errorf("a memory limit needs cgroups: %s", g.root.report.NotCovered)
	case !slices.Contains(g.root.report.Controllers, "memory"):
		return fmt.Errorf("a memory limit needs the memory controller of cgroup v2, and %s has only %v: boot with systemd.unified_cgroup_hierarchy=1, or remove memory_max",
			filepath.Dir(g.root.dir), g.root.report.Controllers)
	}
	return nil
}
