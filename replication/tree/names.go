package tree

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

// at is one directory entry: a register. n is nil if its directory is not here.
type at struct {
	dir  FileID
	name string
	n    *inode
	fd   int
	now  FileID // what it holds: 0 nothing, noID something without an id
	st   unix.Stat_t
}

// entry reads a register. It must be released.
func (t *Tree) entry(dir FileID, name string) (*at, error) {
	e := &at{dir: dir, name: name, fd: -1}
	if !entryName(name) {
		return e, fail(fmt.Sprintf("use the name %q", name), dir, unix.EINVAL)
	}
	var err error
	if e.n, err = t.acquireDir(dir); errors.Is(err, errMissing) {
		return e, nil
	} else if err != nil {
		return e, err
	}
	if e.fd, err = t.fd(e.n, pathFd); err != nil {
		return e, err
	}
	return e, t.read(e)
}

func (t *Tree) read(e *at) (err error) {
	if e.st, err = fstatat(e.fd, e.name); err == unix.ENOENT {
		e.now = 0
		return nil
	}
	if err == nil {
		e.now, err = idAt(e.fd, e.name)
	}
	if err != nil {
		return fail("read an entry", e.dir, err)
	}
	return nil
}

func (t *Tree) releaseEntry(e *at) {
	if e != nil && e.n != nil {
		t.release(e.n)
	}
}

func (e *at) isDir() bool { return e.st.Mode&unix.S_IFMT == unix.S_IFDIR }

// diverged: the tree is settled and does not fit.
func (t *Tree) diverged(op *replication.Op, e *at, want FileID) error {
	if e.n == nil {
		return lacks(e.dir)
	}
	return fmt.Errorf("%v: %q in the directory with file id %x is file id %x, not %x: %w", op.Kind, e.name, uint64(e.dir), uint64(e.now), uint64(want), ErrDiverged)
}

// stamp gives a directory the time of the operation.
func (t *Tree) stamp(e *at, time int64) {
	if e.n != nil {
		t.touch(e.n, time)
	}
}

// free says whether the entry may be written by an operation that expects before there: it holds nothing or that, or the rest of a create
// that a crash cut short, which is removed.
func (t *Tree) free(e *at, before FileID) (bool, error) {
	if e.n == nil {
		return false, nil
	}
	if e.now == noID && !t.settled.Load() {
		flags := 0
		if e.isDir() {
			flags = unix.AT_REMOVEDIR // it must be empty: then it is the rest of a create
		}
		if err := unix.Unlinkat(e.fd, e.name, flags); err != nil {
			return false, fail("remove an entry without an id", e.dir, err)
		}
		e.now = 0
	}
	return e.now == 0 || e.now == before, nil
}

// detach takes the entry, which holds id, away. What thereby has no name any more goes to limbo: open if it is so on the active; in an unsettled
// tree until Settle, because a later operation may give it a name again; else it is gone.
func (t *Tree) detach(e *at, open bool) error {
	id, last := e.now, e.isDir() || e.st.Nlink == 1
	var err error
	switch {
	case last && open:
		err = t.toLimbo(e.fd, e.name, id, isOpen)
	case e.isDir():
		if err = unix.Unlinkat(e.fd, e.name, unix.AT_REMOVEDIR); err == nil {
			t.forgetInode(id)
		} else if err == unix.ENOTEMPTY && !t.settled.Load() {
			err = t.toLimbo(e.fd, e.name, id, isParked)
		}
	case last && !t.settled.Load():
		err = t.toLimbo(e.fd, e.name, id, isParked)
	default:
		if err = unix.Unlinkat(e.fd, e.name, 0); err == nil && last {
			t.forgetInode(id)
		}
	}
	if err != nil {
		return fail("take a name away", id, err)
	}
	e.now = 0
	return nil
}

// unplace takes the entry away from an inode that lives on without it: in limbo if it was the last.
func (t *Tree) unplace(e *at) (err error) {
	if e.isDir() || e.st.Nlink == 1 {
		err = t.toLimbo(e.fd, e.name, e.now, isParked)
	} else {
		err = unix.Unlinkat(e.fd, e.name, 0)
	}
	if err != nil {
		return fail("take a name away", e.now, err)
	}
	e.now = 0
	return nil
}

