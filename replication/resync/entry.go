package resync

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"math"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

// apply carries an operation out that has no record.
func (t *target) apply(op replication.Op) error {
	op.Volume = t.opt.Volume
	a, err := t.t.Apply(&op)
	if err == nil && a.Missing {
		err = fmt.Errorf("%v of file id %x: file id %x is not here: %w", op.Kind, uint64(op.ID), uint64(a.Lacks), unix.ESTALE)
	}
	return err
}

// entry brings one entry to the source's state, and the inode, if it was not visited.
func (t *target) entry(dir FileID, i *tree.Item) error {
	here, err := t.t.Entry(dir, i.Name)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	created := false
	if err != nil || here.ID != i.ID || !alike(&here, i) {
		if here, created, err = t.replace(dir, i, here.ID); err != nil {
			return err
		}
	}
	if !t.visited.add(i.ID) {
		return nil
	}
	return t.visit(i, &here, created)
}

// alike says whether two inodes of one id can be one: what never changes of an inode is equal.
func alike(a, b *tree.Item) bool {
	dev := a.Type == unix.S_IFCHR || a.Type == unix.S_IFBLK
	return a.Type == b.Type && a.Target == b.Target && (!dev || a.Stat.Rdev == b.Stat.Rdev)
}

// replace puts the inode where something else, or nothing, is.
func (t *target) replace(dir FileID, i *tree.Item, was FileID) (here tree.Item, created bool, err error) {
	if was != 0 {
		t.taken++
	}
	if err := t.t.Unplace(dir, i.Name); err != nil { // also of what has no file id
		return here, false, err
	}
	here, err = t.t.Inode(i.ID)
	if err == nil && !alike(&here, i) {
		if err := t.t.Discard(i.ID); err != nil {
			return here, false, err
		}
		err = unix.ESTALE
	}
	if gone(err) {
		t.created++
		return *i, true, t.apply(creation(i, dir))
	}
	if err != nil {
		return here, false, err
	}
	t.placed++
	return here, false, t.t.Place(i.ID, dir, i.Name)
}

// creation makes the inode as it is on the source.
func creation(i *tree.Item, dir FileID) replication.Op {
	s := &i.Stat
	op := replication.Op{Kind: replication.Create, ID: i.ID, Parent: dir, Name: i.Name, Mode: s.Mode, UID: s.UID, GID: s.GID, Rdev: s.Rdev, Data: i.Xattrs, Time: s.Mtime}
	if i.Type == unix.S_IFLNK {
		op.Data = []byte(i.Target)
	}
	return op
}

// visit brings an inode to the source's state. here is what it is; of one that was created only size and access time differ.
func (t *target) visit(i, here *tree.Item, created bool) error {
	t.inodes.Add(1)
	if !created {
		if err := t.attributes(i, here); err != nil {
			return err
		}
	}
	equal := !created && here.Stat.Mtime == i.Stat.Mtime
	switch {
	case i.Type == unix.S_IFDIR:
		t.stack = append(t.stack, found{i.ID, created})
	case i.Type == unix.S_IFREG && created && i.Stat.Size > 0:
		t.content.add(i, true)
	case i.Type == unix.S_IFREG && !created && max(i.Stat.Size, here.Stat.Size) > 0 && (t.opt.Full || !equal || here.Stat.Size != i.Stat.Size):
		t.content.add(i, false)
	case !equal:
		return t.times(i)
	}
	return nil
}

func (t *target) times(i *tree.Item) error {
	return t.apply(replication.Op{Kind: replication.SetAttr, ID: i.ID, Valid: replication.ValidMtime | replication.ValidAtime, Atime: i.Stat.Atime, Time: i.Stat.Mtime})
}

// attributes sets mode, owner and extended attributes, where they differ.
func (t *target) attributes(i, here *tree.Item) error {
	changed := false
	if i.Stat.Mode != here.Stat.Mode && i.Type != unix.S_IFLNK || i.Stat.UID != here.Stat.UID || i.Stat.GID != here.Stat.GID {
		changed = true
		op := replication.Op{Kind: replication.SetAttr, ID: i.ID, Valid: replication.ValidUID | replication.ValidGID, Mode: i.Stat.Mode, UID: i.Stat.UID, GID: i.Stat.GID, Time: i.Stat.Mtime}
		if i.Type != unix.S_IFLNK {
			op.Valid |= replication.ValidMode
		}
		if err := t.apply(op); err != nil {
			return err
		}
		now, err := t.t.Inode(i.ID) // a mode sets the mask of an access list, an owner takes capabilities away
		if err != nil {
			return err
		}
		here = &now
	}
	if !bytes.Equal(i.Xattrs, here.Xattrs) {
		c, err := t.xattrs(i, here)
		if err != nil {
			return err
		}
		changed = changed || c
	}
	if changed {
		t.changed++
	}
	return nil
}

func row(b []byte) map[string]string {
	m := map[string]string{}
	_ = replication.EachXattr(b, func(name string, value []byte) error { m[name] = string(value); return nil }) // it was checked when it was read
	return m
}

func (t *target) xattrs(i, here *tree.Item) (changed bool, err error) {
	want, have := row(i.Xattrs), row(here.Xattrs)
	for name := range have {
		if _, ok := want[name]; !ok {
			changed = true
			if err := t.apply(replication.Op{Kind: replication.DelXattr, ID: i.ID, Name: name, Time: i.Stat.Mtime}); err != nil {
				return true, err
			}
		}
	}
	for name, v := range want {
		if h, ok := have[name]; !ok || h != v {
			changed = true
			if err := t.apply(replication.Op{Kind: replication.SetXattr, ID: i.ID, Name: name, Data: []byte(v), Time: i.Stat.Mtime}); err != nil {
				return true, err
			}
		}
	}
	return changed, nil
}

