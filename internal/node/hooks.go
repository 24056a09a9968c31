package node

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/failover/supervise/launch"
	"github.com/hanode/hanode/internal/core"
)

// Hooks are programs of the operator at moments of the service's life. They run on the service's own goroutine, one after the other in file order, and
// what comes next waits for them. One that fails, or takes longer than its timeout, is an alarm; only before-start and before-announce keep the
// service from going on here: whoever says "not yet" in the others would make an outage longer, or keep a node that must stop from stopping. A
// service that is fenced is not asked: there is no before-stop then.

// move is what the log says of the move that made an epoch.
type move struct {
	kind, from, to, decision, sentence string
}

func (m *move) failover() bool { return m != nil && (m.kind == "failover" || m.kind == "force") }

// decisionWait is how long hooks wait for the log to say why the service is here: a follower learns of a commit a moment after the Grant.
const decisionWait = time.Second

// moved asks the log for the move that made an epoch; nil: it does not say.
func (n *Node) moved(ctx context.Context, no cluster.ServiceNo, e cluster.Epoch) *move {
	ctx, cancel := context.WithTimeout(ctx, decisionWait)
	defer cancel()
	var out *move
	n.news.wait(ctx, func() bool {
		_ = n.m.On(func(c *core.Core) {
			s := c.State().Service(no)
			if s == nil || s.Lock.Epoch < e {
				return
			}
			var d *state.Decision
			if d = c.State().Decision(s.LastMove); d != nil && d.EpochTo == e {
				out = &move{kind: d.Kind, from: d.From, to: d.To, decision: decisionID(d.ID), sentence: d.Sentence}
			}
		})
		return out != nil
	})
	return out
}

// move is asked for only where a hook wants to know it.
func (s *service) move(ctx context.Context, e cluster.Epoch) *move {
	if len(s.spec.Hooks) == 0 || s.w.moved == nil {
		return nil
	}
	return s.w.moved(ctx, s.no, e)
}

// hook runs the hooks of one moment. The error is that of the first one that failed.
func (s *service) hook(ctx context.Context, at string, m *move) error {
	var errs []error
	for i := range s.spec.Hooks {
		h := &s.spec.Hooks[i]
		if h.At != at {
			continue
		}
		began := s.w.now()
		err := s.runHook(ctx, h, m)
		took := s.w.now().Sub(began)
		object := s.name + "/" + h.Name
		if err == nil {
			s.step(fmt.Sprintf("hook %s (%s)", h.Name, at), fmt.Sprintf("took %v", took.Round(time.Millisecond)))
			s.w.log.Info("hook", "service", s.name, "hook", h.Name, "at", at, "took", took)
			s.w.clear("hook-failed", object)
			continue
		}
		err = fmt.Errorf("hook %s (%s): %w", h.Name, at, err)
		s.step(err.Error(), "")
		s.w.raise("hook-failed", object, "warn", err.Error()+", on "+s.w.self, "mend its program; hanode alarm ack hook-failed")
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *service) runHook(ctx context.Context, h *cluster.HookSpec, m *move) error {
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	env := []string{"HANODE_SERVICE=" + s.name, "HANODE_NODE=" + s.w.self, "HANODE_HOOK=" + h.Name, "HANODE_AT=" + h.At,
		"HANODE_EPOCH=" + strconv.FormatUint(s.epoch.Load(), 10), "HANODE_ROLE=" + s.role()}
	if m != nil {
		env = append(env, "HANODE_KIND="+m.kind, "HANODE_FROM="+m.from, "HANODE_TO="+m.to, "HANODE_DECISION="+m.decision, "HANODE_REASON="+m.sentence)
	}
	err := s.w.run(ctx, h.Exec, env)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("not done within %v", h.Timeout)
	}
	return err
}

// runHook runs the program of a hook, without what the daemon is; it and what it started end with ctx.
func runHook(ctx context.Context, argv, env []string) error {
	r, err := launch.Run(ctx, launch.Program{Argv: argv, Env: append(launch.BaseEnv("", ""), env...)}, 4096)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("exit status %d: %s", r.Code, r.FirstLine(256))
	}
	return err
}

// late says whether the addresses are taken only when the service is ready.
func (s *service) late() bool { return len(s.spec.VIPs) > 0 && s.spec.VIPs[0].Announce == "ready" }

// announce takes the addresses and tells the network.
func (s *service) announce(ctx context.Context, m *move) error {
	if len(s.addrs) == 0 {
		return nil
	}
	if err := s.hook(ctx, "before-announce", m); err != nil {
		s.failed(err.Error(), s.spec.OnFailure.Then)
		s.flush("")
		return err
	}
	on, err := s.w.identity.Claim(s.no)
	for p, dev := range on {
		s.step(fmt.Sprintf("%s on %s, announced", p.Addr(), dev), "")
	}
	if err != nil {
		s.failed("the addresses could not be taken: "+err.Error(), "failover")
		return err
	}
	s.mu.Lock()
	s.claimedAt = s.w.now()
	s.mu.Unlock()
	s.hook(ctx, "after-announce", m)
	return nil
}

// nowReady does what has waited for the service to be ready.
func (s *service) nowReady(ctx context.Context, e cluster.Epoch) {
	if !s.current(e) {
		return
	}
	m := s.move(ctx, e)
	s.mu.Lock()
	claimed := s.claimedAt != 0
	s.mu.Unlock()
	if s.late() && !claimed {
		if s.announce(ctx, m) != nil {
			return
		}
	}
	if m.failover() {
		s.hook(ctx, "after-failover", m)
	}
	s.flush("")
}

// answeredAt is when the addresses answered in this tenure; 0: not yet. Called with mu held.
func (s *service) answeredAt() cluster.Instant {
	if s.late() {
		return s.claimedAt
	}
	return s.openedAt
}

func ordinal(n, of int) string { return fmt.Sprintf("%d of %d", n, of) }
