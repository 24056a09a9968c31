package linktest

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func trio(t testing.TB, seed uint64, names ...string) (*Network, []*Member) {
	n := NewNetwork(seed)
	t.Cleanup(n.Close)
	var out []*Member
	var peers []link.Peer
	for i, name := range names {
		peers = append(peers, link.Peer{ID: cluster.NodeID{byte(i + 1)}, Name: name, Role: cluster.RoleNode})
		out = append(out, n.Member(peers[i]))
	}
	for _, m := range out {
		m.SetPeers(peers)
	}
	return n, out
}

func TestContractInMemory(t *testing.T) {
	Contract(t, func(t *testing.T, names ...string) []Mesh {
		_, ms := trio(t, 1, names...)
		var out []Mesh
		for _, m := range ms {
			out = append(out, m)
		}
		return out
	})
}

func TestCutsStallConnectionsAndLoseDatagramsUntilHealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, ms := trio(t, 1, "a", "b")
		a, b := ms[0], ms[1]
		heard := 0
		b.Receive(func(link.Datagram) { heard++ })
		ca, cb := joined(t, a, b, link.Raft)
		n.Cut(a.self.ID, b.self.ID, true) // one way
		a.Send(b.self.ID, 1, nil)
		ca.Write([]byte("x"))
		cb.SetReadDeadline(time.Now().Add(time.Second))
		if k, err := cb.Read(make([]byte, 1)); k != 0 || err == nil {
			t.Error("bytes came through a cut")
		}
		cb.Write([]byte("y"))
		ca.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := ca.Read(make([]byte, 1)); err != nil {
			t.Errorf("the other way: %v", err)
		}
		if l := a.Links()[0]; l.Up {
			t.Error("a link that works one way is up")
		}
		start := time.Now()
		time.AfterFunc(2*time.Second, func() { n.Cut(a.self.ID, b.self.ID, false) })
		b.Listener(link.API, nil)
		dial(t, a, b, link.API)
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("dial through a cut that heals after 2 s took %v", took)
		}
		cb.SetReadDeadline(time.Time{})
		if _, err := cb.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if heard != 0 {
			t.Errorf("%d datagrams crossed the cut", heard)
		}
		n.Close()
		time.Sleep(time.Minute)
	})
}

func TestLossAndDelayFollowTheSeed(t *testing.T) {
	run := func(seed uint64) (out []string) {
		synctest.Test(t, func(t *testing.T) {
			n, ms := trio(t, seed, "a", "b")
			a, b := ms[0], ms[1]
			start := n.Now()
			b.Receive(func(d link.Datagram) { out = append(out, fmt.Sprint(d.Seq, " ", d.At.Sub(start))) })
			n.Lose(a.self.ID, b.self.ID, 0.3)
			n.Delay(a.self.ID, b.self.ID, time.Millisecond, 50*time.Millisecond)
			for range 200 {
				a.Send(b.self.ID, 1, nil)
				time.Sleep(time.Millisecond)
			}
			time.Sleep(time.Second)
			n.Close()
		})
		return out
	}
	one, same, other := run(7), run(7), run(8)
	if len(one) < 110 || len(one) > 170 {
		t.Errorf("%d of 200 came with 30 %% loss", len(one))
	}
	slices.Sort(one)
	slices.Sort(same)
	if !slices.Equal(one, same) {
		t.Error("one seed, two fates")
	}
	slices.Sort(other)
	if slices.Equal(one, other) {
		t.Error("two seeds, one fate")
	}
}
