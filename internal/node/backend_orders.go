package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/cluster/spec"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/failover/plan"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/pki"
)

func (b backend) order(o api.Order, cmd *state.Command) *state.Command {
	cmd.Who, cmd.Reason = o.Who, o.Reason
	return cmd
}

// Spec returns a version of the spec.
func (b backend) Spec(_ context.Context, n uint64) (*api.SpecText, error) {
	var out *api.SpecText
	_ = b.n.m.On(func(c *core.Core) {
		for _, v := range append(c.State().Specs, c.State().Spec) {
			if v.N != 0 && (v.N == n || (n == 0 && v.N == c.State().Spec.N)) {
				out = &api.SpecText{Version: v.N, At: stamp(v.At), By: v.Who, Reason: v.Reason, Text: string(v.Source)}
			}
		}
	})
	if out == nil {
		return nil, api.Errorf(api.CodeNotFound, "there is no spec version %d: hanode spec log lists those that are kept", n)
	}
	return out, nil
}

func (b backend) SpecLog(context.Context) ([]api.SpecChange, error) {
	var out []api.SpecChange
	_ = b.n.m.On(func(c *core.Core) {
		var before *cluster.Spec
		for _, v := range append(append([]state.SpecVersion(nil), c.State().Specs...), c.State().Spec) {
			if v.N == 0 {
				continue
			}
			now, err := cluster.DecodeSpec(v.Compiled)
			if err != nil {
				continue
			}
			ch := api.SpecChange{Version: v.N, At: stamp(v.At), By: v.Who, Reason: v.Reason}
			if before != nil {
				for _, d := range spec.Diff(before, now) {
					ch.Summary += fmt.Sprintf("%s; ", d)
				}
			}
			before = now
			out = append(out, ch)
		}
	})
	return out, nil
}

// Wait returns when the service has reached the state.
func (b backend) Wait(ctx context.Context, r api.WaitRequest, p api.Progress) (*api.Outcome, error) {
	if r.For != api.WaitActive && r.For != api.WaitInSync && r.For != api.WaitProtected {
		return nil, api.Errorf(api.CodeUsage, "wait for %q: choose %s, %s or %s", r.For, api.WaitActive, api.WaitInSync, api.WaitProtected)
	}
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	last := ""
	for {
		st, err := b.Status(ctx, api.StatusQuery{})
		if err != nil {
			return nil, err
		}
		sv, ok := find(st, r.Service)
		if !ok && ctx.Err() == nil {
			var any bool
			_ = b.n.m.On(func(c *core.Core) { any = c.State().Spec.N > 0 })
			if any {
				return nil, noService(r.Service)
			}
		}
		done := false
		switch r.For {
		case api.WaitActive:
			done = sv.State == api.StateActive
		case api.WaitProtected, api.WaitInSync:
			done = sv.Protection == api.Protected && sv.State == api.StateActive
		}
		if done {
			return &api.Outcome{Text: fmt.Sprintf("%s is %s on %s", r.Service, r.For, sv.Active), Service: r.Service, To: sv.Active, Epoch: sv.Epoch}, nil
		}
		if now := fmt.Sprintf("%s is %s, %s %v", r.Service, sv.State, sv.Protection, sv.ProtectionReasons); now != last && p != nil {
			p(api.Step{Text: now, State: "waiting"})
			last = now
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, api.Errorf(api.CodeTimeout, "%s; %s", last, sv.Note)
		}
	}
}

func find(st *api.Status, name string) (api.Service, bool) {
	for _, s := range st.Services {
		if s.Name == name {
			return s, true
		}
	}
	return api.Service{}, false
}

