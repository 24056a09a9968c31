package lab

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

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
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Second)
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
