package node

import (
	"context"
	"fmt"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/member"
	"github.com/hanode/hanode/internal/rt"
)

// healthEvery is how often the members' health is looked at for alarms.
const healthEvery = 5 * time.Second

// What raises an alarm, and, by half, what ends it. Sources: the protocol, section 8 (fsync), and cluster/spec's use of wall clocks.
const (
	slowFsync = 10 * time.Millisecond
	clockOff  = 500 * time.Millisecond
	linkDown  = 10 * time.Second
	lowDisk   = 1 << 30 // bytes, if it is also less than lowRatio percent
	lowRatio  = 10
	noDisk    = 128 << 20
)

// watchHealth raises and ends the alarms about the members' health, as this node hears of it.
func (n *Node) watchHealth(ctx context.Context) error {
	t := rt.NewTicker(healthEvery)
	defer t.Stop()
	downSince := map[string]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			t.Next()
		}
		names := map[cluster.MemberNo]string{}
		heard := map[cluster.NodeID]bool{}
		if n.m.On(func(c *core.Core) {
			for i := range c.State().Members {
				if m := &c.State().Members[i]; !m.Removed {
					names[m.No], heard[m.ID] = m.Name, c.Alive(m.No)
				}
			}
		}) != nil {
			return nil
		}
		for _, h := range n.m.Health() {
			if name := names[h.Member]; h.Known && name != "" {
				n.judge(name, h)
			}
		}
		n.judgeLinks(n.m.Mesh().Links(), heard, downSince)
	}
}

// judge compares what one member says of itself with the bounds.
func (n *Node) judge(name string, h member.Health) {
	n.bound("slow-log", name, h.FsyncP99 > slowFsync, h.FsyncP99 < slowFsync/2, "warn",
		fmt.Sprintf("the disk of %s takes %v (p99) for a write to the log of decisions; %v is good", name, h.FsyncP99.Round(time.Millisecond), slowFsync),
		"put the state directory of "+name+" on a disk of its own, or a faster one")
	full := h.FreeDisk < lowDisk && h.FreeRatio < lowRatio && h.FreeDisk > 0
	severity := "warn"
	if h.FreeDisk < noDisk {
		severity = "crit"
	}
	n.bound("disk-space", name, full, !full, severity, fmt.Sprintf("%d MiB (%d %%) are free on the disk of the state directory of %s", h.FreeDisk>>20, h.FreeRatio, name),
		"make room on "+name)
	off := h.ClockOffset.Abs()
	n.bound("clock", name, off > clockOff, off < clockOff/2, "warn", fmt.Sprintf("the wall clock of %s differs from that of %s by %v", name, n.dir.Identity.Name, h.ClockOffset.Round(time.Millisecond)),
		"look at the time service (chrony, systemd-timesyncd) of both; leases do not depend on it, logs and certificates do")
	n.keeps(name, h)
	n.bound("unwell", name, h.Degraded, !h.Degraded, "warn", name+" says of itself: "+h.Note, "hanode status, on "+name)
}

// keeps says whether a member keeps the profile in force.
func (n *Node) keeps(name string, h member.Health) {
	var t cluster.Timing
	role := cluster.RoleWitness
	_ = n.m.On(func(c *core.Core) {
		t = c.State().Timing()
		if m := c.State().Member(h.Member); m != nil {
			role = m.Role
		}
	})
	why := member.Unfit(t, member.Fitness{Name: name, Role: role, Known: h.Known, Realtime: h.Realtime, EBPF: h.EBPF, Lateness: h.Lateness})
	n.bound("profile-not-kept", name, why != "", why == "", "warn", "profile "+t.Profile+" is not kept: "+why,
		"choose a slower profile, or find what keeps "+name+" from being on time")
}

// bound raises an alarm, ends it, or leaves it as it is.
func (n *Node) bound(code, object string, bad, good bool, severity, text, remedy string) {
	switch {
	case bad:
		n.raise(code, object, severity, text, remedy)
	case good:
		n.clear(code, object)
	}
}

// judgeLinks raises an alarm for a path that is down for long although its member is heard: no move follows, but the next failure may find no
// other path.
func (n *Node) judgeLinks(links []link.LinkState, heard map[cluster.NodeID]bool, since map[string]time.Time) {
	seen := map[string]bool{}
	for _, l := range links {
		object := fmt.Sprintf("%s %s", l.Name, l.Remote)
		seen[object] = true
		if l.Up || !heard[l.Peer] {
			delete(since, object)
			if l.Up {
				n.clear("link-down", object)
			}
			continue
		}
		if _, down := since[object]; !down {
			since[object] = time.Now()
		}
		if age := time.Since(since[object]); age >= linkDown {
			n.raise("link-down", object, "warn", fmt.Sprintf("the path from %s to %s is down, while %s is heard on another one", l.Local, l.Remote, l.Name),
				"look at the cable, the switch and the firewall (port 7400, tcp and udp) of that network")
		}
	}
	for object := range since {
		if !seen[object] {
			delete(since, object)
			n.clear("link-down", object)
		}
	}
}

// health adds to the status what the members say of themselves.
func (b backend) health(st *api.Status) {
	no := map[string]int{}
	for i := range st.Members {
		no[st.Members[i].Name] = i
	}
	names := map[cluster.MemberNo]string{}
	_ = b.n.m.On(func(c *core.Core) {
		for i := range c.State().Members {
			names[c.State().Members[i].No] = c.State().Members[i].Name
		}
	})
	for _, h := range b.n.m.Health() {
		if i, ok := no[names[h.Member]]; ok && h.Known {
			st.Members[i].ClockOffsetMs = api.Ms(h.ClockOffset)
		}
	}
}
