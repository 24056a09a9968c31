package agent

import (
	"time"

	"github.com/hanode/hanode/cluster"
)

// State is how a check stands: its verdict about its object.
type State string

const (
	StateUnknown State = "unknown" // it has not succeeded yet, and start_timeout has not ended
	StateOK      State = "ok"
	StateFailing State = "failing" // the last results were failures, too few to condemn
	StateFailed  State = "failed"  // condemned: on_failure applies
)

// Result is one run of a check.
type Result struct {
	OK     bool
	Output string        // first line, at most MaxOutput bytes: the answer, or why it failed
	Took   time.Duration //
}

// Judge is the pure core of one check: results and times in, verdict out. The zero Judge is not usable.
//
// Rule: until the first success nothing is condemned, for at most the start time-out; afterwards, the n-th failure in a
// row (`failures`) condemns, or, if `for` is set, failures in a row over at least that time do. One success acquits.
type Judge struct {
	failures int
	within   time.Duration
	grace    cluster.Instant // until then a check that never succeeded condemns nothing
	verdict  State
	ready    bool // succeeded once
	row      int  // failures in a row that count
	since    cluster.Instant
}

// NewJudge begins a tenure of the service at now. startTimeout is the longest start_timeout of its processes.
func NewJudge(spec cluster.CheckSpec, now cluster.Instant, startTimeout time.Duration) *Judge {
	return &Judge{failures: max(spec.Failures, 1), within: spec.For, grace: now.Add(startTimeout), verdict: StateUnknown}
}

// Step takes a result that came in at now and returns the verdict.
func (j *Judge) Step(now cluster.Instant, r Result) State {
	switch {
	case r.OK:
		j.ready, j.row, j.verdict = true, 0, StateOK
		return j.verdict
	case !j.ready && now < j.grace:
		return j.verdict
	}
	if j.row == 0 {
		j.since = now
	}
	j.row = min(j.row+1, 1<<30)
	condemned := j.row >= j.failures
	if j.within > 0 {
		condemned = j.row > 1 && now.Sub(j.since) >= j.within
	}
	switch {
	case condemned:
		j.verdict = StateFailed
	case j.verdict != StateFailed:
		j.verdict = StateFailing
	}
	return j.verdict
}

// Ready says whether the check has succeeded at least once in this tenure.
func (j *Judge) Ready() bool { return j.ready }

// Row is the number of failures in a row that count.
func (j *Judge) Row() int { return j.row }
