package apitest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hanode/hanode/internal/api"
)

func ms(n int) api.Millis { return api.Ms(time.Duration(n) * time.Millisecond) }

func (f *Fake) Apply(ctx context.Context, r api.ApplyRequest, p api.Progress) (*api.Outcome, error) {
	if len(f.Broken) > 0 {
		return nil, &api.Error{Code: api.CodeInvalid, What: r.File + " is not valid", Do: "mend it, then hanode spec check " + r.File, Problems: f.Broken}
	}
	plan := &api.Plan{Changes: []api.SpecDelta{{Object: "service db, check sql", Key: "every", From: "1s", To: "2s", Class: api.ClassLive}}}
	if err := f.mayApply(r); err != nil {
		return nil, err
	}
	return f.order(ctx, "apply of "+r.File, r.Order, plan, p, func(*api.Decision) (*api.Outcome, error) {
		v := uint64(len(f.specs) + 1)
		f.specs = append(f.specs, api.SpecText{Version: v, At: api.At(f.now), By: r.Who, Reason: r.Reason, Text: r.Text})
		f.log = append(f.log, api.SpecChange{Version: v, At: api.At(f.now), By: r.Who, Reason: r.Reason, Summary: "db: changed"})
		f.state.Cluster.SpecVersion = v
		return &api.Outcome{Spec: v, OutageMs: -1, Text: fmt.Sprintf("spec version %d is in force", v)}, nil
	})
}

func (f *Fake) mayApply(r api.ApplyRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if v := uint64(len(f.specs)); r.SpecVersion != 0 && r.SpecVersion != v {
		return &api.Error{Code: api.CodeMoved, What: "apply refused", Why: fmt.Sprintf("the spec is version %d, not %d, on which the file is based", v, r.SpecVersion),
			Do: fmt.Sprintf("hanode spec diff %d", r.SpecVersion)}
	}
	if !strings.Contains(r.Text, `service "db"`) && !slices.Contains(r.Remove, "db") {
		return api.Refusal("apply refused", "the file has no service db, which exists", "add --remove db if it shall go")
	}
	return nil
}

func (f *Fake) service(name string) (*api.Service, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.state.Service(name); s != nil {
		c := *s
		return &c, nil
	}
	return nil, noService(name)
}

// move is a move of any kind; lossless says that the target must be in sync.
func (f *Fake) move(ctx context.Context, kind, name, to string, o api.Order, lossless bool, p api.Progress) (*api.Outcome, error) {
	s, err := f.service(name)
	if err != nil {
		return nil, err
	}
	if to == "" {
		to = s.Standby
	}
	if !slices.Contains(s.Nodes, to) {
		return nil, notFound(fmt.Sprintf("%s is not a node of %s", to, name), "choose one of "+strings.Join(s.Nodes, ", "))
	}
	if to == s.Active {
		return nil, api.Refusal(fmt.Sprintf("%s to %s refused", kind, to), to+" is active already", "hanode status")
	}
	if lossless && !slices.Contains(s.InSync, to) {
		return nil, api.Refusal(fmt.Sprintf("%s to %s refused", kind, to), "its copy of the volume is 312 MiB behind",
			fmt.Sprintf("wait: hanode wait %s --for in-sync", name))
	}
	plan := &api.Plan{ExpectedMs: ms(4200), OutageMs: ms(30), Steps: []api.Step{
		{N: 1, Text: "hold new writes", Who: []string{s.Active}, TookMs: ms(2)},
		{N: 2, Text: "the standby confirms everything", Who: []string{to}, TookMs: ms(8)},
		{N: 3, Text: "grant of the next epoch", Who: []string{"w"}, TookMs: ms(6)},
		{N: 4, Text: "address announced, processes ready", Who: []string{to}, TookMs: ms(4184)},
	}}
	if !lossless {
		plan.Risk = f.Risk
	}
	return f.order(ctx, fmt.Sprintf("%s of %s, %s to %s", kind, name, s.Active, to), o, plan, p, func(d *api.Decision) (*api.Outcome, error) {
		s := f.state.Service(name)
		d.Kind, d.From, d.To, d.EpochFrom, d.EpochTo = kind, s.Active, to, s.Epoch, s.Epoch+1
		d.Sentence = fmt.Sprintf("%s took over because %s ordered it", to, o.Who)
		s.Active, s.Standby, s.Epoch = to, s.Active, s.Epoch+1
		s.LastMove = &api.LastMove{Decision: d.ID, Kind: kind, From: d.From, To: to, At: d.At, OutageMs: ms(28), ReadyMs: ms(4100), ReadyBy: "postgres"}
		s.IfActiveFails = api.TakesOver(s.Standby)
		return &api.Outcome{Service: name, From: d.From, To: to, Epoch: s.Epoch, OutageMs: ms(28), ReadyMs: ms(4100), TookMs: ms(4130),
			Text: fmt.Sprintf("%s is active on %s, epoch %d", name, to, s.Epoch), Next: []string{"hanode explain " + d.ID}}, nil
	})
}

