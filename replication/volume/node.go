package volume

import (
	"sync"
	"sync/atomic"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

// node is an inode that somebody has open or that an operation is at work on. It exists while refs > 0.
type node struct {
	id   replication.FileID
	refs int // under the lock of the shard

	// Writes and opens hold use shared, every other operation on the inode exclusively, from its first look to its answer.
	use sync.RWMutex

	mu      sync.Mutex
	turn    sync.Cond // on mu: applied has moved
	given   uint64    // tickets given to writes, in the order of Submit
	applied uint64    // tickets done with
	opens   int       // handles, those of directories included
	modes   modes
	limbo   bool // without a name: forgotten at the last close
}

const shards = 64

type shard struct {
	mu sync.Mutex
	m  map[replication.FileID]*node
	_  [40]byte
}

type nodes struct{ shards [shards]shard }

func (t *nodes) shard(id replication.FileID) *shard { return &t.shards[(id*0x9E3779B97F4A7C15)>>58] }

// get returns the node of id, which stays the same one until put.
func (t *nodes) get(id replication.FileID) *node {
	s := t.shard(id)
	s.mu.Lock()
	n := s.m[id]
	if n == nil {
		if s.m == nil {
			s.m = map[replication.FileID]*node{}
		}
		n = &node{id: id}
		n.turn.L = &n.mu
		s.m[id] = n
	}
	n.refs++
	s.mu.Unlock()
	return n
}

func (t *nodes) put(n *node) {
	s := t.shard(n.id)
	s.mu.Lock()
	if n.refs--; n.refs == 0 {
		delete(s.m, n.id)
	}
	s.mu.Unlock()
}

// hold locks the nodes of ids exclusively, in the order given, zeros and repetitions left out, and returns what lets them go.
func (t *nodes) hold(ids ...replication.FileID) *held {
	h := &held{t: t}
	for _, id := range ids {
		h.add(id)
	}
	return h
}

type held struct {
	t    *nodes
	list [4]*node
	n    int
}

func (h *held) add(id replication.FileID) *node {
	if id == 0 {
		return nil
	}
	for _, n := range h.list[:h.n] {
		if n.id == id {
			return n
		}
	}
	n := h.t.get(id)
	n.use.Lock()
	h.list[h.n] = n
	h.n++
	return n
}

func (h *held) free() {
	for i := h.n - 1; i >= 0; i-- {
		h.list[i].use.Unlock()
		h.t.put(h.list[i])
	}
	h.n = 0
}

// handle is an open file or directory of a client.
type handle struct {
	node   *node
	file   *tree.File    // for reading
	epoch  cluster.Epoch // in which it was opened: a write on one of an older tenure gets EIO
	write  bool
	reader reader // what it means to the mode of its inode
}

// handles gives the numbers by which the kernel names open files. Number 0 is none.
type handles struct {
	mu    sync.Mutex
	free  []uint64
	next  uint64
	pages atomic.Pointer[[]*handlePage]
}

const handlePageSize = 1024

type handlePage [handlePageSize]atomic.Pointer[handle]

func (t *handles) add(h *handle) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	var n uint64
	if l := len(t.free); l > 0 {
		n, t.free = t.free[l-1], t.free[:l-1]
	} else {
		t.next++
		n = t.next
	}
	t.page(n)[n%handlePageSize].Store(h)
	return n
}

// page is called with the lock held; it makes the page of n if there is none.
func (t *handles) page(n uint64) *handlePage {
	var pages []*handlePage
	if p := t.pages.Load(); p != nil {
		pages = *p
	}
	for uint64(len(pages)) <= n/handlePageSize {
		pages = append(pages[:len(pages):len(pages)], new(handlePage))
		t.pages.Store(&pages)
	}
	return pages[n/handlePageSize]
}

// get returns nil for a number that is not given.
func (t *handles) get(n uint64) *handle {
	p := t.pages.Load()
	if p == nil || n/handlePageSize >= uint64(len(*p)) {
		return nil
	}
	return (*p)[n/handlePageSize][n%handlePageSize].Load()
}

func (t *handles) remove(n uint64) *handle {
	h := t.get(n)
	if h == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.page(n)[n%handlePageSize].Store(nil)
	t.free = append(t.free, n)
	return h
}

// count is the number of open handles.
func (t *handles) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return int(t.next) - len(t.free)
}
