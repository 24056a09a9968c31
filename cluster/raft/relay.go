package raft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// errNotSent marks failures after which a command has certainly not reached anybody.
var errNotSent = errors.New("not sent")

// Relay carries commands between members, over one small pool of lasting connections per member. It is used through
// Proposer; ServeConn is its other end.
type Relay struct {
	dial    func(ctx context.Context, serverID string) (net.Conn, error)
	timeout time.Duration // of a dial and of the sign of life

	mu     sync.Mutex
	idle   map[string][]*relayConn
	closed bool
}

type relayConn struct {
	net.Conn
	heard time.Time // when it last proved to be alive
}

// Limits of the pool, and the silence after which a connection must first prove that it lives: a command must not be
// lost in a connection that leads nowhere, because nobody would know whether it arrived.
const (
	maxIdlePerMember = 4
	maxIdleTime      = time.Minute
	trustFor         = 20 * time.Millisecond
	workingEvery     = 50 * time.Millisecond
)

// NewRelay uses dial to reach the relay channel of other members. timeout bounds a dial and one sign of life (0: 200 ms).
func NewRelay(dial func(ctx context.Context, serverID string) (net.Conn, error), timeout time.Duration) *Relay {
	if timeout == 0 {
		timeout = 200 * time.Millisecond
	}
	return &Relay{dial: dial, timeout: timeout, idle: map[string][]*relayConn{}}
}

// Close closes the idle connections and lets no more become idle.
func (r *Relay) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, cs := range r.idle {
		for _, c := range cs {
			c.Close()
		}
	}
	r.idle = nil
}

func (r *Relay) take(serverID string) *relayConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	for cs := r.idle[serverID]; len(cs) > 0; {
		c := cs[len(cs)-1]
		cs = cs[:len(cs)-1]
		r.idle[serverID] = cs
		if time.Since(c.heard) < maxIdleTime {
			return c
		}
		c.Close()
	}
	return nil
}

func (r *Relay) keep(serverID string, c *relayConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || len(r.idle[serverID]) >= maxIdlePerMember {
		c.Close()
		return
	}
	r.idle[serverID] = append(r.idle[serverID], c)
}

// connect returns a connection to serverID that has just proved to be alive.
func (r *Relay) connect(ctx context.Context, serverID string) (*relayConn, error) {
	for {
		c := r.take(serverID)
		fresh := c == nil
		if fresh {
			dctx, cancel := context.WithTimeout(ctx, r.timeout)
			nc, err := r.dial(dctx, serverID)
			cancel()
			if err != nil {
				return nil, fmt.Errorf("%w: reach %s: %w", errNotSent, serverID, err)
			}
			c = &relayConn{Conn: nc}
		} else if time.Since(c.heard) < trustFor {
			return c, nil
		}
		alive, cancel := context.WithTimeout(ctx, r.timeout)
		_, err := r.exchange(alive, c, relayRequest{kind: relayAsk})
		cancel()
		if err == nil {
			return c, nil
		}
		c.Close()
		if fresh || ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %s gives no sign of life: %w", errNotSent, serverID, err)
		}
	}
}

// exchange sends one request and reads its answer. It gives up when ctx ends, or when nothing has been heard for four
// signs of life or the relay's time-out, whichever is longer.
func (r *Relay) exchange(ctx context.Context, c *relayConn, q relayRequest) (relayAnswer, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(enqueueLimit)
	}
	silence := max(r.timeout, 4*workingEvery)
	q.millis = uint32(max(time.Until(deadline).Milliseconds(), 1))
	for sent := false; ; {
		patience := time.Now().Add(silence)
		if patience.After(deadline) {
			patience = deadline
		}
		if err := c.SetDeadline(patience); err != nil {
			return relayAnswer{}, err
		}
		// After the deadline is set: an end of ctx before it is seen here, a later one sets its own deadline.
		stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
		a, err := oneRound(c, q, sent)
		stop()
		if err != nil || a.code != codeWorking {
			return a, err
		}
		sent, c.heard = true, time.Now()
	}
}

