package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/api/apitest"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/ui"
	"github.com/hanode/hanode/internal/witnesscmd"
)

// world is one machine with a fake daemon; in is what a person types.
type world struct {
	*apitest.Fake
	t      *testing.T
	in     string
	person bool
	dead   error // the daemon does not answer
	seams  seams
	dir    string
}

func newWorld(t *testing.T) *world { return &world{Fake: apitest.New(), t: t, dir: t.TempDir()} }

type result struct {
	status      int
	out, errOut string
}

func (w *world) env(in io.Reader, out, errOut io.Writer) *env {
	return &env{
		Env: &cli.Env{Stdin: in, Stdout: out, Stderr: errOut, Interactive: w.person, Getenv: func(string) string { return "" },
			Now: func() time.Time { return apitest.Epoch0.Add(time.Minute) }, Zone: time.UTC, Version: api.Version{Version: "1.0.3", Go: "go1.26"}},
		seams: w.seams,
		dial: func(string) (api.Backend, func()) {
			if w.dead != nil {
				w.Fail = w.dead
			}
			return operator{w.Fake}, func() {}
		},
	}
}

// operator orders as alice, as the server on the socket would record it.
type operator struct{ *apitest.Fake }

func (o operator) Switchover(ctx context.Context, r api.MoveRequest, p api.Progress) (*api.Outcome, error) {
	r.Who = "alice"
	return o.Fake.Switchover(ctx, r, p)
}

func (w *world) run(args ...string) result {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	var out, errOut bytes.Buffer
	status := run(ctx, w.env(strings.NewReader(w.in), &out, &errOut), args)
	if word := ui.Unsayable(out.String() + errOut.String()); word != "" && !strings.Contains(out.String(), `"generation"`) {
		w.t.Errorf("hanode %v says %q", args, word)
	}
	return result{status, out.String(), errOut.String()}
}

func (w *world) want(status int, out, errOut string, args ...string) result {
	w.t.Helper()
	r := w.run(args...)
	if r.status != status || !strings.Contains(r.out, out) || !strings.Contains(r.errOut, errOut) || out == "" && r.out != "" {
		w.t.Errorf("hanode %s: exit %d, want %d\nstdout, want %q:\n%s\nstderr, want %q:\n%s", strings.Join(args, " "), r.status, status, out, r.out, errOut, r.errOut)
	}
	return r
}

func unreachable() error {
	return &api.Error{Code: api.CodeUnreachable, What: "hanode does not answer on this machine", Why: "nobody listens", Do: "systemctl start hanode"}
}

func TestASwitchoverPrintsOneLineAndTellsItsStepsAside(t *testing.T) {
	w := newWorld(t)
	r := w.want(0, "db is active on b, epoch 8 (D-1); VIP answered after 28 ms, ready after 4.1 s\n", "hold new writes [a]  2 ms", "switchover", "db", "--reason", "test")
	if strings.Count(r.out, "\n") != 1 || !strings.Contains(r.errOut, "next:  hanode explain D-1") || !strings.Contains(r.errOut, "epoch 8 granted [w]  6 ms") {
		t.Errorf("stdout:\n%s\nstderr:\n%s", r.out, r.errOut)
	}
	if want := "switchover of db, a to b by alice"; len(w.Orders) != 1 || w.Orders[0] != want {
		t.Errorf("orders %q, want %q", w.Orders, want)
	}
}

func TestAPersonSeesThePlanAndIsAsked(t *testing.T) {
	w := newWorld(t)
	w.person, w.in = true, "n\n"
	w.want(3, "", "Clients wait about 30 ms.", "switchover", "db")
	if len(w.Orders) != 0 {
		t.Fatalf("obeyed a no: %q", w.Orders)
	}
	w.in = "y\n"
	w.want(0, "db is active on b", "Really order the switchover of db? [y/N]", "switchover", "db")
	w.in = ""
	w.want(0, "db is active on a", "hold new writes", "switchover", "db", "--yes")
}

// moving is a daemon whose state moves between the plan and the order.
type moving struct{ *apitest.Fake }

func (m moving) Switchover(ctx context.Context, r api.MoveRequest, p api.Progress) (*api.Outcome, error) {
	out, err := m.Fake.Switchover(ctx, r, p)
	if r.Plan {
		m.Do(func(*api.Status) {})
	}
	return out, err
}