func (f *Fake) Switchover(ctx context.Context, r api.MoveRequest, p api.Progress) (*api.Outcome, error) {
	return f.move(ctx, "switchover", r.Service, r.To, r.Order, true, p)
}

func (f *Fake) Failover(ctx context.Context, r api.MoveRequest, p api.Progress) (*api.Outcome, error) {
	return f.move(ctx, "failover", r.Service, r.To, r.Order, true, p)
}

func (f *Fake) Failback(ctx context.Context, r api.MoveRequest, p api.Progress) (*api.Outcome, error) {
	name := r.Service
	if r.All {
		name = "db"
	}
	s, err := f.service(name)
	if err != nil {
		return nil, err
	}
	return f.move(ctx, "failback", name, s.Nodes[0], r.Order, true, p)
}

func (f *Fake) Force(ctx context.Context, r api.ForceRequest, p api.Progress) (*api.Outcome, error) {
	if !r.Plan && !r.AcceptLoss {
		return nil, api.Refusal("force refused", "it may lose acknowledged writes", "add --accept-loss if that is worth it")
	}
	if !r.Plan && r.Loses.Bytes < f.Risk.Bytes {
		return nil, &api.Error{Code: api.CodeMoved, What: "force refused", Why: "more would be lost now than was accepted", Do: "look at the plan again"}
	}
	return f.move(ctx, "force", r.Service, r.To, r.Order, false, p)
}

func (f *Fake) Recover(ctx context.Context, r api.RecoverRequest, p api.Progress) (*api.Outcome, error) {
	f.mu.Lock()
	quorum := f.state.Cluster.Quorum
	f.mu.Unlock()
	if quorum {
		return nil, api.Refusal("recover refused", "there is a quorum", "hanode status")
	}
	plan := &api.Plan{VerifiedOff: []string{"a", "w"}, Steps: []api.Step{{N: 1, Text: "fork"}}}
	return f.order(ctx, "recover "+r.Keep, r.Order, plan, p, func(*api.Decision) (*api.Outcome, error) {
		return &api.Outcome{Text: "forked", OutageMs: -1, Next: []string{"hanode token create"}}, nil
	})
}

// simple is an order without a plan worth mentioning.
func (f *Fake) simple(ctx context.Context, what string, o api.Order, p api.Progress, do func() string) (*api.Outcome, error) {
	plan := &api.Plan{Steps: []api.Step{{N: 1, Text: what, TookMs: ms(5)}}}
	return f.order(ctx, what, o, plan, p, func(*api.Decision) (*api.Outcome, error) {
		return &api.Outcome{Text: do(), OutageMs: -1}, nil
	})
}

func (f *Fake) Service(ctx context.Context, r api.ServiceRequest, p api.Progress) (*api.Outcome, error) {
	if _, err := f.service(r.Service); err != nil {
		return nil, err
	}
	return f.simple(ctx, "service "+r.Action+" "+r.Service, r.Order, p, func() string {
		s := f.state.Service(r.Service)
		s.State = api.StateActive
		if r.Action == api.ActionStop {
			s.State = api.StateStopped
		}
		return r.Service + " is " + s.State
	})
}

func (f *Fake) Pause(ctx context.Context, r api.PauseRequest, p api.Progress) (*api.Outcome, error) {
	return f.pause(ctx, "pause", r, p, func(s *api.Service) string {
		s.PausedUntil = api.At(f.now.Add(r.ForMs.D()))
		return s.Name + " is paused until " + s.PausedUntil.Format("15:04:05")
	})
}

func (f *Fake) Resume(ctx context.Context, r api.PauseRequest, p api.Progress) (*api.Outcome, error) {
	return f.pause(ctx, "resume", r, p, func(s *api.Service) string {
		s.PausedUntil = api.Time{}
		return s.Name + " is no longer paused"
	})
}

