package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/failover/agent"
	"github.com/hanode/hanode/failover/notify"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/member"
	"github.com/hanode/hanode/internal/pki"
)

// askTime bounds one node's answer to a question that is asked of all.
const askTime = 3 * time.Second

// others are the other nodes that are heard.
func (b backend) others() []state.Member {
	var out []state.Member
	_ = b.n.m.On(func(c *core.Core) {
		for i := range c.State().Members {
			if m := &c.State().Members[i]; m.Role == cluster.RoleNode && !m.Removed && m.No != c.Self() && c.Alive(m.No) {
				out = append(out, *m)
			}
		}
	})
	return out
}

func (b backend) forward(m *state.Member) *api.Client {
	id := m.ID
	return api.Forward(m.Name, func(ctx context.Context) (net.Conn, error) { return b.n.m.Dial(ctx, id, link.API) })
}

// Checks asks every node that is heard what its checks say.
func (b backend) Checks(ctx context.Context) ([]api.CheckLine, error) {
	var spec *cluster.Spec
	pauses := map[string][]state.CheckPause{}
	if err := b.n.m.On(func(c *core.Core) {
		spec = c.State().Compiled()
		for _, s := range c.State().Services {
			pauses[s.Name] = slices.Clone(s.Paused)
		}
	}); err != nil {
		return nil, api.Errorf(api.CodeFailed, "%v", err)
	}
	states := map[string][]api.Check{}
	add := func(st *api.Status) {
		for _, s := range st.Services {
			for _, c := range s.Checks {
				c.From = st.Node
				states[s.Name+"/"+c.Name] = append(states[s.Name+"/"+c.Name], c)
			}
		}
	}
	own, err := b.Status(ctx, api.StatusQuery{Local: true})
	if err != nil {
		return nil, err
	}
	add(own)
	for _, m := range b.others() {
		c, cancel := context.WithTimeout(ctx, askTime)
		cl := b.forward(&m)
		if st, err := cl.Status(c, api.StatusQuery{Local: true}); err == nil {
			add(st)
		}
		cl.Close()
		cancel()
	}
	var out []api.CheckLine
	if spec == nil {
		return nil, nil
	}
	for i := range spec.Services {
		s := &spec.Services[i]
		for _, k := range s.Checks {
			line := api.CheckLine{Service: s.Name, Name: k.Name, Kind: k.Kind, EveryMs: api.Ms(k.Every), From: k.From, State: "unknown"}
			for _, p := range pauses[s.Name] {
				if p.Check == k.Name && p.Until > time.Now().UnixMilli() {
					line.State, line.PausedUntil, line.PausedBy = "paused", stamp(p.Until), p.Who
				}
			}
			seen := states[s.Name+"/"+k.Name]
			for _, c := range seen {
				l := line
				l.Node, l.Output, l.TookMs = c.From, c.Output, c.TookMs
				if l.State != "paused" {
					l.State = c.State
				}
				out = append(out, l)
			}
			if len(seen) == 0 {
				out = append(out, line)
			}
		}
	}
	return out, nil
}

// check finds a check of the spec in force.
func (b backend) check(service, name string) (cluster.CheckSpec, error) {
	var out cluster.CheckSpec
	err := noService(service)
	_ = b.n.m.On(func(c *core.Core) {
		s := c.State().Compiled().Service(service)
		if s == nil {
			return
		}
		var names []string
		for _, k := range s.Checks {
			if names = append(names, k.Name); k.Name == name {
				out, err = k, nil
				return
			}
		}
		err = api.Errorf(api.CodeNotFound, "%s has no check %s: choose one of %s", service, name, strings.Join(names, ", "))
	})
	return out, err
}

