package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/supervise/launch"
	"github.com/hanode/hanode/internal/cgroup"
	"github.com/hanode/hanode/internal/page"
	"github.com/hanode/hanode/internal/rt"
)

// The test binary is its own exec step, and a program that asks for role signals.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case launch.Subcommand:
			fmt.Fprintln(os.Stderr, ExecChild(os.Args[2:]))
			os.Exit(127)
		case "be-hot":
			beHot()
			return
		}
	}
	os.Exit(m.Run())
}

func beHot() {
	c := make(chan os.Signal, 4)
	signal.Notify(c, syscall.SIGUSR1, syscall.SIGUSR2)
	fmt.Println("hot, as", os.Getenv("HANODE_ROLE"))
	for s := range c {
		fmt.Println(s)
	}
}

// world is a supervisor under test with what it said.
type world struct {
	*Supervisor
	t     *testing.T
	root  *cgroup.Root
	group *cgroup.Group
	end   func() error

	mu     sync.Mutex
	lines  []string
	events []Event
	seen   []cluster.Instant // when each event was delivered
}

func newWorld(t *testing.T, change func(*Config), specs ...cluster.ProcessSpec) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups")
	}
	w := &world{t: t}
	var err error
	w.root, err = cgroup.Open(cgroup.Options{Name: fmt.Sprintf("test-%d-%d", os.Getpid(), rt.Now()%1e9), Processes: os.Getenv("HANODE_TEST_PROCESSES") != ""})
	if err != nil {
		t.Fatal(err)
	}
	if w.group, err = w.root.Group("svc"); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Service: "svc", Specs: specs, Group: w.group,
		OnFailure: cluster.OnFailure{Restarts: 0, Within: time.Minute, Then: "failover"},
		Output: func(p string, line []byte) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.lines = append(w.lines, p+": "+string(line))
		},
		Events: func(e Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events, w.seen = append(w.events, e), append(w.seen, rt.Now())
		},
	}
	if change != nil {
		change(&cfg)
	}
	w.Supervisor, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	w.end = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := w.end(); err != nil {
			t.Error(err)
		}
		if populated, _, err := w.group.State(); populated || err != nil {
			t.Errorf("something is left: %v", err)
		}
		if err := w.group.Remove(); err != nil {
			t.Error(err)
		}
		self, err := w.root.Self()
		if err != nil {
			t.Fatal(err)
		}
		if err := self.Remove(); err != nil {
			t.Error(err)
		}
		w.root.Close()
		if t.Failed() {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, e := range w.events {
				t.Logf("event %v %s %s", e.Kind, e.Process, e.Reason)
			}
			for _, l := range w.lines {
				t.Log(l)
			}
		}
	})
	return w
}

// within is a context for one call.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func (w *world) start(role string) {
	w.t.Helper()
	if err := w.Start(within(w.t, 10*time.Second), role, 7); err != nil {
		w.t.Fatal(err)
	}
}

// kill9 kills the program of the n-th process.
func (w *world) kill9(n int) int {
	w.t.Helper()
	pid := w.Processes()[n].PID
	if pid <= 1 {
		w.t.Fatalf("it does not run: %+v", w.Processes()[n])
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		w.t.Fatal(err)
	}
	return pid
}

// line waits for a line of output that contains want.
func (w *world) line(want string) string {
	w.t.Helper()
	return eventually(w.t, "a line with "+want, func() (string, bool) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, l := range w.lines {
			if strings.Contains(l, want) {
				return l, true
			}
		}
		return "", false
	})
}

// event waits for the n-th event of a kind, and returns when it was delivered.
func (w *world) event(kind EventKind, n int) (Event, cluster.Instant) {
	w.t.Helper()
	type both struct {
		e  Event
		at cluster.Instant
	}
	b := eventually(w.t, fmt.Sprintf("event %q no. %d", kind, n), func() (both, bool) {
		w.mu.Lock()
		defer w.mu.Unlock()
		k := 0
		for i, e := range w.events {
			if e.Kind == kind {
				if k++; k == n {
					return both{e, w.seen[i]}, true
				}
			}
		}
		return both{}, false
	})
	return b.e, b.at
}

