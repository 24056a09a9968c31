package node

import (
	"context"
	"errors"
	"time"

	"github.com/hanode/hanode/internal/guard"
)

// guardTime bounds one request to the guard.
const guardTime = 2 * time.Second

// startGuard puts the guard on its post and keeps it there: one that dies is started again with all services.
func (n *Node) startGuard() error {
	g, err := guard.Start(n.guardConfig())
	if err != nil {
		return err
	}
	n.setGuard(g)
	n.run.Go(func() error {
		for {
			select {
			case <-n.ctx.Done():
				ctx, cancel := context.WithTimeout(context.Background(), guardTime)
				defer cancel()
				return n.theGuard().Close(ctx)
			case <-n.theGuard().Done():
			}
			n.raise("guard", n.dir.Identity.Name, "crit", "the guard ended; it is started again", "look at the log of the guard")
			g, err := guard.Start(n.guardConfig())
			if err != nil {
				return errors.New("the guard cannot be started again, and without it a hanging daemon would not be fenced: " + err.Error())
			}
			n.setGuard(g)
			for _, s := range n.list() {
				if err := n.guardAdd(s); err != nil {
					return err
				}
			}
		}
	})
	return nil
}

// guardGroup is the cgroup of the guard, beside those of the services (no service can have this name): the next run of the daemon finds one that was left there.
const guardGroup = "@guard"

func (n *Node) guardConfig() guard.Config {
	g, err := n.root.Group(guardGroup)
	if err != nil {
		n.log.Warn("the guard gets no cgroup of its own: a later run of the daemon will not find it", "err", err)
		g = nil
	}
	return guard.Config{Log: n.log, Group: g, Events: func(e guard.Event) { n.log.Warn("guard", "event", e) }}
}

func (n *Node) setGuard(g *guard.Guard) {
	n.mu.Lock()
	n.guard = g
	n.mu.Unlock()
}

func (n *Node) theGuard() *guard.Guard {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.guard
}

// guardAdd puts a service under the guard. Where there are no cgroups it cannot be, which is an alarm and not an error: the gate works.
func (n *Node) guardAdd(s *service) error {
	if !s.group.Cgroups() {
		n.raise("no-guard", s.name, "warn", "the processes of "+s.name+" cannot be frozen or killed by the guard: there is no cgroup v2 here", "mount cgroup2, or give hanode.service Delegate=yes")
		return nil
	}
	ctx, cancel := context.WithTimeout(n.ctx, guardTime)
	defer cancel()
	g := guard.Service{No: s.no, Page: s.page.File(), Group: s.group, Addresses: n.vips.Deletions(s.no)}
	if s.vol != nil {
		// A volume server that still holds the service's processes 100 ms after the deadline is silent: it is killed, and the kernel aborts its mounts.
		h, err := s.vol.group.Handles()
		if err != nil {
			return err
		}
		defer h.Close()
		g.FuseAbort = h.Kill
	}
	return n.theGuard().Add(ctx, g)
}

// guardLook tells the guard that a page has changed its state.
func (n *Node) guardLook() {
	if g := n.theGuard(); g != nil {
		g.Look()
	}
}

func (n *Node) guardRemove(s *service) {
	if !s.group.Cgroups() {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, guardTime)
	defer cancel()
	if err := n.theGuard().Remove(ctx, s.no); err != nil {
		n.log.Debug("guard", "service", s.name, "err", err)
	}
}
