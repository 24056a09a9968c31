package state

import (
	"fmt"
	"strings"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

// Fork makes a new cluster of the one member that is kept, after the majority was lost for good. It is no entry of any log: it is applied between the old log and the
// first entry of the new one, by the daemon of the kept member alone (member.FinishRecover).
type Fork struct {
	ClusterID string         `pb:"1"` // of the new cluster
	Keep      cluster.NodeID `pb:"2"`
	Off       []string       `pb:"3"` // members that the operator has seen to be switched off
	GossipKey []byte         `pb:"4"`
}

// fork: the old members are none any more, and what they were told to prove themselves with (invitations, the key of gossip) is void. Spec, history and what operators
// have ordered stay.
func (s *State) fork(index uint64, c *Command) Outcome {
	f := c.Fork
	keep := s.MemberByID(f.Keep)
	switch {
	case keep == nil || keep.Removed || keep.Role != cluster.RoleNode:
		return Outcome{Result: lock.Unknown, Text: "the member to be kept is no node of this cluster"}
	case f.ClusterID == "" || f.ClusterID == s.ClusterID:
		return Outcome{Result: lock.Conflict, Text: "a fork needs a cluster id of its own"}
	}
	s.Was = append(s.Was, s.ClusterID)
	s.ClusterID = f.ClusterID
	s.ForkCount++
	for i := range s.Members {
		if m := &s.Members[i]; m.No != keep.No {
			m.Removed = true
		}
	}
	keep.NoVote = false
	s.Tokens = nil
	s.GossipKeys = nil
	if len(f.GossipKey) > 0 {
		s.GossipKeys = []GossipKey{{Key: f.GossipKey}}
	}
	s.Group.Fork(keep.No)
	s.Voters = []string{keep.ServerID()}
	s.refreshEligible()
	for i := range s.Services {
		s.Services[i].Lock.Fork(&s.Group, keep.No)
	}
	for i := range s.Gone {
		s.Gone[i].Lock.Fork(&s.Group, keep.No)
	}
	s.event(index, c, "recovered", keep.Name, "crit", fmt.Sprintf("the cluster was forked to %s by %s, who has seen %s to be off", keep.Name, c.Who, strings.Join(f.Off, ", ")))
	return Outcome{Member: keep.No}
}
