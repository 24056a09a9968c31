package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/stream/replica"
)

const (
	tickEvery     = 25 * time.Millisecond
	beatEvery     = time.Second
	deadConn      = 10 * time.Second // without a frame from the other side, or with one that it does not take
	waitForFacts  = 5 * time.Second
	dialEvery     = 250 * time.Millisecond
	dialAtMost    = 2 * time.Second
	roundsOfFlush = 16 // after so many a writer is let go from flushing for others

	// Where a volume does not wait for its standby, a standby that does not read must not hold its writers back: the flusher writes only what a socket's
	// buffer takes, and does not wait for long; the rest is sent from the journal.
	smallWindow  = 128 << 10
	shortForWait = 200 * time.Millisecond
)

// Errors of a Log. They carry the errno for the caller of the file system.
var (
	errDeposed = fmt.Errorf("this node is not active any more: %w", syscall.EIO)
	errStandby = fmt.Errorf("this node is standby: %w", syscall.EROFS)
)

// Stream is the log of one service. Make it with New, then Run.
type Stream struct {
	c       Config
	volumes []string

	mu      sync.Mutex
	act     *replica.Active
	stb     *replica.Standby
	leading bool
	failed  error // set once: nothing is submitted, acknowledged or accepted any more
	closing bool

	directWindow uint64        // how many bytes may be in flight for the flusher to write to a follower by itself
	patience     time.Duration // how long it waits for the connection to take them

	// The active's log.
	epoch    cluster.Epoch // of the next record
	gen      cluster.Generation
	last     uint64 // submitted
	written  uint64 // in the journal
	buf      []byte // a frame's head and the records that wait to be flushed
	bufFirst uint64
	spare    []byte
	flushing bool
	turning  bool // epoch and generation are being made durable: nothing is flushed meanwhile
	held     bool // Drain: no new operation
	space    sync.Cond
	quiet    sync.Cond // something was done, or the state has changed
	waiters  []*waiter
	applied  window // what is applied of what was submitted
	syncing  bool   // a sync of the own journal is queued for waiters without a standby
	handOver chan struct{}

	// Connections.
	sessions  uint64
	followers []*follower
	source    *source
	conns     map[net.Conn]struct{}
	facts     sync.Cond // facts or role have changed
	dialAt    map[cluster.MemberNo]dialing

	// The standby's copy.
	state      journal.State // as stored, or about to be
	storing    sync.Mutex    // held while the state is written
	ckmu       sync.Mutex    // held by a checkpoint, and by whoever cuts the journal
	may        uint64        // up to where operations may have been applied
	redone     uint64        // the applier's position
	redoTo     uint64        // up to there operations may have been applied before: then the trees settle
	settled    bool
	paused     bool // the applier must not touch the trees
	applying   bool
	applyError error
	missing    map[missingID]int
	moved      sync.Cond // the journal has grown, or the applier may go on

	chores  chan func()
	events  chan func()
	wg      sync.WaitGroup
	ctx     context.Context
	running chan struct{} // closed when Run has begun
	clock   atomic.Int64  // what Now said at the last tick: asking it is a system call

	stats stats
}

type dialing struct {
	at   cluster.Instant
	wait time.Duration
}

type missingID struct {
	volume uint8
	id     replication.FileID
}

// New makes the stream of a copy. Nothing runs before Run.
func New(c Config) (*Stream, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("the stream of service %s: %w", c.Service, err)
	}
	last := c.Journal.Last().Seq
	s := &Stream{c: c, conns: map[net.Conn]struct{}{}, dialAt: map[cluster.MemberNo]dialing{}, handOver: make(chan struct{}, 1),
		chores: make(chan func(), 256), events: make(chan func(), 1024), running: make(chan struct{}), missing: map[missingID]int{}}
	s.space.L, s.quiet.L, s.facts.L, s.moved.L = &s.mu, &s.mu, &s.mu, &s.mu
	s.directWindow, s.patience = uint64(c.Window), deadConn
	modes := make([]replica.Mode, len(c.Volumes))
	for i, v := range c.Volumes {
		modes[i] = v.Mode
		s.volumes = append(s.volumes, v.Name)
		if v.Mode != replica.Sync {
			s.directWindow, s.patience = min(smallWindow, s.directWindow), shortForWait
		}
	}
	var flag replica.Flag
	if a := c.State.Alone; a != nil {
		flag = replica.Flag{Epoch: a.Epoch, Gen: a.Gen}
	}
	s.act = replica.NewActive(c.Self, modes, c.AloneDisk, last, flag)
	s.stb = replica.NewStandby(c.State.Epoch, last)
	s.state = c.State
	s.state.History = s.state.History.Cut(last)
	s.last, s.written, s.may, s.redoTo, s.redone = last, last, last, last, c.Journal.Applied()
	s.buf, s.spare = make([]byte, frameHead, c.Buffer+frameHead), make([]byte, frameHead, c.Buffer+frameHead)
	s.paused = s.state.Inconsistent
	return s, nil
}

