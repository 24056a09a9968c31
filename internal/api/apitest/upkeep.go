package apitest

import (
	"context"
	"io"
	"slices"
	"time"

	"github.com/hanode/hanode/internal/api"
)

func (f *Fake) Checks(ctx context.Context) ([]api.CheckLine, error) {
	if err := f.ask(ctx); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	var out []api.CheckLine
	for _, s := range f.state.Services {
		for _, c := range s.Checks {
			out = append(out, api.CheckLine{Service: s.Name, Name: c.Name, Kind: "postgres", EveryMs: ms(1000), From: []string{"active"}, Node: s.Active, State: c.State, Output: c.Output, TookMs: c.TookMs})
		}
	}
	return out, nil
}

func (f *Fake) Check(ctx context.Context, r api.CheckRequest, p api.Progress) (*api.Outcome, error) {
	s, err := f.service(r.Service)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(s.Checks, func(c api.Check) bool { return c.Name == r.Check }) {
		return nil, notFound(r.Service+" has no check "+r.Check, "hanode check list")
	}
	return f.simple(ctx, "check "+r.Action+" of "+r.Service+"/"+r.Check, r.Order, p, func() string {
		if r.Action == api.CheckRun {
			return "check " + r.Service + "/" + r.Check + " succeeds on a after 3ms: ok"
		}
		return "check " + r.Service + "/" + r.Check + ": " + r.Action + " done"
	})
}

func (f *Fake) AlertTest(ctx context.Context, r api.AlertRequest, p api.Progress) (*api.Outcome, error) {
	if r.Name != "" && r.Name != "page" {
		return nil, notFound("there is no alert "+r.Name+" in the spec", "hanode spec show")
	}
	return f.simple(ctx, "alert test", r.Order, p, func() string { return "told on a: page" })
}

func (f *Fake) KeyRotate(ctx context.Context, r api.KeyRequest, p api.Progress) (*api.Outcome, error) {
	return f.simple(ctx, "key rotate", r.Order, p, func() string { return "gossip has a new key" })
}

func (f *Fake) UpgradeStatus(ctx context.Context) (*api.UpgradeStatus, error) {
	if err := f.ask(ctx); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	out := &api.UpgradeStatus{Level: 1, Known: 2, Text: "every member knows feature level 2, the cluster makes use of 1", Next: []string{"hanode upgrade finish"}}
	for _, m := range f.state.Members {
		out.Members = append(out.Members, api.UpgradeMember{Name: m.Name, Role: m.Role, State: m.State, Version: m.Version, Level: 2})
	}
	return out, nil
}

func (f *Fake) UpgradeFinish(ctx context.Context, r api.UpgradeRequest, p api.Progress) (*api.Outcome, error) {
	return f.simple(ctx, "upgrade finish", r.Order, p, func() string {
		f.state.Cluster.FeatureLevel = 2
		return "the cluster has feature level 2"
	})
}

func (f *Fake) Approve(ctx context.Context, r api.ApproveRequest, p api.Progress) (*api.Outcome, error) {
	s, err := f.service(r.Service)
	if err != nil {
		return nil, err
	}
	if s.State == api.StateActive {
		return nil, api.Refusal("approve of db refused", "nothing waits for your word: db is active on "+s.Active, "hanode status")
	}
	return f.simple(ctx, "approve of "+r.Service, r.Order, p, func() string { return "the failover of " + r.Service + " is approved" })
}

func (f *Fake) Backup(ctx context.Context, w io.Writer) error {
	if err := f.ask(ctx); err != nil {
		return err
	}
	defer f.mu.Unlock()
	b := api.NewBundle(w, "hanode-backup-shop", time.Unix(0, 0))
	if err := b.AddJSON("backup.json", map[string]any{"format": 1}); err != nil {
		return err
	}
	return b.Close()
}
