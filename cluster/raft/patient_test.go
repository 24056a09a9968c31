package raft

import (
	"testing"
	"time"
)

// hashicorp/raft pauses for ever longer after failures: a member that was away for long waited up to 41 s for the log.
func TestAMemberThatWasAwayForLongGetsTheLogAtOnce(t *testing.T) {
	c := newCluster(t, "a-1", "b-2", "w-3")
	a, b, w := c.three()
	c.net.isolate("w-3", "a-1", "b-2")
	leader := c.leader("a-1", "b-2")
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, _, err := leader.prop.Propose(short(t), add(1)); err != nil {
			t.Fatal(err)
		}
	}
	want := max(a.fsm.value(), b.fsm.value())
	c.net.cut("w-3", "a-1", false)
	c.net.cut("w-3", "b-2", false)
	back := time.Now()
	within(t, 5*time.Second, "w has the log", func() bool { return w.fsm.value() >= want })
	t.Logf("w has the log %v after its return", time.Since(back))
	if took := time.Since(back); took > 500*time.Millisecond {
		t.Errorf("w has the log only after %v", took)
	}
}
