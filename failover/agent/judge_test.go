package agent

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hanode/hanode/cluster"
)

const second = cluster.Instant(time.Second)

func spec3() cluster.CheckSpec {
	return cluster.CheckSpec{Name: "c", Kind: "tcp", Target: "127.0.0.1:1", Every: time.Second, Timeout: time.Second, Failures: 3, From: []string{"active"}}
}

func good(at cluster.Instant) Result { return Result{OK: true, At: at} }
func bad(at cluster.Instant) Result  { return Result{At: at, Output: "refused"} }

func want(t *testing.T, j *Judge, s State) {
	t.Helper()
	if got := j.Status().State; got != s {
		t.Fatalf("state %s, want %s: %+v", got, s, j.Status())
	}
}

func TestThreeFailuresInARowCondemnAndOneSuccessForgives(t *testing.T) {
	j := NewJudge(spec3())
	want(t, &j, StateUnknown)
	if !j.Result(1*second, good(1*second)) || j.Status().LastOK != 1*second {
		t.Fatalf("the first success was no news: %+v", j.Status())
	}
	for i, s := range []State{StateFailing, StateFailing, StateOK, StateFailing, StateFailing, StateFailed, StateFailed, StateOK} {
		at := cluster.Instant(i+2) * second
		before := j.Status().State
		r := bad(at)
		if s == StateOK {
			r = good(at)
		}
		if changed := j.Result(at, r); changed != (before != s) {
			t.Errorf("result %d: changed = %v from %s to %s", i, changed, before, j.Status().State)
		}
		want(t, &j, s)
		if before != s && j.Status().Since != at {
			t.Errorf("result %d: since %d, want %d", i, j.Status().Since, at)
		}
	}
}

func TestOneFailureCondemnsAtOnceIfTheSpecSaysOne(t *testing.T) {
	s := spec3()
	s.Failures = 1
	j := NewJudge(s)
	j.Result(second, good(second))
	j.Result(2*second, bad(2*second))
	want(t, &j, StateFailed)
}

func TestBeforeTheFirstSuccessFailuresCountAtThePaceOfTheSpecOnly(t *testing.T) {
	j := NewJudge(spec3())
	for at := cluster.Instant(0); at < 2*second; at += second / 20 {
		changed := j.Result(at, bad(at))
		if changed != (at == 0) {
			t.Fatalf("at %v: changed = %v: %+v", time.Duration(at), changed, j.Status())
		}
		want(t, &j, StateFailing)
	}
	j.Result(2*second, bad(2*second))
	want(t, &j, StateFailed)
	if j.Status().LastOK != 0 {
		t.Error("it claims to have succeeded")
	}
}

func TestForCondemnsByTimeEvenWithoutAnotherResult(t *testing.T) {
	s := spec3()
	s.Failures, s.For = 0, 30*time.Second
	j := NewJudge(s)
	j.Result(second, good(second))
	if j.Due() != 0 {
		t.Fatal("a check that is ok waits for a condemnation")
	}
	for at := 10 * second; at < 40*second; at += second {
		j.Result(at, bad(at))
		want(t, &j, StateFailing)
	}
	if j.Due() != 40*second {
		t.Fatalf("due at %v", time.Duration(j.Due()))
	}
	if j.Tick(40*second-1) || !j.Tick(40*second) {
		t.Fatal("the time is wrong")
	}
	want(t, &j, StateFailed)
	if j.Tick(50*second) || j.Due() != 0 {
		t.Fatal("condemned twice")
	}
}

func TestASuccessStartsTheTimeOfForAnew(t *testing.T) {
	s := spec3()
	s.Failures, s.For = 0, 5*time.Second
	j := NewJudge(s)
	j.Result(1*second, bad(1*second))
	j.Result(5*second, good(5*second))
	j.Result(6*second, bad(6*second))
	j.Result(10*second, bad(10*second))
	want(t, &j, StateFailing)
	j.Result(11*second, bad(11*second))
	want(t, &j, StateFailed)
}

func TestResetForgetsEverything(t *testing.T) {
	j := NewJudge(spec3())
	if j.Reset(second) {
		t.Error("a reset of nothing is news")
	}
	j.Result(second, good(second))
	if !j.Reset(2*second) || j.Status() != (Status{Name: "c", State: StateUnknown, Since: 2 * second}) {
		t.Errorf("after a reset: %+v", j.Status())
	}
	if !j.Result(3*second, bad(3*second)) {
		t.Error("the first result after a reset is no news")
	}
}

