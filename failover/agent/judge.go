package agent

import (
	"time"

	"github.com/hanode/hanode/cluster"
)

// State is what is thought of a check.
type State string

const (
	StateUnknown State = "unknown" // it has not run yet in this role and life, or does not run in this role
	StateOK      State = "ok"      // its last run succeeded
	StateFailing State = "failing" // it fails, but not yet often or long enough
	StateFailed  State = "failed"  // it failed as often, or for as long, as the spec says
)

// Status is the state of one check.
type Status struct {
	Name     string
	State    State
	Output   string          // of the last run: one line of at most 256 bytes
	Took     time.Duration   // of the last run
	Since    cluster.Instant // when State began
	Failures int             // that counted, in a row
	LastOK   cluster.Instant // end of the last successful run in this role and life; 0: none
}

// Judge is the pure state machine of one check: results and times go in, states come out. The zero value is not usable.
type Judge struct {
	spec     cluster.CheckSpec
	status   Status
	results  int             // since the start
	failedAt cluster.Instant // when the first failure of this row was known
	counted  cluster.Instant // beginning of the run whose failure counted last
}

// NewJudge returns the judge of a check that has not run yet.
func NewJudge(spec cluster.CheckSpec) Judge {
	return Judge{spec: spec, status: Status{Name: spec.Name, State: StateUnknown}}
}

// Status is what the judge thinks.
func (j *Judge) Status() Status { return j.status }

// Reset starts anew, as at a change of role or epoch; changed says that the state was another one than unknown.
func (j *Judge) Reset(now cluster.Instant) (changed bool) {
	changed = j.status.State != StateUnknown
	*j = NewJudge(j.spec)
	j.status.Since = now
	return changed
}

// Result takes what a run found, known at now. changed says that the state is another one, or that this was the first
// result. One success makes the check ok. Until the first one, failures count only at the pace of `every`, however often
// the check runs.
func (j *Judge) Result(now cluster.Instant, r Result) (changed bool) {
	j.results++
	j.status.Output, j.status.Took = r.Output, r.Took
	if r.OK {
		j.status.Failures, j.failedAt, j.counted, j.status.LastOK = 0, 0, 0, now
		return j.become(now, StateOK) || j.results == 1
	}
	if j.status.Failures == 0 {
		j.failedAt = now
	} else if j.status.LastOK == 0 && r.At.Sub(j.counted) < j.spec.Every-min(j.spec.Every/8, slack) {
		return j.Tick(now)
	}
	j.status.Failures++
	j.counted = r.At
	return j.Tick(now) || j.results == 1
}

// slack is how much too early a run may begin and yet count as the next one: a run may be late, and the one after it not.
const slack = 20 * time.Millisecond

// Tick takes the passing of time: with `for`, a check that fails is failed when that time is over, see Due.
func (j *Judge) Tick(now cluster.Instant) (changed bool) {
	switch {
	case j.status.Failures == 0:
		return false
	case j.spec.For > 0 && now.Sub(j.failedAt) >= j.spec.For, j.spec.For <= 0 && j.status.Failures >= j.spec.Failures:
		return j.become(now, StateFailed)
	}
	return j.become(now, StateFailing)
}

// Due is when Tick will change the state if there is no result before; 0: never.
func (j *Judge) Due() cluster.Instant {
	if j.status.State != StateFailing || j.spec.For <= 0 {
		return 0
	}
	return j.failedAt.Add(j.spec.For)
}

func (j *Judge) become(now cluster.Instant, s State) bool {
	if j.status.State == s {
		return false
	}
	j.status.State, j.status.Since = s, now
	return true
}
