package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/supervise/launch"
	"github.com/hanode/hanode/internal/cgroup"
	"github.com/hanode/hanode/internal/rt"
)

// The test binary is its own exec step.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == launch.Subcommand {
		fmt.Fprintln(os.Stderr, launch.Child(os.Args[2:]))
		os.Exit(127)
	}
	os.Exit(m.Run())
}

func spec(kind, target string) cluster.CheckSpec {
	return cluster.CheckSpec{Name: "c", Kind: kind, Target: target, Every: 10 * time.Millisecond, Timeout: time.Second, Failures: 2}
}

func execSpec(script string) cluster.CheckSpec {
	c := spec("exec", "")
	c.Argv = []string{"/bin/sh", "-c", script}
	return c
}

func run(t *testing.T, c cluster.CheckSpec, d Deps) Result {
	t.Helper()
	p, err := newProbe(c, d)
	if err != nil {
		t.Fatal(err)
	}
	return once(t.Context(), p, c.Timeout)
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, target := range []string{port, ":" + port, "127.0.0.1:" + port} {
		if r := run(t, spec("tcp", target), Deps{}); !r.OK || r.Output != "connected to 127.0.0.1:"+port {
			t.Errorf("%s: %+v", target, r)
		}
	}
	l.Close()
	if r := run(t, spec("tcp", port), Deps{}); r.OK || !strings.Contains(r.Output, "refused") {
		t.Errorf("nobody listens: %+v", r)
	}
}

func TestHTTP(t *testing.T) {
	var status atomic.Int32
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			<-release
			return
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(int(status.Load()))
		fmt.Fprintf(w, "first line\nsecond %s", strings.Repeat("x", 100000))
	}))
	defer srv.Close()
	defer close(release)
	for code, ok := range map[int32]bool{200: true, 204: true, 302: true, 404: false, 503: false} {
		status.Store(code)
		r := run(t, spec("http", srv.URL+"/health"), Deps{})
		if r.OK != ok || !strings.HasPrefix(r.Output, strconv.Itoa(int(code))) || strings.Contains(r.Output, "second") {
			t.Errorf("%d: %+v", code, r)
		}
	}
	c := spec("http", srv.URL+"/hang")
	c.Timeout = 50 * time.Millisecond
	if r := run(t, c, Deps{}); r.OK || r.Output != "no answer in time" || r.Took > 2*time.Second {
		t.Errorf("%+v", r)
	}
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	status.Store(200)
	if r := run(t, spec("http", ":"+port+"/x"), Deps{}); !r.OK {
		t.Errorf("a target on the node itself: %+v", r)
	}
	secure := httptest.NewTLSServer(srv.Config.Handler)
	defer secure.Close()
	if r := run(t, spec("http", secure.URL), Deps{}); !r.OK {
		t.Errorf("https: %+v", r)
	}
}

func TestExecTakesTheStatusAndTheFirstLine(t *testing.T) {
	if r := run(t, execSpec("echo all well; echo more; sleep 0"), Deps{}); !r.OK || r.Output != "all well" {
		t.Errorf("%+v", r)
	}
	if r := run(t, execSpec("echo lag 17 s >&2; exit 3"), Deps{}); r.OK || r.Output != "status 3: lag 17 s" {
		t.Errorf("%+v", r)
	}
	if r := run(t, execSpec("kill -9 $$"), Deps{}); r.OK {
		t.Errorf("%+v", r)
	}
	if r := run(t, execSpec("head -c 1000000 /dev/zero | tr '\\0' x"), Deps{}); !r.OK || len(r.Output) != MaxOutput {
		t.Errorf("%d bytes kept of a long line, ok %v", len(r.Output), r.OK)
	}
	if r := run(t, execSpec("echo $HANODE_SERVICE$SECRET"), Deps{Env: []string{"HANODE_SERVICE=db"}}); r.Output != "db" {
		t.Errorf("%+v", r)
	}
}

