package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/stream/replica"
)

const feedChunk = 512 << 10

// follower is the active's side of a connection.
type follower struct {
	*wire
	run     replica.Run
	session uint64
	plan    replica.Plan
	fork    uint64
	why     string

	// Guarded by Stream.mu.
	more               sync.Cond
	goOn               bool // the core lets the plan begin
	streaming          bool
	parked             bool // its feeder waits: the flusher may write to it
	busy               bool // the flusher is writing to it
	ended              bool
	sent               uint64
	syncWant, syncSent uint64
	bytesSent          uint64
	consumed           uint64
	applied            uint64
	mux                *channel
	again              int // further walks asked for
}

// follower finds the connection of a member. mu is held.
func (s *Stream) follower(m cluster.MemberNo) *follower {
	for i := len(s.followers) - 1; i >= 0; i-- {
		if s.followers[i].run.Member == m {
			return s.followers[i]
		}
	}
	return nil
}

func (s *Stream) bySession(id uint64) *follower {
	for _, f := range s.followers {
		if f.session == id {
			return f
		}
	}
	return nil
}

// flushed is the last record that was taken out of the buffer. mu is held.
func (s *Stream) flushed() uint64 {
	if len(s.buf) > frameHead {
		return s.bufFirst - 1
	}
	return s.last
}

// direct says that the flusher may write to f: it has everything before. mu is held.
func (s *Stream) direct(f *follower) bool {
	return f.streaming && f.parked && !f.busy && f.sent == s.flushed()
}

// syncsWait says whether the flusher has a Sync to send although no record waits. mu is held.
func (s *Stream) syncsWait() bool {
	for _, f := range s.followers {
		if f.syncWant > f.syncSent && s.direct(f) {
			return true
		}
	}
	return false
}

// claim takes the followers to which the flusher writes n bytes of records up to last. mu is held. syncTo is not 0 if a Sync goes with them.
func (s *Stream) claim(first uint64, n int, last uint64) (direct []*follower, syncTo uint64) {
	flushed := last
	if n > 0 {
		flushed = first - 1
	}
	for _, f := range s.followers {
		if !f.streaming || !f.parked || f.busy || f.sent != flushed || n > 0 && f.bytesSent-f.consumed+uint64(n) > s.directWindow && f.bytesSent != f.consumed {
			continue
		}
		if n == 0 && f.syncWant <= f.syncSent {
			continue
		}
		f.busy = true
		f.bytesSent += uint64(n)
		if f.syncWant > f.syncSent {
			f.syncSent, syncTo = last, last
		}
		direct = append(direct, f)
	}
	return direct, syncTo
}

// lead is a session of the active.
func (s *Stream) lead(ctx context.Context, w *wire, mine, peer *hello) error {
	f := &follower{wire: w, run: peer.Run, applied: peer.Applied}
	f.more.L = &s.mu
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	if !s.act.Leads() || s.epoch != mine.Epoch {
		s.mu.Unlock()
		return errDeposed
	}
	s.sessions++
	f.session = s.sessions
	f.plan, f.fork = replica.Compare(s.state.History, s.last, s.c.Journal.First(), peer.History, peer.Last, peer.Applied, peer.Dirty)
	if f.plan == replica.PlanResync && s.c.Resync == nil {
		s.mu.Unlock()
		w.refuse(refusal{Why: "its copy needs a resync, which is not configured"})
		return errors.New("its copy needs a resync, which is not configured")
	}
	now := s.c.Now()
	s.followers = append(s.followers, f)
	s.perform(s.act.Connected(now, f.run, f.session))
	s.perform(s.act.Compared(now, f.run.Member, f.session, f.plan))
	s.mu.Unlock()
	s.changed()
	s.c.Log.Info("a copy follows", "member", f.run.Member, "its_last", peer.Last, "fork", f.fork, "plan", f.plan)

	var wg sync.WaitGroup
	wg.Go(func() { s.beats(ctx, w) })
	wg.Go(func() {
		if err := s.feed(ctx, f); err != nil {
			s.mu.Lock()
			if f.why == "" {
				f.why = err.Error()
			}
			s.mu.Unlock()
			w.conn.Close()
		}
	})
	err := s.hear(f)
	cancel()
	w.conn.Close()
	s.mu.Lock()
	f.ended = true
	if f.mux != nil {
		f.mux.close(io.ErrUnexpectedEOF)
	}
	f.more.Broadcast()
	for f.busy {
		f.more.Wait()
	}
	s.followers = slices.DeleteFunc(s.followers, func(x *follower) bool { return x == f })
	s.perform(s.act.Lost(s.c.Now(), f.run.Member, f.session))
	s.settle()
	if f.why != "" {
		err = errors.New(f.why)
	}
	s.mu.Unlock()
	wg.Wait()
	return err
}

