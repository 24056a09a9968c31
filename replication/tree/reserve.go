package tree

import (
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

// room knows how much may be written before the file system has to be asked again.
type room struct {
	able    Ability
	largest int64 // size of a file
	budget  atomic.Int64
}

// refresh asks the file system. Half of what lies above the low mark may be used before it is asked again; others use the disk too.
func (r *room) refresh(t *Tree) error {
	_, err := r.ask(t)
	return err
}

func (r *room) ask(t *Tree) (free int64, err error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(t.rootfd, &fs); err != nil {
		return 0, fail("statfs", rootID, err)
	}
	free = int64(fs.Bavail) * fs.Bsize
	if fs.Files > 0 && fs.Ffree < fewInodes {
		free = min(free, t.opt.Floor) // without inodes there is no room for names
	}
	r.budget.Store(max(0, free-t.opt.Low) / 2)
	return free, nil
}

// Reserve says whether Apply of the operation will find what it needs on this disk, and takes the space where little is left. It is called
// before the operation gets its record: what does not fit is refused with the caller's errno (ENOSPC, EDQUOT, EFBIG, EOPNOTSUPP, E2BIG,
// EMLINK), and nothing is replicated. With room it costs one atomic subtraction.
func (t *Tree) Reserve(op *replication.Op) error {
	switch op.Kind {
	case replication.Write:
		if op.Off < 0 || op.Off > t.room.largest-int64(len(op.Data)) && t.room.largest > 0 {
			return unix.EFBIG
		}
		if t.room.budget.Add(-int64(len(op.Data))-overhead) >= 0 {
			return nil
		}
		return t.reserveBytes(op.ID, op.Off, int64(len(op.Data)))
	case replication.Fallocate:
		return t.reserveFallocate(op)
	case replication.SetAttr:
		if op.Valid&replication.ValidSize != 0 && t.room.largest > 0 && op.Len > t.room.largest {
			return unix.EFBIG
		}
		return nil
	case replication.SetXattr:
		return t.reserveXattr(op)
	case replication.Create, replication.Rename:
		return t.reserveName()
	case replication.Link:
		s, err := t.Stat(op.ID)
		if err == nil && s.Nlink >= mostLinks {
			return unix.EMLINK
		}
		return t.reserveName()
	}
	return nil
}

const (
	overhead  = 256   // bytes of names and extents that an operation is counted for
	mostLinks = 64999 // one below ext4's, the smallest of the usual file systems: a redo may need one for a moment
)

func (t *Tree) reserveName() error {
	if t.room.budget.Add(-4096-overhead) >= 0 {
		return nil
	}
	free, err := t.room.ask(t)
	if err != nil {
		return err
	}
	if free <= t.opt.Floor {
		return unix.ENOSPC
	}
	return nil
}

// reserveBytes allocates the range of a file, which changes neither its size nor its content.
func (t *Tree) reserveBytes(id FileID, off, length int64) error {
	free, err := t.room.ask(t)
	if err != nil {
		return err
	}
	if free-length > t.opt.Low {
		return nil
	}
	n, err := t.acquire(id)
	if err != nil {
		return err
	}
	defer t.release(n)
	fd, err := t.dataFd(n)
	if err != nil {
		return err
	}
	if free-length < t.opt.Floor && !t.allocated(fd, off, length) {
		return unix.ENOSPC
	}
	err = fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, off, length)
	if err == unix.EOPNOTSUPP {
		return nil // the floor is what there is
	}
	return err
}

// allocated says whether the range has blocks already, as far as the file system tells.
func (t *Tree) allocated(fd int, off, length int64) bool {
	hole, err := unix.Seek(fd, off, unix.SEEK_HOLE)
	return err == nil && hole >= off+length
}

func (t *Tree) reserveFallocate(op *replication.Op) error {
	mode := op.Flags & 0xffff
	if mode&^allocateModes != 0 {
		return unix.EOPNOTSUPP
	}
	for _, need := range [...]struct {
		bit uint32
		a   Ability
	}{{unix.FALLOC_FL_PUNCH_HOLE, PunchHole}, {unix.FALLOC_FL_ZERO_RANGE, ZeroRange}} {
		if mode&need.bit != 0 && t.room.able&need.a == 0 {
			return unix.EOPNOTSUPP
		}
	}
	if mode&unix.FALLOC_FL_PUNCH_HOLE != 0 {
		return nil
	}
	if t.room.able&Allocate == 0 {
		return unix.EOPNOTSUPP
	}
	if op.Off < 0 || op.Len <= 0 || t.room.largest > 0 && op.Off > t.room.largest-op.Len {
		return unix.EFBIG
	}
	// It asks for space, so the space is taken now; the operation itself then finds it.
	if t.room.budget.Load() > op.Len {
		t.room.budget.Add(-op.Len)
		return nil
	}
	return t.reserveBytes(op.ID, op.Off, op.Len)
}

// reserveXattr rehearses on a file in limbo that has the same attributes: only the file system knows what fits.
func (t *Tree) reserveXattr(op *replication.Op) error {
	if strings.HasPrefix(op.Name, ownPrefix) {
		return unix.EPERM
	}
	s, err := t.Stat(op.ID)
	if err != nil {
		return err
	}
	if typ := s.Mode & unix.S_IFMT; typ != unix.S_IFREG && typ != unix.S_IFDIR && strings.HasPrefix(op.Name, "user.") {
		return unix.EPERM // xattr(7)
	} else if op.Name == aclDefault && typ != unix.S_IFDIR {
		return unix.EACCES
	} else if (op.Name == aclAccess || op.Name == aclDefault) && typ == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	have, err := t.Xattrs(op.ID)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(t.limbofd, ".", unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
	if err == unix.EOPNOTSUPP {
		return t.reserveName()
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fsetxattr(fd, idXattr, idBytes(noID), 0); err != nil {
		return err
	}
	for name, value := range have {
		if name != op.Name && name != aclDefault && unix.Fsetxattr(fd, name, value, 0) != nil {
			break // what one inode can hold depends on its kind; the last word has the file system
		}
	}
	if op.Name == aclDefault {
		return t.reserveName() // only a directory can have it
	}
	return unix.Fsetxattr(fd, op.Name, op.Data, 0)
}
