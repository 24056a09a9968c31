package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/api/apitest"
)

func TestForceShowsTheLossAndIsTyped(t *testing.T) {
	w := newWorld(t)
	w.Do(func(s *api.Status) { s.Services[0].InSync = []string{"a"} })
	w.Risk = api.Risk{Bytes: 118 << 20, Operations: 2211}
	w.want(3, "", "it may lose: 118 MiB in 2211 operations", "force", "db", "--to", "b")
	w.want(3, "", "it may lose", "force", "db", "--to", "b", "--yes")
	w.want(2, "", "add --yes", "force", "db", "--to", "b", "--accept-loss")
	w.want(0, "At risk: 118 MiB", "", "force", "db", "--to", "b", "--plan")
	w.person, w.in = true, "yes\n"
	w.want(3, "", `Type "db" to go on`, "force", "db", "--to", "b", "--accept-loss")
	if len(w.Orders) != 0 {
		t.Fatalf("obeyed %q", w.Orders)
	}
	w.in = "db\n"
	w.want(0, "db is active on b", "At risk: 118 MiB", "force", "db", "--to", "b", "--accept-loss")
	w.person = false
	w.Do(func(s *api.Status) { s.Services[0].InSync = nil })
	w.want(0, "db is active on a", "At risk: 118 MiB", "force", "db", "--to", "a", "--accept-loss", "--yes")
}

// risky is a daemon that wants to be told that the old active is off.
type risky struct {
	*apitest.Fake
	got *api.ForceRequest
}

func (r risky) Force(ctx context.Context, req api.ForceRequest, p api.Progress) (*api.Outcome, error) {
	*r.got = req
	out, err := r.Fake.Force(ctx, req, p)
	if err == nil && out.Plan != nil {
		out.Plan.VerifiedOff = []string{"a"}
	}
	return out, err
}

func TestForceAsksForWhatMustBeVerifiedOff(t *testing.T) {
	w := newWorld(t)
	w.person = true
	w.Risk = api.Risk{Bytes: 7}
	var got api.ForceRequest
	var out, errOut bytes.Buffer
	e := w.env(strings.NewReader("db\na is off\n"), &out, &errOut)
	e.dial = func(string) (api.Backend, func()) { return risky{w.Fake, &got}, func() {} }
	if status := run(t.Context(), e, []string{"force", "db", "--to", "b", "--accept-loss"}); status != 0 {
		t.Fatalf("exit %d\n%s", status, errOut.String())
	}
	if len(got.VerifiedOff) != 1 || got.VerifiedOff[0] != "a" || got.Loses.Bytes != 7 || !got.AcceptLoss || got.Base == 0 {
		t.Errorf("ordered %+v", got)
	}
}