// Run works until ctx ends, and leaves nothing behind. Connections are closed, and what waits ends with an error.
func (s *Stream) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.ctx = ctx
	s.clock.Store(int64(s.c.Now()))
	s.mu.Unlock()
	close(s.running)
	for _, f := range []func(context.Context){s.runChores, s.runEvents, s.runFlusher, s.runApplier, s.runCheckpoints, s.runTicks} {
		s.wg.Go(func() { f(ctx) })
	}
	<-ctx.Done()
	s.mu.Lock()
	s.closing = true
	if s.failed == nil {
		s.failed = errDeposed
	}
	s.act.Fence("the process ends")
	for c := range s.conns {
		c.Close()
	}
	s.wakeAll()
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// Shutdown makes the copy durable and notes that it ended in good order. Run has returned.
func (s *Stream) Shutdown() error {
	pos := s.appliedPosition()
	for _, v := range s.c.Volumes {
		if err := v.Tree.Sync(); err != nil {
			return err
		}
	}
	if err := s.c.Journal.Sync(); err != nil {
		return err
	}
	if err := s.c.Journal.Checkpoint(pos); err != nil {
		return err
	}
	return s.store(func(st *journal.State) { st.Clean = !st.Inconsistent })
}

// lately is the time, up to a tick late.
func (s *Stream) lately() cluster.Instant { return cluster.Instant(s.clock.Load()) }

func (s *Stream) wakeAll() {
	s.settle()
	s.space.Broadcast()
	s.quiet.Broadcast()
	s.facts.Broadcast()
	s.moved.Broadcast()
	for _, f := range s.followers {
		f.more.Broadcast()
	}
}

// chore has something done that may take as long as a disk takes. mu may be held.
func (s *Stream) chore(f func()) {
	select {
	case s.chores <- f:
	default:
		s.wg.Go(f) // the queue is long: the disk is slow, and the order of chores does not matter
	}
}

func (s *Stream) runChores(ctx context.Context) {
	for {
		select {
		case f := <-s.chores:
			f()
		case <-ctx.Done():
			return
		}
	}
}

// tell queues a callback. mu may be held. One that finds the queue full is dropped: whoever reads it comes back to Status.
func (s *Stream) tell(f func()) {
	select {
	case s.events <- f:
	default:
		s.c.Log.Warn("an event was dropped: its reader is too slow")
	}
}

func (s *Stream) runEvents(ctx context.Context) {
	for {
		select {
		case f := <-s.events:
			f()
		case <-ctx.Done():
			for {
				select {
				case f := <-s.events:
					f()
				default:
					return
				}
			}
		}
	}
}

func (s *Stream) changed() {
	if f := s.c.Events.Changed; f != nil {
		s.tell(f)
	}
}

// store changes the durable state. Not with mu held.
func (s *Stream) store(change func(*journal.State)) error {
	s.storing.Lock()
	defer s.storing.Unlock()
	s.mu.Lock()
	st := s.state
	s.mu.Unlock()
	change(&st)
	if err := s.c.Store(st); err != nil {
		s.fail(fmt.Errorf("the state of the copy cannot be stored: %w", err))
		return err
	}
	s.mu.Lock()
	s.state = st
	s.mu.Unlock()
	return nil
}

// fail ends everything: the own disk does not do what it must.
func (s *Stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return
	}
	s.failed = fmt.Errorf("%w: %w", err, syscall.EIO)
	if f := s.c.Events.Failed; f != nil {
		s.tell(func() { f(err) })
	}
	s.c.Log.Error("the copy cannot be used any more", "why", err)
	s.perform(s.act.Fence(err.Error()))
	for c := range s.conns {
		c.Close()
	}
	s.wakeAll()
}

