package tree

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

// create makes an inode with everything that the operation says of it.
func (t *Tree) create(op *replication.Op) (Stat, error) {
	if op.ID == 0 || op.ID == noID {
		return Stat{}, fail("create", op.ID, unix.EINVAL)
	}
	if op.Parent == 0 {
		return t.createOpen(op)
	}
	unlock := t.lockDirs(op.Parent, op.Parent)
	defer unlock()
	e, err := t.createEntry(op)
	defer t.releaseEntry(e)
	if err != nil {
		return Stat{}, err
	}
	var s Stat
	switch settled := t.settled.Load(); {
	case settled && e.n == nil:
		return Stat{}, lacks(op.Parent)
	case settled && t.index.has(op.ID):
		return Stat{}, fmt.Errorf("create: file id %x is here already: %w", uint64(op.ID), ErrDiverged)
	case settled:
		s, err = t.make(op, e.n, e.fd, e.name)
		if err == unix.EEXIST {
			return Stat{}, t.diverged(op, e, 0)
		}
	default:
		s, err = t.createLater(op, e)
	}
	if err != nil {
		if e := errno(err); err == e {
			err = fail("create", op.ID, err)
		}
		return Stat{}, err
	}
	t.stamp(e, op.Time)
	return s, nil
}

// createEntry is the entry where something is created; in a settled tree it is not read, because making it fails if it is taken.
func (t *Tree) createEntry(op *replication.Op) (*at, error) {
	if !t.settled.Load() {
		return t.entry(op.Parent, op.Name)
	}
	e := &at{dir: op.Parent, name: op.Name, fd: -1}
	if !entryName(op.Name) {
		return e, fail(fmt.Sprintf("use the name %q", op.Name), op.Parent, unix.EINVAL)
	}
	n, err := t.need(op.Parent)
	if err != nil {
		return e, err
	}
	e.n = n
	if n.typ != unix.S_IFDIR {
		return e, fail("create in what is no directory", op.Parent, unix.ENOTDIR)
	}
	e.fd, err = t.fd(n, pathFd)
	return e, err
}

// createLater creates where the inode or the entry may be of a later state.
func (t *Tree) createLater(op *replication.Op, e *at) (Stat, error) {
	ok, err := t.free(e, 0)
	if err != nil {
		return Stat{}, err
	}
	if !t.index.has(op.ID) {
		if ok {
			return t.make(op, e.n, e.fd, e.name)
		}
		s, err := t.make(op, nil, t.limbofd, limboEntry(isParked, op.ID))
		if err != nil {
			return Stat{}, err
		}
		t.limbo.set(op.ID, isParked)
		if e.n == nil {
			return s, lacks(op.Parent)
		}
		return s, nil
	}
	if ok {
		if err := t.place(op.ID, e); err != nil {
			return Stat{}, err
		}
	}
	n, err := t.need(op.ID)
	if err != nil {
		return Stat{}, err
	}
	defer t.release(n)
	t.touch(n, op.Time)
	if e.n == nil {
		return Stat{}, lacks(op.Parent)
	}
	return t.stat(n)
}

// createOpen makes an inode without a name (O_TMPFILE).
func (t *Tree) createOpen(op *replication.Op) (Stat, error) {
	unlock := t.lockDirs(op.ID, op.ID)
	defer unlock()
	if t.index.has(op.ID) {
		if t.settled.Load() {
			return Stat{}, fmt.Errorf("create: file id %x is here already: %w", uint64(op.ID), ErrDiverged)
		}
		n, err := t.need(op.ID)
		if err != nil {
			return Stat{}, err
		}
		defer t.release(n)
		t.touch(n, op.Time)
		return t.stat(n)
	}
	s, err := t.make(op, nil, t.limbofd, limboEntry(isOpen, op.ID))
	if err != nil {
		return Stat{}, fail("create", op.ID, err)
	}
	t.limbo.set(op.ID, isOpen)
	s.Nlink = 0
	return s, nil
}

