package rt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// The test binary is its own real-time process and its own child.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "be-realtime":
			beRealtime()
			return
		case "be-child":
			runtime.LockOSThread()
			if err := Reset(); err != nil {
				fmt.Println("reset:", err)
			}
			unix.Exec("/bin/sh", []string{"sh", "-c", "cat /proc/self/stat /proc/self/oom_score_adj"}, nil)
			return
		}
	}
	os.Exit(m.Run())
}

type facts struct {
	Sched, Memory, OOM string
	Wrong              int // threads that are not SCHED_RR 10
	Threads            int
	VmLck              string
	Child              string
}

func beRealtime() {
	r := Enter(Priority)
	say := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	f := facts{Sched: say(r.Sched), Memory: say(r.Memory), OOM: say(r.OOM)}
	done := make(chan struct{})
	for range 8 { // threads made after Enter must have inherited
		go func() { runtime.LockOSThread(); <-done }()
	}
	time.Sleep(20 * time.Millisecond)
	tids, _ := threads()
	for _, tid := range tids {
		policy, prio, err := Policy(tid)
		if err == nil && (policy != unix.SCHED_RR || prio != Priority) {
			f.Wrong++
		}
	}
	f.Threads = len(tids)
	close(done)
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmLck") {
			f.VmLck = strings.TrimSpace(strings.TrimPrefix(line, "VmLck:"))
		}
	}
	out, err := exec.Command("/proc/self/exe", "be-child").CombinedOutput()
	f.Child = string(out) + say(err)
	json.NewEncoder(os.Stdout).Encode(f)
}

func TestEveryThreadIsRealtimeAndNoChildIs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: SCHED_RR needs CAP_SYS_NICE")
	}
	out, err := exec.Command("/proc/self/exe", "be-realtime").Output()
	if err != nil {
		t.Fatal(err)
	}
	var f facts
	if err := json.Unmarshal(out, &f); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%+v", f)
	if f.Sched != "" {
		if strings.Contains(f.Sched, "cgroup") {
			t.Skip("real-time scheduling refused by this machine: " + f.Sched)
		}
		t.Error(f.Sched)
	}
	if f.Wrong != 0 || f.Threads < 8 {
		t.Errorf("%d of %d threads are not real-time", f.Wrong, f.Threads)
	}
	if f.Memory == "" && strings.HasPrefix(f.VmLck, "0 ") {
		t.Error("memory is said to be locked and is not")
	}
	if f.OOM != "" && !strings.Contains(f.OOM, "CAP_SYS_RESOURCE") {
		t.Errorf("the refusal does not say what is missing: %s", f.OOM)
	}
	lines := strings.Split(strings.TrimSpace(f.Child), "\n")
	if len(lines) != 2 {
		t.Fatalf("the child said %q", f.Child)
	}
	stat := strings.Fields(lines[0][strings.LastIndexByte(lines[0], ')')+2:])
	if nice, rtprio, policy := stat[16], stat[37], stat[38]; nice != "0" || rtprio != "0" || policy != "0" {
		t.Errorf("the child has nice %s, rt priority %s, policy %s", nice, rtprio, policy)
	}
	if lines[1] != "0" {
		t.Errorf("the child has OOM score %s", lines[1])
	}
}

func TestARefusalSaysWhyAndWhatToDo(t *testing.T) {
	err := explainSched(10, unix.EPERM)
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "cgroup") && !strings.Contains(err.Error(), "LimitRTPRIO=10") {
		t.Error(err)
	}
	if (Report{Sched: err}).Realtime() || (Report{}).Err() != nil {
		t.Error("the report contradicts itself")
	}
}

func TestAQuantileIsNeverBelowTheTruthAndAtMostAQuarterAbove(t *testing.T) {
	h := NewHistogram(time.Minute)
	for i := 1; i <= 1000; i++ {
		h.Record(cluster.Instant(i), time.Duration(i)*time.Microsecond)
	}
	for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999} {
		got, n := h.Quantile(1000, q)
		truth := time.Duration(q*1000+1) * time.Microsecond
		if n != 1000 || got < truth || float64(got) > float64(truth)*1.25 {
			t.Errorf("q %v: %v of %d, truth %v", q, got, n, truth)
		}
	}
	if got, _ := h.Quantile(1000, 1); got != time.Millisecond {
		t.Errorf("the maximum is %v", got)
	}
	for d := time.Duration(1); d < time.Hour; d = d*5/4 + 1 {
		if b := bucketOf(d); b < buckets-1 && (upper(b) < d || b > 0 && upper(b-1) >= d) {
			t.Errorf("%v is in bucket %d, which ends at %v", d, b, upper(b))
		}
	}
}

func TestOldSamplesAreForgotten(t *testing.T) {
	h := NewHistogram(15 * time.Second)
	now := cluster.Instant(0).Add(time.Hour)
	h.Record(now, time.Second)
	h.Record(now.Add(10*time.Second), time.Millisecond)
	if d, n := h.Quantile(now.Add(10*time.Second), 1); d != time.Second || n != 2 {
		t.Errorf("within the window: %v of %d", d, n)
	}
	if d, n := h.Quantile(now.Add(17*time.Second), 1); d != time.Millisecond || n != 1 {
		t.Errorf("after it: %v of %d", d, n)
	}
	if d, n := h.Quantile(now.Add(time.Hour), 1); d != 0 || n != 0 {
		t.Errorf("long after: %v of %d", d, n)
	}
}

func TestRecordingAllocatesNothing(t *testing.T) {
	h := NewHistogram(time.Minute)
	if n := testing.AllocsPerRun(100, func() { h.Record(Now(), time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestLatenessAndFsyncAreMeasured(t *testing.T) {
	l := NewLateness(time.Millisecond, time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	deadline := time.Now().Add(5 * time.Second)
	for {
		if _, n := l.P999(); n >= 20 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no samples")
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	if l.Max() <= 0 {
		t.Error("no timer is never late")
	}
	dir := t.TempDir()
	p := FsyncProbe(dir, time.Second)
	if err := p.Burst(5); err != nil {
		t.Fatal(err)
	}
	if d, n := p.Quantile(0.99); n != 5 || d <= 0 {
		t.Errorf("%v of %d", d, n)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := FsyncProbe("/nonexistent", time.Second).Burst(1); err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("a missing directory: %v", err)
	}
}
