package node

import (
	"context"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
)

// Explain tells why: of a decision, of a service, of an alarm, or of the newest decision of all.
func (b backend) Explain(ctx context.Context, target string) (*api.Explanation, error) {
	for _, a := range b.n.standing() {
		if a.Code == target {
			return &api.Explanation{Target: target, Kind: "alarm", Sentence: a.Text, Alarm: &api.Alarm{Code: a.Code, Severity: a.Severity, Object: a.Object,
				Since: api.At(a.Since), Text: a.Text, Remedy: a.Remedy}, Next: []string{"hanode alarm ack " + a.Code}}, nil
		}
	}
	st, err := b.Status(ctx, api.StatusQuery{})
	if err != nil {
		return nil, err
	}
	out := &api.Explanation{Target: target}
	found := false
	_ = b.n.m.On(func(c *core.Core) { found = b.explain(c, st, out) })
	if !found {
		return nil, api.Errorf(api.CodeNotFound, "%q is no service, decision or alarm here: hanode status lists the services, hanode events the decisions", target)
	}
	return out, nil
}

// explain runs on the loop.
func (b backend) explain(c *core.Core, st *api.Status, out *api.Explanation) bool {
	s := c.State()
	if id, ok := strings.CutPrefix(strings.ToUpper(out.Target), "D-"); ok {
		n, err := strconv.ParseUint(id, 10, 64)
		d := s.Decision(n)
		if err != nil || d == nil {
			return false
		}
		out.Kind, out.Sentence, out.Decision = "decision", d.Sentence, b.decision(s, d)
		return true
	}
	if out.Target == "" {
		if len(s.Decisions) == 0 {
			out.Kind, out.Sentence = "cluster", "nothing has been decided yet"
			return true
		}
		d := &s.Decisions[len(s.Decisions)-1]
		out.Kind, out.Sentence, out.Decision = "decision", d.Sentence, b.decision(s, d)
		return true
	}
	svc := s.ServiceByName(out.Target)
	if svc == nil {
		return false
	}
	out.Kind = "service"
	if sv, ok := find(st, svc.Name); ok {
		out.Service = &sv
	}
	view := c.View(b.n.m.Now(), time.Now().UnixMilli())
	look, _ := c.Look(view, svc.No)
	d := s.Decision(svc.LastMove)
	for i := len(s.Decisions) - 1; i >= 0; i-- { // a newer one that did not move it says more
		if s.Decisions[i].Service == svc.Name && (d == nil || s.Decisions[i].ID > d.ID) && s.Decisions[i].Kind != "witness" {
			d = &s.Decisions[i]
			break
		}
	}
	switch {
	case out.Service != nil && out.Service.State != api.StateActive && look.Verdict != "":
		out.Sentence = look.Verdict
	case d != nil:
		out.Sentence = d.Sentence
	default:
		out.Sentence = svc.Name + " has not been started yet"
	}
	if d != nil {
		out.Decision = b.decision(s, d)
	}
	out.Next = []string{"hanode status", "hanode events"}
	return true
}

// decision is a decision as the contract shows it.
func (b backend) decision(s *state.State, d *state.Decision) *api.Decision {
	out := &api.Decision{ID: decisionID(d.ID), At: stamp(d.At), Service: d.Service, Kind: d.Kind, From: d.From, To: d.To, EpochFrom: uint64(d.EpochFrom), EpochTo: uint64(d.EpochTo),
		OrderedBy: d.OrderedBy, Reason: d.Reason, Sentence: d.Sentence, Lost: d.Lost, Log: d.Index}
	out.Zero = "after " + d.From + " was last heard"
	if d.Kind != "failover" || d.From == "nobody" {
		out.Zero = "after the order"
	}
	for _, st := range d.Steps {
		out.TimeLine = append(out.TimeLine, api.Moment{OffsetMs: api.Ms(time.Duration(st.Us) * time.Microsecond), What: st.What, Who: []string{st.Who}, Note: st.Detail})
	}
	names := map[string]bool{}
	for _, row := range d.Seen {
		for n := range row.Answers {
			names[n] = true
		}
	}
	for n := range names {
		out.Known.Members = append(out.Known.Members, n)
	}
	sort.Strings(out.Known.Members)
	for _, row := range d.Seen {
		r := api.KnownRow{What: row.What}
		for _, n := range out.Known.Members {
			v := row.Answers[n]
			if v == "" {
				v = "-"
			}
			r.Values = append(r.Values, v)
		}
		out.Known.Rows = append(out.Known.Rows, r)
	}
	for _, w := range d.WhyNot {
		out.WhyNot = append(out.WhyNot, api.WhyNot{Question: "Why not another node?", Answer: w})
	}
	if d.Policy != "" {
		out.WhyNot = append(out.WhyNot, api.WhyNot{Question: "Why not later or sooner?", Answer: d.Policy})
	}
	if d.Outcome == "failed" || d.Outcome == "restored" {
		out.Failed = d.Outcome
	}
	return out
}
