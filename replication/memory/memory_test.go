package memory_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/page"
	"github.com/hanode/hanode/replication/memory"
	"github.com/hanode/hanode/replication/memory/image"
	"github.com/hanode/hanode/replication/memory/region"
)

// member is one node's server with what its daemon would tell it.
type member struct {
	*memory.Server
	no     cluster.MemberNo
	dir    string
	sock   string
	page   *page.Writer
	stop   context.CancelFunc
	done   chan error
	caught chan cluster.MemberNo
	higher chan cluster.Epoch
	files  atomic.Uint64
	dial   chan struct{} // a connection has ended
	conns  []net.Conn
}

// tmp is a directory in memory where there is one.
func tmp(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "hanode-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

var specs = []memory.Spec{{Name: "calls", Size: 4 << 20, Checkpoint: "sync"}, {Name: "more", Size: 1 << 20, Checkpoint: "async"}, {Name: "ticks", Size: 64 << 10, Checkpoint: "timed", Every: 5 * time.Millisecond}}

// logWriter gives a server's log to the test.
type logWriter struct{ t testing.TB }

func (w logWriter) Write(b []byte) (int, error) {
	defer func() { _ = recover() }() // after the test's end
	w.t.Logf("%s", b)
	return len(b), nil
}

func start(t testing.TB, no cluster.MemberNo, dir string, change ...func(*memory.Config)) *member {
	t.Helper()
	m := &member{no: no, dir: dir, sock: filepath.Join(dir, "memory.sock"), done: make(chan error, 1), caught: make(chan cluster.MemberNo, 100), higher: make(chan cluster.Epoch, 100), dial: make(chan struct{}, 100)}
	m.files.Store(1 << 40)
	var err error
	if m.page, err = page.Create("db"); err != nil {
		t.Fatal(err)
	}
	cfg := memory.Config{Cluster: "c", Service: "db", Self: no, Dir: filepath.Join(dir, "images"), Socket: m.sock, Regions: specs, Page: m.page.File(),
		FileSeq: func() uint64 { return 7 }, FilesHeld: m.files.Load,
		Log: slog.New(slog.NewTextHandler(logWriter{t}, nil)),
		Events: memory.Events{CaughtUp: func(n cluster.MemberNo, _ cluster.Epoch, _ cluster.Generation) { m.caught <- n }, HigherEpoch: func(e cluster.Epoch) { m.higher <- e },
			Dial: func(cluster.MemberNo) { m.dial <- struct{}{} }}}
	for _, f := range change {
		f(&cfg)
	}
	m.Server, err = memory.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	go func() { m.done <- m.Serve(ctx) }()
	t.Cleanup(func() { m.end(t) })
	return m
}

func (m *member) end(t testing.TB) {
	t.Helper()
	m.stop()
	select {
	case err := <-m.done:
		if err != nil {
			t.Error(err)
		}
		m.done <- nil
	case <-time.After(10 * time.Second):
		t.Error("the server does not end")
	}
	m.page.Close()
}

// connect lays a connection between two members.
func connect(t testing.TB, a, b *member) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	x, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	y, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	a.conns = append(a.conns, x)
	a.AddConn(b.no, x)
	b.AddConn(a.no, y)
}

// cut breaks the connection and lays another.
func cut(t testing.TB, a, b *member) {
	t.Helper()
	a.conns[len(a.conns)-1].Close()
	<-a.dial
	<-b.dial
	connect(t, a, b)
}

// log is what the log says: everybody is told.
type log struct {
	epoch  cluster.Epoch
	gen    cluster.Generation
	holder cluster.MemberNo
	inSync cluster.MemberSet
}

func (l *log) tell(members ...*member) {
	for _, m := range members {
		m.SetFacts(l.epoch, l.gen, l.holder, l.inSync)
	}
}

func (l *log) lead(t testing.TB, m *member, others ...*member) memory.Led {
	t.Helper()
	l.epoch++
	l.gen++
	l.holder, l.inSync = m.no, cluster.SetOf(m.no)
	l.tell(others...)
	l.tell(m)
	m.page.Set(l.epoch, 1<<62, page.Active)
	led, err := m.Lead(l.epoch, l.gen)
	if err != nil {
		t.Fatal(err)
	}
	return led
}