// move is a planned move: it is carried out by the active.
func (b backend) move(ctx context.Context, kind string, r api.MoveRequest, p api.Progress) (*api.Outcome, error) {
	began := time.Now()
	if err := b.rests(r.Order); err != nil {
		return nil, err
	}
	var no cluster.ServiceNo
	var epoch cluster.Epoch
	var holder *state.Member
	var refusal *plan.Refusal
	var to *plan.Member
	var nodes []string
	here := false
	err := b.n.m.On(func(c *core.Core) {
		s := c.State().ServiceByName(r.Service)
		if s == nil {
			return
		}
		no, epoch = s.No, s.Lock.Epoch
		if sp := c.State().Compiled().Service(s.Name); sp != nil {
			nodes = sp.Nodes
		}
		if m := c.State().Member(s.Lock.Holder.Node); m != nil {
			h := *m
			holder, here = &h, m.No == c.Self()
		}
		view := c.View(b.n.m.Now(), time.Now().UnixMilli())
		view.Self = s.Lock.Holder.Node
		if look, ok := c.Look(view, no); ok {
			to, refusal = view.Switchover(look.Facts, r.To)
		}
	})
	switch {
	case err != nil:
		return nil, api.Errorf(api.CodeFailed, "%v", err)
	case no == 0:
		return nil, noService(r.Service)
	case r.To != "" && !slices.Contains(nodes, r.To):
		return nil, api.Errorf(api.CodeNotFound, "%s is not a node of %s: choose one of %s", r.To, r.Service, strings.Join(nodes, ", "))
	case refusal != nil:
		return nil, api.Refusal(refusal.What, refusal.Why, refusal.Do)
	case holder == nil || to == nil:
		return nil, api.Refusal(kind+" of "+r.Service+" refused", "nobody is active", "hanode explain "+r.Service)
	}
	if r.Plan {
		return &api.Outcome{Service: r.Service, Plan: b.based(movePlan(kind, r.Service, holder.Name, to.Name))}, nil
	}
	if !here {
		if r.Via != "" {
			return nil, api.Errorf(api.CodeFailed, "%s is not active on %s: hanode status", r.Service, b.n.dir.Identity.Name)
		}
		return b.passOn(ctx, holder, kind, r, p)
	}
	if p != nil {
		p(api.Step{N: 1, Of: 2, Text: "making " + r.Service + " ready to move from " + holder.Name + " to " + to.Name})
	}
	d, err := b.n.orders.give(ctx, b.n.m, &core.Order{Service: no, To: to.Name, What: kind, By: r.Who, Reason: r.Reason})
	if err != nil {
		return nil, moveError(err, r.Service)
	}
	return b.moved(ctx, r.Service, kind, epoch, d, began)
}

func moveError(err error, service string) error {
	var ref *plan.Refusal
	switch {
	case errors.As(err, &ref):
		return api.Refusal(ref.What, ref.Why, ref.Do)
	case errors.Is(err, context.DeadlineExceeded):
		return api.Errorf(api.CodeTimeout, "the move of %s is not done yet; what has become of it: hanode explain %s", service, service)
	}
	return api.Errorf(api.CodeFailed, "%v; see hanode explain %s", err, service)
}

func movePlan(kind, service, from, to string) *api.Plan {
	return &api.Plan{Order: fmt.Sprintf("%s of %s, %s to %s", kind, service, from, to), Steps: []api.Step{
		{N: 1, Of: 4, Text: "check that " + to + " can take it", State: ""}, {N: 2, Of: 4, Text: "shut " + service + " on " + from},
		{N: 3, Of: 4, Text: "grant it to " + to}, {N: 4, Of: 4, Text: "open it on " + to}}, ExpectedMs: api.Ms(30 * time.Millisecond), OutageMs: api.Ms(30 * time.Millisecond),
		Risk: api.Risk{Text: "nothing"}}
}

