package core

import (
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/state"
)

func TestNoFloodOfOtherEventsPutsATickOff(t *testing.T) {
	now := cluster.Instant(time.Hour)
	c := New(Config{ID: cluster.NodeID{1}, Role: cluster.RoleNode, Inc: 2}, now, new(state.State))
	due := c.Next(now)
	if due > now.Add(busyTick) {
		t.Fatalf("the first tick is due in %v", due.Sub(now))
	}
	for range 10 {
		now = now.Add(5 * time.Millisecond)
		c.Step(now, 0, Leadership{})
		if next := c.Next(now); next > max(due, now.Add(time.Millisecond)) {
			t.Fatalf("a tick was due at %d, and another event put it off to %d", due, next)
		}
	}
	c.Step(now, 0, Tick{})
	if next := c.Next(now); next != now.Add(busyTick) {
		t.Errorf("after the tick the next one is due in %v", next.Sub(now))
	}
}

// A voter beats with the renewals that it hears, so that it wakes up once for both; without them it beats all the same.
func TestAVoterBeatsWithTheRenewalsThatItHears(t *testing.T) {
	k := newBench(t, b)
	k.grant(0, a)
	every := k.c.renewEvery()
	k.now = k.now.Add(every - time.Duration(k.now)%every) // at a turn of its own
	k.step(Leadership{Leader: a})
	k.step(Tick{})
	renewal := func() []Action {
		return k.hear(a, &Renew{Inc: 1, Sent: k.now, Leases: []Lease{{Service: 1, Epoch: 1, TTL: 250 * time.Millisecond}}})
	}
	for n := range 5 {
		k.now = k.now.Add(every)
		acts := renewal()
		if len(sent[*Ack](acts)) != 1 || len(sent[*Beat](acts)) != 2 {
			t.Fatalf("renewal %d: %d acknowledgements, %d beats", n, len(sent[*Ack](acts)), len(sent[*Beat](acts)))
		}
		if due := k.c.Next(k.now); due <= k.now.Add(every) {
			t.Errorf("the next turn of its own is due in %v, before the next renewal", due.Sub(k.now))
		}
		k.now = k.now.Add(every / 10)
		if acts := renewal(); len(sent[*Ack](acts)) != 1 || len(sent[*Beat](acts)) != 0 {
			t.Fatalf("a second renewal just after: %d acknowledgements, %d beats", len(sent[*Ack](acts)), len(sent[*Beat](acts)))
		}
		k.now = k.now.Add(-every / 10)
	}
	k.now = k.c.Next(k.now)
	if acts := k.step(Tick{}); len(sent[*Beat](acts)) != 2 || k.now.Sub(k.c.lastBeat) > 0 {
		t.Errorf("when renewals have ended it sends %d beats", len(sent[*Beat](acts)))
	}
	if due := k.c.Next(k.now); due > k.now.Add(every) {
		t.Errorf("and the next ones in %v", due.Sub(k.now))
	}
}

// A tenure keeps the lease that it began under, however the spec has been changed since: so must its renewals.
func TestRenewalsKeepPaceWithAShorterLeaseThanTheSpecs(t *testing.T) {
	k := serve(t)
	spec, err := cluster.DecodeSpec(k.c.st.Spec.Compiled)
	if err != nil {
		t.Fatal(err)
	}
	spec.Profile = "wan"
	compiled, _ := spec.Encode()
	k.apply(&state.Command{SpecApply: &state.SpecApply{Base: 1, Compiled: compiled}})
	if slow, got := k.c.st.Timing().Renew, k.c.renewEvery(); slow != 250*time.Millisecond || got > 50*time.Millisecond {
		t.Errorf("the spec says %v, and a lease of 250 ms is renewed every %v", slow, got)
	}
}