// Check runs a check where its service is active, or pauses it everywhere.
func (b backend) Check(ctx context.Context, r api.CheckRequest, p api.Progress) (*api.Outcome, error) {
	k, err := b.check(r.Service, r.Check)
	if err != nil {
		return nil, err
	}
	name := r.Service + "/" + r.Check
	if r.Action == api.CheckRun {
		return b.runCheck(ctx, r, k, p)
	}
	cmd := &state.CheckPause{Service: r.Service, Check: r.Check, Who: r.Who}
	kind, sentence, text := "check-resume", fmt.Sprintf("check %s is run again, ordered by %s", name, r.Who), "check "+name+" is run again"
	switch r.Action {
	case api.CheckPause:
		d := r.ForMs.D()
		if d <= 0 {
			d = defaultPause
		}
		until := time.Now().Add(d)
		cmd.Until = until.UnixMilli()
		kind = "check-pause"
		sentence = fmt.Sprintf("check %s is paused for %v by %s: it is not run, and condemns nothing", name, d, r.Who)
		text = fmt.Sprintf("check %s is paused until %s, and then run again", name, until.UTC().Format(time.RFC3339))
	case api.CheckResume:
	default:
		return nil, api.Errorf(api.CodeUsage, "check %s %q: choose run, pause or resume", name, r.Action)
	}
	out, err := b.one(ctx, r.Order, kind, sentence, text, &state.Command{CheckPause: cmd})
	if err == nil && !r.Plan {
		out.Service, out.Next = r.Service, []string{"hanode check list " + r.Service}
	}
	return out, err
}

func (b backend) runCheck(ctx context.Context, r api.CheckRequest, k cluster.CheckSpec, p api.Progress) (*api.Outcome, error) {
	var no cluster.ServiceNo
	var holder *state.Member
	here := true
	_ = b.n.m.On(func(c *core.Core) {
		if s := c.State().ServiceByName(r.Service); s != nil {
			no = s.No
			if m := c.State().Member(s.Lock.Holder.Node); m != nil && m.No != c.Self() && c.Alive(m.No) {
				h := *m
				holder, here = &h, false
			}
		}
	})
	switch {
	case r.Plan:
		return &api.Outcome{Plan: b.based(&api.Plan{Order: "check run " + r.Service + "/" + r.Check, Steps: []api.Step{{N: 1, Of: 1, Text: "run it once where the service is active, outside its schedule"}}, Risk: api.Risk{Text: "nothing"}})}, nil
	case !here && !r.Local && r.Via == "":
		cl := b.forward(holder)
		defer cl.Close()
		return cl.Check(ctx, r, p)
	}
	deps := agent.Deps{Log: b.n.log, Now: b.n.m.Now, Env: []string{"HANODE_SERVICE=" + r.Service, "HANODE_NODE=" + b.n.dir.Identity.Name}}
	if s := b.n.byNo(no); s != nil {
		deps.Group = s.group
	}
	k.Name += ".once" // the scheduled run of the same check has a cgroup of that name
	res := agent.Once(ctx, k, deps)
	verdict := "succeeds"
	if !res.OK {
		verdict = "fails"
	}
	text := fmt.Sprintf("check %s/%s %s on %s after %v: %s", r.Service, r.Check, verdict, b.n.dir.Identity.Name, res.Took.Round(100*time.Microsecond), res.Output)
	if !res.OK {
		return nil, &api.Error{Code: api.CodeFailed, What: text, Why: "this run was outside its schedule: it counts for nothing", Do: "hanode check list " + r.Service}
	}
	return &api.Outcome{Service: r.Service, Text: text, OutageMs: api.Ms(-time.Millisecond), ReadyMs: api.Ms(-time.Millisecond), TookMs: api.Ms(res.Took), Next: []string{"hanode check list " + r.Service}}, nil
}

// AlertTest tells a trial alarm, on this node.
func (b backend) AlertTest(ctx context.Context, r api.AlertRequest, _ api.Progress) (*api.Outcome, error) {
	self := b.n.dir.Identity.Name
	if r.Plan {
		return &api.Outcome{Plan: b.based(&api.Plan{Order: "alert test " + r.Name, Steps: []api.Step{{N: 1, Of: 1, Text: "tell a trial alarm from " + self + ", and that it is over"}}, Risk: api.Risk{Text: "nothing"}})}, nil
	}
	trials := b.n.alerts.Test(ctx, r.Name, notify.Alarm{Code: "test", Object: self, Severity: "info", Text: "this is a trial, ordered by " + r.Who + " on " + self, Remedy: "nothing is wrong", Since: time.Now()})
	if len(trials) == 0 {
		if r.Name != "" {
			return nil, api.Errorf(api.CodeNotFound, "there is no alert %s in the spec: hanode spec show", r.Name)
		}
		return nil, api.Refusal("nobody was told", "the spec has no alert: nobody hears of any alarm", "add alert \"NAME\" { exec = [...] } to the spec")
	}
	var told []string
	var errs []error
	for _, t := range trials {
		if t.Err != nil {
			errs = append(errs, fmt.Errorf("%s, %w", t.Alert, t.Err))
			continue
		}
		told = append(told, t.Alert)
	}
	if len(errs) > 0 {
		return nil, &api.Error{Code: api.CodeFailed, What: fmt.Sprintf("%d of %d alerts told nobody on %s", len(errs), len(trials), self), Why: errors.Join(errs...).Error(), Do: "mend the program of the alert, then hanode alert test again"}
	}
	return &api.Outcome{Text: fmt.Sprintf("told on %s: %s. Every node tells what it sees itself: test each", self, strings.Join(told, ", ")), OutageMs: api.Ms(-time.Millisecond), ReadyMs: api.Ms(-time.Millisecond), Next: []string{"hanode alarm list"}}, nil
}

