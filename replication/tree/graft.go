package tree

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

// What a resync needs beside Apply (replication/resync). Its changes have no record: they bring registers of an unsettled tree to a state of the source that
// is at or after the position where the redo begins. Nothing is lost on the way: what has no place waits in limbo, until the redo gives it
// one or Settle drops it.

// Item is an entry with everything that is known of the inode.
type Item struct {
	Entry
	Stat   Stat
	Xattrs []byte // a row of replication.AppendXattr
	Target string // of a symbolic link
}

// List is ReadDir with everything that is known of the inodes, at one state of the directory.
func (t *Tree) List(parent FileID, cookie uint64, most int) ([]Item, error) {
	n, err := t.acquireDir(parent)
	if err != nil {
		return nil, err
	}
	defer t.release(n)
	pfd, err := t.fd(n, pathFd)
	if err != nil {
		return nil, err
	}
	fd, err := t.openDir(pfd)
	if err != nil {
		return nil, fail("open the directory", parent, err)
	}
	defer t.closeFd(fd)
	if cookie != 0 {
		if _, err := unix.Seek(fd, int64(cookie), unix.SEEK_SET); err != nil {
			return nil, fail("go on in the directory", parent, err)
		}
	}
	unlock := t.rlockDir(parent)
	defer unlock()
	var out []Item
	buf := make([]byte, min(max(most*48, 1<<10), 1<<16))
	for len(out) < most {
		k, err := unix.Getdents(fd, buf)
		if err != nil {
			return out, fail("list the directory", parent, err)
		}
		if k == 0 {
			return out, nil
		}
		var inner error
		eachDirent(buf[:k], func(name string, _ uint32, off uint64) bool {
			if len(out) == most {
				return false
			}
			i, ok, err := t.item(fd, name)
			if inner = err; ok {
				i.Cookie = off
				out = append(out, i)
			}
			return err == nil
		})
		if inner != nil {
			return out, fail("list the directory", parent, inner)
		}
	}
	return out, nil
}

// Names is a snapshot of the names in a directory; all is false if there are more than most.
func (t *Tree) Names(parent FileID, most int) (names []string, all bool, err error) {
	n, err := t.acquireDir(parent)
	if err != nil {
		return nil, false, err
	}
	defer t.release(n)
	pfd, err := t.fd(n, pathFd)
	if err != nil {
		return nil, false, err
	}
	fd, err := t.openDir(pfd)
	if err != nil {
		return nil, false, fail("open the directory", parent, err)
	}
	defer t.closeFd(fd)
	unlock := t.rlockDir(parent)
	defer unlock()
	for buf := make([]byte, 1<<16); len(names) <= most; {
		k, err := unix.Getdents(fd, buf)
		if err != nil {
			return nil, false, fail("list the directory", parent, err)
		}
		if k == 0 {
			return names, true, nil
		}
		eachDirent(buf[:k], func(name string, _ uint32, _ uint64) bool { names = append(names, name); return true })
	}
	return nil, false, nil
}

// item reads one entry of an open directory.
func (t *Tree) item(fd int, name string) (i Item, ok bool, err error) {
	i.Name = name
	if i.ID, err = idAt(fd, name); err != nil || i.ID == 0 || i.ID == noID {
		return i, false, err
	}
	st, err := fstatat(fd, name)
	if err != nil {
		return i, false, err
	}
	i.Stat, i.Type = t.shown(i.ID, t.cache.cached(i.ID), &st), st.Mode&unix.S_IFMT
	path := procPath(fd) + "/" + name
	if i.Xattrs, err = xattrRow(func(b []byte) (int, error) { return unix.Llistxattr(path, b) },
		func(attr string, b []byte) (int, error) { return getxattrAt(fd, name, attr, b) }); err != nil {
		return i, false, err
	}
	if i.Type == unix.S_IFLNK {
		b := make([]byte, unix.PathMax)
		k, err := unix.Readlinkat(fd, name, b)
		if err != nil {
			return i, false, err
		}
		i.Target = string(b[:k])
	}
	return i, true, nil
}