func TestAnOrderIsRefusedIfTheStateMovedSinceThePlan(t *testing.T) {
	w := newWorld(t)
	w.want(0, "next:  hanode switchover db --base 100", "", "switchover", "db", "--plan")
	w.want(0, "db is paused", "", "pause", "db")
	w.want(3, "", "the state has moved from 100 to 101 since the plan", "switchover", "db", "--base", "100")
	w.person = true
	var out, errOut bytes.Buffer
	e := w.env(strings.NewReader("y\n"), &out, &errOut)
	e.dial = func(string) (api.Backend, func()) { return moving{w.Fake}, func() {} }
	if status := run(t.Context(), e, []string{"switchover", "db"}); status != 3 || !strings.Contains(errOut.String(), "the state has moved") {
		t.Errorf("exit %d\n%s", status, errOut.String())
	}
}

func TestARefusalSaysWhyAndWhatToDo(t *testing.T) {
	w := newWorld(t)
	w.Do(func(s *api.Status) { s.Services[0].InSync = []string{"a"} })
	w.want(3, "", "hanode: switchover to b refused\n  why:  its copy of the volume is 312 MiB behind\n  do:   wait: hanode wait db --for in-sync\n", "switchover", "db")
	r := w.want(3, "", `"code":"refused"`, "switchover", "db", "--json")
	var e struct{ Error api.Error }
	if err := json.Unmarshal([]byte(r.errOut), &e); err != nil || e.Error.Exit != 3 || e.Error.Why == "" {
		t.Errorf("%v, %+v of %s", err, e, r.errOut)
	}
}

func TestEveryKindOfErrorHasItsExitStatus(t *testing.T) {
	for code, status := range map[api.Code]int{api.CodeFailed: 1, api.CodeInvalid: 2, api.CodeNotFound: 2, api.CodeRefused: 3, api.CodeDenied: 3,
		api.CodeNoQuorum: 4, api.CodeUnreachable: 4, api.CodeTimeout: 5} {
		w := newWorld(t)
		w.Fail = &api.Error{Code: code, What: "it is so"}
		for _, args := range [][]string{{"switchover", "db"}, {"explain", "db"}, {"events"}, {"alarm", "list"}, {"member", "list"}, {"leader"},
			{"spec", "show"}, {"token", "create"}, {"wait", "db"}, {"service", "start", "db"}, {"resume", "--all"}, {"status", "--data", w.dir}} {
			if args[0] == "status" && status == 5 {
				continue // an answer too late is a dead daemon there
			}
			w.want(status, "", "it is so", args...)
		}
	}
}

func TestWrongUsageIsExitStatus2AndDoesNothing(t *testing.T) {
	w := newWorld(t)
	for _, args := range [][]string{{}, {"nonsense"}, {"member"}, {"member", "nonsense"}, {"switchover"}, {"switchover", "db", "web"}, {"switchover", "db", "--gently"},
		{"failback"}, {"failback", "db", "--all"}, {"force", "db", "--accept-loss"}, {"pause", "db", "--for", "1000h"}, {"pause", "db", "--for", "soon"},
		{"wait", "db", "--for", "happiness"}, {"token", "create", "--role", "king"}, {"token", "create", "--ttl", "9000h"}, {"apply"}, {"apply", "/does/not/exist"},
		{"events", "--until", "tomorrow"}, {"events", "-n", "-1"}, {"spec", "show", "first"}, {"member", "set", "b"}, {"status", "--watch", "--every", "1ms"},
		{"service", "stop", "db"}, {"member", "remove", "b"}, {"leave"}, {"apply", "--remove", "db", "-"}, {"init"}, {"join", "--token", "x"}, {"debug", "bundle", "-o", w.dir}} {
		w.want(2, "", "", args...)
	}
	if len(w.Orders) != 0 {
		t.Errorf("obeyed %q", w.Orders)
	}
}

func TestAnOrderThatTakesTooLongIsExitStatus5(t *testing.T) {
	w := newWorld(t)
	w.Hang = make(chan struct{})
	w.want(5, "", "may still be carried out", "switchover", "db", "--timeout", "20ms")
	w.Hang = nil
	w.Do(func(s *api.Status) { s.Services[0].Protection = api.Degraded })
	w.want(5, "", "db is not protected after 20ms", "wait", "db", "--for", "protected", "--timeout", "20ms")
}

