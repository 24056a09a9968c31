package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/stream/replica"
)

// source is the standby's side of a connection.
type source struct {
	*wire
	run  replica.Run
	full bool // a resync may trust nothing of this copy

	// Guarded by Stream.mu.
	begun     bool
	ended     bool
	epoch     cluster.Epoch
	gen       cluster.Generation
	accepted  uint64
	durable   uint64
	consumed  uint64
	whole     bool
	resyncing bool
	mux       *channel
	syncTo    uint64
	syncs     sync.Cond
	again     chan start
}

// errLater ends a session that may be tried again soon.
type errRefused struct {
	why   string
	later bool
}

func (e errRefused) Error() string { return e.why }

// followSource is a session of the standby.
func (s *Stream) followSource(ctx context.Context, w *wire, peer *hello) error {
	src := &source{wire: w, run: peer.Run, again: make(chan start, 1)}
	src.syncs.L = &s.mu
	s.mu.Lock()
	if old := s.source; old != nil {
		old.conn.Close() // the source has made a new connection: the old one is dead
	}
	for s.source != nil && s.failed == nil && !s.leading {
		s.facts.Wait()
	}
	if s.failed != nil || s.leading || s.applyError != nil {
		why := errors.Join(s.failed, s.applyError)
		epoch := s.stb.Epoch()
		s.mu.Unlock()
		w.refuse(refusal{Epoch: epoch, Why: fmt.Sprintf("this copy takes nothing now: %v", why), Later: true})
		return errDeposed
	}
	s.source = src
	src.full = s.c.Dirty || s.state.Inconsistent
	s.mu.Unlock()

	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.beats(ctx, w) })
	wg.Go(func() { s.runSyncs(src) })
	err := s.follow(ctx, src, &wg)
	var no errRefused
	if errors.As(err, &no) {
		s.mu.Lock()
		epoch := s.stb.Epoch()
		s.mu.Unlock()
		w.refuse(refusal{Epoch: epoch, Why: no.why, Later: no.later})
	}
	cancel()
	w.conn.Close()
	s.mu.Lock()
	src.ended = true
	src.syncs.Broadcast()
	if src.mux != nil {
		src.mux.close(io.ErrUnexpectedEOF)
	}
	close(src.again)
	s.mu.Unlock()
	wg.Wait()
	s.mu.Lock()
	s.source = nil
	s.stb.End()
	s.facts.Broadcast()
	s.mu.Unlock()
	return err
}

// follow reads the source's frames.
func (s *Stream) follow(ctx context.Context, src *source, wg *sync.WaitGroup) error {
	b := make([]byte, 64<<10)
	for {
		h, err := src.next()
		if err != nil {
			return err
		}
		switch h.typ {
		case frameData:
			if cap(b) < h.n {
				b = make([]byte, h.n)
			}
			b = b[:h.n]
			if _, err := io.ReadFull(src.r, b); err != nil {
				return err
			}
			err = s.take(src, h, b)
		case frameSync:
			s.mu.Lock()
			src.syncTo = max(src.syncTo, min(h.seq, src.accepted))
			src.syncs.Signal()
			s.mu.Unlock()
		case frameBeat:
		case frameStart:
			var st start
			if err := src.control(h, &st); err != nil {
				return err
			}
			err = s.begin(ctx, src, h, st, wg)
		case frameChunk, frameCredit, frameEnd:
			err = src.mux.take(src.wire, h)
		case frameRefuse:
			return s.refusedBy(src.wire, h)
		default:
			err = fmt.Errorf("%w: type %d from a source", errFrame, h.typ)
		}
		if err != nil {
			return err
		}
	}
}

// judged asks the core until it says something else than Later, or time is up. mu is held.
func (s *Stream) judged(ask func() (replica.Verdict, string)) error {
	timer := time.AfterFunc(waitForFacts, func() { s.mu.Lock(); s.facts.Broadcast(); s.mu.Unlock() })
	defer timer.Stop()
	until := s.c.Now().Add(waitForFacts)
	for {
		if s.failed != nil || s.leading {
			return errDeposed
		}
		v, why := ask()
		switch {
		case v == replica.Accept:
			return nil
		case v == replica.Later && s.c.Now() < until:
			s.facts.Wait()
		default:
			return errRefused{why, v != replica.Refuse}
		}
	}
}

