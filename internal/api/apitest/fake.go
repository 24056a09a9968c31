// Package apitest holds a Backend for tests, small but real: it keeps a two-node cluster in memory and obeys, refuses and
// records like the daemon does, and the suite that every Backend must pass.
package apitest

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hanode/hanode/internal/api"
)

// Fake is a cluster of nodes a and b and witness w with one service, db, active on a. Change State under Do.
type Fake struct {
	mu        sync.Mutex
	now       time.Time
	state     api.Status
	base      uint64
	specs     []api.SpecText
	log       []api.SpecChange
	events    []api.Event
	decisions map[string]*api.Decision
	next      int
	more      chan struct{} // closed and replaced whenever something changed

	Orders []string         // every order that was obeyed: "switchover db by alice"
	Fail   error            // if set, every call ends with it
	Risk   api.Risk         // what a force would lose
	Hang   chan struct{}    // if set, orders wait until it is closed or their context ends
	Steps  []api.Step       // streamed by every order; default two
	Broken []api.Diagnostic // what Apply finds wrong with any spec
}

// Epoch0 is the time at which a Fake's world stands still.
var Epoch0 = time.Date(2026, 3, 1, 3, 8, 2, 0, time.UTC)

// New makes a healthy cluster.
func New() *Fake {
	f := &Fake{now: Epoch0, base: 100, decisions: map[string]*api.Decision{}, next: 1, more: make(chan struct{}), state: Healthy()}
	f.specs = []api.SpecText{{Version: 1, At: api.At(Epoch0), By: "root", Text: "service \"db\" {\n  nodes = [\"a\", \"b\"]\n}\n"}}
	f.log = []api.SpecChange{{Version: 1, At: api.At(Epoch0), By: "root", Summary: "db: new"}}
	return f
}

// Do changes the state.
func (f *Fake) Do(change func(*api.Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.state)
	f.changed()
}

// Happen adds an event.
func (f *Fake) Happen(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.event("info", "note", text, "", "")
	f.changed()
}

func (f *Fake) changed() {
	f.base++
	close(f.more)
	f.more = make(chan struct{})
}

func (f *Fake) event(severity, kind, text, decision, who string) {
	f.events = append(f.events, api.Event{Seq: uint64(len(f.events) + 1), At: api.At(f.now), Severity: severity, Kind: kind,
		Service: "db", Node: f.state.Node, Decision: decision, Who: who, Text: text})
}

// ask is the start of every read: the lock is held when it returns nil.
func (f *Fake) ask(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	if f.Fail != nil {
		defer f.mu.Unlock()
		return f.Fail
	}
	return nil
}

func (f *Fake) Version(ctx context.Context) (*api.Version, error) {
	if err := f.ask(ctx); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	return &api.Version{Version: "1.0.3", Commit: "abc", Go: "go1.26", FeatureLevel: 1, Node: f.state.Node}, nil
}

func (f *Fake) Status(ctx context.Context, q api.StatusQuery) (*api.Status, error) {
	if err := f.ask(ctx); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	s := f.state
	s.Members, s.Services, s.Alarms = slices.Clone(s.Members), slices.Clone(s.Services), slices.Clone(s.Alarms)
	if q.Local {
		s.Source = api.SourceLocal
	}
	return &s, nil
}

func (f *Fake) Explain(ctx context.Context, target string) (*api.Explanation, error) {
	if err := f.ask(ctx); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	if d := f.decisions[target]; d != nil {
		return &api.Explanation{Target: target, Kind: "decision", Sentence: d.Sentence, Decision: d}, nil
	}
	if p := f.state.Service(target); p != nil {
		c := *p
		s := &c
		x := &api.Explanation{Target: target, Kind: "service", Sentence: "nothing has happened: db runs on " + s.Active, Service: s}
		if s.LastMove != nil {
			x.Decision = f.decisions[s.LastMove.Decision]
			x.Sentence = x.Decision.Sentence
		}
		return x, nil
	}
	for i := range f.state.Alarms {
		if a := f.state.Alarms[i]; a.Code == target {
			return &api.Explanation{Target: target, Kind: "alarm", Sentence: a.Text, Alarm: &a, Next: []string{a.Remedy}}, nil
		}
	}
	if target == "" {
		return &api.Explanation{Kind: "cluster", Sentence: "nothing has happened yet"}, nil
	}
	return nil, notFound("nothing is called "+target, "hanode status lists services and alarms, hanode events lists decisions")
}

func notFound(what, do string) error { return &api.Error{Code: api.CodeNotFound, What: what, Do: do} }