// hear reads what the follower says.
func (s *Stream) hear(f *follower) error {
	var b [ackSize]byte
	for {
		h, err := f.next()
		if err != nil {
			return err
		}
		switch h.typ {
		case frameAck:
			if _, err := io.ReadFull(f.r, b[:]); err != nil {
				return err
			}
			a, err := parseAck(h, b[:])
			if err != nil {
				return err
			}
			if err := s.acked(f, a); err != nil {
				return err
			}
		case frameBeat:
		case frameRefuse:
			return s.refusedBy(f.wire, h)
		case frameChunk, frameCredit, frameEnd:
			if err := f.mux.take(f.wire, h); err != nil {
				return err
			}
		case frameAgain:
			s.mu.Lock()
			f.again++
			f.more.Broadcast()
			s.mu.Unlock()
		default:
			return fmt.Errorf("%w: type %d from a follower", errFrame, h.typ)
		}
	}
}

func (s *Stream) acked(f *follower, a ack) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.accepted > f.sent && !f.busy || a.accepted > s.last || a.consumed > f.bytesSent || a.durable > a.accepted {
		return fmt.Errorf("%w: it acknowledges %d of %d operations that were sent", errFrame, a.accepted, f.sent)
	}
	full := f.bytesSent-f.consumed >= uint64(s.c.Window)/2
	f.consumed, f.applied = a.consumed, a.applied
	s.perform(s.act.Ack(s.lately(), f.run.Member, f.session, a.epoch, a.accepted, a.durable, a.whole))
	s.settle()
	if full && f.parked {
		f.more.Broadcast()
	}
	return nil
}

// feed sends what the flusher does not: the start, records from the journal, and what a resync needs.
func (s *Stream) feed(ctx context.Context, f *follower) error {
	s.mu.Lock()
	for !f.goOn && !f.ended {
		f.more.Wait()
	}
	if f.ended {
		s.mu.Unlock()
		return nil
	}
	st := start{Plan: f.plan, Fork: s.state.History.Last(f.fork)}
	if f.plan == replica.PlanResync {
		st = s.resyncFrom()
		st.Common = f.fork
		f.mux = newChannel(f.wire)
	}
	epoch, gen := s.epoch, s.gen
	f.sent = st.Fork.Seq
	s.mu.Unlock()
	if err := s.sendStart(f, epoch, gen, st); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		if f.mux != nil {
			f.mux.close(io.ErrUnexpectedEOF)
		}
	}()
	if f.plan == replica.PlanResync {
		wg.Go(func() {
			if err := s.serve(ctx, f); err != nil {
				s.c.Log.Warn("the resync of a copy has ended early", "member", f.run.Member, "why", err)
				f.conn.Close()
			}
		})
	}
	s.mu.Lock()
	f.streaming = true
	f.syncWant = max(f.syncWant, s.act.Outstanding())
	s.mu.Unlock()
	return s.stream(f)
}

// resyncFrom says where a resync begins: everything up to there is in the trees. mu is held.
func (s *Stream) resyncFrom() start {
	at := min(s.applied.low, s.written)
	h := s.state.History.Cut(at)
	return start{Plan: replica.PlanResync, Fork: h.Last(at), History: h}
}