// moved waits until the new active serves and its time line is in the log.
func (b backend) moved(ctx context.Context, service, kind string, before cluster.Epoch, d core.OrderDone, began time.Time) (*api.Outcome, error) {
	out := &api.Outcome{Service: service, Epoch: uint64(d.Epoch), OutageMs: api.Ms(-time.Millisecond), ReadyMs: api.Ms(-time.Millisecond)}
	wait, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	b.n.news.wait(wait, func() bool {
		ok := false
		_ = b.n.m.On(func(c *core.Core) {
			s := c.State().ServiceByName(service)
			if s == nil || s.Lock.Epoch <= before {
				return
			}
			if dec := c.State().Decision(s.LastMove); dec != nil {
				out.Decision, out.From, out.To, out.Epoch = decisionID(dec.ID), dec.From, dec.To, uint64(dec.EpochTo)
				out.OutageMs, out.ReadyMs = millisOr(dec.OutageMs), millisOr(dec.ReadyMs)
				ok = dec.OutageMs != 0 || dec.Outcome != ""
			}
		})
		return ok
	})
	out.TookMs = api.Ms(time.Since(began))
	out.Text = fmt.Sprintf("%s is active on %s, epoch %d", service, out.To, out.Epoch)
	out.Next = []string{"hanode explain " + service}
	return out, nil
}

// passOn asks the active to carry an order out.
func (b backend) passOn(ctx context.Context, m *state.Member, kind string, r api.MoveRequest, p api.Progress) (*api.Outcome, error) {
	c := api.Forward(m.Name, func(ctx context.Context) (net.Conn, error) { return b.n.m.Dial(ctx, m.ID, link.API) })
	switch kind {
	case "failover":
		return c.Failover(ctx, r, p)
	case "failback":
		return c.Failback(ctx, r, p)
	}
	return c.Switchover(ctx, r, p)
}

func (b backend) Switchover(ctx context.Context, r api.MoveRequest, p api.Progress) (*api.Outcome, error) {
	return b.move(ctx, "switchover", r, p)
}

// Failover never loses: a clean move where the active can be asked; otherwise the group takes over by itself within the in-sync set.
func (b backend) Failover(ctx context.Context, r api.MoveRequest, p api.Progress) (*api.Outcome, error) {
	if err := b.rests(r.Order); err != nil {
		return nil, err
	}
	if out, lost, err := b.failoverLost(ctx, r, p); err != nil || lost {
		return out, err
	}
	return b.move(ctx, "failover", r, p)
}

// Failback returns a service, or all, to the first node of its list.
func (b backend) Failback(ctx context.Context, r api.MoveRequest, p api.Progress) (*api.Outcome, error) {
	var names []string
	var prefer map[string]string
	_ = b.n.m.On(func(c *core.Core) {
		prefer = map[string]string{}
		for i := range c.State().Services {
			s := &c.State().Services[i]
			if sp := c.State().Compiled().Service(s.Name); sp != nil && (r.All || s.Name == r.Service) && len(sp.Nodes) > 0 && sp.Run != "everywhere" {
				if r.All && c.State().MemberName(s.Lock.Holder.Node) == sp.Nodes[0] {
					continue
				}
				names, prefer[s.Name] = append(names, s.Name), sp.Nodes[0]
			}
		}
	})
	if len(names) == 0 && !r.All {
		return nil, noService(r.Service)
	}
	out := &api.Outcome{Text: "every service is on its preferred node"}
	for _, name := range names {
		one := r
		one.Service, one.All, one.To = name, false, prefer[name]
		o, err := b.move(ctx, "failback", one, p)
		if err != nil {
			return nil, err
		}
		o.Decisions = append(out.Decisions, o.Decision)
		out = o
	}
	return out, nil
}

