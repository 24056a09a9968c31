package node

import (
	"context"
	"fmt"
	"strings"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/spec"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/failover/plan"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
)

func (b backend) runsEverywhere(service string) (yes bool) {
	_ = b.n.m.On(func(c *core.Core) {
		s := c.State().Compiled().Service(service)
		yes = s != nil && s.Run == "everywhere"
	})
	return yes
}

// serviceEverywhere tells of a service that each node of its list runs for itself.
func (b backend) serviceEverywhere(c *core.Core, view *plan.View, s *state.Service, f *plan.Service, out *api.Service) {
	var well, ill []string
	for _, name := range f.Spec.Nodes {
		m := c.State().MemberByName(name)
		switch {
		case m == nil:
			ill = append(ill, name+" has not joined")
		case view.Silent(m.No):
			ill = append(ill, name+" is not heard")
		case f.Reports[m.No].Ready && !f.Reports[m.No].Unhealthy:
			well = append(well, name)
		default:
			ill = append(ill, name+" is not well")
		}
	}
	out.Since = api.Time{}
	b.operator(out, s)
	switch {
	case s.Stopped:
		out.State, out.Protection, out.IfActiveFails = api.StateStopped, api.Protected, "-"
		return
	case len(well) == 0:
		out.State, out.Protection, out.IfActiveFails = api.StateFailed, api.Down, api.DownUntil(strings.Join(f.Spec.Nodes, " or "))
	case len(ill) == 0 && len(well) > 1:
		out.State, out.Protection, out.IfActiveFails = api.StateActive, api.Protected, api.OthersGoOn
	default:
		out.State, out.Protection, out.IfActiveFails = api.StateActive, api.Degraded, api.OthersGoOn
		if len(well) == 1 {
			out.IfActiveFails = api.DownUntil(well[0])
		}
		out.ProtectionReasons = append(out.ProtectionReasons, api.ReasonNoStandby)
	}
	if len(ill) > 0 {
		out.Note = strings.Join(ill, "; ")
	}
}

// restartEverywhere restarts the processes node by node: the next one begins when the one before is well again.
func (b backend) restartEverywhere(ctx context.Context, r api.ServiceRequest, no cluster.ServiceNo, p api.Progress) (*api.Outcome, error) {
	self := b.n.dir.Identity.Name
	if s := b.n.byNo(no); s != nil {
		before := s.restarted.Load()
		if p != nil {
			p(api.Step{Text: "restarting " + r.Service + " on " + self, State: "running"})
		}
		s.post(orderRestart{"ordered by " + r.Who})
		if err := b.until(ctx, nil, func(*api.Status) (bool, string) {
			s.mu.Lock()
			up := s.health.up || s.health.unhealthy != ""
			s.mu.Unlock()
			return s.restarted.Load() > before && up, r.Service + " is not well on " + self + " yet"
		}); err != nil {
			return nil, err
		}
		if why := s.ill(); why != "" {
			return nil, &api.Error{Code: api.CodeFailed, What: r.Service + " does not run on " + self + " after the restart: the other nodes were left alone", Why: why, Do: "hanode status"}
		}
	}
	if r.Via != "" {
		return &api.Outcome{Service: r.Service, To: self, Text: "restarted on " + self}, nil
	}
	for _, m := range b.others() {
		cl := b.forward(&m)
		_, err := cl.Service(ctx, r, p)
		cl.Close()
		if err != nil {
			return nil, err
		}
	}
	return b.one(ctx, api.Order{Who: r.Who, Reason: r.Reason}, "restart", fmt.Sprintf("%s was restarted node by node, ordered by %s", r.Service, r.Who), r.Service+" was restarted on all nodes, one after the other", &state.Command{})
}

// mixed refuses a service whose addresses are announced at different moments: it has one moment.
func mixed(s *cluster.Spec) []spec.Problem {
	var out []spec.Problem
	for i := range s.Services {
		v := s.Services[i].VIPs
		for k := range v {
			if v[k].Announce != v[0].Announce {
				out = append(out, spec.Problem{Service: s.Services[i].Name, Where: "vip " + v[k].Prefix.String(), What: fmt.Sprintf("announce = %q, and the first address of the service says %q", v[k].Announce, v[0].Announce),
					Remedy: "give all addresses of a service the same announce"})
				break
			}
		}
	}
	return out
}
