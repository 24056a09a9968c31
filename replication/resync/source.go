package resync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication/tree"
)

// Source answers a follower until it says that it is done, the channel ends or ctx does. The tree may change meanwhile in any way. Before it is called, the
// source has noted its position and streams every operation after it.
func Source(ctx context.Context, ch Channel, t *Tree, opt SourceOptions) error {
	s := &source{ctx: ctx, t: t, opt: opt, link: newLink(ch, 1<<20), pace: pace{rate: opt.Rate, busy: opt.Busy}}
	return s.run()
}

type source struct {
	ctx  context.Context
	t    *Tree
	opt  SourceOptions
	link *link
	pace pace
	hash *hasher
}

// queued bounds the requests that wait for a worker.
const queued = 64

func (s *source) run() error {
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	s.ctx = ctx
	jobs := make(chan message, queued)
	var workers, sender sync.WaitGroup
	sender.Go(func() {
		if err := s.link.send(); err != nil {
			cancel(err)
		}
	})
	n := s.opt.Workers
	if n <= 0 {
		n = 2
	}
	for range n {
		workers.Go(func() {
			w := &worker{source: s}
			defer w.close()
			for m := range jobs {
				if err := w.answer(m); err != nil {
					cancel(err)
				}
			}
		})
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		s.link.fail(context.Cause(ctx))
		endWith(s.link.ch, context.Cause(ctx))
	})
	err := s.link.recv(func(m message) (bool, error) {
		if s.hash == nil && m.kind != mHello {
			return false, fmt.Errorf("%w: the first message is %d", ErrFrame, m.kind)
		}
		switch m.kind {
		case mBye:
			return true, nil
		case mHello:
			return false, s.hello(m)
		case mList, mInode, mLookup, mBlocks, mOpen:
			m.data = append([]byte(nil), m.data...)
			select {
			case jobs <- m:
				return false, nil
			case <-ctx.Done():
				return false, context.Cause(ctx)
			}
		}
		return false, fmt.Errorf("%w: a follower does not send message %d", ErrFrame, m.kind)
	})
	if err != nil {
		cancel(err)
	}
	close(jobs)
	workers.Wait()
	if err == nil {
		err = s.link.post(message{kind: mBye})
	}
	s.link.finish()
	sender.Wait()
	if stop() {
		return err
	}
	<-closed
	return context.Cause(ctx)
}

func (s *source) hello(m message) (err error) {
	if s.hash != nil {
		return fmt.Errorf("%w: a second greeting", ErrFrame)
	}
	if uint8(m.id) != s.opt.Volume {
		return fmt.Errorf("%w: it asks for volume %d on the channel of volume %d", ErrFrame, m.id, s.opt.Volume)
	}
	if s.hash, err = newHasher(append([]byte(nil), m.data...)); err != nil {
		return err
	}
	return s.link.post(message{kind: mWelcome, len: int64(s.t.Count())})
}

// worker answers one request after the other. It keeps the file of the last one.
type worker struct {
	*source
	file *tree.File
	buf  []byte
	sums []byte
}

func (w *worker) close() {
	if w.file != nil {
		w.file.Close()
		w.file = nil
	}
}

func gone(err error) bool {
	return errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT)
}

func (w *worker) position() uint64 {
	if w.opt.Position == nil {
		return 0
	}
	return w.opt.Position()
}

func (w *worker) answer(m message) error {
	if w.ctx.Err() != nil {
		return nil
	}
	switch m.kind {
	case mList:
		return w.list(m)
	case mInode, mLookup:
		var i tree.Item
		var err error
		if m.kind == mInode {
			i, err = w.t.Inode(m.id)
		} else {
			i, err = w.t.Entry(m.id, m.text)
		}
		out := message{kind: mNode, req: m.req, id: m.id, pos: w.position()} // after the reading: what was read is of this position at the latest
		if gone(err) {
			out.flags = fGone
		} else if err != nil {
			return fmt.Errorf("read file id %x on the source: %w", uint64(m.id), err)
		} else {
			out.items = []tree.Item{i}
		}
		return w.link.post(out)
	case mOpen:
		ids := w.t.InLimbo()
		for first := true; first || len(ids) > 0; first = false {
			n := min(len(ids), partMost/8)
			out := message{kind: mOpens, req: m.req, ids: ids[:n]}
			if ids = ids[n:]; len(ids) == 0 {
				out.flags = fLast
			}
			if err := w.link.post(out); err != nil {
				return err
			}
		}
		return nil
	}
	return w.blocks(m)
}

