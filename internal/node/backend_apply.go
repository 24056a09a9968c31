package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/spec"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
)

// limits is what this version reads in a spec but cannot run.
var limits = func() []spec.Limit {
	const later = "leave it out: this version does not run it yet"
	l := []spec.Limit{{Block: "memory", Why: later}, {Block: "remote", Why: later}, {Block: "alert", Key: "mail", Why: "use exec"}, {Block: "alert", Key: "webhook", Why: "use exec"}, {Block: "alert", Key: "syslog", Why: "use exec"},
		{Block: "service", Key: "fence", Why: later}}
	for _, key := range []string{"site_failover", "max_loss"} {
		l = append(l, spec.Limit{Block: "service", Key: key, Why: later})
	}
	for _, key := range []string{"systemd", "ocf"} {
		l = append(l, spec.Limit{Block: "process", Key: key, Why: "use start = [...]: this version runs programs itself"})
	}
	l = append(l, spec.Limit{Block: "vip", Key: "sites", Why: later})
	for _, kind := range []string{"postgres", "mysql", "dns", "smtp", "rpc", "ping", "systemd", "ocf", "heartbeat"} {
		l = append(l, spec.Limit{Block: "check", Key: kind, Why: "use tcp, http or exec"})
	}
	return l
}

// Apply validates and then commits. An unchanged service is not touched.
func (b backend) Apply(ctx context.Context, r api.ApplyRequest, p api.Progress) (*api.Outcome, error) {
	var members []spec.Member
	var now *cluster.Spec
	var version uint64
	var source string
	if err := b.rests(r.Order); err != nil {
		return nil, err
	}
	_ = b.n.m.On(func(c *core.Core) {
		now, version, source = c.State().Compiled(), c.State().Spec.N, string(c.State().Spec.Source)
		for i := range c.State().Members {
			m := &c.State().Members[i]
			if m.Removed {
				continue
			}
			sm := spec.Member{Name: m.Name, Role: m.Role, Site: m.Site}
			for _, a := range m.Addrs {
				if ap, err := netip.ParseAddrPort(a); err == nil {
					sm.Addresses = append(sm.Addresses, ap.Addr())
				}
			}
			members = append(members, sm)
		}
	})
	if r.SpecVersion != 0 && r.SpecVersion != version {
		return nil, api.Errorf(api.CodeMoved, "apply refused: the spec in force is version %d, this change is based on %d: hanode spec show, then apply again", version, r.SpecVersion)
	}
	file := r.File
	if file == "" {
		file = "spec.hcl"
	}
	next, ds := spec.Parse(file, []byte(r.Text), spec.WithMembers(members...))
	if len(ds) > 0 {
		return nil, invalid(ds)
	}
	changes := spec.Diff(now, next)
	plan := &api.Plan{Order: fmt.Sprintf("apply %s", file), SpecVersion: version, Unchanged: untouched(next, changes), Risk: api.Risk{Text: "nothing"}}
	for _, c := range changes {
		plan.Changes = append(plan.Changes, api.SpecDelta{Object: "service " + c.Service, Key: c.Key, From: c.Old, To: c.New, Class: string(c.Class)})
		if c.Class == spec.Refused && !(c.Key == "service" && slices.Contains(r.Remove, c.Service)) {
			return nil, refusedChange(c)
		}
	}
	compiled, err := next.Encode()
	if err != nil {
		return nil, api.Errorf(api.CodeFailed, "%v", err)
	}
	problems := append(spec.Unsupported(next, limits()), mixed(next)...)
	if len(problems) == 0 {
		problems = append(b.n.unkept(next, now), b.validateEverywhere(ctx, next, compiled, touched(next, changes), p)...)
	}
	if len(problems) > 0 {
		return nil, unusable(file, problems)
	}
	if r.Plan {
		return &api.Outcome{Plan: b.based(plan), Spec: version}, nil
	}
	if len(changes) == 0 && version > 0 && source == r.Text {
		return &api.Outcome{Text: fmt.Sprintf("nothing changes: spec version %d is in force", version), Spec: version, Next: []string{"hanode status"}}, nil
	}
	if err := b.stopRemoved(ctx, next, r, p); err != nil {
		return nil, err
	}
	o, err := b.commit(ctx, b.order(r.Order, &state.Command{SpecApply: &state.SpecApply{Base: version, Source: []byte(r.Text), Compiled: compiled, Remove: r.Remove},
		Decision: &state.Decision{Kind: "apply", OrderedBy: r.Who, Reason: r.Reason, Outcome: "done", Sentence: fmt.Sprintf("spec version %d was applied by %s", version+1, r.Who)}}))
	if err != nil {
		return nil, err
	}
	return &api.Outcome{Text: fmt.Sprintf("spec version %d is in force", o.Version), Spec: o.Version, Decision: decisionID(o.Decision), Next: []string{"hanode status"}}, nil
}

