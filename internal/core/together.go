package core

import (
	"maps"
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/plan"
)

// related says whether any service of the spec says something of another one, or of its load: only then is it worth the time to tell the plan of all.
func (c *Core) related() bool {
	s := c.st.Compiled()
	if s == nil || s == c.relatedOf {
		return s != nil && c.relatedIs
	}
	c.relatedOf, c.relatedIs = s, false
	for i := range s.Services {
		v := &s.Services[i]
		c.relatedIs = c.relatedIs || len(v.Requires) > 0 || len(v.Apart) > 0 || v.Load > 0
	}
	return c.relatedIs
}

// neighbours tells the plan of all services.
func (c *Core) neighbours(view *plan.View) {
	view.Others, view.Capacity = nil, nil
	if !c.related() {
		return
	}
	for _, v := range c.svcs {
		f := c.facts(v)
		if f.Spec == nil {
			continue
		}
		n := plan.Neighbour{Name: f.Name, Spec: f.Spec, Stopped: f.Stopped}
		if f.Spec.Run == "everywhere" {
			n.Reports = maps.Clone(f.Reports) // facts uses its memory again
			view.Others = append(view.Others, n)
			continue
		}
		h := f.Lock.Holder
		m := view.Member(h.Node)
		rep := f.Reports[h.Node]
		if m != nil && m.Inc == h.Inc && !f.Released && !view.Silent(h.Node) && (rep.Serving || rep.Epoch < f.Lock.Epoch) {
			n.Active = h.Node
		}
		if v.move != nil {
			n.Coming = v.move.coord.To.Node
		}
		view.Others = append(view.Others, n)
	}
	spec := c.st.Compiled()
	for i := range view.Members {
		if node, ok := spec.Nodes[view.Members[i].Name]; ok {
			if view.Capacity == nil {
				view.Capacity = map[cluster.MemberNo]int{}
			}
			view.Capacity[view.Members[i].No] = node.Capacity
		}
	}
}

// inOrder are the services in the order in which the leader decides: those of the highest priority first, so that they get what room there is.
func (c *Core) inOrder() []*service {
	if !c.related() {
		return c.svcs
	}
	out := slices.Clone(c.svcs)
	worth := func(v *service) int {
		if s := c.spec(v); s != nil {
			return s.Priority
		}
		return 0
	}
	slices.SortStableFunc(out, func(a, b *service) int { return worth(b) - worth(a) })
	return out
}

// clashLasts is how long a service must be in the way of others before it goes: a beat or two may be on their way.
const clashLasts = 500 * time.Millisecond

// giveWay lets a service go that may not stay where it is because of the others.
func (c *Core) giveWay(view *plan.View, v *service) bool {
	to, why := view.GiveWay(c.facts(v))
	if why == "" {
		v.clash = 0
		return false
	}
	if v.clash == 0 {
		v.clash = c.now
	}
	if c.now.Sub(v.clash) < clashLasts {
		return false
	}
	v.clash = 0
	o := &Order{Service: v.no, What: "stop", By: "policy", Reason: why}
	if to != nil {
		o.to, o.To, o.What = to.No, to.Name, "failover"
	}
	c.moveAway(v, o)
	return true
}

// coming notes a move that has just begun, for the decisions on the others.
func coming(view *plan.View, name string, v *service) {
	for i := range view.Others {
		if n := &view.Others[i]; n.Name == name && v.move != nil {
			n.Coming = v.move.coord.To.Node
		}
	}
}
