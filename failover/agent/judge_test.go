package agent

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hanode/hanode/cluster"
)

const s = time.Second

func TestVerdicts(t *testing.T) {
	type step struct {
		at   time.Duration
		ok   bool
		want State
	}
	for name, c := range map[string]struct {
		spec  cluster.CheckSpec
		steps []step
	}{
		"unknown until the first success": {cluster.CheckSpec{Failures: 3},
			[]step{{1 * s, false, StateUnknown}, {2 * s, false, StateUnknown}, {3 * s, true, StateOK}}},
		"the third failure in a row condemns": {cluster.CheckSpec{Failures: 3},
			[]step{{0, true, StateOK}, {1 * s, false, StateFailing}, {2 * s, false, StateFailing}, {3 * s, false, StateFailed}, {4 * s, false, StateFailed}}},
		"a success between acquits": {cluster.CheckSpec{Failures: 2},
			[]step{{0, true, StateOK}, {1 * s, false, StateFailing}, {2 * s, true, StateOK}, {3 * s, false, StateFailing}, {4 * s, false, StateFailed}, {5 * s, true, StateOK}}},
		"after start_timeout failures count even without a success": {cluster.CheckSpec{Failures: 2},
			[]step{{59 * s, false, StateUnknown}, {60 * s, false, StateFailing}, {61 * s, false, StateFailed}, {62 * s, true, StateOK}}},
		"one failure may be enough": {cluster.CheckSpec{Failures: 1}, []step{{0, true, StateOK}, {1 * s, false, StateFailed}}},
		"0 failures is taken for 1": {cluster.CheckSpec{}, []step{{0, true, StateOK}, {1 * s, false, StateFailed}}},
		"`for` counts time instead": {cluster.CheckSpec{Failures: 1, For: 10 * s},
			[]step{{0, true, StateOK}, {1 * s, false, StateFailing}, {10 * s, false, StateFailing}, {11 * s, false, StateFailed}}},
		"`for` begins anew after a success": {cluster.CheckSpec{For: 2 * s},
			[]step{{0, true, StateOK}, {1 * s, false, StateFailing}, {2 * s, true, StateOK}, {3 * s, false, StateFailing}, {4 * s, false, StateFailing}, {5 * s, false, StateFailed}}},
		"one failure is never a time": {cluster.CheckSpec{For: 1}, []step{{0, true, StateOK}, {9 * s, false, StateFailing}, {10 * s, false, StateFailed}}},
	} {
		begin := cluster.Instant(1e12)
		j := NewJudge(c.spec, begin, 60*s)
		for i, st := range c.steps {
			if got := j.Step(begin.Add(st.at), Result{OK: st.ok}); got != st.want {
				t.Errorf("%s: step %d: %s, want %s", name, i+1, got, st.want)
			}
		}
	}
}

func TestACheckIsCondemnedExactlyAfterItsFailuresInARow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 5).Draw(t, "failures")
		j := NewJudge(cluster.CheckSpec{Failures: n}, 0, 0)
		row := 0
		for i, ok := range rapid.SliceOfN(rapid.Bool(), 1, 60).Draw(t, "results") {
			v := j.Step(cluster.Instant(i+1), Result{OK: ok})
			if row++; ok {
				row = 0
			}
			if (v == StateFailed) != (row >= n) || (v == StateOK) != ok {
				t.Fatalf("%d failures in a row of %d: %s", row, n, v)
			}
		}
	})
}