func (s *Stream) sendStart(f *follower, epoch cluster.Epoch, gen cluster.Generation, st start) error {
	b, err := control(frameStart, epoch, gen, st)
	if err != nil {
		return err
	}
	return f.write(b)
}

// serve is the source's part of a resync: walks until the follower misses nothing.
func (s *Stream) serve(ctx context.Context, f *follower) error {
	for {
		if err := s.c.Resync.Serve(ctx, f.run.Member, f.mux); err != nil {
			return err
		}
		s.mu.Lock()
		end := s.written // everything that the walk may have seen was journalled before
		s.mu.Unlock()
		if err := f.frame(head{typ: frameEnd, seq: end}); err != nil {
			return err
		}
		s.mu.Lock()
		for f.again == 0 && !f.ended {
			f.more.Wait()
		}
		if f.ended {
			s.mu.Unlock()
			return nil
		}
		f.again--
		st := s.resyncFrom()
		st.Again = true
		epoch, gen := s.epoch, s.gen
		f.mux.rewind()
		s.mu.Unlock()
		if err := s.sendStart(f, epoch, gen, st); err != nil {
			return err
		}
	}
}

// stream sends from the journal whatever the flusher has not sent.
func (s *Stream) stream(f *follower) error {
	var r *journal.Reader
	defer func() {
		if r != nil {
			r.Close()
		}
	}()
	b := make([]byte, frameHead, frameHead+feedChunk)
	var at uint64 // the next record of r
	for {
		s.mu.Lock()
		for !f.ended && (f.busy || s.turning || f.sent >= s.written || f.bytesSent-f.consumed >= uint64(s.c.Window)) && !s.ownSync(f) {
			f.parked = true
			f.more.Wait()
		}
		f.parked = false
		if f.ended {
			s.mu.Unlock()
			return nil
		}
		from, epoch, gen := f.sent+1, s.epoch, s.gen
		have := f.sent < s.written
		s.mu.Unlock()

		n := 0
		if have {
			if r == nil || at != from {
				if r != nil {
					r.Close()
				}
				var err error
				if r, err = s.c.Journal.Read(from); err != nil {
					return fmt.Errorf("the journal no longer reaches back to operation %d: %w", from, err)
				}
			}
			got, err := r.Next(b[frameHead:frameHead])
			if err != nil {
				return err
			}
			n = len(got)
			if at = lastOf(got) + 1; at == 1 {
				return errFrame
			}
			if n > feedChunk {
				b = make([]byte, frameHead, frameHead+n)
			}
			b = append(b[:frameHead], got...)
			head{frameData, n, epoch, gen, from}.put(b)
		}
		s.mu.Lock()
		if n > 0 {
			f.sent = at - 1
			f.bytesSent += uint64(n)
		}
		frame := b[frameHead : frameHead+n]
		if n > 0 {
			frame = b
		}
		if f.syncWant > f.syncSent && f.sent >= min(f.syncWant, s.written) {
			f.syncSent = f.sent
			var h [frameHead]byte
			head{frameSync, 0, epoch, gen, f.sent}.put(h[:])
			frame = append(frame[:len(frame):len(frame)], h[:]...)
		}
		s.mu.Unlock()
		if err := f.write(frame); err != nil {
			return err
		}
	}
}

// ownSync says that the feeder itself has a Sync to send: the flusher was not there when it was asked for. mu is held.
func (s *Stream) ownSync(f *follower) bool {
	return f.syncWant > f.syncSent && f.sent >= min(f.syncWant, s.flushed()) && !f.busy && !s.turning
}

// lastOf is the sequence of the last of these records; 0 if they are none.
func lastOf(b []byte) (seq uint64) {
	for len(b) > 0 {
		h, err := replication.ParseHead(b)
		if err != nil || h.Len > len(b) {
			return 0
		}
		seq, b = h.Pos.Seq, b[h.Len:]
	}
	return seq
}
