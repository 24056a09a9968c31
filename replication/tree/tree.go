// Package tree is the backing directory of one volume: file ids, reading by id, and Apply, the one way in which anything changes.
//
// # Why Apply may be repeated
//
// A volume is a set of registers: each directory entry (parent id, name) holds a file id or nothing, and each inode holds its bytes and attributes.
// An operation writes registers and says, for an entry, what it held before. Apply may be given operations that were applied before, in order,
// over a tree in which every register is in a state of its own, at or after the first of them (docs/replication.md, section 2). For an entry: if it
// holds what the operation writes, it stays; if it holds nothing, or what the operation expects, it is written; anything else is of a later state, and it
// stays. By induction it then holds, after each operation, either what it held at that point of the stream, or its own later state; after
// the last operation nothing is later, so it holds what it must. Bytes and attributes are written always, in order: the last writer wins.
// What makes this more than registers is that an inode must live until its last name is settled, that a directory has one place only, and that places must not
// form a circle: an inode that has no place at the moment waits in limbo, and goes only when Settle says that the redo is complete.
//
// # What callers must do
//
// Operations on one inode or one directory are applied in the order of their positions (a rename is one on the inode, on what it replaces, and on both
// directories); others may be applied at the same time. Open leaves the tree unsettled: what loses its last name is kept in limbo, and
// a register that is of a later state is left. Settle is called when everything is applied that may have been applied before (the
// standby: at the end of its redo; the active: at promotion). From then on the tree is exactly that of the last operation, names go at once, and
// an operation that does not fit is ErrDiverged: this copy is not a prefix of its stream any more.
//
// The active decides everything and records the outcome; Apply decides nothing, so that all copies are equal. In particular Create
// carries the final mode, owner, group and access lists (Inherit computes them), a chown that takes setuid bits away is a SetAttr that says so
// (ValidMode), and times are those of the operation. Only one thing does the kernel by itself on every copy alike: a write, truncate or chown takes
// security.capability away.
//
// Everything is relative to descriptors and single names, symbolic links are never followed, and the process' umask does not matter. Only root can use
// a tree (trusted attributes, file handles).
package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

// FileID is the identity of an inode of a volume.
type FileID = replication.FileID

// ErrDiverged is what Apply says of an operation that does not fit a settled tree: this copy is not what its stream says.
var ErrDiverged = errors.New("the tree is not what the operation expects: this copy has diverged and needs a resync")

// Options of Open. The zero value is usable.
type Options struct {
	Header  func(dir string) error // checks the identity of the backing directory; nil: not checked
	Mount   string                 // where the volume is mounted, to refuse one inside the other
	MaxOpen int                    // descriptors kept open; 0: a quarter of RLIMIT_NOFILE, at most 65536
	Low     int64                  // bytes of free space under which Reserve allocates before it agrees; 0: 64 MiB
	Floor   int64                  // bytes that are kept for names and attributes; 0: 4 MiB
	Workers int                    // of the scan; 0: as many as processors, at most 8
}

// Tree is the backing directory of one volume. Its methods may be called from many goroutines.
type Tree struct {
	dir     string
	opt     Options
	rootfd  int // dir/tree: also the descriptor by which handles are opened
	limbofd int
	mnt     int32

	index index
	cache cache

	ns      sync.RWMutex // held for writing by every change of names while unsettled, and by Settle
	stripes [256]sync.RWMutex
	settled atomic.Bool

	limbo  limbo
	times  dirty
	room   room
	strays []stray // entries without an id, found by the scan; guarded by ns

	next     atomic.Uint64 // the highest id known
	scan     ScanStats
	warnings []string
}

const (
	treeName  = "tree"
	limboName = "limbo"
)

// Make makes the empty directories of a new volume in dir, which is made itself if it is not there: tree (the root directory, mode 0755, id 1) and limbo.
// It refuses a disk that is nearly full. What is there already stays.
func Make(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := checkSpace(dir); err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(fd)
	for _, name := range []string{limboName, treeName} {
		if err := unix.Mkdirat(fd, name, 0o700); err != nil && err != unix.EEXIST {
			return fmt.Errorf("make %s: %w", filepath.Join(dir, name), err)
		}
	}
	id, err := idAt(fd, treeName)
	if err != nil {
		return fmt.Errorf("read the file id of %s: %w", filepath.Join(dir, treeName), err)
	}
	if id != noID {
		return nil
	}
	if err := unix.Fchmodat(fd, treeName, 0o755, 0); err != nil {
		return fmt.Errorf("set the mode of %s: %w", filepath.Join(dir, treeName), err)
	}
	if err := setxattrAt(fd, treeName, idXattr, idBytes(replication.RootID)); err != nil {
		return xattrRefusal(dir, err)
	}
	return nil
}

