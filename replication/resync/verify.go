package resync

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

// VerifyOptions are of the side that compares. The other side runs Source with a Position.
type VerifyOptions struct {
	Volume   uint8
	Applied  func(ctx context.Context, seq uint64) error // returns when the operations up to seq are applied here; nil: nothing changes meanwhile
	Most     int                                         // differences that are described; 0: 1000
	Progress func(Progress)
}

// Difference is something that is not equal on the two sides.
type Difference struct {
	ID     FileID
	Path   string // here, or on the source if it is only there
	What   string // what differs
	Source string
	Here   string
}

// Report is the outcome of Verify.
type Report struct {
	Inodes, Bytes int64
	Differences   []Difference
	More          int // differences beyond those described
	Undecided     int // differed each time and had changed each time: compare again in calmer hours
	Took          time.Duration
}

// tries is how often a difference is looked at again while the source goes on changing.
const tries = 8

// Verify compares a tree with the source's: names, kinds, modes, owners, mtimes, link counts, extended attributes, and every byte. Nothing is repaired. Both may
// change meanwhile: what differs is looked at again after everything that the source had done by then is applied here, and is reported only if
// the source's side was the same before and after that look. Access times and allocated blocks are not compared.
func Verify(ctx context.Context, ch Channel, t *Tree, opt VerifyOptions) (Report, error) {
	if opt.Most <= 0 {
		opt.Most = 1000
	}
	tg := newTarget(ch, t, TargetOptions{Volume: opt.Volume, Progress: opt.Progress})
	v := &verifier{target: tg, opt: opt, contents: map[FileID]struct{}{}, reported: map[FileID]bool{}}
	tg.content.differs = func(id FileID, _, _ int64) {
		v.lock.Lock()
		defer v.lock.Unlock()
		v.contents[id] = struct{}{}
	}
	err := tg.run(ctx, v.work)
	v.report.Inodes, v.report.Bytes, v.report.Took = tg.inodes.Load(), tg.content.done.Load(), time.Since(tg.began)
	if err != nil {
		return v.report, fmt.Errorf("verify volume %d: %w", opt.Volume, err)
	}
	return v.report, nil
}

type verifier struct {
	*target
	opt    VerifyOptions
	report Report

	lock     sync.Mutex
	contents map[FileID]struct{} // files whose content differed at the first look

	names    []register // entries that differed at the first look, "" for the directory itself
	reported map[FileID]bool
}

type register struct {
	dir  FileID
	name string
}

