package gossip

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"go.uber.org/goleak"
)

type member struct {
	*Gossip
	id     cluster.NodeID
	load   atomic.Int64
	got    sync.Map // state by sender
	stop   context.CancelFunc
	ended  chan error
	change chan MemberHealth
}

type world struct {
	t       *testing.T
	net     *memNet
	ids     []cluster.NodeID
	members []*member
	key     []byte
}

func newWorld(t *testing.T, n int) *world {
	w := &world{t: t, net: newMemNet(), key: bytes.Repeat([]byte{7}, 32)}
	for i := 0; i < n; i++ {
		var id cluster.NodeID
		rand.Read(id[:])
		w.ids = append(w.ids, id)
	}
	return w
}

func (w *world) start(i int, change ...func(*Config)) *member {
	w.t.Helper()
	m := &member{id: w.ids[i], ended: make(chan error, 1), change: make(chan MemberHealth, 4096)}
	cfg := Config{
		NodeID: m.id, ClusterID: "c0ffee", Network: w.net.node(m.id), Keys: [][]byte{w.key},
		Peers:       func() []cluster.NodeID { return w.ids },
		Health:      func() Health { return Health{Version: "v1", Load: float64(m.load.Load()), LinksUp: 2} },
		HealthEvery: 50 * time.Millisecond,
		State:       func() []byte { return []byte(fmt.Sprint("state of ", i)) },
		OnState:     func(from cluster.NodeID, b []byte) { m.got.Store(from, string(b)) },
		OnChange:    func(h MemberHealth) { m.change <- h },
	}
	for _, f := range change {
		f(&cfg)
	}
	g, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	m.Gossip = g
	ctx, cancel := context.WithCancel(context.Background())
	go func() { m.ended <- g.Run(ctx) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-m.ended:
			if err != nil {
				w.t.Error(err)
			}
		case <-time.After(5 * time.Second):
			w.t.Error("Run does not end")
		}
	})
	w.t.Cleanup(m.stop)
	w.members = append(w.members, m)
	return m
}

func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", d, what)
		}
	}
}

func (m *member) sees(id cluster.NodeID) MemberHealth {
	for _, h := range m.Members() {
		if h.Node == id {
			return h
		}
	}
	return MemberHealth{}
}

func TestHealthReachesEveryMemberAndADeadOneIsMissed(t *testing.T) {
	defer goleak.VerifyNone(t)
	w := newWorld(t, 3)
	a, b, c := w.start(0), w.start(1), w.start(2)
	defer func() { a.stop(); b.stop(); c.stop() }()
	for _, m := range w.members {
		for _, id := range w.ids {
			if id != m.id {
				within(t, 5*time.Second, "all see all", func() bool { return m.sees(id).Alive && m.sees(id).Health.Version == "v1" })
			}
		}
	}
	a.load.Store(42)
	a.Changed()
	within(t, 2*time.Second, "the new load is known", func() bool { return b.sees(a.id).Health.Load == 42 && c.sees(a.id).Health.Load == 42 })
	if h := b.sees(a.id); h.Age > 2*time.Second || h.Health.LinksUp != 2 {
		t.Fatalf("%+v", h)
	}
	if s, _ := b.got.Load(a.id); s != "state of 0" {
		if s, _ := a.got.Load(b.id); s != "state of 1" {
			t.Fatal("no state was exchanged between a and b")
		}
	}
	w.net.cut(a.id, true)
	start := time.Now()
	within(t, 3*time.Second, "a is missed", func() bool { return !b.sees(a.id).Alive && !c.sees(a.id).Alive })
	t.Logf("silence to both noticing: %v", time.Since(start))
	if !b.sees(c.id).Alive || !c.sees(b.id).Alive {
		t.Fatal("b and c lost each other")
	}
	w.net.cut(a.id, false)
	within(t, 8*time.Second, "a is back", func() bool { return b.sees(a.id).Alive && c.sees(a.id).Alive && a.sees(b.id).Alive })
}

func TestTenPercentOfLostPacketsKillNobody(t *testing.T) {
	w := newWorld(t, 3)
	rng := mathrand.New(mathrand.NewPCG(1, 2))
	w.net.drop = func(_, _ cluster.NodeID) bool { return rng.IntN(10) == 0 }
	a, b, c := w.start(0), w.start(1), w.start(2)
	for _, m := range w.members {
		for _, id := range w.ids {
			within(t, 8*time.Second, "all see all", func() bool { return id == m.id || m.sees(id).Alive })
		}
	}
	end := time.After(2 * time.Second)
	for {
		select {
		case h := <-a.change:
			if !h.Alive {
				t.Fatalf("a lost %v", h.Node)
			}
		case <-b.change:
		case <-c.change:
		case <-end:
			return
		}
	}
}

