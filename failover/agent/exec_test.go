package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/cgroup"
)

func script(timeout time.Duration, text string) cluster.CheckSpec {
	s := spec3()
	s.Kind, s.Target, s.Timeout, s.Argv = "exec", "", timeout, []string{"/bin/sh", "-c", text}
	return s
}

func group(t *testing.T) *cgroup.Group {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups")
	}
	root, err := cgroup.Open(cgroup.Options{Name: fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)})
	if err != nil {
		t.Fatal(err)
	}
	if root.Report().Mode == "processes" {
		t.Skip("no cgroups here: " + root.Report().NotCovered)
	}
	g, err := root.Group("svc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		self, err := root.Self()
		if err != nil {
			t.Fatal(err)
		}
		self.Kill()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := self.WaitEmpty(ctx); err != nil {
			t.Error(err)
		}
		g.Close()
		if err := self.Remove(); err != nil {
			t.Error(err)
		}
		root.Close()
	})
	return g
}

func TestAProgramIsJudgedByItsExitStatus(t *testing.T) {
	for _, c := range []struct {
		script, says string
		ok           bool
	}{
		{"echo all well; echo more", "all well", true},
		{"exit 0", "", true},
		{"echo replication stopped >&2; exit 2", "exit status 2: replication stopped", false},
		{"kill -9 $$", "was killed by a signal", false},
		{`echo "$HANODE_CHECK $HANODE_ROLE $HANODE_SERVICE $HOME_OF_DAEMON"`, "c standby db", true},
		{"yes | head -c 10000000", "y", true},
	} {
		r := Once(t.Context(), script(5*time.Second, c.script), Deps{Role: func() string { return "standby" }, Env: []string{"HANODE_SERVICE=db"}})
		wantResult(t, r, c.ok, c.says)
	}
	missing := script(time.Second, "")
	missing.Argv = []string{"/nonexistent/check"}
	wantResult(t, Once(t.Context(), missing, Deps{}), false, "/nonexistent/check: no such file")
}

func TestAProgramDoesNotInheritWhatTheDaemonIs(t *testing.T) {
	old, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("7"), 0); err != nil { // more than 0 is allowed to all
		t.Fatal(err)
	}
	defer os.WriteFile("/proc/self/oom_score_adj", old, 0)
	t.Setenv("SECRET", "of the daemon")
	r := Once(t.Context(), script(5*time.Second, `echo $(cat /proc/self/oom_score_adj) $SECRET $(pwd)`), Deps{})
	if os.Geteuid() != 0 && strings.HasPrefix(r.Output, "7") {
		t.Skip("needs root: lowers the OOM score")
	}
	wantResult(t, r, true, "0 /")
}

// running waits until the script has written the numbers of its processes.
func running(t *testing.T, file string) []int {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		b, _ := os.ReadFile(file)
		if f := strings.Fields(string(b)); len(f) == 2 {
			a, _ := strconv.Atoi(f[0])
			c, _ := strconv.Atoi(f[1])
			return []int{a, c}
		}
	}
	t.Fatal("the program did not start")
	return nil
}

func gone(t *testing.T, pids []int) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		alive := 0
		for _, pid := range pids {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err == nil && !strings.Contains(string(b), ") Z ") {
				alive = pid
			}
		}
		if alive == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("pid %d lives", alive)
		}
	}
}

const family = `sleep 1000 & echo $$ $! >%s; wait`
const rebels = `setsid sleep 1000 & echo $$ $! >%s; wait`

func TestATimeoutKillsAProgramAndItsChildren(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pids")
	r := Once(t.Context(), script(300*time.Millisecond, fmt.Sprintf(family, file)), Deps{})
	wantResult(t, r, false, "no answer within 300ms")
	gone(t, running(t, file))
}

func TestATimeoutKillsSessionsOfTheirOwnByTheCgroupAndNothingStays(t *testing.T) {
	g := group(t)
	file := filepath.Join(t.TempDir(), "pids")
	before := openFiles(t)
	r := Once(t.Context(), script(300*time.Millisecond, fmt.Sprintf(rebels, file)), Deps{Group: g})
	wantResult(t, r, false, "no answer within 300ms")
	gone(t, running(t, file))
	if n := openFiles(t); n != before {
		t.Errorf("%d descriptors are open, %d before", n, before)
	}
}

func TestWhatAProgramLeavesInTheBackgroundEndsWithIt(t *testing.T) {
	g := group(t)
	file := filepath.Join(t.TempDir(), "pids")
	text := fmt.Sprintf(`setsid sleep 1000 >/dev/null 2>&1 & echo $$ $! >%s; echo done`, file)
	wantResult(t, Once(t.Context(), script(5*time.Second, text), Deps{Group: g}), true, "done")
	gone(t, running(t, file))
}

func TestAKillOfTheServiceReachesItsChecksAndTheNextRunWorks(t *testing.T) {
	g := group(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "pids")
	s := script(20*time.Second, fmt.Sprintf("[ -e %s/ok ] && exit 0; ", dir)+fmt.Sprintf(rebels, file))
	s.Every, s.Failures = 10*time.Millisecond, 1
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var mu sync.Mutex
	var news []Status
	states := make(chan State, 10)
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, []cluster.CheckSpec{s}, Deps{Group: g}, func(st Status) {
			mu.Lock()
			news = append(news, st)
			mu.Unlock()
			states <- st.State
		})
	}()
	pids := running(t, file)
	if err := os.WriteFile(filepath.Join(dir, "ok"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	gone(t, pids)
	for _, want := range []State{StateFailed, StateOK} {
		select {
		case got := <-states:
			if got != want {
				t.Errorf("state %s, want %s", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("it never became %s", want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(news[0].Output, "killed by a signal") {
		t.Errorf("%+v", news)
	}
	if _, err := os.Stat(filepath.Join(g.Path(), checksGroup)); !os.IsNotExist(err) {
		t.Errorf("the group of the checks stays: %v", err)
	}
}

func TestTheEndOfRunKillsTheProgramsUnderWay(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pids")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, []cluster.CheckSpec{script(time.Minute, fmt.Sprintf(family, file))}, Deps{}, func(st Status) { t.Errorf("%+v", st) })
	}()
	pids := running(t, file)
	cancel()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("Run does not end")
	}
	for _, pid := range pids[:1] {
		if err := unix.Kill(pid, 0); err != unix.ESRCH {
			t.Errorf("pid %d outlives Run: %v", pid, err)
		}
	}
	gone(t, pids)
}

func TestAFrozenProgramIsKilledAtItsTimeout(t *testing.T) {
	g := group(t)
	file := filepath.Join(t.TempDir(), "pids")
	result := make(chan Result, 1)
	go func() {
		result <- Once(context.Background(), script(400*time.Millisecond, fmt.Sprintf(family, file)), Deps{Group: g})
	}()
	pids := running(t, file)
	if err := g.Freeze(); err != nil {
		t.Fatal(err)
	}
	defer g.Thaw()
	select {
	case r := <-result:
		wantResult(t, r, false, "no answer within 400ms")
	case <-time.After(5 * time.Second):
		t.Fatal("a frozen program holds its check up")
	}
	gone(t, pids)
}
