package raft

import (
	"context"
	"fmt"
	"time"

	hraft "github.com/hashicorp/raft"
)

// Server is one member of the group's configuration.
type Server struct {
	ID    string // ServerID
	Voter bool
}

// Servers returns the newest configuration that this member knows, committed or not, in its order; while the store is
// stalled, the one of before.
func (g *Group) Servers() []Server {
	in := g.inst.Load()
	if in == nil {
		return g.lastServers()
	}
	var out []Server
	for _, s := range in.raft.GetConfiguration().Configuration().Servers {
		out = append(out, Server{string(s.ID), s.Suffrage == hraft.Voter})
	}
	return out
}

func (g *Group) lastServers() []Server {
	if s := g.servers.Load(); s != nil {
		return *s
	}
	return nil
}

// ConfigIndex is the log index of the newest committed configuration that the state machine has seen: the prevIndex of
// the next change.
func (g *Group) ConfigIndex() uint64 { return g.machine.confIndex.Load() }

// AddNonvoter lets serverID receive the log without a vote. This and the other changes are made by the leader only, and
// only if the configuration is still the one at prevIndex (0: whichever it is). They return the index of the new one.
func (g *Group) AddNonvoter(ctx context.Context, serverID string, prevIndex uint64) (uint64, error) {
	return g.change(ctx, "add "+serverID, func(r *hraft.Raft, wait time.Duration) hraft.IndexFuture {
		return r.AddNonvoter(hraft.ServerID(serverID), hraft.ServerAddress(serverID), prevIndex, wait)
	})
}

// Promote gives serverID a vote. Let it catch up as a nonvoter first: see CaughtUp.
func (g *Group) Promote(ctx context.Context, serverID string, prevIndex uint64) (uint64, error) {
	return g.change(ctx, "give a vote to "+serverID, func(r *hraft.Raft, wait time.Duration) hraft.IndexFuture {
		return r.AddVoter(hraft.ServerID(serverID), hraft.ServerAddress(serverID), prevIndex, wait)
	})
}

// Demote takes serverID's vote.
func (g *Group) Demote(ctx context.Context, serverID string, prevIndex uint64) (uint64, error) {
	return g.change(ctx, "take the vote of "+serverID, func(r *hraft.Raft, wait time.Duration) hraft.IndexFuture {
		return r.DemoteVoter(hraft.ServerID(serverID), prevIndex, wait)
	})
}

// Remove takes serverID out of the group. A leader that removes itself leads until the change is committed.
func (g *Group) Remove(ctx context.Context, serverID string, prevIndex uint64) (uint64, error) {
	return g.change(ctx, "remove "+serverID, func(r *hraft.Raft, wait time.Duration) hraft.IndexFuture {
		return r.RemoveServer(hraft.ServerID(serverID), prevIndex, wait)
	})
}

func (g *Group) change(ctx context.Context, what string, do func(*hraft.Raft, time.Duration) hraft.IndexFuture) (uint64, error) {
	in := g.inst.Load()
	if in == nil {
		return 0, ErrNotLeader{}
	}
	wait, err := enqueueWait(ctx)
	if err != nil {
		return 0, err
	}
	f := do(in.raft, wait)
	if err := g.await(ctx, in, f); err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	return f.Index(), nil
}

// PromoteTogether takes the votes from one to three: first and second get theirs in quick succession. With two votes the
// group stands only while both members live, so both must have answered with a log that is caught up just before;
// position asks one (Proposer.Ask does). If the second change fails, the first is taken back.
func (g *Group) PromoteTogether(ctx context.Context, first, second string, position func(ctx context.Context, serverID string) (Position, error)) (uint64, error) {
	in := g.inst.Load()
	if in == nil {
		return 0, ErrNotLeader{}
	}
	for _, id := range []string{first, second} {
		p, err := position(ctx, id)
		if err != nil {
			return 0, fmt.Errorf("votes stay as they are: %s does not answer: %w", id, err)
		}
		if commit := in.raft.CommitIndex(); p.Applied+promotionLag < commit {
			return 0, fmt.Errorf("votes stay as they are: %s is at %d of %d; try again when it has caught up", id, p.Applied, commit)
		}
	}
	one, err := g.Promote(ctx, first, g.ConfigIndex())
	if err != nil {
		return 0, err
	}
	two, err := g.Promote(ctx, second, one)
	if err == nil {
		return two, nil
	}
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*g.cfg.HeartbeatTimeout)
	defer cancel()
	if _, e := g.Demote(back, first, one); e != nil {
		return 0, fmt.Errorf("%w; %s keeps the vote it got (%v): the group has two votes now and stops if either is lost; repeat the change", err, first, e)
	}
	return 0, fmt.Errorf("%w; the votes are as before", err)
}

// promotionLag is how many entries a member may lack when it gets a vote: it receives them within a round trip.
const promotionLag = 8

// Position is how far a member's state machine is.
type Position struct {
	Applied uint64 // last command or configuration applied
	Term    uint64
	Leader  string
	Stalled bool
}

// Position returns this member's.
func (g *Group) Position() Position {
	s := g.State()
	return Position{Applied: g.machine.applied.Load(), Term: s.Term, Leader: s.Leader, Stalled: s.Stalled}
}

// Stats are figures for status and metrics.
type Stats struct {
	State       State
	LastIndex   uint64 // of the log on disk
	Commit      uint64
	Applied     uint64
	ConfigIndex uint64
	Snapshot    uint64        // index of the newest snapshot made or restored by this run
	LastContact time.Duration // since the leader was heard; 0 on the leader, negative: never
	Writes      uint64        // writes to the store by this run
	FsyncP50    time.Duration // of the last 512 writes, each a transaction with one fsync
	FsyncP99    time.Duration
	Servers     []Server
}

// Stats returns the figures of now.
func (g *Group) Stats() Stats {
	s := Stats{State: g.State(), Applied: g.machine.applied.Load(), ConfigIndex: g.ConfigIndex(), Snapshot: g.machine.snapIndex.Load(), LastContact: -1}
	s.FsyncP50, s.FsyncP99, s.Writes = g.store.times.quantiles()
	in := g.inst.Load()
	if in == nil {
		return s
	}
	s.LastIndex, s.Commit = in.raft.LastIndex(), in.raft.CommitIndex()
	s.Servers = g.Servers()
	if s.State.Mine {
		s.LastContact = 0
	} else if last := in.raft.LastContact(); !last.IsZero() {
		s.LastContact = time.Since(last)
	}
	return s
}