// place writes the entry, which holds nothing, with an inode that lies elsewhere: in limbo, or under another name. A directory that has another
// place is in a later one, and stays there; one that would lie in itself waits.
func (t *Tree) place(id FileID, e *at) error {
	n, err := t.need(id)
	if err != nil {
		return err
	}
	defer t.release(n)
	if t.limbo.has(id) {
		switch err := t.fromLimbo(id, e.fd, e.name); err {
		case nil:
			e.now = id
			return nil
		case unix.EINVAL, unix.ELOOP:
			return t.wait(id, place{e.dir, e.name})
		default:
			return fail("take from limbo", id, err)
		}
	}
	if n.typ == unix.S_IFDIR {
		return nil
	}
	fd, err := t.anyFd(n)
	if err != nil {
		return err
	}
	if err := unix.Linkat(fd, "", e.fd, e.name, unix.AT_EMPTY_PATH); err != nil {
		return fail("give a name", id, err)
	}
	e.now = id
	return nil
}

// link gives an inode a name, or the name to one that has none yet (O_TMPFILE).
func (t *Tree) link(op *replication.Op) (Stat, error) {
	unlock := t.lockDirs(op.Parent, op.Parent)
	defer unlock()
	e, err := t.entry(op.Parent, op.Name)
	defer t.releaseEntry(e)
	if err != nil {
		return Stat{}, err
	}
	n, err := t.need(op.ID)
	if err != nil {
		return Stat{}, err
	}
	defer t.release(n)
	ok, err := t.free(e, 0)
	if err != nil {
		return Stat{}, err
	}
	if t.settled.Load() && (!ok || op.Flags&replication.FlagLimbo != 0 != t.limbo.has(op.ID)) {
		return Stat{}, t.diverged(op, e, 0)
	}
	if ok {
		if err := t.place(op.ID, e); err != nil {
			return Stat{}, err
		}
	}
	if t.limbo.get(op.ID) == isOpen { // the entry is of a later state: from now on it is no longer without a name
		if err := t.relabel(op.ID, isOpen, isParked); err != nil {
			return Stat{}, fail("link", op.ID, err)
		}
	}
	t.stamp(e, op.Time)
	n.ctime.Store(op.Time)
	if e.n == nil {
		return Stat{}, lacks(op.Parent)
	}
	return t.stat(n)
}

func (t *Tree) unlink(op *replication.Op) error {
	unlock := t.lockDirs(op.Parent, op.Parent)
	defer unlock()
	e, err := t.entry(op.Parent, op.Name)
	defer t.releaseEntry(e)
	if err != nil {
		return err
	}
	if t.settled.Load() && (e.now != op.ID || e.isDir() != (op.Kind == replication.Rmdir)) {
		return t.diverged(op, e, op.ID)
	}
	if err := t.removed(e, op.ID, op.Flags&replication.FlagOpen != 0); err != nil {
		return err
	}
	t.stamp(e, op.Time)
	if n := t.cache.cached(op.ID); n != nil {
		n.ctime.Store(op.Time)
	}
	return nil
}

// removed takes the name from id, if the entry is that; if it is of a later state, and the operation says that id is open without a name, limbo says so too.
func (t *Tree) removed(e *at, id FileID, open bool) error {
	if e.n != nil && e.now == id {
		if err := t.detach(e, open); err != nil {
			return err
		}
	}
	if t.limbo.get(id) != isParked {
		return nil
	}
	if err := t.wantsNothing(id); err != nil {
		return fail("take a name away", id, err)
	}
	if open {
		if err := t.relabel(id, isParked, isOpen); err != nil {
			return fail("keep as open", id, err)
		}
	}
	return nil
}

func (t *Tree) rename(op *replication.Op) error {
	if op.Flags&0xffff&^unix.RENAME_NOREPLACE != 0 {
		return fail(fmt.Sprintf("rename with flags %#x", op.Flags&0xffff), op.ID, unix.EINVAL)
	}
	unlock := t.lockDirs(op.Parent, op.NewParent)
	defer unlock()
	from, err := t.entry(op.Parent, op.Name)
	defer t.releaseEntry(from)
	if err != nil {
		return err
	}
	to, err := t.entry(op.NewParent, op.NewName)
	defer t.releaseEntry(to)
	if err != nil {
		return err
	}
	switch exact := from.n != nil && to.n != nil && from.now == op.ID && to.now == op.Before; {
	case exact:
		err = t.renameExact(op, from, to)
	case t.settled.Load() && from.now != op.ID:
		return t.diverged(op, from, op.ID)
	case t.settled.Load():
		return t.diverged(op, to, op.Before)
	default:
		err = t.renameLater(op, from, to)
	}
	var lack lacks
	if err != nil && !errors.As(err, &lack) {
		return err
	}
	t.stamp(from, op.Time)
	t.stamp(to, op.Time)
	for _, id := range [...]FileID{op.ID, op.Before} {
		if n := t.cache.cached(id); n != nil {
			n.ctime.Store(op.Time)
		}
	}
	return err
}

