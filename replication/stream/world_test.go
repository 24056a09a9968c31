package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/journal/disk"
	"github.com/hanode/hanode/replication/stream/replica"
	"github.com/hanode/hanode/replication/tree"
)

// memTree is a volume in memory: inodes with bytes. A Write makes its inode. It outlives the stream, as page cache does.
type memTree struct {
	mu      sync.Mutex
	Files   map[replication.FileID]string
	max     replication.FileID
	settled bool
	fail    error
}

func newMemTree() *memTree { return &memTree{Files: map[replication.FileID]string{}} }

func (t *memTree) Apply(op *replication.Op) (tree.Applied, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fail != nil {
		return tree.Applied{}, t.fail
	}
	t.max = max(t.max, op.ID)
	switch op.Kind {
	case replication.Write:
		b := []byte(t.Files[op.ID])
		if n := int(op.Off) + len(op.Data); n > len(b) {
			b = append(b, make([]byte, n-len(b))...)
		}
		copy(b[op.Off:], op.Data)
		t.Files[op.ID] = string(b)
	case replication.Forget:
		delete(t.Files, op.ID)
	}
	return tree.Applied{}, nil
}

func (t *memTree) Settle() error                  { t.settled = true; return nil }
func (t *memTree) Unsettle()                      { t.settled = false }
func (t *memTree) PurgeLimbo() error              { return nil }
func (t *memTree) Sync() error                    { return nil }
func (t *memTree) MaxID() replication.FileID      { return t.max }
func (t *memTree) SetIDBase(b replication.FileID) { t.max = b }
func (t *memTree) copy() map[replication.FileID]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.Files)
}

// memResync sends the whole tree as one text.
type memResync struct{ t *memTree }

func (r memResync) Serve(_ context.Context, _ cluster.MemberNo, ch io.ReadWriter) error {
	b, err := json.Marshal(r.t.copy())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(ch, "%12d%s", len(b), b)
	return err
}

func (r memResync) Fetch(_ context.Context, _ cluster.MemberNo, ch io.ReadWriter, _ bool) error {
	var n int
	head := make([]byte, 12)
	if _, err := io.ReadFull(ch, head); err != nil {
		return err
	}
	if _, err := fmt.Sscan(string(head), &n); err != nil {
		return err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(ch, b); err != nil {
		return err
	}
	r.t.mu.Lock()
	defer r.t.mu.Unlock()
	r.t.Files = map[replication.FileID]string{}
	return json.Unmarshal(b, &r.t.Files)
}

// node is one copy with its disk, which outlives the stream.
type node struct {
	t     *testing.T
	g     *group
	no    cluster.MemberNo
	dir   string
	tree  *memTree
	modes []replica.Mode
	dirty bool
	tweak func(*Config)

	mu      sync.Mutex
	s       *Stream
	j       *journal.Journal
	cancel  func()
	done    chan struct{}
	at      int
	failed  error
	deposed bool
	aside   [][2]uint64
	frozen  bool // hears nothing of the log
}

// group is the log and the daemons.
type group struct {
	t     *testing.T
	mu    sync.Mutex
	svc   lock.Service
	grp   lock.Group
	grant cluster.Epoch
	facts []replica.Facts
	nodes []*node
	cut   map[[2]cluster.MemberNo]bool
	conns map[net.Conn][2]cluster.MemberNo
	hold  bool // no InSync is committed
	asked []string
	pipe  func() (a, b net.Conn)
}

func tcpPair() (net.Conn, net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		panic(err)
	}
	b, err := l.Accept()
	if err != nil {
		panic(err)
	}
	return a, b
}

func boottime() cluster.Instant {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return cluster.Instant(ts.Nano())
}

func newGroup(t *testing.T, copies int, modes ...replica.Mode) *group {
	if len(modes) == 0 {
		modes = []replica.Mode{replica.Sync}
	}
	g := &group{t: t, cut: map[[2]cluster.MemberNo]bool{}, conns: map[net.Conn][2]cluster.MemberNo{}, pipe: tcpPair}
	set := cluster.SetOf(cluster.MemberNo(copies + 1))
	for i := range copies {
		n := &node{t: t, g: g, no: cluster.MemberNo(i + 1), dir: t.TempDir(), tree: newMemTree(), modes: modes}
		g.nodes = append(g.nodes, n)
		set = set.With(n.no)
		g.grp.Join(n.no, 1, cluster.BootID{1})
	}
	g.grp.Join(cluster.MemberNo(copies+1), 1, cluster.BootID{1})
	g.grp.SetVoters(set)
	g.svc.Data, g.svc.InSync, g.svc.Eligible = true, cluster.SetOf(1), set.Without(cluster.MemberNo(copies+1))
	for _, n := range g.nodes {
		n.start()
	}
	t.Cleanup(func() {
		for _, n := range g.nodes {
			n.stop()
		}
	})
	return g
}

