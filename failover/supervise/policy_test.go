package supervise

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hanode/hanode/cluster"
)

func TestRestartDecisions(t *testing.T) {
	const s = time.Second
	type exit struct {
		at   time.Duration
		wait time.Duration // -1: gives up
	}
	for _, c := range []struct {
		name  string
		rule  cluster.OnFailure
		exits []exit
	}{
		{"no restarts allowed: gives up at once", cluster.OnFailure{Restarts: 0, Within: 600 * s, Backoff: s}, []exit{{0, -1}}},
		{"two, then it gives up", cluster.OnFailure{Restarts: 2, Within: 600 * s, Backoff: s, BackoffMax: 30 * s},
			[]exit{{0, s}, {5 * s, 2 * s}, {9 * s, -1}}},
		{"the wait doubles up to its maximum", cluster.OnFailure{Restarts: 9, Within: 600 * s, Backoff: s, BackoffMax: 5 * s},
			[]exit{{0, s}, {2 * s, 2 * s}, {5 * s, 4 * s}, {10 * s, 5 * s}, {16 * s, 5 * s}}},
		{"old restarts are forgotten, one by one", cluster.OnFailure{Restarts: 2, Within: 60 * s, Backoff: s, BackoffMax: 30 * s},
			[]exit{{0, s}, {30 * s, 2 * s}, {60 * s, 2 * s}, {89 * s, -1}, {90 * s, 2 * s}, {500 * s, s}}},
		{"without words the defaults hold", cluster.OnFailure{Restarts: 1}, []exit{{0, 0}, {599 * s, -1}, {600 * s, 0}}},
		{"a negative number is none", cluster.OnFailure{Restarts: -3}, []exit{{0, -1}}},
	} {
		l := newRestartLog(c.rule)
		for i, e := range c.exits {
			now := cluster.Instant(e.at) + 1e12
			d := l.exited(now)
			if d.Restart != (e.wait >= 0) || d.Restart && d.At != now.Add(e.wait) || d.Why == "" {
				t.Errorf("%s: exit %d at %v: %+v, want a wait of %v", c.name, i, e.at, d, e.wait)
			}
		}
	}
}

func TestThereAreNeverMoreRestartsWithinTheWindowThanAllowed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rule := cluster.OnFailure{
			Restarts: rapid.IntRange(0, 5).Draw(t, "restarts"),
			Within:   time.Duration(rapid.IntRange(1, 100).Draw(t, "within")) * time.Second,
			Backoff:  time.Duration(rapid.IntRange(0, 5).Draw(t, "backoff")) * time.Second,
		}
		l := newRestartLog(rule)
		var granted []cluster.Instant
		now := cluster.Instant(0)
		for range rapid.IntRange(1, 50).Draw(t, "exits") {
			now = now.Add(time.Duration(rapid.IntRange(0, 30).Draw(t, "gap")) * time.Second)
			if l.exited(now).Restart {
				granted = append(granted, now)
			}
			n := 0
			for _, g := range granted {
				if now.Sub(g) < rule.Within {
					n++
				}
			}
			if n > rule.Restarts {
				t.Fatalf("%d restarts within %v, %d allowed", n, rule.Within, rule.Restarts)
			}
		}
	})
}
