package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
)

func noService(name string) error {
	return api.Errorf(api.CodeNotFound, "there is no service %s: hanode status lists them", name)
}

// base numbers the state that a plan rests on: it grows with everything that happens to members, services and spec, and with nothing else.
func (b backend) base() uint64 {
	base := uint64(0)
	_ = b.n.m.On(func(c *core.Core) { base = c.State().LastEvent + 1 })
	return base
}

func (b backend) based(p *api.Plan) *api.Plan {
	p.Base = b.base()
	return p
}

// rests refuses an order whose plan rests on a state that is no longer the present one.
func (b backend) rests(o api.Order) error {
	if now := b.base(); o.Base != 0 && o.Base != now && !o.Plan {
		return &api.Error{Code: api.CodeMoved, What: "order refused", Why: fmt.Sprintf("it rests on the state %d, and by now it is %d", o.Base, now), Do: "look at the plan again: --plan"}
	}
	return nil
}

// Service starts, stops, restarts or clears a service, and returns when that is done.
func (b backend) Service(ctx context.Context, r api.ServiceRequest, p api.Progress) (*api.Outcome, error) {
	want := map[string]string{api.ActionStart: "run", api.ActionStop: "stop", api.ActionRestart: "restart", api.ActionClear: "clear"}[r.Action]
	if r.Action == api.ActionRestart && !r.Plan {
		return b.restart(ctx, r, p)
	}
	out, err := b.desire(ctx, r.Order, r.Service, want, 0)
	if err != nil || r.Plan {
		return out, err
	}
	switch r.Action {
	case api.ActionStop:
		err = b.untilService(ctx, r.Service, p, func(s *api.Service) bool { return s.State == api.StateStopped })
		out.Text, out.Next = r.Service+" is stopped on all nodes", []string{"hanode service start " + r.Service}
	case api.ActionStart:
		var on string
		err = b.untilService(ctx, r.Service, p, func(s *api.Service) bool { on = s.Active; return s.State == api.StateActive })
		out.Text, out.To = fmt.Sprintf("%s is active on %s", r.Service, on), on
	default:
		out.Text = r.Service + " is no longer held; its failures are forgotten"
	}
	return out, notYet(err, out.Decision)
}

// restart is carried out by the active, which alone knows when its processes run again.
func (b backend) restart(ctx context.Context, r api.ServiceRequest, p api.Progress) (*api.Outcome, error) {
	var id cluster.NodeID
	var name string
	var no cluster.ServiceNo
	here, alive := false, false
	_ = b.n.m.On(func(c *core.Core) {
		s := c.State().ServiceByName(r.Service)
		if s == nil {
			return
		}
		no = s.No
		if m := c.State().Member(s.Lock.Holder.Node); m != nil && !s.Stopped {
			id, name, here, alive = m.ID, m.Name, m.No == c.Self(), m.No == c.Self() || c.Alive(m.No)
		}
	})
	switch {
	case no == 0:
		return nil, noService(r.Service)
	case b.runsEverywhere(r.Service):
		return b.restartEverywhere(ctx, r, no, p)
	case !alive:
		return nil, api.Refusal("restart of "+r.Service+" refused", "nobody is active, or the active is not heard", "hanode explain "+r.Service)
	case !here && r.Via == "":
		c := api.Forward(name, func(ctx context.Context) (net.Conn, error) { return b.n.m.Dial(ctx, id, link.API) })
		defer c.Close()
		return c.Service(ctx, r, p)
	}
	s := b.n.byNo(no)
	if s == nil {
		return nil, api.Errorf(api.CodeFailed, "%s does not run here: hanode status", r.Service)
	}
	before := s.restarted.Load()
	out, err := b.desire(ctx, r.Order, r.Service, "restart", 0)
	if err != nil {
		return nil, err
	}
	self := b.n.dir.Identity.Name
	err = b.untilService(ctx, r.Service, p, func(st *api.Service) bool {
		return st.State == api.StateActive && (s.restarted.Load() > before || st.Active != self)
	})
	out.Text, out.To = fmt.Sprintf("the processes of %s were restarted on %s", r.Service, self), self
	if why := s.ill(); err == nil && why != "" {
		err = &api.Error{Code: api.CodeFailed, What: r.Service + " does not run after the restart", Why: why, Do: "hanode explain " + r.Service}
	}
	return out, notYet(err, out.Decision)
}