// KeyRotate changes the key of gossip in three steps, each of which every member has followed before the next.
func (b backend) KeyRotate(ctx context.Context, r api.KeyRequest, p api.Progress) (*api.Outcome, error) {
	if err := b.rests(r.Order); err != nil {
		return nil, err
	}
	steps := []struct{ step, text string }{{state.KeyAdd, "every member can read the new key"}, {state.KeyUse, "every member writes with the new key"}, {state.KeyDrop, "nobody reads the old key any more"}}
	if r.Plan {
		pl := &api.Plan{Order: "key rotate", ExpectedMs: api.Ms(2 * member.KeysFollow), Risk: api.Risk{Text: "nothing"}}
		for i, s := range steps {
			pl.Steps = append(pl.Steps, api.Step{N: i + 1, Of: len(steps), Text: s.text})
		}
		return &api.Outcome{Plan: b.based(pl)}, nil
	}
	var have []state.GossipKey
	_ = b.n.m.On(func(c *core.Core) { have = slices.Clone(c.State().GossipKeys) })
	if len(have) > 1 { // an earlier change was left half-way: what is in use stays
		if _, err := b.commit(ctx, b.order(r.Order, &state.Command{KeyChange: &state.KeyChange{Step: state.KeyDrop, Key: have[0].Key}})); err != nil {
			return nil, err
		}
	}
	key := make([]byte, 32)
	rand.Read(key)
	began := time.Now()
	var last state.Outcome
	for i, s := range steps {
		cmd := &state.Command{KeyChange: &state.KeyChange{Step: s.step, Key: key}}
		if i == len(steps)-1 {
			cmd.Decision = &state.Decision{Kind: "key", OrderedBy: r.Who, Reason: r.Reason, Outcome: "done", Sentence: "gossip was given a new key by " + r.Who}
		}
		var err error
		if last, err = b.commit(ctx, b.order(r.Order, cmd)); err != nil {
			return nil, err
		}
		if i < len(steps)-1 {
			if p != nil {
				p(api.Step{N: i + 1, Of: len(steps), Text: s.text, AtMs: api.Ms(time.Since(began)), State: "waiting"})
			}
			select {
			case <-time.After(member.KeysFollow):
			case <-ctx.Done():
				return nil, &api.Error{Code: api.CodeTimeout, What: "the change of keys is half done", Why: "it takes " + (2 * member.KeysFollow).String(), Do: "hanode key rotate takes it up again"}
			}
		}
	}
	return &api.Outcome{Decision: decisionID(last.Decision), Text: "gossip has a new key", OutageMs: api.Ms(-time.Millisecond), ReadyMs: api.Ms(-time.Millisecond), TookMs: api.Ms(time.Since(began)), Next: []string{"hanode status"}}, nil
}

