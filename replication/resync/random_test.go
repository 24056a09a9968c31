package resync

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

var (
	seeds = flag.Int("seeds", 40, "how many random histories")
	seed  = flag.Uint64("seed", 0, "one random history only")
)

// author writes operations that fit a tree.
type author struct {
	rnd   *rand.Rand
	next  FileID
	clock int64
	nodes map[FileID]*node
	open  []FileID
	log   []replication.Op
	xattr string // that the disk can keep
}

type node struct {
	typ     uint32
	nlink   int
	parent  FileID
	entries map[string]FileID
	size    int64
}

func newAuthor(seed uint64) *author {
	return &author{rnd: rand.New(rand.NewPCG(seed, 7)), next: 2, clock: 1e18, xattr: "trusted.a", nodes: map[FileID]*node{1: {typ: unix.S_IFDIR, entries: map[string]FileID{}, parent: 1}}}
}

func (a *author) clone(seed uint64, base FileID) *author {
	b := newAuthor(seed)
	b.next, b.clock = base, a.clock+1e12
	b.open = append(b.open, a.open...)
	for id, n := range a.nodes {
		c := *n
		if n.entries != nil {
			c.entries = map[string]FileID{}
			for k, v := range n.entries {
				c.entries[k] = v
			}
		}
		b.nodes[id] = &c
	}
	return b
}

// pick gives some inode of a type; 0 if there is none that has a name.
func (a *author) pick(typ uint32) FileID {
	var ids []FileID
	for id, n := range a.nodes {
		if n.typ == typ && (n.nlink > 0 || typ == unix.S_IFDIR) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return 0
	}
	least := ids[0]
	k := a.rnd.IntN(len(ids)) // map order is random: choose by rank
	for range k + 1 {
		least = 0
		for i, id := range ids {
			if id != 0 && (least == 0 || id < ids[least-1]) {
				least = FileID(i + 1)
			}
		}
		k--
		if k < 0 {
			return ids[least-1]
		}
		ids[least-1] = 0
	}
	return 0
}

func (a *author) name() string { return fmt.Sprintf("n%d", a.rnd.IntN(12)) }

func (a *author) within(id, dir FileID) bool {
	for ; ; id = a.nodes[id].parent {
		if id == dir {
			return true
		}
		if id == 1 {
			return false
		}
	}
}

// drop takes a name from an inode.
func (a *author) drop(id FileID) (open bool) {
	n := a.nodes[id]
	if n.nlink--; n.typ == unix.S_IFDIR || n.nlink == 0 {
		if n.typ == unix.S_IFREG && a.rnd.IntN(3) == 0 {
			a.open = append(a.open, id)
			return true
		}
		delete(a.nodes, id)
	}
	return false
}

// write is the next operation.
func (a *author) write() replication.Op {
	for {
		a.clock += 1e6
		op, ok := a.try()
		if ok {
			op.Volume, op.Time = 1, a.clock
			a.log = append(a.log, op)
			return op
		}
	}
}

