package node

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/failover/agent"
	"github.com/hanode/hanode/failover/supervise"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/page"
	"github.com/hanode/hanode/netid/vip"
)

// reconcile makes the services of this node those that the spec names for it, whenever the spec or the members change.
func (n *Node) reconcile(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.reconcileNow:
		}
		var want []wanted
		joined := false
		err := n.m.On(func(c *core.Core) {
			joined = c.Joined()
			st := c.State()
			if spec := st.Compiled(); spec != nil {
				n.alerts.SetSpec(spec)
			}
			for i := range st.Services {
				s := &st.Services[i]
				if spec := st.Compiled().Service(s.Name); spec != nil && (s.Lock.Eligible.Has(c.Self()) || c.Holds(s.No)) {
					want = append(want, wanted{s.No, *spec, s.Paused})
				}
			}
		})
		if err != nil {
			return nil
		}
		if !joined {
			continue // nothing runs before the log has admitted this run
		}
		if err := n.apply(ctx, want); err != nil {
			n.raise("spec", n.dir.Identity.Name, "crit", "the spec could not be put in force here: "+err.Error(), "mend what it names, then hanode service restart")
		} else {
			n.clear("spec", n.dir.Identity.Name)
		}
	}
}

type wanted struct {
	no     cluster.ServiceNo
	spec   cluster.ServiceSpec
	paused []state.CheckPause
}

// apply stops what is no longer wanted or has changed, declares all addresses, and starts what is new.
func (n *Node) apply(ctx context.Context, want []wanted) error {
	keep := map[cluster.ServiceNo]bool{}
	var fresh []wanted
	for _, w := range want {
		s := n.byNo(w.no)
		switch {
		case s == nil:
			fresh = append(fresh, w)
		case reflect.DeepEqual(*s.spec, w.spec):
			keep[w.no] = true
		case !needsStop(s.spec, &w.spec):
			s.setSpec(w.spec)
			keep[w.no] = true
		default:
			fresh = append(fresh, w)
		}
	}
	for _, w := range want {
		if s := n.byNo(w.no); s != nil && keep[w.no] {
			s.setPaused(w.paused)
		}
	}
	replaced := map[cluster.ServiceNo]bool{}
	for _, s := range n.list() {
		if !keep[s.no] {
			replaced[s.no] = true
			n.stopService(ctx, s)
		}
	}
	var known []vip.Address
	for _, w := range want {
		for _, v := range w.spec.VIPs {
			known = append(known, vip.Address{Service: w.no, Prefix: v.Prefix, Interface: v.Interface, VirtualMAC: v.MAC == "virtual"})
		}
	}
	if err := n.vips.SetKnown(known); err != nil {
		return err
	}
	var errs error
	defer func() {
		if _, err := n.gate.ForgetStrangers(); err != nil { // addresses of an earlier run that are in no spec any more
			n.log.Warn("gate", "err", err)
		}
	}()
	for _, w := range fresh {
		again := replaced[w.no]
		if err := n.startService(w); err != nil {
			errs = fmt.Errorf("service %s: %w", w.spec.Name, err)
			n.m.Step(core.Health{Service: w.no, Unhealthy: true, GaveUp: err.Error(), Then: "failover"})
			continue
		}
		n.resume(w.no, again)
	}
	return errs
}

// resume opens a service anew that was taken down for a change of its spec while it was active here: its lease goes on.
func (n *Node) resume(no cluster.ServiceNo, again bool) {
	anew := false
	_ = n.m.On(func(c *core.Core) {
		look, ok := c.Look(c.View(n.m.Now(), time.Now().UnixMilli()), no)
		if s := n.byNo(no); again && ok && look.Phase == lease.Serving && s != nil && s.data != nil {
			anew = true
			return
		}
		if ok && look.Phase == lease.Serving && look.Deadline > n.m.Now() {
			n.beginTenure(core.Begin{Service: no, Epoch: look.Epoch, TTL: look.TTL})
			n.extend(core.Extend{Service: no, Epoch: look.Epoch, Deadline: look.Deadline, TTL: look.TTL, First: true})
		}
	})
	if anew { // a volume server leads once in a tenure: this one goes on only after a new Grant
		n.m.Step(core.DiskFailed{Service: no, Text: "its spec was changed", Ended: true})
	}
}

// needsStop says whether a change of a service's spec can take effect only by stopping it here. Policy is live.
func needsStop(old, new *cluster.ServiceSpec) bool {
	return !reflect.DeepEqual(old.VIPs, new.VIPs) || !reflect.DeepEqual(old.Processes, new.Processes) ||
		!reflect.DeepEqual(old.OnFailure, new.OnFailure) || old.Run != new.Run || !reflect.DeepEqual(old.Volumes, new.Volumes)
}

