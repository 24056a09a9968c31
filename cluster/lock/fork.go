package lock

import "github.com/hanode/hanode/cluster"

// ForkEpochs is by how much a fork raises each epoch: more than the old cluster, should a part of it still run, can grant in its life. Whatever has seen the new
// cluster refuses the old one's epochs from then on.
const ForkEpochs cluster.Epoch = 1 << 32

// Fork makes keep the one voter, in a set that is newer than all others and settled by itself. What is known of the others' runs stays: no incarnation
// becomes admissible again.
func (g *Group) Fork(keep cluster.MemberNo) {
	g.Sets = []VoterSet{{C: g.C() + 1, Set: cluster.SetOf(keep)}}
}

// Fork makes s the record of a cluster in which only keep is left, after g was forked: nobody holds it, only keep holds its data, and what anybody else holds beyond
// the fork counts as acknowledged there, and is never overwritten or merged by itself. Who has it done has made sure that no other member runs. The boot id of keep is
// noted at its next Join: the operator was shown the age of the data.
func (s *Service) Fork(g *Group, keep cluster.MemberNo) {
	s.Epoch += ForkEpochs
	s.Gen++
	s.Holder = Holder{}
	s.InSync = cluster.SetOf(keep)
	s.Boots = []MemberBoot{{Node: keep}}
	s.Sticky = false
	s.Forced = s.Epoch
	s.Confirmed = g.C()
}
