package tree

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/journal/faultfs"
)

var smallJournal = journal.Limits{Cluster: "c", Service: "s", Segment: 16 << 10, Size: 64 << 10}

// The journal is cut in every part of every record, and what it then holds is redone over a tree that had come as far as it may have: the tree is
// that of the last whole record.
func TestRedoFromAJournalThatIsCutAnywhere(t *testing.T) {
	disk := mountTmpfs(t)
	w := &world{t: t, tr: newTree(t, filepath.Join(disk, "v"))}
	defer w.tr.Close()
	rnd := rand.New(rand.NewPCG(*redoSeed, 11))
	names := slices.Sorted(maps.Keys(setups))
	for w.points < 5200 && !t.Failed() {
		w.random(setups[names[rnd.IntN(len(names))]], 3, rnd)
		fs := faultfs.New(*redoSeed)
		j, _, err := journal.Open("j", fs, smallJournal)
		must(t, err)
		var recs [][]byte
		for i := range w.ops {
			pos := cluster.Position{Epoch: 1, Gen: 1, Seq: uint64(i + 1)}
			rec, err := replication.AppendRecord(nil, pos, &w.ops[i])
			must(t, err)
			must(t, j.Append(pos, rec))
			recs = append(recs, rec)
		}
		kept := fs.Clone() // before Close, which says that everything is durable
		must(t, j.Close())
		for i, rec := range recs {
			file, off := find(t, kept, rec)
			cuts := []int64{-88, -87, -44, -1, 0, 1, 8, 12, 47, replication.HeaderSize, replication.HeaderSize + 54, int64(len(rec)) - 1}
			for _, at := range cuts {
				if at > 0 && len(bytes.Trim(rec[at:], "\x00")) == 0 {
					continue // what is cut off is zero anyway
				}
				w.cut(kept, file, off+at, i, rnd)
			}
			if at := int64(len(rec)); i == len(recs)-1 {
				w.cut(kept, file, off+at, i+1, rnd)
			}
		}
	}
	t.Logf("%d crash points, seed %d", w.points, *redoSeed)
}

// cut zeroes the journal from an offset on and demands that n records are left; their redo over a state that may be there gives the state after the last.
func (w *world) cut(fs *faultfs.FS, file string, off int64, n int, rnd *rand.Rand) {
	what := fmt.Sprintf("the journal's file %s cut at %d", file, off)
	fs = fs.Clone()
	fs.Zero(file, off, int64(len(fs.Content(file)))-off)
	j, _, err := journal.Open("j", fs, smallJournal)
	if err != nil {
		w.fail("%s: %v", what, err)
	}
	defer j.Close()
	if j.Last().Seq != uint64(n) {
		w.fail("%s: it holds %d records, not %d", what, j.Last().Seq, n)
	}
	s := rnd.IntN(n + 1)
	from := rnd.IntN(s + 1)
	w.build(from, s)
	w.tr.Unsettle()
	if from < n {
		r, err := j.Read(uint64(from + 1))
		must(w.t, err)
		defer r.Close()
		for {
			b, err := r.Next(nil)
			if errors.Is(err, io.EOF) {
				break
			}
			must(w.t, err)
			for len(b) > 0 {
				var op replication.Op
				h, err := replication.Parse(b, &op)
				must(w.t, err)
				w.play([]replication.Op{op})
				b = b[h.Len:]
			}
		}
	}
	if err := w.tr.Settle(); err != nil {
		w.fail("%s: settle: %v", what, err)
	}
	w.compare(w.states[n], fmt.Sprintf("%s, from operation %d over the state after %d", what, from+1, s))
	w.points++
}

// find is where a record's bytes lie.
func find(t *testing.T, fs *faultfs.FS, rec []byte) (string, int64) {
	t.Helper()
	names, err := fs.List("j")
	must(t, err)
	for _, n := range names {
		if at := bytes.Index(fs.Content("j/"+n), rec); at >= 0 {
			return "j/" + n, int64(at)
		}
	}
	t.Fatal("the record is in no file of the journal")
	return "", 0
}

// random takes a setup and operations that fit, each by lot.
func (w *world) random(setup []replication.Op, n int, rnd *rand.Rand) {
	w.setup, w.ops, w.states = nil, nil, nil
	m := newModel()
	next := FileID(2)
	for i, op := range setup {
		op.Volume, op.Time = 1, int64(i+1)*1e9
		m.do(&op)
		w.setup = append(w.setup, op)
		next = max(next, op.ID+1)
	}
	for i := range n {
		w.states = append(w.states, m.clone())
		all := m.candidates(next, int64(100+i)*1e9)
		op := all[rnd.IntN(len(all))]
		if op.Kind == replication.Create {
			next++
		}
		m.do(&op)
		w.ops = append(w.ops, op)
	}
	w.states = append(w.states, m)
}
