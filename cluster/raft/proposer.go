package raft

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Proposer brings commands to the leader, wherever it is: here, one connection away, or through one other member when
// this one cannot reach it.
type Proposer struct {
	group  *Group
	relay  *Relay
	encode func(any) ([]byte, error) // of the state machine's results
}

// NewProposer uses encode for what FSM.Apply returned here, so that callers see the same bytes wherever the leader is.
func NewProposer(g *Group, r *Relay, encode func(any) ([]byte, error)) *Proposer {
	return &Proposer{group: g, relay: r, encode: encode}
}

// Propose commits data and returns the encoded result and the index. It looks for a leader until ctx ends. Errors:
// ErrUnknownOutcome when the command may have been committed; anything else: it certainly was not.
func (p *Proposer) Propose(ctx context.Context, data []byte) (result []byte, index uint64, err error) {
	if len(data) > MaxCommand {
		return nil, 0, fmt.Errorf("command of %d bytes: at most %d are allowed", len(data), MaxCommand)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, enqueueLimit)
		defer cancel()
	}
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		result, index, err = p.once(ctx, data, 2)
		if err == nil || !errors.As(err, new(ErrNotLeader)) {
			return result, index, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, 0, fmt.Errorf("no leader took the command: %w (last: %w)", context.Cause(ctx), err)
		}
	}
}

// Ask returns how far serverID's state machine is. It also shows that the member lives and answers.
func (p *Proposer) Ask(ctx context.Context, serverID string) (Position, error) {
	if serverID == p.group.cfg.ServerID {
		return p.group.Position(), nil
	}
	return p.relay.ask(ctx, serverID)
}

// once tries here, then at the leader, then (with two hops) at the other members, one after the other.
func (p *Proposer) once(ctx context.Context, data []byte, hops uint8) ([]byte, uint64, error) {
	leader, mine, _ := p.group.Leader()
	if mine {
		r, index, err := p.group.Apply(ctx, data)
		if err != nil {
			return nil, 0, err
		}
		b, err := p.encode(r)
		if err != nil {
			return nil, 0, ErrUnknownOutcome{fmt.Errorf("the command was committed at %d, its result cannot be encoded: %w", index, err)}
		}
		return b, index, nil
	}
	last := error(ErrNotLeader{leader})
	if hops == 0 {
		return nil, 0, last
	}
	tried := p.group.cfg.ServerID
	if leader != "" {
		result, index, err := p.pass(ctx, leader, relayRequest{kind: relayPropose, data: data})
		if !errors.As(err, new(ErrNotLeader)) {
			return result, index, err
		}
		last = err
	}
	if hops < 2 {
		return nil, 0, last
	}
	for _, s := range p.group.Servers() {
		if s.ID == tried || s.ID == leader || ctx.Err() != nil {
			continue
		}
		result, index, err := p.pass(ctx, s.ID, relayRequest{kind: relayPropose, hops: 1, data: data})
		if !errors.As(err, new(ErrNotLeader)) {
			return result, index, err
		}
		last = err
	}
	return nil, 0, last
}

// pass sends one request and turns the answer into what Apply would have said.
func (p *Proposer) pass(ctx context.Context, serverID string, q relayRequest) ([]byte, uint64, error) {
	a, err := p.relay.call(ctx, serverID, q)
	switch {
	case errors.Is(err, errNotSent):
		p.log().Debug("relay", "to", serverID, "err", err)
		return nil, 0, notReached{ErrNotLeader{}, err}
	case err != nil:
		return nil, 0, ErrUnknownOutcome{fmt.Errorf("%s did not answer: %w", serverID, err)}
	}
	switch a.code {
	case codeDone:
		return a.data, a.index, nil
	case codeNotLeader:
		return nil, 0, ErrNotLeader{a.leader}
	case codeRefused:
		return nil, 0, fmt.Errorf("%s refused the command: %s", serverID, a.data)
	}
	return nil, 0, ErrUnknownOutcome{errors.New(string(a.data))}
}

// notReached is an ErrNotLeader that says why nobody was asked.
type notReached struct {
	ErrNotLeader
	why error
}

func (e notReached) Error() string   { return e.why.Error() }
func (e notReached) Unwrap() []error { return []error{e.ErrNotLeader, e.why} }
