package raft

import (
	"context"
	"errors"
	"fmt"
	"time"

	hraft "github.com/hashicorp/raft"
)

// State is what this member knows about the lead. It is news, not a lease: it may be out of date when it is read.
type State struct {
	Leader  string // ServerID; "" if unknown
	Mine    bool   // this member leads
	Term    uint64
	Stalled bool // the store is slow and this member takes no part
	Running bool // an instance takes part
}

// Leader returns who leads, as far as this member knows.
func (g *Group) Leader() (serverID string, mine bool, term uint64) {
	s := g.State()
	return s.Leader, s.Mine, s.Term
}

// State returns what this member knows about the lead.
func (g *Group) State() State {
	in := g.inst.Load()
	if in == nil {
		return State{Term: g.lastTerm.Load(), Stalled: g.store.stalled.Load()}
	}
	_, id := in.raft.LeaderWithID()
	mine := in.raft.State() == hraft.Leader
	if mine {
		id = hraft.ServerID(g.cfg.ServerID)
	}
	return State{Leader: string(id), Mine: mine, Term: in.raft.CurrentTerm(), Running: true}
}

// LeaderCh delivers the newest State after each change. It holds one: a slow reader misses states in between. It is for
// one reader; others use OnState.
func (g *Group) LeaderCh() <-chan State { return g.leaderCh }

// publish tells of the state if it has changed.
func (g *Group) publish() {
	now := g.State()
	g.stateMu.Lock()
	defer g.stateMu.Unlock()
	if now == g.state {
		return
	}
	g.state = now
	g.lastTerm.Store(now.Term)
	select {
	case <-g.leaderCh:
	default:
	}
	g.leaderCh <- now
	g.cfg.OnState(now)
}

// watch publishes the changes that one instance sees.
func (g *Group) watch(in *instance) {
	defer in.wg.Done()
	seen := make(chan hraft.Observation, 16)
	// Not blocking: a dropped observation does no harm, because what is published is read afresh each time.
	obs := hraft.NewObserver(seen, false, func(o *hraft.Observation) bool {
		switch o.Data.(type) {
		case hraft.LeaderObservation, hraft.RaftState:
			return true
		}
		return false
	})
	in.raft.RegisterObserver(obs)
	defer in.raft.DeregisterObserver(obs)
	g.publish()
	again := time.NewTicker(g.cfg.HeartbeatTimeout) // the term changes without an observation
	defer again.Stop()
	for {
		select {
		case <-seen:
		case <-in.raft.LeaderCh(): // observed before the state is set; this one comes after
		case <-again.C:
		case <-in.over.Done():
			return
		}
		g.publish()
	}
}

// Kick makes this member a candidate at once, without a pre-vote and although others still believe in the old leader:
// the caller's own detector says that the leader is dead. It is an ordinary vote, so Raft stays safe whoever kicks; but
// the old leader, if it lives, may call itself leader for a HeartbeatTimeout more. At most one kick is made per
// kickPause. It is refused on a leader and on a member without a vote.
//
// It does not help a member whose log is behind another voter's: that one refuses its vote and must itself be kicked,
// a little later. And it does nothing once the election timer of hashicorp/raft has fired here, which is why timers are
// slow and detectors fast.
func (g *Group) Kick() error {
	in := g.inst.Load()
	switch {
	case in == nil:
		return errors.New("kick refused: the Raft log's disk is stalled or the group does not run")
	case in.raft.State() == hraft.Leader:
		return errors.New("kick refused: this member leads already")
	case !g.votes(in):
		return fmt.Errorf("kick refused: %s has no vote in the group", g.cfg.ServerID)
	}
	g.kickMu.Lock()
	soon := !g.lastKick.IsZero() && time.Since(g.lastKick) < min(kickPause, g.cfg.HeartbeatTimeout)
	if !soon {
		g.lastKick = time.Now()
	}
	g.kickMu.Unlock()
	if soon {
		return fmt.Errorf("kick refused: the last one was less than %v ago", min(kickPause, g.cfg.HeartbeatTimeout))
	}
	if err := in.timeoutNow(g.cfg.ServerID, g.cfg.ServerID); err != nil {
		return fmt.Errorf("kick %s: %w", g.cfg.ServerID, err)
	}
	return nil
}

// votes says whether this member has a vote in the newest configuration it knows.
func (g *Group) votes(in *instance) bool {
	for _, s := range in.raft.GetConfiguration().Configuration().Servers {
		if string(s.ID) == g.cfg.ServerID {
			return s.Suffrage == hraft.Voter
		}
	}
	return false
}

// TransferTo hands the lead to serverID. Commands are refused while it lasts, up to a HeartbeatTimeout: only in calm.
func (g *Group) TransferTo(ctx context.Context, serverID string) error {
	for try := 0; ; try++ {
		in := g.inst.Load()
		if in == nil {
			return ErrNotLeader{}
		}
		f := in.raft.LeadershipTransferToServer(hraft.ServerID(serverID), hraft.ServerAddress(serverID))
		err := g.await(ctx, in, f)
		if err == nil || errors.As(err, new(ErrNotLeader)) || ctx.Err() != nil || try == 2 {
			if err != nil && !errors.As(err, new(ErrNotLeader)) {
				err = fmt.Errorf("transfer the lead to %s: %w; this member leads on", serverID, unwrapOutcome(err))
			}
			return err
		}
	}
}

// unwrapOutcome takes the doubt off an error that is about no command.
func unwrapOutcome(err error) error {
	if u := (ErrUnknownOutcome{}); errors.As(err, &u) {
		return u.Why
	}
	return err
}

// WaitApplied returns once the state machine here has seen index, or with ctx's error.
func (g *Group) WaitApplied(ctx context.Context, index uint64) error {
	for {
		moved := g.machine.changed()
		if g.machine.applied.Load() >= index {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("the state machine is at %d, not yet at %d: %w", g.machine.applied.Load(), index, context.Cause(ctx))
		}
	}
}
