package gate

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
)

func TestTheOffsetOfTheKernelsClockIsNeverTooLarge(t *testing.T) {
	for _, offset := range []time.Duration{0, 1000 * time.Hour, -time.Hour} {
		got, err := clockOffset(func() (cluster.Instant, error) { return boottime().Add(offset), nil })
		if err != nil {
			t.Fatal(err)
		}
		if got > offset || got < offset-clockTolerance {
			t.Errorf("offset %v was measured as %v", offset, got)
		}
	}
}

func TestAClockThatDriftsIsRefused(t *testing.T) {
	n := 0
	_, err := clockOffset(func() (cluster.Instant, error) {
		n++
		return boottime().Add(time.Duration(n) * 2 * time.Millisecond), nil
	})
	if err == nil || !strings.Contains(err.Error(), "drift") {
		t.Errorf("a clock that drifts: %v", err)
	}
}

func TestAClockThatCannotBeReadQuicklyIsRefused(t *testing.T) {
	_, err := clockOffset(func() (cluster.Instant, error) {
		time.Sleep(clockTolerance)
		return boottime(), nil
	})
	if err == nil || !strings.Contains(err.Error(), "too busy") {
		t.Errorf("a clock that is slow to read: %v", err)
	}
}

func TestDeadlinesHoldInATimeNamespace(t *testing.T) {
	needsRoot(t)
	if err := exec.Command("unshare", "--time", "--boottime", "100000", "true").Run(); err != nil {
		t.Skipf("needs unshare(1) of util-linux 2.36 and time namespaces: %v", err)
	}
	eachForm(t, func(t *testing.T, form Form) {
		for _, ahead := range []string{"100000", "-1000"} {
			if uptime := boottime(); ahead[0] == '-' && uptime < cluster.Instant(1100*time.Second) {
				continue // the clock cannot be set before the boot
			}
			w := newWorld(t)
			c := startChild(t, w.node, "unshare", "--time", "--fork", "--kill-child", "--boottime", ahead)
			c.open(form)
			c.vips(1, all...)
			offset := time.Duration(c.do(order{Do: "stats"}).Now - boottime()).Round(time.Second)
			if offset == 0 {
				t.Fatal("the child is not in a time namespace of its own")
			}
			w.mustAnswer(t, false, "before the first refresh")
			c.lease(1, time.Minute)
			w.mustAnswer(t, true, "before the deadline")
			flow := w.client.stream(t, vip4)
			deadline := c.lease(1, testLease).Add(-offset)
			waitFor(deadline)
			flow.end()
			if last, _ := flow.answered(); last >= deadline || deadline.Sub(flow.refused()) > 100*time.Millisecond {
				t.Errorf("offset %v: the last answered request was sent %v before the deadline, the first refused one %v", offset,
					deadline.Sub(last), deadline.Sub(flow.refused()))
			}
			w.mustAnswer(t, false, "after the deadline")
		}
	})
}
