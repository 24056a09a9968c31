package node

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/api/apitest"
)

func orderOf(who string) api.Order { return api.Order{Who: who} }

func TestTheDaemonAnswersAsEveryBackendMust(t *testing.T) {
	tr := newTrio(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	tr.protected(ctx)
	b := backend{tr.a}
	apitest.Suite(t, func(t *testing.T) api.Backend {
		// Back to how each of them begins.
		if _, err := b.Resume(ctx, api.PauseRequest{Order: orderOf("test"), All: true}, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Service(ctx, api.ServiceRequest{Order: orderOf("test"), Service: "db", Action: api.ActionStart}, nil); err != nil {
			t.Fatal(err)
		}
		tr.settled(ctx)
		if _, err := b.Failback(ctx, api.MoveRequest{Order: orderOf("test"), All: true}, nil); err != nil {
			t.Fatal(err)
		}
		tr.settled(ctx)
		return b
	})
}

func wantRefusal(t *testing.T, err error, code api.Code, word string) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got %v, want an error of the kind %s", err, code)
	}
	text := e.Error()
	for _, p := range e.Problems {
		text += "\n" + p.Node + ": " + p.Text + " (" + p.Do + ")"
	}
	if !strings.Contains(text, word) {
		t.Fatalf("%q does not say %q", text, word)
	}
}

