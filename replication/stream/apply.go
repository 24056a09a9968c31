package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/tree"
)

const applyChunk = 256 << 10

// runApplier carries out on the standby's trees what its journal holds.
func (s *Stream) runApplier(ctx context.Context) {
	a := applier{s: s, buf: make([]byte, 0, applyChunk)}
	defer a.close()
	for {
		from, ok := a.next(ctx)
		if !ok {
			return
		}
		last, err := a.apply(from)
		s.mu.Lock()
		s.applying = false
		if last >= s.redone && err == nil {
			s.redone = last
		}
		settle := err == nil && !s.settled && s.redone >= s.redoTo && !s.state.Inconsistent
		s.mu.Unlock()
		if settle {
			err = a.settle()
		}
		if err != nil {
			a.failed(ctx, err)
		}
		s.mu.Lock()
		if err == nil {
			s.applyError = nil
		}
		s.facts.Broadcast()
		s.mu.Unlock()
	}
}

type applier struct {
	s   *Stream
	r   *journal.Reader
	at  uint64 // the next record of r
	buf []byte
}

func (a *applier) close() {
	if a.r != nil {
		a.r.Close()
		a.r = nil
	}
}

// next waits until there is something to apply, and takes the trees.
func (a *applier) next(ctx context.Context) (from uint64, ok bool) {
	s := a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for ctx.Err() == nil && (s.paused || s.act.Leads() || s.redone >= s.c.Journal.Last().Seq && (s.settled || s.redone < s.redoTo || s.state.Inconsistent)) {
		s.moved.Wait()
	}
	s.applying = ctx.Err() == nil // whoever waits for the applier does not wait for one that has ended
	return s.redone + 1, s.applying
}

// apply carries out a chunk of the journal from a sequence on.
func (a *applier) apply(from uint64) (last uint64, err error) {
	s := a.s
	if from > s.c.Journal.Last().Seq {
		return from - 1, nil
	}
	if a.r == nil || a.at != from {
		a.close()
		if a.r, err = s.c.Journal.Read(from); err != nil {
			return 0, err
		}
		a.at = from
	}
	b, err := a.r.Next(a.buf)
	if errors.Is(err, journal.ErrGone) {
		a.close()
		return from - 1, nil // what is beyond was cut, or the journal begun anew: read again from where the trees are
	}
	if err != nil {
		a.close()
		return 0, err
	}
	end := lastOf(b)
	s.mu.Lock()
	s.may = max(s.may, end)
	s.mu.Unlock()
	var op replication.Op
	for len(b) > 0 {
		h, err := replication.Parse(b, &op)
		if errors.Is(err, replication.ErrUnknown) && h.Skip {
			b, a.at = b[h.Len:], h.Pos.Seq+1
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("operation %d: %w", h.Pos.Seq, err)
		}
		if err := s.carryOut(&op); err != nil {
			a.close() // it is tried again from its chunk's beginning
			return 0, fmt.Errorf("operation %d (%v): %w", h.Pos.Seq, op.Kind, err)
		}
		b, a.at = b[h.Len:], h.Pos.Seq+1
	}
	return end, nil
}

func (s *Stream) carryOut(op *replication.Op) error {
	if int(op.Volume) > len(s.c.Volumes) {
		return fmt.Errorf("volume %d is not one of the service's", op.Volume)
	}
	if op.Kind == replication.Mark {
		return nil
	}
	r, err := s.c.Volumes[op.Volume-1].Tree.Apply(op)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.settled {
		return nil
	}
	s.noteMissing(op, r)
	return nil
}

// noteMissing counts the names of inodes that the redo after a resync has met and that are not here. One that loses its last is gone on the source too. mu is held.
func (s *Stream) noteMissing(op *replication.Op, r tree.Applied) {
	id := missingID{op.Volume, op.ID}
	switch op.Kind {
	case replication.Unlink, replication.Rmdir:
		if s.missing[id]--; s.missing[id] <= 0 || op.Kind == replication.Rmdir {
			delete(s.missing, id)
		}
		return
	case replication.Forget:
		delete(s.missing, id)
		return
	case replication.Rename:
		if before := (missingID{op.Volume, op.Before}); op.Before != 0 {
			if s.missing[before]--; s.missing[before] <= 0 {
				delete(s.missing, before)
			}
		}
	}
	if !r.Missing {
		return
	}
	lacks := missingID{op.Volume, r.Lacks}
	if op.Kind == replication.Link && lacks == id {
		s.missing[lacks]++
	}
	s.missing[lacks] = max(s.missing[lacks], 1)
}

// settle ends the redo after a start.
func (a *applier) settle() error {
	for _, v := range a.s.c.Volumes {
		if err := v.Tree.Settle(); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	a.s.mu.Lock()
	a.s.settled = true
	clear(a.s.missing)
	a.s.mu.Unlock()
	return nil
}

// failed keeps what could not be applied for a later try, or gives the copy up.
func (a *applier) failed(ctx context.Context, err error) {
	s := a.s
	if errors.Is(err, tree.ErrDiverged) {
		s.store(func(x *journal.State) { x.Inconsistent, x.Why = true, err.Error() })
	}
	s.mu.Lock()
	s.applyError = fmt.Errorf("this copy cannot be brought forward: %w", err)
	s.paused = s.paused || s.state.Inconsistent
	if s.source != nil {
		s.source.conn.Close()
	}
	if s.state.Inconsistent {
		s.applyError = nil // a resync helps
	}
	if f := s.c.Events.Failed; f != nil {
		s.tell(func() { f(err) })
	}
	s.facts.Broadcast()
	s.mu.Unlock()
	s.c.Log.Error("the standby's copy cannot be brought forward", "why", err)
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
}

// runCheckpoints makes the trees durable from time to time, so that a restart has little to redo and the journal can be released.
func (s *Stream) runCheckpoints(ctx context.Context) {
	t := time.NewTicker(s.c.Checkpoint)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if err := s.checkpoint(); err != nil && ctx.Err() == nil {
				s.c.Log.Error("no checkpoint", "why", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// checkpoint makes durable what is applied.
func (s *Stream) checkpoint() error {
	s.ckmu.Lock() // one at a time, and none while the journal is cut or begun anew
	defer s.ckmu.Unlock()
	s.mu.Lock()
	skip := s.state.Inconsistent
	s.mu.Unlock()
	pos := s.appliedPosition()
	applied := s.c.Journal.Applied()
	if skip || pos < applied {
		return nil
	}
	for _, v := range s.c.Volumes {
		if pos == applied {
			break // the same again, so that a full journal can let go of everything up to it
		}
		if err := v.Tree.Sync(); err != nil {
			s.fail(err)
			return err
		}
	}
	if err := s.c.Journal.Checkpoint(pos); err != nil {
		s.fail(err)
		return err
	}
	return s.c.Journal.Release(pos)
}