// ill is why the service does not run here as it should; "": it does.
func (s *service) ill() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.health.unhealthy
}

// notYet says of an order that was given, and is not carried out yet, how it is called.
func notYet(err error, decision string) error {
	var e *api.Error
	if errors.As(err, &e) {
		e.Decision = decision
	}
	return err
}

// untilService waits until a service is as it should be, and tells what it is meanwhile.
func (b backend) untilService(ctx context.Context, name string, p api.Progress, done func(*api.Service) bool) error {
	return b.until(ctx, p, func(st *api.Status) (bool, string) {
		s := st.Service(name)
		if s == nil {
			return true, "" // it was deleted meanwhile
		}
		now := name + " is " + s.State
		if s.Note != "" {
			now += ": " + s.Note
		}
		return done(s), now
	})
}

// until waits for a state; look answers whether it is there, and what there is in words.
func (b backend) until(ctx context.Context, p api.Progress, look func(*api.Status) (bool, string)) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	last := ""
	for {
		st, err := b.Status(ctx, api.StatusQuery{Local: true})
		if err != nil {
			return err
		}
		done, now := look(st)
		if done {
			return nil
		}
		if now != last && p != nil {
			p(api.Step{Text: now, State: "waiting"})
		}
		last = now
		select {
		case <-t.C:
		case <-ctx.Done():
			return &api.Error{Code: api.CodeTimeout, What: "ordered, and not done yet", Why: last, Do: "it goes on: hanode status, hanode events"}
		}
	}
}

// Drain moves every service off a member, and returns when none is active there.
func (b backend) Drain(ctx context.Context, r api.MemberRequest, p api.Progress) (*api.Outcome, error) {
	stuck, err := b.stuck(r.Name)
	if err != nil {
		return nil, err
	}
	if len(stuck) > 0 && !r.AllowDown && !r.Plan {
		return nil, api.Refusal("drain of "+r.Name+" refused", "no other node can take "+strings.Join(stuck, ", "), "hanode status; or let it stop there: hanode member drain --allow-down "+r.Name)
	}
	out, err := b.one(ctx, r.Order, "drain", r.Name+" is drained, ordered by "+r.Who, r.Name+" carries no service, and takes none until hanode member undrain "+r.Name,
		&state.Command{MemberSet: &state.MemberSet{Name: r.Name, Drain: true}})
	if err != nil || r.Plan {
		return out, err
	}
	for _, name := range stuck {
		if _, err := b.desire(ctx, api.Order{Who: r.Who, Reason: r.Reason, Via: r.Via}, name, "stop", 0); err != nil {
			return nil, err
		}
	}
	err = b.until(ctx, p, func(st *api.Status) (bool, string) {
		m := st.Member(r.Name)
		if m == nil || m.State == api.MemberSilent || m.State == api.MemberDrained {
			return true, ""
		}
		var left []string
		for i := range st.Services {
			if st.Services[i].Active == r.Name {
				left = append(left, st.Services[i].Name)
			}
		}
		return false, strings.Join(left, ", ") + " is still active on " + r.Name
	})
	return out, notYet(err, out.Decision)
}

// stuck names the services that are active on a member and that no other node can take now.
func (b backend) stuck(name string) ([]string, error) {
	var out []string
	known := false
	err := b.n.m.On(func(c *core.Core) {
		m := c.State().MemberByName(name)
		if known = m != nil; !known {
			return
		}
		view := c.View(b.n.m.Now(), time.Now().UnixMilli())
		view.Self = m.No
		for i := range c.State().Services {
			s := &c.State().Services[i]
			if s.Lock.Holder.Node != m.No || s.Stopped {
				continue
			}
			look, ok := c.Look(view, s.No)
			if !ok || look.Facts.Spec == nil {
				continue
			}
			if _, refusal := view.Switchover(look.Facts, ""); refusal != nil {
				out = append(out, s.Name)
			}
		}
	})
	if err == nil && !known {
		err = noMember(name)
	}
	return out, err
}

func noMember(name string) error {
	return api.Errorf(api.CodeNotFound, "there is no member %s: hanode member list", name)
}