func (a *author) try() (op replication.Op, ok bool) {
	dir := a.pick(unix.S_IFDIR)
	d := a.nodes[dir]
	name := a.name()
	there, taken := d.entries[name]
	file := a.pick(unix.S_IFREG)
	switch k := a.rnd.IntN(20); {
	case k < 4:
		typ := []uint32{fileMode, fileMode, dirMode, unix.S_IFLNK | 0o777}[a.rnd.IntN(4)]
		if taken {
			return op, false
		}
		op = replication.Op{Kind: replication.Create, ID: a.next, Parent: dir, Name: name, Mode: typ, UID: uint32(a.rnd.IntN(3))}
		n := &node{typ: typ & unix.S_IFMT, nlink: 1, parent: dir}
		switch n.typ {
		case unix.S_IFDIR:
			n.entries = map[string]FileID{}
		case unix.S_IFLNK:
			op.Data = []byte(fmt.Sprint("to", a.next))
		}
		a.nodes[a.next], d.entries[name] = n, a.next
		a.next++
		return op, true
	case k < 8 && file != 0:
		n := a.nodes[file]
		off := int64(a.rnd.IntN(5)) * 3000
		b := make([]byte, 1+a.rnd.IntN(9000))
		for i := range b {
			b[i] = byte(a.rnd.IntN(4))
		}
		n.size = max(n.size, off+int64(len(b)))
		return replication.Op{Kind: replication.Write, ID: file, Off: off, Data: b}, true
	case k == 8 && file != 0:
		a.nodes[file].size = int64(a.rnd.IntN(20000))
		return replication.Op{Kind: replication.SetAttr, ID: file, Valid: replication.ValidSize, Len: a.nodes[file].size}, true
	case k == 9 && file != 0:
		return replication.Op{Kind: replication.Fallocate, ID: file, Flags: unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE, Off: int64(a.rnd.IntN(9000)), Len: 5000}, true
	case k == 10:
		id := []FileID{dir, file}[a.rnd.IntN(2)]
		return replication.Op{Kind: replication.SetAttr, ID: id, Valid: replication.ValidMode | replication.ValidUID, Mode: uint32(a.rnd.IntN(0o1000)), UID: uint32(a.rnd.IntN(5))}, id > 1
	case k == 11:
		id := []FileID{dir, file}[a.rnd.IntN(2)]
		if a.rnd.IntN(3) == 0 {
			return replication.Op{Kind: replication.DelXattr, ID: id, Name: a.xattr}, id > 1
		}
		return replication.Op{Kind: replication.SetXattr, ID: id, Name: a.xattr, Data: []byte(fmt.Sprint(a.clock))}, id > 1
	case k == 12 && file != 0 && !taken:
		a.nodes[file].nlink++
		d.entries[name] = file
		return replication.Op{Kind: replication.Link, ID: file, Parent: dir, Name: name}, true
	case k < 15 && taken:
		n := a.nodes[there]
		op = replication.Op{Kind: replication.Unlink, ID: there, Parent: dir, Name: name}
		if n.typ == unix.S_IFDIR {
			if op.Kind = replication.Rmdir; len(n.entries) > 0 {
				return op, false
			}
		}
		delete(d.entries, name)
		if a.drop(there) {
			op.Flags = replication.FlagOpen
		}
		return op, true
	case k < 18 && taken:
		return a.rename(dir, name, there)
	case k == 18 && len(a.open) > 0:
		i := a.rnd.IntN(len(a.open))
		id := a.open[i]
		a.open = append(a.open[:i:i], a.open[i+1:]...)
		delete(a.nodes, id)
		return replication.Op{Kind: replication.Forget, ID: id}, true
	case k == 19 && len(a.open) > 0:
		return replication.Op{Kind: replication.Write, ID: a.open[a.rnd.IntN(len(a.open))], Off: 10, Data: []byte("written without a name")}, true
	}
	return op, false
}

func (a *author) rename(dir FileID, name string, id FileID) (op replication.Op, ok bool) {
	to := a.pick(unix.S_IFDIR)
	q := a.nodes[to]
	name2 := a.name()
	before, taken := q.entries[name2]
	n := a.nodes[id]
	if n.typ == unix.S_IFDIR && a.within(to, id) || before == id {
		return op, false
	}
	op = replication.Op{Kind: replication.Rename, ID: id, Parent: dir, Name: name, NewParent: to, NewName: name2, Before: before}
	if taken {
		b := a.nodes[before]
		if a.rnd.IntN(3) == 0 { // exchange
			if b.typ == unix.S_IFDIR && a.within(dir, before) {
				return op, false
			}
			op.Flags = unix.RENAME_EXCHANGE
			a.nodes[dir].entries[name], q.entries[name2] = before, id
			if n.typ == unix.S_IFDIR {
				n.parent = to
			}
			if b.typ == unix.S_IFDIR {
				b.parent = dir
			}
			return op, true
		}
		if (b.typ == unix.S_IFDIR) != (n.typ == unix.S_IFDIR) || len(b.entries) > 0 {
			return op, false
		}
		if a.drop(before) {
			op.Flags = replication.FlagOpen
		}
	}
	delete(a.nodes[dir].entries, name)
	q.entries[name2] = id
	if n.typ == unix.S_IFDIR {
		n.parent = to
	}
	return op, true
}

// restless is a channel of a source on which something happens whenever a frame comes or goes.
type restless struct {
	Channel
	happen func()
}

func (r *restless) Send(b []byte) error {
	r.happen()
	return r.Channel.Send(b)
}

func (r *restless) Recv() ([]byte, error) {
	b, err := r.Channel.Recv()
	r.happen()
	return b, err
}

// history is one source that never rests, and a follower.
type history struct {
	from, to *Tree
	mu       sync.Mutex
	author   *author
	err      error
	most     int
}

func (h *history) happen() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for range h.author.rnd.IntN(8) {
		if len(h.author.log) >= h.most {
			return
		}
		op := h.author.write()
		if _, err := h.from.Apply(&op); err != nil && h.err == nil {
			h.err = fmt.Errorf("the source: %+v: %w", op, err)
		}
	}
}

