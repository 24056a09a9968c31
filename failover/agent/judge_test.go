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
		want Verdict
	}
	for name, c := range map[string]struct {
		spec  cluster.CheckSpec
		steps []step
	}{
		"unknown until the first success": {cluster.CheckSpec{Failures: 3},
			[]step{{1 * s, false, Unknown}, {2 * s, false, Unknown}, {3 * s, true, OK}}},
		"the third failure in a row condemns": {cluster.CheckSpec{Failures: 3},
			[]step{{0, true, OK}, {1 * s, false, Failing}, {2 * s, false, Failing}, {3 * s, false, Failed}, {4 * s, false, Failed}}},
		"a success between acquits": {cluster.CheckSpec{Failures: 2},
			[]step{{0, true, OK}, {1 * s, false, Failing}, {2 * s, true, OK}, {3 * s, false, Failing}, {4 * s, false, Failed}, {5 * s, true, OK}}},
		"after start_timeout failures count even without a success": {cluster.CheckSpec{Failures: 2},
			[]step{{59 * s, false, Unknown}, {60 * s, false, Failing}, {61 * s, false, Failed}, {62 * s, true, OK}}},
		"one failure may be enough": {cluster.CheckSpec{Failures: 1}, []step{{0, true, OK}, {1 * s, false, Failed}}},
		"0 failures is taken for 1": {cluster.CheckSpec{}, []step{{0, true, OK}, {1 * s, false, Failed}}},
		"`for` counts time instead": {cluster.CheckSpec{Failures: 1, For: 10 * s},
			[]step{{0, true, OK}, {1 * s, false, Failing}, {10 * s, false, Failing}, {11 * s, false, Failed}}},
		"`for` begins anew after a success": {cluster.CheckSpec{For: 2 * s},
			[]step{{0, true, OK}, {1 * s, false, Failing}, {2 * s, true, OK}, {3 * s, false, Failing}, {4 * s, false, Failing}, {5 * s, false, Failed}}},
		"one failure is never a time": {cluster.CheckSpec{For: 1}, []step{{0, true, OK}, {9 * s, false, Failing}, {10 * s, false, Failed}}},
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
			if (v == Failed) != (row >= n) || (v == OK) != ok {
				t.Fatalf("%d failures in a row of %d: %s", row, n, v)
			}
		}
	})
}