// SetFacts takes what the log says now, as this member's daemon has applied it.
func (s *Stream) SetFacts(f replica.Facts) {
	if f.Grant == 0 {
		f.Grant = f.Epoch
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stb.SetFacts(f)
	s.perform(s.act.SetFacts(s.c.Now(), f))
	for _, x := range s.followers {
		if x.busy && !s.act.Needed(x.run.Member) {
			x.conn.Close() // the flusher may hang in it, and nobody waits for this one any more
		}
	}
	s.settle()
	s.facts.Broadcast()
	s.quiet.Broadcast()
	s.changed()
}

// perform carries out what the core wants. mu is held; what takes time is a chore.
func (s *Stream) perform(acts []replica.Action) {
	ev := &s.c.Events
	for _, a := range acts {
		switch a := a.(type) {
		case replica.Deposed:
			if s.failed == nil {
				s.failed = errDeposed
			}
			s.c.Log.Warn("not active any more", "why", a.Why)
			if ev.Deposed != nil {
				s.tell(func() { ev.Deposed(a.Why) })
			}
			for _, f := range s.followers {
				f.conn.Close()
			}
			s.wakeAll()
		case replica.Turned:
			s.turn(a.Epoch, a.Gen)
		case replica.StoreAlone:
			s.chore(func() { s.storeAlone(a.Flag) })
		case replica.AskSync:
			if f := s.follower(a.Member); f != nil {
				f.syncWant = max(f.syncWant, a.Seq)
				s.kickFlusher()
			}
		case replica.CaughtUp:
			if ev.CaughtUp != nil {
				s.tell(func() { ev.CaughtUp(a.Run, a.Epoch, a.Gen) })
			}
		case replica.WantDegrade:
			if ev.WantDegrade != nil {
				s.tell(func() { ev.WantDegrade(a.Member, a.Why) })
			}
		case replica.Go:
			if f := s.bySession(a.Session); f != nil {
				f.goOn = true
				f.more.Broadcast()
			}
		case replica.Drop:
			if f := s.bySession(a.Session); f != nil {
				f.why = a.Why
				f.conn.Close()
			}
		}
	}
}

func (s *Stream) storeAlone(f replica.Flag) {
	err := s.store(func(st *journal.State) {
		st.Alone = nil
		if f != (replica.Flag{}) {
			st.Alone = &journal.Turn{Epoch: f.Epoch, Gen: f.Gen}
		}
	})
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.perform(s.act.AloneStored(f))
	s.settle()
	if ev := s.c.Events.Alone; ev != nil {
		s.tell(func() { ev(f != (replica.Flag{})) })
	}
}

// GoAlone lets the active go on without any standby while sticky. The daemon orders it only as long as it has not proposed the end of sticky.
func (s *Stream) GoAlone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.perform(s.act.GoAlone())
}

// Fence ends the tenure: everything pending ends with EIO, and nothing is acknowledged later.
func (s *Stream) Fence(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	acts := s.act.Fence(why)
	if s.failed == nil {
		s.failed = errDeposed
	}
	s.perform(acts)
	s.wakeAll()
}

// Lead makes this copy the active's in the epoch that the facts name: the tail of the journal is applied, epoch and generation are made durable, limbo is
// emptied, ids are given from a new base, and Submit works. It returns the position of the last operation.
func (s *Stream) Lead(ctx context.Context, epoch cluster.Epoch) (cluster.Position, error) {
	stop := context.AfterFunc(ctx, func() { s.mu.Lock(); s.wakeAll(); s.mu.Unlock() })
	defer stop()
	s.mu.Lock()
	if err := s.act.MayLead(epoch, s.state.Epoch, !s.state.Inconsistent); err != nil || s.failed != nil {
		s.mu.Unlock()
		return cluster.Position{}, errors.Join(err, s.failed)
	}
	s.leading = true // from here on no frame is accepted
	if s.source != nil {
		s.source.conn.Close()
	}
	for s.failed == nil && ctx.Err() == nil && s.applyError == nil && (s.source != nil || s.redone < s.c.Journal.Last().Seq || s.applying) {
		s.moved.Broadcast()
		s.facts.Wait()
	}
	err := errors.Join(s.failed, ctx.Err(), s.applyError)
	s.paused = true
	s.mu.Unlock()
	if err == nil {
		err = s.ready(epoch)
	}
	if err != nil {
		s.mu.Lock()
		s.leading, s.paused = false, s.state.Inconsistent
		s.moved.Broadcast()
		s.mu.Unlock()
		return cluster.Position{}, fmt.Errorf("promotion to epoch %d: %w", epoch, err)
	}
	return s.c.Journal.Last(), nil
}