func TestStatusWithADeadDaemonShowsTheLastKnownState(t *testing.T) {
	w := newWorld(t)
	w.dead = unreachable()
	w.want(4, "", "there is no last known state in", "status", "--data", w.dir)
	w.want(4, "", "hanode init or hanode join", "status", "--data", filepath.Join(w.dir, "none"))
	s := apitest.Healthy()
	if err := api.SaveLastStatus(w.dir, &s); err != nil {
		t.Fatal(err)
	}
	w.want(4, "LAST KNOWN STATE, 60 s old", "hanode does not answer on this machine", "status", "--data", w.dir)
	r := w.want(4, `"source":"last-known","age_ms":60000`, "", "status", "--json", "--data", w.dir)
	if r.errOut != "" {
		t.Errorf("stderr: %s", r.errOut)
	}
	w.dead = context.DeadlineExceeded
	w.want(4, "LAST KNOWN STATE", "did not answer within", "status", "--data", w.dir)
}

func TestStatusWithoutQuorumIsExitStatus4UnlessLocal(t *testing.T) {
	w := newWorld(t)
	w.Do(func(s *api.Status) {
		s.Cluster.Quorum, s.Cluster.Leader, s.Cluster.Votes.Heard, s.Cluster.Awaiting = false, "", 1, "w or b: 2 of 3 needed"
	})
	w.want(4, "waiting for w or b: 2 of 3 needed", "", "status")
	w.want(0, "waiting for w or b: 2 of 3 needed", "", "status", "--local")
}

func TestWatchGoesOnUntilInterrupted(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	out := &stopAfter{lines: 3, stop: cancel}
	if status := run(ctx, w.env(strings.NewReader(""), out, io.Discard), []string{"status", "--watch", "--every", "100ms", "--json"}); status != 0 {
		t.Errorf("exit %d", status)
	}
	if out.seen < 3 {
		t.Errorf("%d lines", out.seen)
	}
}

type stopAfter struct {
	lines, seen int
	stop        func()
}

func (s *stopAfter) Write(b []byte) (int, error) {
	if s.seen += bytes.Count(b, []byte("\n")); s.seen >= s.lines {
		s.stop()
	}
	return len(b), nil
}

