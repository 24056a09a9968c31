// Package node is a node's daemon: the only room where the domains meet. It gives the deciding core (through internal/member) the means of
// this machine: addresses and gate (netid), processes and checks (failover), the guard, and the operator's interface (internal/api).
//
// New builds everything in the order of dependence and reads like the architecture; Run runs it. Before the log admits this run, everything
// that an earlier run left here is stopped (rule V0).
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/failover/notify"
	"github.com/hanode/hanode/failover/supervise"
	"github.com/hanode/hanode/failover/supervise/launch"
	"github.com/hanode/hanode/internal/cgroup"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/guard"
	"github.com/hanode/hanode/internal/member"
	"github.com/hanode/hanode/internal/rt"
	"github.com/hanode/hanode/netid/gate"
	"github.com/hanode/hanode/netid/vip"
)

// Config says how a node runs.
type Config struct {
	DataDir string
	Socket  string
	Group   string // of the operators on the socket
	Version string
	Metrics string // loopback address on which HTTP serves the figures for Prometheus; "": the socket only
	Health  string // address on which HTTP answers load balancers and monitoring, read-only; "": none
	Log     *slog.Logger
	// GateForm forces a form of the kernel's gate; empty: the best that works.
	GateForm gate.Form
	// Output receives what the services' processes print; nil: the log.
	Output func(service, process string, line []byte)
}

// Node is a node's daemon.
type Node struct {
	cfg     Config
	log     *slog.Logger
	dir     *member.Dir
	m       *member.Member
	rt      rt.Report
	late    *rt.Histogram // of the loop's timer
	metrics *metrics
	root    *cgroup.Root
	gate    *gate.Gate
	vips    *vip.Keeper
	guard   *guard.Guard
	run     *errgroup.Group
	ctx     context.Context

	mu       sync.Mutex
	services map[cluster.ServiceNo]*service
	stopping map[cluster.ServiceNo]context.CancelFunc

	begun      cluster.Instant // when the daemon started
	alarms     alarms
	conscience conscience
	alerts     *notify.Notifier // tells people of them
	orders     orders
	news       news

	announceNow  chan struct{}
	reconcileNow chan struct{}
	stop         context.CancelFunc // ends the daemon in good order
	again        atomic.Bool        // and then it starts anew
}

// New opens everything. It must be called on a fresh process: it makes the process punctual (real-time scheduling, locked memory).
func New(cfg Config) (_ *Node, err error) {
	n := &Node{cfg: cfg, log: cfg.Log, services: map[cluster.ServiceNo]*service{}, stopping: map[cluster.ServiceNo]context.CancelFunc{},
		announceNow: make(chan struct{}, 1), reconcileNow: make(chan struct{}, 1)}
	n.late = rt.NewHistogram(lateWindow)
	n.begun = rt.Now()
	if err := checkMetrics(cfg.Metrics); err != nil {
		return nil, err
	}
	n.news.init()
	n.orders.init()
	n.alerts = notify.New(notify.Config{Now: rt.Now, Log: cfg.Log, Exec: runAlert, Broken: n.alertBroken})
	if n.dir, err = member.OpenDir(cfg.DataDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if n.root, err = cgroup.Open(cgroup.Options{Name: n.dir.Identity.Name}); err != nil {
		return nil, err
	}
	if n.gate, err = gate.Open(gate.Config{Form: cfg.GateForm, Name: n.dir.Identity.NodeID, Log: n.log}); err != nil {
		return nil, fmt.Errorf("this node cannot serve safely: %w", err)
	}
	if n.vips, err = vip.New(vip.Config{Log: n.log, StateDir: n.dir.Path, OnEvent: n.onVIP}); err != nil {
		return nil, err
	}
	// Two threads at a time are enough for what a daemon does, however many processors there are; more of them only look for work that is not there.
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	n.rt = rt.EnterWith(rt.Daemon())
	if e := errors.Join(n.rt.Sched, n.rt.Memory); e != nil {
		n.raise("not-realtime", n.dir.Identity.Name, "warn", "real-time scheduling or locked memory was refused: "+e.Error(), "profile normal at best; see docs/operations.md")
	}
	if n.rt.OOM != nil {
		n.log.Info("the kernel may end this process when memory is short", "err", n.rt.OOM)
	}
	if n.m, err = member.New(member.Config{Dir: n.dir, Local: n, Version: cfg.Version, Log: n.log, OnAlarm: n.onRaftAlarm, Slow: member.FaultDisk(n.log), Lateness: n.late, OnRenewed: n.onRenewed,
		OnLate: n.onLate, Note: n.conscience.note, Realtime: n.rt.Realtime(), EBPF: n.gate.Form() == gate.TCX || n.gate.Form() == gate.Clsact}); err != nil {
		return nil, err
	}
	n.metrics = newMetrics(n)
	return n, nil
}

// onRenewed counts the round trip of a renewal. It runs on the goroutines that read the sockets.
func (n *Node) onRenewed(d time.Duration) { n.metrics.renew.Observe(d.Seconds()) }

// lateWindow is over what time the loop's lateness is counted.
const lateWindow = 5 * time.Minute

func (n *Node) close() {
	if n.vips != nil {
		n.vips.Close()
	}
	if n.root != nil {
		n.root.Close()
	}
	n.dir.Close()
}

// cleanTimeout bounds how long a start waits for what an earlier run left behind to end.
const cleanTimeout = 20 * time.Second

// clean stops what an earlier run left on this machine: its gate is shut since Open; now its guard, processes and addresses go.
func (n *Node) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanTimeout)
	defer cancel()
	var earlier []string
	file := filepath.Join(n.dir.Path, "cgroup")
	if b, err := os.ReadFile(file); err == nil && len(b) > 0 {
		earlier = append(earlier, string(b))
	}
	if err := supervise.CleanPrevious(ctx, n.root, earlier...); err != nil {
		return fmt.Errorf("what an earlier run of hanode left here does not end: %w", err)
	}
	if err := n.cleanMounts(); err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(n.root.Path()), 0o600); err != nil {
		return fmt.Errorf("remember where the processes are: %w", err)
	}
	return n.vips.Clean(ctx)
}

