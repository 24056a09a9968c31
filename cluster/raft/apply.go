package raft

import (
	"context"
	"errors"
	"fmt"
	"time"

	hraft "github.com/hashicorp/raft"
)

// ErrNotLeader says that this member does not lead and that the command was certainly not taken.
type ErrNotLeader struct {
	Leader string // ServerID of who leads, as far as known; "" if unknown
}

func (e ErrNotLeader) Error() string {
	if e.Leader == "" {
		return "this member does not lead, and no leader is known"
	}
	return "this member does not lead; " + e.Leader + " does"
}

// ErrUnknownOutcome says that a command may or may not be committed, now or later. Only a Barrier on a leader, followed
// by a look at the state machine, tells.
type ErrUnknownOutcome struct{ Why error }

func (e ErrUnknownOutcome) Error() string {
	return fmt.Sprintf("it is not known whether the command was committed (%v); read the state before acting again", e.Why)
}

func (e ErrUnknownOutcome) Unwrap() error { return e.Why }

// enqueueLimit bounds the wait for a Raft main loop that is busy, when ctx has no deadline.
const enqueueLimit = 5 * time.Second

// Apply commits data and returns what the state machine answered and the index of the entry. It works on the leader
// only. Errors: ErrNotLeader (certainly not taken), ErrUnknownOutcome, or ctx's error when the command was not taken.
func (g *Group) Apply(ctx context.Context, data []byte) (result any, index uint64, err error) {
	if len(data) > MaxCommand {
		return nil, 0, fmt.Errorf("command of %d bytes: at most %d are allowed", len(data), MaxCommand)
	}
	in := g.inst.Load()
	if in == nil {
		return nil, 0, ErrNotLeader{}
	}
	return g.apply(ctx, in, data)
}

func (g *Group) apply(ctx context.Context, in *instance, data []byte) (any, uint64, error) {
	wait, err := enqueueWait(ctx)
	if err != nil {
		return nil, 0, err
	}
	f := in.raft.Apply(data, wait)
	if err := g.await(ctx, in, f); err != nil {
		return nil, 0, err
	}
	return f.Response(), f.Index(), nil
}

// Barrier returns nil once everything committed before it has been applied here. Leader only; errors as of Apply.
func (g *Group) Barrier(ctx context.Context) error {
	in := g.inst.Load()
	if in == nil {
		return ErrNotLeader{}
	}
	wait, err := enqueueWait(ctx)
	if err != nil {
		return err
	}
	return g.await(ctx, in, in.raft.Barrier(wait))
}

func enqueueWait(ctx context.Context) (time.Duration, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	wait := enqueueLimit
	if d, ok := ctx.Deadline(); ok {
		wait = max(min(wait, time.Until(d)), time.Millisecond)
	}
	return wait, nil
}

// await waits for f, for ctx or for the end of the instance, and says what is known about the outcome.
func (g *Group) await(ctx context.Context, in *instance, f hraft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return g.outcome(in, err)
	case <-ctx.Done():
		return ErrUnknownOutcome{context.Cause(ctx)}
	case <-in.over.Done():
	}
	select { // the answer may be there as well
	case err := <-done:
		return g.outcome(in, err)
	case <-in.down:
		return ErrUnknownOutcome{ErrStalled}
	case <-ctx.Done():
		return ErrUnknownOutcome{context.Cause(ctx)}
	}
}

func (g *Group) outcome(in *instance, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, hraft.ErrNotLeader):
		_, id := in.raft.LeaderWithID()
		return ErrNotLeader{string(id)}
	case errors.Is(err, hraft.ErrLeadershipTransferInProgress):
		return ErrNotLeader{} // it will be somebody else in a moment
	case errors.Is(err, hraft.ErrEnqueueTimeout):
		return fmt.Errorf("the Raft loop of %s took no command in time: %w", g.cfg.ServerID, context.DeadlineExceeded)
	}
	return ErrUnknownOutcome{err}
}
