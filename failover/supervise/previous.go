package supervise

import (
	"context"
	"errors"
	"fmt"

	"github.com/hanode/hanode/internal/cgroup"
)

// CleanPrevious kills what an earlier incarnation of the daemon left running and waits until nothing of it lives (rule
// V0: the successor's promise stands for its predecessor's, so this comes before Join is proposed). earlier are the
// Paths of earlier roots, as kept in the state directory: the daemon may have been started from another cgroup then.
// Nothing of the present incarnation may be in root yet.
func CleanPrevious(ctx context.Context, root *cgroup.Root, earlier ...string) error {
	roots := []*cgroup.Root{root}
	var errs []error
	for _, path := range earlier {
		if path == root.Path() {
			continue
		}
		r, err := cgroup.OpenPath(path)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("what an earlier incarnation left in %s: %w", path, err))
		case r != nil:
			defer r.Close()
			roots = append(roots, r)
		}
	}
	var groups []*cgroup.Group
	for _, r := range roots {
		g, err := r.Self()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		defer g.Close()
		errs = append(errs, g.Kill(), g.Thaw()) // all are hit before the first is waited for
		groups = append(groups, g)
	}
	for _, g := range groups {
		if err := g.WaitEmpty(ctx); err != nil {
			errs = append(errs, fmt.Errorf("what an earlier incarnation left cannot be killed; reboot this host if it stays: %w", err))
			continue
		}
		errs = append(errs, g.RemoveBelow())
	}
	return errors.Join(errs...)
}
