package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/stream/replica"
)

// Log is the log of one volume: what its file system calls. It is the same log for all volumes of the service, in the volume's mode.
type Log struct {
	s      *Stream
	volume uint8
	mode   replica.Mode
}

// Log returns the log of a volume, from 1.
func (s *Stream) Log(volume uint8) *Log {
	return &Log{s, volume, s.c.Volumes[volume-1].Mode}
}

// Submit gives op its position and takes its record. An error: nothing happened.
func (l *Log) Submit(op *replication.Op) (uint64, error) {
	op.Volume = l.volume
	return l.s.submit(op)
}

// Wait returns nil when the operation may be applied. EIO: it may never be applied or acknowledged.
func (l *Log) Wait(seq uint64) error {
	k := waitAck
	if l.mode != replica.Sync {
		k = waitWritten
	}
	return l.s.wait(seq, k, &l.s.stats.acks)
}

// Done is told that an operation for which Wait returned nil was applied, or why not.
func (l *Log) Done(seq uint64, err error) { l.s.done(seq, err) }

// Sync returns nil when everything submitted before the call is as durable as the mode says.
func (l *Log) Sync() error { return l.s.sync(l.mode) }

type waitKind uint8

const (
	waitWritten waitKind = iota // in the own journal
	waitAck                     // accepted by everybody that is needed
	waitSync                    // durable here and at everybody that is needed
	waitDurable                 // durable here
	waitKinds
)

type waiter struct {
	seq  uint64
	kind waitKind
	ch   chan error
}

var waiterPool = sync.Pool{New: func() any { return &waiter{ch: make(chan error, 1)} }}

// append encodes op as the next record into the buffer. mu is held.
func (s *Stream) append(op *replication.Op) (uint64, error) {
	b, err := replication.AppendRecord(s.buf, cluster.Position{Epoch: s.epoch, Gen: s.gen, Seq: s.last + 1}, op)
	if err != nil {
		return 0, err
	}
	if len(s.buf) == frameHead {
		s.bufFirst = s.last + 1
	}
	s.buf = b
	s.last++
	s.act.Submitted(s.last)
	s.applied.add(s.last)
	return s.last, nil
}

func (s *Stream) submit(op *replication.Op) (uint64, error) {
	s.mu.Lock()
	n := replication.EncodedLen(op)
	for s.failed == nil && (s.held || len(s.buf) > frameHead && len(s.buf)+n > s.c.Buffer) {
		s.space.Wait()
	}
	switch {
	case s.failed != nil:
		defer s.mu.Unlock()
		return 0, s.failed
	case !s.act.Leads():
		s.mu.Unlock()
		return 0, errStandby
	}
	seq, err := s.append(op)
	if err != nil {
		s.mu.Unlock()
		return 0, fmt.Errorf("%v: %w", op.Kind, err)
	}
	s.stats.bytes += uint64(n)
	if s.flushing || s.turning {
		s.mu.Unlock()
		return seq, nil
	}
	s.flushing = true
	s.flush(roundsOfFlush)
	return seq, nil
}

// flush writes what waits until nothing does. mu is held and flushing is set; mu is let go at the end.
func (s *Stream) flush(rounds int) {
	for ; ; rounds-- {
		syncs := s.syncsWait()
		if s.failed != nil || s.turning || len(s.buf) == frameHead && !syncs {
			s.flushing = false
			s.mu.Unlock()
			return
		}
		if rounds == 0 {
			s.mu.Unlock()
			s.handOver <- struct{}{} // flushing stays set: it is the flusher's now
			return
		}
		s.flushOnce()
	}
}