func (w *world) count(kind EventKind) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, e := range w.events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

func eventually[T any](t *testing.T, what string, f func() (T, bool)) T {
	t.Helper()
	deadline := time.Now().Add(8 * time.Second)
	for {
		v, ok := f()
		if ok {
			return v
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(500 * time.Microsecond)
	}
}

func sh(name, script string) cluster.ProcessSpec {
	return cluster.ProcessSpec{Name: name, Start: []string{"/bin/sh", "-c", script}, Ready: "started", StopTimeout: 5 * time.Second, StartTimeout: 5 * time.Second}
}

const forever = "while :; do sleep 100 & wait $!; done"

func TestProcessesStartInOrderAndStopInReverse(t *testing.T) {
	const script = `trap 'echo stop '$0'; exit 0' TERM; echo start; ` + forever
	specs := []cluster.ProcessSpec{sh("one", script), sh("two", script), sh("three", script)}
	w := newWorld(t, nil, specs...)
	w.start(Active)
	for _, p := range w.Processes() {
		if p.State != "running" || p.PID == 0 || p.Role != Active {
			t.Errorf("%+v", p)
		}
	}
	for _, n := range []string{"one", "two", "three"} {
		w.line(n + ": start")
	}
	w.start(Active) // again: nothing happens
	w.event(Started, 3)
	if n := w.count(Started); n != 3 {
		t.Errorf("%d starts", n)
	}
	if err := w.Stop(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	w.event(Stopped, 3)
	var order []string
	w.mu.Lock()
	for _, e := range w.events {
		if e.Kind == Started || e.Kind == Stopped {
			order = append(order, e.Kind.String()+" "+e.Process)
		}
	}
	w.mu.Unlock()
	if got := strings.Join(order, ", "); got != "started one, started two, started three, stopped three, stopped two, stopped one" {
		t.Error(got)
	}
	if w.count(Exited) != 0 {
		t.Error("an ordered stop was reported as an exit")
	}
	for _, p := range w.Processes() {
		if p.State != "stopped" || p.PID != 0 {
			t.Errorf("%+v", p)
		}
	}
	if err := w.Stop(within(t, time.Second)); err != nil {
		t.Errorf("a second stop: %v", err)
	}
}

func TestAnExitIsSeenAndGivenUpWithinMilliseconds(t *testing.T) {
	w := newWorld(t, nil, sh("db", "echo $$; "+forever))
	w.start(Active)
	w.line("db: ")
	var worst time.Duration
	best := time.Hour
	for n := 1; n <= 10; n++ {
		killed := rt.Now()
		pid := w.kill9(0)
		e, at := w.event(GaveUp, n)
		worst, best = max(worst, at.Sub(killed)), min(best, at.Sub(killed))
		if e.Then != "failover" || e.Process != "db" || e.Epoch != 7 || !strings.Contains(e.Reason, "SIGKILL") {
			t.Errorf("%+v", e)
		}
		if x, _ := w.event(Exited, n); x.Signal != syscall.SIGKILL || x.Pid != pid {
			t.Errorf("%+v", x)
		}
		w.start(Active) // begins anew
	}
	t.Logf("kill to GaveUp: best of 10 %v, worst %v", best, worst)
	if best > 20*time.Millisecond { // the worst is the machine's
		t.Errorf("kill to GaveUp took %v", best)
	}
}

func TestAProcessIsRestartedWithGrowingPausesAndThenGivenUp(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.OnFailure = cluster.OnFailure{Restarts: 2, Within: time.Minute, Backoff: 40 * time.Millisecond, BackoffMax: time.Second, Then: "stop"}
	}, sh("db", "exit 3"))
	w.start(Active)
	e, _ := w.event(GaveUp, 1)
	if e.Then != "stop" || !strings.Contains(e.Reason, "status 3") {
		t.Errorf("%+v", e)
	}
	var starts, exits []cluster.Instant
	for n := 1; n <= 3; n++ {
		s, _ := w.event(Started, n)
		x, _ := w.event(Exited, n)
		if x.Code != 3 {
			t.Errorf("%+v", x)
		}
		starts, exits = append(starts, s.At), append(exits, x.At)
	}
	if a, b := starts[1].Sub(exits[0]), starts[2].Sub(exits[1]); a < 40*time.Millisecond || b < 80*time.Millisecond {
		t.Errorf("pauses of %v and %v, 40 and 80 ms wanted at least", a, b)
	}
	if p := w.Processes()[0]; p.State != "failed" || p.Restarts != 2 {
		t.Errorf("%+v", p)
	}
}