func (g *group) snapshot() {
	f := replica.Facts{Epoch: g.svc.Epoch, Grant: g.grant, Gen: g.svc.Gen, Holder: replica.Run{Member: g.svc.Holder.Node, Inc: g.svc.Holder.Inc}, InSync: g.svc.InSync, Sticky: g.svc.Sticky}
	for _, n := range g.nodes {
		f.Admitted = append(f.Admitted, replica.Run{Member: n.no, Inc: g.grp.Admission(n.no).Inc})
	}
	g.facts = append(g.facts, f)
}

func (g *group) spread() {
	g.mu.Lock()
	f := g.facts[len(g.facts)-1]
	g.mu.Unlock()
	for _, n := range g.nodes {
		n.mu.Lock()
		s, frozen := n.s, n.frozen
		n.mu.Unlock()
		if s != nil && !frozen {
			s.SetFacts(f)
		}
	}
}

// grantTo lets the log grant the service; the holder does not hear of it before spread.
func (g *group) grantTo(no cluster.MemberNo) lock.Result {
	g.mu.Lock()
	defer g.mu.Unlock()
	var p []lock.Promise
	for m := range g.grp.Admitted {
		if m > 0 {
			p = append(p, lock.Promise{Node: cluster.MemberNo(m), Inc: g.grp.Admission(cluster.MemberNo(m)).Inc})
		}
	}
	r := g.svc.Grant(&g.grp, lock.Grant{Epoch: g.svc.Epoch, To: lock.Holder{Node: no, Inc: g.grp.Admission(no).Inc}, TTL: time.Second, Promises: p})
	if r == lock.Accepted {
		g.grant = g.svc.Epoch
		g.snapshot()
	}
	return r
}

func (g *group) degrade(no cluster.MemberNo) {
	g.mu.Lock()
	g.svc.Degrade(lock.Degrade{Epoch: g.svc.Epoch, Gen: g.svc.Gen, Out: cluster.SetOf(no)})
	g.snapshot()
	g.mu.Unlock()
	g.spread()
}

func (g *group) inSync() cluster.MemberSet {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.svc.InSync
}

// lead makes a node active; the others hear of it first if told.
func (g *group) lead(no cluster.MemberNo) *Stream {
	g.t.Helper()
	if r := g.grantTo(no); r != lock.Accepted {
		g.t.Fatalf("no grant to %d: %v", no, r)
	}
	g.spread()
	n := g.nodes[no-1]
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := n.s.Lead(ctx, g.svc.Epoch); err != nil {
		g.t.Fatalf("node %d does not lead: %v", no, err)
	}
	return n.s
}

func (n *node) start() {
	n.t.Helper()
	j, _, err := journal.Open(filepath.Join(n.dir, "journal"), disk.OS{}, journal.Limits{Cluster: "c", Service: "s", Size: 8 << 20, Segment: 4 << 20})
	if err != nil {
		n.t.Fatal(err)
	}
	st, err := journal.LoadState(disk.OS{}, n.dir, "c")
	if errors.Is(err, journal.ErrNoState) {
		st, err = journal.State{Cluster: "c"}, nil
	}
	if err != nil {
		n.t.Fatal(err)
	}
	c := Config{Self: replica.Run{Member: n.no, Inc: 1}, Cluster: "c", Service: "s", AloneDisk: true, Journal: j, State: st,
		Store: func(x journal.State) error { return journal.StoreState(disk.OS{}, n.dir, x) }, Dirty: n.dirty, Now: boottime, Resync: memResync{n.tree},
		SetAside: func(a, b uint64) error {
			n.mu.Lock()
			n.aside = append(n.aside, [2]uint64{a, b})
			n.mu.Unlock()
			return nil
		}, Checkpoint: 100 * time.Millisecond,
		Events: Events{
			CaughtUp: func(r replica.Run, e cluster.Epoch, gen cluster.Generation) { n.g.caughtUp(r, e, gen) },
			WantDegrade: func(m cluster.MemberNo, why string) {
				n.g.mu.Lock()
				n.g.asked = append(n.g.asked, why)
				n.g.mu.Unlock()
				n.g.degrade(m)
			},
			Dial:    func(m cluster.MemberNo) { n.g.dial(n.no, m) },
			Failed:  func(err error) { n.mu.Lock(); n.failed = err; n.mu.Unlock() },
			Deposed: func(string) { n.mu.Lock(); n.deposed = true; n.mu.Unlock() },
		}}
	for i, m := range n.modes {
		c.Volumes = append(c.Volumes, Volume{fmt.Sprint("v", i+1), m, n.tree})
	}
	if n.tweak != nil {
		n.tweak(&c)
	}
	s, err := New(c)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); j.Run(ctx) }()
	run := make(chan struct{})
	go func() { defer close(run); s.Run(ctx); <-done }()
	n.mu.Lock()
	n.s, n.j, n.cancel, n.done, n.failed, n.deposed = s, j, cancel, run, nil, false
	n.mu.Unlock()
	n.g.mu.Lock()
	var f *replica.Facts
	if k := len(n.g.facts); k > 0 {
		f = &n.g.facts[k-1]
	}
	n.g.mu.Unlock()
	if f != nil {
		s.SetFacts(*f)
	}
}

