// Package placement decides, without clock or I/O, which member should lead the Raft group.
//
// Leases do not depend on who leads (the voters promise them), so a wrong answer costs time, never safety. What it aims
// at: the death of a node should not coincide with an election. So the active should not lead if that can be avoided; a
// witness that is quick enough is best, because nothing is lost with it; else the standby. The lead is moved only in
// calm and at most once a minute, because commands wait while it moves; with one exception: an active that cannot reach
// its leader, while a witness can reach both, is helped at once.
//
// Callers ask the leader's own Decide now and then, and carry out what it says with raft.Group.TransferTo.
package placement

import (
	"fmt"
	"time"

	"github.com/hanode/hanode/cluster"
)

// The rules' numbers. Source: the protocol, section "Where the time goes", leader placement.
const (
	Calm         = 30 * time.Second      // nothing may have happened for so long before the lead is moved
	Pause        = time.Minute           // between two moves
	UrgentPause  = 2 * time.Second       // between two moves that help an active which is cut off
	QuickWitness = 10 * time.Millisecond // p99 of fsync plus round trip up to which a witness is the first choice
	SlowWitness  = 20 * time.Millisecond // p99 from which a leading witness gives the lead away again
)

// Member is one voter as the leader sees it.
type Member struct {
	ServerID  string
	Role      cluster.Role
	Active    bool          // holds a lease of some service
	Standby   bool          // is the designated standby of some service
	Reachable bool          // answers the leader (the leader itself: true)
	CaughtUp  bool          // its log lacks nothing that matters
	Hears     bool          // it hears the active that is cut off, see View.CutOff
	CommitP99 time.Duration // p99 of its fsync plus that of the round trip to it; 0: not measured yet
}

// View is what Decide looks at.
type View struct {
	Leader   string // ServerID of the leader, the member that decides
	Members  []Member
	Restless bool            // a takeover, degrade, switchover or membership change is in flight
	Changed  cluster.Instant // when something last happened: a member came or went, a takeover ended, a leader was elected
	Moved    cluster.Instant // when the lead was last moved on purpose; 0: never
	CutOff   string          // ServerID of an active that the leader does not hear although it lives (others hear it)
}

// Decide returns the member that should get the lead, or "" for no move, and the reason in words.
func Decide(now cluster.Instant, v View) (target, reason string) {
	leader := find(v.Members, v.Leader)
	if leader == nil {
		return "", "the leader is not among the voters"
	}
	moved := func(pause time.Duration) bool { return v.Moved != 0 && now.Sub(v.Moved) < pause }
	if v.CutOff != "" && v.CutOff != v.Leader {
		if moved(UrgentPause) {
			return "", fmt.Sprintf("%s cannot reach the leader, but the lead has just been moved", v.CutOff)
		}
		for _, m := range v.Members {
			if m.Role == cluster.RoleWitness && m.ServerID != v.Leader && m.usable() && m.Hears {
				return m.ServerID, fmt.Sprintf("%s cannot reach the leader, %s reaches both", v.CutOff, m.ServerID)
			}
		}
		return "", fmt.Sprintf("%s cannot reach the leader, and no witness reaches both", v.CutOff)
	}
	best, why := choose(v, leader)
	switch {
	case best == v.Leader:
		return "", why
	case v.Restless:
		return "", why + ", later: something is in flight"
	case now.Sub(v.Changed) < Calm:
		return "", fmt.Sprintf("%s, later: calm for only %v", why, now.Sub(v.Changed).Round(time.Second))
	case moved(Pause):
		return "", why + ", later: the lead was moved less than a minute ago"
	}
	return best, why
}

func (m *Member) usable() bool { return m.Reachable && m.CaughtUp }

func find(ms []Member, id string) *Member {
	for i := range ms {
		if ms[i].ServerID == id {
			return &ms[i]
		}
	}
	return nil
}

// choose names the best leader regardless of the time.
func choose(v View, leader *Member) (string, string) {
	if leader.Role == cluster.RoleWitness && leader.CommitP99 < SlowWitness {
		return v.Leader, "a quick witness leads"
	}
	var witness, standby *Member
	for i := range v.Members {
		m := &v.Members[i]
		if !m.usable() && m != leader {
			continue
		}
		switch {
		case m.Role == cluster.RoleWitness:
			if m != leader && m.CommitP99 > 0 && m.CommitP99 <= QuickWitness && (witness == nil || m.CommitP99 < witness.CommitP99) {
				witness = m
			}
		case m.Active:
		case standby == nil, m == leader && m.Standby == standby.Standby, m.Standby && !standby.Standby:
			standby = m
		}
	}
	switch {
	case witness != nil:
		return witness.ServerID, fmt.Sprintf("%s is a witness and quick (%v)", witness.ServerID, witness.CommitP99)
	case standby != nil && standby == leader:
		return v.Leader, "a node that is not active leads, and no witness is quick"
	case standby != nil && leader.Role == cluster.RoleWitness:
		return standby.ServerID, fmt.Sprintf("the leading witness is slow (%v), %s is not active", leader.CommitP99, standby.ServerID)
	case standby != nil:
		return standby.ServerID, fmt.Sprintf("%s is active and should not lead, %s is not active", v.Leader, standby.ServerID)
	}
	return v.Leader, "every other member is active, slow or not ready"
}
