package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
)

// host is one member under test; its Local says yes to everything at once.
type host struct {
	t      *testing.T
	dir    string
	name   string
	m      *Member
	cancel context.CancelFunc
	done   chan error
	skew   atomic.Int64 // of its wall clock, ns

	mu       sync.Mutex
	deadline cluster.Instant
	serving  cluster.Epoch
	log      []string
	answered []uint64 // orders, in the order of their answers
}

func (h *host) Do(a core.Action) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch a := a.(type) {
	case core.Extend:
		h.serving, h.deadline = a.Epoch, a.Deadline
		if a.First {
			h.log = append(h.log, fmt.Sprintf("open %d", a.Epoch))
		}
	case core.Close:
		h.serving, h.deadline = 0, 0
		h.log = append(h.log, fmt.Sprintf("close %d: %s", a.Epoch, a.Why))
		h.m.StepNow(core.Shut{Service: a.Service, Epoch: a.Epoch})
	case core.OrderDone:
		h.answered = append(h.answered, a.ID)
	case core.Prepare:
		h.m.StepNow(core.Drained{Service: a.Service, Epoch: a.Epoch})
	}
}

func (h *host) Applied(uint64, *state.Command, state.Outcome) {}

func (h *host) active() cluster.Epoch {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.serving != 0 && bootTime() < h.deadline {
		return h.serving
	}
	return 0
}