// Inode is what List says of an inode, by its id; it has no name then.
func (t *Tree) Inode(id FileID) (Item, error) {
	n, err := t.acquire(id)
	if err != nil {
		return Item{}, err
	}
	defer t.release(n)
	fd, err := t.fd(n, pathFd)
	if err != nil {
		return Item{}, err
	}
	i := Item{Entry: Entry{ID: id, Type: n.typ}}
	if i.Stat, err = t.stat(n); err != nil {
		return i, err
	}
	path := procPath(fd)
	if i.Xattrs, err = xattrRow(func(b []byte) (int, error) { return unix.Listxattr(path, b) },
		func(attr string, b []byte) (int, error) { return unix.Getxattr(path, attr, b) }); err != nil {
		return i, fail("read the attributes", id, err)
	}
	if n.typ == unix.S_IFLNK {
		i.Target, err = t.Readlink(id)
	}
	return i, err
}

// xattrRow reads the attributes that users may set.
func xattrRow(list func([]byte) (int, error), get func(string, []byte) (int, error)) (row []byte, err error) {
	var small [256]byte
	names := small[:]
	k, err := list(names)
	for err == unix.ERANGE {
		names = make([]byte, 4*len(names))
		k, err = list(names)
	}
	if err == unix.EOPNOTSUPP {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for at, i := 0, 0; i < k; i++ {
		if names[i] != 0 {
			continue
		}
		name := string(names[at:i])
		if at = i + 1; len(name) >= len(ownPrefix) && name[:len(ownPrefix)] == ownPrefix {
			continue
		}
		v := make([]byte, 256)
		n, err := get(name, v)
		if err == unix.ERANGE {
			v = make([]byte, 1<<16)
			n, err = get(name, v)
		}
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, err
		}
		row = replication.AppendXattr(row, name, v[:n])
	}
	return row, nil
}

// IDs calls fn with every file id, in no order, until it says no. It must not use the tree.
func (t *Tree) IDs(fn func(FileID) bool) {
	for i := range t.index.shards {
		s := &t.index.shards[i]
		s.mu.RLock()
		for id := range s.m {
			if !fn(id) {
				s.mu.RUnlock()
				return
			}
		}
		s.mu.RUnlock()
	}
}

// Count is the number of inodes.
func (t *Tree) Count() int { return t.index.len() }

var errSettled = errors.New("the tree is settled: only operations change it")

// graft runs fn with every name of an unsettled tree locked.
func (t *Tree) graft(fn func() error) error {
	t.ns.Lock()
	defer t.ns.Unlock()
	if t.settled.Load() {
		return errSettled
	}
	return fn()
}

// Unplace takes a name away from an inode, which waits in limbo if it was the last. The time of the directory stays.
func (t *Tree) Unplace(dir FileID, name string) error {
	return t.graft(func() error { return t.unplaceAt(dir, name) })
}

func (t *Tree) unplaceAt(dir FileID, name string) error {
	e, err := t.entry(dir, name)
	defer t.releaseEntry(e)
	if err != nil || e.n == nil || e.now == 0 {
		return err
	}
	s, err := t.stat(e.n)
	if err != nil {
		return err
	}
	if e.now == noID {
		err = t.removeAll(e.fd, name)
	} else {
		err = t.unplace(e)
	}
	t.touch(e.n, s.Mtime)
	return err
}

// Place gives an inode that is here the name (dir, name), which nothing has; a directory leaves the place where it was. The times of directories stay.
// A directory that would lie in itself waits until it can be there.
func (t *Tree) Place(id, dir FileID, name string) error {
	return t.graft(func() error {
		n, err := t.need(id)
		if err != nil {
			return err
		}
		defer t.release(n)
		if n.typ == unix.S_IFDIR && !t.limbo.has(id) {
			if err := t.uproot(n); err != nil {
				return err
			}
		}
		e, err := t.entry(dir, name)
		defer t.releaseEntry(e)
		if err != nil {
			return err
		}
		if e.n == nil || e.now != 0 {
			return fail(fmt.Sprintf("place at %q in directory %x", name, uint64(dir)), id, unix.EEXIST)
		}
		s, err := t.stat(e.n)
		if err != nil {
			return err
		}
		err = t.place(id, e)
		t.touch(e.n, s.Mtime)
		if err != nil {
			return err
		}
		return t.retry()
	})
}

