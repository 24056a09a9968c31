package lock

import (
	"testing"

	"github.com/hanode/hanode/cluster"
)

// After a fork the one that was kept is granted its services by itself, and nothing that the old cluster decided, or still decides, is accepted.
func TestAForkLetsTheKeptOneServeAndRefusesWhatWasBefore(t *testing.T) {
	for _, sticky := range []bool{false, true} {
		g := Group{Sets: []VoterSet{{C: 1, Set: cluster.SetOf(1, 2, 3)}, {C: 2, Set: cluster.SetOf(1, 2, 4)}}}
		g.Join(1, 5, cluster.BootID{1})
		g.Join(2, 7, cluster.BootID{2})
		g.Join(3, 3, cluster.BootID{3})
		s := Service{Epoch: 9, Holder: Holder{1, 5}, Data: true, Eligible: cluster.SetOf(1, 2), InSync: cluster.SetOf(1), Gen: 4, Sticky: sticky, TTL: 1, TTLMax: 1}
		before := s.Clone()
		g.Fork(2)
		s.Eligible = cluster.SetOf(2)
		s.Fork(&g, 2)
		if s.Epoch != before.Epoch+1<<32 || s.Gen <= before.Gen || s.Forced != s.Epoch || g.C() != 3 || !g.Majority(cluster.SetOf(2)) || g.Majority(cluster.SetOf(1, 3, 4)) {
			t.Fatalf("forked: %+v, %+v", s, g)
		}
		old := Grant{Epoch: before.Epoch, To: Holder{1, 5}, Promises: []Promise{{1, 5}, {3, 3}}}
		if r := s.Grant(&g, old); r == Accepted {
			t.Error("a Grant of the old cluster is accepted")
		}
		if r := s.Bump(Bump{Epoch: s.Epoch, Holder: before.Holder}); r == Accepted {
			t.Error("a Bump of the old holder is accepted")
		}
		if r := g.Join(2, 8, cluster.BootID{9}); r != Accepted { // rebooted since
			t.Fatalf("the kept one's next run: %v", r)
		}
		s.FirstBoot(2, cluster.BootID{9})
		if r := s.Grant(&g, Grant{Epoch: s.Epoch, To: Holder{2, 8}, Promises: []Promise{{2, 8}}, TTL: 1}); r != Accepted {
			t.Errorf("the kept one is not granted its service: %v", r)
		}
	}
}
