package stream

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/stream/replica"
)

func TestAStandbyGetsEverythingAndTakesOver(t *testing.T) {
	g := newGroup(t, 2)
	g.lead(1)
	g.awaitInSync(1, 2)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 50 {
				if err := g.nodes[0].write(1, replication.FileID(10+w), int64(8*i), fmt.Sprintf("%d:%05d;", w, i)); err != nil {
					t.Error(err)
				}
				if i%10 == 0 {
					if err := g.nodes[0].s.Log(1).Sync(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	g.sameTrees(1, 2)
	st := g.nodes[0].s.Status()
	if len(st.Replicas) != 1 || st.Replicas[0].Phase != "in sync" || st.Acks.Count < 400 || st.Applied != st.Position.Seq {
		t.Errorf("status: %+v", st)
	}
	if err := g.nodes[1].write(1, 99, 0, "x"); !errors.Is(err, syscall.EROFS) {
		t.Errorf("a write on the standby: %v, want EROFS", err)
	}
	before := g.nodes[0].tree.copy()
	g.lead(2)
	if err := g.nodes[0].write(1, 99, 0, "x"); !errors.Is(err, syscall.EIO) {
		t.Errorf("a write on the deposed: %v, want EIO", err)
	}
	for _, id := range keys(before) {
		if g.nodes[1].tree.copy()[id] != before[id] {
			t.Errorf("file %d differs after the takeover", id)
		}
	}
	if err := g.nodes[1].write(1, 99, 0, "x"); err != nil {
		t.Error(err)
	}
	g.nodes[0].stop()
	g.nodes[0].start()
	g.awaitInSync(1, 2)
	g.sameTrees(1, 2)
}

func TestNothingIsAcknowledgedWhileTheStandbyIsSilent(t *testing.T) {
	g := newGroup(t, 2)
	g.lead(1)
	g.awaitInSync(1, 2)
	g.cutBetween(1, 2, true)
	errs := make(chan error, 1)
	go func() { errs <- g.nodes[0].write(1, 10, 0, "waits") }()
	eventually(t, "the standby is seen to stall", func() bool {
		st := g.nodes[0].s.Status()
		return len(st.Replicas) == 1 && st.Replicas[0].Needed && st.Replicas[0].Stalled > 50*time.Millisecond
	})
	select {
	case err := <-errs:
		t.Fatalf("acknowledged without the standby: %v", err)
	default:
	}
	g.degrade(2)
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	g.cutBetween(1, 2, false)
	g.awaitInSync(1, 2)
	g.sameTrees(1, 2)
}

func TestAPendingOperationIsNeverAcknowledgedAfterTheDeposition(t *testing.T) {
	g := newGroup(t, 2)
	g.lead(1)
	g.awaitInSync(1, 2)
	g.cutBetween(1, 2, true)
	errs := make(chan error, 1)
	go func() { errs <- g.nodes[0].write(1, 10, 0, "waits") }()
	eventually(t, "it waits", func() bool { return g.nodes[0].s.Status().Waiting == 1 })
	sync := make(chan error, 1)
	go func() { sync <- g.nodes[0].s.Log(1).Sync() }()
	eventually(t, "both wait", func() bool { return g.nodes[0].s.Status().Waiting == 2 })
	g.lead(2)
	for _, c := range []chan error{errs, sync} {
		if err := <-c; !errors.Is(err, syscall.EIO) {
			t.Errorf("%v, want EIO", err)
		}
	}
	if _, there := g.nodes[0].tree.copy()[10]; there {
		t.Error("it was applied")
	}
	// What only the old active has is set aside, and it follows.
	g.cutBetween(1, 2, false)
	g.nodes[0].stop()
	g.nodes[0].start()
	g.awaitInSync(1, 2)
	if n := g.nodes[0]; len(n.aside) != 1 {
		t.Errorf("set aside: %v", n.aside)
	}
	g.sameTrees(1, 2)
}

func TestAFollowerThatIsBehindCatchesUpFromTheJournal(t *testing.T) {
	g := newGroup(t, 2)
	g.lead(1)
	g.awaitInSync(1, 2)
	if err := g.nodes[0].write(1, 10, 0, "both"); err != nil {
		t.Fatal(err)
	}
	g.nodes[1].stop()
	g.degrade(2)
	big := strings.Repeat("x", 100_000)
	for i := range 20 {
		if err := g.nodes[0].write(1, replication.FileID(20+i), 0, fmt.Sprint(i, big)); err != nil {
			t.Fatal(err)
		}
	}
	g.nodes[1].tweak = func(c *Config) { c.Resync = nil } // it must do without
	g.nodes[1].start()
	g.awaitInSync(1, 2)
	g.sameTrees(1, 2)
}

func TestACopyTooFarBackIsMadeAnewWhileTheServiceRuns(t *testing.T) {
	g := newGroup(t, 2)
	g.nodes[1].stop()
	g.lead(1)
	big := strings.Repeat("x", 1_000_000)
	for i := range 24 { // the journal keeps 8 MiB
		if err := g.nodes[0].write(1, replication.FileID(20+i%7), 0, fmt.Sprint(i, big)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the journal lets go of its beginning", func() bool { return g.nodes[0].j.First() > 1 })
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := g.nodes[0].write(1, replication.FileID(200+i%5), 0, fmt.Sprint(i)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	g.nodes[1].start()
	g.awaitInSync(1, 2)
	close(stop)
	wg.Wait()
	g.sameTrees(1, 2)
	if g.nodes[1].s.Status().Inconsistent {
		t.Error("still marked inconsistent")
	}
	g.lead(2)
}

func TestModesWaitForWhatTheySay(t *testing.T) {
	g := newGroup(t, 2, replica.Sync, replica.SyncOnFsync, replica.Async)
	g.lead(1)
	g.awaitInSync(1, 2)
	g.cutBetween(1, 2, true)
	n := g.nodes[0]
	for _, v := range []uint8{2, 3} {
		if err := n.write(v, 10, 0, "x"); err != nil {
			t.Errorf("volume %d: %v", v, err)
		}
	}
	if err := n.s.Log(3).Sync(); err != nil {
		t.Errorf("async: %v", err)
	}
	done := make(chan error, 2)
	go func() { done <- n.s.Log(2).Sync() }()
	go func() { done <- n.write(1, 11, 0, "y") }()
	eventually(t, "both wait", func() bool { return n.s.Status().Waiting == 2 })
	g.cutBetween(1, 2, false)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestABumpGoesOnWithoutAnError(t *testing.T) {
	g := newGroup(t, 2)
	g.lead(1)
	g.awaitInSync(1, 2)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := g.nodes[0].write(1, replication.FileID(10+w), int64(i%100), "x"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 3 {
		g.mu.Lock()
		if r := g.svc.Bump(lock.Bump{Epoch: g.svc.Epoch, Holder: g.svc.Holder, TTL: time.Second}); r != lock.Accepted {
			t.Errorf("bump: %v", r)
		}
		g.snapshot()
		g.mu.Unlock()
		g.spread()
		e := g.svc.Epoch
		eventually(t, "operations of the new epoch", func() bool { return g.nodes[1].s.Status().Position.Epoch == e })
	}
	close(stop)
	wg.Wait()
	g.sameTrees(1, 2)
	if h := g.nodes[1].s.hello().History; len(h) < 4 {
		t.Errorf("the standby's history: %v", h)
	}
}

func TestDrainHoldsAndUndrainLetsGo(t *testing.T) {
	g := newGroup(t, 2)
	g.lead(1)
	g.awaitInSync(1, 2)
	n := g.nodes[0]
	if err := n.write(1, 10, 0, "x"); err != nil {
		t.Fatal(err)
	}
	pos, err := n.s.Drain(t.Context())
	if err != nil || pos.Seq == 0 {
		t.Fatalf("drained at %v: %v", pos, err)
	}
	errs := make(chan error, 1)
	go func() { errs <- n.write(1, 10, 0, "y") }()
	select {
	case err := <-errs:
		t.Fatalf("written while drained: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	n.s.Undrain()
	if err := <-errs; err != nil {
		t.Error(err)
	}
}

func TestTwoStandbysBothCount(t *testing.T) {
	g := newGroup(t, 3)
	g.lead(1)
	g.awaitInSync(1, 2, 3)
	for i := range 50 {
		if err := g.nodes[0].write(1, 10, int64(i), "x"); err != nil {
			t.Fatal(err)
		}
	}
	g.sameTrees(1, 3)
	g.lead(3)
	g.awaitInSync(2, 3)
	if err := g.nodes[2].write(1, 11, 0, "z"); err != nil {
		t.Fatal(err)
	}
	g.sameTrees(2, 3)
}

func TestAMemberInSyncWhoseCopyMustBeMadeAnewIsDegradedFirst(t *testing.T) {
	g := newGroup(t, 2)
	g.lead(1)
	g.awaitInSync(1, 2)
	n := g.nodes[1]
	n.stop()
	n.dirty = true
	n.start()
	eventually(t, "a Degrade is asked for", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.asked) > 0 })
	g.awaitInSync(1, 2)
	if err := g.nodes[0].write(1, 10, 0, "x"); err != nil {
		t.Fatal(err)
	}
	g.sameTrees(1, 2)
}

func TestADiskThatFailsAtTheActiveEndsTheTenure(t *testing.T) {
	g := newGroup(t, 2)
	g.lead(1)
	g.awaitInSync(1, 2)
	n := g.nodes[0]
	n.tree.fail = syscall.EIO
	if err := n.write(1, 10, 0, "x"); err == nil {
		t.Error("no error")
	}
	eventually(t, "the failure is told", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.failed != nil })
	if err := n.write(1, 10, 0, "x"); !errors.Is(err, syscall.EIO) {
		t.Errorf("%v, want EIO", err)
	}
}

func TestAStandbyThatCannotApplyIsNotWaitedForLong(t *testing.T) {
	g := newGroup(t, 2)
	g.lead(1)
	g.awaitInSync(1, 2)
	n := g.nodes[1]
	n.tree.mu.Lock()
	n.tree.fail = syscall.ENOSPC
	n.tree.mu.Unlock()
	g.nodes[0].write(1, 10, 0, "x")
	eventually(t, "the failure is told", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.failed != nil })
	errs := make(chan error, 1)
	go func() { errs <- g.nodes[0].write(1, 10, 0, "y") }()
	eventually(t, "the active sees it stall", func() bool { return g.nodes[0].s.Status().Replicas[0].Stalled > 0 })
	g.degrade(2)
	if err := <-errs; err != nil {
		t.Error(err)
	}
	n.tree.mu.Lock()
	n.tree.fail = nil
	n.tree.mu.Unlock()
	g.awaitInSync(1, 2)
	g.sameTrees(1, 2)
}

var _ = cluster.MemberNo(0)