func oneRound(c *relayConn, q relayRequest, sent bool) (relayAnswer, error) {
	if !sent {
		if _, err := c.Write(q.encode()); err != nil {
			return relayAnswer{}, err
		}
	}
	b, err := readFrame(c)
	if err != nil {
		return relayAnswer{}, err
	}
	c.heard = time.Now()
	return decodeAnswer(b)
}

// call sends q to serverID. An error that wraps errNotSent means that nothing was sent.
func (r *Relay) call(ctx context.Context, serverID string, q relayRequest) (relayAnswer, error) {
	c, err := r.connect(ctx, serverID)
	if err != nil {
		return relayAnswer{}, err
	}
	a, err := r.exchange(ctx, c, q)
	if err != nil {
		c.Close()
		return a, err
	}
	r.keep(serverID, c)
	return a, nil
}

// ask returns how far serverID is.
func (r *Relay) ask(ctx context.Context, serverID string) (Position, error) {
	a, err := r.call(ctx, serverID, relayRequest{kind: relayAsk})
	if err != nil {
		return Position{}, err
	}
	if len(a.data) != 9 {
		return Position{}, errFrame
	}
	return Position{Applied: a.index, Leader: a.leader, Term: binary.BigEndian.Uint64(a.data), Stalled: a.data[8] != 0}, nil
}

// ServeConn answers one member on the relay channel until the connection or ctx ends; then it closes the connection. The
// caller has authenticated the member.
func (p *Proposer) ServeConn(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for {
		conn.SetReadDeadline(time.Now().Add(2 * maxIdleTime))
		b, err := readFrame(conn)
		if err != nil {
			return err
		}
		q, err := decodeRequest(b)
		if err != nil {
			return err
		}
		if err := p.serve(ctx, conn, q); err != nil {
			return err
		}
	}
}

// serve answers one request, with signs of life until the answer is known.
func (p *Proposer) serve(ctx context.Context, conn net.Conn, q relayRequest) error {
	write := func(a relayAnswer) error {
		conn.SetWriteDeadline(time.Now().Add(enqueueLimit))
		_, err := conn.Write(a.encode())
		return err
	}
	if q.kind == relayAsk {
		return write(p.position())
	}
	ctx, cancel := context.WithTimeout(ctx, min(time.Duration(q.millis)*time.Millisecond, time.Minute))
	defer cancel()
	answer := make(chan relayAnswer, 1)
	go func() { answer <- p.answer(ctx, q) }()
	tick := time.NewTicker(workingEvery)
	defer tick.Stop()
	for {
		if err := write(relayAnswer{code: codeWorking}); err != nil {
			cancel()
			<-answer
			return err
		}
		select {
		case a := <-answer:
			return write(a)
		case <-tick.C:
		}
	}
}

func (p *Proposer) position() relayAnswer {
	at := p.group.Position()
	data := binary.BigEndian.AppendUint64(nil, at.Term)
	stalled := byte(0)
	if at.Stalled {
		stalled = 1
	}
	return relayAnswer{index: at.Applied, leader: at.Leader, data: append(data, stalled)}
}

// answer carries out a proposal from another member.
func (p *Proposer) answer(ctx context.Context, q relayRequest) relayAnswer {
	result, index, err := p.once(ctx, q.data, min(q.hops, 1))
	var not ErrNotLeader
	switch {
	case err == nil && len(result) > MaxCommand:
		return relayAnswer{code: codeUnknown, data: []byte("the result is too long to send")}
	case err == nil:
		return relayAnswer{index: index, leader: p.group.cfg.ServerID, data: result}
	case errors.As(err, &not):
		return relayAnswer{code: codeNotLeader, leader: not.Leader, data: []byte(err.Error())}
	case errors.As(err, new(ErrUnknownOutcome)):
		return relayAnswer{code: codeUnknown, data: []byte(err.Error())}
	}
	p.log().Debug("relayed command was refused", "err", err)
	return relayAnswer{code: codeRefused, data: []byte(err.Error())}
}

func (p *Proposer) log() *slog.Logger { return p.group.cfg.Log }
