package node

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/page"
)

// Do carries out what the core answers for this machine. It runs on the loop: what must be at once, the deadline page and the gate, is
// done here by one system call each; everything else is handed to the service's own goroutine.
func (n *Node) Do(a core.Action) {
	switch a := a.(type) {
	case core.Begin:
		n.beginTenure(a)
	case core.Extend:
		n.extend(a)
	case core.Bumped:
		if s := n.byNo(a.Service); s != nil {
			s.epoch.Store(uint64(a.Epoch))
		}
	case core.Close:
		n.closeTenure(a)
	case core.Prepare:
		n.order(a.Service, orderPrepare{a.Epoch, a.Stop})
	case core.Restore:
		n.order(a.Service, orderRestore{a.Epoch})
	case core.Restart:
		n.order(a.Service, orderRestart{a.Why})
	case core.Standby:
		n.order(a.Service, orderStandby{})
	case core.Announce:
		n.announce()
	case core.SpecChanged, core.Joined:
		n.specChanged()
	case core.OrderDone:
		n.orderDone(a)
	case core.FactsChanged:
		if s := n.byNo(a.Facts.Service); s != nil && s.vol != nil {
			s.vol.SetFacts(a.Facts)
		}
	case core.GoAlone:
		if s := n.byNo(a.Service); s != nil && s.vol != nil {
			s.vol.GoAlone()
		}
	case core.Alarm:
		n.alarm(a)
	}
}

// order hands an order to the service's goroutine. The queue is longer than any tenure has orders; a full one means that the goroutine
// hangs, and then the lease runs out by itself.
func (n *Node) order(no cluster.ServiceNo, o any) {
	s := n.byNo(no)
	if s == nil {
		return
	}
	select {
	case s.orders <- o:
	default:
		n.log.Error("a service does not take orders any more", "service", s.name, "order", fmt.Sprintf("%T", o))
	}
}

func (n *Node) byNo(no cluster.ServiceNo) *service {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.services[no]
}

func (n *Node) beginTenure(a core.Begin) {
	s := n.byNo(a.Service)
	if s == nil {
		return
	}
	s.epoch.Store(uint64(a.Epoch))
	s.since.Store(int64(a.Since))
	s.granted.Store(int64(n.m.Now()))
}

// extend opens, or keeps open, until a deadline.
func (n *Node) extend(a core.Extend) {
	s := n.byNo(a.Service)
	if s == nil {
		return
	}
	if s.epoch.Load() != uint64(a.Epoch) { // its Begin came before the service was made here
		s.since.Store(0)
		s.granted.Store(int64(n.m.Now()))
	}
	s.epoch.Store(uint64(a.Epoch))
	s.page.SetTTL(a.TTL)
	begins := s.page.Last().State != page.Active
	s.page.Set(a.Epoch, a.Deadline, page.Active)
	if begins {
		n.guardLook()
	}
	if n.gate != nil && len(s.addrs) > 0 {
		if err := n.gate.Refresh(a.Service, a.Deadline); err != nil {
			n.gateFailed(s, err)
		}
	}
	// The first extension may have come before the service was made here, as when a new spec is granted at once: then this one opens.
	if !a.First && s.active.Load() {
		return
	}
	s.active.Store(true)
	n.log.Info("active", "service", s.name, "epoch", a.Epoch)
	now := n.m.Now()
	since := time.Duration(s.since.Load()) + now.Sub(cluster.Instant(s.granted.Load()))
	n.order(a.Service, orderOpen{epoch: a.Epoch, at: now, since: since})
}

func (n *Node) closeTenure(a core.Close) {
	s := n.byNo(a.Service)
	if s == nil {
		n.m.StepNow(core.Shut{Service: a.Service, Epoch: a.Epoch})
		return
	}
	st := page.Fenced
	if a.Planned {
		st = page.Draining
	}
	s.page.Set(a.Epoch, 0, st)
	n.guardLook()
	if n.gate != nil && len(s.addrs) > 0 {
		if err := n.gate.Close(a.Service); err != nil {
			n.gateFailed(s, err)
		}
	}
	s.active.Store(false)
	n.log.Info("shut", "service", s.name, "epoch", a.Epoch, "why", a.Why)
	n.order(a.Service, orderClose{epoch: a.Epoch, planned: a.Planned, why: a.Why})
	n.specChanged() // it may be one that this node is no longer to have
}

// gateFailed is for a kernel that does not take the deadline any more: the gate shuts by itself at the last one.
func (n *Node) gateFailed(s *service, err error) {
	n.raise("gate", s.name, "crit", "the kernel's gate did not take a deadline: "+err.Error(), "restart hanode on this node")
	n.log.Error("gate", "service", s.name, "err", err)
}

// announce tells the network again who has the addresses, after members came back.
func (n *Node) announce() {
	select {
	case n.announceNow <- struct{}{}:
	default:
	}
}

// Applied follows the log.
func (n *Node) Applied(index uint64, cmd *state.Command, o state.Outcome) {
	if a := cmd.AckAlarm; a != nil && o.Err() == nil {
		n.alerts.Ack(a.Code, a.Object)
	}
	if cmd.CheckPause != nil {
		n.specChanged()
	}
	n.noteMove(cmd, o)
	n.news.applied(index)
	if cmd.Grant != nil {
		if s := n.byNo(cmd.Grant.Service); s != nil {
			n.metrics.granted(s.name, cmd, o)
		}
	}
}

// specChanged makes the services of this node those of the spec, on the goroutine that does so.
func (n *Node) specChanged() {
	select {
	case n.reconcileNow <- struct{}{}:
	default:
	}
}

func (s *service) vipAddrs() []netip.Addr {
	var out []netip.Addr
	for _, v := range s.spec.VIPs {
		if !slices.Contains(out, v.Prefix.Addr()) {
			out = append(out, v.Prefix.Addr())
		}
	}
	return out
}
