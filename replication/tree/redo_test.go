package tree

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

var (
	allSequences = flag.Bool("all", false, "redo: every sequence of three operations, not a part of them (takes long)")
	redoSeed     = flag.Uint64("seed", 1, "redo: of the mixed states")
)

// setups are the volumes that the sequences begin with: at most two files or directories.
var setups = map[string][]replication.Op{
	"empty":       nil,
	"a file":      {{Kind: replication.Create, ID: 2, Parent: 1, Name: "a", Mode: unix.S_IFREG | 0o644}, {Kind: replication.Write, ID: 2, Data: []byte("data")}},
	"file in dir": {{Kind: replication.Create, ID: 2, Parent: 1, Name: "a", Mode: unix.S_IFDIR | 0o755}, {Kind: replication.Create, ID: 3, Parent: 2, Name: "a", Mode: unix.S_IFREG | 0o644}},
	"two dirs":    {{Kind: replication.Create, ID: 2, Parent: 1, Name: "a", Mode: unix.S_IFDIR | 0o755}, {Kind: replication.Create, ID: 3, Parent: 1, Name: "b", Mode: unix.S_IFDIR | 0o755}},
	"two names":   {{Kind: replication.Create, ID: 2, Parent: 1, Name: "a", Mode: unix.S_IFREG | 0o644}, {Kind: replication.Link, ID: 2, Parent: 1, Name: "b"}},
	"open":        {{Kind: replication.Create, ID: 2, Parent: 1, Name: "a", Mode: unix.S_IFREG | 0o644}, {Kind: replication.Write, ID: 2, Data: []byte("data")}, {Kind: replication.Unlink, ID: 2, Parent: 1, Name: "a", Flags: replication.FlagOpen}},
	"two files":   {{Kind: replication.Create, ID: 2, Parent: 1, Name: "a", Mode: unix.S_IFREG | 0o644}, {Kind: replication.Create, ID: 3, Parent: 1, Name: "b", Mode: unix.S_IFREG | 0o644}},
}

// world is a tree that is used again and again, and what is known of one sequence on it.
type world struct {
	t      failer
	tr     *Tree
	setup  []replication.Op
	ops    []replication.Op
	states []*model // before each operation, and at the end
	points int
}

func (w *world) play(ops []replication.Op) {
	for i := range ops {
		if _, err := w.tr.Apply(&ops[i]); err != nil {
			w.fail("apply %s: %v", opText(&ops[i]), err)
		}
	}
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	var b strings.Builder
	for i := range w.setup {
		fmt.Fprintf(&b, "  before:  %s\n", opText(&w.setup[i]))
	}
	for i := range w.ops {
		fmt.Fprintf(&b, "  %d: %s\n", i+1, opText(&w.ops[i]))
	}
	w.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), b.String())
}

// compare demands that the tree is the model.
func (w *world) compare(m *model, what string) {
	w.t.Helper()
	if got, want := treeText(w.t, w.tr), m.text(); got != want {
		w.fail("%s: the tree differs\n%s", what, difference(got, want))
	}
}

func difference(got, want string) string {
	g, v := strings.Split(got, "\n"), strings.Split(want, "\n")
	var b strings.Builder
	for _, l := range g {
		if !slices.Contains(v, l) {
			fmt.Fprintf(&b, "  got  %s\n", l)
		}
	}
	for _, l := range v {
		if !slices.Contains(g, l) {
			fmt.Fprintf(&b, "  want %s\n", l)
		}
	}
	return b.String()
}

// build brings the tree to the state before operation s, as a live copy does that is cut off then, and whose last checkpoint was before operation
// from: the times that waited are lost, and nothing is open any more.
func (w *world) build(from, s int) {
	reset(w.t, w.tr)
	must(w.t, w.tr.Settle())
	w.play(w.setup)
	w.play(w.ops[:from])
	must(w.t, w.tr.FlushTimes())
	w.play(w.ops[from:s])
	for _, n := range w.tr.times.list {
		w.tr.release(n)
	}
	w.tr.times.list = nil
	w.tr.cache.closeAll()
}

func (w *world) redo(from int, what string) {
	w.tr.Unsettle()
	w.play(w.ops[from:])
	must(w.t, w.tr.FlushTimes()) // a checkpoint at the last moment
	if err := w.tr.Settle(); err != nil {
		w.fail("%s: settle: %v", what, err)
	}
	w.compare(w.states[len(w.ops)], what)
	w.points++
}

// sequence redoes every suffix over every state that is later than its beginning.
func (w *world) sequence() {
	w.build(len(w.ops), len(w.ops))
	w.compare(w.states[len(w.ops)], "the straight way")
	for s := range len(w.ops) + 1 {
		for from := range s + 1 {
			if from == len(w.ops) {
				continue
			}
			w.build(from, s)
			w.redo(from, fmt.Sprintf("from operation %d over the state after %d", from+1, s))
		}
	}
}

