package member

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
)

// loop is the one goroutine that touches the core. Everything reaches it as a function; it never waits for anything but them and
// the clock.
type loop struct {
	m     *Member
	in    chan func()
	done  chan struct{} // closed when the loop has ended
	drops atomic.Uint64
	own   []core.Event // what the loop's own callees have for the core; it cannot wait for itself
}

func newLoop(m *Member) *loop {
	return &loop{m: m, in: make(chan func(), 1024), done: make(chan struct{})}
}

var errStopped = errors.New("the daemon is stopping")

// call runs f on the loop and waits for it.
func (l *loop) call(f func()) error {
	ok := make(chan struct{})
	select {
	case l.in <- func() { f(); close(ok) }:
	case <-l.done:
		return errStopped
	}
	select {
	case <-ok:
		return nil
	case <-l.done:
		return errStopped
	}
}

// post runs f on the loop soon; a full loop drops it if it may be lost, as a frame may.
func (l *loop) post(f func(), mayDrop bool) {
	if mayDrop {
		select {
		case l.in <- f:
		default:
			l.drops.Add(1)
		}
		return
	}
	select {
	case l.in <- f:
	case <-l.done:
	}
}

// run is the loop.
func (l *loop) run(ctx context.Context) {
	defer close(l.done)
	due := l.m.now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-l.in:
			f()
			l.finish()
			l.drain()
		case <-timer.C:
		}
		// Whatever else there is to do, time passes when it is due.
		if now := l.m.now(); now >= due {
			l.late(now, now.Sub(due))
			l.step(core.Tick{})
			l.finish()
		}
		now := l.m.now()
		due = l.m.core.Next(now)
		timer.Reset(due.Sub(now))
	}
}

// late counts how late the loop is for what was due.
func (l *loop) late(now cluster.Instant, d time.Duration) {
	if c := l.m.cfg.Lateness; c != nil {
		c.Record(now, d)
	}
	const never = 50 * time.Millisecond // less than half of any lease
	if d < never || l.m.cfg.OnLate == nil || !l.m.core.Joined() {
		return
	}
	if ttl := l.m.core.State().Timing().TTL; d > ttl/2 {
		l.m.cfg.OnLate(d, ttl)
	}
}

// drain takes what has come meanwhile, up to a bound, so that a flood does not keep the clock waiting.
func (l *loop) drain() {
	for range 64 {
		select {
		case f := <-l.in:
			f()
			l.finish()
		default:
			return
		}
	}
}

// step gives one event to the core and carries out what it answers. Only on the loop.
func (l *loop) step(ev core.Event) {
	l.carryOut(l.m.core.Step(l.m.now(), l.m.wall(), ev))
}

// finish gives the core what was put aside for it meanwhile.
func (l *loop) finish() {
	for len(l.own) > 0 {
		ev := l.own[0]
		l.own = l.own[1:]
		l.step(ev)
	}
}

// carryOut does the actions in order.
func (l *loop) carryOut(actions []core.Action) {
	for _, a := range actions {
		switch a := a.(type) {
		case core.Send:
			l.send(a)
		case core.Propose:
			go l.propose(a)
		case core.Kick:
			l.m.log.Info("taking the lead", "why", a.Why)
			go l.m.kick()
		case core.Transfer:
			l.m.log.Info("handing over the lead", "to", l.m.core.State().MemberName(a.To), "why", a.Why)
			go l.m.transfer(l.serverID(a.To))
		case core.SpecChanged, core.Joined:
			l.m.membersChanged()
			l.m.local.Do(a)
		default:
			l.m.local.Do(a)
		}
	}
}

func (l *loop) serverID(n cluster.MemberNo) string {
	if p := l.m.core.State().Member(n); p != nil {
		return p.ServerID()
	}
	return ""
}

func (l *loop) send(a core.Send) {
	p := l.m.core.State().Member(a.To)
	if p == nil {
		return
	}
	// A lost frame is repeated by whoever needs it; why it was lost is in the link's counters.
	_ = l.m.mesh.Send(p.ID, byte(a.Frame.Kind()), core.EncodeFrame(a.Frame))
}

// proposeTimeout bounds one attempt to have a command committed; the core asks again for what it still wants.
const proposeTimeout = 3 * time.Second

func (l *loop) propose(a core.Propose) {
	ctx, cancel := context.WithTimeout(l.m.ctx, proposeTimeout)
	defer cancel()
	o, err := l.m.commit(ctx, a.Command)
	if err != nil {
		l.m.log.Debug("proposal", "id", a.ID, "err", err)
	}
	l.post(func() { l.step(core.Proposed{ID: a.ID, Outcome: o, Err: err}) }, false)
}

// receive passes a datagram on. It runs on the goroutine that reads the socket.
func (l *loop) receive(d link.Datagram) {
	f, err := core.DecodeFrame(core.Kind(d.Kind), d.Payload)
	if err != nil {
		l.m.malformed.Add(1)
		return
	}
	if a, ok := f.(*core.Ack); ok && l.m.cfg.OnRenewed != nil && a.Inc == l.m.cfg.Dir.Inc {
		l.m.cfg.OnRenewed(l.m.now().Sub(a.Sent))
	}
	from := d.From
	l.post(func() {
		if p := l.m.core.State().MemberByID(from); p != nil {
			l.step(core.Received{From: p.No, Frame: f})
		}
	}, true)
}

// machine is the replicated state machine as cluster/raft sees it; it lives on the loop.
type machine struct{ l *loop }

func (f machine) Apply(index uint64, data []byte) any {
	var out state.Outcome
	err := f.l.call(func() {
		cmd, err := state.Decode(data)
		if err != nil {
			f.l.m.fatal(fmt.Errorf("log index %d: %w", index, err))
			return
		}
		o, actions, err := f.l.m.core.Apply(f.l.m.now(), f.l.m.wall(), index, cmd)
		if err != nil {
			f.l.m.fatal(fmt.Errorf("log index %d: %w", index, err))
			return
		}
		out = o
		f.l.m.applied(index, cmd, o)
		f.l.carryOut(actions)
	})
	if err != nil {
		return err
	}
	return out
}

func (f machine) Voters(index uint64, servers []hraft.Server) {
	var voters []string
	for _, s := range servers {
		if s.Suffrage == hraft.Voter {
			voters = append(voters, string(s.ID))
		}
	}
	_ = f.l.call(func() { f.l.carryOut(f.l.m.core.Voters(f.l.m.now(), voters)) })
}

func (f machine) Snapshot() ([]byte, error) {
	var b []byte
	err := f.l.call(func() { b = f.l.m.core.State().Snapshot() })
	return b, err
}

func (f machine) Restore(b []byte) error {
	st, err := state.Restore(b)
	if err != nil {
		return err
	}
	return f.l.call(func() {
		f.l.carryOut(f.l.m.core.Restore(f.l.m.now(), st))
		f.l.m.membersChanged()
	})
}