func TestApplyAsksEveryNodeConcernedAndChangesNothingWhenOneCannot(t *testing.T) {
	tr := newTrio(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	b := backend{tr.a}
	apply := func(text string) error {
		_, err := b.Apply(ctx, api.ApplyRequest{Order: orderOf("test"), File: "f.hcl", Text: text}, nil)
		return err
	}
	wantRefusal(t, apply(strings.Replace(hot, "/bin/sleep", "/no/such/program", 1)), api.CodeInvalid, "b: service \"db\"")
	wantRefusal(t, apply(strings.Replace(hot, "  process", "  vip \"10.9.8.7/24\" {}\n\n  process", 1)), api.CodeInvalid, "10.9.8.0/24")
	wantRefusal(t, apply(strings.Replace(hot, "  process", "  vip \"10.9.8.7/24\" {\n    interface = \"eth77\"\n  }\n\n  process", 1)), api.CodeInvalid, "eth77")
	file := filepath.Join(tr.dir, "absent")
	wantRefusal(t, apply(strings.Replace(hot, "  process", "  same_files = [\""+file+"\"]\n\n  process", 1)), api.CodeInvalid, "not the same on all nodes")
	if st, err := b.Status(ctx, api.StatusQuery{}); err != nil || st.Cluster.SpecVersion != 0 {
		t.Fatalf("a refused spec is in force: version %d, %v", st.Cluster.SpecVersion, err)
	}
	if err := os.WriteFile(file, []byte("here"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := apply(strings.Replace(hot, "  process", "  same_files = [\""+file+"\"]\n\n  process", 1)); err != nil {
		t.Fatal(err)
	}
	if err := apply(strings.Replace(strings.Replace(hot, "  process", "  same_files = [\""+file+"\"]\n\n  process", 1), `["a", "b"]`, `["a", "c"]`, 1)); err == nil {
		t.Fatal("a node that has not joined was taken")
	}
}

func TestOrdersReturnWhenTheyAreCarriedOut(t *testing.T) {
	tr := newTrio(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	tr.protected(ctx)
	a, b := backend{tr.a}, backend{tr.b}
	state := func() *api.Service {
		st, err := b.Status(ctx, api.StatusQuery{})
		if err != nil {
			t.Fatal(err)
		}
		return st.Service("db")
	}
	service := func(by backend, action string) *api.Outcome {
		t.Helper()
		out, err := by.Service(ctx, api.ServiceRequest{Order: orderOf("test"), Service: "db", Action: action}, nil)
		if err != nil || out.Decision == "" {
			t.Fatalf("%s: %+v, %v", action, out, err)
		}
		return out
	}
	service(b, api.ActionStop)
	if s := state(); s.State != api.StateStopped || s.Active != "" {
		t.Fatalf("after stop: %+v", s)
	}
	if s := tr.a.list()[0]; s.active.Load() {
		t.Error("stop has returned, and the service is active on a")
	}
	service(b, api.ActionStart)
	if s := state(); s.State != api.StateActive {
		t.Fatalf("after start: %+v", s)
	}
	tr.settled(ctx)
	if _, err := b.Failback(ctx, api.MoveRequest{Order: orderOf("test"), All: true}, nil); err != nil { // whoever was ready first has started it
		t.Fatal(err)
	}
	tr.settled(ctx)
	before := tr.a.list()[0].procs.Processes()[0].PID
	service(b, api.ActionRestart) // passed on to a
	if after := tr.a.list()[0].procs.Processes()[0]; after.PID == before || after.State != "running" {
		t.Errorf("after the restart the process is %+v, and was pid %d", after, before)
	}
	service(a, api.ActionClear)

	tr.settled(ctx)
	if _, err := b.Drain(ctx, api.MemberRequest{Order: orderOf("test"), Name: "a"}, nil); err != nil {
		t.Fatal(err)
	}
	if s := state(); s.Active != "b" {
		t.Fatalf("a is drained, and db is active on %q", s.Active)
	}
	_, err := b.Drain(ctx, api.MemberRequest{Order: orderOf("test"), Name: "b"}, nil)
	wantRefusal(t, err, api.CodeRefused, "no other node can take db")
	_, err = a.MemberRemove(ctx, api.MemberRequest{Order: orderOf("test"), Name: "b"}, nil)
	wantRefusal(t, err, api.CodeRefused, "active services")
	if _, err := b.Undrain(ctx, api.MemberRequest{Order: orderOf("test"), Name: "a"}, nil); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"b", "a", "w", "b"} { // asked of a, whoever leads
		if out, err := a.TransferLeader(ctx, api.LeaderRequest{Order: orderOf("test"), To: to}, nil); err != nil {
			t.Fatalf("leader to %s: %v", to, err)
		} else if l, err := a.Leader(ctx); err != nil || l.Leader != to {
			t.Fatalf("leader to %s: %+v, and %+v leads, %v", to, out, l, err)
		}
	}
	if _, err := b.MemberRemove(ctx, api.MemberRequest{Order: orderOf("test"), Name: "w"}, nil); err != nil {
		t.Fatal(err)
	}
	m, err := b.Members(ctx)
	if err != nil || len(m) != 2 {
		t.Fatalf("%d members after the witness was removed, %v", len(m), err)
	}
	out, err := a.Apply(ctx, api.ApplyRequest{Order: orderOf("test"), File: "none.hcl", Text: "cluster {\n  profile = \"normal\"\n}\n", Remove: api.List[string]{"db"}}, nil)
	if err != nil || out.Spec != 2 {
		t.Fatalf("delete the service: %+v, %v", out, err)
	}
}

func TestTheFiguresForPrometheusSayWhatIsGoingOn(t *testing.T) {
	tr := newTrio(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	tr.protected(ctx)
	if _, err := (backend{tr.a}).Switchover(ctx, api.MoveRequest{Order: orderOf("test"), Service: "db", To: "b"}, nil); err != nil {
		t.Fatal(err)
	}
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", tr.b.cfg.Socket)
	}}}
	defer hc.CloseIdleConnections()
	var text string
	want := []string{`hanode_service_role{role="active",service="db"} 1`, `hanode_service_role{role="standby",service="db"} 0`, `hanode_service_epoch{service="db"} 2`,
		`hanode_service_moves_total{kind="switchover",service="db"} 1`, `hanode_member_up{member="w",role="witness"} 1`, "hanode_quorum 1", "hanode_lease_seconds 0.6",
		`hanode_lease_remaining_seconds{service="db"} 0.`, "hanode_raft_fsync_p99_seconds 0.0", "hanode_lateness_p999_seconds 0.", `hanode_info{cluster="test",node="b",profile="normal",version="test"} 1`}
	eventually(t, "all figures", func() bool {
		res, err := hc.Get("http://hanode/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("status %d, %v: %s", res.StatusCode, err, body)
		}
		text = string(body)
		for _, w := range want {
			if !strings.Contains(text, w) {
				return false
			}
		}
		return !strings.Contains(text, "hanode_renew_round_trip_seconds_count 0\n")
	})
	if t.Failed() {
		t.Log(text)
	}
	if err := checkMetrics("10.0.0.1:9743"); err == nil {
		t.Error("the figures would be served to everybody")
	}
	if err := checkMetrics("127.0.0.1:9743"); err != nil {
		t.Error(err)
	}
}