func (h *history) resync(opt TargetOptions) (Result, error) {
	a, b := pipe()
	opt.Volume = 1
	src := make(chan error, 1)
	go func() {
		src <- Source(context.Background(), &restless{a, h.happen}, h.from, SourceOptions{Volume: 1, part: 1 + h.author.rnd.IntN(500)})
	}()
	r, err := Run(context.Background(), b, h.to, opt)
	return r, errors.Join(err, <-src)
}

// redo applies the log from s0 on and says what was missing.
func (h *history) redo(s0 int) (missing []FileID, err error) {
	have := map[FileID]bool{}
	for i := s0; i < len(h.author.log); i++ {
		a, err := h.to.Apply(&h.author.log[i])
		if err != nil {
			return nil, fmt.Errorf("redo of %+v: %w", h.author.log[i], err)
		}
		if a.Missing && !have[a.Lacks] {
			have[a.Lacks] = true
			missing = append(missing, a.Lacks)
		}
	}
	return missing, nil
}

// live is one random history; rounds is how often inodes had to be asked for after the redo.
func live(disk string, seed uint64) (rounds int, r Result, err error) {
	dir := fmt.Sprintf("%s/%d", disk, seed)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, r, err
	}
	defer os.RemoveAll(dir)
	h := &history{author: newAuthor(seed)}
	for _, x := range []struct {
		t    **Tree
		name string
	}{{&h.from, "a"}, {&h.to, "b"}} {
		if err := tree.Make(dir + "/" + x.name); err != nil {
			return 0, r, err
		}
		if *x.t, err = tree.Open(dir+"/"+x.name, tree.Options{}); err != nil {
			return 0, r, err
		}
		defer (*x.t).Close()
	}
	if err := errors.Join(h.from.Settle(), h.to.Settle()); err != nil {
		return 0, r, err
	}
	both := h.author.rnd.IntN(300)
	full := seed%3 != 0
	for i := range both + h.author.rnd.IntN(300) {
		if i == both && seed%3 == 1 { // the follower goes a way of its own for a while
			other := h.author.clone(seed+1000, 1<<32)
			for range 100 {
				op := other.write()
				if _, err := h.to.Apply(&op); err != nil {
					return 0, r, err
				}
			}
		}
		op := h.author.write()
		if _, err := h.from.Apply(&op); err != nil {
			return 0, r, fmt.Errorf("%+v: %w", op, err)
		}
		if i < both && seed%3 != 2 {
			if _, err := h.to.Apply(&op); err != nil {
				return 0, r, err
			}
		}
	}
	s0 := len(h.author.log)
	h.most = s0 + 150 + h.author.rnd.IntN(300)
	if r, err = h.resync(TargetOptions{Full: full, Workers: 1}); err != nil {
		return 0, r, err
	}
	gone := map[FileID]bool{}
	for {
		missing, err := h.redo(s0)
		if err != nil {
			return rounds, r, err
		}
		missing = slices.DeleteFunc(missing, func(id FileID) bool { return gone[id] })
		if len(missing) == 0 {
			break
		}
		if rounds++; rounds > 20 {
			return rounds, r, fmt.Errorf("still missing after 20 rounds: %x", missing)
		}
		m, err := h.resync(TargetOptions{Full: full, Workers: 1, Missing: missing})
		if err != nil {
			return rounds, r, err
		}
		for _, id := range m.Gone {
			gone[id] = true
		}
	}
	return rounds, r, errors.Join(h.err, h.to.Settle(), h.compare())
}

func (h *history) compare() error {
	t := &testing.T{}
	a, b := snapshot(t, h.from), snapshot(t, h.to)
	if d := differ(a, b); len(d) > 0 {
		return fmt.Errorf("%d differences, the first: %s", len(d), d[0])
	}
	return nil
}

func TestWhateverTheSourceDoesMeanwhileTheFollowerBecomesEqual(t *testing.T) {
	disk := scratch(t)
	rounds, byID := 0, int64(0)
	for s := range uint64(*seeds) {
		if *seed != 0 && s != *seed && s > 0 {
			continue
		}
		if *seed != 0 {
			s = *seed
		}
		n, r, err := live(disk, s)
		if err != nil {
			t.Fatalf("go test ./replication/resync -run Whatever -seed=%d: %v", s, err)
		}
		rounds, byID = rounds+n, byID+r.ByID
	}
	t.Logf("%d inodes were asked for by their ids, %d times after a redo", byID, rounds)
	if *seed == 0 && (byID == 0 || rounds == 0) {
		t.Error("nothing ever moved past the walk: the histories test nothing")
	}
}