func (f *Fake) pause(ctx context.Context, what string, r api.PauseRequest, p api.Progress, do func(*api.Service) string) (*api.Outcome, error) {
	name := r.Service
	if r.All {
		name = "db"
	}
	if _, err := f.service(name); err != nil {
		return nil, err
	}
	return f.simple(ctx, what+" of "+name, r.Order, p, func() string { return do(f.state.Service(name)) })
}

func (f *Fake) AckAlarm(ctx context.Context, r api.AckRequest, p api.Progress) (*api.Outcome, error) {
	f.mu.Lock()
	i := slices.IndexFunc(f.state.Alarms, func(a api.Alarm) bool { return a.Code == r.Code })
	f.mu.Unlock()
	if i < 0 {
		return nil, notFound("there is no alarm "+r.Code, "hanode alarm list")
	}
	return f.simple(ctx, "acknowledgement of "+r.Code, r.Order, p, func() string {
		f.state.Alarms[i].AckedBy = r.Who
		return r.Code + " is acknowledged"
	})
}

func (f *Fake) TokenCreate(ctx context.Context, r api.TokenRequest) (*api.Token, error) {
	if err := f.ask(ctx); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	f.Orders = append(f.Orders, "token "+r.Role+" by "+r.Who)
	return &api.Token{Token: "hn1-SECRET", Role: r.Role, Expires: api.At(f.now.Add(r.TTLMs.D())), Replace: r.Replace, Decision: "D-9"}, nil
}

func (f *Fake) Members(ctx context.Context) ([]api.Member, error) {
	if err := f.ask(ctx); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	return slices.Clone(f.state.Members), nil
}

func (f *Fake) member(ctx context.Context, what string, r api.MemberRequest, p api.Progress, do func(*api.Member)) (*api.Outcome, error) {
	f.mu.Lock()
	known := f.state.Member(r.Name) != nil
	f.mu.Unlock()
	if !known {
		return nil, notFound("there is no member "+r.Name, "hanode member list")
	}
	return f.simple(ctx, what+" of "+r.Name, r.Order, p, func() string {
		do(f.state.Member(r.Name))
		return what + " of " + r.Name + " done"
	})
}

func (f *Fake) MemberSet(ctx context.Context, r api.MemberRequest, p api.Progress) (*api.Outcome, error) {
	return f.member(ctx, "change", r, p, func(m *api.Member) { m.Advertise = r.Advertise })
}

func (f *Fake) MemberReplace(ctx context.Context, r api.MemberRequest, p api.Progress) (*api.Outcome, error) {
	out, err := f.member(ctx, "replacement", r, p, func(*api.Member) {})
	if err == nil && r.By == "" && !r.Plan {
		out.Token = &api.Token{Token: "hn1-SECRET", Role: "node", Replace: r.Name}
	}
	return out, err
}

func (f *Fake) MemberRemove(ctx context.Context, r api.MemberRequest, p api.Progress) (*api.Outcome, error) {
	if s, err := f.service("db"); err == nil && s.Active == r.Name {
		return nil, api.Refusal("removal of "+r.Name+" refused", "db is active there", "hanode member drain "+r.Name)
	}
	return f.member(ctx, "removal", r, p, func(m *api.Member) {
		f.state.Members = slices.DeleteFunc(f.state.Members, func(x api.Member) bool { return x.Name == m.Name })
	})
}

func (f *Fake) Drain(ctx context.Context, r api.MemberRequest, p api.Progress) (*api.Outcome, error) {
	return f.member(ctx, "drain", r, p, func(m *api.Member) { m.State = api.MemberDrained })
}

func (f *Fake) Undrain(ctx context.Context, r api.MemberRequest, p api.Progress) (*api.Outcome, error) {
	return f.member(ctx, "undrain", r, p, func(m *api.Member) { m.State = api.MemberUp })
}

func (f *Fake) TransferLeader(ctx context.Context, r api.LeaderRequest, p api.Progress) (*api.Outcome, error) {
	return f.simple(ctx, "transfer of the leadership to "+r.To, r.Order, p, func() string {
		f.state.Cluster.Leader = r.To
		return r.To + " leads"
	})
}

func (f *Fake) Leave(ctx context.Context, r api.LeaveRequest, p api.Progress) (*api.Outcome, error) {
	if s, err := f.service("db"); err == nil && s.Active == f.state.Node && !r.Force {
		return nil, api.Refusal("leave refused", "db is active here", "hanode member drain "+f.state.Node)
	}
	return f.simple(ctx, "leave of "+f.state.Node, r.Order, p, func() string { return f.state.Node + " has left" })
}
