package resync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

// waiting is a file whose content is to be compared.
type waiting struct {
	id           FileID
	size         int64
	mtime, atime int64
	fresh        bool // made by this run: all zeros
	sparse       bool // on the source
}

// comparing is one whose content is being compared.
type comparing struct {
	waiting
	left    atomic.Int64 // requests under way, and one until all are made
	changed atomic.Bool
}

// request is one range of one.
type request struct {
	*comparing
	off, len int64
	next     chan int64 // gets the offset of the source's next data, if somebody waits for it
}

// contents compares the content of files: workers read and hash the follower's and ask; writers write what comes back.
type contents struct {
	t      *target
	window *semaphore.Weighted

	mu      sync.Mutex
	more    sync.Cond
	queue   []waiting
	caps    map[FileID][]byte // capabilities, which a write takes away
	busy    int
	over    bool
	under   map[uint32]*request
	nextReq uint32

	differs func(id FileID, off, n int64) // set: nothing is changed, this is called instead

	writers []chan answer
	quit    chan struct{}

	all, done, written, files atomic.Int64
}

type answer struct {
	message
	r *request
}

func (c *contents) init(t *target) {
	c.t, c.window, c.under, c.caps = t, semaphore.NewWeighted(t.opt.Window), map[uint32]*request{}, map[FileID][]byte{}
	c.quit = make(chan struct{})
	c.more.L = &c.mu
}

func (c *contents) start(wg *sync.WaitGroup, cancel func(error)) {
	for range c.t.opt.Workers {
		w := make(chan answer, 256)
		c.writers = append(c.writers, w)
		wg.Go(func() {
			for {
				select {
				case a := <-w:
					if err := c.take(a); err != nil {
						cancel(err)
					}
				case <-c.quit:
					return
				}
			}
		})
		wg.Go(func() {
			if err := c.work(); err != nil {
				cancel(err)
			}
		})
	}
	context.AfterFunc(c.t.ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.more.Broadcast()
	})
}

const capability = "security.capability"

// add queues a file.
func (c *contents) add(i *tree.Item, fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &i.Stat
	c.queue = append(c.queue, waiting{i.ID, s.Size, s.Mtime, s.Atime, fresh, s.Blocks*512+chunkBlocks*blockSize < s.Size})
	if len(i.Xattrs) > 0 {
		if v, ok := row(i.Xattrs)[capability]; ok {
			c.caps[i.ID] = []byte(v)
		}
	}
	c.all.Add(s.Size)
	c.more.Signal()
}

// wait waits until everything that was queued is done.
func (c *contents) wait(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for (len(c.queue) > 0 || c.busy > 0) && ctx.Err() == nil {
		c.more.Wait()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// close ends the workers and writers: everything is done, or ctx is.
func (c *contents) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	c.more.Broadcast()
	close(c.quit)
}

// work asks for one file after the other.
func (c *contents) work() error {
	w := &asker{contents: c}
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && !c.over && c.t.ctx.Err() == nil {
			c.more.Wait()
		}
		if len(c.queue) == 0 || c.t.ctx.Err() != nil {
			c.mu.Unlock()
			return nil
		}
		f := &comparing{waiting: c.queue[len(c.queue)-1]} // the last one: the queue stays short in memory
		c.queue = c.queue[:len(c.queue)-1]
		c.busy++
		c.mu.Unlock()
		c.files.Add(1)
		f.left.Store(1)
		err := w.ask(f)
		if err == nil {
			err = c.leave(f)
		}
		if err != nil {
			return fmt.Errorf("file id %x: %w", uint64(f.id), err)
		}
	}
}

// leave ends one request, or the asking. The last one ends the file.
func (c *contents) leave(f *comparing) error {
	if f.left.Add(-1) > 0 {
		return nil
	}
	c.mu.Lock()
	caps := c.caps[f.id]
	delete(c.caps, f.id)
	c.mu.Unlock()
	if c.differs != nil {
		return c.ended()
	}
	if caps != nil && (f.changed.Load() || f.fresh) {
		if err := c.t.apply(replication.Op{Kind: replication.SetXattr, ID: f.id, Name: capability, Data: caps, Time: f.mtime}); err != nil {
			return err
		}
	}
	here, err := c.t.t.Stat(f.id)
	if err != nil {
		return err
	}
	if f.fresh || f.changed.Load() || here.Mtime != f.mtime {
		if err := c.t.apply(replication.Op{Kind: replication.SetAttr, ID: f.id, Valid: replication.ValidMtime | replication.ValidAtime, Atime: f.atime, Time: f.mtime}); err != nil {
			return err
		}
	}
	return c.ended()
}

// ended: a file is done.
func (c *contents) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy--
	c.more.Broadcast()
	return nil
}

// asker reads the follower's files.
type asker struct {
	*contents
	buf, sums []byte
}