func TestAMemberThatLeavesIsGoneAtOnceAndMayReturn(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.start(0), w.start(1)
	within(t, 5*time.Second, "a sees b", func() bool { return a.sees(b.id).Alive })
	b.stop()
	within(t, 2*time.Second, "b is gone", func() bool { return !a.sees(b.id).Alive })
	b = w.start(1)
	within(t, 8*time.Second, "b is back", func() bool { return a.sees(b.id).Alive && b.sees(a.id).Alive })
}

func TestNothingIsSentInTheClearAndAStrangerIsNotHeard(t *testing.T) {
	w := newWorld(t, 3)
	var mu sync.Mutex
	var sent [][]byte
	w.net.tap = func(b []byte) { mu.Lock(); sent = append(sent, bytes.Clone(b)); mu.Unlock() }
	a, b := w.start(0), w.start(1)
	within(t, 5*time.Second, "a sees b", func() bool { return a.sees(b.id).Alive && b.sees(a.id).Alive })
	x := w.start(2, func(c *Config) { c.Keys = [][]byte{bytes.Repeat([]byte{9}, 32)} })
	y := newWorld(t, 0) // one with the key, but not in the others' list
	y.net, y.key = w.net, w.key
	y.ids = append(y.ids, cluster.NodeID{1, 2, 3})
	stranger := y.start(0, func(c *Config) { c.Peers = func() []cluster.NodeID { return w.ids } })
	time.Sleep(500 * time.Millisecond) // long enough for several rounds of each
	if a.sees(x.id).Known || x.sees(a.id).Known {
		t.Fatal("a member with another key was heard")
	}
	a.mu.Lock()
	_, heard := a.members[stranger.id]
	a.mu.Unlock()
	if heard {
		t.Fatal("a member that is not in the list was heard")
	}
	mu.Lock()
	defer mu.Unlock()
	for _, b := range sent {
		if bytes.Contains(b, []byte("v1")) && bytes.Contains(b, []byte(a.id.String())) {
			t.Fatal("a packet in the clear")
		}
		if len(b) > MaxPacket {
			t.Fatalf("a packet of %d bytes", len(b))
		}
	}
	if len(sent) == 0 {
		t.Fatal("nothing was sent")
	}
}

func TestKeysAreRotatedWithoutLosingAnybody(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.start(0), w.start(1)
	within(t, 5*time.Second, "a sees b", func() bool { return a.sees(b.id).Alive && b.sees(a.id).Alive })
	next := bytes.Repeat([]byte{8}, 32)
	for _, step := range []func(*Gossip) error{
		func(g *Gossip) error { return g.Add(next) },
		func(g *Gossip) error { return g.Use(next) },
		func(g *Gossip) error { return g.Drop(w.key) },
	} {
		for _, m := range w.members {
			if err := step(m.Gossip); err != nil {
				t.Fatal(err)
			}
		}
		a.load.Add(1)
		a.Changed()
		within(t, 3*time.Second, "news with the new keys", func() bool { return b.sees(a.id).Health.Load == float64(a.load.Load()) })
	}
	if err := a.Drop(next); err == nil {
		t.Fatal("the key in use was dropped")
	}
	if err := a.Add([]byte("short")); err == nil {
		t.Fatal("a short key was taken")
	}
	if !a.sees(b.id).Alive {
		t.Fatal("b was lost")
	}
}

func TestHealthSurvivesTheWireAndStaysShort(t *testing.T) {
	h := Health{Version: string(bytes.Repeat([]byte("v"), 100)), Load: 1.25, FsyncP99: 7 * time.Millisecond, Lateness: time.Microsecond,
		FreeDisk: 1 << 40, FreeRatio: 17, LinksUp: 2, LinksDown: 1, Degraded: true, Wall: 1_700_000_000_123, Realtime: true, EBPF: true, Note: string(bytes.Repeat([]byte("n"), 999))}
	b := h.Encode()
	if len(b) > 512 {
		t.Fatalf("%d bytes", len(b))
	}
	h.Version, h.Note = h.Version[:64], h.Note[:200]
	got, err := DecodeHealth(append(b, 99, 3, 1, 2, 3)) // with a field of the future
	if err != nil || got != h {
		t.Fatalf("%+v %v", got, err)
	}
}

func FuzzDecodeHealth(f *testing.F) {
	f.Add(Health{}.Encode())
	f.Add(Health{Version: "v1", Load: 1, FreeDisk: 1, Degraded: true, Note: "x"}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHealth(b)
		if err != nil {
			return
		}
		again, err := DecodeHealth(h.Encode())
		if err == nil && len(h.Version) <= 64 && len(h.Note) <= 200 && again.Version != h.Version {
			t.Fatalf("%+v became %+v", h, again)
		}
	})
}

func TestASettingThatCannotWorkIsRefusedWithAllReasons(t *testing.T) {
	_, err := New(Config{Keys: [][]byte{{1}}})
	if err == nil {
		t.Fatal("accepted")
	}
	t.Log(err)
}
