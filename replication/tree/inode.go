package tree

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// The descriptors that an inode may have open.
const (
	pathFd  = iota // O_PATH: what names and attributes are reached by
	readFd         // O_RDONLY
	writeFd        // O_RDWR, regular files
	fdKinds
)

// Whether new entries of a directory inherit something that must be undone, because operations carry the outcome.
const (
	inheritUnknown = iota
	inheritNothing
	inheritACL
)

// inode is what is kept open of a file. It is in the cache while somebody uses it, while its times wait to be written, and for a while after.
type inode struct {
	id      FileID
	typ     uint32       // S_IFMT of its mode
	refs    atomic.Int32 // guarded by the shard's lock when it grows
	used    atomic.Bool  // since the sweep last came by
	gone    atomic.Bool  // it has no name any more
	inherit atomic.Int32

	mu  sync.Mutex // opening descriptors
	fds [fdKinds]atomic.Int32

	mtime, ctime atomic.Int64 // as shown, if not omit: those of the last operation
	waiting      atomic.Bool  // mtime is not written to the disk yet
}

// cache bounds how many descriptors are open: over the bound, inodes that nobody uses and that were not used since the last sweep are closed.
type cache struct {
	t      *Tree
	open   atomic.Int64 // descriptors
	hand   atomic.Uint32
	sweeps sync.Mutex
	shards [64]struct {
		mu sync.Mutex
		m  map[FileID]*inode
	}
}

func (c *cache) init(t *Tree) {
	c.t = t
	for i := range c.shards {
		c.shards[i].m = make(map[FileID]*inode)
	}
}

// errMissing: no inode has this id.
var errMissing = fmt.Errorf("no file has this id here: %w", syscall.ESTALE)

// acquire gives the inode with an id, open by path at least; release must follow. Errors: errMissing; a system error.
func (t *Tree) acquire(id FileID) (*inode, error) {
	s := &t.cache.shards[shard(id)]
	s.mu.Lock()
	if n := s.m[id]; n != nil {
		n.refs.Add(1)
		s.mu.Unlock()
		n.used.Store(true)
		return n, nil
	}
	s.mu.Unlock()
	h, ok := t.index.get(id)
	if !ok {
		return nil, errMissing
	}
	fd, err := t.openHandle(h, unix.O_PATH)
	if err == unix.ESTALE {
		return nil, errMissing
	}
	if err != nil {
		return nil, fail("open", id, err)
	}
	st, err := fstat(fd)
	if err != nil {
		t.closeFd(fd)
		return nil, fail("stat", id, err)
	}
	return t.cache.add(id, st.Mode&unix.S_IFMT, pathFd, fd), nil
}

// add takes a new descriptor into the cache and gives its inode, acquired.
func (c *cache) add(id FileID, typ uint32, kind int, fd int) *inode {
	n := &inode{id: id, typ: typ}
	for i := range n.fds {
		n.fds[i].Store(-1)
	}
	n.mtime.Store(omit)
	n.ctime.Store(omit)
	n.used.Store(true)
	n.fds[kind].Store(int32(fd))
	s := &c.shards[shard(id)]
	s.mu.Lock()
	if have := s.m[id]; have != nil { // somebody else was quicker
		have.refs.Add(1)
		s.mu.Unlock()
		c.t.closeFd(fd)
		return have
	}
	n.refs.Store(1)
	s.m[id] = n
	s.mu.Unlock()
	if c.open.Load() > int64(c.t.opt.MaxOpen) {
		c.sweep()
	}
	return n
}

func (t *Tree) release(n *inode) {
	n.refs.Add(-1)
	if n.gone.Load() && n.idle() {
		t.closeInode(n) // it is not in the cache any more, so nobody can acquire it again
	}
}

// idle says whether nobody uses the inode but FlushTimes, which leaves one alone that is gone: its space must not wait for that.
func (n *inode) idle() bool {
	refs := n.refs.Load()
	return refs == 0 || refs == 1 && n.waiting.Load()
}

