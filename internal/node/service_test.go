package node

import (
	"log/slog"
	"testing"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/failover/supervise"
	"github.com/hanode/hanode/internal/core"
)

func TestAProcessKilledAtTheEndOfATenureDoesNotMakeTheStandbyUnwell(t *testing.T) {
	var told []core.Health
	s := &service{no: 1, name: "web", spec: &cluster.ServiceSpec{}, w: world{
		now: func() cluster.Instant { return 1 }, step: func(e core.Event) { told = append(told, e.(core.Health)) }, log: slog.New(slog.DiscardHandler)}}
	gaveUp := func(role string) {
		s.onProcess(supervise.Event{Kind: supervise.GaveUp, Process: "echo", Role: role, Reason: "ended by SIGKILL", Then: "failover"})
	}
	s.up() // the standby runs
	gaveUp(supervise.Active)
	if last := told[len(told)-1]; !last.Ready || last.Unhealthy || last.GaveUp != "" {
		t.Errorf("the late news of the old role's end: %+v", last)
	}
	gaveUp(supervise.Standby)
	if last := told[len(told)-1]; last.Ready || !last.Unhealthy || last.GaveUp == "" {
		t.Errorf("the standby's own end: %+v", last)
	}
	s.active.Store(true)
	s.up()
	gaveUp(supervise.Active)
	if last := told[len(told)-1]; !last.Unhealthy {
		t.Errorf("the active's own end: %+v", last)
	}
}

// The checks are judged twice a second for ever; the log is told once.
func TestThatAServiceIsReadyIsRecordedOnce(t *testing.T) {
	var recorded []state.Decision
	now := cluster.Instant(1e9)
	s := &service{no: 1, name: "web", spec: &cluster.ServiceSpec{}, w: world{
		now: func() cluster.Instant { return now }, step: func(core.Event) {}, log: slog.New(slog.DiscardHandler),
		record: func(_ string, d state.Decision) { recorded = append(recorded, d) }}}
	s.active.Store(true)
	s.openedAt, s.zero = now, now
	for range 3 {
		now += 5e8
		s.judge("checks ok")
	}
	if len(recorded) != 1 || recorded[0].Outcome != "done" || recorded[0].ReadyMs == 0 {
		t.Errorf("recorded %d times: %+v", len(recorded), recorded)
	}
}