func TestEventsAreLinesAndFollowEndsQuietly(t *testing.T) {
	w := newWorld(t)
	w.Happen("first")
	w.want(0, "first", "next:", "events")
	w.want(0, "first", "", "events", "--until", "30ms")
	r := w.want(0, `"text":"first"`, "", "events", "--json")
	if strings.Count(r.out, "\n") != 1 {
		t.Errorf("%s", r.out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	out := &stopAfter{lines: 2, stop: cancel}
	var errOut bytes.Buffer
	if status := run(ctx, w.env(strings.NewReader(""), out, &errOut), []string{"events", "-f"}); status != 0 || errOut.Len() > 0 {
		t.Errorf("exit %d, %s", status, errOut.String())
	}
}

func TestApplyIsACompareAndSetAndPrintsProblems(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(w.dir, "ha.hcl")
	if err := os.WriteFile(file, []byte("# new\nservice \"db\" {\n  nodes = [\"a\", \"b\"]\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.want(0, "service db, check sql: every", "", "apply", "--plan", file)
	w.want(0, "hanode apply "+file+" --base 1", "", "apply", "--plan", file)
	w.want(0, "spec version 2 is in force (D-1)", "next:  hanode status", "apply", "--base", "1", file)
	w.want(3, "", "the spec is version 2, not 1", "apply", "--base", "1", file)
	w.person, w.in = true, "y\n"
	w.want(0, "spec version 3", "Really apply", "apply", file)
	w.person = false
	w.in = "# nothing\n"
	w.want(3, "", "the file has no service db", "apply", "-")
	w.want(0, "spec version 4", "", "apply", "--remove", "db", "--yes", "-")
	w.Broken = []api.Diagnostic{{File: "ha.hcl", Line: 12, Column: 5, Node: "b", Text: "no such user: postgres"}}
	w.want(2, "", "ha.hcl:12:5 on b: error: no such user: postgres", "apply", file)
	w.in = strings.Repeat("#", api.MaxRequest+1)
	w.want(2, "", "larger than", "apply", "-")
}

func TestSpecIsShownComparedAndListed(t *testing.T) {
	w := newWorld(t)
	r := w.want(0, "service \"db\"", "version 1, applied by root", "spec", "show")
	if strings.Contains(r.out, "next") {
		t.Errorf("what is shown cannot be applied: %s", r.out)
	}
	w.want(0, "+service", "", "spec", "diff")
	file := filepath.Join(w.dir, "f")
	if err := os.WriteFile(file, []byte(r.out+"# more\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.want(0, "+# more", "", "spec", "diff", file)
	w.want(0, "are the same", "", "spec", "diff", "1")
	w.want(0, `"differ":false`, "", "spec", "diff", "1", "--json")
	w.want(0, "db: new", "", "spec", "log")
	w.want(2, "", "there is no spec version 9", "spec", "show", "9")
}

func TestSpecCheckAndFmtNeedNoDaemon(t *testing.T) {
	w := newWorld(t)
	w.dead = unreachable()
	w.want(1, "", "this build cannot check a spec", "spec", "check", "-")
	w.seams.checkSpec = func(file string, text []byte) []api.Diagnostic {
		if bytes.Contains(text, []byte("bad")) {
			return []api.Diagnostic{{File: file, Line: 1, Column: 2, Severity: "error", Text: "bad"}}
		}
		return nil
	}
	w.seams.formatSpec = func(_ string, text []byte) ([]byte, []api.Diagnostic) { return bytes.ToUpper(text), nil }
	file := filepath.Join(w.dir, "f")
	if err := os.WriteFile(file, []byte("good\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	w.want(0, "is valid", "next:  hanode apply --plan", "spec", "check", file)
	w.in = "bad"
	w.want(2, "", "-:1:2: error: bad", "spec", "check", "-")
	w.want(0, "GOOD", "", "spec", "fmt", file)
	w.want(0, file, "", "spec", "fmt", "-w", file)
	if b, err := os.ReadFile(file); err != nil || string(b) != "GOOD\n" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestServicesArePausedStoppedAndCleared(t *testing.T) {
	w := newWorld(t)
	w.want(0, "db is paused until 03:38:02", "next:  hanode resume db", "pause", "db", "--for", "30m")
	w.want(0, "db is no longer paused", "", "resume", "--all")
	w.want(0, "db is stopped", "next:  hanode service start db", "service", "stop", "db", "--yes")
	w.want(0, "db is active", "next:  hanode wait db --for active", "service", "start", "db")
	w.want(0, "db is active", "", "service", "clear", "db")
	w.want(0, "db is active\n", "next:  hanode status", "wait", "db")
	w.want(0, "Takes about 5 ms. No client waits.\nAt risk: nothing", "", "service", "stop", "db", "--plan")
}

func TestMembersAreListedDrainedAndRemoved(t *testing.T) {
	w := newWorld(t)
	w.want(0, "10.2.0.13:7400 up, 4.1 ms", "", "member", "list")
	w.want(0, "drain of b done", "", "member", "drain", "b")
	w.want(0, "undrain of b done", "next:  hanode failback --all", "member", "undrain", "b")
	w.want(0, "change of b done", "", "member", "set", "b", "--advertise", "10.0.0.99")
	w.want(3, "", "hanode member drain a", "member", "remove", "a", "--yes")
	w.want(0, "removal of w done", "", "member", "remove", "w", "--yes")
	w.want(2, "", "there is no member x", "member", "drain", "x")
	w.want(0, "w leads since", "", "leader")
	w.want(0, "b leads", "", "leader", "--to", "b")
}

func TestATokenStandsAloneOnStdout(t *testing.T) {
	w := newWorld(t)
	r := w.want(0, "hn1-SECRET\n", "hanode join --token hn1-SECRET --name b --advertise IP", "token", "create")
	if r.out != "hn1-SECRET\n" {
		t.Errorf("stdout: %q", r.out)
	}
	w.want(0, `"token":"hn1-SECRET","role":"witness"`, "", "token", "create", "--role", "witness", "--json")
	r = w.want(0, "replacement of b done", "", "member", "replace", "b", "--yes")
	if !strings.Contains(r.out+r.errOut, "hn1-SECRET") {
		t.Errorf("the token for the newcomer is not shown: %+v", r)
	}
}

func TestAlarmsAreListedAndAcknowledged(t *testing.T) {
	w := newWorld(t)
	w.want(0, "no alarms", "", "alarm", "list")
	w.Do(func(s *api.Status) {
		s.Alarms = []api.Alarm{{Code: "failed-over", Severity: "warn", Text: "db was moved", Remedy: "read hanode explain D-1"}}
	})
	w.want(0, "WARN  failed-over  db was moved", "", "alarm", "list")
	w.want(0, "failed-over is acknowledged (D-1)", "", "alarm", "ack", "failed-over")
	w.want(2, "", "there is no alarm x", "alarm", "ack", "x")
	w.want(0, "WARN  failed-over", "", "explain", "failed-over")
}

func TestInitJoinAndRunCallTheirSeams(t *testing.T) {
	w := newWorld(t)
	w.want(1, "", "this build cannot make a cluster", "init", "--name", "a", "--advertise", "10.0.0.11")
	var ran api.RunOptions
	w.seams.initNode = func(_ context.Context, o api.InitOptions, p api.Progress) (*api.InitResult, error) {
		p(api.Step{Text: "CA made", State: "done"})
		return &api.InitResult{Name: o.Name, Cluster: o.Cluster, ClusterID: "6f1c", Advertise: o.Advertise + ":7400", DataDir: o.DataDir}, nil
	}
	w.seams.joinNode = func(_ context.Context, o api.JoinOptions, _ api.Progress) (*api.JoinResult, error) {
		if o.Token != "hn1-X" || o.Role != "node" {
			return nil, api.Refusal("join refused", fmt.Sprintf("the token %q is not known", o.Token), "hanode token create")
		}
		return &api.JoinResult{Name: o.Name, Cluster: "shop", Decision: "D-3"}, nil
	}
	w.seams.runNode = func(_ context.Context, o api.RunOptions) error { ran = o; return nil }
	w.want(0, "cluster shop (6f1c) made; this machine is its node a", "next:  hanode run --data "+w.dir, "init", "--name", "a", "--advertise", "10.0.0.11", "--cluster", "shop", "--data", w.dir)
	w.want(0, `"advertise":"10.0.0.11:7400"`, "", "init", "--name", "a", "--advertise", "10.0.0.11", "--json")
	w.want(3, "", "is not known", "join", "--token", "y", "--name", "b", "--advertise", "10.0.0.12")
	w.in = "hn1-X\n"
	w.want(0, "b has joined the cluster shop (D-3)", "it has no vote yet", "join", "--token", "-", "--name", "b", "--advertise", "10.0.0.12")
	w.want(0, "", "", "run", "--data", w.dir, "--socket", "/s")
	if ran.DataDir != w.dir || ran.Socket != "/s" || ran.Log == nil || ran.Version.Version != "1.0.3" || ran.Group != "hanode" {
		t.Errorf("ran with %+v", ran)
	}
	w.want(2, "", "choose debug, info, warn or error", "run", "--log", "loud")
}

func TestLeaveAsksAndWipesOnlyAfterwards(t *testing.T) {
	w := newWorld(t)
	wiped := ""
	w.want(1, "", "cannot wipe", "leave", "--wipe", "--yes")
	w.seams.wipe = func(_ context.Context, dir string) error { wiped = dir; return nil }
	w.want(3, "", "db is active here", "leave", "--wipe", "--yes", "--data", w.dir)
	if wiped != "" {
		t.Fatal("wiped although it did not leave")
	}
	w.want(0, "a has left; "+w.dir+" is empty", "", "leave", "--wipe", "--yes", "--force", "--data", w.dir)
	if wiped != w.dir {
		t.Fatalf("wiped %q", wiped)
	}
	w.seams.wipe = func(context.Context, string) error { return errors.New("it still runs") }
	w.want(1, "", "the node has left", "leave", "--wipe", "--yes", "--force")
}

func TestTheHiddenChildrenRunBeforeTheCommandLineIsBuilt(t *testing.T) {
	w := newWorld(t)
	w.seams.guard = func(args []string) int { return 40 + len(args) }
	e := w.env(nil, nil, nil)
	child, ok := e.child([]string{"guard", "x", "y"})
	if !ok || child() != 42 {
		t.Fatal("the guard did not run")
	}
	if _, ok := e.child([]string{"exec-child"}); ok {
		t.Fatal("a child that is not wired ran")
	}
	if r := w.run("--help"); strings.Contains(r.out, "guard") || strings.Contains(r.out, "exec-child") {
		t.Error("the help names hidden commands")
	}
}

func TestTheDebugBundleIsWrittenWithAndWithoutTheDaemon(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(w.dir, "b.tar.gz")
	w.want(0, file, "", "debug", "bundle", "-o", file)
	w.want(2, "", "choose another file", "debug", "bundle", "-o", file)
	w.dead = unreachable()
	file += "2"
	w.want(0, file, "holds what is known without it", "debug", "bundle", "-o", file, "--data", w.dir)
	if st, err := os.Stat(file); err != nil || st.Size() < 100 || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	w.dead = errors.New("the disk is full")
	file += "3"
	w.want(1, "", "the disk is full", "debug", "bundle", "-o", file)
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Error("half a bundle was left behind")
	}
}

func TestVersionAndDemoAndWitness(t *testing.T) {
	w := newWorld(t)
	w.want(0, "hanode 1.0.3, go1.26\ndaemon 1.0.3 (abc), feature level 1, go1.26\n", "", "version")
	w.want(1, "", "cannot run the demo", "demo", "--quick")
	w.seams.demo = func(_ context.Context, args []string, stdout, _ io.Writer) error {
		fmt.Fprintln(stdout, "demo", args)
		return nil
	}
	w.want(0, "demo [--quick]", "", "demo", "--quick")
	w.want(1, "", "this build cannot ask a witness", "witness", "status")
	w.seams.witness = witnesscmd.Funcs{Status: func(context.Context, string, string) (*api.WitnessStatus, error) {
		return &api.WitnessStatus{At: api.At(apitest.Epoch0)}, nil
	}}
	w.want(4, "hanode witness join --token", "", "witness", "status")
	w.dead = unreachable()
	w.want(0, "hanode 1.0.3", "does not answer", "version")
	w.want(0, `"daemon":null`, "", "version", "--json")
}

func TestCompletionKnowsServicesAndNodes(t *testing.T) {
	w := newWorld(t)
	w.want(0, "db\n", "", "__complete", "switchover", "")
	w.want(0, "a\nb\n", "", "__complete", "switchover", "db", "--to", "")
	w.want(0, "bash completion", "", "completion", "bash")
}

// TestEveryCommandHasJSONAndEveryChangingOneItsFlags walks over all commands.
func TestEveryCommandHasJSONAndEveryChangingOneItsFlags(t *testing.T) {
	root := commands(newWorld(t).env(nil, nil, nil))
	for _, path := range []string{"switchover", "failover", "failback", "force", "apply", "pause", "resume", "leave", "service start", "service stop", "service restart",
		"service clear", "member set", "member replace", "member remove", "member drain", "member undrain", "alarm ack", "token create", "leader",
		"check run", "check pause", "check resume", "approve", "decline", "alert test", "key rotate", "upgrade finish"} {
		cmd, rest, err := root.Find(strings.Fields(path))
		if err != nil || len(rest) > 0 {
			t.Errorf("there is no command %s: %v", path, err)
			continue
		}
		for _, f := range []string{"yes", "timeout", "reason"} {
			if cmd.Flags().Lookup(f) == nil {
				t.Errorf("%s has no --%s", path, f)
			}
		}
	}
	for _, path := range []string{"init", "join", "witness join", "witness run", "witness status", "witness list", "witness leave", "run", "spec show", "spec check",
		"spec fmt", "spec log", "spec diff", "status", "wait", "explain", "events", "alarm list", "demo", "debug bundle", "version", "member list",
		"check list", "upgrade status", "backup", "restore", "spec schema", "spec keys"} {
		if cmd, rest, err := root.Find(strings.Fields(path)); err != nil || len(rest) > 0 || cmd.Short == "" {
			t.Errorf("there is no command %s: %v", path, err)
		}
	}
}
