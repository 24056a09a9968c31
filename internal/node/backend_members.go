package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/member"
)

func (b backend) Members(ctx context.Context) ([]api.Member, error) {
	st, err := b.Status(ctx, api.StatusQuery{})
	if err != nil {
		return nil, err
	}
	return st.Members, nil
}

// one has a command about a member committed with its decision.
func (b backend) one(ctx context.Context, o api.Order, kind, sentence, text string, cmd *state.Command) (*api.Outcome, error) {
	if err := b.rests(o); err != nil {
		return nil, err
	}
	if o.Plan {
		return &api.Outcome{Plan: b.based(&api.Plan{Order: sentence, Steps: []api.Step{{N: 1, Of: 1, Text: sentence}}, Risk: api.Risk{Text: "nothing"}})}, nil
	}
	cmd.Decision = &state.Decision{Kind: kind, OrderedBy: o.Who, Reason: o.Reason, Outcome: "done", Sentence: sentence}
	out, err := b.commit(ctx, b.order(o, cmd))
	if err != nil {
		return nil, err
	}
	return &api.Outcome{Decision: decisionID(out.Decision), Text: text, Next: []string{"hanode status"}}, nil
}

func (b backend) MemberSet(ctx context.Context, r api.MemberRequest, _ api.Progress) (*api.Outcome, error) {
	if err := b.known(r.Name); err != nil {
		return nil, err
	}
	set := &state.MemberSet{Name: r.Name}
	if r.Advertise != "" {
		addrs, err := member.Addresses(r.Advertise, r.Links)
		if err != nil {
			return nil, api.Errorf(api.CodeUsage, "%v", err)
		}
		for _, a := range addrs {
			set.Addrs = append(set.Addrs, a.String())
		}
	}
	return b.one(ctx, r.Order, "member-set", "the addresses of "+r.Name+" were changed", r.Name+" is changed; its daemon listens there from its next start on", &state.Command{MemberSet: set})
}

// canLose refuses to take a voter away when those that remain and are heard would be no majority.
func (b backend) canLose(what, name string) error {
	var why string
	known := false
	_ = b.n.m.On(func(c *core.Core) {
		m := c.State().MemberByName(name)
		if known = m != nil; !known {
			return
		}
		if b.holds(c, m.No) {
			why = name + " has active services"
			return
		}
		var alive cluster.MemberSet
		rest := c.State().Group.Voters().Without(m.No)
		for _, n := range rest.List() {
			if n == c.Self() || c.Alive(n) {
				alive = alive.With(n)
			}
		}
		if !c.State().Group.Majority(alive) || alive.Len() < rest.Majority() {
			why = "the others that are heard are no majority of the voters"
		}
	})
	if !known {
		return noMember(name)
	}
	if why != "" {
		return api.Refusal(what+" of "+name+" refused", why, "hanode status; move its services away first: hanode member drain "+name)
	}
	return nil
}

func (b backend) MemberRemove(ctx context.Context, r api.MemberRequest, _ api.Progress) (*api.Outcome, error) {
	if err := b.canLose("removal", r.Name); err != nil {
		return nil, err
	}
	return b.one(ctx, r.Order, "member-remove", r.Name+" was removed from the cluster by "+r.Who, r.Name+" is removed", &state.Command{MemberRemove: &state.MemberRemove{Name: r.Name}})
}

// MemberReplace makes a token with which a new member takes the place of one that is gone.
func (b backend) MemberReplace(ctx context.Context, r api.MemberRequest, _ api.Progress) (*api.Outcome, error) {
	if err := b.canLose("replacement", r.Name); err != nil {
		return nil, err
	}
	role := ""
	_ = b.n.m.On(func(c *core.Core) {
		if m := c.State().MemberByName(r.Name); m != nil {
			role = m.Role.String()
		}
	})
	t, err := b.TokenCreate(ctx, api.TokenRequest{Order: r.Order, Role: role, Replace: r.Name})
	if err != nil {
		return nil, err
	}
	return &api.Outcome{Token: t, Text: "join the new " + role + " with this token; it takes the place of " + r.Name, Next: t.Next}, nil
}

// known refuses a name that no member bears.
func (b backend) known(name string) error {
	ok := false
	_ = b.n.m.On(func(c *core.Core) { ok = c.State().MemberByName(name) != nil })
	if !ok {
		return noMember(name)
	}
	return nil
}

// Undrain lets a member carry services again.
func (b backend) Undrain(ctx context.Context, r api.MemberRequest, _ api.Progress) (*api.Outcome, error) {
	if err := b.known(r.Name); err != nil {
		return nil, err
	}
	return b.one(ctx, r.Order, "undrain", r.Name+" may carry services again, ordered by "+r.Who, r.Name+" may carry services again", &state.Command{MemberSet: &state.MemberSet{Name: r.Name, Undrain: true}})
}