func (s *Stream) ready(epoch cluster.Epoch) error {
	var top replication.FileID
	for _, v := range s.c.Volumes {
		if err := v.Tree.PurgeLimbo(); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
		top = max(top, v.Tree.MaxID())
	}
	s.mu.Lock()
	gen, last, next := s.act.Facts().Gen, s.c.Journal.Last().Seq, s.state.NextID
	s.mu.Unlock()
	const step = 1 << 32
	base := (max(top, next)/step + 1) * step
	for _, v := range s.c.Volumes {
		v.Tree.SetIDBase(base)
	}
	err := s.store(func(st *journal.State) {
		st.Epoch, st.Gen, st.NextID, st.Clean = epoch, gen, base, false
		st.History = st.History.Add(cluster.Position{Epoch: epoch, Gen: gen, Seq: last + 1})
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.act.Facts()
	if s.failed != nil || f.Grant > epoch || f.Holder != s.c.Self {
		s.act.Fence("another epoch was granted meanwhile")
		return errors.Join(errDeposed, s.failed)
	}
	s.last, s.written = last, last
	s.applied.reset(last)
	s.epoch, s.gen = epoch, gen
	s.act.Durable(s.c.Journal.Durable())
	s.perform(s.act.Lead(last))
	s.mark()
	if f.Epoch != epoch || f.Gen != gen { // it went on while the state was stored
		s.turn(f.Epoch, f.Gen)
	}
	s.kickFlusher()
	s.facts.Broadcast()
	s.changed()
	return nil
}

// turn lets the next record carry another epoch and generation, once they are durable. mu is held.
func (s *Stream) turn(epoch cluster.Epoch, gen cluster.Generation) {
	if s.failed != nil || !s.act.Leads() {
		return
	}
	s.turning = true
	s.epoch, s.gen = epoch, gen
	s.mark()
	first := s.last
	s.chore(func() {
		if s.store(func(st *journal.State) {
			st.Epoch, st.Gen = epoch, gen
			st.History = st.History.Add(cluster.Position{Epoch: epoch, Gen: gen, Seq: first})
		}) != nil {
			return
		}
		s.mu.Lock()
		if s.epoch == epoch && s.gen == gen {
			s.turning = false
			for _, f := range s.followers {
				f.more.Broadcast()
			}
		}
		s.settle()
		s.mu.Unlock()
		s.kickFlusher()
	})
}

// mark appends the record that begins an epoch or generation. mu is held.
func (s *Stream) mark() {
	seq, err := s.append(&replication.Op{Kind: replication.Mark, Volume: 1})
	if err == nil {
		s.applied.done(seq)
	}
}

// Drain holds new operations back and returns when all others are done and accepted by everybody that is needed; how far it came. Undrain lets go.
func (s *Stream) Drain(ctx context.Context) (cluster.Position, error) {
	stop := context.AfterFunc(ctx, func() { s.mu.Lock(); s.quiet.Broadcast(); s.mu.Unlock() })
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = true
	for s.failed == nil && ctx.Err() == nil && (s.applied.low < s.last || s.act.MayAck(replica.Sync) < s.last) {
		s.quiet.Wait()
	}
	return cluster.Position{Epoch: s.epoch, Gen: s.gen, Seq: s.last}, errors.Join(s.failed, ctx.Err())
}

// Undrain is a move that does not take place.
func (s *Stream) Undrain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = false
	s.space.Broadcast()
}

// appliedPosition is up to where everything is in the trees.
func (s *Stream) appliedPosition() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.act.Leads() || s.leading && s.applied.low > 0 {
		return min(s.applied.low, s.written)
	}
	return s.redone
}
