package resync

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

// Run makes the tree what the source is. Before it is called, the caller has marked the copy inconsistent, durably, and nothing applies operations to the
// tree until it returns. After nil the journal is to be applied from S0 on; the tree stays unsettled until then. After an error the copy stays
// inconsistent, and the next resync compares all content.
func Run(ctx context.Context, ch Channel, t *Tree, opt TargetOptions) (Result, error) {
	tg := newTarget(ch, t, opt)
	t.Unsettle()
	err := tg.run(ctx, tg.work)
	r := Result{Progress: tg.progress(), Sent: tg.link.sent.Load(), Created: tg.created, Placed: tg.placed, Taken: tg.taken, Changed: tg.changed,
		Files: tg.content.files.Load(), ByID: tg.byID, Gone: tg.gone}
	if err != nil {
		return r, fmt.Errorf("resync of volume %d: %w", opt.Volume, err)
	}
	return r, nil
}

func newTarget(ch Channel, t *Tree, opt TargetOptions) *target {
	if opt.Workers <= 0 {
		opt.Workers = 2
	}
	if opt.Window <= 0 {
		opt.Window = 16 << 20
	}
	// Requests never wait to be sent, so that answers are always taken: the window and the number of listings bound them.
	tg := &target{t: t, opt: opt, link: newLink(ch, 1<<30), began: time.Now(), seed: maphash.MakeSeed(), calls: map[uint32]chan message{}}
	tg.content.init(tg)
	return tg
}

type target struct {
	t     *Tree
	opt   TargetOptions
	ctx   context.Context
	link  *link
	began time.Time
	hash  *hasher
	seed  maphash.Seed

	mu    sync.Mutex
	req   uint32
	calls map[uint32]chan message // who waits for the answer to which request

	content contents

	// The walker alone uses these.
	visited                               idSet
	gone                                  []FileID
	stack                                 []found
	created, placed, taken, changed, byID int64

	inodes, inodesAll atomic.Int64
	walked            atomic.Bool
}

func (t *target) progress() Progress {
	return Progress{Inodes: t.inodes.Load(), InodesAll: t.inodesAll.Load(), Bytes: t.content.done.Load(), BytesAll: t.content.all.Load(),
		Received: t.link.received.Load(), Written: t.content.written.Load(), Walked: t.walked.Load(), Took: time.Since(t.began)}
}

// run connects the two sides and does the work.
func (t *target) run(parent context.Context, work func() error) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	t.ctx = ctx
	key, err := newKey()
	if err != nil {
		return err
	}
	if t.hash, err = newHasher(key); err != nil {
		return err
	}
	var all sync.WaitGroup
	all.Go(func() {
		if err := t.link.send(); err != nil {
			cancel(err)
		}
	})
	all.Go(func() {
		if err := t.link.recv(t.receive); err != nil {
			cancel(err)
		}
	})
	t.content.start(&all, cancel)
	over := make(chan struct{})
	if t.opt.Progress != nil {
		all.Go(func() { t.report(over) })
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		t.link.fail(context.Cause(ctx))
		endWith(t.link.ch, context.Cause(ctx))
	})
	err = t.link.post(message{kind: mHello, id: FileID(t.opt.Volume), data: key})
	if err == nil {
		err = work()
	}
	if err != nil {
		cancel(err)
	} else if err := t.link.post(message{kind: mBye}); err != nil {
		cancel(err)
	}
	t.content.close()
	t.link.finish()
	close(over)
	all.Wait()
	if stop() {
		return nil
	}
	<-closed
	return context.Cause(ctx)
}

// report tells the progress a few times a second, and at the end.
func (t *target) report(over chan struct{}) {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.opt.Progress(t.progress())
		case <-over:
			t.opt.Progress(t.progress())
			return
		}
	}
}

