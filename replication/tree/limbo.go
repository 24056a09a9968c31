package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Why an inode is in limbo. It is the first letter of its name there; the id in hexadecimal follows.
const (
	isOpen   = 'o' // it has no name and is open on the active, as the operations say: until Forget
	isParked = 'p' // a redo has no place for it at the moment: until Settle
)

// place is where a parked directory belongs, which cannot be there while it would lie in itself.
type place struct {
	parent FileID
	name   string
}

// limbo knows what lies in the directory of that name.
type limbo struct {
	mu    sync.Mutex
	why   map[FileID]byte
	wants map[FileID]place // of parked ones
}

func (l *limbo) init() { l.why, l.wants = map[FileID]byte{}, map[FileID]place{} }

func (l *limbo) get(id FileID) byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why[id]
}

func (l *limbo) has(id FileID) bool { return l.get(id) != 0 }

func (l *limbo) set(id FileID, why byte) {
	l.mu.Lock()
	l.why[id] = why
	l.mu.Unlock()
}

func (l *limbo) drop(id FileID) {
	l.mu.Lock()
	delete(l.why, id)
	delete(l.wants, id)
	l.mu.Unlock()
}

func (l *limbo) all(why byte) (ids []FileID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, w := range l.why {
		if w == why {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func limboEntry(why byte, id FileID) string { return fmt.Sprintf("%c%016x", why, uint64(id)) }

// parseLimbo reads a name of limbo; why is 0 for one that is none.
func parseLimbo(name string) (why byte, id FileID) {
	if len(name) != 17 || name[0] != isOpen && name[0] != isParked {
		return 0, 0
	}
	v, err := strconv.ParseUint(name[1:], 16, 64)
	if err != nil || v == 0 {
		return 0, 0
	}
	return name[0], FileID(v)
}

// InLimbo are the inodes without a name that are open on the active, in the order of their ids. Promotion submits a Forget for each, so that they
// go on every copy.
func (t *Tree) InLimbo() []FileID { return t.limbo.all(isOpen) }

// toLimbo moves the entry (pfd, name), which is id, to limbo.
func (t *Tree) toLimbo(pfd int, name string, id FileID, why byte) error {
	if had := t.limbo.get(id); had != 0 {
		if err := t.relabel(id, had, why); err != nil {
			return err
		}
		return unix.Unlinkat(pfd, name, 0) // it had a name in limbo beside this one
	}
	if err := unix.Renameat2(pfd, name, t.limbofd, limboEntry(why, id), 0); err != nil {
		return err
	}
	t.limbo.set(id, why)
	return nil
}

func (t *Tree) relabel(id FileID, from, to byte) error {
	if from == to {
		return nil
	}
	if err := unix.Renameat2(t.limbofd, limboEntry(from, id), t.limbofd, limboEntry(to, id), 0); err != nil {
		return err
	}
	t.limbo.drop(id)
	t.limbo.set(id, to)
	return nil
}

// fromLimbo gives an inode of limbo the name (qfd, name), which is free.
func (t *Tree) fromLimbo(id FileID, qfd int, name string) error {
	why := t.limbo.get(id)
	if err := unix.Renameat2(t.limbofd, limboEntry(why, id), qfd, name, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	t.limbo.mu.Lock()
	_, wanted := t.limbo.wants[id]
	t.limbo.mu.Unlock()
	t.limbo.drop(id)
	if wanted {
		return removexattrAt(qfd, name, placeXattr)
	}
	return nil
}

// dropLimbo takes an inode's name in limbo away, with everything in it if it is a directory.
func (t *Tree) dropLimbo(id FileID) error {
	why := t.limbo.get(id)
	if why == 0 {
		return nil
	}
	if err := t.removeAll(t.limbofd, limboEntry(why, id)); err != nil {
		return fail("remove from limbo", id, err)
	}
	t.limbo.drop(id)
	return nil
}

// removeAll removes an entry and all below it. What has names elsewhere keeps those.
func (t *Tree) removeAll(dirfd int, name string) error {
	st, err := fstatat(dirfd, name)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	id, err := idAt(dirfd, name)
	if err != nil {
		return err
	}
	flags := 0
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
		fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		err = t.removeBelow(fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(dirfd, name, flags); err != nil {
		return err
	}
	if id != noID && (flags != 0 || st.Nlink == 1) {
		t.forgetInode(id)
	}
	return nil
}

func (t *Tree) removeBelow(fd int) error {
	buf := make([]byte, 1<<14)
	for {
		if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
			return err
		}
		k, err := unix.Getdents(fd, buf)
		if err != nil {
			return err
		}
		var names []string
		eachDirent(buf[:k], func(name string, _ uint32, _ uint64) bool { names = append(names, name); return true })
		if len(names) == 0 {
			return nil
		}
		for _, name := range names {
			if err := t.removeAll(fd, name); err != nil {
				return err
			}
		}
	}
}

// wait parks a directory, which is in limbo already, with the place where it belongs.
func (t *Tree) wait(id FileID, at place) error {
	b := append(binary.LittleEndian.AppendUint64(nil, uint64(at.parent)), at.name...)
	if err := setxattrAt(t.limbofd, limboEntry(t.limbo.get(id), id), placeXattr, b); err != nil {
		return err
	}
	t.limbo.mu.Lock()
	t.limbo.wants[id] = at
	t.limbo.mu.Unlock()
	return nil
}

// wantsNothing: an operation has taken the inode from the place where it would belong.
func (t *Tree) wantsNothing(id FileID) error {
	t.limbo.mu.Lock()
	_, ok := t.limbo.wants[id]
	delete(t.limbo.wants, id)
	t.limbo.mu.Unlock()
	if !ok {
		return nil
	}
	return removexattrAt(t.limbofd, limboEntry(t.limbo.get(id), id), placeXattr)
}

// retry puts parked directories where they belong, if they can be there now.
func (t *Tree) retry() error {
	for again := true; again; {
		again = false
		t.limbo.mu.Lock()
		ids := make([]FileID, 0, len(t.limbo.wants))
		for id := range t.limbo.wants {
			ids = append(ids, id)
		}
		t.limbo.mu.Unlock()
		slices.Sort(ids)
		for _, id := range ids {
			t.limbo.mu.Lock()
			at := t.limbo.wants[id]
			t.limbo.mu.Unlock()
			done, err := t.placeWaiting(id, at)
			if err != nil {
				return err
			}
			again = again || done
		}
	}
	return nil
}

// placeWaiting puts one parked directory where it belongs. The times of the directory there are those of operations, so they stay.
func (t *Tree) placeWaiting(id FileID, at place) (done bool, err error) {
	q, err := t.acquireDir(at.parent)
	if errors.Is(err, errMissing) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer t.release(q)
	qfd, err := t.fd(q, pathFd)
	if err != nil {
		return false, err
	}
	before, err := t.stat(q)
	if err != nil {
		return false, err
	}
	switch err := t.fromLimbo(id, qfd, at.name); err {
	case nil:
		t.touch(q, before.Mtime)
		return true, nil
	case unix.EEXIST, unix.EINVAL, unix.ELOOP:
		return false, nil
	default:
		return false, fail("take from limbo", id, err)
	}
}

// stray is an entry without an id.
type stray struct {
	dir  FileID
	name string
}

// Settle says that everything is applied that may have been applied before: the tree is that of the last operation. What waits in limbo without being open on
// the active goes. Errors: a directory that still has no place, or files without an id: the tree stays unsettled.
func (t *Tree) Settle() error {
	t.ns.Lock()
	defer t.ns.Unlock()
	if t.settled.Load() {
		return nil
	}
	if err := t.retry(); err != nil {
		return err
	}
	t.limbo.mu.Lock()
	waiting := len(t.limbo.wants)
	t.limbo.mu.Unlock()
	if waiting > 0 {
		return fmt.Errorf("%d directories of %s have no place after the redo: %w", waiting, t.dir, ErrDiverged)
	}
	if err := t.checkStrays(); err != nil {
		return err
	}
	for _, id := range t.limbo.all(isParked) {
		if err := t.dropLimbo(id); err != nil {
			return err
		}
	}
	t.settled.Store(true)
	return nil
}

// Unsettle says that operations will be applied that may have been applied already, as after a resync.
func (t *Tree) Unsettle() {
	t.ns.Lock()
	t.settled.Store(false)
	t.ns.Unlock()
}

// checkStrays refuses files that have no id: a create that a crash cut short was made good by the redo, so somebody laid them there.
func (t *Tree) checkStrays() error {
	for _, s := range t.strays {
		n, err := t.acquireDir(s.dir)
		if err != nil {
			continue // the directory is gone, and they with it
		}
		fd, err := t.fd(n, pathFd)
		id := FileID(0)
		if err == nil {
			id, err = idAt(fd, s.name)
		}
		t.release(n)
		if err != nil {
			return err
		}
		if id == noID {
			return fmt.Errorf("%q in the directory with file id %x of %s has no file id: it was not made through the volume; move it away, and copy it in through the volume if it is wanted",
				s.name, uint64(s.dir), t.dir)
		}
	}
	t.strays = nil
	return nil
}

// PurgeLimbo settles the tree and drops everything in limbo: nothing is open any more on an active that is not this node.
func (t *Tree) PurgeLimbo() error {
	if err := t.Settle(); err != nil {
		return err
	}
	t.ns.Lock()
	defer t.ns.Unlock()
	for _, id := range t.limbo.all(isOpen) {
		if err := t.dropLimbo(id); err != nil {
			return err
		}
	}
	return nil
}