// begin takes the source's word on how this copy goes on.
func (s *Stream) begin(ctx context.Context, src *source, h head, st start, wg *sync.WaitGroup) error {
	if st.Again {
		if !src.resyncing {
			return fmt.Errorf("%w: another walk, and there was none", errFrame)
		}
		select {
		case src.again <- st:
			return nil
		default:
			return fmt.Errorf("%w: two walks at once", errFrame)
		}
	}
	if src.begun {
		return fmt.Errorf("%w: a session begins once", errFrame)
	}
	s.mu.Lock()
	err := s.judged(func() (replica.Verdict, string) { return s.stb.Begin(src.run, h.epoch) })
	last, inconsistent := s.c.Journal.Last(), s.state.Inconsistent
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if st.Plan != replica.PlanResync && inconsistent || st.Plan == replica.PlanTail && st.Fork.Seq != last.Seq || st.Plan == replica.PlanRewind && st.Fork.Seq > last.Seq {
		return fmt.Errorf("%w: plan %v at %d for a copy that ends at %d", errFrame, st.Plan, st.Fork.Seq, last.Seq)
	}
	if err := s.store(func(x *journal.State) { x.Epoch, x.Clean = max(x.Epoch, h.epoch), false }); err != nil {
		return err
	}
	switch st.Plan {
	case replica.PlanTail:
	case replica.PlanRewind:
		err = s.rewind(st.Fork.Seq, last.Seq)
	case replica.PlanResync:
		err = s.beginResync(st, last.Seq)
	default:
		err = fmt.Errorf("%w: plan %d", errFrame, st.Plan)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	at := s.c.Journal.Last().Seq
	s.stb.Stored(h.epoch)
	s.stb.Based(at)
	src.begun, src.epoch, src.gen, src.accepted, src.durable = true, h.epoch, h.gen, at, min(at, s.c.Journal.Durable())
	src.whole = st.Plan != replica.PlanResync
	if !src.whole {
		src.resyncing = true
		src.mux = newChannel(src.wire)
		wg.Go(func() {
			if err := s.resync(ctx, src); err != nil {
				s.c.Log.Warn("the resync of this copy has ended early", "why", err)
				src.conn.Close()
			}
		})
	}
	s.moved.Broadcast()
	s.mu.Unlock()
	s.changed()
	return s.ack(src)
}

// take accepts a frame of records.
func (s *Stream) take(src *source, h head, b []byte) error {
	last, turned, err := records(b, h.seq, len(s.c.Volumes), s.c.Journal.Last())
	if err != nil {
		return err
	}
	if last.Epoch > h.epoch {
		return fmt.Errorf("%w: a record of epoch %d in a frame of epoch %d", errFrame, last.Epoch, h.epoch)
	}
	s.mu.Lock()
	var store bool
	err = s.judged(func() (v replica.Verdict, why string) {
		if !src.begun {
			return replica.Gap, "records before the start"
		}
		v, store, why = s.stb.Frame(h.epoch, h.gen, h.seq, last.Seq)
		return v, why
	})
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if store || turned {
		if err := s.store(func(x *journal.State) {
			x.Epoch, x.Gen = max(x.Epoch, h.epoch), h.gen
			x.History = turnsOf(x.History, b)
		}); err != nil {
			return err
		}
	}
	first, err := replication.ParseHead(b)
	if err != nil {
		return err
	}
	if err := s.journal(b, first.Pos.Seq); err != nil {
		s.fail(fmt.Errorf("the journal takes nothing more: %w", err))
		return err
	}
	s.mu.Lock()
	s.stb.Stored(h.epoch)
	s.stb.Took(last.Seq)
	src.epoch, src.gen, src.accepted = h.epoch, h.gen, last.Seq
	src.consumed += uint64(len(b))
	s.stats.bytes += uint64(len(b))
	s.mu.Unlock()
	if src.r.Buffered() < frameHead { // else more is here: one acknowledgement for all
		err = s.ack(src)
	}
	s.moved.Signal() // the applier comes after the answer
	return err
}

// ack says how far this copy is.
func (s *Stream) ack(src *source) error {
	var b [frameHead + ackSize]byte
	s.mu.Lock()
	a := ack{src.epoch, src.gen, src.accepted, src.durable, s.redone, src.consumed, src.whole}
	s.mu.Unlock()
	return src.write(a.put(&b))
}

// runSyncs makes the journal durable when the source asks for it.
func (s *Stream) runSyncs(src *source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for !src.ended && src.syncTo <= src.durable {
			src.syncs.Wait()
		}
		if src.ended {
			return
		}
		upto := src.accepted
		s.mu.Unlock()
		err := s.c.Journal.Sync()
		if err != nil {
			s.fail(fmt.Errorf("the journal cannot be made durable: %w", err))
			s.mu.Lock()
			return
		}
		s.mu.Lock()
		src.durable = max(src.durable, upto)
		s.mu.Unlock()
		s.ack(src)
		s.mu.Lock()
	}
}

