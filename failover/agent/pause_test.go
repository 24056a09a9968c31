package agent

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanode/hanode/cluster"
)

func TestAPausedCheckIsNotRunAndStartsAnewAfterwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var paused atomic.Bool
		var runs atomic.Int64
		last := StateUnknown
		began := time.Now()
		d := Deps{Now: func() cluster.Instant { return cluster.Instant(time.Since(began)) + 1 }, Paused: func(name string) bool { return name == "c" && paused.Load() }}.filled()
		done := make(chan error, 1)
		spec := []cluster.CheckSpec{{Name: "c", Kind: "tcp", Target: "127.0.0.1:1", Every: time.Second, Timeout: time.Second, Failures: 2, From: []string{"active"}}}
		go func() {
			done <- run(ctx, spec, d, func(context.Context, *cluster.CheckSpec, *Deps) Result {
				runs.Add(1)
				return Result{At: d.Now(), Output: "no"}
			}, func(s Status) { last = s.State })
		}()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if last != StateFailed {
			t.Fatalf("before the pause it is %s", last)
		}
		paused.Store(true)
		time.Sleep(time.Second)
		synctest.Wait()
		before := runs.Load()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if last != StateUnknown || runs.Load() != before {
			t.Fatalf("while paused it is %s and ran %d times", last, runs.Load()-before)
		}
		paused.Store(false)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if last != StateFailed || runs.Load() == before {
			t.Fatalf("after the pause it is %s", last)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}