func (v *verifier) work() error {
	v.visited.add(replication.RootID)
	v.inodes.Add(1)
	v.stack = append(v.stack, found{id: replication.RootID})
	if err := v.list(); err != nil {
		return err
	}
	v.walked.Store(true)
	if err := v.content.wait(v.ctx); err != nil {
		return err
	}
	for _, r := range v.names {
		if err := v.again(r); err != nil {
			return err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(v.contents)) {
		if err := v.contentAgain(id); err != nil {
			return err
		}
	}
	return nil
}

// list looks at everything once.
func (v *verifier) list() error {
	c := make(chan message, 1)
	for len(v.stack) > 0 {
		d := v.stack[len(v.stack)-1]
		v.stack = v.stack[:len(v.stack)-1]
		seen := map[string]struct{}{}
		if err := v.ask(message{kind: mList, id: d.id}, c); err != nil {
			return err
		}
		for last := false; !last; {
			m, err := v.take(c)
			if err != nil {
				return err
			}
			last = m.flags&fLast != 0
			if m.flags&fFirst != 0 {
				if here, err := v.t.Inode(d.id); err != nil || inodesDiffer(&m.self, &here) != "" {
					v.names = append(v.names, register{d.id, ""})
				}
			}
			for i := range m.items {
				seen[m.items[i].Name] = struct{}{}
				v.look(d.id, &m.items[i])
			}
		}
		for cookie := uint64(0); ; {
			es, err := v.t.ReadDir(d.id, cookie, 1024)
			if err != nil && !gone(err) {
				return err
			}
			if len(es) == 0 {
				break
			}
			for _, e := range es {
				if cookie = e.Cookie; !has(seen, e.Name) {
					v.names = append(v.names, register{d.id, e.Name})
				}
			}
		}
	}
	return nil
}

func has[K comparable](m map[K]struct{}, k K) bool { _, ok := m[k]; return ok }

// look compares one entry, and queues what hangs on it.
func (v *verifier) look(dir FileID, i *tree.Item) {
	here, err := v.t.Entry(dir, i.Name)
	if err != nil || here.ID != i.ID || i.Type != unix.S_IFDIR && inodesDiffer(i, &here) != "" {
		v.names = append(v.names, register{dir, i.Name})
	}
	if !v.visited.add(i.ID) {
		return
	}
	v.inodes.Add(1)
	switch i.Type {
	case unix.S_IFDIR:
		v.stack = append(v.stack, found{id: i.ID})
	case unix.S_IFREG:
		if i.Stat.Size > 0 {
			v.content.add(i, false)
		}
	}
}

// inodesDiffer says what differs between two inodes, but for content and name.
func inodesDiffer(a, b *tree.Item) string {
	var out []string
	note := func(differs bool, what string) {
		if differs {
			out = append(out, what)
		}
	}
	x, y := a.Stat, b.Stat
	note(a.ID != b.ID, "file id")
	note(a.Type != b.Type, "kind")
	note(x.Mode&0o7777 != y.Mode&0o7777, "mode")
	note(x.UID != y.UID || x.GID != y.GID, "owner")
	note(!alike(a, b), "target or device")
	note(x.Mtime != y.Mtime, "mtime")
	note(a.Type == unix.S_IFREG && x.Size != y.Size, "size")
	note(a.Type != unix.S_IFDIR && x.Nlink != y.Nlink, "link count")
	note(string(a.Xattrs) != string(b.Xattrs) && !maps.Equal(row(a.Xattrs), row(b.Xattrs)), "extended attributes")
	return strings.Join(out, ", ")
}

func describe(i *tree.Item, there bool) string {
	if !there {
		return "nothing"
	}
	s := i.Stat
	return fmt.Sprintf("file id %x, mode %o, owner %d:%d, size %d, links %d, mtime %s, attributes %d bytes", uint64(i.ID), s.Mode, s.UID, s.GID, s.Size, s.Nlink,
		time.Unix(0, s.Mtime).UTC().Format(time.RFC3339Nano), len(i.Xattrs))
}

// fetch asks the source for an entry, or for an inode.
func (v *verifier) fetch(r register) (i tree.Item, there bool, pos uint64, err error) {
	c := make(chan message, 1)
	m := message{kind: mLookup, id: r.dir, text: r.name}
	if r.name == "" {
		m = message{kind: mInode, id: r.dir}
	}
	if err := v.ask(m, c); err != nil {
		return i, false, 0, err
	}
	if m, err = v.take(c); err != nil {
		return i, false, 0, err
	}
	if there = m.flags&fGone == 0 && len(m.items) == 1; there {
		i = m.items[0]
	}
	return i, there, m.pos, nil
}

func (v *verifier) applied(pos uint64) error {
	if v.opt.Applied == nil {
		return nil
	}
	return v.opt.Applied(v.ctx, pos)
}

// again looks at an entry once more, at a time when it should be equal.
func (v *verifier) again(r register) error {
	for range tries {
		before, there, pos, err := v.fetch(r)
		if err == nil {
			err = v.applied(pos)
		}
		if err != nil {
			return err
		}
		var here tree.Item
		if r.name == "" {
			here, err = v.t.Inode(r.dir)
		} else {
			here, err = v.t.Entry(r.dir, r.name)
		}
		isHere := err == nil
		if err != nil && !gone(err) {
			return err
		}
		diff := inodesDiffer(&before, &here)
		if r.name != "" && before.Type == unix.S_IFDIR && before.ID == here.ID {
			diff = "" // the directory is looked at by itself
		}
		if there == isHere && (!there || diff == "") {
			return nil
		}
		after, thereAfter, _, err := v.fetch(r)
		if err != nil {
			return err
		}
		if there != thereAfter || there && inodesDiffer(&before, &after) != "" {
			continue
		}
		d := Difference{ID: max(before.ID, here.ID), What: diff, Source: describe(&before, there), Here: describe(&here, isHere)}
		switch {
		case !isHere:
			d.What = "missing here"
		case !there:
			d.What = "only here"
		}
		if there && isHere && v.reported[before.ID] && before.ID == here.ID {
			return nil // by another name
		}
		d.Path = path.Join(v.path(r.dir), r.name)
		v.note(d)
		return nil
	}
	v.report.Undecided++
	return nil
}

func (v *verifier) note(d Difference) {
	v.reported[d.ID] = true
	if len(v.report.Differences) >= v.opt.Most {
		v.report.More++
		return
	}
	v.report.Differences = append(v.report.Differences, d)
}

// contentAgain compares a whole file once more.
func (v *verifier) contentAgain(id FileID) error {
	for range tries {
		before, there, pos, err := v.fetch(register{dir: id})
		if err == nil {
			err = v.applied(pos)
		}
		if err != nil || !there {
			return err
		}
		var first int64 = -1
		var bytes int64
		v.content.differs = func(_ FileID, off, n int64) {
			v.lock.Lock()
			defer v.lock.Unlock()
			if bytes += n; first < 0 || off < first {
				first = off
			}
		}
		v.content.add(&before, false)
		if err := v.content.wait(v.ctx); err != nil {
			return err
		}
		v.lock.Lock()
		at, n := first, bytes
		v.lock.Unlock()
		if at < 0 {
			return nil
		}
		after, thereAfter, _, err := v.fetch(register{dir: id})
		if err != nil {
			return err
		}
		if !thereAfter || inodesDiffer(&before, &after) != "" {
			continue
		}
		v.note(Difference{ID: id, Path: v.pathOf(id), What: "content", Source: describe(&before, true),
			Here: fmt.Sprintf("%d bytes in blocks that differ, the first at %d", n, at)})
		return nil
	}
	v.report.Undecided++
	return nil
}

// path is where a directory lies here.
func (v *verifier) path(dir FileID) string { return pathOf(v.t, dir) }

func pathOf(t *Tree, dir FileID) string {
	var parts []string
	for depth := 0; dir != replication.RootID && depth < 4096; depth++ {
		up, err := t.Parent(dir)
		if err != nil {
			return fmt.Sprintf("(file id %x)", uint64(dir))
		}
		parts = append(parts, nameIn(t, up, dir))
		dir = up
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/")
}

// nameIn finds a name of an inode in a directory.
func nameIn(t *Tree, dir, id FileID) string {
	for cookie := uint64(0); ; {
		es, err := t.ReadDir(dir, cookie, 1024)
		if err != nil || len(es) == 0 {
			return fmt.Sprintf("(file id %x)", uint64(id))
		}
		for _, e := range es {
			if cookie = e.Cookie; e.ID == id {
				return e.Name
			}
		}
	}
}

// pathOf finds a name of a file, by looking everywhere: it is wanted for the few that differ.
func (v *verifier) pathOf(id FileID) string {
	out := fmt.Sprintf("(file id %x)", uint64(id))
	errFound := context.Canceled
	_ = v.t.Walk(v.ctx, func(d tree.Dir) error {
		for _, e := range d.Entries {
			if e.ID == id {
				out = path.Join(d.Path, e.Name)
				return errFound
			}
		}
		return nil
	})
	return out
}