// pause keeps the applier from the trees. mu is held.
func (s *Stream) pause() {
	s.paused = true
	for s.applying {
		s.facts.Wait()
	}
}

// rewind takes back what nobody else has and what was not applied.
func (s *Stream) rewind(fork, last uint64) error {
	s.mu.Lock()
	s.pause()
	may := s.may
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.paused = s.state.Inconsistent
		s.moved.Broadcast()
		s.mu.Unlock()
	}()
	if may > fork {
		return errRefused{fmt.Sprintf("operations up to %d may have been applied: this copy needs a resync", may), true}
	}
	if err := s.c.SetAside(fork+1, last); err != nil {
		return fmt.Errorf("set aside operations %d to %d, which nobody else has: %w", fork+1, last, err)
	}
	s.ckmu.Lock()
	defer s.ckmu.Unlock()
	if err := s.c.Journal.Cut(fork); err != nil {
		s.fail(err)
		return err
	}
	return s.store(func(x *journal.State) { x.History = x.History.Cut(fork) })
}

// beginResync marks the copy inconsistent, sets aside what nobody else has, and begins the journal anew.
func (s *Stream) beginResync(st start, last uint64) error {
	if s.c.Resync == nil {
		return errRefused{"this copy needs a resync, which is not configured", true}
	}
	s.mu.Lock()
	s.pause()
	fresh := len(s.state.History) == 0
	s.mu.Unlock()
	if st.Common < last && !fresh {
		if err := s.c.SetAside(st.Common+1, last); err != nil {
			return fmt.Errorf("set aside operations %d to %d, which nobody else has: %w", st.Common+1, last, err)
		}
	}
	if err := s.store(func(x *journal.State) { x.Inconsistent, x.Why = true, "a resync has begun" }); err != nil {
		return err
	}
	for _, v := range s.c.Volumes {
		v.Tree.Unsettle()
	}
	s.ckmu.Lock()
	defer s.ckmu.Unlock()
	if err := s.c.Journal.Reset(st.Fork); err != nil {
		s.fail(err)
		return err
	}
	if err := s.store(func(x *journal.State) { x.History = st.History }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled = false
	s.redoFrom(st.Fork.Seq)
	return nil
}

// redoFrom makes the applier begin again after at; it notes what is missing. mu is held.
func (s *Stream) redoFrom(at uint64) {
	s.redone, s.redoTo, s.may = at, ^uint64(0), max(s.may, at)
	clear(s.missing)
}

// resync is the follower's part: fetch, redo, and again while the redo misses something.
func (s *Stream) resync(ctx context.Context, src *source) error {
	for full := src.full; ; full = false { // the first walk has compared everything, and the redo gives each inode the time of its last operation
		if err := s.c.Resync.Fetch(ctx, src.run.Member, src.mux, full); err != nil {
			return err
		}
		end, err := src.mux.awaitEnd()
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.paused = false
		s.moved.Broadcast()
		for !src.ended && s.failed == nil && s.applyError == nil && s.redone < end {
			s.facts.Wait()
		}
		s.pause()
		err = errors.Join(s.failed, s.applyError)
		ended, missing, at := src.ended, len(s.missing), s.redone
		s.mu.Unlock()
		switch {
		case err != nil:
			return err
		case ended:
			return io.ErrUnexpectedEOF
		case missing == 0:
			return s.consistent(src, at)
		}
		s.c.Log.Info("the walk has missed inodes that were moved meanwhile", "missing", missing)
		src.mux.rewind()
		if err := src.frame(head{typ: frameAgain}); err != nil {
			return err
		}
		st, ok := <-src.again
		if !ok {
			return io.ErrUnexpectedEOF
		}
		s.mu.Lock()
		s.redoFrom(st.Fork.Seq)
		s.mu.Unlock()
	}
}

// consistent ends a resync, durably. The applier is paused.
func (s *Stream) consistent(src *source, at uint64) error {
	for _, v := range s.c.Volumes {
		if err := v.Tree.Settle(); err != nil {
			return err
		}
		if err := v.Tree.Sync(); err != nil {
			s.fail(err)
			return err
		}
	}
	if err := s.c.Journal.Checkpoint(at); err != nil {
		s.fail(err)
		return err
	}
	if err := s.store(func(x *journal.State) { x.Inconsistent, x.Why = false, "" }); err != nil {
		return err
	}
	s.mu.Lock()
	s.c.Dirty = false
	s.paused, s.settled, s.redoTo = false, true, at
	src.whole, src.resyncing = true, false
	s.moved.Broadcast()
	s.mu.Unlock()
	s.changed()
	return s.ack(src)
}
