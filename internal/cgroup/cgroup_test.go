package cgroup

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func testRoot(t *testing.T, processes bool) *Root {
	t.Helper()
	if !processes && os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups")
	}
	r, err := Open(Options{Name: fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6), Processes: processes})
	if err != nil {
		t.Fatal(err)
	}
	if !processes && r.Report().Mode == "processes" {
		t.Skip("no cgroups here: " + r.Report().NotCovered)
	}
	t.Cleanup(func() {
		g, err := r.Self()
		if err != nil {
			t.Fatal(err)
		}
		g.Kill()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := g.WaitEmpty(ctx); err != nil {
			t.Error(err)
		}
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
		r.Close()
	})
	return r
}

// family starts a shell with a busy child, a child in a session of its own and an orphan, and returns when all are there.
func family(t *testing.T, g *Group) *exec.Cmd {
	t.Helper()
	join, err := g.Joining()
	if err != nil {
		t.Fatal(err)
	}
	script := "echo 0 >&3\n"
	if join == nil {
		script = ""
	}
	cmd := exec.Command("/bin/sh", "-c", script+`
		sleep 1000 &
		setsid sleep 1001 &
		( setsid sh -c 'sleep 1002 & echo orphan' & )
		echo ready
		while :; do sleep 0.01; done`)
	if join != nil {
		defer join.Close()
		cmd.ExtraFiles = []*os.File{join}
	}
	cmd.Env = append(os.Environ(), g.Env()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	g.Attr(cmd.SysProcAttr)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-done })
	lines := bufio.NewScanner(out)
	for range 2 {
		if !lines.Scan() {
			t.Fatal("the family did not start")
		}
	}
	return cmd
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// The contract of a group, with cgroups and without.
func TestAllProcessesOfAGroupAreFrozenThawedAndKilled(t *testing.T) {
	for name, processes := range map[string]bool{"cgroup": false, "processes": true} {
		t.Run(name, func(t *testing.T) {
			r := testRoot(t, processes)
			svc, err := r.Group("db")
			if err != nil {
				t.Fatal(err)
			}
			defer svc.Close()
			g, err := svc.Sub("postgres")
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			other, err := r.Group("other")
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			if populated, _, err := g.State(); populated || err != nil {
				t.Fatalf("a new group is populated: %v", err)
			}
			cmd := family(t, g)
			bystander := family(t, other)

			pids, err := svc.Procs()
			if err != nil || len(pids) < 4 {
				t.Fatalf("%v, %v: at least 4 processes wanted", pids, err)
			}
			if !svc.Has(cmd.Process.Pid) || !g.Has(cmd.Process.Pid) || other.Has(cmd.Process.Pid) || g.Has(os.Getpid()) {
				t.Error("Has does not know who is a member")
			}

			if err := svc.Freeze(); err != nil {
				t.Fatal(err)
			}
			if err := svc.WaitFrozen(within(t, 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			if err := svc.Thaw(); err != nil {
				t.Fatal(err)
			}
			if !processes {
				if err := svc.Freeze(); err != nil { // frozen ones must die too
					t.Fatal(err)
				}
			}
			began := time.Now()
			if err := svc.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := svc.WaitEmpty(within(t, 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			t.Logf("kill to empty: %v", time.Since(began))
			for _, pid := range pids {
				if ppid, state := parentOf(pid); state != "" && state != "Z" && state != "X" && ppid != 0 && nameIs(pid, "sleep") {
					t.Errorf("pid %d is still there in state %s", pid, state)
				}
			}
			if populated, _, _ := other.State(); !populated || bystander.ProcessState != nil {
				t.Error("the neighbour was hit")
			}
		})
	}
}

func nameIs(pid int, want string) bool { name, _ := nameOf(pid); return name == want }

func TestAWaitThatEndsNamesWhoIsStillThere(t *testing.T) {
	r := testRoot(t, false)
	g, err := r.Group("db")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	family(t, g)
	err = g.WaitEmpty(within(t, 10*time.Millisecond))
	if err == nil || !strings.Contains(err.Error(), "pid ") || !strings.Contains(err.Error(), "state ") {
		t.Errorf("got %v", err)
	}
}

func TestAKillOfARemovedGroupIsNoError(t *testing.T) {
	r := testRoot(t, false)
	g, err := r.Group("gone")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
	if populated, _, err := g.State(); populated || err != nil {
		t.Error(populated, err)
	}
	if err := g.WaitEmpty(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNamesCannotLeaveTheirDirectory(t *testing.T) {
	r := testRoot(t, true)
	for _, bad := range []string{"", "..", ".", "a/b", "cgroup.procs", "ü", "a b", strings.Repeat("x", 129)} {
		if g, err := r.Group(bad); err == nil {
			t.Errorf("%q was accepted as %s", bad, g.Path())
		}
	}
}

func TestAMemoryLimitIsSetOrRefusedWithTheReason(t *testing.T) {
	r := testRoot(t, false)
	g, err := r.Group("db")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	err = g.LimitMemory(64 << 20)
	if r.Report().Mode == "hybrid" {
		if err == nil || !strings.Contains(err.Error(), "memory controller") {
			t.Errorf("in a hybrid hierarchy: %v", err)
		}
		return
	}
	if err != nil {
		t.Skip("this machine does not delegate: " + err.Error())
	}
	b, _ := os.ReadFile(g.run + "/memory.max")
	if strings.TrimSpace(string(b)) != strconv.Itoa(64<<20) {
		t.Errorf("memory.max is %s", b)
	}
}

func TestTheMountIsFoundByTheTextOfMountinfo(t *testing.T) {
	const hybrid = `30 24 0:27 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro
31 30 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
`
	const container = `40 24 0:27 /kubepods/pod1 /sys/fs/cgroup rw - cgroup2 cgroup rw
`
	for _, c := range []struct {
		info, own, want string
		ok              bool
	}{
		{hybrid, "/", "/sys/fs/cgroup/unified", true},
		{hybrid, "/system.slice/hanode.service", "/sys/fs/cgroup/unified/system.slice/hanode.service", true},
		{container, "/kubepods/pod1/x", "/sys/fs/cgroup/x", true},
		{container, "/kubepods/pod1", "/sys/fs/cgroup", true},
		{container, "/kubepods/pod12", "", false},
		{"31 30 0:28 / /with\\040space rw - cgroup2 none rw\n", "/", "/with space", true},
		{"", "/", "", false},
	} {
		if got, ok := mountedAt(c.info, c.own); got != c.want || ok != c.ok {
			t.Errorf("%s: got %q, %v, want %q", c.own, got, ok, c.want)
		}
	}
}

// As "ip netns exec" leaves it: /sys is there, cgroups are not mounted.
func TestWithoutAVisibleMountAnOwnOneIsMade(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts cgroup2")
	}
	dir, mount, err := ownMount("/")
	if err != nil {
		t.Skip(err)
	}
	defer mount.Close()
	r, err := openBelow(dir, fmt.Sprintf("hanode-own-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	g, err := r.Group("db")
	if err != nil {
		t.Fatal(err)
	}
	family(t, g)
	self, err := r.Self()
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Kill(); err != nil {
		t.Error(err)
	}
	if err := self.WaitEmpty(within(t, 5*time.Second)); err != nil {
		t.Error(err)
	}
	g.Close()
	if err := self.Remove(); err != nil {
		t.Error(err)
	}
}

func TestAWrongOverrideIsAnErrorAndNotAFallback(t *testing.T) {
	if _, err := Open(Options{Name: "x", Parent: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "not a cgroup2 directory") {
		t.Errorf("got %v", err)
	}
	t.Setenv("HANODE_CGROUP", "/nonexistent")
	if _, err := Open(Options{Name: "x"}); err == nil || !strings.Contains(err.Error(), "HANODE_CGROUP") {
		t.Errorf("got %v", err)
	}
}

func TestAnEarlierRootIsOpenedByItsPath(t *testing.T) {
	r := testRoot(t, false)
	again, err := OpenPath(r.Path())
	if err != nil || again == nil {
		t.Fatal(again, err)
	}
	g, err := r.Group("left")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	family(t, g)
	old, err := again.Self()
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if populated, _, err := old.State(); !populated || err != nil {
		t.Error(populated, err)
	}
	if gone, err := OpenPath("/sys/fs/cgroup/unified/hanode-never-was"); gone != nil || err != nil {
		t.Error(gone, err)
	}
	if _, err := OpenPath("/sys/fs/cgroup/unified"); err == nil {
		t.Error("a group that is not ours was opened")
	}
}

// A fork bomb is what a list of processes loses against; cgroup.kill does not.
func TestAForkingProcessDoesNotEscape(t *testing.T) {
	r := testRoot(t, false)
	g, err := r.Group("bomb")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	cmd := exec.Command("/bin/sh", "-c", `echo up; f() { sleep 0.02; (f &) ; }; f; while :; do (sleep 0.01 &); done`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	g.Attr(cmd.SysProcAttr)
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	bufio.NewScanner(out).Scan()
	runtime.Gosched()
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := g.WaitEmpty(within(t, 5*time.Second)); err != nil {
		t.Error(err)
	}
	cmd.Wait()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != unix.SIGKILL {
		t.Errorf("ended by %v", ws)
	}
}

func born(t *testing.T, g *Group) error {
	t.Helper()
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	g.Attr(cmd.SysProcAttr)
	return cmd.Run()
}

// See the package comment: without Renew the second process dies at birth on Linux 6.14 to at least 6.18.
func TestARenewedGroupTakesNewMembersAfterAKill(t *testing.T) {
	r := testRoot(t, false)
	g, err := r.Group("again")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for range 3 {
		if err := g.Kill(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := g.Renew(); err != nil {
			t.Fatal(err)
		}
		t.Logf("renewed in %v", time.Since(began))
		if err := born(t, g); err != nil {
			t.Error(err)
		}
	}
	family(t, g)
	if err := g.Renew(); err != nil {
		t.Error(err)
	}
	if populated, _, _ := g.State(); !populated {
		t.Error("members were lost")
	}
}

// See the package comment: a child that is born frozen keeps its parent in vfork.
func TestAProcessCanBeStartedInAFrozenServiceAndFreezesWhenItJoins(t *testing.T) {
	r := testRoot(t, false)
	svc, err := r.Group("db")
	if err != nil {
		t.Fatal(err)
	}
	defer svc.Close()
	g, err := svc.Sub("postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := svc.Freeze(); err != nil {
		t.Fatal(err)
	}
	join, err := g.Joining()
	if err != nil {
		t.Fatal(err)
	}
	defer join.Close()
	cmd := exec.Command("/bin/sh", "-c", "echo born; echo 0 >&3; echo thawed; exec sleep 1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	cmd.ExtraFiles = []*os.File{join}
	g.Attr(cmd.SysProcAttr)
	out, _ := cmd.StdoutPipe()
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the start took %v", took)
	}
	lines := bufio.NewScanner(out)
	if lines.Scan(); lines.Text() != "born" {
		t.Errorf("%q", lines.Text())
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		populated, _, _ := eventsOf(g.run)
		if _, frozen, _ := svc.State(); frozen && populated {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it never froze")
		}
	}
	if err := svc.Thaw(); err != nil {
		t.Fatal(err)
	}
	if lines.Scan(); lines.Text() != "thawed" {
		t.Errorf("%q", lines.Text())
	}
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
	cmd.Wait()
}

func TestADaemonInAGroupThatWasOnceKilledCanStartProcesses(t *testing.T) {
	if os.Getenv("IN_KILLED_GROUP") != "" {
		r := testRoot(t, false)
		g, err := r.Group("x")
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		t.Logf("kills: %d", r.kills)
		for range 2 {
			if err := born(t, g); err != nil {
				t.Error(err)
			}
			g.Kill()
			g.Renew()
		}
		return
	}
	r := testRoot(t, false)
	g, err := r.Group("own")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for range 3 {
		g.Kill()
	}
	cmd := exec.Command("/bin/sh", "-c", `echo $$ > "$G/cgroup.procs" && exec "$EXE" -test.run=OnceKilled -test.v`)
	exe, _ := os.Executable()
	cmd.Env = append(os.Environ(), "IN_KILLED_GROUP=1", "G="+g.Path(), "EXE="+exe)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v: %s", err, out)
	}
	t.Logf("%s", out)
}