// uproot takes a directory from the place where it is.
func (t *Tree) uproot(n *inode) error {
	fd, err := t.fd(n, pathFd)
	if err != nil {
		return err
	}
	up, err := unix.Openat(fd, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fail("open the parent", n.id, err)
	}
	defer unix.Close(up)
	parent, err := idOfFd(up)
	if err != nil {
		return fail("read the parent", n.id, err)
	}
	name := ""
	buf := make([]byte, 1<<15)
	for name == "" {
		k, err := unix.Getdents(up, buf)
		if err != nil || k == 0 {
			return fail("find the name", n.id, errors.Join(err, unix.ENOENT))
		}
		eachDirent(buf[:k], func(s string, typ uint32, _ uint64) bool {
			if typ == unix.S_IFDIR || typ == 0 {
				if id, err := idAt(up, s); err == nil && id == n.id {
					name = s
				}
			}
			return name == ""
		})
	}
	return t.unplaceAt(parent, name)
}

// MakeParked makes an inode that has no place yet, with everything that op says of it.
func (t *Tree) MakeParked(op *replication.Op) error {
	return t.graft(func() error {
		if t.index.has(op.ID) {
			return fail("make", op.ID, unix.EEXIST)
		}
		if _, err := t.make(op, nil, t.limbofd, limboEntry(isParked, op.ID)); err != nil {
			return fail("make", op.ID, err)
		}
		t.limbo.set(op.ID, isParked)
		return nil
	})
}

// SetOpen says of an inode that waits in limbo that it is open without a name on the active.
func (t *Tree) SetOpen(id FileID) error {
	return t.graft(func() error {
		if t.limbo.get(id) != isParked {
			return nil
		}
		return t.relabel(id, isParked, isOpen)
	})
}

// DropLimbo removes from limbo, with all below it, whatever keep does not want.
func (t *Tree) DropLimbo(keep func(FileID) bool) error {
	return t.graft(func() error {
		for _, id := range append(t.limbo.all(isParked), t.limbo.all(isOpen)...) {
			if !keep(id) {
				if err := t.dropLimbo(id); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// Entry is what List says of one name. ENOENT: there is none with a file id.
func (t *Tree) Entry(parent FileID, name string) (Item, error) {
	p, err := t.acquireDir(parent)
	if err != nil {
		return Item{}, err
	}
	defer t.release(p)
	fd, err := t.fd(p, pathFd)
	if err != nil {
		return Item{}, err
	}
	unlock := t.rlockDir(parent)
	defer unlock()
	i, ok, err := t.item(fd, name)
	switch {
	case err != nil:
		return i, fail("look up a name", parent, err)
	case !ok:
		return i, unix.ENOENT
	}
	return i, nil
}

// Discard removes an inode that is something else than the source's of the same id, with all below it.
func (t *Tree) Discard(id FileID) error {
	return t.graft(func() error {
		n, err := t.need(id)
		if err != nil {
			return err
		}
		defer t.release(n)
		if n.typ == unix.S_IFDIR && !t.limbo.has(id) {
			if err := t.uproot(n); err != nil {
				return err
			}
		}
		fd, err := t.fd(n, pathFd)
		if err == nil {
			err = unix.Removexattr(procPath(fd), idXattr) // its names, if it has more, are entries without an id now: the walk takes them away
		}
		if err != nil {
			return fail("discard", id, err)
		}
		t.forgetInode(id)
		if t.limbo.has(id) {
			return t.dropLimbo(id)
		}
		return nil
	})
}