// make makes the inode at (pfd, name). It gets its id last: an entry with an id is complete. p is the directory if it is one of the volume. A plain error is that of the system call.
func (t *Tree) make(op *replication.Op, p *inode, pfd int, name string) (Stat, error) {
	inherits, err := t.inherits(p, pfd)
	if err != nil {
		return Stat{}, err
	}
	fd, kind := -1, pathFd
	typ, perm := op.Mode&unix.S_IFMT, op.Mode&0o7777
	switch typ {
	case unix.S_IFREG:
		kind = writeFd
		fd, err = t.openNew(pfd, name, perm&0o777)
	case unix.S_IFDIR:
		err = unix.Mkdirat(pfd, name, perm)
	case unix.S_IFLNK:
		err = unix.Symlinkat(string(op.Data), pfd, name)
	case unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		err = unix.Mknodat(pfd, name, op.Mode&(unix.S_IFMT|0o777), int(op.Rdev))
	default:
		return Stat{}, fail(fmt.Sprintf("create with mode %o", op.Mode), op.ID, unix.EINVAL)
	}
	if err != nil {
		return Stat{}, err
	}
	if kind == pathFd {
		fd, err = t.openPath(pfd, name)
	}
	var s Stat
	if err == nil {
		s, err = t.dress(op, fd, kind, inherits)
	}
	if err != nil {
		if fd >= 0 {
			t.closeFd(fd)
		}
		t.unmake(pfd, name, typ)
		return Stat{}, err
	}
	n := t.cache.add(op.ID, typ, kind, fd)
	t.touch(n, op.Time)
	t.release(n)
	s.Mtime, s.Ctime = op.Time, op.Time
	t.sawID(op.ID)
	return s, nil
}

func (t *Tree) unmake(pfd int, name string, typ uint32) {
	flags := 0
	if typ == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	}
	_ = unix.Unlinkat(pfd, name, flags) // what stays has no id, and is found by the next scan
}

// openNew makes a regular file.
func (t *Tree) openNew(pfd int, name string, perm uint32) (int, error) {
	return t.openCounted(func() (int, error) {
		return unix.Openat(pfd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, perm)
	})
}

func (t *Tree) openPath(pfd int, name string) (int, error) {
	return t.openCounted(func() (int, error) {
		return unix.Openat(pfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
}

// openCounted opens, and closes others when descriptors run out.
func (t *Tree) openCounted(open func() (int, error)) (int, error) {
	for try := 0; ; try++ {
		fd, err := open()
		if err == nil {
			t.cache.open.Add(1)
			return fd, nil
		}
		if err != unix.EMFILE && err != unix.ENFILE || try == 3 || !t.cache.sweep() {
			return -1, err
		}
	}
}

// dress gives a new inode its owner, mode, attributes and, last, its id, whatever the directory or the process' umask had it inherit.
func (t *Tree) dress(op *replication.Op, fd, kind int, inherits bool) (Stat, error) {
	st, err := fstat(fd)
	if err != nil {
		return Stat{}, err
	}
	if st.Uid != op.UID || st.Gid != op.GID {
		if err := unix.Fchownat(fd, "", int(op.UID), int(op.GID), unix.AT_EMPTY_PATH); err != nil {
			return Stat{}, err
		}
		st.Uid, st.Gid = op.UID, op.GID
	}
	isLink := op.Mode&unix.S_IFMT == unix.S_IFLNK
	path := procPath(fd)
	if inherits && !isLink {
		for _, name := range [...]string{aclAccess, aclDefault} {
			if err := unix.Removexattr(path, name); err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP && err != unix.EACCES {
				return Stat{}, err
			}
		}
	}
	if want := op.Mode & 0o7777; !isLink && (st.Mode&0o7777 != want || want&0o7000 != 0 || inherits) {
		if err := unix.Chmod(path, want); err != nil {
			return Stat{}, err
		}
		st.Mode = st.Mode&unix.S_IFMT | want
	}
	if !isLink && len(op.Data) > 0 {
		if err := replication.EachXattr(op.Data, func(name string, value []byte) error {
			return unix.Setxattr(path, name, value, 0)
		}); err != nil {
			return Stat{}, err
		}
		if st, err = fstat(fd); err != nil {
			return Stat{}, err
		}
	}
	h, _, err := handleAt(fd, "")
	if err != nil {
		return Stat{}, err
	}
	if kind == writeFd {
		err = unix.Fsetxattr(fd, idXattr, idBytes(op.ID), 0)
	} else {
		err = unix.Setxattr(path, idXattr, idBytes(op.ID), 0)
	}
	if err != nil {
		return Stat{}, err
	}
	t.index.put(op.ID, h)
	return t.shown(op.ID, nil, &st), nil
}

// inherits says whether new entries of a directory get access lists from it.
func (t *Tree) inherits(p *inode, pfd int) (bool, error) {
	if p == nil {
		return false, nil
	}
	switch p.inherit.Load() {
	case inheritNothing:
		return false, nil
	case inheritACL:
		return true, nil
	}
	_, err := unix.Getxattr(procPath(pfd), aclDefault, nil)
	switch err {
	case nil:
		p.inherit.Store(inheritACL)
		return true, nil
	case unix.ENODATA, unix.EOPNOTSUPP:
		p.inherit.Store(inheritNothing)
		return false, nil
	}
	return false, fail("read the access lists", p.id, err)
}
