package tree

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/hanode/hanode/replication"
)

// Long random sequences, with directories that move into one another, hard links and files without names, are redone from a random point over a random later state, and
// over mixed ones; what is drawn is shrunk when it fails.
func TestLongSequencesAreRedone(t *testing.T) {
	disk := mountTmpfs(t)
	tr := newTree(t, filepath.Join(disk, "v"))
	defer tr.Close()
	rapid.Check(t, func(r *rapid.T) {
		w := &world{t: r, tr: tr}
		m := newModel()
		next := FileID(2)
		n := rapid.IntRange(1, 25).Draw(r, "operations")
		for i := range n {
			w.states = append(w.states, m.clone())
			all := m.candidates(next, int64(100+i)*1e9)
			// Half of the operations are on names of directories, which are few among the candidates.
			kinds := map[replication.Kind][]replication.Op{}
			var order []replication.Kind
			for _, op := range all {
				if kinds[op.Kind] == nil {
					order = append(order, op.Kind)
				}
				kinds[op.Kind] = append(kinds[op.Kind], op)
			}
			of := kinds[order[rapid.IntRange(0, len(order)-1).Draw(r, "kind")]]
			op := of[rapid.IntRange(0, len(of)-1).Draw(r, "which")]
			if op.Kind == replication.Create {
				next++
			}
			m.do(&op)
			w.ops = append(w.ops, op)
		}
		w.states = append(w.states, m)
		s := rapid.IntRange(0, n).Draw(r, "state")
		from := rapid.IntRange(0, s).Draw(r, "from")
		w.build(from, s)
		w.redo(from, fmt.Sprintf("from operation %d over the state after %d", from+1, s))
		w.mixed(rand.New(rand.NewPCG(rapid.Uint64().Draw(r, "mix"), 3)))
	})
}

// An inode that a resync did not see, because it moved from a directory walked later to one walked earlier, is reported by the redo.
func TestWhatAResyncMissedIsReported(t *testing.T) {
	disk := mountTmpfs(t)
	tr := newTree(t, filepath.Join(disk, "v"))
	defer tr.Close()
	w := &world{t: t, tr: tr}
	for i, op := range []replication.Op{newDir(2, 1, "a"), newDir(3, 1, "b")} {
		op.Time = int64(i+1) * 1e9
		w.setup = append(w.setup, op)
	}
	w.build(0, 0)
	tr.Unsettle()
	for _, c := range []struct {
		op    replication.Op
		lacks FileID
	}{
		{renameOp(9, 2, "a", 3, "a", 0), 9},
		{writeOp(9, "x"), 9},
		{linkOp(9, 1, "l"), 9},
		{newFile(10, 8, "in a directory that is not here"), 8},
		{renameOp(3, 1, "b", 8, "b", 0), 8},
		{replication.Op{Kind: replication.Rename, ID: 2, Parent: 1, Name: "a", NewParent: 1, NewName: "x", Before: 7, Flags: unix.RENAME_EXCHANGE}, 7},
		{replication.Op{Kind: replication.SetXattr, ID: 9, Name: "user.k"}, 9},
		{replication.Op{Kind: replication.SetAttr, ID: 9, Valid: replication.ValidMode}, 9},
	} {
		a := apply(t, tr, c.op)
		if !a.Missing || a.Lacks != c.lacks {
			t.Errorf("%s: %+v", opText(&c.op), a)
		}
	}
	for _, op := range []replication.Op{unlinkOp(9, 2, "a"), {Kind: replication.Forget, ID: 9}} {
		if a := apply(t, tr, op); a.Missing {
			t.Errorf("%s: what goes is not missed: %+v", opText(&op), a)
		}
	}
}
