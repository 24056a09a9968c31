package raft

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

func isNotFound(err error) bool { return errors.Is(err, raftboltdb.ErrKeyNotFound) }

// instance is one run of hashicorp/raft over the group's store. It is never repaired, only replaced.
type instance struct {
	raft  *hraft.Raft
	built atomic.Pointer[hraft.Raft] // raft, for those whom it starts itself
	trans transport
	gate  *gate
	over  context.Context // ends when it must not take part any more
	cut   context.CancelFunc
	wg    sync.WaitGroup // watch and probeAsLeader
	down  chan struct{}  // closed when all its goroutines have ended
}

// wait reports whether the instance has ended within d. A nil instance has.
func (in *instance) wait(d time.Duration) bool { return in == nil || ended(in.down, d) }

func ended(done <-chan struct{}, d time.Duration) bool {
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}

// start builds an instance from what is on disk and lets it take part.
func (g *Group) start() error {
	in := &instance{
		gate: newGate(g.cfg.Stream, g.cfg.ServerID),
		down: make(chan struct{}),
	}
	in.over, in.cut = context.WithCancel(context.Background())
	const pool = 3
	in.trans = transport{pool: pool, NetworkTransport: hraft.NewNetworkTransportWithConfig(&hraft.NetworkTransportConfig{
		Stream:          in.gate,
		MaxPool:         pool,
		MaxRPCsInFlight: 1, // no pipeline: it can wedge a follower for ever (hashicorp/raft issue 612)
		Timeout:         g.cfg.TransportTimeout,
		Logger:          newHCLog(g.cfg.Log),
	})}
	g.store.opening.Store(true)
	err := g.build(in)
	g.store.opening.Store(false)
	if err != nil {
		in.cut()
		in.trans.Close()
		close(in.down)
		g.last = in
		return err
	}
	g.last = in
	g.inst.Store(in)
	in.wg.Add(2)
	go g.watch(in)
	go g.probeAsLeader(in)
	return nil
}

// build calls NewRaft, which panics where it should return an error.
func (g *Group) build(in *instance) (err error) {
	defer func() {
		if p := recover(); p != nil {
			e, isErr := p.(error)
			if !isErr {
				e = fmt.Errorf("%v", p)
			}
			if g.store.stalled.Load() {
				e = ErrStalled
			}
			err = fmt.Errorf("start Raft from %s: %w", g.cfg.Dir, e)
		}
	}()
	logs, err := hraft.NewLogCache(256, g.store)
	if err != nil {
		return err
	}
	in.raft, err = hraft.NewRaft(g.cfg.hashicorp(), &replayer{m: g.machine}, logs, g.store, g.snaps, &patient{transport: in.trans, over: in.over, raft: in.built.Load, beat: g.cfg.Beat, pace: beatWithin, stay: g.cfg.HeartbeatTimeout / 2})
	if err == nil {
		in.built.Store(in.raft)
	}
	if err != nil {
		if g.store.stalled.Load() {
			return ErrStalled
		}
		return fmt.Errorf("start Raft from %s: %w; if a snapshot is damaged, put a copy of the directory aside, empty it, and let this member join again", g.cfg.Dir, err)
	}
	return nil
}

// cut takes the instance out of the group at once and lets it end in the background.
func (g *Group) cut() {
	in := g.last
	if in == nil || in.raft == nil {
		return
	}
	servers := g.Servers()
	if !g.inst.CompareAndSwap(in, nil) {
		return
	}
	g.servers.Store(&servers)
	in.cut()
	in.trans.Close() // closes the gate: no vote and no entry in or out from here on
	go func() {
		in.raft.Shutdown().Error()
		in.wg.Wait()
		close(in.down)
	}()
	g.publish()
}

// handOver gives the lead away before a wanted end, so that the others need no election time-out.
func (g *Group) handOver() {
	in := g.inst.Load()
	if in == nil || in.raft.State() != hraft.Leader {
		return
	}
	done := make(chan struct{})
	go func() { defer close(done); in.raft.LeadershipTransfer().Error() }()
	ended(done, 2*g.cfg.HeartbeatTimeout)
}

// bequeath makes another voter a candidate at once, when this leader's disk hangs and an orderly transfer is not
// possible any more. Without it the others would wait for their election time-out.
func (g *Group) bequeath() {
	in := g.inst.Load()
	if in == nil {
		return
	}
	var heirs []string
	for _, s := range g.Servers() {
		if s.Voter && s.ID != g.cfg.ServerID {
			heirs = append(heirs, s.ID)
		}
	}
	if g.cfg.Heir != nil {
		heirs = append([]string{g.cfg.Heir()}, heirs...)
	}
	for _, id := range heirs[:min(len(heirs), 2)] {
		if id != "" && id != g.cfg.ServerID && in.timeoutNow(g.cfg.ServerID, id) == nil {
			return
		}
	}
}

// timeoutNow makes member to a candidate.
func (in *instance) timeoutNow(self, to string) error {
	req := &hraft.TimeoutNowRequest{RPCHeader: hraft.RPCHeader{
		ProtocolVersion: hraft.ProtocolVersionMax, ID: []byte(self), Addr: []byte(self),
	}}
	return in.trans.TimeoutNow(hraft.ServerID(to), hraft.ServerAddress(to), req, &hraft.TimeoutNowResponse{})
}

// probeAsLeader commits a command without effect every now and then: a leader that cannot commit must not lead.
func (g *Group) probeAsLeader(in *instance) {
	defer in.wg.Done()
	if g.cfg.Probe == nil {
		return
	}
	tick := time.NewTicker(g.cfg.ProbeEvery)
	defer tick.Stop()
	for misses := 0; ; {
		select {
		case <-tick.C:
		case <-in.over.Done():
			return
		}
		if in.raft.State() != hraft.Leader {
			misses = 0
			continue
		}
		ctx, cancel := context.WithTimeout(in.over, g.cfg.ProbeEvery)
		_, _, err := g.apply(ctx, in, g.cfg.Probe())
		cancel()
		if !errors.As(err, new(ErrUnknownOutcome)) && !errors.Is(err, context.DeadlineExceeded) {
			misses = 0
			continue
		}
		if misses++; misses == 2 && in.raft.State() == hraft.Leader {
			g.store.stall(fmt.Sprintf("as leader this member committed nothing for %v", 2*g.cfg.ProbeEvery))
			return
		}
	}
}
