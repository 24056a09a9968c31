package tree

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

// model is a volume in memory, written without a look at Apply: what a tree must be after operations that fit.
type model struct {
	in  map[FileID]*mnode
	ent map[FileID]map[string]FileID
}

type mnode struct {
	mode, uid, gid uint32
	data           []byte
	target         string
	x              map[string]string
	mtime          int64
	open           bool // in limbo
}

func newModel() *model {
	return &model{in: map[FileID]*mnode{1: {mode: unix.S_IFDIR | 0o755, mtime: omit, x: map[string]string{}}}, ent: map[FileID]map[string]FileID{1: {}}}
}

func (m *model) clone() *model {
	c := &model{in: map[FileID]*mnode{}, ent: map[FileID]map[string]FileID{}}
	for id, n := range m.in {
		d := *n
		d.data, d.x = bytes.Clone(n.data), maps.Clone(n.x)
		c.in[id] = &d
	}
	for id, e := range m.ent {
		c.ent[id] = maps.Clone(e)
	}
	return c
}

func (n *mnode) isDir() bool { return n.mode&unix.S_IFMT == unix.S_IFDIR }

func (m *model) names(id FileID) (k int) {
	for _, es := range m.ent {
		for _, i := range es {
			if i == id {
				k++
			}
		}
	}
	return k
}

func (m *model) lost(id FileID, open bool) {
	if m.names(id) > 0 {
		return
	}
	if open {
		m.in[id].open = true
		return
	}
	delete(m.in, id)
	delete(m.ent, id)
}

func resize(b []byte, n int64) []byte {
	if int64(len(b)) >= n {
		return b[:n]
	}
	return append(b, make([]byte, n-int64(len(b)))...)
}

// do applies an operation that fits.
func (m *model) do(op *replication.Op) {
	n := m.in[op.ID]
	stamp := func(dirs ...FileID) {
		for _, d := range dirs {
			m.in[d].mtime = op.Time
		}
	}
	open := op.Flags&replication.FlagOpen != 0
	switch op.Kind {
	case replication.Create:
		n = &mnode{mode: op.Mode, uid: op.UID, gid: op.GID, x: map[string]string{}, mtime: op.Time}
		m.in[op.ID] = n
		if op.Mode&unix.S_IFMT == unix.S_IFLNK {
			n.target = string(op.Data)
		}
		if n.isDir() {
			m.ent[op.ID] = map[string]FileID{}
		}
		if op.Parent == 0 {
			n.open = true
			return
		}
		m.ent[op.Parent][op.Name] = op.ID
		stamp(op.Parent)
	case replication.Link:
		m.ent[op.Parent][op.Name] = op.ID
		n.open = false
		stamp(op.Parent)
	case replication.Unlink, replication.Rmdir:
		delete(m.ent[op.Parent], op.Name)
		m.lost(op.ID, open)
		stamp(op.Parent)
	case replication.Rename:
		stamp(op.Parent, op.NewParent)
		if op.Flags&unix.RENAME_EXCHANGE != 0 {
			m.ent[op.Parent][op.Name], m.ent[op.NewParent][op.NewName] = op.Before, op.ID
			return
		}
		delete(m.ent[op.Parent], op.Name)
		m.ent[op.NewParent][op.NewName] = op.ID
		if op.Before != 0 {
			m.lost(op.Before, open)
		}
	case replication.Write:
		n.data = resize(n.data, max(int64(len(n.data)), op.Off+int64(len(op.Data))))
		copy(n.data[op.Off:], op.Data)
		n.mtime = op.Time
	case replication.SetAttr:
		if op.Valid&replication.ValidMode != 0 {
			n.mode = n.mode&unix.S_IFMT | op.Mode
		}
		if op.Valid&replication.ValidUID != 0 {
			n.uid = op.UID
		}
		if op.Valid&replication.ValidGID != 0 {
			n.gid = op.GID
		}
		if op.Valid&replication.ValidSize != 0 {
			n.data = resize(n.data, op.Len)
			n.mtime = op.Time
		}
		if op.Valid&replication.ValidMtime != 0 {
			n.mtime = op.Time
		}
	case replication.Fallocate:
		end := op.Off + op.Len
		if op.Flags&unix.FALLOC_FL_KEEP_SIZE == 0 {
			n.data = resize(n.data, max(int64(len(n.data)), end))
		}
		if op.Flags&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
			for i := op.Off; i < min(end, int64(len(n.data))); i++ {
				n.data[i] = 0
			}
		}
		n.mtime = op.Time
	case replication.SetXattr:
		n.x[op.Name] = string(op.Data)
	case replication.DelXattr:
		delete(n.x, op.Name)
	case replication.Forget:
		m.in[op.ID].open = false
		m.lost(op.ID, false)
	}
}

