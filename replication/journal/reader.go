package journal

import (
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/hanode/hanode/replication"
)

// cursor reads a segment through a window.
type cursor struct {
	s    *segment
	stop int64 // nothing is read from here on
	win  []byte
	buf  []byte
	at   int64 // offset of win
}

const windowSize = 256 << 10

// bytes returns up to n bytes at off; fewer only at the end.
func (c *cursor) bytes(off int64, n int) ([]byte, error) {
	if off < c.at || off+int64(n) > c.at+int64(len(c.win)) {
		want := int(min(int64(max(n, windowSize)), c.stop-off))
		if want <= 0 {
			return nil, nil
		}
		if cap(c.buf) < want {
			c.buf = make([]byte, want)
		}
		k, err := c.s.f.ReadAt(c.buf[:want], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read the journal: %w", err)
		}
		c.win, c.at = c.buf[:k], off
	}
	b := c.win[off-c.at:]
	return b[:min(n, len(b))], nil
}

// frame reads the header of the frame at off.
func (c *cursor) frame(off int64) (frame, bool, error) {
	b, err := c.bytes(off, frameSize)
	if err != nil {
		return frame{}, false, err
	}
	f, ok := decodeFrame(b, c.s, off)
	return f, ok, nil
}

// record reads and verifies the record at off, which ends at most at end. bad says what is wrong with it.
func (c *cursor) record(off, end int64) (h replication.Head, b []byte, bad, err error) {
	if b, err = c.bytes(off, int(min(replication.HeaderSize, end-off))); err != nil {
		return h, nil, nil, err
	}
	if h, bad = replication.ParseHead(b); bad != nil {
		return h, nil, bad, nil
	}
	if int64(h.Len) > end-off {
		return h, nil, replication.ErrShort, nil
	}
	if b, err = c.bytes(off, h.Len); err != nil {
		return h, nil, nil, err
	}
	h, bad = replication.Check(b)
	return h, b, bad, nil
}

// Reader reads the records in their order, also while more are appended. Close it.
type Reader struct {
	j    *Journal
	c    cursor
	cuts uint64
	seq  uint64 // of the next record
	off  int64  // where it, or the frame that begins with it, is
	end  int64  // of the frame that off is in; 0: a frame's header is at off
}

// Read returns a reader of the records from from on. Errors: ErrGone.
func (j *Journal) Read(from uint64) (*Reader, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil && errors.Is(j.broken, ErrClosed) {
		return nil, j.broken
	}
	if first := j.segs[0].base.Seq + 1; from < first || from > j.last.Seq+1 {
		return nil, fmt.Errorf("read the journal from %d: it holds %d to %d: %w", from, first, j.last.Seq, ErrGone)
	}
	i := sort.Search(len(j.segs), func(i int) bool { return j.segs[i].base.Seq >= from }) - 1
	r := &Reader{j: j, cuts: j.cuts, seq: from}
	r.enter(j.segs[max(i, 0)])
	return r, nil
}

// enter goes on in segment s. mu is held.
func (r *Reader) enter(s *segment) {
	r.leave()
	s.refs++
	r.c = cursor{s: s, buf: r.c.buf}
	r.off, r.end = headSize+frameSize, 0
	if i := sort.Search(len(s.marks), func(i int) bool { return s.marks[i].seq > r.seq }); i > 0 {
		r.off = s.marks[i-1].off
	}
}

// leave lets the segment go. mu is held.
func (r *Reader) leave() {
	if s := r.c.s; s != nil {
		s.refs--
		s.letGo()
		r.c.s = nil
	}
}

// Close ends the reading.
func (r *Reader) Close() {
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	r.leave()
}

// Next returns whole records, one behind the other, in buf as far as they fit; a record that does not fit into it comes alone, in memory of its own.
// io.EOF at the end of the journal: a later call may find more. Errors: ErrGone after a Cut or Reset; *Damage.
func (r *Reader) Next(buf []byte) ([]byte, error) {
	out := buf[:0]
	for {
		h, b, err := r.peek()
		switch {
		case err != nil && len(out) > 0:
			return out, nil // the same error comes with the next call
		case err != nil:
			return nil, err
		case len(out) == 0 && len(b) > cap(buf):
			out = append(make([]byte, 0, len(b)), b...)
			r.skip(h)
			return out, nil
		case len(out)+len(b) > cap(buf):
			return out, nil
		}
		out = append(out, b...)
		r.skip(h)
	}
}

func (r *Reader) next() (replication.Head, []byte, error) {
	h, b, err := r.peek()
	if err == nil {
		r.skip(h)
	}
	return h, b, err
}

func (r *Reader) skip(h replication.Head) {
	r.seq = h.Pos.Seq + 1
	if r.off += int64(h.Len); r.off == r.end {
		r.end = 0
	}
}

// bound finds out how far may be read, and moves on to the next segment at the end of one.
func (r *Reader) bound() error {
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	switch {
	case r.c.s == nil || errors.Is(r.j.broken, ErrClosed):
		return ErrClosed
	case r.cuts != r.j.cuts:
		return fmt.Errorf("read the journal from %d: it was cut meanwhile: %w", r.seq, ErrGone)
	case r.seq > r.j.last.Seq:
		return io.EOF
	}
	segs := r.j.segs
	for r.seq > r.c.s.last {
		i := sort.Search(len(segs), func(i int) bool { return segs[i].no > r.c.s.no })
		if i == len(segs) || segs[i].base.Seq+1 > r.seq {
			return fmt.Errorf("read the journal from %d: it was released meanwhile: %w", r.seq, ErrGone)
		}
		r.enter(segs[i])
	}
	if r.c.stop = r.c.s.size; r.c.s == segs[len(segs)-1] {
		r.c.stop = r.c.s.end
	}
	return nil
}

// peek returns the record with sequence r.seq.
func (r *Reader) peek() (replication.Head, []byte, error) {
	if err := r.bound(); err != nil {
		return replication.Head{}, nil, err
	}
	for {
		if r.end == 0 {
			f, ok, err := r.c.frame(r.off)
			if err != nil {
				return replication.Head{}, nil, err
			}
			if !ok || f.isBase() || f.first > r.seq {
				return replication.Head{}, nil, &Damage{r.c.s.path, r.off, fmt.Sprintf("record %d should be here", r.seq)}
			}
			if end := r.off + frameSize + int64(f.len); f.last.Seq < r.seq {
				r.off = end
				continue
			} else {
				r.off, r.end = r.off+frameSize, end
			}
		}
		h, b, bad, err := r.c.record(r.off, r.end)
		switch {
		case err != nil:
			return h, nil, err
		case bad != nil || h.Pos.Seq > r.seq:
			return h, nil, &Damage{r.c.s.path, r.off, fmt.Sprintf("record %d should be here: %v", r.seq, bad)}
		case h.Pos.Seq == r.seq:
			return h, b, nil
		}
		next := r.seq
		r.skip(h)
		r.seq = next
	}
}
