package lab

import (
	"context"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/lab/probe"
	"github.com/hanode/hanode/internal/lab/world"
)

// store is a cluster with the ledger, on which one situation with data is played.
type store struct {
	*play
	clerk  *clerk
	active string
}

func openStore(t *testing.T, l *ledger) *store {
	t.Helper()
	if world.Privileged(testSelf(t)) != world.Full {
		t.Skip("needs root: hosts in namespaces, FUSE, real-time scheduling and the eBPF gate")
	}
	if testing.Short() {
		t.Skip("builds a cluster of its own")
	}
	dir := programs(t)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	t.Cleanup(cancel)
	s := &session{cfg: Config{Self: testSelf(t), Profile: "fast"}}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	err := s.openWith(ctx, func(p *product) {
		p.hanode, p.witness, p.slowDisks, p.ledger = filepath.Join(dir, "hanode"), filepath.Join(dir, "witness"), true, l
	})
	p := &play{T: t, ctx: ctx, product: s.prod, logs: map[string]int64{}}
	t.Cleanup(func() {
		if t.Failed() {
			p.showLogs()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	st := &store{play: p}
	st.whoIsActive()
	st.clerk, err = s.prod.startClerk(ctx, "e", 4)
	p.must(err)
	st.entered(20)
	return st
}

// whoIsActive asks which node has the ledger.
func (s *store) whoIsActive() string {
	s.Helper()
	st, err := s.status(s.ctx)
	s.must(err)
	for _, v := range st.Services {
		if v.Name == ledgerName {
			s.active = v.Active
		}
	}
	return s.active
}

// entered waits until so many more entries were acknowledged.
func (s *store) entered(n int) {
	s.Helper()
	before := 0
	if es, err := s.clerk.acked(); err == nil {
		before = len(es)
	}
	s.until("entries are acknowledged", 20*time.Second, func() bool {
		es, err := s.clerk.acked()
		return err == nil && len(es) >= before+n
	})
}

// kept stops the clerk and checks that every acknowledged entry is in the copy of the node that is active.
func (s *store) kept() {
	s.Helper()
	s.must(s.clerk.stop(s.ctx))
	es, err := s.clerk.acked()
	s.must(err)
	have, err := s.entries(s.whoIsActive())
	s.must(err)
	if lost := missing(es, have); len(lost) > 0 {
		s.Errorf("%d of %d acknowledged entries are not on %s, as %v", len(lost), len(es), s.active, lost[:min(len(lost), 5)])
	}
	seen := map[string]bool{}
	for _, e := range have {
		if seen[e] {
			s.Errorf("entry %s is there twice", e)
			break
		}
		seen[e] = true
	}
	s.Logf("%d entries acknowledged, %d in the ledger on %s", len(es), len(have), s.active)
}

// alike waits until both copies are the same.
func (s *store) alike() {
	s.Helper()
	s.until("both copies are the same", 30*time.Second, func() bool {
		a, err := s.entries(nodeA)
		b, err2 := s.entries(nodeB)
		return err == nil && err2 == nil && slices.Equal(a, b)
	})
}

// moved waits until the other node is active, and returns the longest time without an acknowledged entry.
func (s *store) moved(from string, at cluster.Instant) {
	s.Helper()
	s.until("the ledger is active elsewhere", 20*time.Second, func() bool { return s.whoIsActive() == otherNode(from) })
	s.entered(50)
	s.tell(at)
}

// tell logs the longest gap since an instant.
func (s *store) tell(at cluster.Instant) {
	s.Helper()
	es, err := s.clerk.acked()
	s.must(err)
	longest, _ := gap(es, at.Add(-time.Second))
	s.Logf("longest time without an acknowledged entry: %v", longest.Round(time.Millisecond))
}

// again waits until the ledger is protected, and begins with a new clerk.
func (s *store) again(t *testing.T, prefix string) {
	t.Helper()
	s.T = t
	s.must(s.await(s.ctx, ledgerName, "protected", 60*time.Second))
	s.whoIsActive()
	var err error
	s.clerk, err = s.product.startClerk(s.ctx, prefix, 4)
	s.must(err)
	s.entered(20)
}

// TestSituationsWithData plays the rows of the protocol's section 9 that are about data, one after the other on one cluster: whatever happens, every
// acknowledged entry is in the copy of the node that is active, none of them twice, and at the end the ledger is protected again.
func TestSituationsWithData(t *testing.T) {
	s := openStore(t, &ledger{mode: "sync", fsync: true})
	t.Run("a: the active dies; n: it returns and follows", func(t *testing.T) {
		s.T = t
		old, at := s.active, probe.Now()
		s.must(s.host(old).Die(s.ctx))
		s.moved(old, at)
		s.must(s.revive(s.ctx, old))
		s.must(s.await(s.ctx, ledgerName, "protected", 60*time.Second))
		s.kept()
		s.alike()
	})
	t.Run("switchover", func(t *testing.T) {
		s.again(t, "s")
		old, at := s.active, probe.Now()
		_, err := s.command(s.ctx, old, "switchover", ledgerName, "--to", otherNode(old), "--yes", "--timeout", "20s")
		s.must(err)
		s.moved(old, at)
		s.kept()
	})
	t.Run("c, f: the nodes are cut from each other: the active goes on alone", func(t *testing.T) {
		s.again(t, "c")
		at := probe.Now()
		s.must(s.bed.world.Cut(s.ctx, nodeA, nodeB))
		s.wait(2 * time.Second)
		s.entered(50)
		s.tell(at)
		s.check(s.whoIsActive() == s.active, "it moved")
		s.must(s.bed.world.Heal(s.ctx))
		s.must(s.await(s.ctx, ledgerName, "protected", 60*time.Second))
		s.kept()
		s.alike()
	})
	t.Run("i: the daemon of the active is stopped, and goes on later", func(t *testing.T) {
		s.again(t, "i")
		old, at := s.active, probe.Now()
		s.must(s.signalDaemon(s.ctx, old, syscall.SIGSTOP))
		s.moved(old, at)
		s.must(s.signalDaemon(s.ctx, old, syscall.SIGCONT))
		s.must(s.await(s.ctx, ledgerName, "protected", 60*time.Second))
		s.kept()
	})
}

func TestTheActiveDiesAndEveryAcknowledgedEntryIsOnTheStandby(t *testing.T) {
	s := openStore(t, &ledger{mode: "sync", fsync: true})
	old := s.active
	at := probe.Now()
	s.must(s.host(old).Die(s.ctx))
	s.until("the ledger is active elsewhere", 10*time.Second, func() bool { return s.whoIsActive() == otherNode(old) })
	s.entered(50)
	es, err := s.clerk.acked()
	s.must(err)
	longest, _ := gap(es, at.Add(-time.Second))
	s.Logf("longest time without an acknowledged entry: %v", longest.Round(time.Millisecond))
	s.kept()
}