// What a dead process left behind would keep its ports and files from its successor.
func TestGrandchildrenOfADeadProcessAreKilledBeforeItsRestart(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.OnFailure = cluster.OnFailure{Restarts: 1, Within: time.Minute, Backoff: time.Millisecond}
	}, sh("db", `setsid sh -c 'echo child $$; sleep 1000' & sleep 0.05; echo up; wait`))
	w.start(Active)
	w.line("db: up")
	child, err := strconv.Atoi(strings.TrimPrefix(w.line("db: child "), "db: child "))
	if err != nil {
		t.Fatal(err)
	}
	w.kill9(0)
	w.event(Started, 2)
	if err := syscall.Kill(child, 0); err == nil && alive(child) {
		t.Error("the grandchild outlived the restart of its parent")
	}
}

func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func TestKillEndsEverybodyAtOnceAlsoFrozen(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.OnFailure.Restarts = 5 },
		sh("a", `trap '' TERM; setsid sleep 1000 & `+forever), sh("b", forever))
	w.start(Active)
	if err := w.Freeze(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := w.Kill(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Logf("kill of a frozen service: %v", time.Since(began))
	if populated, _, _ := w.group.State(); populated {
		t.Error("somebody lives")
	}
	w.event(Stopped, 2)
	if w.count(Exited)+w.count(Restarting)+w.count(GaveUp) != 0 {
		t.Error("the kill was taken for a failure")
	}
	if err := w.Thaw(); err != nil {
		t.Fatal(err)
	}
	w.start(Active) // and it can be started again
}

// The end of a killed process may be noticed before the order to its actor has come.
func TestAnExitByOurOwnKillIsNoFailure(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.OnFailure.Restarts = 5 }, sh("a", forever))
	w.start(Active)
	w.killGen.Store(w.gen.Add(1)) // as Kill begins
	w.kill9(0)
	w.event(Stopped, 1)
	if w.count(Exited)+w.count(Restarting)+w.count(GaveUp) != 0 {
		t.Error("the kill was taken for a failure")
	}
}

func TestAStartInAFrozenServiceHangsNobodyAndAKillEndsIt(t *testing.T) {
	w := newWorld(t, nil, sh("a", "echo up; "+forever))
	if !w.group.Cgroups() {
		t.Skip("needs cgroups: only they freeze what is not there yet")
	}
	if err := w.Start(within(t, 5*time.Second), Standby, 1); err != nil { // nothing is hot; Run has begun
		t.Fatal(err)
	}
	if err := w.group.Freeze(); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- w.Start(within(t, 20*time.Second), Active, 7) }()
	eventually(t, "starting", func() (int, bool) { return 0, w.Processes()[0].State == "starting" })
	if _, err := launch.Run(within(t, 5*time.Second), launch.Program{Argv: []string{"true"}}, 1); err != nil {
		t.Errorf("nothing else can be started meanwhile: %v", err)
	}
	if err := w.Kill(within(t, 5*time.Second)); err != nil {
		t.Error(err)
	}
	if err := <-result; err == nil || !strings.Contains(err.Error(), "killed meanwhile") {
		t.Errorf("the start ended with %v", err)
	}
	if err := w.Thaw(); err != nil {
		t.Fatal(err)
	}
	w.start(Active)
	w.line("a: up")
}

