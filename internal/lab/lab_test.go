package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/demoapp"
	"github.com/hanode/hanode/internal/lab/probe"
	"github.com/hanode/hanode/internal/lab/world"
)

func TestMain(m *testing.M) {
	if isFake() {
		os.Exit(fakeHanode(os.Args[1:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "demo" {
		if status, ok := Child(os.Args[2:], os.Stderr); ok {
			os.Exit(status)
		}
	}
	os.Exit(m.Run())
}

func testSelf(t *testing.T) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{exe, "demo"}
}

// hotBed is a bed with the service running on both nodes, its address at a, and probes that get answers.
func hotBed(t *testing.T) (*bed, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	if world.Privileged(testSelf(t)) == world.Nothing {
		t.Skip("needs root: the kernel refuses new namespaces to this user")
	}
	b, err := newBed(ctx, testSelf(t), "", false, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.close(); err != nil {
			t.Errorf("close the bed: %v", err)
		}
	})
	for _, n := range b.world.Notes() {
		t.Log("note:", n)
	}
	for _, n := range []string{nodeA, nodeB} {
		if err := b.startSelf(ctx, n, "app", demoapp.Command, "-name", n, "-pidfile", "/run/app.pid"); err != nil {
			t.Fatal(err)
		}
	}
	b.move(t, ctx, "", nodeA)
	if err := b.startProbes(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := b.coll.Await(ctx, client, 0, nil); err != nil {
		t.Fatalf("%v; probe says: %s", err, b.world.Host(client).Tail("probe", 2000))
	}
	if err := sleep(ctx, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	return b, ctx
}

const vipNet = VIP + "/24"

// move is the smallest failover there is: the address goes, the address comes, one gratuitous ARP.
func (b *bed) move(t *testing.T, ctx context.Context, from, to string) {
	t.Helper()
	if from != "" {
		must(t, b.world.Host(from).DelAddr(ctx, "eth0", vipNet))
	}
	if to != "" {
		must(t, b.world.Host(to).AddAddr(ctx, "eth0", vipNet))
		must(t, b.world.Host(to).Announce(ctx, "eth0", vipNet))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// finding waits d and judges what happened since the fault.
func (b *bed) finding(t *testing.T, ctx context.Context, w probe.Window, d time.Duration) probe.Finding {
	t.Helper()
	must(t, sleep(ctx, d))
	must(t, b.settled(ctx, probe.Now()))
	f := b.judge(w)
	t.Logf("%+v", f)
	return f
}

func between(t *testing.T, what string, got, lo, hi time.Duration) {
	t.Helper()
	if got < lo || got > hi {
		t.Errorf("%s is %v, want %v to %v", what, got, lo, hi)
	}
}

func TestAnOutageOfKnownLengthIsMeasuredAsSuchAndADualActiveOneToo(t *testing.T) {
	t.Parallel()
	b, ctx := hotBed(t)

	t0 := probe.Now()
	must(t, b.world.Host(nodeA).DelAddr(ctx, "eth0", vipNet))
	must(t, sleep(ctx, 400*time.Millisecond))
	b.move(t, ctx, "", nodeB)
	f := b.finding(t, ctx, probe.Window{Fault: t0}, 300*time.Millisecond)
	if !f.Moved || f.Before != nodeA || f.After != nodeB || !f.Served() {
		t.Errorf("the move from a to b was not seen: %+v", f)
	}
	between(t, "the outage", f.Outage, 400*time.Millisecond, 800*time.Millisecond)
	between(t, "the gap", f.Gap, 400*time.Millisecond, 800*time.Millisecond)
	between(t, "the time with two actives", f.Dual, 0, 0)

	// The client that resolves sees only one of two actives; the pinned ones see both.
	t1 := probe.Now()
	must(t, b.world.Host(nodeA).AddAddr(ctx, "eth0", vipNet))
	must(t, sleep(ctx, 500*time.Millisecond))
	must(t, b.world.Host(nodeA).DelAddr(ctx, "eth0", vipNet))
	f = b.finding(t, ctx, probe.Window{Fault: t1}, 300*time.Millisecond)
	between(t, "the time with two actives", f.Dual, 400*time.Millisecond, 700*time.Millisecond)
	if f.Moved || f.Gap > 200*time.Millisecond {
		t.Errorf("the resolving client was disturbed: %+v", f)
	}
}

func TestFaultsOfTheNetworkHitWhomTheyShould(t *testing.T) {
	t.Parallel()
	b, ctx := hotBed(t)
	reaches := func(client string, within time.Duration) bool {
		t0 := probe.Now()
		must(t, sleep(ctx, within))
		for _, r := range b.coll.Since(client, t0) {
			if r.Start > t0 && r.Why == probe.OK {
				return true
			}
		}
		return false
	}
	const look = 150 * time.Millisecond
	for _, tc := range []struct {
		name   string
		hurt   func() error
		client string
		want   bool
	}{
		{"cut of c and a", func() error { return b.world.Cut(ctx, client, nodeA) }, client, false},
		{"cut of c and a leaves c1", func() error { return b.world.Cut(ctx, client, nodeA) }, clientOfA, true},
		{"isolated a with c1", func() error { return b.world.Isolate(ctx, nodeA, clientOfA) }, clientOfA, true},
		{"isolated a without c", func() error { return b.world.Isolate(ctx, nodeA, clientOfA) }, client, false},
		{"one way from a to c", func() error { return b.world.OneWay(ctx, nodeA, client) }, client, false},
		{"one way from a to c leaves c1", func() error { return b.world.OneWay(ctx, nodeA, client) }, clientOfA, true},
		{"only port 9999", func() error {
			return b.world.Drop(ctx, world.Rule{From: client, To: nodeA, Link: world.AllLinks, Port: 9999})
		}, client, true},
		{"only port 8080", func() error {
			return b.world.Drop(ctx, world.Rule{From: client, To: nodeA, Link: 0, Port: Port})
		}, client, false},
		{"the other network only", func() error {
			return b.world.Drop(ctx, world.Rule{From: client, To: nodeA, Link: 1})
		}, client, true},
		{"large frames only", func() error {
			return b.world.Drop(ctx, world.Rule{From: client, To: nodeA, Link: 0, Above: 1000})
		}, client, true},
		{"all but tiny frames", func() error {
			return b.world.Drop(ctx, world.Rule{From: client, To: nodeA, Link: 0, Above: 20})
		}, client, false},
		{"cables of a pulled", func() error { return b.world.Host(nodeA).Unplug(ctx) }, clientOfA, false},
	} {
		must(t, tc.hurt())
		if got := reaches(tc.client, look); got != tc.want {
			t.Errorf("%s: %s reaches the service: %v, want %v", tc.name, tc.client, got, tc.want)
		}
		must(t, b.world.Heal(ctx))
		must(t, b.world.Host(nodeA).Plug(ctx))
		t0 := probe.Now()
		if _, err := b.coll.Await(ctx, client, t0, nil); err != nil {
			t.Fatalf("%s, healed: %v", tc.name, err)
		}
	}
	must(t, b.world.Loss(ctx, client, nodeA, 300))
	t0 := probe.Now()
	f := b.finding(t, ctx, probe.Window{Fault: t0}, 600*time.Millisecond)
	if share := float64(f.Fails) / float64(f.Fails+f.Good); share < 0.4 || share > 0.98 {
		t.Errorf("with a loss of 30 %% each way %d attempts failed and %d did not", f.Fails, f.Good)
	}
}

func TestAHostFreezesThawsDiesAndComesBackWithItsDisk(t *testing.T) {
	t.Parallel()
	b, ctx := hotBed(t)
	a := b.world.Host(nodeA)
	mark := filepath.Join(a.Dir(), "disk")
	must(t, os.WriteFile(mark, []byte("x"), 0o644))

	t0 := probe.Now()
	must(t, a.Freeze(ctx))
	must(t, sleep(ctx, 400*time.Millisecond))
	must(t, a.Thaw(ctx))
	f := b.finding(t, ctx, probe.Window{Fault: t0}, 300*time.Millisecond)
	between(t, "the gap of a frozen host", f.Gap, 200*time.Millisecond, 800*time.Millisecond)
	if !f.Served() || f.Moved {
		t.Errorf("the thawed host does not serve: %+v", f)
	}

	pid, err := b.pidOf(nodeA, "app.pid")
	must(t, err)
	t0 = probe.Now()
	must(t, b.signal(ctx, nodeA, pid, syscall.SIGKILL))
	f = b.finding(t, ctx, probe.Window{Fault: t0}, 200*time.Millisecond)
	if f.Good > 2 || f.Whys["refused"] == 0 {
		t.Errorf("the killed service still answers, or its port does: %+v", f)
	}

	must(t, a.Die(ctx))
	if a.Alive() {
		t.Error("a is alive after its death")
	}
	if _, err := a.Spawn(ctx, world.Cmd{Argv: []string{"/bin/true"}}); err == nil {
		t.Error("a dead host runs commands")
	}
	must(t, a.Start(ctx))
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the disk did not survive: %v", err)
	}
	if _, err := b.pidOf(nodeA, "app.pid"); err == nil {
		t.Error("/run survived the death of its host")
	}
	must(t, b.startSelf(ctx, nodeA, "app", demoapp.Command, "-name", nodeA))
	b.move(t, ctx, "", nodeA)
	if _, err := b.coll.Await(ctx, client, probe.Now(), nil); err != nil {
		t.Fatal(err)
	}

	res, err := a.Exec(ctx, world.Cmd{Argv: []string{"/bin/sh", "-c", "hostname; echo oops >&2; exit 3"}})
	must(t, err)
	if res.Exit != 3 || strings.TrimSpace(string(res.Stdout)) != nodeA || string(res.Stderr) != "oops\n" {
		t.Errorf("exec: status %d, stdout %q, stderr %q", res.Exit, res.Stdout, res.Stderr)
	}
	res, err = a.Exec(ctx, world.Cmd{Argv: []string{"/bin/sleep", "60"}, Timeout: 50 * time.Millisecond})
	if err != nil || !res.TimedOut || res.Exit != 128+9 {
		t.Errorf("exec with a time-out: %+v, %v", res, err)
	}
}

func TestALabThatIsKilledLeavesNoProcessBehind(t *testing.T) {
	if world.Privileged(testSelf(t)) == world.Nothing {
		t.Skip("needs root: the kernel refuses new namespaces to this user")
	}
	exe := testSelf(t)[0]
	cmd := exec.Command(exe, "-test.run", "^TestHelperLabThatWaits$", "-test.v")
	cmd.Env = append(os.Environ(), "LAB_HELPER=1")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var dir string
	for dir == "" {
		var word string
		if _, err := fmt.Fscan(out, &word); err != nil {
			t.Fatalf("the helper said nothing: %v", err)
		}
		if d, ok := strings.CutPrefix(word, "lab="); ok {
			dir = d
		}
	}
	defer os.RemoveAll(dir)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	alive := func() bool {
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, l := range lines {
			if c, err := os.ReadFile(l); err == nil && strings.Contains(string(c), dir) {
				return true
			}
		}
		return false
	}
	for end := time.Now().Add(5 * time.Second); alive(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a probe of a killed lab still runs after 5 s")
		}
	}

	// What only another lab can remove: the directories.
	w, err := world.Up(t.Context(), world.Config{Self: testSelf(t), Dir: t.TempDir(), Links: 1})
	must(t, err)
	must(t, w.Close())
	left, _ := filepath.Glob("/sys/fs/cgroup/*/hanode-lab-*")
	for _, l := range left {
		if world.Orphaned(filepath.Base(l)) {
			t.Errorf("%s is still there", l)
		}
	}
}

// The lab is to run for whoever has cloned the tree and has no rights.
func TestTheLabMeasuresForAUserWithoutRights(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root: to become the user nobody (as another user the other tests show the same)")
	}
	dir, err := os.MkdirTemp("/tmp", "lab-nobody-")
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o755))
	exe := filepath.Join(dir, "lab.test")
	bin, err := os.ReadFile(testSelf(t)[0])
	must(t, err)
	must(t, os.WriteFile(exe, bin, 0o755))
	cmd := exec.Command(exe, "-test.run", "^TestHelperUserWithoutRights$", "-test.v")
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "LAB_USER_HELPER=1", "TMPDIR=/tmp", "HOME=/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "--- SKIP") {
		t.Skipf("user namespaces are not to be had here:\n%s", out)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Fatalf("as uid 65534: %v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func TestHelperUserWithoutRights(t *testing.T) {
	if os.Getenv("LAB_USER_HELPER") == "" {
		t.Skip("only for TestTheLabMeasuresForAUserWithoutRights")
	}
	switch world.Privileged(testSelf(t)) {
	case world.Full:
		t.Fatal("uid 65534 is root?")
	case world.Nothing:
		status, err := world.EnterUserNamespace(t.Context(), os.Args)
		if err != nil {
			t.Skip(err)
		}
		if status != 0 {
			t.Fatalf("within the user namespace: status %d", status)
		}
		return
	}
	must(t, world.SettleIn())
	b, ctx := hotBed(t)
	t0 := probe.Now()
	must(t, b.world.Host(nodeA).Die(ctx))
	must(t, sleep(ctx, 200*time.Millisecond))
	b.move(t, ctx, "", nodeB)
	f := b.finding(t, ctx, probe.Window{Fault: t0}, 300*time.Millisecond)
	between(t, "the outage", f.Outage, 200*time.Millisecond, 600*time.Millisecond)
	must(t, b.world.Host(nodeB).Freeze(ctx))
	t1 := probe.Now()
	must(t, b.settled(ctx, t1.Add(300*time.Millisecond)))
	must(t, b.world.Host(nodeB).Thaw(ctx))
	if f := b.finding(t, ctx, probe.Window{Fault: t1}, 300*time.Millisecond); !f.Served() || f.Gap < 250*time.Millisecond {
		t.Errorf("frozen by SIGSTOP and continued: %+v", f)
	}
	must(t, b.world.Isolate(ctx, nodeB))
	if f := b.finding(t, ctx, probe.Window{Fault: probe.Now()}, 100*time.Millisecond); f.Good > 1 {
		t.Errorf("an isolated node answers: %+v", f)
	}
}

func TestHelperLabThatWaits(t *testing.T) {
	if os.Getenv("LAB_HELPER") == "" {
		t.Skip("only for TestALabThatIsKilledLeavesNoProcessBehind")
	}
	b, err := newBed(t.Context(), testSelf(t), "", false, nil)
	must(t, err)
	must(t, b.startProbes(t.Context()))
	fmt.Printf(" lab=%s \n", b.world.Dir())
	time.Sleep(time.Minute)
}