func (b backend) desire(ctx context.Context, o api.Order, service, want string, until int64) (*api.Outcome, error) {
	if want == "" {
		return nil, api.Errorf(api.CodeUsage, "service %s: choose start, stop, restart or clear", service)
	}
	if err := b.rests(o); err != nil {
		return nil, err
	}
	from, known := "", false
	_ = b.n.m.On(func(c *core.Core) {
		if s := c.State().ServiceByName(service); s != nil {
			from, known = c.State().MemberName(s.Lock.Holder.Node), true
		}
	})
	if !known {
		return nil, noService(service)
	}
	if o.Plan {
		return &api.Outcome{Service: service, Plan: b.based(&api.Plan{Order: want + " " + service, Steps: []api.Step{{N: 1, Of: 1, Text: want + " " + service}}, Risk: api.Risk{Text: "nothing"}})}, nil
	}
	cmd := b.order(o, &state.Command{Desired: &state.Desired{Service: service, Want: want, Until: until},
		Decision: &state.Decision{Kind: want, Service: service, From: from, OrderedBy: o.Who, Reason: o.Reason, Outcome: "done",
			Sentence: fmt.Sprintf("%s: %s, ordered by %s", service, want, o.Who)}})
	out, err := b.commit(ctx, cmd)
	if err != nil {
		return nil, err
	}
	return &api.Outcome{Service: service, Decision: decisionID(out.Decision), Text: fmt.Sprintf("%s: %s is ordered", service, want), Next: []string{"hanode status"}}, nil
}

// defaultPause is how long a pause lasts that nobody ends.
const defaultPause = time.Hour

func (b backend) Pause(ctx context.Context, r api.PauseRequest, _ api.Progress) (*api.Outcome, error) {
	d := r.ForMs.D()
	if d <= 0 {
		d = defaultPause
	}
	return b.each(ctx, r, "pause", time.Now().Add(d).UnixMilli())
}

func (b backend) Resume(ctx context.Context, r api.PauseRequest, _ api.Progress) (*api.Outcome, error) {
	return b.each(ctx, r, "resume", 0)
}

func (b backend) each(ctx context.Context, r api.PauseRequest, want string, until int64) (*api.Outcome, error) {
	names := []string{r.Service}
	if r.All {
		names = nil
		_ = b.n.m.On(func(c *core.Core) {
			for i := range c.State().Services {
				names = append(names, c.State().Services[i].Name)
			}
		})
	}
	out := &api.Outcome{Text: "there is no service"}
	for _, name := range names {
		o, err := b.desire(ctx, r.Order, name, want, until)
		if err != nil {
			return nil, err
		}
		o.Decisions = append(out.Decisions, o.Decision)
		out = o
	}
	return out, nil
}

func (b backend) AckAlarm(ctx context.Context, r api.AckRequest, _ api.Progress) (*api.Outcome, error) {
	if !slices.ContainsFunc(b.n.standing(), func(a alarm) bool { return a.Code == r.Code && (r.Object == "" || r.Object == a.Object) }) {
		return nil, api.Errorf(api.CodeNotFound, "there is no alarm %s on %s: hanode alarm list", r.Code, b.n.dir.Identity.Name)
	}
	o, err := b.commit(ctx, b.order(r.Order, &state.Command{AckAlarm: &state.AlarmAck{Code: r.Code, Object: r.Object, Who: r.Who, At: time.Now().UnixMilli()},
		Decision: &state.Decision{Kind: "ack", OrderedBy: r.Who, Reason: r.Reason, Outcome: "done", Sentence: fmt.Sprintf("%s has seen the alarm %s", r.Who, r.Code)}}))
	if err != nil {
		return nil, err
	}
	return &api.Outcome{Decision: decisionID(o.Decision), Text: "alarm " + r.Code + " is acknowledged"}, nil
}

func (b backend) TokenCreate(ctx context.Context, r api.TokenRequest) (*api.Token, error) {
	role, err := pki.ParseRole(r.Role)
	if err != nil {
		return nil, api.Errorf(api.CodeUsage, "%v", err)
	}
	ttl := r.TTLMs.D()
	if ttl == 0 {
		ttl = 10 * time.Minute
	}
	t, err := b.n.m.MakeToken(ctx, role, r.Replace, r.Replace, ttl, r.Who)
	if err != nil {
		return nil, api.Errorf(api.CodeFailed, "%v", err)
	}
	join := "hanode join"
	if role == cluster.RoleWitness {
		join = "witness join"
	}
	return &api.Token{Token: t.String(), Role: r.Role, Expires: api.At(t.Expires), Replace: r.Replace, Next: []string{join + " --token TOKEN --name NAME --advertise IP"}}, nil
}