// startService makes everything that one service needs here.
func (n *Node) startService(w wanted) error {
	spec := w.spec
	s := &service{no: w.no, name: spec.Name, spec: &spec, orders: make(chan any, 64), rechecks: make(chan struct{}, 1), w: n.world()}
	s.addrs = s.vipAddrs()
	s.setPaused(w.paused)
	var err error
	if s.page, err = page.Create(spec.Name); err != nil {
		return err
	}
	s.page.SetIncarnation(n.dir.Inc)
	s.page.Set(0, 0, page.Standby)
	if s.group, err = n.root.Group(spec.Name); err != nil {
		return err
	}
	sup, err := supervise.New(supervise.Config{Service: spec.Name, Specs: spec.Processes, OnFailure: spec.OnFailure, Group: s.group, Page: s.page.File(),
		Log: n.log, Env: []string{"HANODE_NODE=" + n.dir.Identity.Name}, Output: n.output(spec.Name), Events: s.onProcess})
	if err != nil {
		return err
	}
	s.procs = sup
	if len(spec.Volumes) > 0 {
		if s.vol, err = newVolumes(n, s); err != nil {
			return err
		}
		s.data = s.vol
	}
	if err := n.gate.SetVIPs(w.no, s.addrs); err != nil {
		return err
	}
	if err := n.guardAdd(s); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(n.ctx)
	s.ended = make(chan struct{})
	n.mu.Lock()
	n.services[w.no], n.stopping[w.no] = s, cancel
	n.mu.Unlock()
	if s.vol != nil {
		s.vol.catchUp() // what the log said before the service was known here
	}
	n.run.Go(func() error {
		defer close(s.ended)
		checks := make(chan struct{})
		go func() {
			defer close(checks)
			for ctx.Err() == nil {
				n.runChecks(ctx, s)
			}
		}()
		err := s.run(ctx)
		cancel()
		<-checks
		if err != nil && n.ctx.Err() == nil {
			n.raise("processes", s.name, "crit", err.Error(), "look at the processes of the service on this node")
		}
		return nil
	})
	s.orders <- orderStandby{}
	return nil
}

// stopService ends everything of one service here. Its tenure, if there was one, has been ended by the core before, or ends with the page.
func (n *Node) stopService(ctx context.Context, s *service) {
	n.mu.Lock()
	cancel := n.stopping[s.no]
	delete(n.services, s.no)
	delete(n.stopping, s.no)
	n.mu.Unlock()
	s.active.Store(false)
	s.page.Set(cluster.Epoch(s.epoch.Load()), 0, page.Draining)
	if err := n.gate.Close(s.no); err != nil {
		n.log.Warn("gate", "service", s.name, "err", err)
	}
	cancel()
	select {
	case <-s.ended:
	case <-ctx.Done():
	}
	n.guardRemove(s)
	if err := n.gate.SetVIPs(s.no, nil); err != nil {
		n.log.Warn("gate", "service", s.name, "err", err)
	}
	if err := s.group.Remove(); err != nil {
		n.log.Debug("cgroup", "service", s.name, "err", err)
	}
	if s.vol != nil {
		if err := s.vol.group.Remove(); err != nil {
			n.log.Debug("cgroup", "service", s.name, "err", err)
		}
	}
	s.page.Close()
}

func (n *Node) world() world {
	return world{now: n.m.Now, step: n.m.Step, record: n.record, sever: n.sever, identity: n.vips, self: n.dir.Identity.Name, log: n.log,
		moved: n.moved, run: runHook, raise: n.raise, clear: n.clear,
		onLoop: func(f func()) { _ = n.m.On(func(*core.Core) { f() }) }, look: n.guardLook,
		stopped: func(no cluster.ServiceNo) (yes bool) {
			_ = n.m.On(func(c *core.Core) {
				if s := c.State().Service(no); s != nil {
					yes = s.Stopped
				}
			})
			return yes
		}}
}

func (n *Node) output(service string) func(string, []byte) {
	if n.cfg.Output != nil {
		return func(process string, line []byte) { n.cfg.Output(service, process, line) }
	}
	return func(process string, line []byte) {
		n.log.Info(string(line), "service", service, "process", process)
	}
}

// runChecks runs the checks of a service that this node is to run, in the role that it has.
func (n *Node) runChecks(ctx context.Context, s *service) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := make(chan struct{})
	go func() {
		defer close(changed)
		select {
		case <-ctx.Done():
		case <-s.rechecks: // the spec has other checks now: they begin anew
			cancel()
		}
	}()
	defer func() { <-changed }()
	s.mu.Lock()
	checks, none := s.spec.Checks, len(s.spec.Checks) == 0 && !s.everywhere()
	s.mu.Unlock()
	if none {
		<-ctx.Done()
		return
	}
	judging := make(chan struct{})
	go func() {
		defer close(judging)
		s.keepJudging(ctx)
	}()
	defer func() { cancel(); <-judging }()
	err := agent.Run(ctx, checks, agent.Deps{Log: n.log, Turn: n.m.NextBeat, Now: n.m.Now, Role: s.role, Life: s.life.Load, Paused: s.checkPaused, Group: s.group,
		Env: []string{"HANODE_SERVICE=" + s.name, "HANODE_NODE=" + n.dir.Identity.Name}}, s.onCheck)
	if err != nil && ctx.Err() == nil {
		n.raise("checks", s.name, "warn", "the checks do not run: "+err.Error(), "mend the checks in the spec")
		<-ctx.Done() // until the spec has others
	}
}
