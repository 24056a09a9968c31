// Package world builds hosts out of Linux namespaces on one machine: each has its own network, processes, mounts, host
// name and, where the kernel allows, its own cgroup; a switch joins them by one bridge per network. Then it hurts them:
// cables pulled, frames dropped one way or at random, hosts frozen, hosts dead and brought back with their disks.
//
// It needs no external binary: everything goes through system calls and netlink. Each host's first process is the
// embedding program itself, started with the word HostCommand, listening on a socket pair. That makes clean-up certain:
// when the lab goes away in whatever manner, the first processes see the end of the stream and exit, the kernel kills
// what else ran in their process namespaces, and with the last process the network namespaces vanish. Only empty cgroup
// directories can stay behind after a SIGKILL; the next lab removes them.
//
// It never touches the network namespace, the mounts or the processes of the machine it runs on. What cannot be had
// (a cgroup, an own /proc) is told by World.Notes and replaced by the next best: freezing by SIGSTOP, killing by the
// process namespace. As root it works as it is; others call EnterUserNamespace first.
//
// The network namespaces are only as isolated as the machine's one kernel: all hosts share its clocks, which is what
// makes instants of different hosts comparable, and its CPUs, which is why a busy machine shows in every figure.
package world

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// Config says what a World is made of.
type Config struct {
	Self  []string     // argv prefix that leads to RunChild: the program and the words before HostCommand
	Dir   string       // state of the hosts; made here, removed by Close unless Keep
	Links int          // networks, each with a bridge of its own: at least 1
	Keep  bool         // leave Dir after Close, for reading the logs
	Log   *slog.Logger // nil: none
}

// World is one lab: a switch and its hosts. Its methods may be called from several goroutines.
type World struct {
	cfg    Config
	log    *slog.Logger
	group  *cgroups
	sw     *caller
	swProc *exec.Cmd

	mu    sync.Mutex
	hosts map[string]*Host
	order []*Host
	rules []Rule
	notes []string
}

// Up makes the switch and its bridges. The caller ends it with Close.
func Up(ctx context.Context, cfg Config) (*World, error) {
	if len(cfg.Self) == 0 || cfg.Dir == "" || cfg.Links < 1 || cfg.Links > 8 {
		return nil, errors.New("lab: Self, Dir and 1 to 8 Links are needed")
	}
	w := &World{cfg: cfg, log: cfg.Log, hosts: map[string]*Host{}}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	w.swProc, w.sw, err = startChild(cfg.Self, SwitchCommand, "switch", switchFlags, filepath.Join(cfg.Dir, "switch.log"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the switch: %w", err), w.Close())
	}
	var why error
	if w.group, why = newCgroups(w.swProc.Process.Pid); why != nil {
		w.note(fmt.Sprintf("no cgroup for the hosts, they are frozen by SIGSTOP: %v", why))
	}
	for link := range cfg.Links {
		if err := w.sw.call(ctx, "bridge", link, nil); err != nil {
			return nil, errors.Join(fmt.Errorf("make the switch: %w", err), w.Close())
		}
	}
	return w, nil
}

// Dir is where the hosts' state lies.
func (w *World) Dir() string { return w.cfg.Dir }

// Notes tells what this machine does not allow.
func (w *World) Notes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.notes...)
}

func (w *World) note(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.notes {
		if n == s {
			return
		}
	}
	w.notes = append(w.notes, s)
}

// Freezes says that hosts are frozen by their cgroup, which nothing within them can see or resist.
func (w *World) Freezes() bool { return w.group != nil }

// Add makes a host and starts it.
func (w *World) Add(ctx context.Context, spec Spec) (*Host, error) {
	w.mu.Lock()
	if w.hosts[spec.Name] != nil {
		w.mu.Unlock()
		return nil, fmt.Errorf("there is a host %q already", spec.Name)
	}
	h := &Host{w: w, spec: spec, dir: filepath.Join(w.cfg.Dir, spec.Name)}
	w.hosts[spec.Name] = h
	w.order = append(w.order, h)
	w.mu.Unlock()
	return h, h.Start(ctx)
}

// Host returns a host by its name, or nil.
func (w *World) Host(name string) *Host {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hosts[name]
}

// names lists the hosts in the order of their making.
func (w *World) names() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, h := range w.order {
		out = append(out, h.spec.Name)
	}
	return out
}

// Drop adds rules to those that hold.
func (w *World) Drop(ctx context.Context, rules ...Rule) error {
	w.mu.Lock()
	w.rules = append(w.rules, rules...)
	all := append([]Rule(nil), w.rules...)
	w.mu.Unlock()
	return w.sw.call(ctx, "rules", ruleSet{Links: w.cfg.Links, Rules: all}, nil)
}

// Heal removes all rules. Cables that were pulled and hosts that are dead stay so.
func (w *World) Heal(ctx context.Context) error {
	w.mu.Lock()
	w.rules = nil
	w.mu.Unlock()
	return w.sw.call(ctx, "rules", ruleSet{Links: w.cfg.Links}, nil)
}

// Cut drops everything between two hosts, both ways, on all networks.
func (w *World) Cut(ctx context.Context, a, b string) error {
	return w.Drop(ctx, Rule{From: a, To: b, Link: AllLinks}, Rule{From: b, To: a, Link: AllLinks})
}

// OneWay drops what from sends to to; the other direction works.
func (w *World) OneWay(ctx context.Context, from, to string) error {
	return w.Drop(ctx, Rule{From: from, To: to, Link: AllLinks})
}

// Loss drops so many of 1000 frames at random, both ways, on all networks.
func (w *World) Loss(ctx context.Context, a, b string, permille int) error {
	return w.Drop(ctx, Rule{From: a, To: b, Link: AllLinks, Permille: permille}, Rule{From: b, To: a, Link: AllLinks, Permille: permille})
}

// Isolate cuts the named hosts off from all others; among themselves they still talk.
func (w *World) Isolate(ctx context.Context, side ...string) error {
	in := map[string]bool{}
	for _, s := range side {
		in[s] = true
	}
	var rules []Rule
	for _, far := range w.names() {
		if in[far] {
			continue
		}
		for _, near := range side {
			rules = append(rules, Rule{From: near, To: far, Link: AllLinks}, Rule{From: far, To: near, Link: AllLinks})
		}
	}
	return w.Drop(ctx, rules...)
}

// Close ends all hosts and the switch and removes what was made.
func (w *World) Close() error {
	w.mu.Lock()
	hosts := append([]*Host(nil), w.order...)
	w.mu.Unlock()
	var errs []error
	for _, h := range hosts {
		errs = append(errs, h.stop())
	}
	if w.sw != nil {
		w.sw.close()
		_ = w.swProc.Wait() // its status says nothing: it ends because its socket did
	}
	if w.group != nil {
		errs = append(errs, w.group.remove())
	}
	if !w.cfg.Keep {
		errs = append(errs, RemoveAll(w.cfg.Dir))
	}
	return errors.Join(errs...)
}

// until polls f every millisecond until it says true, ctx ends or the time is over.
func until(ctx context.Context, d time.Duration, f func() bool) error {
	ctx, stop := context.WithTimeout(ctx, d)
	defer stop()
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	for !f() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
	return nil
}