// spy calls fn with each message that the source receives, before the source does.
type spy struct {
	Channel
	fn func(message)
}

func (s *spy) Recv() ([]byte, error) {
	b, err := s.Channel.Recv()
	if err == nil {
		body, _ := unseal(b)
		for len(body) > 0 {
			var m message
			if m, body, err = parse(body); err != nil {
				return nil, err
			}
			s.fn(m)
		}
	}
	return b, err
}

// TestAFileThatMovesPastTheWalkIsComparedByItsID: what the follower has is not thrown away and fetched again, and not left as it was either.
func TestAFileThatMovesPastTheWalkIsComparedByItsID(t *testing.T) {
	disk := scratch(t)
	from, to := newTree(t, disk+"/a"), newTree(t, disk+"/b")
	must(t, from.Settle(), to.Settle())
	for _, tr := range []*Tree{from, to} {
		do(t, tr, replication.Op{Kind: replication.Create, ID: 2, Parent: 1, Name: "x", Mode: dirMode}, replication.Op{Kind: replication.Create, ID: 3, Parent: 1, Name: "y", Mode: dirMode},
			replication.Op{Kind: replication.Create, ID: 4, Parent: 2, Name: "f", Mode: fileMode}, replication.Op{Kind: replication.Create, ID: 5, Parent: 3, Name: "f", Mode: fileMode})
		for _, id := range []FileID{4, 5} {
			do(t, tr, replication.Op{Kind: replication.Write, ID: id, Data: pattern(1<<20, byte(id))})
		}
	}
	do(t, from, replication.Op{Kind: replication.Write, ID: 4, Off: 5000, Data: []byte("new"), Time: 2e18}, replication.Op{Kind: replication.Write, ID: 5, Off: 5000, Data: []byte("new"), Time: 2e18})
	var log []replication.Op
	a, b := pipe()
	listed := map[FileID]bool{}
	watch := &spy{a, func(m message) {
		if m.kind != mList || m.id == 1 {
			return
		}
		if listed[m.id] = true; len(listed) == 2 { // the file of the second goes to the first, of which the names are known by now, or not yet
			op := replication.Op{Kind: replication.Rename, Volume: 1, ID: m.id + 2, Parent: m.id, Name: "f", NewParent: 5 - m.id, NewName: "moved", Time: 3e18}
			log = append(log, op)
			do(t, from, op)
		}
	}}
	src := make(chan error, 1)
	go func() { src <- Source(context.Background(), watch, from, SourceOptions{Volume: 1, Workers: 1}) }()
	r, err := Run(context.Background(), b, to, TargetOptions{Volume: 1, Workers: 1})
	must(t, err, <-src)
	if r.Written > 4*blockSize || r.Created > 0 {
		t.Errorf("%+v", r)
	}
	for _, op := range log {
		a, err := to.Apply(&op)
		if must(t, err); a.Missing {
			t.Errorf("%x is missing", uint64(a.Lacks))
		}
	}
	must(t, to.Settle())
	equal(t, from, to)
}

// TestWhatIsOpenOutlivesTheDirectoryThatHeldIt: on the follower it still lies in a directory that is no more.
func TestWhatIsOpenOutlivesTheDirectoryThatHeldIt(t *testing.T) {
	disk := scratch(t)
	from, to := newTree(t, disk+"/a"), newTree(t, disk+"/b")
	must(t, from.Settle(), to.Settle())
	for _, tr := range []*Tree{from, to} {
		do(t, tr, replication.Op{Kind: replication.Create, ID: 2, Parent: 1, Name: "x", Mode: dirMode}, replication.Op{Kind: replication.Create, ID: 3, Parent: 2, Name: "y", Mode: dirMode},
			replication.Op{Kind: replication.Create, ID: 4, Parent: 3, Name: "f", Mode: fileMode}, replication.Op{Kind: replication.Write, ID: 4, Data: pattern(50000, 1)})
	}
	do(t, from, replication.Op{Kind: replication.Unlink, ID: 4, Parent: 3, Name: "f", Flags: replication.FlagOpen, Time: 2e18},
		replication.Op{Kind: replication.Rmdir, ID: 3, Parent: 2, Name: "y", Time: 2e18}, replication.Op{Kind: replication.Rmdir, ID: 2, Parent: 1, Name: "x", Time: 2e18})
	r, err := resync(t, from, to, SourceOptions{}, TargetOptions{})
	must(t, err, to.Settle())
	if ids := to.InLimbo(); len(ids) != 1 || ids[0] != 4 || r.Created > 0 {
		t.Errorf("open: %x, %+v", ids, r)
	}
	equal(t, from, to)
}
