package volume

import (
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/hanode/hanode/replication"
)

// reader says what a handle means to the mode in which its inode is open in the kernel.
type reader uint8

const (
	direct   reader = iota // write-only: no mapping can be made through it, so it goes with either mode
	passing                // reads and maps the backing file: the inode is in passthrough mode
	mapping                // reads through the kernel's cache, or could map the file: the inode must not be in passthrough mode
	unsafely               // O_RDWR on an inode in passthrough mode: what it maps is the backing file, see stores.go
)

// modes counts the handles of an inode that are open in the kernel, or were when it was last heard of: a handle counts from
// before its open is answered until its release arrives, which is longer than the kernel counts it.
type modes struct {
	passing, mapping, unsafe int
	backing                  int32 // the kernel's number of the backing file while passing+unsafe > 0
}

const (
	// An O_RDWR open of an inode that is in passthrough mode waits this long for the readers to go: most copy a file and close it.
	mixedWait = 100 * time.Millisecond
	// A file that was opened with O_RDWR so recently is not passed through: it is likely to be opened so again while readers have it open.
	hotFor = time.Minute
	// So many of them are remembered.
	maxHot = 1 << 16
)

// hot remembers which files were opened with O_RDWR lately.
type hot struct {
	mu sync.Mutex
	m  map[replication.FileID]time.Time
}

func (h *hot) add(id replication.FileID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.m == nil || len(h.m) >= maxHot {
		h.m = map[replication.FileID]time.Time{}
	}
	h.m[id] = time.Now()
}

func (h *hot) has(id replication.FileID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	at, ok := h.m[id]
	if ok && time.Since(at) > hotFor {
		delete(h.m, id)
		return false
	}
	return ok
}

// choose gives the FOPEN flags of a new handle and counts it. It is called with n.mu held. wait: passthrough readers should go first.
func (v *FS) choose(n *node, flags uint32, active bool, waited bool) (open uint32, r reader, wait bool) {
	m := &n.modes
	switch flags & syscall.O_ACCMODE {
	case syscall.O_RDONLY:
		switch {
		case m.passing+m.unsafe > 0:
			return fuse.FOPEN_PASSTHROUGH, passing, false
		case !active:
			return fuse.FOPEN_DIRECT_IO, mapping, false
		case m.mapping > 0 || !v.passthrough.Load() || v.hot.has(n.id):
			return fuse.FOPEN_KEEP_CACHE, mapping, false
		}
		return fuse.FOPEN_PASSTHROUGH, passing, false
	case syscall.O_WRONLY:
		open = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
		if m.passing+m.unsafe > 0 {
			// Counted as passing: it keeps the inode in that mode.
			return open | fuse.FOPEN_PASSTHROUGH, passing, false
		}
		return open, direct, false
	}
	open = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	if m.passing+m.unsafe == 0 {
		return open, mapping, false
	}
	if !waited {
		return 0, 0, true
	}
	return open | fuse.FOPEN_PASSTHROUGH, unsafely, false
}

// count takes a handle of the kind into account. n.mu is held.
func (m *modes) count(r reader, by int) {
	switch r {
	case passing:
		m.passing += by
	case mapping:
		m.mapping += by
	case unsafely:
		m.unsafe += by
	}
}