// namesMost is up to how many names a directory is listed by a snapshot of its names, for which operations on it wait (a microsecond for each ten of them or so). What
// has more is listed by cookies, listMost entries at a time, and relies on the file system to list everything that is there all the time: ext4, xfs and btrfs
// do. (tmpfs does not always: after the removal of the entry at which it would go on, Linux 6.18 was seen to leave others out.)
const (
	namesMost = 1 << 15
	listMost  = 128
)

// list sends a directory in as many messages as it takes.
func (w *worker) list(m message) error {
	out := message{kind: mListing, req: m.req, id: m.id}
	self, err := w.t.Inode(m.id)
	if err == nil && self.Type != unix.S_IFDIR {
		err = unix.ENOENT
	}
	if gone(err) {
		out.flags = fGone | fLast
		return w.link.post(out)
	} else if err != nil {
		return fmt.Errorf("read directory %x on the source: %w", uint64(m.id), err)
	}
	if n := len(self.Xattrs); n > maxRow {
		return tooMany(self.ID, n)
	}
	out.flags, out.self = fFirst, self
	l := &listing{worker: w, out: out, size: itemLen(&self)}
	names, all, err := w.t.Names(m.id, namesMost)
	if err == nil && all {
		err = l.byNames(names)
	} else if err == nil {
		err = l.byCookies()
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("list directory %x on the source: %w", uint64(m.id), err)
	}
	l.out.flags |= fLast
	return w.link.post(l.out)
}

// listing is a directory on its way.
type listing struct {
	*worker
	out  message
	size int
}