// TransferLeader hands the leadership over. The leader does it if it is this member; one that another node holds is asked for there; and what a witness holds,
// which takes no orders, the member that shall lead takes by becoming a candidate, as it does when a leader has gone silent.
// TransferLeader hands the lead to a member. The leader alone can do that; another member passes the order on to it.
func (b backend) TransferLeader(ctx context.Context, r api.LeaderRequest, p api.Progress) (*api.Outcome, error) {
	if err := b.rests(r.Order); err != nil {
		return nil, err
	}
	target, leads := "", ""
	var leader, to state.Member
	_ = b.n.m.On(func(c *core.Core) {
		if m := c.State().MemberByName(r.To); m != nil && c.State().Group.IsVoter(m.No) {
			target, to = m.ServerID(), *m
		}
		if m := c.State().Member(c.Leader()); m != nil {
			leader, leads = *m, m.Name
		}
	})
	_, mine, _ := b.n.m.Group().Leader()
	switch {
	case target == "":
		return nil, api.Errorf(api.CodeNotFound, "there is no member %s with a vote: hanode member list", r.To)
	case leads == "" && !mine:
		return nil, api.Errorf(api.CodeNoQuorum, "nobody leads at present: hanode status")
	case leads == r.To:
		return &api.Outcome{Text: r.To + " leads already", Next: []string{"hanode leader"}}, nil
	case r.Plan:
		return &api.Outcome{Plan: b.based(&api.Plan{Order: "leader, " + leads + " to " + r.To, Steps: []api.Step{{N: 1, Of: 1, Text: "hand the lead to " + r.To}}, Risk: api.Risk{Text: "nothing"}})}, nil
	case mine:
		if err := b.n.m.Group().TransferTo(ctx, target); err != nil {
			return nil, api.Errorf(api.CodeFailed, "%v", err)
		}
	case leader.Role == cluster.RoleWitness && r.To == b.n.dir.Identity.Name:
		// A witness takes no orders: whoever is to lead makes itself a candidate.
		if err := b.n.m.Group().Kick(); err != nil {
			return nil, api.Errorf(api.CodeFailed, "%v", err)
		}
	case r.Via != "":
		return nil, api.Errorf(api.CodeFailed, "the lead has just moved: hanode leader, then try again")
	default:
		if leader.Role == cluster.RoleWitness {
			leader = to
		}
		c := api.Forward(leader.Name, func(ctx context.Context) (net.Conn, error) { return b.n.m.Dial(ctx, leader.ID, link.API) })
		defer c.Close()
		return c.TransferLeader(ctx, r, p)
	}
	return b.led(ctx, r, p)
}

// led waits until the member leads, and records who ordered it.
func (b backend) led(ctx context.Context, r api.LeaderRequest, p api.Progress) (*api.Outcome, error) {
	if err := b.until(ctx, p, func(st *api.Status) (bool, string) {
		return st.Cluster.Leader == r.To, "the leader is " + st.Cluster.Leader
	}); err != nil {
		return nil, err
	}
	return b.one(ctx, api.Order{Who: r.Who, Reason: r.Reason}, "leader", r.To+" leads the group, ordered by "+r.Who, r.To+" leads", &state.Command{})
}

func (b backend) Leave(ctx context.Context, r api.LeaveRequest, p api.Progress) (*api.Outcome, error) {
	name := b.n.dir.Identity.Name
	out, err := b.MemberRemove(ctx, api.MemberRequest{Order: r.Order, Name: name, Force: r.Force}, p)
	if err != nil {
		return nil, err
	}
	b.n.leave()
	return out, nil
}

