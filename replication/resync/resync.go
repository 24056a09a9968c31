// Package resync makes the tree of a follower equal to that of a running source (docs/replication.md, section 5), compares two trees without changing
// them (Verify), and keeps what a copy has that nobody else will have (SetAside).
//
// # Why the result is right although the source changes meanwhile
//
// A tree is a set of registers (package tree): directory entries, and the bytes and attributes of inodes. The source notes its position S0 and from there on
// streams every operation, which the follower journals and does not apply yet. Then this package brings each register of the follower to the value
// that it had on the source at some time at or after S0, each at a time of its own. After that the follower applies its journal from S0 on, and the argument of
// package tree does the rest.
//
// So what must be shown here is that no register keeps a value from before S0. Entries: every directory that is reached is compared whole.
// Inodes: an inode that moved from a directory not yet walked into one already walked is met by no listing. If the follower has it, it is
// among the ids that were not visited, and is asked for by its id; if the source has it, it is visited, and waits in limbo for the operation that gives it its place.
// If the follower lacks it, the redo says so (tree.Applied.Missing), and another Run asks for it by its id, after which the redo begins again at the same S0,
// until nothing is missing but what the source has no more (Result.Gone): file ids are never given twice.
// Inodes without a name that are open on the source are asked for at the end.
//
// # Bounds
//
// A follower keeps per run: a bit (in words of 64) for each id visited, 8 bytes for each directory found and not yet listed, 8 bytes for each name of the
// directories that are being listed, 40 bytes for each file whose content is yet to be compared, and Window bytes of requests under way. Every length
// read from the channel is checked before anything is allocated.
package resync

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

// FileID is the identity of an inode.
type FileID = replication.FileID

// Channel carries frames between the two sides, in order. Whoever multiplexes it gives each resync a pair of its own.
type Channel interface {
	Send(frame []byte) error // from several goroutines; the frame may be used again afterwards; it waits when the other side does not read
	Recv() ([]byte, error)   // the next frame, good until the next call
	Close() error            // Send and Recv of both sides return. After success the channel is left open
}

// MaxFrame bounds a frame in bytes.
const MaxFrame = 1 << 20

// SourceOptions are of the side that is copied from.
type SourceOptions struct {
	Volume   uint8
	Position func() uint64 // the last sequence submitted; Verify needs it
	Rate     int64         // bytes of content read per second; 0: as fast as Busy allows
	Busy     func() bool   // applications wait: the source makes way for them; nil: never
	Workers  int           // 0: 2

	part int // bytes in a part of a listing, for tests; 0: partMost
}

// TargetOptions are of the side that is changed.
type TargetOptions struct {
	Volume   uint8
	Full     bool     // compare all content; else files of equal id, size and mtime are taken for equal, which only a consistent copy allows
	Missing  []FileID // only these: inodes that a redo found missing, without those that an earlier run found gone
	Workers  int      // 0: 2
	Window   int64    // bytes under way; 0: 16 MiB
	Progress func(Progress)
}

// Progress is how far a resync is.
type Progress struct {
	Inodes, InodesAll int64 // visited; on the source, as of the beginning
	Bytes, BytesAll   int64 // of content compared; found to be compared so far
	Received          int64 // bytes of frames
	Written           int64 // bytes of content that differed
	Walked            bool  // the metadata is done: BytesAll is final
	Took              time.Duration
}

// inodeCost is what an inode counts for beside its content, in bytes.
const inodeCost = 16 << 10

// Left estimates the time to the end; 0: unknown.
func (p Progress) Left() time.Duration {
	all := p.InodesAll*inodeCost + p.BytesAll
	done := min(p.Inodes, p.InodesAll)*inodeCost + p.Bytes
	if done <= 0 || all <= done || p.Took < 100*time.Millisecond {
		return 0
	}
	return time.Duration(float64(p.Took) * float64(all-done) / float64(done))
}

// Percent is how much is done.
func (p Progress) Percent() int {
	all := p.InodesAll*inodeCost + p.BytesAll
	if all == 0 {
		return 0
	}
	return int(100 * (min(p.Inodes, p.InodesAll)*inodeCost + p.Bytes) / all)
}

// Result is what a resync did.
type Result struct {
	Progress
	Sent    int64    // bytes of frames
	Created int64    // inodes
	Placed  int64    // names given to inodes that were here
	Taken   int64    // names taken away
	Changed int64    // inodes whose attributes differed
	Files   int64    // whose content was compared
	ByID    int64    // inodes that no listing showed
	Gone    []FileID // of TargetOptions.Missing: the source has them no more, so that they are not missing
}

// Tree is what is needed of a tree.Tree.
type Tree = tree.Tree