// flushOnce takes everything that waits. mu is held, and let go while it is written.
func (s *Stream) flushOnce() {
	b, first := s.buf, s.bufFirst
	epoch, gen, last := s.epoch, s.gen, s.last
	n := len(b) - frameHead
	s.buf, s.spare = s.spare[:frameHead], nil
	direct, syncTo := s.claim(first, n, last)
	s.space.Broadcast()
	s.mu.Unlock()

	frame := b
	if n > 0 {
		head{frameData, n, epoch, gen, first}.put(b)
	} else {
		frame = b[frameHead:]
	}
	if syncTo > 0 {
		var h [frameHead]byte
		head{frameSync, 0, epoch, gen, syncTo}.put(h[:])
		frame = append(frame, h[:]...)
	}
	for _, f := range direct {
		f.writeWithin(frame, s.patience)
	}
	var err error
	if n > 0 {
		err = s.journal(b[frameHead:frameHead+n], first)
	}

	s.mu.Lock()
	for _, f := range direct {
		f.busy = false
		f.sent = last
		if f.ended {
			f.more.Broadcast()
		}
	}
	if cap(b) <= 2*(s.c.Buffer+frameHead) {
		s.spare = b
	} else {
		s.spare = make([]byte, frameHead, s.c.Buffer+frameHead) // a single large record had grown it
	}
	if err == nil && n > 0 {
		s.written = last
		s.act.Written(last)
		for _, f := range s.followers {
			if f.parked && f.sent < last {
				f.more.Broadcast()
			}
		}
		s.settle()
	}
	if err != nil {
		s.mu.Unlock()
		s.fail(err)
		s.mu.Lock()
	}
}

// journal appends; a full journal is emptied by a checkpoint first.
func (s *Stream) journal(b []byte, first uint64) error {
	h, err := replication.ParseHead(b)
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		err := s.c.Journal.Append(h.Pos, b)
		if !errors.Is(err, journal.ErrFull) || try == 100 {
			return err
		}
		if err := s.checkpoint(); err != nil {
			return err
		}
		select {
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-time.After(20 * time.Millisecond): // the applier, or the applications, come on meanwhile
		}
	}
}

// kickFlusher has waiting syncs, and what waits behind a turn, flushed. mu may be held.
func (s *Stream) kickFlusher() {
	s.chore(func() {
		s.mu.Lock()
		if s.flushing {
			s.mu.Unlock()
			return
		}
		s.flushing = true
		s.flush(roundsOfFlush)
	})
}

// runFlusher goes on for writers that have flushed long enough for others.
func (s *Stream) runFlusher(ctx context.Context) {
	for {
		select {
		case <-s.handOver:
			s.mu.Lock()
			s.flush(1 << 30)
		case <-ctx.Done():
			return
		}
	}
}

// threshold is up to where waiters of a kind may go on. mu is held.
func (s *Stream) threshold(k waitKind) uint64 {
	switch k {
	case waitWritten:
		return s.written
	case waitAck:
		return s.act.MayAck(replica.Sync)
	case waitSync:
		return s.act.MaySync(replica.Sync)
	}
	return s.act.MaySync(replica.Async)
}

// settle wakes everybody whose wait is over. mu is held.
func (s *Stream) settle() {
	var upto [waitKinds]uint64
	for k := range upto {
		upto[k] = s.threshold(waitKind(k))
	}
	if len(s.waiters) > 0 && !s.syncing && s.failed == nil && s.act.OnOwnDisk() && upto[waitWritten] > upto[waitAck] {
		s.syncing = true // those who began to wait when a standby was needed
		s.chore(func() {
			s.syncOwn()
			s.mu.Lock()
			s.syncing = false
			s.settle()
			s.mu.Unlock()
		})
	}
	keep := s.waiters[:0]
	for _, w := range s.waiters {
		switch {
		case s.failed != nil:
			w.ch <- s.failed
		case w.seq <= upto[w.kind]:
			w.ch <- nil
		default:
			keep = append(keep, w)
		}
	}
	clear(s.waiters[len(keep):])
	s.waiters = keep
	if s.held {
		s.quiet.Broadcast()
	}
}

