package guard

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/page"
)

const ms = time.Millisecond

func active(epoch cluster.Epoch, deadline time.Duration) page.Snapshot {
	return page.Snapshot{Epoch: epoch, Deadline: cluster.Instant(deadline), TTL: 250 * ms, State: page.Active}
}

func state(s page.State) page.Snapshot { return page.Snapshot{Epoch: 1, TTL: 250 * ms, State: s} }

// Each row is one look of the guard: at, what the page says, what it does. The lease is 250 ms: freeze 40 ms before its
// end.
func TestWhatTheGuardDoesAndWhen(t *testing.T) {
	type look struct {
		at      time.Duration
		page    page.Snapshot
		quiesce bool
		want    action
	}
	first := action{kill: true, first: true, drop: true}
	frozen := action{kill: true, first: true, drop: true, thaw: true}
	for name, looks := range map[string][]look{
		"a lease that is renewed is left alone": {
			{0, active(1, 250*ms), false, action{}}, {50 * ms, active(1, 300*ms), false, action{}}, {259 * ms, active(1, 500*ms), false, action{}}},
		"frozen at 84 %, killed at the deadline, and again": {
			{209 * ms, active(1, 250*ms), false, action{}}, {210 * ms, active(1, 250*ms), false, action{freeze: true}},
			{230 * ms, active(1, 250*ms), false, action{}}, {250 * ms, active(1, 250*ms), false, frozen},
			{260 * ms, active(1, 250*ms), false, action{}}, {300 * ms, active(1, 250*ms), false, action{kill: true}},
			{350 * ms, active(1, 250*ms), false, action{kill: true, abort: true}}, {400 * ms, active(1, 250*ms), false, action{kill: true}}},
		"a late renewal thaws": {
			{215 * ms, active(1, 250*ms), false, action{freeze: true}}, {220 * ms, active(1, 300*ms), false, action{thaw: true}},
			{259 * ms, active(1, 300*ms), false, action{}}, {260 * ms, active(1, 300*ms), false, action{freeze: true}}},
		"a guard that comes late kills without freezing": {
			{0, active(1, 250*ms), false, action{}}, {400 * ms, active(1, 250*ms), false, action{kill: true, first: true, drop: true, abort: true}}},
		"a standby has no deadline": {
			{0, state(page.Standby), false, action{}}, {900 * ms, state(page.Standby), false, action{}}, {901 * ms, state(page.Idle), false, action{}}},
		"active without a first deadline is not serving yet": {
			{0, active(1, 0), false, action{}}, {900 * ms, active(1, 0), false, action{}}},
		"the end of serving does not end the fence": {
			{0, active(1, 250*ms), false, action{}}, {10 * ms, active(1, 0), false, action{}}, {20 * ms, state(page.Draining), false, action{}},
			{210 * ms, state(page.Draining), false, action{freeze: true}}, {250 * ms, state(page.Draining), false, frozen}},
		"draining that was never seen active is given one lease": {
			{0, state(page.Draining), false, action{}}, {249 * ms, state(page.Draining), false, action{freeze: true}}, {250 * ms, state(page.Draining), false, frozen}},
		"fenced is killed at once": {
			{0, active(1, 250*ms), false, action{}}, {10 * ms, state(page.Fenced), false, first}, {20 * ms, state(page.Fenced), false, action{}}},
		"a new grant after the kill begins anew": {
			{0, active(1, 250*ms), false, action{}}, {250 * ms, active(1, 250*ms), false, first}, {260 * ms, active(2, 600*ms), false, action{}},
			{560 * ms, active(2, 600*ms), false, action{freeze: true}}, {600 * ms, active(2, 600*ms), false, frozen}},
		"quiesce freezes, and standby thaws": {
			{0, active(1, 250*ms), true, action{freeze: true}}, {5 * ms, active(1, 0), true, action{}}, {10 * ms, state(page.Standby), true, action{thaw: true}}},
		"resume thaws unless the end is near": {
			{0, active(1, 250*ms), true, action{freeze: true}}, {5 * ms, active(1, 250*ms), false, action{thaw: true}},
			{6 * ms, active(1, 250*ms), true, action{freeze: true}}, {215 * ms, active(1, 250*ms), false, action{}}},
		"quiesced is killed at the deadline like all": {
			{0, active(1, 250*ms), true, action{freeze: true}}, {250 * ms, active(1, 0), true, frozen}},
		"quiesced as active, then standby after the deadline": {
			{220 * ms, active(1, 250*ms), true, action{freeze: true}}, {250 * ms, active(1, 250*ms), true, frozen}, {300 * ms, state(page.Standby), false, action{}}},
	} {
		var w watch
		for _, l := range looks {
			got, wake := w.step(cluster.Instant(l.at), l.page, l.quiesce)
			if got != l.want {
				t.Errorf("%s: at %v: %+v, want %+v", name, l.at, got, l.want)
			}
			if wake <= cluster.Instant(l.at) || wake > cluster.Instant(l.at+pause) {
				t.Errorf("%s: at %v: looks again at %v", name, l.at, time.Duration(wake))
			}
		}
	}
}

const pause = look

// Whatever the page says and whenever the guard looks: if it looks when it said it would, nobody whose last deadline has
// passed was not killed, and nobody is killed before.
func TestNobodyOutlivesADeadlineAndNobodyDiesBefore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w watch
		now, wake := cluster.Instant(1e9), cluster.Instant(1e9)
		snap := page.Snapshot{Epoch: 1, TTL: 250 * ms}
		var due cluster.Instant // what the rule says, kept apart from the code: 0 = nothing to enforce
		for range rapid.IntRange(1, 60).Draw(t, "looks") {
			now = wake
			switch rapid.IntRange(0, 9).Draw(t, "page") {
			case 0, 1, 2, 3: // renewed
				if now < due || due == 0 {
					snap.State, snap.Deadline = page.Active, now.Add(250*ms)
				}
			case 4:
				snap.State, snap.Deadline = page.Standby, 0
			case 5:
				if snap.State == page.Active {
					snap.State, snap.Deadline = page.Draining, 0
				}
			case 6:
				snap.Deadline = 0
			}
			if snap.State == page.Active && snap.Deadline != 0 {
				due = snap.Deadline
			}
			if snap.State == page.Standby {
				due = 0
			}
			a, next := w.step(now, snap, rapid.Bool().Draw(t, "quiesce"))
			if a.kill && (due == 0 || now < due) {
				t.Fatalf("killed at %v, due %v", now, due)
			}
			if due != 0 && now >= due && !w.killed {
				t.Fatalf("not killed at %v, due %v", now, due)
			}
			if due > now && next > due {
				t.Fatalf("sleeps until %v, due %v", next, due)
			}
			if next <= now {
				t.Fatalf("does not sleep")
			}
			wake = next
		}
	})
}
