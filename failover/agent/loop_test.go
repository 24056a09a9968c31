package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanode/hanode/cluster"
)

// bench runs loops with a fake check on a fake clock (within a synctest bubble).
type bench struct {
	t0   time.Time
	mu   sync.Mutex
	role string
	life uint64
	runs []time.Duration // when each began
	news []string        // "250ms ok"
	last map[string]Status

	answer func(at time.Duration) bool // of the run that began at
	takes  time.Duration               // by each run, unless it is cancelled
	busy   int
	over   bool
}

func newBench() *bench {
	return &bench{t0: time.Now(), role: "active", last: map[string]Status{}, answer: func(time.Duration) bool { return true }}
}

func (b *bench) now() cluster.Instant { return cluster.Instant(time.Since(b.t0)) + 1 }

func (b *bench) set(role string, life uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.role, b.life = role, life
}

func (b *bench) probe(ctx context.Context, s *cluster.CheckSpec, d *Deps) Result {
	b.mu.Lock()
	at := time.Since(b.t0)
	b.runs = append(b.runs, at)
	b.busy++
	b.over = b.over || b.busy > 1
	b.mu.Unlock()
	r := Result{At: d.Now(), OK: b.answer(at)}
	select {
	case <-time.After(b.takes):
	case <-ctx.Done():
		r.OK, r.Output = false, "cancelled"
	}
	b.mu.Lock()
	b.busy--
	b.mu.Unlock()
	return r
}

// until runs the checks for d, with things that happen at moments.
func (b *bench) until(t *testing.T, d time.Duration, specs []cluster.CheckSpec, at map[time.Duration]func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	for when, what := range at {
		defer time.AfterFunc(when, what).Stop()
	}
	deps := Deps{Now: b.now, Role: func() string { b.mu.Lock(); defer b.mu.Unlock(); return b.role }, Life: func() uint64 { b.mu.Lock(); defer b.mu.Unlock(); return b.life }}
	err := run(ctx, specs, deps.filled(), b.probe, func(st Status) {
		b.news = append(b.news, fmt.Sprintf("%v %s", time.Since(b.t0), st.State))
		b.last[st.Name] = st
	})
	if err != nil || ctx.Err() == nil {
		t.Fatalf("Run: %v", err)
	}
	if b.busy != 0 {
		t.Error("a run outlives Run")
	}
	if b.over && len(specs) == 1 {
		t.Error("two runs of one check at once")
	}
}

func (b *bench) wantRuns(t *testing.T, want ...time.Duration) {
	t.Helper()
	if !slices.Equal(b.runs, want) {
		t.Errorf("runs at %v, want %v", b.runs, want)
	}
}

func (b *bench) wantNews(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(b.news, want) {
		t.Errorf("news:\n %s\nwant:\n %s", strings.Join(b.news, "\n "), strings.Join(want, "\n "))
	}
}

const ms = time.Millisecond

func TestTheFirstRunIsAtOnceAndTheNextAreExactlyEveryApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		b.takes = 7 * ms
		b.until(t, 4500*ms, []cluster.CheckSpec{spec3()}, nil)
		b.wantRuns(t, 0, 1000*ms, 2000*ms, 3000*ms, 4000*ms)
		b.wantNews(t, "7ms ok")
	})
}

func TestRunsThatTakeLongerThanEveryAreLeftOutAndNeverOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		b.takes = 2300 * ms
		b.until(t, 7*time.Second, []cluster.CheckSpec{spec3()}, nil)
		b.wantRuns(t, 0, 3000*ms, 6000*ms)
	})
}

func TestReadinessIsSeenSoonAndFailuresBeforeItCountSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		b.answer = func(at time.Duration) bool { return at >= 2330*ms }
		b.until(t, 5*time.Second, []cluster.CheckSpec{spec3()}, nil)
		b.wantNews(t, "0s failing", "2s failed", "2.35s ok")
		if n := len(b.runs); n != 48+2 || b.runs[48] != 3350*ms || b.runs[49] != 4350*ms {
			t.Errorf("%d runs, the last at %v", n, b.runs[max(n-3, 0):])
		}
	})
}

func TestProgramsAreAskedLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := newBench(), spec3()
		s.Kind, s.Argv = "exec", []string{"x"}
		b.answer = func(time.Duration) bool { return false }
		b.until(t, 900*ms, []cluster.CheckSpec{s}, nil)
		b.wantRuns(t, 0, 250*ms, 500*ms, 750*ms)
	})
}

func TestTheFastPaceEndsAfterAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		b.answer = func(time.Duration) bool { return false }
		b.until(t, 65500*ms, []cluster.CheckSpec{spec3()}, nil)
		if n := len(b.runs); n != 1200+6 {
			t.Errorf("%d runs, the last at %v", n, b.runs[max(n-8, 0):])
		}
	})
}

func TestAShortEveryIsNotMadeLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := newBench(), spec3()
		s.Every = 20 * ms
		b.answer = func(time.Duration) bool { return false }
		b.until(t, 90*ms, []cluster.CheckSpec{s}, nil)
		b.wantRuns(t, 0, 20*ms, 40*ms, 60*ms, 80*ms)
		b.wantNews(t, "0s failing", "40ms failed")
	})
}

func TestACheckRunsOnlyInItsRolesAndStartsAnewWithEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		b.role = "standby"
		b.until(t, 9500*ms, []cluster.CheckSpec{spec3()}, map[time.Duration]func(){
			3010 * ms: func() { b.set("active", 1) },
			6010 * ms: func() { b.set("standby", 1) },
			9010 * ms: func() { b.set("active", 2) },
		})
		b.wantRuns(t, 3050*ms, 4050*ms, 5050*ms, 9050*ms)
		b.wantNews(t, "3.05s ok", "6.05s unknown", "9.05s ok")
	})
}

func TestANewLifeMakesAFailedCheckUnknownAndForgetsTheRunUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		b.answer = func(at time.Duration) bool { return at < time.Second || at > 5*time.Second }
		b.takes = 200 * ms
		b.until(t, 6*time.Second, []cluster.CheckSpec{spec3()}, map[time.Duration]func(){
			4060 * ms: func() { b.set("active", 1) }, // the run of 4s ends at 4.2s
		})
		b.wantNews(t, "200ms ok", "1.2s failing", "3.2s failed", "4.1s unknown", "4.3s failing", "5.3s ok")
		if b.last["c"].Failures != 0 {
			t.Errorf("%+v", b.last)
		}
	})
}

func TestAResultThatComesBeforeAChangeOfLifeIsNoticedIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		b.answer = func(at time.Duration) bool { return at < 4*time.Second }
		b.takes = 70 * ms
		b.until(t, 4130*ms, []cluster.CheckSpec{spec3()}, map[time.Duration]func(){
			4060 * ms: func() { b.set("active", 1) }, // the run of 4s fails at 4.07s, the next look is at 4.1s
		})
		b.wantRuns(t, 0, 1000*ms, 2000*ms, 3000*ms, 4000*ms, 4070*ms)
		b.wantNews(t, "70ms ok", "4.07s unknown")
	})
}

func TestForIsKeptBetweenTwoRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := newBench(), spec3()
		s.Every, s.Failures, s.For = time.Minute, 0, 90*time.Second
		b.answer = func(at time.Duration) bool { return at == 0 }
		b.until(t, 3*time.Minute-ms, []cluster.CheckSpec{s}, nil)
		b.wantRuns(t, 0, time.Minute, 2*time.Minute)
		b.wantNews(t, "0s ok", "1m0s failing", "2m30s failed")
	})
}

func TestTheEndOfRunIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		b.takes = 300 * ms
		b.until(t, 1100*ms, []cluster.CheckSpec{spec3()}, nil)
		b.wantNews(t, "300ms ok")
	})
}

func TestOnChangeIsCalledByOneAtATime(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var specs []cluster.CheckSpec
	for i := range 20 {
		s := spec3()
		s.Name = fmt.Sprint(i)
		specs = append(specs, s)
	}
	var inside atomic.Int32
	seen := map[string]bool{}
	err := run(ctx, specs, Deps{}.filled(), newBench().probe, func(st Status) {
		if inside.Add(1) != 1 {
			t.Error("called by two at once")
		}
		time.Sleep(ms) // gives the others the time to do it wrong
		inside.Add(-1)
		if seen[st.Name] = true; len(seen) == len(specs) {
			cancel()
		}
	})
	if err != nil || len(seen) != 20 {
		t.Errorf("%v, heard of %d checks", err, len(seen))
	}
}

func TestRunRefusesBeforeItStartsAnything(t *testing.T) {
	bad := spec3()
	bad.Name, bad.Kind = "sql", "postgres"
	err := Run(t.Context(), []cluster.CheckSpec{spec3(), bad}, Deps{}, func(Status) { t.Error("a check ran") })
	if err == nil || !strings.Contains(err.Error(), `check "sql": postgres is not supported`) {
		t.Errorf("Run: %v", err)
	}
}

func TestChecksOfTheWitnessAloneAreNotOurs(t *testing.T) {
	s := spec3()
	s.Kind, s.From = "ping", []string{"witness"}
	ctx, cancel := context.WithTimeout(t.Context(), 10*ms)
	defer cancel()
	if err := Run(ctx, []cluster.CheckSpec{s}, Deps{}, func(Status) { t.Error("it ran") }); err != nil {
		t.Error(err)
	}
}