// work is the walk and the wait for the content.
func (t *target) work() error {
	if t.opt.Missing == nil {
		t.stack = append(t.stack, found{replication.RootID, false})
		t.visited.add(replication.RootID)
		t.inodes.Add(1)
		if err := t.walk(); err != nil {
			return err
		}
		if err := t.unvisited(); err != nil {
			return err
		}
	} else if err := t.missing(); err != nil {
		return err
	}
	open, err := t.openOnes()
	if err != nil {
		return err
	}
	if t.opt.Missing == nil {
		if err := t.clear(); err != nil {
			return err
		}
	}
	for _, id := range open {
		if err := t.t.SetOpen(id); err != nil {
			return err
		}
	}
	t.walked.Store(true)
	return t.content.wait(t.ctx)
}

// receive gives an answer to whoever asked.
func (t *target) receive(m message) (bool, error) {
	switch m.kind {
	case mBye:
		return true, nil
	case mWelcome:
		t.inodesAll.Store(m.len)
		return false, nil
	case mListing, mNode, mOpens:
		t.mu.Lock()
		c := t.calls[m.req]
		if m.kind == mNode || m.flags&fLast != 0 {
			delete(t.calls, m.req)
		}
		t.mu.Unlock()
		if c == nil {
			return false, fmt.Errorf("%w: an answer to what was not asked", ErrFrame)
		}
		select {
		case c <- m:
			return false, nil
		case <-t.ctx.Done():
			return true, nil
		}
	case mData, mZero, mDiffers, mDone:
		m.data = append([]byte(nil), m.data...)
		return false, t.content.answer(m)
	}
	return false, fmt.Errorf("%w: a source does not send message %d", ErrFrame, m.kind)
}

// ask posts a request whose answer comes to c.
func (t *target) ask(m message, c chan message) error {
	t.mu.Lock()
	t.req++
	m.req = t.req
	t.calls[m.req] = c
	t.mu.Unlock()
	return t.link.post(m)
}

func (t *target) take(c chan message) (message, error) {
	select {
	case m := <-c:
		return m, nil
	case <-t.ctx.Done():
		return message{}, context.Cause(t.ctx)
	}
}

// ahead is how many directories are listed at a time.
const ahead = 16

// found is a directory that is not listed yet; fresh says that this run has made it.
type found struct {
	id    FileID
	fresh bool
}

// dir is a directory that is being listed.
type dir struct {
	found
	self tree.Item
	seen map[uint64]struct{} // hashes of its names; of 64 bits, under a seed of this run
}

// walk lists what is on the stack, and what it finds.
func (t *target) walk() error {
	c := make(chan message, ahead)
	open := map[FileID]*dir{} // by id
	for len(t.stack) > 0 || len(open) > 0 {
		for len(t.stack) > 0 && len(open) < ahead {
			next := t.stack[len(t.stack)-1]
			t.stack = t.stack[:len(t.stack)-1]
			d := &dir{found: next}
			if !d.fresh {
				d.seen = map[uint64]struct{}{}
			}
			open[d.id] = d
			if err := t.ask(message{kind: mList, id: d.id}, c); err != nil {
				return err
			}
		}
		m, err := t.take(c)
		if err != nil {
			return err
		}
		d := open[m.id]
		if d == nil || m.kind != mListing {
			return fmt.Errorf("%w: a listing of what was not asked for", ErrFrame)
		}
		if m.flags&fGone != 0 {
			delete(open, d.id)
			t.visited.drop(d.id) // it was removed after it was found: the redo removes it
			continue
		}
		if m.flags&fFirst != 0 {
			d.self = m.self
		}
		for i := range m.items {
			if !d.fresh {
				d.seen[maphash.String(t.seed, m.items[i].Name)] = struct{}{}
			}
			if err := t.entry(d.id, &m.items[i]); err != nil {
				return err
			}
		}
		if m.flags&fLast == 0 {
			continue
		}
		delete(open, d.id)
		if err := t.finish(d); err != nil {
			return err
		}
	}
	return nil
}