// The judge against the rule in its simplest form, over any sequence of results after a first success.
func TestTheJudgeKeepsTheRule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := spec3()
		s.Failures = rapid.IntRange(1, 5).Draw(t, "failures")
		if rapid.Bool().Draw(t, "by time") {
			s.Failures, s.For = 0, time.Duration(rapid.IntRange(1, 8).Draw(t, "for"))*time.Second
		}
		j := NewJudge(s)
		at, row, since := second, 0, cluster.Instant(0)
		j.Result(at, good(at))
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			at += cluster.Instant(rapid.IntRange(1, 3000).Draw(t, "ms")) * cluster.Instant(time.Millisecond)
			before := j.Status().State
			var changed bool
			switch rapid.SampledFrom([]string{"ok", "fail", "fail", "tick"}).Draw(t, "what") {
			case "ok":
				row = 0
				changed = j.Result(at, good(at))
			case "fail":
				if row++; row == 1 {
					since = at
				}
				changed = j.Result(at, bad(at))
			case "tick":
				changed = j.Tick(at)
			}
			state := StateOK
			if row > 0 {
				state = StateFailing
				if s.For > 0 && at.Sub(since) >= s.For || s.For == 0 && row >= s.Failures {
					state = StateFailed
				}
			}
			if j.Status().State != state || changed != (before != state) {
				t.Fatalf("state %s (changed %v), want %s: row of %d since %v, now %v", j.Status().State, changed, state, row, since, at)
			}
		}
	})
}

func TestHealthyDecidesHowManyMustSucceed(t *testing.T) {
	on := func(name string, from ...string) cluster.CheckSpec { return cluster.CheckSpec{Name: name, From: from} }
	specs := []cluster.CheckSpec{on("a", "active"), on("b", "active", "standby"), on("c", "active"), on("w", "witness")}
	ok := Status{State: StateOK, LastOK: 1}
	late := Status{State: StateFailed, LastOK: 1, Output: "late"} // was ready once
	never := Status{State: StateFailed, Output: "never"}
	failing := Status{State: StateFailing, LastOK: 1}
	for _, c := range []struct {
		healthy, role string
		a, b, c       Status
		ready, failed bool
	}{
		{"all", "active", ok, ok, ok, true, false},
		{"all", "active", ok, ok, Status{}, false, false},
		{"all", "active", ok, ok, failing, true, false},
		{"all", "active", ok, ok, late, false, true},
		{"all", "active", ok, ok, never, false, true},
		{"any", "active", ok, never, never, true, false},
		{"any", "active", failing, never, never, true, false},
		{"any", "active", never, never, never, false, true},
		{"any", "active", Status{}, never, never, false, false},
		{"2", "active", ok, ok, never, true, false},
		{"2", "active", ok, late, never, false, true},
		{"2", "active", ok, late, ok, true, false},
		{"9", "active", ok, ok, ok, true, false}, // no more than there are
		{"9", "active", ok, ok, never, false, true},
		{"", "active", ok, ok, never, false, true},
		{"all", "standby", never, ok, never, true, false}, // only b counts there
		{"any", "standby", ok, never, ok, false, true},
		{"all", "nobody", never, never, never, true, false},
	} {
		st := map[string]Status{"a": c.a, "b": c.b, "c": c.c}
		for n, s := range st {
			s.Name = n
			st[n] = s
		}
		if got := Ready(st, specs, c.healthy, c.role); got != c.ready {
			t.Errorf("%+v: ready = %v", c, got)
		}
		failed, why := Failed(st, specs, c.healthy, c.role)
		if failed && Ready(st, specs, c.healthy, c.role) {
			t.Errorf("%+v: both ready and failed", c)
		}
		if failed != c.failed || failed != (why != "") {
			t.Errorf("%+v: failed = %v, %q", c, failed, why)
		}
	}
	_, why := Failed(map[string]Status{"a": {Name: "a", State: StateFailed, Output: "connection refused"}}, specs, "all", "active")
	if why != "check a: connection refused" {
		t.Errorf("it says %q", why)
	}
	st := map[string]Status{"a": {Name: "a", State: StateFailed, Output: "x"}, "b": {Name: "b", State: StateFailed, Output: "y"}}
	if _, why = Failed(st, specs, "2", "active"); why != "1 of 3 checks succeed, healthy = 2: check a: x; check b: y" {
		t.Errorf("it says %q", why)
	}
}

func TestChecksThatThisVersionCannotRunAreRefusedByName(t *testing.T) {
	for _, c := range []struct {
		change func(*cluster.CheckSpec)
		says   string
	}{
		{func(s *cluster.CheckSpec) {}, ""},
		{func(s *cluster.CheckSpec) { s.Kind = "postgres" }, "postgres is not supported by this version: choose one of [tcp http exec]"},
		{func(s *cluster.CheckSpec) { s.Target = "5432" }, "write host:port"},
		{func(s *cluster.CheckSpec) { s.Kind, s.Target = "http", "127.0.0.1/x" }, "write a whole URL"},
		{func(s *cluster.CheckSpec) { s.Kind, s.Target = "http", "https://localhost/x" }, ""},
		{func(s *cluster.CheckSpec) { s.Kind = "exec" }, "give the program"},
		{func(s *cluster.CheckSpec) { s.Every = 0 }, "every = 0s"},
		{func(s *cluster.CheckSpec) { s.Failures = 0 }, "neither failures nor for"},
		{func(s *cluster.CheckSpec) { s.Failures, s.For = 0, 1 }, ""},
		{func(s *cluster.CheckSpec) { s.From = []string{"passive"} }, "passive"},
	} {
		s := spec3()
		c.change(&s)
		err := Check(s)
		if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), `check "c"`)) {
			t.Errorf("%+v: %v, want %q", s, err, c.says)
		}
	}
}