// finish takes away what the directory has and the source's has not, and gives it its attributes and times.
func (t *target) finish(d *dir) error {
	if !d.fresh {
		names, _, err := t.t.Names(d.id, math.MaxInt) // also those without a file id
		if err != nil {
			return err
		}
		for _, name := range names {
			if _, ok := d.seen[maphash.String(t.seed, name)]; !ok {
				t.taken++
				if err := t.t.Unplace(d.id, name); err != nil {
					return err
				}
			}
		}
	}
	here, err := t.t.Inode(d.id)
	if err != nil {
		return err
	}
	if err := t.attributes(&d.self, &here); err != nil {
		return err
	}
	if d.fresh || here.Stat.Mtime != d.self.Stat.Mtime {
		return t.times(&d.self)
	}
	return nil
}

// unplace takes away the entries of a directory that which names. They are collected first: not every file system lists well what shrinks meanwhile.
func (t *target) unplace(dir FileID, which func(*tree.Entry) bool) error {
	var names []string
	for cookie := uint64(0); ; {
		es, err := t.t.ReadDir(dir, cookie, 1024)
		if err != nil {
			return err
		}
		if len(es) == 0 {
			break
		}
		for i := range es {
			if cookie = es[i].Cookie; which(&es[i]) {
				names = append(names, es[i].Name)
			}
		}
	}
	for _, name := range names {
		t.taken++
		if err := t.t.Unplace(dir, name); err != nil {
			return err
		}
	}
	return nil
}

// batch is how many inodes are asked for by their ids at a time.
const batch = 256

// nodes asks for inodes by their ids and calls fn with those that the source has.
func (t *target) nodes(ids []FileID, fn func(*tree.Item) error) error {
	c := make(chan message, batch)
	for len(ids) > 0 {
		n := min(len(ids), batch)
		for _, id := range ids[:n] {
			if err := t.ask(message{kind: mInode, id: id}, c); err != nil {
				return err
			}
		}
		for range n {
			m, err := t.take(c)
			if err != nil {
				return err
			}
			if m.kind != mNode || m.flags&fGone == 0 && (len(m.items) != 1 || m.items[0].ID != m.id) {
				return fmt.Errorf("%w: no answer about an inode", ErrFrame)
			}
			if m.flags&fGone == 0 {
				if err := fn(&m.items[0]); err != nil {
					return err
				}
			}
		}
		ids = ids[n:]
	}
	return nil
}

// byID visits an inode that no listing showed. It gets its place from the redo.
func (t *target) visitByID(i *tree.Item) error {
	if !t.visited.add(i.ID) {
		return nil
	}
	t.byID++
	here, err := t.t.Inode(i.ID)
	if err == nil && !alike(&here, i) {
		if err := t.t.Discard(i.ID); err != nil {
			return err
		}
		err = unix.ESTALE
	}
	if err != nil && !gone(err) {
		return err
	}
	created := err != nil
	if created {
		op := creation(i, 0)
		op.Volume = t.opt.Volume
		t.created++
		if err := t.t.MakeParked(&op); err != nil {
			return err
		}
		here = *i
	}
	return t.visit(i, &here, created)
}

// unvisited asks for what the follower has and no listing showed, until there is nothing new.
func (t *target) unvisited() error {
	var void idSet // not on the source
	for {
		var ids []FileID
		t.t.IDs(func(id FileID) bool {
			if !t.visited.has(id) && void.add(id) {
				ids = append(ids, id)
			}
			return true
		})
		if len(ids) == 0 {
			return nil
		}
		if err := t.nodes(ids, t.visitByID); err != nil {
			return err
		}
		if err := t.walk(); err != nil {
			return err
		}
	}
}

// missing visits what a redo lacked.
func (t *target) missing() error {
	if err := t.nodes(t.opt.Missing, t.visitByID); err != nil {
		return err
	}
	for _, id := range t.opt.Missing {
		if !t.visited.has(id) {
			t.gone = append(t.gone, id)
		}
	}
	return t.walk()
}

// openOnes visits what is open on the source without a name.
func (t *target) openOnes() (open []FileID, err error) {
	c := make(chan message, 1)
	if err := t.ask(message{kind: mOpen}, c); err != nil {
		return nil, err
	}
	var ids []FileID
	for last := false; !last; {
		m, err := t.take(c)
		if err != nil {
			return nil, err
		}
		if m.kind != mOpens {
			return nil, fmt.Errorf("%w: no answer about open files", ErrFrame)
		}
		ids, last = append(ids, m.ids...), m.flags&fLast != 0
	}
	err = t.nodes(ids, func(i *tree.Item) error {
		if i.Stat.Nlink == 0 || i.Type == unix.S_IFDIR {
			open = append(open, i.ID)
		}
		return t.visitByID(i)
	})
	if err != nil {
		return nil, err
	}
	return open, t.walk()
}

// clear removes what is not on the source, after everything that is was taken out of it.
func (t *target) clear() error {
	var void []FileID
	t.t.IDs(func(id FileID) bool {
		if !t.visited.has(id) {
			void = append(void, id)
		}
		return true
	})
	for _, id := range void {
		if i, err := t.t.Inode(id); gone(err) || err == nil && i.Type != unix.S_IFDIR {
			continue
		} else if err != nil {
			return err
		}
		if err := t.unplace(id, func(e *tree.Entry) bool { return t.visited.has(e.ID) }); err != nil {
			return err
		}
	}
	return t.t.DropLimbo(t.visited.has)
}
