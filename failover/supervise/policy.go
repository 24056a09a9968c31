package supervise

import (
	"fmt"
	"time"

	"github.com/hanode/hanode/cluster"
)

// restartLog is the pure core: exits and their times in, decisions out. It has no clock and starts nothing.
//
// Rule: at most Restarts restarts within Within; the n-th of them waits Backoff x 2^(n-1), at most BackoffMax. A restart
// that is older than Within is forgotten, and with it its share of the waiting.
type restartLog struct {
	rule cluster.OnFailure
	past []cluster.Instant // of the restarts that were decided, oldest first; never more than Restarts
}

// decision is what to do about one exit.
type decision struct {
	Restart bool
	At      cluster.Instant // when to start again
	Nth     int             // how many restarts there were within the window, this one included
	Why     string
}

// maxRestarts bounds what is remembered.
const maxRestarts = 10000

func newRestartLog(rule cluster.OnFailure) *restartLog {
	if rule.Within <= 0 {
		rule.Within = 10 * time.Minute
	}
	if rule.BackoffMax <= 0 {
		rule.BackoffMax = 30 * time.Second
	}
	rule.Restarts = min(max(rule.Restarts, 0), maxRestarts)
	return &restartLog{rule: rule}
}

// exited decides about an exit at now.
func (l *restartLog) exited(now cluster.Instant) decision {
	for len(l.past) > 0 && now.Sub(l.past[0]) >= l.rule.Within {
		l.past = l.past[1:]
	}
	n := len(l.past)
	if n >= l.rule.Restarts {
		why := fmt.Sprintf("%d restarts within %v did not help", n, l.rule.Within)
		if l.rule.Restarts == 0 {
			why = "on_failure allows no restarts"
		}
		return decision{Nth: n, Why: why}
	}
	delay := l.rule.Backoff
	for range n {
		if delay *= 2; delay >= l.rule.BackoffMax {
			break
		}
	}
	delay = min(delay, l.rule.BackoffMax)
	l.past = append(l.past, now)
	return decision{
		Restart: true, At: now.Add(delay), Nth: n + 1,
		Why: fmt.Sprintf("restart %d of %d within %v, after %v", n+1, l.rule.Restarts, l.rule.Within, delay),
	}
}

// reset forgets: an operator started the service anew.
func (l *restartLog) reset() { l.past = nil }