// mixed redoes everything over a state in which each inode and each entry is at a state of its own, as a resync from a running source leaves it.
func (w *world) mixed(rnd *rand.Rand) {
	reset(w.t, w.tr)
	k := len(w.ops)
	var ids []FileID
	for _, m := range w.states {
		for id := range m.in {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	at := map[FileID]int{}
	var log []string
	for _, id := range ids {
		var in []int
		for s, m := range w.states {
			if m.in[id] != nil {
				in = append(in, s)
			}
		}
		if _, old := w.states[0].in[id]; !old && w.states[k].in[id] == nil && rnd.IntN(2) == 0 {
			continue // it came and went meanwhile, and was never seen
		} else if !old && rnd.IntN(4) == 0 {
			continue // made meanwhile, and not seen
		} else if w.states[k].in[id] == nil && rnd.IntN(3) == 0 {
			continue // gone already
		}
		at[id] = in[rnd.IntN(len(in))]
		w.put(id, w.states[at[id]].in[id])
		log = append(log, fmt.Sprintf("inode %x as before operation %d", id, at[id]+1))
	}
	type reg struct {
		p    FileID
		name string
	}
	var regs []reg
	for _, id := range ids {
		for _, name := range []string{"a", "b"} {
			regs = append(regs, reg{id, name})
		}
	}
	rnd.Shuffle(len(regs), func(i, j int) { regs[i], regs[j] = regs[j], regs[i] })
	for _, r := range regs {
		s := rnd.IntN(k + 1)
		id := w.states[s].ent[r.p][r.name]
		if _, here := at[r.p]; !here || id == 0 {
			continue
		}
		if _, here := at[id]; !here {
			continue
		}
		w.place(r.p, r.name, id)
		log = append(log, fmt.Sprintf("entry %x/%s = %x", r.p, r.name, id))
	}
	for _, id := range ids {
		if _, here := at[id]; here && w.states[at[id]].in[id].isDir() {
			w.attrs(id, w.states[at[id]].in[id])
		}
	}
	w.redo(0, "over a mixed state: "+strings.Join(log, "; "))
}

// place gives an entry to an inode as a resync does.
func (w *world) place(p FileID, name string, id FileID) {
	if now, _, err := w.tr.Lookup(p, name); err == nil && now == id {
		return
	}
	err := w.tr.Unplace(p, name)
	if err == nil {
		err = w.tr.Place(id, p, name)
	}
	if err != nil {
		w.fail("place %x at %x/%s: %v", id, p, name, err)
	}
}

// put makes an inode as it was at some point.
func (w *world) put(id FileID, n *mnode) {
	if id != 1 {
		op := replication.Op{Kind: replication.Create, ID: id, Mode: n.mode, UID: n.uid, GID: n.gid, Time: n.mtime, Data: []byte(n.target)}
		err := w.tr.MakeParked(&op)
		if err == nil && n.open {
			err = w.tr.SetOpen(id)
		}
		if err != nil {
			w.fail("make %x: %v", id, err)
		}
	}
	if len(n.data) > 0 {
		w.play([]replication.Op{{Kind: replication.Write, ID: id, Data: n.data, Time: n.mtime}})
	}
	for k, v := range n.x {
		w.play([]replication.Op{{Kind: replication.SetXattr, ID: id, Name: k, Data: []byte(v)}})
	}
	w.attrs(id, n)
}

func (w *world) attrs(id FileID, n *mnode) {
	if n.mode&unix.S_IFMT == unix.S_IFLNK {
		return
	}
	op := replication.Op{Kind: replication.SetAttr, ID: id, Valid: replication.ValidMode | replication.ValidUID | replication.ValidGID, Mode: n.mode & 0o7777, UID: n.uid, GID: n.gid}
	if n.mtime != omit {
		op.Valid |= replication.ValidMtime
		op.Time = n.mtime
	}
	w.play([]replication.Op{op})
}

// Every sequence of up to three operations, redone from every point over every later state, gives what the straight way gives.
func TestRedoFromAnyLaterStateGivesTheSameTree(t *testing.T) {
	onEach(t, func(t *testing.T, disk string) {
		w := &world{t: t, tr: newTree(t, filepath.Join(disk, "v"))}
		defer w.tr.Close()
		rnd := rand.New(rand.NewPCG(*redoSeed, 7))
		// So many of a hundred sequences of two operations, and of two thousand of three, are taken here; the seed says which.
		part := 12
		if strings.HasSuffix(t.Name(), "ext4") {
			part = 5
		}
		if *allSequences {
			part = 2000
		}
		sequences := 0
		for _, name := range slices.Sorted(maps.Keys(setups)) {
			w.setup = nil
			setup := setups[name]
			m := newModel()
			next := FileID(2)
			for i, op := range setup {
				op.Volume, op.Time = 1, int64(i+1)*1e9
				m.do(&op)
				w.setup = append(w.setup, op)
				next = max(next, op.ID+1)
			}
			var deeper func(m *model, next FileID)
			deeper = func(m *model, next FileID) {
				w.states = append(w.states, m)
				defer func() { w.states = w.states[:len(w.states)-1] }()
				depth := len(w.ops)
				if depth == 1 || depth == 2 && rnd.IntN(100) < part || depth == 3 {
					sequences++
					w.sequence()
					for range 2 {
						w.mixed(rnd)
					}
				}
				if depth == 3 {
					return
				}
				for _, op := range m.candidates(next, int64(100+depth)*1e9) {
					if depth == 2 && rnd.IntN(2000) >= part/10+1 && !*allSequences {
						continue
					}
					c := m.clone()
					c.do(&op)
					w.ops = append(w.ops, op)
					id := next
					if op.Kind == replication.Create {
						id++
					}
					deeper(c, id)
					w.ops = w.ops[:depth]
				}
			}
			deeper(m, next)
		}
		t.Logf("%d sequences, %d crash points, seed %d", sequences, w.points, *redoSeed)
	})
}