func (a *asker) ask(f *comparing) error {
	here, err := a.t.t.Stat(f.id)
	if gone(err) && a.differs != nil {
		return nil
	} else if err != nil {
		return err
	}
	if a.differs != nil {
		f.size = min(f.size, here.Size)
	} else if here.Size != f.size {
		if !f.fresh {
			f.changed.Store(true)
		}
		if err := a.t.apply(replication.Op{Kind: replication.SetAttr, ID: f.id, Valid: replication.ValidSize, Len: f.size, Time: f.mtime}); err != nil {
			return err
		}
	}
	file, err := a.t.t.OpenFile(f.id, unix.O_RDONLY)
	if gone(err) && a.differs != nil {
		return nil
	} else if err != nil {
		return err
	}
	defer file.Close()
	holes := f.fresh || here.Blocks*512 < f.size
	for off := int64(0); off < f.size; {
		n := min(f.size-off, chunkBlocks*blockSize)
		m := message{kind: mBlocks, id: f.id, off: off, len: n}
		data := off // where this copy has data next
		if f.fresh {
			data = f.size
		} else if holes {
			if data, err = file.Seek(off, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
				data = f.size
			} else if err != nil {
				return err
			}
		}
		if data >= off+n {
			m.flags = fZero
		} else if m.data, err = a.hashes(file, off, n); err != nil {
			return err
		}
		if a.differs != nil {
			m.flags |= fCompare
		}
		r := &request{comparing: f, off: off, len: n}
		if f.sparse && m.flags&fZero != 0 {
			r.next = make(chan int64, 1)
		}
		if err := a.post(m, r); err != nil {
			return err
		}
		off += n
		if r.next != nil { // both have a hole here: go where one of them has data
			select {
			case next := <-r.next:
				if next = min(next, data); next > off {
					skipped := min(next/blockSize*blockSize, f.size)
					if next >= f.size {
						skipped = f.size
					}
					a.done.Add(skipped - off)
					off = skipped
				}
			case <-a.t.ctx.Done():
				return context.Cause(a.t.ctx)
			}
		}
	}
	return nil
}

func (a *asker) hashes(file *tree.File, off, n int64) ([]byte, error) {
	if a.buf == nil {
		a.buf = make([]byte, chunkBlocks*blockSize)
	}
	b := a.buf[:n]
	k, err := file.ReadAt(b, off)
	if err != nil && err != io.EOF && !gone(err) {
		return nil, err
	}
	clear(b[k:]) // a copy that is only compared may change meanwhile
	a.sums = a.t.hash.append(a.sums[:0], b)
	return a.sums, nil
}

// weight is what a request takes of the window: a small one costs memory too.
func (c *contents) weight(r *request) int64 { return min(max(r.len, blockSize), c.t.opt.Window) }

// post sends a request as soon as the window has room for its answer.
func (a *asker) post(m message, r *request) error {
	if err := a.window.Acquire(a.t.ctx, a.weight(r)); err != nil {
		return context.Cause(a.t.ctx)
	}
	r.left.Add(1)
	a.mu.Lock()
	a.nextReq++
	m.req = a.nextReq
	a.under[m.req] = r
	a.mu.Unlock()
	return a.t.link.post(m)
}

// answer hands a message to the writer of its request, which thereby sees the request's messages in order.
func (c *contents) answer(m message) error {
	c.mu.Lock()
	r := c.under[m.req]
	if m.kind == mDone {
		delete(c.under, m.req)
	}
	w := c.writers[int(m.req)%len(c.writers)]
	c.mu.Unlock()
	if r == nil {
		return fmt.Errorf("%w: content that was not asked for", ErrFrame)
	}
	if n := max(m.len, int64(len(m.data))); m.kind != mDone && (m.off < r.off || n > r.len || m.off > r.off+r.len-n) {
		return fmt.Errorf("%w: content at %d of %d bytes was not asked for", ErrFrame, m.off, n)
	}
	select {
	case w <- answer{m, r}:
		return nil
	case <-c.t.ctx.Done():
		return context.Cause(c.t.ctx)
	}
}

func (c *contents) take(a answer) error {
	if c.t.ctx.Err() != nil {
		return nil
	}
	switch a.kind {
	case mDiffers:
		if c.differs == nil {
			return fmt.Errorf("%w: a comparison that was not asked for", ErrFrame)
		}
		c.differs(a.r.id, a.off, a.len)
		return nil
	case mData, mZero:
		if c.differs != nil {
			return fmt.Errorf("%w: content in a comparison", ErrFrame)
		}
		return c.put(a)
	}
	c.done.Add(a.r.len)
	c.window.Release(c.weight(a.r))
	if a.r.next != nil {
		a.r.next <- a.off
	}
	return c.leave(a.r.comparing)
}

// put writes what differs.
func (c *contents) put(a answer) error {
	a.r.changed.Store(true)
	if a.kind == mData {
		c.written.Add(int64(len(a.data)))
		return c.t.apply(replication.Op{Kind: replication.Write, ID: a.r.id, Off: a.off, Data: a.data, Time: a.r.mtime})
	}
	mode := uint32(unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_ZERO_RANGE)
	if a.flags&fHole != 0 {
		mode = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE
	}
	return c.t.apply(replication.Op{Kind: replication.Fallocate, ID: a.r.id, Flags: mode, Off: a.off, Len: a.len, Time: a.r.mtime})
}
