package tree

import (
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

func mk(id, p FileID, name string, typ uint32) replication.Op {
	return replication.Op{Kind: replication.Create, ID: id, Parent: p, Name: name, Mode: typ | 0o755}
}
func newFile(id, p FileID, name string) replication.Op { return mk(id, p, name, unix.S_IFREG) }
func newDir(id, p FileID, name string) replication.Op  { return mk(id, p, name, unix.S_IFDIR) }
func linkOp(id, p FileID, name string) replication.Op {
	return replication.Op{Kind: replication.Link, ID: id, Parent: p, Name: name}
}
func unlinkOp(id, p FileID, name string) replication.Op {
	return replication.Op{Kind: replication.Unlink, ID: id, Parent: p, Name: name}
}
func renameOp(id, p FileID, name string, q FileID, to string, before FileID) replication.Op {
	return replication.Op{Kind: replication.Rename, ID: id, Parent: p, Name: name, NewParent: q, NewName: to, Before: before}
}
func writeOp(id FileID, data string) replication.Op {
	return replication.Op{Kind: replication.Write, ID: id, Data: []byte(data)}
}

// seen says which entries a walk saw: those of each directory as they were before an operation (0: before the first).
type seen map[FileID]int

// Sequences that went wrong in a design or in another system, each with the state of the tree over which it is redone.
func TestNamedCasesOfRedo(t *testing.T) {
	cases := []struct {
		what       string
		setup, ops []replication.Op
		walk       seen // nil: every suffix over every later state only
	}{
		{"create a; rename a b; create a: a redo by path moves the second a over b (D12)", nil,
			[]replication.Op{newFile(2, 1, "a"), writeOp(2, "one"), renameOp(2, 1, "a", 1, "b", 0), newFile(3, 1, "a"), writeOp(3, "two")}, nil},
		{"a file made in a directory that was walked before, and linked into one that was walked after",
			[]replication.Op{newDir(2, 1, "a"), newDir(3, 1, "b")},
			[]replication.Op{newFile(4, 2, "a"), writeOp(4, "data"), linkOp(4, 3, "b")}, seen{1: 0, 2: 0, 3: 3}},
		{"one of two names moved from a directory walked after to one walked before",
			[]replication.Op{newDir(2, 1, "a"), newDir(3, 1, "b"), newFile(4, 2, "a"), linkOp(4, 1, "c")},
			[]replication.Op{renameOp(4, 2, "a", 3, "b", 0)}, seen{1: 0, 2: 1, 3: 0}},
		{"two names that are taken later, and one of them goes: the file must stay for the other",
			nil, []replication.Op{newFile(2, 1, "a"), linkOp(2, 1, "b"), writeOp(2, "data"), unlinkOp(2, 1, "a"), newFile(3, 1, "a"), renameOp(2, 1, "b", 1, "c", 0), newFile(4, 1, "b")},
			nil},
		{"a goes into b, and back, and b into a: over the last state the first would make a circle",
			[]replication.Op{newDir(2, 1, "a"), newDir(3, 1, "b")},
			[]replication.Op{renameOp(2, 1, "a", 3, "a", 0), renameOp(2, 3, "a", 1, "a", 0), renameOp(3, 1, "b", 2, "b", 0)}, nil},
		{"a goes into b for good, where b was seen in c and c in a",
			[]replication.Op{newDir(2, 1, "a"), newDir(3, 1, "b"), newDir(4, 1, "c")},
			[]replication.Op{renameOp(3, 1, "b", 4, "b", 0), renameOp(2, 1, "a", 3, "a", 0), renameOp(3, 4, "b", 1, "b", 0), renameOp(4, 1, "c", 2, "c", 0)}, seen{1: 0, 2: 4, 3: 1, 4: 1}},
		{"the same, and a is removed there",
			[]replication.Op{newDir(2, 1, "a"), newDir(3, 1, "b"), newDir(4, 1, "c")},
			[]replication.Op{renameOp(3, 1, "b", 4, "b", 0), renameOp(2, 1, "a", 3, "a", 0), renameOp(3, 4, "b", 1, "b", 0), renameOp(4, 1, "c", 2, "c", 0),
				renameOp(4, 2, "c", 1, "c", 0), {Kind: replication.Rmdir, ID: 2, Parent: 3, Name: "a"}}, seen{1: 0, 2: 4, 3: 1, 4: 1}},
		{"a file without a name gets one, loses it, and another takes it",
			nil, []replication.Op{{Kind: replication.Create, ID: 2, Mode: unix.S_IFREG | 0o600}, writeOp(2, "data"), {Kind: replication.Link, ID: 2, Parent: 1, Name: "a", Flags: replication.FlagLimbo},
				unlinkOp(2, 1, "a"), newFile(3, 1, "a")}, nil},
		{"an old version is replaced by rename, as editors do, twice",
			[]replication.Op{newFile(2, 1, "a"), writeOp(2, "old")},
			[]replication.Op{newFile(3, 1, "t"), writeOp(3, "new"), renameOp(3, 1, "t", 1, "a", 2), newFile(4, 1, "t"), writeOp(4, "newer"), renameOp(4, 1, "t", 1, "a", 3)}, nil},
		{"a directory is emptied, removed, and made again under the same name",
			[]replication.Op{newDir(2, 1, "a"), newFile(3, 2, "a")},
			[]replication.Op{unlinkOp(3, 2, "a"), {Kind: replication.Rmdir, ID: 2, Parent: 1, Name: "a"}, newDir(4, 1, "a"), newFile(5, 4, "a"), writeOp(5, "x")}, nil},
		{"everything moves out of a directory that goes",
			[]replication.Op{newDir(2, 1, "a"), newFile(3, 2, "a"), newDir(4, 2, "b"), newFile(5, 4, "a")},
			[]replication.Op{renameOp(3, 2, "a", 1, "f", 0), renameOp(4, 2, "b", 1, "d", 0), {Kind: replication.Rmdir, ID: 2, Parent: 1, Name: "a"}, renameOp(4, 1, "d", 1, "a", 0)}, nil},
		{"a name moves round in a ring of three",
			[]replication.Op{newFile(2, 1, "a"), newFile(3, 1, "b")},
			[]replication.Op{renameOp(2, 1, "a", 1, "t", 0), renameOp(3, 1, "b", 1, "a", 0), renameOp(2, 1, "t", 1, "b", 0), renameOp(3, 1, "a", 1, "t", 0), renameOp(2, 1, "b", 1, "a", 0)}, nil},
		{"a file grows, is cut to nothing, and grows again",
			[]replication.Op{newFile(2, 1, "a")},
			[]replication.Op{writeOp(2, "long text"), {Kind: replication.SetAttr, ID: 2, Valid: replication.ValidSize}, {Kind: replication.Write, ID: 2, Off: 3, Data: []byte("x")}}, nil},
	}
	onEach(t, func(t *testing.T, disk string) {
		tr := newTree(t, filepath.Join(disk, "v"))
		defer tr.Close()
		for _, c := range cases {
			t.Run(c.what, func(t *testing.T) {
				w := &world{t: t, tr: tr}
				m := newModel()
				for i, op := range slices.Concat(c.setup, c.ops) {
					op.Volume, op.Time = 1, int64(i+1)*1e9
					if i < len(c.setup) {
						w.setup = append(w.setup, op)
					} else {
						w.states = append(w.states, m.clone())
						w.ops = append(w.ops, op)
					}
					m.do(&op)
				}
				w.states = append(w.states, m)
				w.sequence()
				if c.walk != nil {
					w.walked(c.walk)
				}
			})
		}
	})
}

// walked redoes everything over what a walk saw: each directory's entries and what they name as they were before some operation.
func (w *world) walked(see seen) {
	reset(w.t, w.tr)
	for dir, at := range see {
		m := w.states[at]
		for _, id := range m.ent[dir] {
			if !w.tr.index.has(id) {
				w.put(id, m.in[id])
			}
		}
	}
	for dir, at := range see {
		for name, id := range w.states[at].ent[dir] {
			w.place(dir, name, id)
		}
	}
	for dir, at := range see { // the times of directories last, because setting entries changes them
		w.attrs(dir, w.states[at].in[dir])
	}
	w.redo(0, "over what a walk saw")
}
