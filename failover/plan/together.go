package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hanode/hanode/cluster"
)

// Neighbour is another service, as far as it matters where this one may run.
type Neighbour struct {
	Name    string
	Spec    *cluster.ServiceSpec
	Active  cluster.MemberNo // who holds it, is heard, and has not released it; 0: nobody
	Coming  cluster.MemberNo // whom it is being granted to
	Stopped bool
	Reports map[cluster.MemberNo]Report // of a service that runs everywhere
}

// fullCapacity is the capacity of a node that the spec does not name, in % units of load.
const fullCapacity = 100

func (v *View) neighbour(name string) *Neighbour {
	for i := range v.Others {
		if v.Others[i].Name == name {
			return &v.Others[i]
		}
	}
	return nil
}

// together says why a service may not run on a node because of the other services: what it requires is not there, what it must be apart from is, or
// the node is full. "": it may. Of two that must be apart the one with the higher priority wins, and so it is with the last capacity: what is worth
// less gives way, see GiveWay.
func (v *View) together(s *Service, m *Member) string {
	for _, name := range s.Spec.Requires {
		n := v.neighbour(name)
		switch {
		case n == nil:
			return fmt.Sprintf("%s: %s requires %s, which is not in the spec", m.Name, s.Name, name)
		case n.Spec.Run == "everywhere":
			if r, ok := n.Reports[m.No]; !ok || !r.Ready || r.Unhealthy {
				return fmt.Sprintf("%s: %s, which %s requires, is not well there", m.Name, name, s.Name)
			}
		case n.Active != m.No:
			return fmt.Sprintf("%s: %s, which %s requires, is not active there", m.Name, name, s.Name)
		}
	}
	for i := range v.Others {
		n := &v.Others[i]
		if n.Name != s.Name && n.on(m) && apart(s.Spec, n.Spec) && n.Spec.Priority >= s.Spec.Priority {
			return fmt.Sprintf("%s: %s is active there, and %s must be apart from it", m.Name, n.Name, s.Name)
		}
	}
	return v.full(s, m)
}

// on says whether the service takes a node's room: it is there, or on its way.
func (n *Neighbour) on(m *Member) bool { return n.Active == m.No || n.Coming == m.No }

func apart(a, b *cluster.ServiceSpec) bool {
	return slices.Contains(a.Apart, b.Name) || slices.Contains(b.Apart, a.Name)
}

// full says whether what a node carries and this service may not do without leaves no room for it.
func (v *View) full(s *Service, m *Member) string {
	if s.Spec.Load == 0 {
		return ""
	}
	capacity := fullCapacity
	if c, ok := v.Capacity[m.No]; ok {
		capacity = c
	}
	used := 0
	var by []string
	for i := range v.Others {
		n := &v.Others[i]
		if n.Name != s.Name && n.on(m) && n.Spec.Load > 0 && n.Spec.Priority >= s.Spec.Priority {
			used += n.Spec.Load
			by = append(by, fmt.Sprintf("%s %d", n.Name, n.Spec.Load))
		}
	}
	if used+s.Spec.Load <= capacity {
		return ""
	}
	if len(by) == 0 {
		return fmt.Sprintf("%s has a capacity of %d and %s is a load of %d", m.Name, capacity, s.Name, s.Spec.Load)
	}
	return fmt.Sprintf("%s is full: of a capacity of %d it carries %s, and %s is a load of %d", m.Name, capacity, strings.Join(by, ", "), s.Name, s.Spec.Load)
}

// GiveWay says why the active has to let the service go although it is well: because of services of higher priority, or because what it requires is
// not here any more. to is where it goes; nil: nowhere, and then it stops until there is room.
func (v *View) GiveWay(s *Service) (to *Member, why string) {
	self := v.Member(v.Self)
	if self == nil || s.Paused || s.Lock.Held || s.Spec == nil || len(v.Others) == 0 {
		return nil, ""
	}
	if why = v.clash(s, self); why == "" {
		return nil, ""
	}
	return v.other(s.unstuck(), true), why
}

// clash is together for a service that is active on the node: what is worth the same was there as early, and stays.
func (v *View) clash(s *Service, m *Member) string {
	for _, name := range s.Spec.Requires {
		n := v.neighbour(name)
		switch {
		case n == nil || n.Stopped:
		case n.Spec.Run == "everywhere":
			if r, ok := n.Reports[m.No]; ok && r.Unhealthy {
				return fmt.Sprintf("%s, which %s requires, is not well on %s", name, s.Name, m.Name)
			}
		case n.Active != 0 && n.Active != m.No:
			return fmt.Sprintf("%s, which %s requires, is active on %s", name, s.Name, v.name(n.Active))
		}
	}
	for i := range v.Others {
		n := &v.Others[i]
		if n.Name != s.Name && n.on(m) && apart(s.Spec, n.Spec) && (n.Spec.Priority > s.Spec.Priority || n.Spec.Priority == s.Spec.Priority && n.Name < s.Name) {
			return fmt.Sprintf("%s is active on %s, and %s must be apart from it", n.Name, m.Name, s.Name)
		}
	}
	if s.Spec.Load == 0 {
		return ""
	}
	worth := *s.Spec
	worth.Priority++ // only what is worth more drives it away
	above := *s
	above.Spec = &worth
	return v.full(&above, m)
}