// renameExact renames where both entries are what the operation expects.
func (t *Tree) renameExact(op *replication.Op, from, to *at) error {
	open := op.Flags&replication.FlagOpen != 0
	settled := t.settled.Load()
	lastOfBefore := to.now != 0 && (to.isDir() || to.st.Nlink == 1)
	var err error
	switch {
	case lastOfBefore && to.isDir() && open:
		// By exchange, so that the name is there at every instant.
		if err = unix.Renameat2(from.fd, from.name, to.fd, to.name, unix.RENAME_EXCHANGE); err == nil {
			err = t.toLimbo(from.fd, from.name, op.Before, isOpen)
		}
	case lastOfBefore && !to.isDir() && (open || !settled):
		why := byte(isParked)
		if open {
			why = isOpen
		}
		if err = unix.Linkat(to.fd, to.name, t.limbofd, limboEntry(why, op.Before), 0); err == nil {
			t.limbo.set(op.Before, why)
			err = unix.Renameat2(from.fd, from.name, to.fd, to.name, 0)
		}
	default:
		err = unix.Renameat2(from.fd, from.name, to.fd, to.name, 0)
		if err == nil && lastOfBefore {
			t.forgetInode(op.Before)
		}
	}
	if err != nil && !settled {
		return t.renameLater(op, from, to) // not empty, or a directory that would lie in itself: something here is of a later state
	}
	if err != nil {
		return fail("rename", op.ID, err)
	}
	return nil
}

// renameLater renames where an entry may be of a later state: each by itself.
func (t *Tree) renameLater(op *replication.Op, from, to *at) error {
	for _, e := range []*at{from, to} {
		if e.n != nil {
			if err := t.read(e); err != nil {
				return err
			}
		}
	}
	inPlace := to.n != nil && to.now == op.ID
	if from.n != nil && from.now == op.ID {
		if err := t.unplace(from); err != nil {
			return err
		}
	}
	if op.Before != 0 {
		if err := t.removed(to, op.Before, op.Flags&replication.FlagOpen != 0); err != nil {
			return err
		}
	}
	if inPlace {
		return nil
	}
	return t.settlePlace(op.ID, to, op.Before)
}

// settlePlace writes an entry with id unless it is of a later state. An inode that is not here is lacking even then.
func (t *Tree) settlePlace(id FileID, e *at, before FileID) error {
	if !t.index.has(id) {
		return lacks(id)
	}
	if e.n == nil {
		return lacks(e.dir)
	}
	ok, err := t.free(e, before)
	if err != nil || !ok {
		return err
	}
	if e.now != 0 {
		if err := t.detach(e, false); err != nil {
			return err
		}
	}
	return t.place(id, e)
}

// exchange changes the places of two inodes: op.ID, at (Parent, Name), and op.Before.
func (t *Tree) exchange(op *replication.Op) error {
	unlock := t.lockDirs(op.Parent, op.NewParent)
	defer unlock()
	from, err := t.entry(op.Parent, op.Name)
	defer t.releaseEntry(from)
	if err != nil {
		return err
	}
	to, err := t.entry(op.NewParent, op.NewName)
	defer t.releaseEntry(to)
	if err != nil {
		return err
	}
	exact := from.n != nil && to.n != nil && from.now == op.ID && to.now == op.Before
	if exact {
		err = unix.Renameat2(from.fd, from.name, to.fd, to.name, unix.RENAME_EXCHANGE)
		if err != nil && t.settled.Load() {
			return fail("exchange", op.ID, err)
		}
	}
	switch {
	case exact && err == nil:
	case t.settled.Load() && from.now != op.ID:
		return t.diverged(op, from, op.ID)
	case t.settled.Load():
		return t.diverged(op, to, op.Before)
	default:
		if err := t.exchangeLater(op, from, to); err != nil {
			return err
		}
	}
	t.stamp(from, op.Time)
	t.stamp(to, op.Time)
	for _, id := range [...]FileID{op.ID, op.Before} {
		if n := t.cache.cached(id); n != nil {
			n.ctime.Store(op.Time)
		}
	}
	return nil
}

func (t *Tree) exchangeLater(op *replication.Op, from, to *at) error {
	for _, r := range []struct {
		e        *at
		old, new FileID
	}{{from, op.ID, op.Before}, {to, op.Before, op.ID}} {
		if r.e.n != nil && r.e.now == r.old {
			if err := t.unplace(r.e); err != nil {
				return err
			}
		}
	}
	var lack error
	for _, r := range []struct {
		e        *at
		old, new FileID
	}{{from, op.ID, op.Before}, {to, op.Before, op.ID}} {
		if r.e.n != nil && r.e.now == r.new {
			continue
		}
		err := t.settlePlace(r.new, r.e, r.old)
		var l lacks
		if errors.As(err, &l) {
			lack = err
		} else if err != nil {
			return err
		}
	}
	return lack
}