// stop ends the process as a kill does, but for what the page cache keeps.
func (n *node) stop() {
	n.mu.Lock()
	s, j := n.s, n.j
	n.s = nil
	n.mu.Unlock()
	if s == nil {
		return
	}
	n.cancel()
	select {
	case <-n.done:
	case <-time.After(60 * time.Second):
		b := make([]byte, 1<<20)
		n.t.Errorf("the stream does not end:\n%s", b[:runtime.Stack(b, true)])
		return
	}
	j.Close()
}

func (g *group) caughtUp(r replica.Run, e cluster.Epoch, gen cluster.Generation) {
	g.mu.Lock()
	ok := !g.hold && g.svc.AddInSync(&g.grp, lock.InSync{Epoch: e, Gen: gen, Node: lock.Holder{Node: r.Member, Inc: r.Inc}}) == lock.Accepted
	if ok {
		g.snapshot()
	}
	g.mu.Unlock()
	if ok {
		g.spread()
	}
}

func (g *group) dial(from, to cluster.MemberNo) {
	g.mu.Lock()
	cut := g.cut[[2]cluster.MemberNo{min(from, to), max(from, to)}]
	g.mu.Unlock()
	if cut {
		return
	}
	a, b := g.pipe()
	g.mu.Lock()
	g.conns[a], g.conns[b] = [2]cluster.MemberNo{min(from, to), max(from, to)}, [2]cluster.MemberNo{min(from, to), max(from, to)}
	g.mu.Unlock()
	for i, no := range []cluster.MemberNo{from, to} {
		n := g.nodes[no-1]
		n.mu.Lock()
		s := n.s
		n.mu.Unlock()
		c := []net.Conn{a, b}[i]
		if s == nil {
			c.Close()
			continue
		}
		go s.AddConn(0, c)
	}
}

func (g *group) cutBetween(a, b cluster.MemberNo, cut bool) {
	k := [2]cluster.MemberNo{min(a, b), max(a, b)}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cut[k] = cut
	for c, pair := range g.conns {
		if cut && pair == k {
			c.Close()
			delete(g.conns, c)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (g *group) awaitInSync(nos ...cluster.MemberNo) {
	g.t.Helper()
	want := cluster.SetOf(nos...)
	eventually(g.t, fmt.Sprintf("in sync: %v", nos), func() bool { return g.inSync() == want })
}

// write does what the file system does: submit, wait, apply, done.
func (n *node) write(volume uint8, id replication.FileID, off int64, data string) error {
	l := n.s.Log(volume)
	op := replication.Op{Kind: replication.Write, ID: id, Off: off, Data: []byte(data)}
	seq, err := l.Submit(&op)
	if err != nil {
		return err
	}
	if err := l.Wait(seq); err != nil {
		return err
	}
	_, err = n.tree.Apply(&op)
	l.Done(seq, err)
	return err
}

func (g *group) sameTrees(a, b cluster.MemberNo) {
	g.t.Helper()
	x, y := g.nodes[a-1].tree, g.nodes[b-1].tree
	eventually(g.t, fmt.Sprintf("the trees of %d and %d are equal", a, b), func() bool { return reflect.DeepEqual(x.copy(), y.copy()) })
}

func keys(m map[replication.FileID]string) []replication.FileID {
	return slices.Sorted(maps.Keys(m))
}