// inSyncNow waits until the active proposes the standby, and commits it.
func (l *log) inSyncNow(t testing.TB, a, b *member) {
	t.Helper()
	within(t, "the standby is caught up", func() bool {
		select {
		case n := <-a.caught:
			return n == b.no
		default:
			return false
		}
	})
	l.inSync = l.inSync.With(b.no)
	l.tell(a, b)
}

func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func dial(t testing.TB, m *member) *region.App {
	t.Helper()
	a, err := region.Dial(m.sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func open(t testing.TB, a *region.App, name string, opt region.Options) *region.Region {
	t.Helper()
	r, err := a.Open(name, opt)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func put(r *region.Region, off int, v uint64) {
	r.Update(func(b []byte) { binary.LittleEndian.PutUint64(b[off:], v) })
}

func get(r *region.Region, off int) uint64 { return binary.LittleEndian.Uint64(r.Bytes()[off:]) }

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return c
}

func pair(t testing.TB) (l *log, a, b *member) {
	l = &log{}
	a, b = start(t, 1, tmp(t)), start(t, 2, tmp(t))
	l.lead(t, a, b)
	connect(t, a, b)
	l.inSyncNow(t, a, b)
	return l, a, b
}

func TestAStandbyTakesOverInPlaceWithEveryCheckpoint(t *testing.T) {
	for name, tracking := range map[string]region.Tracking{"auto": region.Auto, "declared": region.Declared, "compare": region.Compare} {
		t.Run(name, func(t *testing.T) {
			l, a, b := pair(t)
			app := dial(t, a)
			if _, err := app.WaitActive(ctx(t)); err != nil {
				t.Fatal(err)
			}
			r := open(t, app, "calls", region.Options{Size: 1 << 20, Layout: 1, Tracking: tracking})
			hot := dial(t, b)
			var seen atomic.Uint64
			h := open(t, hot, "calls", region.Options{Size: 1 << 20, Layout: 1, OnImage: func(r *region.Region) { seen.Store(get(r, 4096*3+8)) }})
			for i := uint64(1); i <= 200; i++ {
				off := int(i*37%200) * 4096
				r.Mark(off, 8)
				r.Mark(4096*3+8, 8)
				put(r, off, i)
				put(r, 4096*3+8, i)
				if err := r.Checkpoint(); err != nil {
					t.Fatal(err)
				}
				if i == 150 {
					within(t, "the hot standby sees an image as it arrives", func() bool { return seen.Load() == 150 })
				}
			}
			if hot.MayAct() || !app.MayAct() {
				t.Error("the standby may act, or the active not")
			}
			if err := h.Checkpoint(); !errors.Is(err, region.ErrFenced) {
				t.Errorf("a standby's checkpoint: %v", err)
			}
			led := l.lead(t, b, a)
			if len(led.Regions) != 3 || !led.Regions[0].Held {
				t.Errorf("led: %+v", led)
			}
			if err := r.Checkpoint(); !errors.Is(err, region.ErrFenced) || !bytes.Contains([]byte(err.Error()), []byte("fenced")) {
				t.Errorf("a checkpoint of the fenced application: %v", err)
			}
			if _, err := hot.WaitActive(ctx(t)); err != nil {
				t.Fatal(err)
			}
			if !hot.MayAct() || app.MayAct() {
				t.Error("the new active may not act, or the old one still")
			}
			if !bytes.Equal(h.Bytes(), r.Bytes()) {
				t.Error("the memory differs")
			}
			put(h, 0, 77)
			h.Mark(0, 8)
			if err := h.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestNothingIsAnsweredBeforeEveryInSyncMemberHoldsIt(t *testing.T) {
	l, a, b := pair(t)
	app := dial(t, a)
	r := open(t, app, "calls", region.Options{Size: 4096})
	put(r, 0, 1)
	if err := r.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	b.end(t) // gone, and still in sync in the log
	put(r, 0, 2)
	h, err := r.Start()
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() { _, err := h.Wait(); answered <- err }()
	within(t, "the server sees that the standby is away", func() bool {
		for _, p := range a.Status().Peers {
			if p.State == "away" && p.Waiting {
				return true
			}
		}
		return false
	})
	select {
	case err := <-answered:
		t.Fatalf("answered without the standby: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	l.gen++ // Degrade
	l.inSync = cluster.SetOf(a.no)
	l.tell(a)
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	// Back again: everything, and then it counts.
	b2 := start(t, 2, b.dir)
	l.tell(b2)
	connect(t, a, b2)
	l.inSyncNow(t, a, b2)
	if h := b2.Status().Regions[0].Image; h != a.Status().Regions[0].Image {
		t.Errorf("the standby that was away holds %+v", h)
	}
	l.lead(t, b2, a)
	app2 := dial(t, b2)
	if r2 := open(t, app2, "calls", region.Options{Size: 4096}); get(r2, 0) != 2 {
		t.Errorf("the region has %d, want 2", get(r2, 0))
	}
}

func TestAFencedServerAnswersEverythingThatIsPendingWithAnError(t *testing.T) {
	l, a, b := pair(t)
	app := dial(t, a)
	r := open(t, app, "calls", region.Options{Size: 4096})
	b.end(t)
	put(r, 0, 1)
	h, err := r.Start()
	if err != nil {
		t.Fatal(err)
	}
	l.epoch++
	l.holder = 2
	l.tell(a)
	if _, err := h.Wait(); !errors.Is(err, region.ErrFenced) {
		t.Errorf("pending while fenced: %v", err)
	}
	within(t, "the application learns that it is fenced", func() bool { role, _ := app.Role(); return role == region.Fenced })
	if _, err := app.WaitActive(ctx(t)); !errors.Is(err, region.ErrFenced) {
		t.Error(err)
	}
}

func TestTheDeadlineEndsCheckpointsWithoutTheDaemon(t *testing.T) {
	l, a, _ := pair(t)
	app := dial(t, a)
	r := open(t, app, "calls", region.Options{Size: 4096})
	a.page.Set(l.epoch, 1, page.Active) // the lease is over, and nobody says so
	if err := r.Checkpoint(); !errors.Is(err, region.ErrFenced) || app.MayAct() {
		t.Errorf("after the deadline: %v", err)
	}
}

func TestAnOldEpochIsRefusedByTheStandby(t *testing.T) {
	l, a, b := pair(t)
	app := dial(t, a)
	r := open(t, app, "calls", region.Options{Size: 4096})
	put(r, 0, 1)
	if err := r.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	// The standby's log knows of a later epoch of somebody else; the active has not heard of it.
	b.SetFacts(l.epoch+1, l.gen+1, 3, cluster.SetOf(3))
	put(r, 0, 2)
	h, err := r.Start()
	if err != nil {
		t.Fatal(err)
	}
	if e := <-a.higher; e != l.epoch+1 {
		t.Errorf("refused with epoch %d", e)
	}
	a.Fence()
	if _, err := h.Wait(); !errors.Is(err, region.ErrFenced) {
		t.Error(err)
	}
	if n := b.Status().Regions[0].Image.Number; n == a.Status().Regions[0].Image.Number {
		t.Error("the standby took an image of an old epoch")
	}
}

func TestABumpInterruptsNothing(t *testing.T) {
	l, a, b := pair(t)
	app := dial(t, a)
	r := open(t, app, "calls", region.Options{Size: 1 << 20})
	stop := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		for i := uint64(0); ; i++ {
			select {
			case <-stop:
				failed <- nil
				return
			default:
			}
			put(r, int(i%200)*4096, i)
			if err := r.Checkpoint(); err != nil {
				failed <- err
				return
			}
		}
	}()
	for range 20 {
		l.epoch++
		a.page.Set(l.epoch, 1<<62, page.Active)
		if l.epoch%2 == 0 {
			l.tell(a, b)
		} else {
			l.tell(b, a)
		}
		want := a.Status().Regions[0].Image.Number + 3
		defer func() {
			if t.Failed() {
				t.Logf("a: %+v\nb: %+v", a.Status(), b.Status())
			}
		}()
		within(t, "checkpoints go on", func() bool {
			select {
			case err := <-failed:
				t.Fatal(err)
			default:
			}
			return a.Status().Regions[0].Image.Number >= want
		})
	}
	close(stop)
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-a.higher:
		t.Errorf("the active was told of epoch %d as if it were another's", e)
	default:
	}
}

func TestAnImageIsNotAcknowledgedBeforeItsFilesAreThere(t *testing.T) {
	l, a, b := pair(t)
	app := dial(t, a)
	r := open(t, app, "calls", region.Options{Size: 4096})
	put(r, 0, 1)
	if err := r.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	b.files.Store(6) // images carry 7
	put(r, 0, 2)
	h, err := r.Start()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // give a wrong one time to arrive
	if b.Status().Regions[0].Image.Number == a.Status().Regions[0].Image.Number {
		t.Fatal("an image newer than its files is the newest one")
	}
	b.files.Store(7)
	if _, err := h.Wait(); err != nil {
		t.Fatal(err)
	}
	b.files.Store(6)
	put(r, 0, 3)
	if _, err := r.Start(); err != nil {
		t.Fatal(err)
	}
	within(t, "the image arrives", func() bool { return a.Status().Peers[0].Lag > 0 })
	time.Sleep(20 * time.Millisecond)
	led := l.lead(t, b, a)
	if len(led.Left) > 1 {
		t.Errorf("left: %q", led.Left)
	}
	if got := get(open(t, dial(t, b), "calls", region.Options{Size: 4096}), 0); got != 2 {
		t.Errorf("promoted with %d, want 2: %q", got, led.Left)
	}
}

func TestRegionsTakenTogetherStayTogether(t *testing.T) {
	l, a, b := pair(t)
	app := dial(t, a)
	r, q := open(t, app, "calls", region.Options{Size: 1 << 20}), open(t, app, "more", region.Options{Size: 1 << 20})
	for i := uint64(1); i <= 300; i++ {
		put(r, int(i%250)*4096, i)
		put(r, 0, i)
		put(q, int(i%200)*4096, i)
		put(q, 8, i)
		if i%10 == 5 { // the connection breaks now and then: the standby gets both or none
			cut(t, a, b)
		}
		if err := app.Checkpoint(q, r); err != nil {
			t.Fatal(err)
		}
		st := b.Status().Regions
		if st[0].Image.Number != st[1].Image.Number && st[0].Held && st[1].Held {
			st = b.Status().Regions // the two were not looked at in one moment
			if st[0].Image.Number != st[1].Image.Number {
				t.Fatalf("images %d and %d", st[0].Image.Number, st[1].Image.Number)
			}
		}
	}
	l.lead(t, b, a)
	app2 := dial(t, b)
	r2, q2 := open(t, app2, "calls", region.Options{Size: 1}), open(t, app2, "more", region.Options{Size: 1})
	if !bytes.Equal(r.Bytes(), r2.Bytes()) || !bytes.Equal(q.Bytes(), q2.Bytes()) || get(r2, 0) != 300 || get(q2, 8) != 300 {
		t.Error("the memory differs")
	}
}

func TestTheMessageLogIsReplayedAfterThePromotion(t *testing.T) {
	l, a, b := pair(t)
	app := dial(t, a)
	r := open(t, app, "calls", region.Options{Size: 4096})
	for i := range 25 {
		if i == 10 || i == 20 {
			put(r, 0, uint64(i))
			if err := r.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Append(fmt.Appendf(nil, "record %d", i)); err != nil {
			t.Fatal(err)
		}
		if i == 23 { // a standby that comes back gets the log too
			cut(t, a, b)
		}
	}
	l.lead(t, b, a)
	r2 := open(t, dial(t, b), "calls", region.Options{Size: 4096})
	var got []string
	if err := r2.Replay(func(rec []byte) error { got = append(got, string(rec)); return nil }); err != nil {
		t.Fatal(err)
	}
	if get(r2, 0) != 20 || len(got) != 5 || got[0] != "record 20" || got[4] != "record 24" {
		t.Errorf("image of %d, then %q", get(r2, 0), got)
	}
	put(r2, 0, 30)
	if err := r2.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if err := r2.Append([]byte("next")); err != nil {
		t.Fatal(err)
	}
}

func TestARegionGrowsWhereItIs(t *testing.T) {
	l, a, b := pair(t)
	app := dial(t, a)
	r := open(t, app, "calls", region.Options{Size: 5000})
	put(r, 0, 1)
	first := &r.Bytes()[0]
	if err := r.Grow(2 << 20); err != nil {
		t.Fatal(err)
	}
	if &r.Bytes()[0] != first || len(r.Bytes()) != 2<<20 {
		t.Error("it moved")
	}
	put(r, 2<<20-8, 2)
	if err := r.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if err := r.Grow(5 << 20); !errors.Is(err, region.ErrTooBig) {
		t.Errorf("beyond the spec: %v", err)
	}
	l.lead(t, b, a)
	r2 := open(t, dial(t, b), "calls", region.Options{Size: 5000})
	if len(r2.Bytes()) != 2<<20 || get(r2, 0) != 1 || get(r2, 2<<20-8) != 2 {
		t.Errorf("%d bytes after the takeover", len(r2.Bytes()))
	}
}

func TestTheApplicationGoesOnAfterTheServersRestart(t *testing.T) {
	l, a, b := pair(t)
	app := dial(t, a)
	r := open(t, app, "calls", region.Options{Size: 1 << 20})
	put(r, 8192, 5)
	if err := r.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	a.end(t)
	within(t, "the library notices", func() bool { role, _ := app.Role(); return role == region.Idle })
	if err := r.Checkpoint(); !errors.Is(err, region.ErrAway) {
		t.Errorf("without a server: %v", err)
	}
	put(r, 4096, 6)
	a2 := start(t, 1, a.dir)
	l.gen++
	l.lead(t, a2, b)
	connect(t, a2, b)
	if _, err := app.WaitActive(ctx(t)); err != nil {
		t.Fatal(err)
	}
	l.inSyncNow(t, a2, b)
	if err := r.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if get(r, 4096) != 6 || get(r, 8192) != 5 {
		t.Error("its memory was changed")
	}
	l.lead(t, b, a2)
	if r2 := open(t, dial(t, b), "calls", region.Options{Size: 1}); get(r2, 4096) != 6 || get(r2, 8192) != 5 {
		t.Error("the standby has something else")
	}
}

func TestTimedCheckpointsNeverShowHalfAnUpdate(t *testing.T) {
	l, a, b := pair(t)
	app := dial(t, a)
	var errs atomic.Int32
	r := open(t, app, "ticks", region.Options{Size: 64 << 10, OnError: func(error) { errs.Add(1) }})
	torn := atomic.Uint64{}
	seen := map[uint64]bool{}
	hot := dial(t, b)
	h := open(t, hot, "ticks", region.Options{Size: 64 << 10, OnImage: func(r *region.Region) {
		seen[get(r, 0)] = true
		for off := 0; off < 64<<10; off += 4096 {
			if get(r, off) != get(r, 0) {
				torn.Add(1)
			}
		}
	}})
	begun := time.Now()
	for i := uint64(1); time.Since(begun) < 400*time.Millisecond; i++ {
		r.Update(func(b []byte) {
			for off := 0; off < len(b); off += 4096 {
				binary.LittleEndian.PutUint64(b[off:], i)
			}
		})
	}
	l.lead(t, b, a)
	if _, err := hot.WaitActive(ctx(t)); err != nil {
		t.Fatal(err)
	}
	if torn.Load() > 0 || get(h, 0) == 0 || len(seen) < 5 {
		t.Errorf("%d torn, %d images seen", torn.Load(), len(seen))
	}
	if a.Status().Regions[2].Image.Size != 64<<10 || image.Blocks(64<<10) != 16 {
		t.Error("size")
	}
}