func TestAProgramThatHangsIsKilledWithAllThatItStarted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups")
	}
	root, err := cgroup.Open(cgroup.Options{Name: fmt.Sprintf("agent-%d-%d", os.Getpid(), rt.Now()%1e9)})
	if err != nil {
		t.Fatal(err)
	}
	checks, err := root.Group("checks")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		self, err := root.Self()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := errors.Join(self.WaitEmpty(ctx), self.Remove()); err != nil {
			t.Error(err)
		}
	}()
	pids := t.TempDir() + "/pids"
	c := execSpec("setsid sh -c 'echo $$ >> " + pids + "; sleep 1000' & echo $$ >> " + pids + "; sleep 1000")
	c.Timeout = 400 * time.Millisecond
	for range 2 { // the second time in a group that was killed
		began := time.Now()
		r := run(t, c, Deps{Group: checks})
		if r.OK || r.Output != "no answer in time" {
			t.Errorf("%+v", r)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("took %v", took)
		}
	}
	b, err := os.ReadFile(pids)
	if err != nil || len(strings.Fields(string(b))) < 2 { // a busy machine may not get so far the second time
		t.Fatalf("%q, %v", b, err)
	}
	for _, f := range strings.Fields(string(b)) {
		pid, _ := strconv.Atoi(f)
		deadline := time.Now().Add(3 * time.Second)
		for syscall.Kill(pid, 0) == nil && checks.Has(pid) {
			if time.Now().After(deadline) {
				t.Fatalf("pid %d lives", pid)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func TestChecksThatCannotBeRunAreRefusedWithWhatCan(t *testing.T) {
	ok := spec("tcp", "80")
	noTime := ok
	noTime.Every = 0
	for want, c := range map[string]cluster.CheckSpec{
		"[tcp http exec]":       spec("postgres", "host=/run"),
		"is not a port":         spec("tcp", "no-such-port"),
		"give a URL":            spec("http", "ftp://x"),
		"exec needs":            spec("exec", ""),
		"/no/such":              {Name: "c", Kind: "exec", Argv: []string{"/no/such"}, Every: 1, Timeout: 1},
		"both must be above 0":  noTime,
		`check "c": kind "png"`: spec("png", ""),
	} {
		if err := Check(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := New([]cluster.CheckSpec{ok, spec("rpc", "x"), spec("dns", "y")}, Deps{}, nil); err == nil || strings.Count(err.Error(), "not supported") != 2 {
		t.Errorf("not all at once: %v", err)
	}
}

func TestChangesAndFailuresAreToldAndARoleBeginsAnew(t *testing.T) {
	var healthy atomic.Bool
	var role atomic.Value
	role.Store("active")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !healthy.Load() {
			w.WriteHeader(503)
		}
	}))
	defer srv.Close()
	told := make(chan Status, 10000)
	a, err := New([]cluster.CheckSpec{spec("http", srv.URL)}, Deps{StartTimeout: time.Hour, Role: func() string { return role.Load().(string) }}, func(s Status) { told <- s })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	wait := func(want State) Status {
		t.Helper()
		give := time.After(5 * time.Second)
		for {
			select {
			case s := <-told:
				if s.State == want {
					return s
				}
			case <-give:
				t.Fatalf("%s did not come; %+v", want, a.States())
			}
		}
	}
	if s := wait(StateUnknown); s.Output == "" || s.LastOK != 0 {
		t.Errorf("before the first success: %+v", s)
	}
	healthy.Store(true)
	if s := wait(StateOK); s.LastOK == 0 || s.Failures != 0 {
		t.Errorf("%+v", s)
	}
	healthy.Store(false)
	wait(StateFailing)
	if s := wait(StateFailed); s.Failures != 2 || !strings.HasPrefix(s.Output, "503") {
		t.Errorf("%+v", s)
	}
	if s := wait(StateFailed); s.Failures != 3 {
		t.Errorf("a failure that goes on is not told: %+v", s)
	}
	role.Store("standby") // the check is the active's: it stops and forgets
	if s := wait(StateUnknown); s.Failures != 0 || s.LastOK != 0 {
		t.Errorf("%+v", s)
	}
	time.Sleep(30 * time.Millisecond)
	if len(told) != 0 {
		t.Error("it runs on in the wrong role")
	}
	healthy.Store(true)
	role.Store("active")
	wait(StateOK)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestChecksAreRunByTheRolesThatTheyName(t *testing.T) {
	for from, roles := range map[string]string{"": "active", "active,witness": "active witness", "standby": "standby"} {
		c := cluster.CheckSpec{}
		if from != "" {
			c.From = strings.Split(from, ",")
		}
		var got []string
		for _, r := range []string{"", "active", "standby", "witness"} {
			if runsIn(&c, r) {
				got = append(got, r)
			}
		}
		if strings.Join(got, " ") != roles {
			t.Errorf("from %q: %v", from, got)
		}
	}
}

func TestHealthIsAllAnyOrANumberOfChecks(t *testing.T) {
	specs := []cluster.CheckSpec{{Name: "a"}, {Name: "b"}, {Name: "c"}, {Name: "outside", From: []string{"witness"}}}
	all := func(states ...State) map[string]Status {
		m := map[string]Status{"outside": {Name: "outside", State: StateFailed}}
		for i, s := range states {
			m[specs[i].Name] = Status{Name: specs[i].Name, State: s, Output: "out"}
		}
		return m
	}
	for _, c := range []struct {
		healthy       string
		states        map[string]Status
		ready, failed bool
	}{
		{"all", all(StateOK, StateOK, StateOK), true, false},
		{"all", all(StateOK, StateOK), false, false},
		{"all", all(StateOK, StateOK, StateFailing), false, false},
		{"all", all(StateOK, StateOK, StateFailed), false, true},
		{"any", all(StateFailed, StateFailed, StateOK), true, false},
		{"any", all(StateFailed, StateFailed), false, false},
		{"any", all(StateFailed, StateFailed, StateFailed), false, true},
		{"2", all(StateOK, StateOK, StateFailed), true, false},
		{"2", all(StateOK, StateFailed, StateFailed), false, true},
		{"9", all(StateOK, StateOK, StateOK), true, false},
		{"", all(StateOK, StateFailed, StateOK), false, true},
	} {
		failed, why := Failed(c.states, specs, c.healthy)
		if ready := Ready(c.states, specs, c.healthy); ready != c.ready || failed != c.failed || failed != (why != "") {
			t.Errorf("healthy = %q with %v: ready %v, failed %v (%s)", c.healthy, c.states, ready, failed, why)
		}
	}
	if !Ready(nil, nil, "any") {
		t.Error("a service without checks is ready")
	}
}