// forgetInode: the inode has lost its last name. Whoever still uses it may go on.
func (t *Tree) forgetInode(id FileID) {
	t.index.drop(id)
	s := &t.cache.shards[shard(id)]
	s.mu.Lock()
	n := s.m[id]
	if n == nil {
		s.mu.Unlock()
		return
	}
	n.gone.Store(true)
	delete(s.m, id)
	s.mu.Unlock()
	if n.idle() {
		t.closeInode(n)
	}
}

// cached gives the inode if it is open anyway, without acquiring it; only its times may be looked at.
func (c *cache) cached(id FileID) *inode {
	s := &c.shards[shard(id)]
	s.mu.Lock()
	n := s.m[id]
	s.mu.Unlock()
	return n
}

// fd gives a descriptor of the wanted kind, opened if it is not open.
func (t *Tree) fd(n *inode, kind int) (int, error) {
	if fd := n.fds[kind].Load(); fd >= 0 {
		return int(fd), nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if fd := n.fds[kind].Load(); fd >= 0 {
		return int(fd), nil
	}
	h, ok := t.index.get(n.id)
	if !ok {
		return -1, errMissing
	}
	flags := [fdKinds]int{unix.O_PATH, unix.O_RDONLY | unix.O_NOATIME, unix.O_RDWR | unix.O_NOATIME}[kind]
	if kind != pathFd && n.typ != unix.S_IFREG && n.typ != unix.S_IFDIR {
		return -1, fail("open", n.id, unix.ENXIO) // a device or pipe of the volume is never opened on its backing
	}
	fd, err := t.openHandle(h, flags)
	if err != nil {
		return -1, fail("open", n.id, err)
	}
	n.fds[kind].Store(int32(fd))
	return fd, nil
}

// anyFd gives a descriptor of whatever kind there is.
func (t *Tree) anyFd(n *inode) (int, error) {
	for i := range n.fds {
		if fd := n.fds[i].Load(); fd >= 0 {
			return int(fd), nil
		}
	}
	return t.fd(n, pathFd)
}

// openHandle opens by handle; when descriptors run out it closes some and tries again.
func (t *Tree) openHandle(h handle, flags int) (int, error) {
	for try := 0; ; try++ {
		fd, err := h.open(t.rootfd, flags)
		if err == nil {
			t.cache.open.Add(1)
			return fd, nil
		}
		if err != unix.EMFILE && err != unix.ENFILE || try == 3 || !t.cache.sweep() {
			return -1, err
		}
	}
}

func (t *Tree) closeFd(fd int) {
	unix.Close(fd)
	t.cache.open.Add(-1)
}

func (t *Tree) closeInode(n *inode) {
	for i := range n.fds {
		if fd := n.fds[i].Swap(-1); fd >= 0 {
			t.closeFd(int(fd))
		}
	}
}

// sweep closes what nobody uses until an eighth of the bound is free, and says whether it closed anything. Times that wait are written first, if they must be.
func (c *cache) sweep() bool {
	c.sweeps.Lock()
	defer c.sweeps.Unlock()
	before := c.open.Load()
	goal := min(before-1, int64(c.t.opt.MaxOpen)-int64(c.t.opt.MaxOpen)/8)
	for round := range 4 * len(c.shards) {
		if c.open.Load() <= goal {
			return true
		}
		if round == 2*len(c.shards) && c.t.FlushTimes() != nil {
			break // they stay, and with them their descriptors; Sync will say it
		}
		s := &c.shards[c.hand.Add(1)%uint32(len(c.shards))]
		var closing []*inode
		s.mu.Lock()
		for id, n := range s.m {
			if n.refs.Load() == 0 && !n.used.Swap(false) {
				delete(s.m, id)
				closing = append(closing, n)
			}
		}
		s.mu.Unlock()
		for _, n := range closing {
			c.t.closeInode(n)
		}
	}
	return c.open.Load() < before
}

func (c *cache) closeAll() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for id, n := range s.m {
			delete(s.m, id)
			c.t.closeInode(n)
		}
		s.mu.Unlock()
	}
}
