package model

import (
	"testing"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

func threeVoters() []lock.VoterSet { return []lock.VoterSet{{Set: cluster.SetOf(1, 2, 3)}} }

func base() config {
	return config{name_: "base", members: 3, nodes: cluster.SetOf(1, 2), sets: threeVoters(), epochs: 3, crashes: 1, grantTTLs: []uint8{1}, lag: 2}
}

func TestTheLeaseHoldsInEveryOrderOfEvents(t *testing.T) {
	c := base()
	r := explore(&c)
	t.Log(r)
	if r.broken != "" {
		t.Error(r.broken)
		for _, l := range r.trace {
			t.Log(l)
		}
	}
}