func (h *host) start() {
	h.t.Helper()
	d, err := OpenDir(h.dir)
	if err != nil {
		h.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("HANODE_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("member", h.name)
	}
	h.m, err = New(Config{Dir: d, Local: h, Log: log, Version: "test", Ballast: -1,
		Wall: func() time.Time { return time.Now().Add(time.Duration(h.skew.Load())) }})
	if err != nil {
		d.Close()
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel, h.done = cancel, make(chan error, 1)
	go func() {
		err := h.m.Run(ctx)
		d.Close()
		h.done <- err
	}()
}

func (h *host) stop() {
	h.t.Helper()
	if h.cancel == nil {
		return
	}
	h.cancel()
	select {
	case err := <-h.done:
		if err != nil {
			h.t.Errorf("%s ended: %v", h.name, err)
		}
	case <-time.After(10 * time.Second):
		h.t.Errorf("%s does not end", h.name)
	}
	h.cancel = nil
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("within 20 s: not %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// trio is two nodes and a witness on three loopback addresses.
func trio(t *testing.T) (a, b, w *host) {
	t.Helper()
	port := freePort(t)
	mk := func(name string, i int) *host {
		h := &host{t: t, name: name, dir: filepath.Join(t.TempDir(), name)}
		t.Cleanup(h.stop)
		return h
	}
	a, b, w = mk("a", 1), mk("b", 2), mk("w", 3)
	addr := func(i int) string { return fmt.Sprintf("127.0.7.%d:%d", i, port) }
	if _, err := Init(InitOptions{Dir: a.dir, Name: "a", Cluster: "test", Site: "default", Advertise: addr(1)}); err != nil {
		t.Fatal(err)
	}
	a.start()
	eventually(t, "a is admitted", func() bool {
		ok := false
		_ = a.m.On(func(c *core.Core) { ok = c.Joined() })
		return ok
	})
	for i, h := range []*host{b, w} {
		role := cluster.RoleNode
		if h == w {
			role = cluster.RoleWitness
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		tok, err := a.m.MakeToken(ctx, role, h.name, "", time.Minute, "test")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Join(ctx, JoinOptions{Dir: h.dir, Token: tok.String(), Name: h.name, Role: role, Advertise: addr(i + 2)}); err != nil {
			t.Fatal(err)
		}
		cancel()
		h.start()
	}
	eventually(t, "three votes", func() bool {
		n := 0
		_ = a.m.On(func(c *core.Core) {
			if g := &c.State().Group; len(g.Sets) == 1 {
				n = g.Sets[0].Set.Len()
			}
		})
		return n == 3
	})
	return a, b, w
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.7.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (h *host) apply(t *testing.T, spec *cluster.Spec) {
	t.Helper()
	b, err := spec.Encode()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	o, err := h.m.Commit(ctx, &state.Command{Who: "test", SpecApply: &state.SpecApply{Source: b, Compiled: b}})
	if err := errors.Join(err, o.Err()); err != nil {
		t.Fatal(err)
	}
}

var webSpec = &cluster.Spec{Profile: "fast", MaxFailovers: 3, FailoversWithin: 10 * time.Minute, Services: []cluster.ServiceSpec{{
	Name: "web", Nodes: []string{"a", "b"}, Run: "active", Failover: "automatic", Failback: "manual", WitnessLost: "protect"}}}

func TestTheStandbyTakesOverWhenTheActiveDies(t *testing.T) {
	a, b, _ := trio(t)
	a.apply(t, webSpec)
	eventually(t, "a active", func() bool { return a.active() != 0 })
	began := time.Now()
	a.stop()
	eventually(t, "b active", func() bool { return b.active() == 2 })
	t.Logf("b active %v after the end of a", time.Since(began))
	var d *state.Decision
	eventually(t, "the decision is in the log", func() bool {
		_ = b.m.On(func(c *core.Core) { d = c.State().Decision(c.State().Services[0].LastMove) })
		return d != nil && d.EpochTo == 2 && len(d.Steps) > 1
	})
	if d.Kind != "failover" || !strings.Contains(d.Sentence, "b took over because a") {
		t.Errorf("the decision: %+v", d)
	}
	a.start()
	eventually(t, "a follows again", func() bool {
		ok := false
		_ = a.m.On(func(c *core.Core) {
			ok = c.Joined() && len(c.State().Services) == 1 && c.State().Services[0].Lock.Epoch == 2
		})
		return ok
	})
	if a.active() != 0 || b.active() != 2 {
		t.Errorf("after the return of a: a %d, b %d", a.active(), b.active())
	}
}

func TestASwitchoverMovesTheServiceWithinMilliseconds(t *testing.T) {
	a, b, _ := trio(t)
	a.apply(t, webSpec)
	eventually(t, "a active", func() bool { return a.active() != 0 })
	eventually(t, "b is heard", func() bool {
		ok := false
		_ = a.m.On(func(c *core.Core) { ok = c.Alive(2) })
		return ok
	})
	began := time.Now()
	a.m.Step(&core.Order{ID: 1, Service: 1, To: "b", What: "switchover", By: "test", Reason: "trial"})
	eventually(t, "b active", func() bool { return b.active() == 2 })
	took := time.Since(began)
	t.Logf("switchover took %v", took)
	if a.active() != 0 {
		t.Error("both are active")
	}
	if took > 2*time.Second {
		t.Errorf("the switchover took %v", took)
	}
}

func TestMembersHearOfEachOthersHealth(t *testing.T) {
	a, b, w := trio(t)
	for _, h := range []*host{a, b, w} {
		eventually(t, h.name+" knows the health of three members", func() bool {
			known := 0
			for _, one := range h.m.Health() {
				if one.Known && one.Alive && one.Version == "test" && one.FreeDisk > 0 {
					known++
				}
			}
			return known == 3
		})
	}
	for _, one := range b.m.Health() {
		if one.ClockOffset.Abs() > 2*time.Second {
			t.Errorf("the clock of member %d is said to be off by %v on the same machine", one.Member, one.ClockOffset)
		}
	}
	if err := a.m.On(func(c *core.Core) {
		for no, want := range map[cluster.MemberNo]string{1: "a", 2: "b", 3: "w"} {
			if got := c.State().MemberName(no); got != want {
				t.Errorf("member %d is %s, want %s", no, got, want)
			}
		}
	}); err != nil {
		t.Error(err)
	}
}

func TestTheClockOfAMemberIsJudgedByTheQuickestOfItsNews(t *testing.T) {
	var c clock
	if c.offset() != 0 {
		t.Error("nothing was told, and an offset is known")
	}
	for _, delay := range []int64{900, 30, 400, 700} { // its clock is 2000 ms ahead of ours
		c.add(10_000+2000, 10_000+delay)
	}
	if got := c.offset(); got != 1970*time.Millisecond {
		t.Errorf("the offset is %v, want 1.97s", got)
	}
	for range 4 { // it was set right
		c.add(20_000, 20_040)
	}
	if got := c.offset(); got != -40*time.Millisecond {
		t.Errorf("the offset is %v, want -40ms", got)
	}
}

func TestEventsOfOneGoroutineReachTheCoreInTheirOrder(t *testing.T) {
	h := &host{t: t, name: "a", dir: filepath.Join(t.TempDir(), "a")}
	t.Cleanup(h.stop)
	if _, err := Init(InitOptions{Dir: h.dir, Name: "a", Cluster: "test", Site: "default", Advertise: fmt.Sprintf("127.0.7.9:%d", freePort(t))}); err != nil {
		t.Fatal(err)
	}
	h.start()
	const most = 500
	for id := uint64(1); id <= most; id++ {
		h.m.Step(&core.Order{ID: id, Service: 77}) // there is no such service: each is answered at once
	}
	eventually(t, "all are answered", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.answered) == most
	})
	if !slices.IsSorted(h.answered) {
		t.Errorf("answered out of order: %v", h.answered)
	}
}
