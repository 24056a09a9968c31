package lab

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestWhatAProcessTakesIsReadFromTheKernel(t *testing.T) {
	dir := fmt.Sprintf("/proc/%d", os.Getpid())
	before, err := takenBy(dir)
	if err != nil {
		t.Fatal(err)
	}
	var after usageOf
	for end := time.Now().Add(10 * time.Second); after.cpu < before.cpu+0.05; { // this very loop is what it takes
		if after, err = takenBy(dir); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatalf("a busy process took nothing: %+v, then %+v", before, after)
		}
	}
	if after.rss < 1<<20 || after.switches == 0 || after.name == "" {
		t.Errorf("resident %d bytes, %v switches, name %q", after.rss, after.switches, after.name)
	}
}

func TestAnIdleNodeIsItsDaemonAndItsGuardTogether(t *testing.T) {
	over := overIdle([]IdleRow{{Host: "a", Process: "hanode", CPU: 1.2}, {Host: "a", Process: "guard", CPU: 0.9}, {Host: "a", Process: serviceName, CPU: 30},
		{Host: "b", Process: "hanode", CPU: 1.9}, {Host: "w", Process: "witness", CPU: 2}})
	if len(over) != 1 || !strings.Contains(over[0], "a takes 2.10 %") {
		t.Errorf("over the limit: %q", over)
	}
}

func TestProcessesOfAMemberAreToldApart(t *testing.T) {
	for want, argv := range map[string][]string{"guard": {"/proc/self/exe", "guard"}, "hanode": {"/usr/bin/hanode", "run", "--data", "d"},
		serviceName: {"/x/hanode", "demo", "app", "--listen", ":8080"}, "witness": {"/x/witness", "run"}} {
		if got := processName(argv); got != want {
			t.Errorf("%q is called %q, want %q", argv, got, want)
		}
	}
}