func TestAKillOvertakesAStart(t *testing.T) {
	slow := sh("slow", forever)
	slow.Ready, slow.StartTimeout = "notify", time.Minute
	w := newWorld(t, nil, slow, sh("second", forever))
	result := make(chan error, 1)
	go func() { result <- w.Start(within(t, 20*time.Second), Active, 7) }()
	w.event(Started, 1)
	if err := w.Kill(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err == nil || !strings.Contains(err.Error(), "killed meanwhile") {
		t.Errorf("the start ended with %v", err)
	}
	if n := w.count(Started); n != 1 {
		t.Errorf("%d processes were started", n)
	}
}

func TestAProcessThatIgnoresItsStopSignalIsKilled(t *testing.T) {
	spec := sh("stubborn", `trap 'echo no' TERM; echo ready; `+forever)
	spec.StopTimeout = 100 * time.Millisecond
	w := newWorld(t, nil, spec)
	w.start(Active)
	w.line("ready")
	began := time.Now()
	if err := w.Stop(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 100*time.Millisecond {
		t.Errorf("killed after %v", took)
	}
	w.line("stubborn: no")
	e, _ := w.event(StopKilled, 1)
	if !strings.Contains(e.Reason, "stop_timeout = 100ms") {
		t.Errorf("%+v", e)
	}
}

func TestTheEndOfTheContextEndsTheWaitingForAStop(t *testing.T) {
	spec := sh("stubborn", `trap '' TERM; echo ready; `+forever)
	spec.StopTimeout = time.Minute
	w := newWorld(t, nil, spec)
	w.start(Active)
	w.line("ready")
	began := time.Now()
	if err := w.Stop(within(t, 50*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestAStopCommandAndAnotherSignal(t *testing.T) {
	dir := t.TempDir()
	byCommand := sh("cmd", `while [ ! -e `+dir+`/stop ]; do sleep 0.01; done; echo bye`)
	byCommand.Stop = []string{"/bin/sh", "-c", "echo stopping $HANODE_PROCESS; touch " + dir + "/stop"}
	bySignal := sh("sig", `trap 'echo int; exit 0' INT; echo ready; `+forever)
	bySignal.StopSignal = "INT"
	broken := sh("broken", `trap 'echo term; exit 0' TERM; echo up; `+forever)
	broken.Stop = []string{"/bin/false"}
	w := newWorld(t, nil, byCommand, bySignal, broken)
	w.start(Active)
	w.line("sig: ready")
	w.line("broken: up")
	if err := w.Stop(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	w.line("cmd: stopping cmd")
	w.line("cmd: bye")
	w.line("sig: int")
	w.line("broken: term")
	if w.count(StopKilled) != 0 {
		t.Error("somebody was killed")
	}
}

func TestAProcessRunsAsItsUserInItsDirectoryWithItsLimitsAndNothingOfOurs(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o755)
	t.Setenv("SECRET_OF_THE_DAEMON", "x")
	spec := sh("who", `id -u; id -g; id -G; pwd; ulimit -n; env; sed -n 's/.*) . //p' /proc/self/stat | cut -d' ' -f 16,37,38; cat /proc/self/oom_score_adj; echo done; `+forever)
	spec.User, spec.Dir, spec.FilesMax = "nobody", "/usr", 123
	spec.Env = map[string]string{"GREETING": "hello world", "LANG": "de_DE"}
	w := newWorld(t, func(c *Config) { c.Env = []string{"HANODE_SOCKET=/run/x"} }, spec)
	w.start(Active)
	w.line("who: done")
	w.mu.Lock()
	all := "\n" + strings.Join(w.lines, "\n") + "\n"
	w.mu.Unlock()
	for _, want := range []string{"65534", "/usr", "123", "GREETING=hello world", "LANG=de_DE", "HANODE_SOCKET=/run/x",
		"HANODE_SERVICE=svc", "HANODE_PROCESS=who", "HANODE_ROLE=active", "HANODE_EPOCH=7", "USER=nobody", "0 0 0", "0"} {
		if !strings.Contains(all, "\nwho: "+want+"\n") {
			t.Errorf("%q is missing in %s", want, all)
		}
	}
	if strings.Contains(all, "SECRET_OF_THE_DAEMON") || strings.Count(all, "LANG=") != 1 {
		t.Errorf("the environment is not clean: %s", all)
	}
}

func TestWhatCannotBeStartedSaysWhyAndIsGivenUpAtOnce(t *testing.T) {
	spec := sh("x", "true")
	spec.Dir = "/nonexistent"
	w := newWorld(t, func(c *Config) { c.OnFailure.Restarts = 5 }, spec)
	err := w.Start(within(t, 5*time.Second), Active, 1)
	if err == nil || !strings.Contains(err.Error(), "/nonexistent") || !strings.Contains(err.Error(), "process x") {
		t.Errorf("got %v", err)
	}
	w.event(GaveUp, 1)
	if w.count(Restarting) != 0 {
		t.Error("was tried again")
	}
}

func TestSpecsThatCannotRunHereAreRefusedAllAtOnce(t *testing.T) {
	w := newWorld(t, nil)
	_, err := New(Config{Service: "s", Group: w.group, Specs: []cluster.ProcessSpec{
		{Name: "ocf", OCF: "ocf:heartbeat:pgsql"},
		{Name: "none"},
		{Name: "prog", Start: []string{"/no/such/program"}},
		{Name: "user", Start: []string{"/bin/true"}, User: "nobody-at-all"},
		{Name: "sig", Start: []string{"/bin/true"}, StopSignal: "TREM"},
		{Name: "word", Start: []string{"true"}, Standby: "warm"},
	}})
	for _, want := range []string{`"ocf"`, "not supported by this version", `"none"`, "/no/such/program", "/etc/passwd", `stop_signal = "TREM"`, "[cold hot]"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	if _, err := New(Config{Service: "s", Group: w.group, Specs: []cluster.ProcessSpec{{Name: "m", Start: []string{"true"}, MemoryMax: 1 << 30}}}); w.root.Report().Mode == "hybrid" &&
		(err == nil || !strings.Contains(err.Error(), "memory controller")) {
		t.Errorf("a memory limit without its controller: %v", err)
	}
}

func TestReadyByNotify(t *testing.T) {
	// The notify message is sent by a shell's child, as scripts do, and by a stranger, who is not heard.
	spec := sh("n", `python3 -c '
import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect("\0" + os.environ["NOTIFY_SOCKET"][1:])
print("socket", os.environ["NOTIFY_SOCKET"], flush=True)
while not os.path.exists(os.environ["GO"]): time.sleep(0.005)
s.send(b"READY=1\nSTATUS=recovered 17 records\nUNKNOWN=x")
time.sleep(1000)'`)
	spec.Ready = "notify"
	spec.Env = map[string]string{"GO": t.TempDir() + "/go"}
	w := newWorld(t, nil, spec, sh("after", forever))
	result := make(chan error, 1)
	go func() { result <- w.Start(within(t, 10*time.Second), Active, 1) }()
	sock := strings.TrimPrefix(w.line("n: socket "), "n: socket ")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Sendto(fd, []byte("READY=1"), 0, &syscall.SockaddrUnix{Name: sock}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-result:
		t.Fatalf("a stranger made it ready: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if w.count(Ready) != 0 || w.Processes()[1].State != "stopped" {
		t.Error("ready before it said so")
	}
	if err := os.WriteFile(spec.Env["GO"], nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if p := w.Processes()[0]; p.Status != "recovered 17 records" || p.State != "running" {
		t.Errorf("%+v", p)
	}
}

func TestAProcessThatNeverBecomesReadyIsAFailure(t *testing.T) {
	spec := sh("n", forever)
	spec.Ready, spec.StartTimeout = "notify", 60*time.Millisecond
	w := newWorld(t, nil, spec)
	err := w.Start(within(t, 5*time.Second), Active, 1)
	if err == nil || !strings.Contains(err.Error(), "READY=1 within start_timeout = 60ms") {
		t.Errorf("got %v", err)
	}
}

func TestAHotStandbyIsPromotedInPlaceWithinAMillisecond(t *testing.T) {
	hot := cluster.ProcessSpec{Name: "hot", Start: []string{"/proc/self/exe", "be-hot"}, Ready: "started", Standby: "hot", Env: map[string]string{signalsEnv: "1"}}
	hot.Start[0], _ = os.Executable()
	cold := sh("cold", forever)
	w := newWorld(t, nil, hot)
	_ = cold
	w.start(Standby)
	w.line("hot: hot, as standby")
	pid := w.Processes()[0].PID
	best := time.Hour
	for n := 1; n <= 5; n++ {
		began := time.Now()
		if err := w.Promote(t.Context(), 8); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(began))
		eventually(t, "SIGUSR1", func() (int, bool) { return 0, w.lineCount("user defined signal 1") == n })
		if err := w.Demote(within(t, time.Second), 8); err != nil {
			t.Fatal(err)
		}
		eventually(t, "SIGUSR2", func() (int, bool) { return 0, w.lineCount("user defined signal 2") == n })
	}
	t.Logf("promotion: best of 5: %v", best)
	if best > time.Millisecond {
		t.Errorf("a promotion took %v", best)
	}
	if p := w.Processes()[0]; p.PID != pid || p.Role != Standby {
		t.Errorf("%+v, was pid %d", p, pid)
	}
	if e, _ := w.event(Promoted, 1); e.Epoch != 8 {
		t.Errorf("%+v", e)
	}
}

func (w *world) lineCount(want string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, l := range w.lines {
		if strings.Contains(l, want) {
			n++
		}
	}
	return n
}

func TestAPromotionBeforeTheHandlerIsThereIsToldLater(t *testing.T) {
	hot := sh("hot", `sleep 0.05; trap 'echo told' USR1; echo up; `+forever)
	hot.Standby, hot.Env = "hot", map[string]string{signalsEnv: "1"}
	w := newWorld(t, nil, hot)
	w.start(Standby)
	if err := w.Promote(t.Context(), 8); err != nil {
		t.Fatal(err)
	}
	w.line("hot: told")
	if w.count(Exited) != 0 {
		t.Error("the signal came before its handler")
	}
}

func TestAPromotionStartsColdOnesAndSparesThoseThatDidNotAsk(t *testing.T) {
	silent := sh("silent", `trap 'echo signal' USR1 USR2; echo up $HANODE_ROLE; `+forever) // catches, but never asked
	silent.Standby = "hot"
	naked := sh("naked", forever) // asked, but does not catch
	naked.Standby, naked.Env = "hot", map[string]string{signalsEnv: "1"}
	cmd := sh("cmd", "echo up; "+forever)
	cmd.Standby, cmd.Promote = "hot", []string{"/bin/sh", "-c", "echo promoted as $HANODE_ROLE in $HANODE_EPOCH"}
	cold := sh("cold", "echo up $HANODE_ROLE; "+forever)
	w := newWorld(t, nil, silent, naked, cmd, cold)
	w.start(Standby)
	w.line("silent: up standby")
	if p := w.Processes()[3]; p.State != "stopped" {
		t.Errorf("a cold process runs on the standby: %+v", p)
	}
	before := w.Processes()
	if err := w.Promote(within(t, 5*time.Second), 9); err != nil {
		t.Fatal(err)
	}
	w.line("cmd: promoted as active in 9")
	w.line("cold: up active")
	after := w.Processes()
	for i := range 3 {
		if after[i].PID != before[i].PID || after[i].Role != Active {
			t.Errorf("%+v, before %+v", after[i], before[i])
		}
	}
	if err := w.Demote(within(t, 5*time.Second), 9); err != nil {
		t.Fatal(err)
	}
	states := w.Processes()
	if states[0].State != "running" || states[2].State != "stopped" || states[3].State != "stopped" {
		t.Errorf("after the demotion: %+v", states)
	}
	w.start(Standby)
	if p := w.Processes()[2]; p.State != "running" || p.Role != Standby {
		t.Errorf("%+v", p)
	}
	if w.lineCount("signal") != 0 || w.count(Exited) != 0 {
		t.Error("a program was signalled that must not be")
	}
}

func TestAFailingPromoteCommandIsAnError(t *testing.T) {
	p := sh("p", forever)
	p.Standby, p.Promote = "hot", []string{"/bin/sh", "-c", "echo no primary; exit 4"}
	w := newWorld(t, nil, p)
	w.start(Standby)
	err := w.Promote(within(t, 5*time.Second), 2)
	if err == nil || !strings.Contains(err.Error(), "status 4: no primary") {
		t.Errorf("got %v", err)
	}
}

func TestAnActiveProcessIsNotRestartedWithoutALease(t *testing.T) {
	pg, err := page.Create("svc")
	if err != nil {
		t.Fatal(err)
	}
	defer pg.Close()
	pg.Set(7, rt.Now().Add(time.Minute), page.Active)
	w := newWorld(t, func(c *Config) {
		c.Page = pg.File()
		c.OnFailure = cluster.OnFailure{Restarts: 5, Within: time.Minute, Backoff: time.Millisecond}
	}, sh("db", `od -A n -t u8 -j 256 -N 8 /dev/fd/$HANODE_PAGE_FD; `+forever))
	w.start(Active)
	w.line("db: ")
	if l := w.line("db: "); !strings.Contains(l, strconv.FormatUint(uint64('s')|uint64('v')<<8|uint64('c')<<16, 10)) {
		t.Errorf("the process does not see its page: %s", l)
	}
	pg.Set(7, rt.Now(), page.Active) // the lease has run out
	w.kill9(0)
	eventually(t, "held", func() (int, bool) { return 0, strings.HasPrefix(w.Processes()[0].Status, "held") })
	time.Sleep(30 * time.Millisecond)
	if w.count(Started) != 1 {
		t.Fatal("restarted without a lease")
	}
	pg.Set(7, rt.Now().Add(time.Minute), page.Active)
	w.event(Started, 2)
}

func TestTheEndOfRunLeavesNothing(t *testing.T) {
	w := newWorld(t, nil, sh("a", `setsid sleep 1000 & `+forever))
	w.start(Active)
	if err := w.end(); err != nil {
		t.Fatal(err)
	}
	if err := w.Start(t.Context(), Active, 1); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("a start after the end: %v", err)
	}
	if err := w.Run(t.Context()); err == nil {
		t.Error("ran twice")
	}
}

func TestAnEarlierIncarnationIsKilled(t *testing.T) {
	w := newWorld(t, nil, sh("a", `setsid sleep 1000 & `+forever))
	w.start(Active)
	root, err := cgroup.OpenPath(w.root.Path())
	if err != nil || root == nil {
		t.Fatal(root, err)
	}
	defer root.Close()
	if err := w.Freeze(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := CleanPrevious(within(t, 5*time.Second), root, "/sys/fs/cgroup/unified/hanode-gone", w.root.Path()); err != nil {
		t.Fatal(err)
	}
	w.event(Exited, 1)
	if _, err := os.Stat(w.group.Path()); !errors.Is(err, os.ErrNotExist) && w.group.Cgroups() {
		t.Errorf("the group is still there: %v", err)
	}
}

func TestLongOutputIsHandedOnInPieces(t *testing.T) {
	w := newWorld(t, nil, sh("long", `head -c 20000 /dev/zero | tr '\0' x; echo; printf tail; sleep 0.01; exit 0`))
	w.start(Active)
	w.event(Exited, 1)
	w.line("long: tail")
	w.mu.Lock()
	defer w.mu.Unlock()
	total := 0
	for _, l := range w.lines {
		if len(l) > maxLine+6 {
			t.Errorf("a line of %d bytes", len(l))
		}
		total += strings.Count(l, "x")
	}
	if total != 20000 {
		t.Errorf("%d of 20000 bytes arrived", total)
	}
}
