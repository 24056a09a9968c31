package tree

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// dirty are the inodes whose mtime waits to be written: an operation's time is set in memory only, because setting it on
// the disk costs as much as a small write. Each has a reference, so that it stays in the cache.
type dirty struct {
	mu   sync.Mutex
	list []*inode
	err  error // of a sweep that could not be reported
}

// touch makes the operation's time the mtime and ctime of an inode, now for readers and at the next FlushTimes for the disk.
func (t *Tree) touch(n *inode, at int64) {
	n.mtime.Store(at)
	n.ctime.Store(at)
	if n.waiting.Load() {
		return
	}
	n.refs.Add(1) // before it waits, see idle; the caller has one, so that it cannot be swept meanwhile
	if !n.waiting.CompareAndSwap(false, true) {
		n.refs.Add(-1)
		return
	}
	t.times.mu.Lock()
	t.times.list = append(t.times.list, n)
	many := len(t.times.list) > t.opt.MaxOpen/4+8
	t.times.mu.Unlock()
	if many {
		t.FlushTimes() // an error comes again from Sync
	}
}

// FlushTimes writes the times that wait. Call it every second or so, so that a look into the backing directory shows them; Sync does it too.
func (t *Tree) FlushTimes() error {
	t.times.mu.Lock()
	list := t.times.list
	t.times.list = nil
	err := t.times.err
	t.times.mu.Unlock()
	var errs []error
	for _, n := range list {
		n.waiting.Store(false) // before the time is read: a later one is written again
		if e := t.writeTime(n); e != nil {
			errs = append(errs, fail("set the times", n.id, e))
		}
		t.release(n)
	}
	if len(errs) > 0 {
		err = errors.Join(errs[:min(len(errs), 3)]...)
		t.times.mu.Lock()
		t.times.err = err
		t.times.mu.Unlock()
	}
	return err
}

func (t *Tree) writeTime(n *inode) error {
	at := n.mtime.Load()
	if n.gone.Load() || at == omit {
		return nil
	}
	fd, err := t.anyFd(n)
	if errors.Is(err, unix.ESTALE) {
		return nil
	}
	if err != nil {
		return err
	}
	return setTimes(fd, omit, at)
}