// stopRemoved stops what is to be deleted, in good order and before it is: a service that is deleted while it runs ends with its lease, and what
// takes its address or name meanwhile must wait for that.
func (b backend) stopRemoved(ctx context.Context, next *cluster.Spec, r api.ApplyRequest, p api.Progress) error {
	for _, name := range r.Remove {
		exists := false
		_ = b.n.m.On(func(c *core.Core) { exists = c.State().ServiceByName(name) != nil })
		if !exists || next.Service(name) != nil {
			continue
		}
		if _, err := b.Service(ctx, api.ServiceRequest{Order: api.Order{Who: r.Who, Via: r.Via, Reason: "it is deleted from the spec"}, Service: name, Action: api.ActionStop}, p); err != nil {
			return err
		}
	}
	return nil
}

func untouched(s *cluster.Spec, changes []spec.Change) []string {
	var out []string
	for i := range s.Services {
		if !spec.Touched(changes, s.Services[i].Name) {
			out = append(out, s.Services[i].Name)
		}
	}
	return out
}

func touched(s *cluster.Spec, changes []spec.Change) []string {
	var out []string
	for i := range s.Services {
		if spec.Touched(changes, s.Services[i].Name) {
			out = append(out, s.Services[i].Name)
		}
	}
	return out
}

func refusedChange(c spec.Change) error {
	if c.Key == "service" {
		return api.Refusal("apply refused", fmt.Sprintf("the file is without service %s, which exists", c.Service), "name it to delete it: hanode apply --remove "+c.Service+" FILE")
	}
	return api.Refusal("apply refused", fmt.Sprintf("service %s: %s cannot be changed from %s to %s while the service exists", c.Service, c.Key, c.Old, c.New),
		"remove the service first: hanode apply --remove "+c.Service+" FILE")
}

func invalid(ds spec.Diagnostics) error {
	e := api.Errorf(api.CodeInvalid, "the spec is not valid")
	for _, d := range ds {
		e.Problems = append(e.Problems, api.Diagnostic{File: d.File, Line: d.Line, Column: d.Column, Severity: "error", Text: d.What, Do: d.Remedy})
	}
	return e
}

func unusable(file string, ps []spec.Problem) error {
	e := api.Errorf(api.CodeInvalid, "the spec cannot be run")
	for _, p := range ps {
		where := p.Where
		if p.Service != "" {
			where = "service " + strconv.Quote(p.Service) + ", " + where
		}
		e.Problems = append(e.Problems, api.Diagnostic{File: file, Severity: "error", Node: p.Node, Text: where + ": " + p.What, Do: p.Remedy})
	}
	return e
}

func lookupUser(name string) (uid, gid uint32, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, err
	}
	a, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, 0, err
	}
	g, err := strconv.ParseUint(u.Gid, 10, 32)
	return uint32(a), uint32(g), err
}

func lookupGroup(name string) (uint32, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	id, err := strconv.ParseUint(g.Gid, 10, 32)
	return uint32(id), err
}

func executable(path, _ string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case st.IsDir():
		return fmt.Errorf("%s is a directory", path)
	}
	if err := unix.Access(path, unix.X_OK); err != nil {
		return fmt.Errorf("%s is not executable: chmod +x it", path)
	}
	return nil
}

func directory(path, _ string) error {
	st, err := os.Stat(path)
	if err == nil && !st.IsDir() {
		return fmt.Errorf("%s is not a directory", path)
	}
	return err
}

func interfaces() ([]spec.Interface, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []spec.Interface
	for _, i := range ifs {
		one := spec.Interface{Name: i.Name}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				one.Prefixes = append(one.Prefixes, p)
			}
		}
		out = append(out, one)
	}
	return out, nil
}
