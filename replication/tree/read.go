package tree

import (
	"errors"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// Stat is what is known of an inode. Nlink does not count names in limbo. Times are those of the operations (see touch), ctime
// once the inode has left the cache that of the backing file.
type Stat struct {
	Mode, Nlink, UID, GID, Rdev uint32
	Blksize                     uint32
	Size, Blocks                int64 // bytes; units of 512 bytes
	Atime, Mtime, Ctime         int64 // ns since 1970
}

func (t *Tree) shown(id FileID, n *inode, st *unix.Stat_t) Stat {
	s := Stat{
		Mode: st.Mode, Nlink: uint32(st.Nlink), UID: st.Uid, GID: st.Gid, Rdev: uint32(st.Rdev), Blksize: uint32(st.Blksize), Size: st.Size, Blocks: st.Blocks,
		Atime: nanos(st.Atim), Mtime: nanos(st.Mtim), Ctime: nanos(st.Ctim),
	}
	if n != nil {
		if at := n.mtime.Load(); at != omit {
			s.Mtime = at
		}
		if at := n.ctime.Load(); at != omit {
			s.Ctime = at
		}
	}
	if t.limbo.has(id) {
		s.Nlink--
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			s.Nlink = 0
		}
	}
	return s
}

// Stat says what is known of an inode. ESTALE: there is none with this id.
func (t *Tree) Stat(id FileID) (Stat, error) {
	n, err := t.acquire(id)
	if err != nil {
		return Stat{}, err
	}
	defer t.release(n)
	return t.stat(n)
}

func (t *Tree) stat(n *inode) (Stat, error) {
	fd, err := t.anyFd(n)
	if err != nil {
		return Stat{}, err
	}
	st, err := fstat(fd)
	if err != nil {
		return Stat{}, fail("stat", n.id, err)
	}
	return t.shown(n.id, n, &st), nil
}

// Lookup finds the name in a directory. ENOENT: there is none; ENOTDIR: parent is no directory.
func (t *Tree) Lookup(parent FileID, name string) (FileID, Stat, error) {
	if !entryName(name) {
		return 0, Stat{}, unix.EINVAL
	}
	p, err := t.acquireDir(parent)
	if err != nil {
		return 0, Stat{}, err
	}
	defer t.release(p)
	fd, err := t.fd(p, pathFd)
	if err != nil {
		return 0, Stat{}, err
	}
	unlock := t.rlockDir(parent)
	st, err := fstatat(fd, name)
	if err != nil {
		unlock()
		return 0, Stat{}, err
	}
	id, err := idAt(fd, name)
	unlock()
	switch {
	case err != nil:
		return 0, Stat{}, fail("look up a name", parent, err)
	case id == 0 || id == noID:
		return 0, Stat{}, unix.ENOENT
	}
	return id, t.shown(id, t.cache.cached(id), &st), nil
}

// Parent is the directory that a directory lies in; of the root it is the root. ESTALE: it lies in none (limbo).
func (t *Tree) Parent(dir FileID) (FileID, error) {
	if dir == rootID {
		return rootID, nil
	}
	n, err := t.acquireDir(dir)
	if err != nil {
		return 0, err
	}
	defer t.release(n)
	fd, err := t.fd(n, pathFd)
	if err != nil {
		return 0, err
	}
	t.ns.RLock()
	defer t.ns.RUnlock()
	if t.limbo.has(dir) {
		return 0, errMissing
	}
	up, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, fail("open the parent", dir, err)
	}
	defer unix.Close(up)
	id, err := idOfFd(up)
	if err != nil || id == noID {
		return 0, fail("read the parent", dir, errors.Join(err, unix.ESTALE))
	}
	return id, nil
}

// acquireDir acquires a directory. Errors: as acquire; ENOTDIR.
func (t *Tree) acquireDir(id FileID) (*inode, error) {
	n, err := t.acquire(id)
	if err == nil && n.typ != unix.S_IFDIR {
		t.release(n)
		return nil, fail("use as a directory", id, unix.ENOTDIR)
	}
	return n, err
}

// Readlink reads a symbolic link.
func (t *Tree) Readlink(id FileID) (string, error) {
	n, err := t.acquire(id)
	if err != nil {
		return "", err
	}
	defer t.release(n)
	fd, err := t.fd(n, pathFd)
	if err != nil {
		return "", err
	}
	buf := make([]byte, unix.PathMax)
	k, err := unix.Readlinkat(fd, "", buf)
	if err == unix.ENOENT { // what readlinkat says of an empty path that is no link
		err = unix.EINVAL
	}
	if err != nil {
		return "", fail("read the link", id, err)
	}
	return string(buf[:k]), nil
}

// Getxattr reads an attribute into buf and returns its length; with an empty buf only the length. ENODATA, ERANGE as getxattr(2).
func (t *Tree) Getxattr(id FileID, name string, buf []byte) (int, error) {
	if strings.HasPrefix(name, ownPrefix) {
		return 0, unix.ENODATA
	}
	n, err := t.acquire(id)
	if err != nil {
		return 0, err
	}
	defer t.release(n)
	return t.getxattr(n, name, buf)
}

func (t *Tree) getxattr(n *inode, name string, buf []byte) (int, error) {
	for _, kind := range [...]int{writeFd, readFd} {
		if fd := n.fds[kind].Load(); fd >= 0 {
			return unix.Fgetxattr(int(fd), name, buf)
		}
	}
	fd, err := t.fd(n, pathFd)
	if err != nil {
		return 0, err
	}
	return unix.Getxattr(procPath(fd), name, buf)
}