// byNames sends what each of the names is by now.
func (l *listing) byNames(names []string) error {
	for n, name := range names {
		i, err := l.t.Entry(l.out.id, name)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err == nil {
			err = l.add(i)
		}
		if err == nil && n%listMost == 0 {
			err = l.pace.wait(l.ctx, listMost*512)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *listing) byCookies() error {
	for cookie := uint64(0); ; {
		items, err := l.t.List(l.out.id, cookie, listMost)
		if err == nil && len(items) > 0 {
			err = l.pace.wait(l.ctx, len(items)*512)
		}
		if err != nil || len(items) == 0 {
			return err
		}
		for _, i := range items {
			if cookie = i.Cookie; err == nil {
				err = l.add(i)
			}
		}
		if err != nil {
			return err
		}
	}
}

func (l *listing) add(i tree.Item) error {
	if n := len(i.Xattrs); n > maxRow {
		return tooMany(i.ID, n)
	}
	most := partMost
	if l.opt.part > 0 {
		most = l.opt.part
	}
	if n := itemLen(&i); l.size+n > most && l.size > 0 {
		if err := l.link.post(l.out); err != nil {
			return err
		}
		l.out.flags, l.out.items, l.size = 0, nil, 0
	}
	l.out.items, l.size = append(l.out.items, i), l.size+itemLen(&i)
	return nil
}

func tooMany(id FileID, n int) error {
	return fmt.Errorf("file id %x has extended attributes of %d bytes in all, a resync carries at most %d: remove some", uint64(id), n, maxRow)
}

// blocks compares a range with the follower's hashes and sends what differs.
func (w *worker) blocks(m message) error {
	done := message{kind: mDone, req: m.req}
	if w.file == nil || w.file.ID() != m.id {
		w.close()
		f, err := w.t.OpenFile(m.id, unix.O_RDONLY)
		if gone(err) || errors.Is(err, unix.EINVAL) {
			done.flags = fGone
			return w.link.post(done)
		} else if err != nil {
			return fmt.Errorf("open file id %x on the source: %w", uint64(m.id), err)
		}
		w.file = f
	}
	end := m.off + m.len
	data, err := w.file.Seek(m.off, unix.SEEK_DATA)
	switch {
	case gone(err):
		done.flags = fGone
		return w.link.post(done)
	case errors.Is(err, syscall.ENXIO):
		data = 1 << 62 // nothing but a hole up to the end
	case err != nil:
		return fmt.Errorf("look for data in file id %x on the source: %w", uint64(m.id), err)
	}
	if m.flags&fZero != 0 && data >= end {
		done.off = data
		return w.link.post(done)
	}
	if err := w.pace.wait(w.ctx, int(m.len)); err != nil {
		return err
	}
	if cap(w.buf) < int(m.len) {
		w.buf = make([]byte, chunkBlocks*blockSize)
	}
	b := w.buf[:m.len]
	if data >= end {
		clear(b)
	} else if n, err := w.file.ReadAt(b, m.off); err == io.EOF {
		clear(b[n:]) // cut off after the follower learned of its size: the redo will do it too
	} else if gone(err) {
		done.flags = fGone
		return w.link.post(done)
	} else if err != nil {
		return fmt.Errorf("read file id %x at %d on the source: %w", uint64(m.id), m.off, err)
	}
	if err := w.send(m, b); err != nil {
		return err
	}
	done.off = end
	return w.link.post(done)
}

// what a run of blocks is to the follower.
type what uint8

const (
	same what = iota
	content
	zeros
)

var zeroBlock [blockSize]byte

func (w *worker) send(m message, b []byte) error {
	if m.flags&fZero == 0 {
		w.sums = w.hash.append(w.sums[:0], b)
	}
	run, from := same, 0
	for at := 0; ; at += blockSize {
		is := same
		if at < len(b) {
			is = w.judge(m, b, at)
		}
		if at < len(b) && is == run && (run != content || at-from < dataMost) {
			continue
		}
		if at > from && run != same {
			if err := w.tell(m, b, from, min(at, len(b)), run); err != nil {
				return err
			}
		}
		if at >= len(b) {
			return nil
		}
		run, from = is, at
	}
}

func (w *worker) judge(m message, b []byte, at int) what {
	block := b[at:min(at+blockSize, len(b))]
	zero := string(block) == string(zeroBlock[:len(block)])
	if m.flags&fZero != 0 {
		if zero {
			return zeros
		}
		return content
	}
	i := at / blockSize * hashSize
	switch {
	case string(m.data[i:i+hashSize]) == string(w.sums[i:i+hashSize]):
		return same
	case zero:
		return zeros
	}
	return content
}

func (w *worker) tell(m message, b []byte, from, to int, run what) error {
	out := message{kind: mData, req: m.req, off: m.off + int64(from), data: b[from:to]}
	if m.flags&fCompare != 0 {
		if m.flags&fZero != 0 && run == zeros {
			return nil
		}
		out.kind, out.data, out.len = mDiffers, nil, int64(to-from)
		return w.link.post(out)
	}
	if run != zeros {
		return w.link.post(out)
	}
	// Zeros that have blocks stay so on the follower: its owner may count on the room.
	for at := int64(from); at < int64(to); {
		data, err := w.file.Seek(m.off+at, unix.SEEK_DATA)
		if err != nil || data < m.off || data > m.off+int64(to) {
			data = m.off + int64(to)
		}
		if hole := data - m.off; hole > at {
			if m.flags&fZero == 0 {
				if err := w.link.post(message{kind: mZero, req: m.req, flags: fHole, off: m.off + at, len: hole - at}); err != nil {
					return err
				}
			}
			at = hole
			continue
		}
		end, err := w.file.Seek(m.off+at, unix.SEEK_HOLE)
		if err != nil || end > m.off+int64(to) {
			end = m.off + int64(to)
		}
		if end <= m.off+at {
			end = m.off + int64(to)
		}
		if err := w.link.post(message{kind: mZero, req: m.req, off: m.off + at, len: end - m.off - at}); err != nil {
			return err
		}
		at = end - m.off
	}
	return nil
}