// idSet is a set of file ids: dense ones, as a volume gives them, cost a few bits each, the worst case 24 bytes.
type idSet struct {
	m map[uint64]uint64
	n int64
}

func (s *idSet) has(id FileID) bool { return s.m[uint64(id)>>6]&(1<<(uint64(id)&63)) != 0 }

// add says whether the id was new.
func (s *idSet) add(id FileID) bool {
	if s.m == nil {
		s.m = map[uint64]uint64{}
	}
	w, bit := uint64(id)>>6, uint64(1)<<(uint64(id)&63)
	if s.m[w]&bit != 0 {
		return false
	}
	s.m[w] |= bit
	s.n++
	return true
}

func (s *idSet) drop(id FileID) {
	if s.has(id) {
		s.m[uint64(id)>>6] &^= 1 << (uint64(id) & 63)
		s.n--
	}
}

// pace holds the source back.
type pace struct {
	rate int64
	busy func() bool
	mu   sync.Mutex
	next time.Time
}

// busyMost bounds how long content of a MiB makes way for applications, so that a resync ends under any load.
const busyMost = 20 * time.Millisecond

func (p *pace) wait(ctx context.Context, bytes int) error {
	if p.rate > 0 {
		p.mu.Lock()
		now := time.Now()
		if p.next.Before(now) {
			p.next = now
		}
		at := p.next
		p.next = at.Add(time.Duration(float64(bytes) / float64(p.rate) * float64(time.Second)))
		p.mu.Unlock()
		return sleep(ctx, at.Sub(now))
	}
	if p.busy == nil {
		return nil
	}
	for most := busyMost * time.Duration(bytes) >> 20; most > 0 && p.busy(); most -= 2 * time.Millisecond {
		if err := sleep(ctx, min(most, 2*time.Millisecond)); err != nil {
			return err
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// link is one end of the channel: messages go out in batches, sent by a goroutine of its own.
type link struct {
	ch   Channel
	most int // waits to be sent before post waits
	mu   sync.Mutex
	more sync.Cond
	room sync.Cond
	buf  []byte
	err  error
	done bool

	sent, received atomic.Int64
}

func newLink(ch Channel, most int) *link {
	l := &link{ch: ch, most: most}
	l.more.L, l.room.L = &l.mu, &l.mu
	return l
}

// post takes a message.
func (l *link) post(m message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.buf) > l.most && l.err == nil {
		l.room.Wait()
	}
	if l.err != nil {
		return l.err
	}
	l.buf = m.append(l.buf)
	l.more.Signal()
	return nil
}

// fail ends the link for whoever posts.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	l.more.Broadcast()
	l.room.Broadcast()
}

// finish makes send return when everything posted is sent.
func (l *link) finish() {
	l.mu.Lock()
	l.done = true
	l.more.Broadcast()
	l.mu.Unlock()
}

// send sends what is posted until finish or fail.
func (l *link) send() error {
	var frame []byte
	for {
		l.mu.Lock()
		for len(l.buf) == 0 && l.err == nil && !l.done {
			l.more.Wait()
		}
		if l.err != nil || len(l.buf) == 0 {
			defer l.mu.Unlock()
			return l.err
		}
		out := l.buf
		l.buf = nil
		l.room.Broadcast()
		l.mu.Unlock()
		for len(out) > 0 {
			n := whole(out, MaxFrame-frameHead)
			frame = seal(frame[:0], out[:n])
			if err := l.ch.Send(frame); err != nil {
				err = fmt.Errorf("send to the other side of the resync: %w", err)
				l.fail(err)
				return err
			}
			l.sent.Add(int64(len(frame)))
			out = out[n:]
		}
	}
}

// endWith tells the other side why this one ends, if it listens, and closes the channel.
func endWith(ch Channel, err error) {
	m := message{kind: mFail, text: err.Error()}
	told := make(chan struct{})
	go func() { // ends with the channel at the latest
		_ = ch.Send(seal(nil, m.append(nil))) // the channel may be what failed
		close(told)
	}()
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-told:
	case <-t.C:
	}
	_ = ch.Close()
	<-told
}

// recv calls fn with each message until it says to stop.
func (l *link) recv(fn func(message) (stop bool, err error)) error {
	for {
		frame, err := l.ch.Recv()
		if err != nil {
			return fmt.Errorf("receive from the other side of the resync: %w", err)
		}
		l.received.Add(int64(len(frame)))
		body, err := unseal(frame)
		if err != nil {
			return err
		}
		for len(body) > 0 {
			var m message
			if m, body, err = parse(body); err != nil {
				return err
			}
			if m.kind == mFail {
				return fmt.Errorf("the other side of the resync: %w", errors.New(m.text))
			}
			if stop, err := fn(m); stop || err != nil {
				return err
			}
		}
	}
}
