package launch

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/internal/rt"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case Subcommand:
			fmt.Fprintln(os.Stderr, Child(os.Args[2:]))
			os.Exit(127)
		case "be-realtime": // a real-time daemon that starts a program
			runtime.LockOSThread()
			fmt.Println(rt.Enter(rt.Priority).Sched)
			res, err := Run(context.Background(), Program{Argv: []string{"sh", "-c", `sed 's/.*) . //' /proc/self/stat | cut -d' ' -f 16,37,38; grep VmLck /proc/self/status`}, Env: []string{"PATH=" + DefaultPath}}, 4096)
			fmt.Print(string(res.Output), err)
			return
		}
	}
	os.Exit(m.Run())
}

func program(argv ...string) Program { return Program{Argv: argv, Env: BaseEnv("", "")} }

func TestStartTellsTheDifferenceBetweenRunningAndNot(t *testing.T) {
	for want, p := range map[string]Program{
		"no such file":         program("/no/such/program"),
		"not found in":         program("no-such-program"),
		"is not executable":    program("/etc/passwd"),
		"is a directory":       program("/etc"),
		"dir: ":                {Argv: []string{"true"}, Env: BaseEnv("", ""), Dir: "/no/such/dir"},
		"files_max = 99999999": {Argv: []string{"true"}, Env: BaseEnv("", ""), FilesMax: 99999999},
	} {
		r, err := Start(p)
		if err != nil {
			t.Errorf("%s: the step itself did not start: %v", want, err)
			continue
		}
		err = r.Exec(5 * time.Second)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
		if ps, err := r.Wait(); err != nil || ps.ExitCode() != 127 {
			t.Errorf("%v, %v", ps, err)
		}
	}
	r, err := Start(program("true"))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Exec(5 * time.Second); err != nil {
		t.Error(err)
	}
	if ps, err := r.Wait(); err != nil || !ps.Success() {
		t.Errorf("%v, %v", ps, err)
	}
	if _, err := Start(Program{}); err == nil {
		t.Error("nothing was started without an error")
	}
	if _, err := Start(Program{Argv: []string{"true"}, User: "nobody-at-all"}); err == nil || !strings.Contains(err.Error(), "/etc/passwd") {
		t.Errorf("an unknown user: %v", err)
	}
}

func TestTheExecStepIsQuick(t *testing.T) {
	best := time.Hour
	for range 5 {
		began := time.Now()
		r, err := Start(program("true"))
		if err != nil {
			t.Fatal(err)
		}
		started := time.Since(began)
		if err := r.Exec(5 * time.Second); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d < best {
			best = d
			t.Logf("fork %v, program runs after %v", started, d)
		}
		r.Wait()
	}
	if best > 200*time.Millisecond {
		t.Errorf("%v", best)
	}
}

func TestAProgramOfARealtimeDaemonIsNotRealtime(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: SCHED_RR needs CAP_SYS_NICE")
	}
	p := program("/proc/self/exe", "be-realtime")
	p.Argv[0], _ = os.Executable()
	res, err := Run(t.Context(), p, 4096)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(res.Output), "\n")
	if lines[0] != "<nil>" {
		t.Skip("real-time scheduling refused by this machine: " + lines[0])
	}
	if len(lines) < 3 || lines[1] != "0 0 0" || !strings.HasSuffix(strings.TrimSpace(lines[2]), " 0 kB") {
		t.Errorf("%q", lines)
	}
}

func TestRunKillsItsProcessGroupAtTheEndOfItsTime(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	res, err := Run(ctx, program("/bin/sh", "-c", "sleep 1000 & echo $!; wait"), 100)
	if err == nil || !strings.Contains(err.Error(), "was killed after") {
		t.Fatalf("%v", err)
	}
	var child int
	fmt.Sscan(res.FirstLine(100), &child)
	for deadline := time.Now().Add(3 * time.Second); child > 1 && unix.Kill(child, 0) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the child lives")
		}
	}
}

func TestAUserByNameByNumberAndWithAnotherGroup(t *testing.T) {
	id, err := Lookup("root", "nogroup")
	if err != nil || id.UID != 0 || id.GID != 65534 || id.Home != "/root" {
		t.Errorf("%+v, %v", id, err)
	}
	id, err = Lookup("54321", "")
	if err != nil || id.UID != 54321 || id.GID != 54321 || id.Name != "" {
		t.Errorf("%+v, %v", id, err)
	}
	if id, err = Lookup("0", ""); err != nil || id.Name != "root" {
		t.Errorf("%+v, %v", id, err)
	}
	if _, err = Lookup("", "no-such-group"); err == nil || !strings.Contains(err.Error(), "/etc/group") {
		t.Error(err)
	}
}
