package model

import (
	"os"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

func threeVoters() []lock.VoterSet { return []lock.VoterSet{{Set: cluster.SetOf(1, 2, 3)}} }

func base() config {
	return config{name_: "base", members: 3, nodes: cluster.SetOf(1, 2), sets: threeVoters(), epochs: 3, crashes: 1, grantTTLs: []uint8{1}, lag: 2}
}

func bumping() config {
	c := base()
	c.name_, c.bumps, c.crashes, c.lag = "bump", true, 1, 1
	c.grantTTLs, c.bumpTTLs = []uint8{1, 2}, []uint8{1, 2}
	return c
}

func outside() config {
	c := base()
	c.name_, c.members, c.sets, c.crashes, c.epochs, c.lag = "a holder without a vote", 4, []lock.VoterSet{{Set: cluster.SetOf(2, 3, 4)}}, 1, 2, 1
	return c
}

func sticking() config {
	c := base()
	c.name_, c.sticks, c.epochs, c.lag = "sticky", 1, 3, 1
	return c
}

func stickingAndBumping() config {
	c := sticking()
	c.name_, c.bumps, c.bumpTTLs, c.crashes = "sticky and Bump", true, []uint8{1}, 0
	return c
}

func witnessReplaced() config {
	c := base()
	c.name_, c.members, c.voterChange, c.epochs, c.crashes, c.lag = "another witness", 4, true, 3, 0, 2
	c.sets = []lock.VoterSet{{Set: cluster.SetOf(1, 2, 3)}, {Set: cluster.SetOf(1, 2, 4)}}
	return c
}

func votersAdded() config {
	c := witnessReplaced()
	c.name_, c.members = "from one vote to three", 3
	c.sets = []lock.VoterSet{{Set: cluster.SetOf(1)}, {Set: cluster.SetOf(1, 2, 3)}}
	return c
}

func data() config {
	c := base()
	c.gens = 3
	c.name_, c.data, c.timeless, c.ops, c.epochs, c.crashes, c.reboots, c.lag = "data", true, true, 2, 3, 1, true, 1
	return c
}

func dataSticky() config {
	c := data()
	c.name_, c.sticks, c.ops, c.forces = "data and sticky", 1, 1, false
	return c
}

func dataBump() config {
	c := data()
	c.name_, c.bumps, c.bumpTTLs, c.ops, c.reboots = "data and Bump", true, []uint8{1}, 1, false
	return c
}

func onFsync() config {
	c := data()
	c.name_, c.onFsync = "data, sync-on-fsync", true
	return c
}

func onFsyncSticky() config {
	c := dataSticky()
	c.name_, c.onFsync = "data, sync-on-fsync and sticky", true
	return c
}

// threeCopies is a service with two standbys.
func threeCopies() config {
	c := data()
	c.name_, c.members, c.nodes, c.ops, c.crashes, c.reboots, c.epochs = "three copies", 4, cluster.SetOf(1, 2, 3), 1, 0, false, 2
	c.sets = []lock.VoterSet{{Set: cluster.SetOf(1, 2, 3, 4)}}
	c.names = [maxNo + 1]string{"nobody", "A", "B", "C", "W"}
	c.prompt = cluster.SetOf(4)
	return c
}

// bounds are how many states are explored: few with -short, all of them with HANODE_MODEL=deep as far as memory goes.
func bound(normal int) int {
	switch {
	case os.Getenv("HANODE_MODEL") == "deep":
		return 30_000_000
	case testing.Short():
		return min(normal, 150_000)
	}
	return normal
}

func TestNoOrderOfEventsBreaksARule(t *testing.T) {
	total, start := 0, time.Now()
	for _, x := range []struct {
		in   func() config
		most int
	}{{base, 8_000_000}, {bumping, 800_000}, {outside, 800_000}, {sticking, 800_000}, {aStickyUnaware, 800_000}, {stickingAndBumping, 500_000}, {witnessReplaced, 400_000}, {aStale, 500_000},
		{aPushed, 400_000}, {votersAdded, 800_000}, {data, 800_000}, {dataSticky, 500_000}, {dataBump, 800_000},
		{onFsync, 500_000}, {onFsyncSticky, 250_000}, {threeCopies, 400_000}} {
		c := x.in()
		t.Run(c.name_, func(t *testing.T) {
			c.most = bound(x.most)
			r := explore(&c)
			total += r.states
			t.Log(r)
			if r.broken != "" {
				t.Error(r.broken)
				for i, l := range r.trace {
					t.Logf("%2d %s", i+1, l)
				}
			}
		})
	}
	t.Logf("%d states in %v", total, time.Since(start).Round(time.Second))
}
