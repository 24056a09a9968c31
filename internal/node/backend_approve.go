package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
)

// lost is what an approver is asked about: a service whose active is lost, or unwell for good.
type lost struct {
	epoch     cluster.Epoch
	approvers []string
	holder    string
	alive     bool // the active serves
	unwell    bool // and says that the service is not well
	held      bool
}

func (b backend) lost(service string) (lost, error) {
	var out lost
	err := noService(service)
	_ = b.n.m.On(func(c *core.Core) {
		s := c.State().ServiceByName(service)
		if s == nil {
			return
		}
		err = nil
		view := c.View(b.n.m.Now(), time.Now().UnixMilli())
		sv := b.service(c, view, s)
		look, ok := c.Look(view, s.No)
		out.epoch, out.holder, out.alive = s.Lock.Epoch, c.State().MemberName(s.Lock.Holder.Node), sv.Active != ""
		if ok && look.Facts.Spec != nil {
			out.approvers, out.held = look.Facts.Spec.Approvers, look.Facts.Lock.Held
			out.unwell = look.Facts.Reports[s.Lock.Holder.Node].Unhealthy
		}
	})
	return out, err
}

// mayApprove says whether an operator is one of the approvers: under the name that asks, or the one that logged in: "root (alice)".
func mayApprove(approvers []string, who string) bool {
	name, login, _ := strings.Cut(strings.TrimSuffix(who, ")"), " (")
	return len(approvers) == 0 || slices.Contains(approvers, name) || login != "" && slices.Contains(approvers, login)
}

// Approve takes an approver's word on the loss of the present active.
func (b backend) Approve(ctx context.Context, r api.ApproveRequest, p api.Progress) (*api.Outcome, error) {
	l, err := b.lost(r.Service)
	if err != nil {
		return nil, err
	}
	verb := map[bool]string{true: "approve", false: "decline"}[r.Yes]
	switch {
	case !mayApprove(l.approvers, r.Who):
		return nil, api.Denied(fmt.Sprintf("%s is none of the approvers of %s: %s", r.Who, r.Service, strings.Join(l.approvers, ", ")), "ask one of them")
	case l.alive && !l.unwell:
		return nil, api.Refusal(verb+" of "+r.Service+" refused", fmt.Sprintf("nothing waits for your word: %s is active on %s", r.Service, l.holder), "hanode status; to move it now: hanode switchover "+r.Service)
	}
	return b.word(ctx, r.Order, r.Service, r.Yes, l, p)
}

// word has an approver's word committed, and waits for what follows from a yes.
func (b backend) word(ctx context.Context, o api.Order, service string, yes bool, l lost, p api.Progress) (*api.Outcome, error) {
	began := time.Now()
	sentence := fmt.Sprintf("%s agrees that %s is taken over from %s", o.Who, service, l.holder)
	text := "the failover of " + service + " is approved"
	if !yes {
		sentence = fmt.Sprintf("%s does not want %s to be taken over from %s", o.Who, service, l.holder)
		text = fmt.Sprintf("%s stays where it is until %s returns, or somebody approves", service, l.holder)
	}
	out, err := b.one(ctx, o, map[bool]string{true: "approve", false: "decline"}[yes], sentence, text,
		&state.Command{Approval: &state.Approval{Service: service, Epoch: l.epoch, Yes: yes, Who: o.Who, At: time.Now().UnixMilli()}})
	if err != nil || o.Plan || !yes {
		return out, err
	}
	if p != nil {
		p(api.Step{Text: text, State: "done"})
	}
	if err := b.untilService(ctx, service, p, func(s *api.Service) bool { return cluster.Epoch(s.Epoch) > l.epoch && s.Active != "" }); err != nil {
		return nil, notYet(err, out.Decision)
	}
	return b.moved(ctx, service, "failover", l.epoch, core.OrderDone{}, began)
}

// failoverLost is the order to fail over although the active cannot be asked: it is an approval, and the group takes over by the rules.
func (b backend) failoverLost(ctx context.Context, r api.MoveRequest, p api.Progress) (*api.Outcome, bool, error) {
	l, err := b.lost(r.Service)
	if err != nil || l.alive || l.epoch == 0 || l.holder == "nobody" {
		return nil, false, err
	}
	if !mayApprove(l.approvers, r.Who) {
		return nil, true, api.Denied(fmt.Sprintf("%s is none of the approvers of %s: %s", r.Who, r.Service, strings.Join(l.approvers, ", ")), "ask one of them to run: hanode approve "+r.Service)
	}
	if l.held {
		return nil, true, api.Refusal("failover of "+r.Service+" refused", "the service is held: it failed too often", "release it: hanode service clear "+r.Service)
	}
	if r.To == l.holder {
		return nil, true, api.Refusal("failover of "+r.Service+" refused", l.holder+" is not heard", "hanode status")
	}
	out, err := b.word(ctx, r.Order, r.Service, true, l, p)
	return out, true, err
}
