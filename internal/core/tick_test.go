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
