package member

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/rt"
)

// loop owns the core: whoever holds its lock is on the loop. Events, commands and answers reach it as functions, in their order; a frame is given to the
// core by the goroutine that read it, if nobody else is on the loop just then, because to wake up another one would cost more than the frame does.
// Nothing on the loop ever waits.
type loop struct {
	m     *Member
	in    chan func()
	done  chan struct{} // closed when the loop has ended
	drops atomic.Uint64
	clock *rt.Alarm

	mu    sync.Mutex
	over  bool
	due   cluster.Instant // when time passes next
	armed cluster.Instant // what the clock is set to
	own   []core.Event    // what the loop's own callees have for the core; it cannot wait for itself
	mail  []letter        // frames of the event at hand; they leave together when it has been carried out
	beats bool            // a beat is among them
}

// letter is what goes to one member.
type letter struct {
	to   cluster.MemberNo
	kind core.Kind
	body []byte
}

func newLoop(m *Member) (*loop, error) {
	clock, err := rt.NewAlarm()
	if err != nil {
		return nil, err
	}
	return &loop{m: m, in: make(chan func(), 1024), done: make(chan struct{}), clock: clock}, nil
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
	var ringing sync.WaitGroup
	ringing.Go(func() {
		for l.clock.Wait() {
			l.mu.Lock()
			l.armed = 0
			l.turn()
			l.mu.Unlock()
		}
	})
	defer func() {
		l.mu.Lock()
		l.over = true
		l.mu.Unlock()
		l.clock.Close()
		ringing.Wait()
	}()
	l.mu.Lock()
	l.due = l.m.now()
	l.turn()
	l.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-l.in:
			l.mu.Lock()
			f()
			l.finish()
			l.drain()
			l.turn()
			l.mu.Unlock()
		}
	}
}

// turn lets time pass when it is due, whatever else there is to do, and sets the clock to when it is due again.
func (l *loop) turn() {
	if l.over {
		return
	}
	if now := l.m.now(); now >= l.due {
		l.late(now, now.Sub(l.due))
		l.step(core.Tick{})
		l.finish()
	}
	l.due = l.m.core.Next(l.m.now())
	if l.due != l.armed {
		l.armed = l.due
		l.clock.Set(l.due)
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
			l.write(a)
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
	l.dispatch()
}

func (l *loop) serverID(n cluster.MemberNo) string {
	if p := l.m.core.State().Member(n); p != nil {
		return p.ServerID()
	}
	return ""
}

// write puts a frame into the letter to its member.
func (l *loop) write(a core.Send) {
	_, beat := a.Frame.(*core.Beat)
	l.beats = l.beats || beat
	kind, body := a.Frame.Kind(), core.EncodeFrame(a.Frame)
	for i := range l.mail {
		old := &l.mail[i]
		if old.to != a.To {
			continue
		}
		b, ok := old.body, true
		if old.kind != core.KindBundle {
			b, ok = core.Bundle(nil, old.kind, old.body, link.MaxPayload)
		}
		if ok {
			b, ok = core.Bundle(b, kind, body, link.MaxPayload)
		}
		if ok {
			old.kind, old.body = core.KindBundle, b
			return
		}
	}
	l.mail = append(l.mail, letter{a.To, kind, body})
}

// dispatch sends the letters. A lost frame is repeated by whoever needs it; why it was lost is in the link's counters.
func (l *loop) dispatch() {
	for i := range l.mail {
		if p := l.m.core.State().Member(l.mail[i].to); p != nil {
			_ = l.m.mesh.Send(p.ID, byte(l.mail[i].kind), l.mail[i].body)
		}
	}
	clear(l.mail)
	l.mail = l.mail[:0]
	if l.beats {
		l.beats = false
		l.m.beaten()
	}
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

// receive passes a datagram on. It runs on the goroutine that reads the sockets.
func (l *loop) receive(d link.Datagram) {
	frames, err := core.Unbundle(core.Kind(d.Kind), d.Payload)
	if err != nil {
		l.m.malformed.Add(1)
		return
	}
	for _, f := range frames {
		if a, ok := f.(*core.Ack); ok && l.m.cfg.OnRenewed != nil && a.Inc == l.m.cfg.Dir.Inc {
			l.m.cfg.OnRenewed(l.m.now().Sub(a.Sent))
		}
	}
	from := d.From
	take := func() {
		if p := l.m.core.State().MemberByID(from); p != nil {
			for _, f := range frames {
				l.step(core.Received{From: p.No, Frame: f})
			}
		}
	}
	if !l.mu.TryLock() {
		l.post(take, true)
		return
	}
	defer l.mu.Unlock()
	if !l.over {
		take()
		l.finish()
		l.turn()
	}
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
	_ = f.l.call(func() {
		f.l.carryOut(f.l.m.core.Voters(f.l.m.now(), voters))
		f.l.m.tellFollowers()
	})
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