// Run takes part in the cluster until ctx ends, or until it is not safe to go on. It leaves nothing behind.
func (n *Node) Run(ctx context.Context) error {
	defer n.close()
	if err := n.clean(ctx); err != nil {
		return err
	}
	// Two contexts: services and links go on while the services are handed over at the end.
	ctx, n.stop = context.WithCancel(ctx)
	defer n.stop()
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(inner)
	n.run, n.ctx = g, gctx
	if err := n.startGuard(); err != nil {
		return err
	}
	n.m.Mesh().HandOver(n.takeStream)
	g.Go(func() error { return n.gate.Run(gctx) })
	g.Go(func() error { return n.vips.Run(gctx) })
	g.Go(func() error { return n.reconcile(gctx) })
	g.Go(func() error { return n.announcer(gctx) })
	g.Go(func() error { return n.serveAPI(gctx) })
	g.Go(func() error { return n.saveStatus(gctx) })
	g.Go(func() error { return n.watchHealth(gctx) })
	g.Go(func() error { return n.serveMetrics(gctx) })
	g.Go(func() error { return n.serveHealth(gctx) })
	g.Go(func() error { return n.examine(gctx) })
	g.Go(func() error { return member.Notify(ctx, n.m) })
	g.Go(func() error { return n.alerts.Run(gctx) })
	g.Go(func() error { return n.m.Run(gctx) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
			n.handOver()
			stop()
		case <-gctx.Done():
		}
		return nil
	})
	err := g.Wait()
	if e := n.gate.Shutdown(); e != nil {
		n.log.Warn("gate", "err", e)
	}
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// leave ends the daemon after the cluster has let this member go.
func (n *Node) leave() { n.stop() }

// hopeless ends the daemon in good order: the disk of the log does not answer any more.
func (n *Node) hopeless() { n.stop() }

// sever destroys the sockets on addresses that this node no longer serves.
func (n *Node) sever(addrs []netip.Addr) (int, error) { return gate.DestroySockets(addrs) }

// runAlert runs the program of an alert, without what the daemon is.
func runAlert(ctx context.Context, argv, env []string, in []byte) error {
	r, err := launch.Run(ctx, launch.Program{Argv: argv, Env: append(launch.BaseEnv("", ""), env...), Input: in}, 4096)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("exit status %d: %s", r.Code, r.FirstLine(256))
	}
	return err
}

// handOverTime bounds how long the end of the daemon waits for its services to be active elsewhere.
const handOverTime = 15 * time.Second

// handOver gives every service that is active here to another node, as far as one can take it, before the daemon ends.
func (n *Node) handOver() {
	ctx, cancel := context.WithTimeout(n.ctx, handOverTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, s := range n.list() {
		if !s.active.Load() {
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, err := n.orders.give(ctx, n.m, &core.Order{Service: s.no, What: "switchover", By: "policy", Reason: "hanode on " + n.dir.Identity.Name + " is being stopped"})
			if err != nil {
				n.log.Warn("the service ends with this daemon", "service", s.name, "why", err)
			}
		}()
	}
	wg.Wait()
}

func (n *Node) list() []*service {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []*service
	for _, s := range n.services {
		out = append(out, s)
	}
	return out
}

func (n *Node) announcer(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.announceNow:
			n.vips.Announce()
		}
	}
}

// record adds steps to the decision that made the service's present tenure. The log may not have reached here yet.
func (n *Node) record(service string, d state.Decision) {
	n.run.Go(func() error {
		ctx, cancel := context.WithTimeout(n.ctx, 10*time.Second)
		defer cancel()
		id := uint64(0)
		n.news.wait(ctx, func() bool {
			_ = n.m.On(func(c *core.Core) {
				if s := c.State().ServiceByName(service); s != nil && s.Lock.Holder.Node == c.Self() {
					id = s.LastMove
				}
			})
			return id != 0
		})
		if id == 0 {
			return nil
		}
		d.ID = id
		if _, err := n.m.Commit(ctx, &state.Command{Who: "policy", Decision: &d}); err != nil {
			n.log.Debug("the time line is incomplete", "service", service, "err", err)
		}
		return nil
	})
}
