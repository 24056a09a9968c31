package node

import (
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/state"
)

// setPaused takes over which checks an operator has paused.
func (s *service) setPaused(l []state.CheckPause) {
	l = slices.Clone(l)
	s.paused.Store(&l)
}

// checkPaused says whether a check is paused now. A pause ends by itself.
func (s *service) checkPaused(name string) bool {
	l := s.paused.Load()
	return l != nil && slices.ContainsFunc(*l, func(p state.CheckPause) bool { return p.Check == name && p.Until > time.Now().UnixMilli() })
}

// unpaused are the checks that count.
func (s *service) unpaused() []cluster.CheckSpec {
	return slices.DeleteFunc(slices.Clone(s.spec.Checks), func(k cluster.CheckSpec) bool { return s.checkPaused(k.Name) })
}

// alertBroken raises an alarm for an alert that tells nobody. The alarm itself is told by the others.
func (n *Node) alertBroken(name string, err error) {
	if err == nil {
		n.clear("alert-broken", name)
		return
	}
	n.raise("alert-broken", name, "crit", "the alert "+name+" tells nobody: "+err.Error(), "mend its program, then hanode alert test "+name)
}
