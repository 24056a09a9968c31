package raft

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"
)

// Group is this member's part in the Raft group. Its methods may be called at any time by anybody; before Run has
// started an instance, and while the store is stalled, they answer that there is no leader here.
type Group struct {
	cfg     Config
	store   *store
	snaps   hraft.SnapshotStore
	machine *machine

	inst atomic.Pointer[instance] // the one that takes part; nil while there is none
	last *instance                // the newest one, for Run alone

	lastTerm atomic.Uint64
	servers  atomic.Pointer[[]Server] // of the last instance
	stateMu  sync.Mutex               // serialises publish
	state    State
	leaderCh chan State

	kickMu   sync.Mutex
	lastKick time.Time
}

// Open checks what is on disk, whole, and opens it. It starts nothing; Close undoes it if Run is not called.
func Open(cfg Config) (*Group, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	st, err := openDir(cfg)
	if err != nil {
		return nil, err
	}
	if err := claim(st, cfg.ClusterID, cfg.ServerID); err != nil {
		st.closeFile()
		return nil, err
	}
	snaps, err := openSnapshots(cfg)
	if err != nil {
		st.closeFile()
		return nil, err
	}
	if err := st.ballast.fill(false); err != nil {
		cfg.OnAlarm(Alarm{Kind: AlarmBallast, Text: err.Error()})
	}
	g := &Group{
		cfg: cfg, store: st, snaps: snaps,
		machine:  &machine{fsm: cfg.FSM, cluster: cfg.ClusterID},
		leaderCh: make(chan State, 1),
	}
	st.leading = func() bool { _, mine, _ := g.Leader(); return mine }
	return g, nil
}

// openDir opens the store in cfg.Dir after it was checked.
func openDir(cfg Config) (*store, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the Raft directory: %w", err)
	}
	path := filepath.Join(cfg.Dir, dbName)
	if err := checkFile(path); err != nil {
		return nil, err
	}
	onFull := func(err error) {
		cfg.OnAlarm(Alarm{Kind: AlarmDiskFull, Text: fmt.Sprintf("%s: %v; the ballast was given up, make room soon", path, err)})
	}
	return newStore(path, cfg.StoreDeadline, cfg.Slow, newBallast(cfg.Dir, cfg.Ballast), onFull)
}

func openSnapshots(cfg Config) (hraft.SnapshotStore, error) {
	snaps, err := hraft.NewFileSnapshotStoreWithLogger(cfg.Dir, 2, newHCLog(cfg.Log))
	if err != nil {
		return nil, fmt.Errorf("open the snapshots in %s: %w", cfg.Dir, err)
	}
	return snaps, nil
}

// claim binds the store to a cluster and a ServerID, or refuses one that is bound to others.
func claim(st *store, clusterID, serverID string) error {
	want := clusterID + "\n" + serverID
	have, err := st.get(keyIdentity)
	if err != nil && !isNotFound(err) {
		return err
	}
	if isNotFound(err) {
		return st.set(keyIdentity, []byte(want))
	}
	if string(have) == want {
		return nil
	}
	c, s, _ := strings.Cut(string(have), "\n")
	if c != clusterID {
		return fmt.Errorf("%s belongs to cluster %s, this daemon to %s: wrong directory or wrong cluster; to join the other cluster, put the directory aside first", st.path, c, clusterID)
	}
	return fmt.Errorf("%s belongs to member %s, this daemon is %s: a member's directory cannot be used by another one; put it aside and join anew", st.path, s, serverID)
}

// Close releases what Open took, for a Group whose Run was not called.
func (g *Group) Close() error { return g.store.closeFile() }

// closeFile closes the database. The worker must be gone.
func (s *store) closeFile() error { return s.bolt.Close() }

// Run takes part in the group until ctx ends (nil) or the store fails (the error that OnFatal got). A leader hands the
// lead over before it leaves. When it returns, the file is closed and nothing runs any more, except, if the disk hangs,
// the one write that hangs in it.
func (g *Group) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	workerDone := make(chan struct{})
	g.store.running.Store(true)
	go func() { defer close(workerDone); g.store.work() }()
	streamErr := make(chan error, 1)
	wg.Add(1)
	go func() { defer wg.Done(); g.pump(ctx, streamErr) }()

	err := g.supervise(ctx, streamErr)
	g.cfg.Stream.Close()
	g.store.close()
	wg.Wait()
	if hung := !g.last.wait(leaveBehind) || !ended(workerDone, leaveBehind); hung {
		g.cfg.Log.Warn("a write to the Raft log still hangs in the kernel; leaving it behind", "file", g.store.path)
	} else if e := g.store.closeFile(); err == nil && e != nil {
		err = fmt.Errorf("close %s: %w", g.store.path, e)
	}
	return err
}