// text is everything that must be equal, a line for each register.
func (m *model) text() string {
	var out []string
	for id, n := range m.in {
		x := []string{}
		for k, v := range n.x {
			x = append(x, k+"="+v)
		}
		slices.Sort(x)
		out = append(out, line(id, n.mode, n.uid, n.gid, m.names(id), n.mtime, string(n.data), n.target, x, n.open))
	}
	for p, es := range m.ent {
		for name, id := range es {
			out = append(out, fmt.Sprintf("entry %x/%s = %x", p, name, id))
		}
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}

func line(id FileID, mode, uid, gid uint32, names int, mtime int64, data, target string, x []string, open bool) string {
	if mode&unix.S_IFMT == unix.S_IFDIR {
		names = 0 // the parents show it
	}
	return fmt.Sprintf("inode %x mode %o owner %d:%d names %d mtime %d data %q to %q %v open %v", id, mode, uid, gid, names, mtime, data, target, x, open)
}

// treeText is the same of a tree, as its files are on the disk.
func treeText(t failer, tr *Tree) string {
	t.Helper()
	must(t, tr.FlushTimes())
	var out []string
	seen := map[FileID]bool{}
	var inode func(id FileID)
	inode = func(id FileID) {
		if seen[id] {
			return
		}
		seen[id] = true
		n, err := tr.acquire(id)
		must(t, err)
		defer tr.release(n)
		fd, err := tr.fd(n, pathFd)
		must(t, err)
		st, err := fstat(fd)
		must(t, err)
		s := tr.shown(id, nil, &st)
		if id == 1 && s.Mtime > 1e18 {
			s.Mtime = omit // made by Make, and no operation came by
		}
		data, target := "", ""
		switch s.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f, err := tr.OpenFile(id, unix.O_RDONLY)
			must(t, err)
			b := make([]byte, s.Size)
			if _, err := f.ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
			f.Close()
			data = string(b)
		case unix.S_IFLNK:
			target, err = tr.Readlink(id)
			must(t, err)
		}
		x := []string{}
		xs, err := tr.Xattrs(id)
		must(t, err)
		for k, v := range xs {
			if strings.HasPrefix(k, "user.") {
				x = append(x, k+"="+string(v))
			}
		}
		slices.Sort(x)
		out = append(out, line(id, s.Mode, s.UID, s.GID, int(s.Nlink), s.Mtime, data, target, x, tr.limbo.get(id) == isOpen))
		if s.Mode&unix.S_IFMT == unix.S_IFDIR {
			es, err := tr.ReadDir(id, 0, 1000)
			must(t, err)
			for _, e := range es {
				out = append(out, fmt.Sprintf("entry %x/%s = %x", id, e.Name, e.ID))
				inode(e.ID)
			}
		}
	}
	inode(1)
	for _, id := range tr.InLimbo() {
		inode(id)
	}
	for _, id := range tr.limbo.all(isParked) {
		out = append(out, fmt.Sprintf("parked %x", id))
	}
	sort.Strings(out)
	if got := tr.index.len(); got != len(seen) {
		out = append(out, fmt.Sprintf("the index has %d inodes, the tree %d", got, len(seen)))
	}
	return strings.Join(out, "\n")
}

// reset empties a tree.
func reset(t failer, tr *Tree) {
	t.Helper()
	tr.FlushTimes()
	tr.Unsettle()
	must(t, tr.removeBelow(tr.rootfd))
	must(t, tr.removeBelow(tr.limbofd))
	tr.limbo.init()
	h, _ := tr.index.get(1)
	tr.cache.closeAll()
	tr.index.init()
	tr.index.put(1, h)
	must(t, unix.Fchmod(tr.rootfd, 0o755))
	must(t, unix.Fchown(tr.rootfd, 0, 0))
	must(t, setTimes(tr.rootfd, omit, 2e18))
	if names, err := listxattrFd(tr.rootfd); err == nil {
		for _, n := range names {
			unix.Fremovexattr(tr.rootfd, n)
		}
	}
}