// Force gives a service to a node although the group may not: because the witness was lost and the active may be going on alone, or is
// off. If the old active still runs, two serve: that is the operator's risk, who has typed that it is off.
func (b backend) Force(ctx context.Context, r api.ForceRequest, _ api.Progress) (*api.Outcome, error) {
	what := fmt.Sprintf("force of %s to %s refused", r.Service, r.To)
	var cmd *state.ForceGrant
	var refusal error
	var old string
	_ = b.n.m.On(func(c *core.Core) {
		s, to := c.State().ServiceByName(r.Service), c.State().MemberByName(r.To)
		switch {
		case s == nil || to == nil:
			refusal = api.Errorf(api.CodeUsage, "there is no service %s or no node %s: hanode status", r.Service, r.To)
			return
		case s.Lock.Holder.Node != 0 && s.Lock.Holder.Node != to.No && (c.Alive(s.Lock.Holder.Node) || s.Lock.Holder.Node == c.Self()):
			refusal = api.Refusal(what, c.State().MemberName(s.Lock.Holder.Node)+", the active, is heard: nothing has to be forced", "hanode switchover "+r.Service+" --to "+r.To)
			return
		}
		old = c.State().MemberName(s.Lock.Holder.Node)
		cmd = &state.ForceGrant{Service: s.No, Loses: r.Loses.Text}
		cmd.Grant = lock.Grant{Epoch: s.Lock.Epoch, To: lock.Holder{Node: to.No, Inc: c.State().Group.Admission(to.No).Inc}, TTL: c.State().Timing().TTL}
		cmd.Off = slices.Contains(r.VerifiedOff, old)
	})
	if refusal != nil {
		return nil, refusal
	}
	plan := &api.Plan{Order: fmt.Sprintf("force of %s, %s to %s", r.Service, old, r.To), VerifiedOff: []string{old}, Risk: api.Risk{Text: "if " + old + " still runs, two nodes serve"},
		Steps: []api.Step{{N: 1, Of: 1, Text: "grant " + r.Service + " to " + r.To + " without the word of " + old}}}
	if r.Plan {
		return &api.Outcome{Service: r.Service, Plan: plan}, nil
	}
	if !cmd.Off || !r.AcceptLoss {
		return nil, api.Refusal(what, "nobody has said that "+old+" is off", "make sure that it is, then say so when you are asked, or with --accept-loss and the names of what is off")
	}
	out, err := b.commit(ctx, b.order(r.Order, &state.Command{Force: cmd, Decision: &state.Decision{Kind: "force", Service: r.Service, From: old, To: r.To, EpochFrom: cmd.Epoch,
		OrderedBy: r.Who, Reason: r.Reason, Lost: "what only " + old + " has", Sentence: fmt.Sprintf("%s was given to %s by force: %s says that %s is off", r.Service, r.To, r.Who, old)}}))
	if err != nil {
		return nil, err
	}
	return &api.Outcome{Service: r.Service, From: old, To: r.To, Epoch: uint64(out.Epoch), Decision: decisionID(out.Decision), OutageMs: api.Ms(-time.Millisecond), ReadyMs: api.Ms(-time.Millisecond),
		Text: fmt.Sprintf("%s is granted to %s, epoch %d", r.Service, r.To, out.Epoch), Next: []string{"hanode status"}}, nil
}

// Events calls yield for each event that the log keeps, and then for new ones.
func (b backend) Events(ctx context.Context, q api.EventQuery, yield func(api.Event) error) error {
	var after uint64
	first := true
	for {
		var batch []state.Event
		_ = b.n.m.On(func(c *core.Core) {
			for _, e := range c.State().Events {
				if e.ID > after {
					batch = append(batch, e)
				}
			}
		})
		if first && q.Limit > 0 && len(batch) > q.Limit {
			batch = batch[len(batch)-q.Limit:]
		}
		first = false
		for _, e := range batch {
			after = e.ID
			at := time.UnixMilli(e.At)
			if !q.Since.IsZero() && at.Before(q.Since.Time) || !q.Until.IsZero() && at.After(q.Until.Time) || q.Service != "" && q.Service != e.Object {
				continue
			}
			ev := api.Event{Seq: e.ID, At: stamp(e.At), Severity: e.Severity, Kind: e.Kind, Service: e.Object, Text: e.Text}
			if e.Decision != 0 {
				ev.Decision = decisionID(e.Decision)
			}
			if err := yield(ev); err != nil {
				return err
			}
		}
		if !q.Follow || !q.Until.IsZero() && time.Now().After(q.Until.Time) {
			return nil
		}
		if !b.n.news.wait(ctx, func() bool {
			more := false
			_ = b.n.m.On(func(c *core.Core) { more = c.State().LastEvent > after })
			return more
		}) {
			return nil
		}
	}
}

// maxBundled is how many of the newest decisions a bundle shows in words; state.pb holds all that are kept.
const maxBundled = 50

// DebugBundle writes what is needed to look into a problem elsewhere.
func (b backend) DebugBundle(ctx context.Context, w io.Writer) error {
	var st []byte
	var decisions []*api.Decision
	var events []state.Event
	_ = b.n.m.On(func(c *core.Core) {
		all := c.State().Decisions
		for i := max(0, len(all)-maxBundled); i < len(all); i++ {
			decisions = append(decisions, b.decision(c.State(), &all[i]))
		}
		events = append(events, c.State().Events...)
		st = c.State().Redacted().Snapshot()
	})
	status, err := b.Status(ctx, api.StatusQuery{})
	if err != nil {
		return err
	}
	bw := api.NewBundle(w, "hanode-"+b.n.dir.Identity.Name, time.Now())
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return errors.Join(bw.AddJSON("status.json", status), bw.AddJSON("decisions.json", decisions), bw.AddJSON("events.json", events), bw.AddJSON("health.json", b.n.m.Health()), bw.Add("state.pb", st), bw.AddJSON("raft.json", b.n.m.Group().Stats()), bw.Add("stacks.txt", stacks), bw.Close())
}