// leaveBehind is how long Run waits at its end for what hangs in the kernel.
const leaveBehind = 2 * time.Second

// pump takes connections from the caller's stream and gives them to the instance that runs, if one does.
func (g *Group) pump(ctx context.Context, failed chan<- error) {
	for wait := 5 * time.Millisecond; ; {
		c, err := g.cfg.Stream.Accept()
		switch in := g.inst.Load(); {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			if err == nil {
				c.Close()
			}
			failed <- fmt.Errorf("the Raft stream was closed: %w", net.ErrClosed)
			return
		case err != nil:
			g.cfg.Log.Warn("accepting a Raft connection", "err", err)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
			wait = min(2*wait, time.Second)
		case in == nil:
			c.Close()
		default:
			wait = 5 * time.Millisecond
			in.gate.offer(c)
		}
	}
}

// supervise runs one instance after another: each lives until ctx ends or the store stalls or fails. It leaves the last
// one cut off and, unless the disk hangs, ended.
func (g *Group) supervise(ctx context.Context, streamErr <-chan error) error {
	defer func() { g.cut(); g.last.wait(2 * g.cfg.StoreDeadline) }()
	refill := time.NewTicker(30 * time.Second)
	defer refill.Stop()
	for {
		if err := g.start(); err != nil && !errors.Is(err, ErrStalled) {
			if f := g.store.failure(); f != nil {
				g.cfg.OnFatal(f)
				return f
			}
			return err
		}
		var late stall
		for late.why == "" {
			select {
			case <-ctx.Done():
				g.handOver()
				return nil
			case err := <-streamErr:
				if ctx.Err() != nil {
					err = nil
				}
				return err
			case err := <-g.store.fatalCh:
				g.cfg.OnFatal(err)
				return err
			case <-refill.C:
				g.store.ballast.fill(true)
			case late = <-g.store.stallCh:
			}
		}
		if err := g.sitOut(ctx, late); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// sitOut throws the instance away and waits until the disk is quick again. It returns nil then, or when ctx ends.
func (g *Group) sitOut(ctx context.Context, late stall) error {
	began, why := time.Now(), late.why
	if late.led {
		g.bequeath()
	}
	alarm := func(kind AlarmKind, text string) {
		g.cfg.OnAlarm(Alarm{Kind: kind, Text: text, For: time.Since(began)})
	}
	g.cut()
	g.cfg.Log.Warn("the Raft log's disk is slow: no leadership, no votes, no log until it is quick again", "file", g.store.path, "why", why)
	alarm(AlarmStalled, fmt.Sprintf("%s: %s; leases and volumes go on, the group must decide without this member", g.store.path, why))
	giveUp := time.NewTimer(g.cfg.StoreGiveUp)
	defer giveUp.Stop()

	quick := make(chan error, 1)
	stop := make(chan struct{})
	defer close(stop)
	go func() { quick <- g.probeUntilQuick(stop) }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-g.store.fatalCh:
			g.cfg.OnFatal(err)
			return err
		case <-giveUp.C:
			alarm(AlarmHopeless, fmt.Sprintf("%s has not taken a write for %v; hand over, then stop this daemon", g.store.path, g.cfg.StoreGiveUp))
		case err := <-quick:
			if err != nil { // the store has failed, fatalCh says so
				continue
			}
			select {
			case <-g.last.down:
			case <-ctx.Done():
				return nil
			}
			g.store.resume()
			alarm(AlarmRecovered, g.store.path+" takes writes in time again")
			return nil
		}
	}
}

// probeUntilQuick returns nil once two writes in a row took less than a quarter of the deadline each.
func (g *Group) probeUntilQuick(stop <-chan struct{}) error {
	for good := 0; ; {
		took, err := g.store.probe(stop)
		if err != nil {
			return err
		}
		if took > g.cfg.StoreDeadline/4 {
			good = 0
		} else if good++; good == 2 {
			return nil
		}
		select {
		case <-time.After(g.cfg.StoreDeadline / 5):
		case <-stop:
			return errStoreClosed
		}
	}
}
