package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/rt"
)

// A node that was itself late by more than half a lease came near to losing its services without anybody having failed. It says so, and gives
// away, in calm, what it was active for: whatever made it late may do so again, and for longer.

// How it does that.
const (
	accuseCalm  = 10 * time.Second // without being late again, before anything is given away
	accusePause = 10 * time.Minute // between two times that it gives away; also how long it says so
)

// conscience is what this node holds against itself.
type conscience struct {
	mu      sync.Mutex
	worst   time.Duration
	at      time.Time
	accused map[cluster.ServiceNo]uint64 // the epoch in which it was late
	gave    time.Time
}

// onLate runs on the loop. Shouting costs nothing; the rest is done elsewhere.
func (n *Node) onLate(late, ttl time.Duration) {
	c := &n.conscience
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.at) > accusePause {
		c.worst = 0
	}
	c.worst, c.at = max(c.worst, late), time.Now()
	if c.accused == nil {
		c.accused = map[cluster.ServiceNo]uint64{}
	}
	for _, s := range n.list() {
		if s.active.Load() {
			c.accused[s.no] = s.epoch.Load()
		}
	}
}

// note is what this node says of itself to the others.
func (c *conscience) note() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.worst == 0 || time.Since(c.at) > accusePause {
		return ""
	}
	return fmt.Sprintf("its own loop was %v late", c.worst.Round(time.Millisecond))
}

// due takes what is to be given away now.
func (c *conscience) due(now time.Time) map[cluster.ServiceNo]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.accused) == 0 || now.Sub(c.at) < accuseCalm {
		return nil
	}
	out := c.accused
	c.accused = nil
	if !c.gave.IsZero() && now.Sub(c.gave) < accusePause {
		return nil
	}
	c.gave = now
	return out
}

// examine raises the alarm, and gives away.
func (n *Node) examine(ctx context.Context) error {
	t := rt.NewTicker(time.Second)
	defer t.Stop()
	name := n.dir.Identity.Name
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			t.Next()
		}
		if note := n.conscience.note(); note != "" {
			n.raise("late", name, "warn", name+" was not on time: "+note, "find what kept it: the load, a machine that was paused, a slow console; hanode debug bundle")
		} else {
			n.clear("late", name)
		}
		for no, epoch := range n.conscience.due(time.Now()) {
			n.giveAway(ctx, no, epoch)
		}
	}
}

// giveAway moves a service to another node, if it is still active here in the same epoch, policy may move it, and the other one is better off.
func (n *Node) giveAway(ctx context.Context, no cluster.ServiceNo, epoch uint64) {
	s := n.byNo(no)
	if s == nil || !s.active.Load() || s.epoch.Load() != epoch {
		return
	}
	to := cluster.MemberNo(0)
	name := ""
	_ = n.m.On(func(c *core.Core) {
		view := c.View(n.m.Now(), time.Now().UnixMilli())
		look, ok := c.Look(view, no)
		if !ok || look.Facts.Spec == nil || look.Facts.Paused || look.Facts.Lock.Held || look.Facts.Spec.Failover == "manual" || look.Moving || !look.Outlook.Protected {
			return
		}
		to, name = look.Outlook.Standby, c.State().MemberName(look.Outlook.Standby)
	})
	if to == 0 {
		return
	}
	for _, h := range n.m.Health() {
		if h.Member == to && (h.Degraded || !h.Known) {
			n.log.Info("a service stays here although this node was late: the standby is no better", "service", s.name, "standby", name, "note", h.Note)
			return
		}
	}
	ctx, cancel := context.WithTimeout(ctx, handOverTime)
	defer cancel()
	why := n.dir.Identity.Name + " accuses itself: " + n.conscience.note()
	if _, err := n.orders.give(ctx, n.m, &core.Order{Service: no, To: name, What: "switchover", By: "policy", Reason: why}); err != nil {
		n.log.Warn("a service could not be given away", "service", s.name, "to", name, "why", err)
	}
}