// Open checks the backing directory dir and reads its index of file ids. The tree is unsettled. Errors say what is wrong with
// the directory and what to do.
func Open(dir string, opt Options) (*Tree, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if opt.Header != nil {
		if err := opt.Header(dir); err != nil {
			return nil, err
		}
	}
	if err := check(dir, opt.Mount); err != nil {
		return nil, err
	}
	t := &Tree{dir: dir, opt: opt.withDefaults(), rootfd: -1, limbofd: -1}
	t.index.init()
	t.cache.init(t)
	t.limbo.init()
	if err := t.open(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Tree) open() (err error) {
	for _, d := range []struct {
		name string
		fd   *int
	}{{treeName, &t.rootfd}, {limboName, &t.limbofd}} {
		path := filepath.Join(t.dir, d.name)
		if *d.fd, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0); err != nil {
			*d.fd = -1
			return fmt.Errorf("open %s: %w: a backing directory has %s and %s; make it with `hanode volume adopt`, or let a resync fill it", path, err, treeName, limboName)
		}
	}
	if err := t.probe(); err != nil {
		return err
	}
	if err := t.scanAll(); err != nil {
		return err
	}
	return t.room.refresh(t)
}

// withDefaults fills in what is not given.
func (o Options) withDefaults() Options {
	if o.MaxOpen <= 0 {
		o.MaxOpen = 1024
		var lim unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
			o.MaxOpen = int(min(lim.Cur/4, 1<<16))
		}
	}
	o.MaxOpen = max(o.MaxOpen, 16)
	if o.Low <= 0 {
		o.Low = 64 << 20
	}
	if o.Floor <= 0 {
		o.Floor = 4 << 20
	}
	return o
}

// Warnings are what Open found worth telling an operator, a sentence each.
func (t *Tree) Warnings() []string { return t.warnings }

// NextID gives a file id that was never given before.
func (t *Tree) NextID() FileID { return FileID(t.next.Add(1)) }

// MaxID is the highest file id known.
func (t *Tree) MaxID() FileID { return FileID(t.next.Load()) }

// SetIDBase makes ids be given from base on, if none at or above it is known.
func (t *Tree) SetIDBase(base FileID) {
	if base > 0 {
		t.sawID(base - 1)
	}
}

func (t *Tree) sawID(id FileID) {
	for {
		have := t.next.Load()
		if uint64(id) <= have || t.next.CompareAndSwap(have, uint64(id)) {
			return
		}
	}
}

// Sync writes pending times and everything else to the disk: what was applied before the call survives a power loss.
// An error is final: after it nothing may be taken for durable (fsync(2) reports a lost page once).
func (t *Tree) Sync() error {
	if err := t.FlushTimes(); err != nil {
		return err
	}
	if err := unix.Syncfs(t.rootfd); err != nil {
		return fmt.Errorf("syncfs of %s: %w: the disk does not keep what was written; check it before this copy is used again", t.dir, err)
	}
	return nil
}

// Close writes pending times and lets go of everything. No other method may be running, and no File may be used later.
func (t *Tree) Close() error {
	var err error
	if t.rootfd >= 0 && t.limbofd >= 0 {
		err = t.FlushTimes()
	}
	t.cache.closeAll()
	for _, fd := range []*int{&t.rootfd, &t.limbofd} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	return err
}

// lockDirs locks the registers of one or two directories, in an order in which nobody waits for himself.
func (t *Tree) lockDirs(p, q FileID) (unlock func()) {
	if !t.settled.Load() {
		t.ns.Lock()
		if !t.settled.Load() {
			return t.ns.Unlock
		}
		t.ns.Unlock()
	}
	t.ns.RLock()
	a, b := stripe(p), stripe(q)
	if a > b {
		a, b = b, a
	}
	t.stripes[a].Lock()
	if a == b {
		return func() { t.stripes[a].Unlock(); t.ns.RUnlock() }
	}
	t.stripes[b].Lock()
	return func() { t.stripes[b].Unlock(); t.stripes[a].Unlock(); t.ns.RUnlock() }
}

// rlockDir keeps a directory's entries as they are.
func (t *Tree) rlockDir(p FileID) (unlock func()) {
	t.ns.RLock()
	s := &t.stripes[stripe(p)]
	s.RLock()
	return func() { s.RUnlock(); t.ns.RUnlock() }
}

func stripe(id FileID) uint8 { return uint8((uint64(id) * 0x9e3779b97f4a7c15) >> 56) }

// errno is the system's number in err, or EIO.
func errno(err error) syscall.Errno {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return syscall.EIO
}