func (s *Stream) wait(seq uint64, kind waitKind, h *histogram) error {
	s.mu.Lock()
	switch {
	case s.failed != nil:
		defer s.mu.Unlock()
		return s.failed
	case seq <= s.threshold(kind):
		h.add(0)
		s.mu.Unlock()
		return nil
	}
	if kind == waitAck && s.act.OnOwnDisk() && !s.turning {
		s.mu.Unlock()
		if err := s.wait(seq, waitWritten, &s.stats.written); err != nil {
			return err
		}
		if err := s.syncOwn(); err != nil {
			return err
		}
		s.mu.Lock()
		if seq <= s.threshold(kind) {
			s.mu.Unlock()
			return nil
		}
	}
	w := waiterPool.Get().(*waiter)
	w.seq, w.kind = seq, kind
	s.waiters = append(s.waiters, w)
	s.mu.Unlock()
	began := time.Now()
	err := <-w.ch
	waiterPool.Put(w)
	took := time.Since(began)
	s.mu.Lock()
	h.add(took)
	s.mu.Unlock()
	return err
}

func (s *Stream) done(seq uint64, err error) {
	s.mu.Lock()
	if err != nil && s.failed == nil {
		s.mu.Unlock()
		s.fail(fmt.Errorf("operation %d was replicated, and this node's disk could not carry it out: %w", seq, err))
		return
	}
	if err == nil {
		s.applied.done(seq)
	}
	if s.held {
		s.quiet.Broadcast()
	}
	s.mu.Unlock()
}

// sync is a durability point: both disks at once.
func (s *Stream) sync(mode replica.Mode) error {
	s.mu.Lock()
	switch {
	case s.failed != nil:
		defer s.mu.Unlock()
		return s.failed
	case !s.act.Leads():
		s.mu.Unlock()
		return nil // nothing was submitted here
	}
	seq, kind := s.last, waitDurable
	if mode != replica.Async {
		kind = waitSync
		s.act.Wanted(seq)
		for _, f := range s.followers {
			if s.act.Needed(f.run.Member) && f.syncWant < seq {
				f.syncWant = seq
			}
		}
	}
	if seq <= s.threshold(kind) {
		s.mu.Unlock()
		return nil
	}
	if s.flushing || s.turning {
		s.mu.Unlock()
	} else {
		s.flushing = true
		s.flush(roundsOfFlush)
	}
	if err := s.wait(seq, waitWritten, &s.stats.written); err != nil {
		return err
	}
	if err := s.syncOwn(); err != nil {
		return err
	}
	return s.wait(seq, kind, &s.stats.syncs)
}

// syncOwn makes the own journal durable; calls that meet share one.
func (s *Stream) syncOwn() error {
	if err := s.c.Journal.Sync(); err != nil {
		s.fail(fmt.Errorf("the journal cannot be made durable: %w", err))
		return err
	}
	d := s.c.Journal.Durable()
	s.mu.Lock()
	s.act.Durable(d)
	s.settle()
	s.mu.Unlock()
	return nil
}

// window keeps up to where every operation is applied, in whatever order they are.
type window struct {
	low  uint64 // everything up to here is
	bits []bool // a ring: low+1+i at (at+i)%len
	at   int
	n    int
}

func (w *window) reset(last uint64) { *w = window{low: last} }

func (w *window) add(uint64) {
	if w.n == len(w.bits) {
		bigger := make([]bool, max(64, 2*len(w.bits)))
		for i := range w.n {
			bigger[i] = w.bits[(w.at+i)%len(w.bits)]
		}
		w.bits, w.at = bigger, 0
	}
	w.bits[(w.at+w.n)%len(w.bits)] = false
	w.n++
}

func (w *window) done(seq uint64) {
	i := int(seq - w.low - 1)
	if seq <= w.low || i >= w.n {
		return
	}
	w.bits[(w.at+i)%len(w.bits)] = true
	for w.n > 0 && w.bits[w.at] {
		w.at = (w.at + 1) % len(w.bits)
		w.n--
		w.low++
	}
}