func (f *Fake) Events(ctx context.Context, q api.EventQuery, yield func(api.Event) error) error {
	for from := 0; ; {
		if err := f.ask(ctx); err != nil {
			return err
		}
		all, more := f.events, f.more
		f.mu.Unlock()
		for _, e := range all[from:] {
			if q.Service != "" && e.Service != q.Service || !q.Since.IsZero() && e.At.Before(q.Since.Time) {
				continue
			}
			if err := yield(e); err != nil {
				return err
			}
		}
		from = len(all)
		if !q.Follow {
			return nil
		}
		var until <-chan time.Time
		if !q.Until.IsZero() {
			until = time.After(time.Until(q.Until.Time))
		}
		select {
		case <-more:
		case <-until:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *Fake) Alarms(ctx context.Context) ([]api.Alarm, error) {
	if err := f.ask(ctx); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	return slices.Clone(f.state.Alarms), nil
}

func (f *Fake) Wait(ctx context.Context, r api.WaitRequest, p api.Progress) (*api.Outcome, error) {
	for {
		if err := f.ask(ctx); err != nil {
			return nil, err
		}
		more := f.more
		f.mu.Unlock()
		s, err := f.service(r.Service)
		if err != nil {
			return nil, err
		}
		ok := false
		switch r.For {
		case api.WaitActive:
			ok = s.State == api.StateActive
		case api.WaitInSync:
			ok = len(s.InSync) == len(s.Nodes)
		case api.WaitProtected:
			ok = s.Protection == api.Protected
		default:
			return nil, api.Errorf(api.CodeUsage, "wait for %q: choose active, in-sync or protected", r.For)
		}
		if ok {
			return &api.Outcome{Service: r.Service, Text: r.Service + " is " + r.For, OutageMs: -1}, nil
		}
		p(api.Step{Text: "waiting until " + r.Service + " is " + r.For, State: "waiting"})
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func noService(name string) error {
	return notFound("there is no service "+name, "hanode status lists the services")
}

func (f *Fake) Leader(ctx context.Context) (*api.Leadership, error) {
	if err := f.ask(ctx); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	return &api.Leadership{Leader: f.state.Cluster.Leader, Since: api.At(f.now.Add(-time.Hour)), Term: 7, Preferred: "w",
		Why: "w is preferred: its death never coincides with a takeover"}, nil
}

func (f *Fake) DebugBundle(ctx context.Context, w io.Writer) error {
	if err := f.ask(ctx); err != nil {
		return err
	}
	defer f.mu.Unlock()
	b := api.NewBundle(w, "hanode-a", f.now)
	if err := b.AddJSON("status.json", f.state); err != nil {
		return err
	}
	return b.Close()
}

func (f *Fake) Spec(ctx context.Context, version uint64) (*api.SpecText, error) {
	if err := f.ask(ctx); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	if version == 0 {
		version = uint64(len(f.specs))
	}
	if version > uint64(len(f.specs)) {
		return nil, notFound(fmt.Sprintf("there is no spec version %d", version), "hanode spec log")
	}
	return &f.specs[version-1], nil
}

func (f *Fake) SpecLog(ctx context.Context) ([]api.SpecChange, error) {
	if err := f.ask(ctx); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	return slices.Clone(f.log), nil
}

// order runs an order: the steps, the checks that all have in common, and the record.
func (f *Fake) order(ctx context.Context, what string, o api.Order, plan *api.Plan, p api.Progress, do func(d *api.Decision) (*api.Outcome, error)) (*api.Outcome, error) {
	if err := f.ask(ctx); err != nil {
		return nil, err
	}
	base, hang := f.base, f.Hang
	f.mu.Unlock()
	if o.Base != 0 && o.Base != base {
		return nil, &api.Error{Code: api.CodeMoved, What: what + " refused", Why: fmt.Sprintf("the state has moved from %d to %d since the plan", o.Base, base),
			Do: "look at the plan again: add --plan"}
	}
	if o.Plan {
		plan.Base, plan.Order, plan.SpecVersion = base, what, uint64(len(f.specs))
		return &api.Outcome{Plan: plan, OutageMs: -1, Service: "db", Text: "nothing was done: this was a plan"}, nil
	}
	steps := f.Steps
	if steps == nil {
		steps = []api.Step{{Text: "hold new writes", Who: []string{"a"}, TookMs: api.Ms(2 * time.Millisecond)},
			{Text: "epoch 8 granted", Who: []string{"w"}, AtMs: api.Ms(2 * time.Millisecond), TookMs: api.Ms(6 * time.Millisecond)}}
	}
	for i, s := range steps {
		s.N, s.Of, s.State = i+1, len(steps), "done"
		if p != nil {
			p(s)
		}
	}
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d := &api.Decision{ID: fmt.Sprintf("D-%d", f.next), At: api.At(f.now), OrderedBy: o.Who, Reason: o.Reason, Service: "db"}
	out, err := do(d)
	if err != nil {
		return nil, err
	}
	f.next++
	f.decisions[d.ID] = d
	line := what + " by " + o.Who
	if o.Via != "" {
		line += " via " + o.Via
	}
	f.Orders = append(f.Orders, line)
	out.Decision = d.ID
	f.event("info", strings.Fields(what)[0], what, d.ID, o.Who)
	f.changed()
	return out, nil
}

// Validate finds nothing in the way.
func (f *Fake) Validate(ctx context.Context, _ api.ValidateRequest) (*api.Validation, error) {
	if err := f.ask(ctx); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	return &api.Validation{Node: f.state.Node}, nil
}
