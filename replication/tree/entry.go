package tree

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

// SetEntry is what a resync makes a directory like its source's with: the entry (parent, name) becomes id, wherever id was, and whatever the entry held waits in
// limbo. With id 0 the entry holds nothing afterwards. An inode that is not here is made as create says (its place in create does
// not matter). With parent 0 the inode gets no entry but waits in limbo, or, with FlagOpen in create, is there as open on the active. Only for an unsettled tree.
//
// Times of directories are not those of the source afterwards: set them when the entries are done.
func (t *Tree) SetEntry(parent FileID, name string, id FileID, create *replication.Op) error {
	t.ns.Lock()
	defer t.ns.Unlock()
	if t.settled.Load() {
		return errors.New("an entry can be set by a resync only: the tree is settled")
	}
	if id != 0 && !t.index.has(id) {
		if create == nil {
			return fmt.Errorf("set an entry: %w", lacks(id))
		}
		op := *create
		op.ID = id
		if _, err := t.make(&op, nil, t.limbofd, limboEntry(isParked, id)); err != nil {
			return fail("create", id, err)
		}
		t.limbo.set(id, isParked)
	}
	if parent == 0 {
		if create != nil && create.Flags&replication.FlagOpen != 0 && t.limbo.get(id) == isParked {
			return t.relabel(id, isParked, isOpen)
		}
		return nil
	}
	e, err := t.entry(parent, name)
	defer t.releaseEntry(e)
	switch {
	case err != nil:
		return err
	case e.n == nil:
		return fmt.Errorf("set an entry: %w", lacks(parent))
	case e.now == id:
		return nil
	case e.now == noID:
		if _, err := t.free(e, 0); err != nil {
			return err
		}
	case e.now != 0:
		if err := t.unplace(e); err != nil {
			return err
		}
	}
	if id == 0 {
		return nil
	}
	n, err := t.need(id)
	if err != nil {
		return err
	}
	defer t.release(n)
	if n.typ == unix.S_IFDIR && !t.limbo.has(id) {
		if err := t.liftDir(n); err != nil {
			return err
		}
	}
	return t.place(id, e)
}

// liftDir takes a directory from wherever it lies to limbo.
func (t *Tree) liftDir(n *inode) error {
	fd, err := t.fd(n, pathFd)
	if err != nil {
		return err
	}
	st, err := fstat(fd)
	if err != nil {
		return fail("stat", n.id, err)
	}
	up, err := unix.Openat(fd, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return fail("open the parent", n.id, err)
	}
	defer unix.Close(up)
	buf := make([]byte, 1<<15)
	for {
		k, err := unix.Getdents(up, buf)
		if err != nil || k == 0 {
			return fail("find the name", n.id, errors.Join(err, unix.ESTALE))
		}
		found := ""
		eachDirent(buf[:k], func(name string, typ uint32, _ uint64) bool {
			if typ != unix.S_IFDIR && typ != 0 {
				return true
			}
			if s, err := fstatat(up, name); err == nil && s.Ino == st.Ino {
				found = name
			}
			return found == ""
		})
		if found != "" {
			if err := t.toLimbo(up, found, n.id, isParked); err != nil {
				return fail("take from its place", n.id, err)
			}
			return nil
		}
	}
}