// Listxattr is the names of the attributes, without those of hanode itself.
func (t *Tree) Listxattr(id FileID) ([]string, error) {
	n, err := t.acquire(id)
	if err != nil {
		return nil, err
	}
	defer t.release(n)
	return t.listxattr(n)
}

func (t *Tree) listxattr(n *inode) ([]string, error) {
	fd, err := t.fd(n, pathFd)
	if err != nil {
		return nil, err
	}
	names, err := listxattrFd(fd)
	if err != nil {
		return nil, fail("list the attributes", n.id, err)
	}
	return names, nil
}

func listxattrFd(fd int) ([]string, error) {
	var small [512]byte
	buf := small[:]
	k, err := unix.Listxattr(procPath(fd), buf)
	for err == unix.ERANGE {
		buf = make([]byte, 4*len(buf)) // the kernel's bound is 64 KiB (XATTR_LIST_MAX)
		k, err = unix.Listxattr(procPath(fd), buf)
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, s := range strings.Split(strings.TrimSuffix(string(buf[:k]), "\x00"), "\x00") {
		if s != "" && !strings.HasPrefix(s, ownPrefix) {
			out = append(out, s)
		}
	}
	return out, nil
}

// Xattrs is every attribute of an inode that an operation may set, by name.
func (t *Tree) Xattrs(id FileID) (map[string][]byte, error) {
	n, err := t.acquire(id)
	if err != nil {
		return nil, err
	}
	defer t.release(n)
	names, err := t.listxattr(n)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	out := make(map[string][]byte, len(names))
	for _, name := range names {
		buf := make([]byte, 256)
		k, err := t.getxattr(n, name, buf)
		if err == unix.ERANGE {
			buf = make([]byte, 1<<16)
			k, err = t.getxattr(n, name, buf)
		}
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, fail("read the attribute "+name, id, err)
		}
		out[name] = buf[:k:k]
	}
	return out, nil
}

// Statfs is what the file system that holds the volume says, less what is kept for names and attributes.
func (t *Tree) Statfs() (unix.Statfs_t, error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(t.rootfd, &s); err != nil {
		return s, err
	}
	kept := uint64(t.opt.Floor) / uint64(max(s.Bsize, 1))
	s.Bavail -= min(kept, s.Bavail)
	return s, nil
}

// File is an inode in use. It keeps a descriptor only from Fd on: a million Files that were never asked for one cost no descriptors.
type File struct {
	t     *Tree
	n     *inode // pinned; nil while nothing is
	id    FileID
	flags int
	own   int // a descriptor of its own, if the flags want one; -1
}

// OpenFile opens an inode. flags: O_RDONLY, O_WRONLY, O_RDWR, and O_DIRECT, which gives it a descriptor of its own. Writing through Fd
// would go round the journal: it is for reading, and for passing through what is read.
func (t *Tree) OpenFile(id FileID, flags int) (*File, error) {
	n, err := t.acquire(id)
	if err != nil {
		return nil, err
	}
	defer t.release(n)
	if n.typ != unix.S_IFREG {
		return nil, fail("open", id, unix.EINVAL)
	}
	f := &File{t: t, id: id, flags: flags, own: -1}
	if flags&unix.O_DIRECT != 0 {
		h, ok := t.index.get(id)
		if !ok {
			return nil, errMissing
		}
		if f.own, err = t.openHandle(h, flags&(unix.O_ACCMODE|unix.O_DIRECT)|unix.O_NOATIME); err != nil {
			return nil, fail("open", id, err)
		}
	}
	return f, nil
}

// ID is the file's id.
func (f *File) ID() FileID { return f.id }

func (f *File) kind() int {
	if f.flags&unix.O_ACCMODE == unix.O_RDONLY {
		return readFd
	}
	return writeFd
}

// Fd gives a descriptor that stays open until Close; others share it, so its position must not be used. Not for concurrent first use.
func (f *File) Fd() (int, error) {
	if f.own >= 0 {
		return f.own, nil
	}
	if f.n == nil {
		n, err := f.t.acquire(f.id)
		if err != nil {
			return -1, err
		}
		f.n = n
	}
	return f.t.fd(f.n, f.kind())
}

// with calls fn with a descriptor for reading.
func (f *File) with(fn func(fd int) error) error {
	if f.own >= 0 {
		return fn(f.own)
	}
	n, err := f.t.acquire(f.id)
	if err != nil {
		return err
	}
	defer f.t.release(n)
	kind := readFd
	if n.fds[writeFd].Load() >= 0 {
		kind = writeFd
	}
	fd, err := f.t.fd(n, kind)
	if err != nil {
		return err
	}
	return fn(fd)
}

// ReadAt reads as io.ReaderAt.
func (f *File) ReadAt(b []byte, off int64) (n int, err error) {
	err = f.with(func(fd int) error {
		for n < len(b) {
			k, err := unix.Pread(fd, b[n:], off+int64(n))
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return fail("read", f.id, err)
			}
			if k == 0 {
				return io.EOF
			}
			n += k
		}
		return nil
	})
	return n, err
}

// Seek finds data or a hole from off on: whence is unix.SEEK_DATA or unix.SEEK_HOLE. ENXIO: there is none.
func (f *File) Seek(off int64, whence int) (at int64, err error) {
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, unix.EINVAL
	}
	err = f.with(func(fd int) (err error) {
		at, err = unix.Seek(fd, off, whence)
		return err
	})
	return at, err
}

// Close lets go of the descriptor.
func (f *File) Close() error {
	if f.own >= 0 {
		f.t.closeFd(f.own)
		f.own = -1
	}
	if f.n != nil {
		f.t.release(f.n)
		f.n = nil
	}
	return nil
}