// candidates are the operations that fit a state, on names a and b of every directory. next is the id of what is created.
func (m *model) candidates(next FileID, time int64) (ops []replication.Op) {
	add := func(op replication.Op) {
		op.Volume, op.Time = 1, time
		ops = append(ops, op)
	}
	type slot struct {
		p    FileID
		name string
		id   FileID
	}
	var slots []slot
	var ids []FileID
	for id, n := range m.in {
		ids = append(ids, id)
		if n.isDir() && !n.open {
			for _, name := range []string{"a", "b"} {
				slots = append(slots, slot{id, name, m.ent[id][name]})
			}
		}
	}
	slices.Sort(ids)
	sort.Slice(slots, func(i, j int) bool {
		return slots[i].p < slots[j].p || slots[i].p == slots[j].p && slots[i].name < slots[j].name
	})
	inside := func(dir, of FileID) bool { // dir is of, or lies in it
		for dir != 1 {
			if dir == of {
				return true
			}
			up := FileID(0)
			for p, es := range m.ent {
				for _, i := range es {
					if i == dir {
						up = p
					}
				}
			}
			if up == 0 {
				return false
			}
			dir = up
		}
		return of == 1
	}
	add(replication.Op{Kind: replication.Create, ID: next, Mode: unix.S_IFREG | 0o600})
	for _, s := range slots {
		if s.id == 0 {
			for _, mode := range []uint32{unix.S_IFREG | 0o644, unix.S_IFDIR | 0o755, unix.S_IFLNK | 0o777} {
				op := replication.Op{Kind: replication.Create, ID: next, Parent: s.p, Name: s.name, Mode: mode, UID: 3, GID: 4}
				if mode&unix.S_IFMT == unix.S_IFLNK {
					op.Data = []byte("a")
				}
				add(op)
			}
			for _, id := range ids {
				if n := m.in[id]; !n.isDir() && (!n.open || len(n.data) == 0) {
					op := replication.Op{Kind: replication.Link, ID: id, Parent: s.p, Name: s.name}
					if n.open {
						op.Flags = replication.FlagLimbo
					}
					add(op)
				}
			}
			continue
		}
		n := m.in[s.id]
		kind := replication.Unlink
		if n.isDir() {
			kind = replication.Rmdir
		}
		if !n.isDir() || len(m.ent[s.id]) == 0 {
			add(replication.Op{Kind: kind, ID: s.id, Parent: s.p, Name: s.name})
			if m.names(s.id) == 1 {
				add(replication.Op{Kind: kind, ID: s.id, Parent: s.p, Name: s.name, Flags: replication.FlagOpen})
			}
		}
		for _, q := range slots {
			if q.id == s.id || n.isDir() && inside(q.p, s.id) {
				continue
			}
			op := replication.Op{Kind: replication.Rename, ID: s.id, Parent: s.p, Name: s.name, NewParent: q.p, NewName: q.name, Before: q.id}
			if j := m.in[q.id]; q.id == 0 {
				add(op)
			} else {
				if j.isDir() == n.isDir() && len(m.ent[q.id]) == 0 && !inside(s.p, q.id) {
					add(op)
					if m.names(q.id) == 1 {
						op.Flags = replication.FlagOpen
						add(op)
					}
				}
				if !j.isDir() || !inside(s.p, q.id) {
					op.Flags = unix.RENAME_EXCHANGE
					add(op)
				}
			}
		}
	}
	for _, id := range ids {
		n := m.in[id]
		if n.open {
			add(replication.Op{Kind: replication.Forget, ID: id})
		}
		switch n.mode & unix.S_IFMT {
		case unix.S_IFREG:
			add(replication.Op{Kind: replication.Write, ID: id, Data: []byte("xyz")})
			add(replication.Op{Kind: replication.Write, ID: id, Off: int64(len(n.data)) + 1, Data: []byte("tail")})
			add(replication.Op{Kind: replication.SetAttr, ID: id, Valid: replication.ValidSize, Len: 0})
			add(replication.Op{Kind: replication.SetAttr, ID: id, Valid: replication.ValidSize | replication.ValidMtime, Len: int64(len(n.data)) + 2})
			add(replication.Op{Kind: replication.Fallocate, ID: id, Flags: unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, Off: 1, Len: 2})
			add(replication.Op{Kind: replication.Fallocate, ID: id, Flags: unix.FALLOC_FL_ZERO_RANGE, Off: 2, Len: 5})
			add(replication.Op{Kind: replication.Fallocate, ID: id, Off: 0, Len: 9})
		case unix.S_IFLNK:
			continue
		}
		add(replication.Op{Kind: replication.SetAttr, ID: id, Valid: replication.ValidMode, Mode: 0o4711})
		add(replication.Op{Kind: replication.SetAttr, ID: id, Valid: replication.ValidUID | replication.ValidGID, UID: 9, GID: 10})
		add(replication.Op{Kind: replication.SetAttr, ID: id, Valid: replication.ValidMtime | replication.ValidAtime, Atime: 77e9})
		if n.x["user.k"] == "" {
			add(replication.Op{Kind: replication.SetXattr, ID: id, Name: "user.k", Data: []byte("v")})
		} else {
			add(replication.Op{Kind: replication.DelXattr, ID: id, Name: "user.k"})
		}
	}
	return ops
}

func opText(op *replication.Op) string {
	s := fmt.Sprintf("%v %x", op.Kind, uint64(op.ID))
	switch op.Kind {
	case replication.Create, replication.Link, replication.Unlink, replication.Rmdir:
		s += fmt.Sprintf(" at %x/%s", uint64(op.Parent), op.Name)
	case replication.Rename:
		s += fmt.Sprintf(" %x/%s to %x/%s before %x", uint64(op.Parent), op.Name, uint64(op.NewParent), op.NewName, uint64(op.Before))
	}
	return s + fmt.Sprintf(" mode %o flags %x off %d len %d valid %x data %q", op.Mode, op.Flags, op.Off, op.Len, op.Valid, op.Data)
}
