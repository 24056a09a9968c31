package guard

import (
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/page"
)

const (
	// look is between two looks at a page that promises nothing for now. A daemon says so when a page has changed its state (Guard.Look); should that be
	// lost with the daemon, the guard sees a first deadline before 84 % of the shortest lease, 100 ms, have passed.
	look       = 80 * time.Millisecond
	killAgain  = 50 * time.Millisecond  // between two kills while a deadline is past: somebody may have been started meanwhile
	abortAfter = 100 * time.Millisecond // after the deadline: a volume server that still holds its callers is silent
	freezePart = 16                     // % of the TTL before the deadline at which the processes are frozen (84 % of the lease)
)

// watch is the pure core for one service: what the page says and the time in, actions out. It neither knows descriptors
// nor clocks.
type watch struct {
	epoch    cluster.Epoch
	deadline cluster.Instant // the last one that the page showed in state active; 0: nothing to enforce
	ttl      time.Duration
	frozen   bool // by us
	killed   bool // at this deadline
	dropped  bool // addresses, at this deadline
	aborted  bool
	killNext cluster.Instant
}

// action is what step wants done, in the order of the fields.
type action struct {
	kill   bool
	first  bool // the first kill at this deadline: it is not skipped even if nobody seems to be there
	drop   bool
	abort  bool
	freeze bool
	thaw   bool
}

// step decides. quiesce: the daemon asked to freeze for a release. The second result is the latest instant of the next
// step.
//
//	active    the deadline of the page counts; a deadline of 0 is an orderly end: the last one seen stays in force
//	draining  the last deadline seen stays in force
//	fenced    the deadline is now
//	standby, idle  nothing is enforced; what was frozen is thawed
func (w *watch) step(now cluster.Instant, s page.Snapshot, quiesce bool) (action, cluster.Instant) {
	var a action
	switch s.State {
	case page.Active:
		if s.Deadline != 0 && (s.Deadline != w.deadline || s.Epoch != w.epoch) {
			w.arm(s.Epoch, s.Deadline, s.TTL)
		}
	case page.Draining:
		if w.deadline == 0 { // never seen active: it cannot have been promised more than this
			w.arm(s.Epoch, now.Add(s.TTL), s.TTL)
		}
	case page.Fenced:
		if w.deadline == 0 || w.deadline > now {
			w.arm(s.Epoch, now, s.TTL)
		}
	default:
		*w = watch{frozen: w.frozen}
		quiesce = false
	}
	wake := now.Add(look)
	overdue := w.deadline != 0 && now >= w.deadline
	freezeAt := w.deadline.Add(-w.ttl * freezePart / 100)
	closing := w.deadline != 0 && now >= freezeAt
	switch {
	case overdue:
		if now >= w.killNext {
			a.kill, a.first = true, !w.killed
			w.killed, w.killNext = true, now.Add(killAgain)
		}
		a.thaw = w.frozen // the dead need no ice, and what is started there by mistake must not hang its starter
		w.frozen = false
		a.drop = !w.dropped
		w.dropped = true
		if abortAt := w.deadline.Add(abortAfter); !w.aborted && now >= abortAt {
			a.abort, w.aborted = true, true
		} else if !w.aborted {
			wake = min(wake, abortAt)
		}
		wake = min(wake, w.killNext)
	case closing || quiesce:
		a.freeze = !w.frozen
		w.frozen = true
	default:
		a.thaw = w.frozen
		w.frozen = false
	}
	if w.deadline != 0 && !overdue {
		wake = min(wake, w.deadline)
		if !closing {
			wake = min(wake, freezeAt)
		}
	}
	return a, wake
}

func (w *watch) arm(epoch cluster.Epoch, deadline cluster.Instant, ttl time.Duration) {
	*w = watch{epoch: epoch, deadline: deadline, ttl: ttl, frozen: w.frozen}
}

// enforced says whether, with nobody left to renew, nothing remains to be done for this service.
func (w *watch) enforced(now cluster.Instant, populated bool) bool {
	switch {
	case w.deadline == 0:
		return true
	case now < w.deadline || !w.killed || !w.dropped:
		return false
	}
	return !populated || now.Sub(w.deadline) > giveUpAfter
}

// giveUpAfter ends the wait of a guard without a daemon for processes that outlive their kill (in state D, for example):
// the next incarnation of the daemon waits for them before it takes part.
const giveUpAfter = 30 * time.Second