// UpgradeStatus says what runs where, in which order to go on, and whether the feature level can be raised.
func (b backend) UpgradeStatus(context.Context) (*api.UpgradeStatus, error) {
	out := &api.UpgradeStatus{Known: state.FeatureLevel}
	self := b.n.cfg.Version
	var standby, active, witness []string
	err := b.n.m.On(func(c *core.Core) {
		out.Level = max(1, c.State().FeatureLevel)
		for i := range c.State().Members {
			m := &c.State().Members[i]
			if m.Removed {
				continue
			}
			st := b.member(c, m)
			one := api.UpgradeMember{Name: m.Name, Role: m.Role.String(), State: st.State, Version: m.Version, Level: max(1, m.Level)}
			out.Members = append(out.Members, one)
			out.Known = min(out.Known, one.Level)
			switch {
			case m.Version == self:
			case m.Role == cluster.RoleWitness:
				witness = append(witness, m.Name)
			case b.holds(c, m.No):
				active = append(active, m.Name)
			default:
				standby = append(standby, m.Name)
			}
		}
	})
	if err != nil {
		return nil, api.Errorf(api.CodeFailed, "%v", err)
	}
	out.Order = slices.Concat(standby, active, witness)
	switch {
	case len(out.Order) > 0:
		out.Text = fmt.Sprintf("%s run another version than %s here: upgrade one after the other, standby first", strings.Join(out.Order, ", "), self)
		out.Next = []string{"hanode status, and the package on " + out.Order[0] + "; restart its daemon when status says PROTECTED"}
		if slices.Contains(active, out.Order[0]) {
			out.Next = []string{"hanode member drain " + out.Order[0] + ", then its package, restart, hanode member undrain " + out.Order[0]}
		}
	case out.Known > out.Level:
		out.Text = fmt.Sprintf("every member knows feature level %d, the cluster makes use of %d", out.Known, out.Level)
		out.Next = []string{"hanode upgrade finish"}
	default:
		out.Text = "nothing is to be done: every member runs " + self
		out.Next = []string{"hanode status"}
	}
	return out, nil
}

// UpgradeFinish raises the feature level. After it no member can go back to an older version.
func (b backend) UpgradeFinish(ctx context.Context, r api.UpgradeRequest, _ api.Progress) (*api.Outcome, error) {
	st, err := b.UpgradeStatus(ctx)
	if err != nil {
		return nil, err
	}
	if st.Known <= st.Level {
		for _, m := range st.Members {
			if m.Level < state.FeatureLevel {
				return nil, api.Refusal("upgrade finish refused", fmt.Sprintf("%s runs %s, which knows feature level %d", m.Name, m.Version, m.Level), "upgrade it: hanode upgrade status")
			}
		}
		return &api.Outcome{Text: fmt.Sprintf("the cluster has feature level %d already", st.Level), OutageMs: api.Ms(-time.Millisecond), ReadyMs: api.Ms(-time.Millisecond), Next: []string{"hanode status"}}, nil
	}
	return b.one(ctx, r.Order, "upgrade", fmt.Sprintf("the upgrade was finished by %s: feature level %d to %d, and no way back to an older version", r.Who, st.Level, st.Known),
		fmt.Sprintf("the cluster has feature level %d", st.Known), &state.Command{Level: &state.Level{Level: st.Known}})
}

// The format of a backup, as backup.json in it says, and the file with the agreed state.
const (
	backupFormat = 1
	backupState  = "state.pb"
)

// Backup writes what a cluster is made anew from: the agreed state, the spec as it was written, and the authority.
func (b backend) Backup(_ context.Context, w io.Writer) error {
	ca := b.n.dir.CA
	if ca == nil {
		return api.Refusal("backup refused", "this node does not hold the cluster's authority", "make the backup on a node that holds ca.key")
	}
	key, err := ca.KeyPEM()
	if err != nil {
		return err
	}
	var st *state.State
	if err := b.n.m.On(func(c *core.Core) { st = c.State().Redacted() }); err != nil {
		return api.Errorf(api.CodeFailed, "%v", err)
	}
	bw := api.NewBundle(w, "hanode-backup-"+st.Name, time.Now())
	return errors.Join(bw.AddJSON("backup.json", map[string]any{"format": backupFormat, "cluster": st.Name, "cluster_id": st.ClusterID, "fork_count": st.ForkCount, "node": b.n.dir.Identity.Name,
		"at": api.At(time.Now()), "version": b.n.cfg.Version, "feature_level": st.FeatureLevel, "spec_version": st.Spec.N}),
		bw.Add(backupState, st.Snapshot()), bw.Add("spec.hcl", st.Spec.Source), bw.Add(pki.CAKeyFile, key), bw.Add(pki.CAFile, pki.EncodeCerts(ca.Cert)), bw.Close())
}
