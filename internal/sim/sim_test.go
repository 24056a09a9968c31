package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var oneSeed = flag.Uint64("seed", 0, "run this seed only, with its transcript")

func seeds(t *testing.T, n int) int {
	if s := os.Getenv("HANODE_SIM_SEEDS"); s != "" {
		v, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("HANODE_SIM_SEEDS=%q is not a number", s)
		}
		return v
	}
	if testing.Short() {
		return min(n, 300)
	}
	return n
}

// each runs f for the seeds from first on, on all processors, until one says stop.
func each(first uint64, n int, f func(seed uint64) (stop bool)) {
	var next atomic.Uint64
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for !stop.Load() {
				i := next.Add(1) - 1
				if i >= uint64(n) {
					return
				}
				if f(first + i) {
					stop.Store(true)
				}
			}
		}()
	}
	wg.Wait()
}

// transcript is the end of what happened in a seed.
func transcript(o Options, lines int) string {
	o.Trace = true
	r := Run(o)
	if n := len(r.Transcript); n > lines {
		r.Transcript = r.Transcript[n-lines:]
	}
	return strings.Join(r.Transcript, "\n")
}

// patience is after how long no more seeds are begun, so that a machine with other work does not run into the time limit of the test.
const patience = 5 * time.Minute

func TestSimulation(t *testing.T) {
	if *oneSeed != 0 {
		r := Run(Options{Seed: *oneSeed, Trace: true})
		fmt.Println(strings.Join(r.Transcript, "\n"))
		if r.Err != nil {
			t.Fatalf("seed %d: %v", r.Seed, r.Err)
		}
		return
	}
	n := seeds(t, 5000)
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	began := time.Now()
	var mu sync.Mutex
	var sum Result
	failed := 0
	ran := 0
	each(1, n, func(seed uint64) bool {
		if time.Since(began) > patience && os.Getenv("HANODE_SIM_SEEDS") == "" {
			return true
		}
		r := Run(Options{Seed: seed})
		mu.Lock()
		defer mu.Unlock()
		ran++
		sum.Events += r.Events
		sum.Faults += r.Faults
		sum.Grants += r.Grants
		sum.Moves += r.Moves
		sum.Bumps += r.Bumps
		sum.Stickies += r.Stickies
		sum.Settles += r.Settles
		sum.Restores += r.Restores
		sum.Acked += r.Acked
		sum.Lost += r.Lost
		sum.Alones += r.Alones
		sum.Powerless += r.Powerless
		sum.Simulated += r.Simulated
		sum.Hash ^= r.Hash
		if r.Err != nil {
			failed++
			t.Errorf("seed %d: %v", seed, firstLine(r.Err))
			if failed == 1 {
				t.Logf("the last events of seed %d:\n%s\n%v", seed, transcript(Options{Seed: seed}, 60), r.Err)
			}
			t.Logf("replay: go test ./internal/sim -run TestSimulation -seed=%d -v", seed)
		}
		return failed >= 20
	})
	took := time.Since(began)
	if ran < n && failed == 0 {
		t.Logf("this machine is too slow for %d seeds within %v: %d were run", n, patience, ran)
	}
	t.Logf("%d seeds, %v simulated in %v: %d events (%.0f/s), %d faults, %d grants, %d moves, %d bumps, %d sticky, %d settled, %d snapshots, hash %016x; of data %d acknowledged, %d given up, %d times alone, %d grants after a power loss of all", ran,
		sum.Simulated.Round(time.Minute), took.Round(time.Millisecond), sum.Events, float64(sum.Events)/took.Seconds(), sum.Faults, sum.Grants, sum.Moves,
		sum.Bumps, sum.Stickies, sum.Settles, sum.Restores, sum.Hash, sum.Acked, sum.Lost, sum.Alones, sum.Powerless)
}

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}

func TestTheSameSeedGivesTheSameEvents(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		a, b := Run(Options{Seed: seed}), Run(Options{Seed: seed, Trace: true})
		if a.Hash != b.Hash || a.Events != b.Events {
			t.Errorf("seed %d: %d events with hash %016x, and %d with hash %016x", seed, a.Events, a.Hash, b.Events, b.Hash)
		}
	}
}

// Each planted bug must be found within the seeds of the ordinary run; how many it took is printed.
func TestThePlantedBugsAreCaught(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	for _, plant := range Plants() {
		t.Run(plant, func(t *testing.T) {
			var mu sync.Mutex
			caught, tried := Result{}, 0
			each(1, max(2000, seeds(t, 5000)), func(seed uint64) bool {
				r := Run(Options{Seed: seed, Plant: plant, Calm: time.Millisecond})
				mu.Lock()
				defer mu.Unlock()
				tried++
				if r.Err != nil && strings.Contains(r.Err.Error(), "I1") && (caught.Err == nil || seed < caught.Seed) {
					caught = r
				}
				return caught.Err != nil
			})
			if caught.Err == nil {
				t.Fatalf("%d seeds did not find it", tried)
			}
			t.Logf("seed %d, after %d seeds: %v", caught.Seed, tried, firstLine(caught.Err))
		})
	}
}

// The data path has bugs of its own to find: each must lose an acknowledged operation.
func TestThePlantedBugsOfTheDataAreCaught(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	for _, plant := range DataPlants() {
		t.Run(plant, func(t *testing.T) {
			var mu sync.Mutex
			caught, tried := Result{}, 0
			each(1, max(2000, seeds(t, 5000)), func(seed uint64) bool {
				r := Run(Options{Seed: seed, Plant: plant, Calm: time.Millisecond})
				mu.Lock()
				defer mu.Unlock()
				tried++
				if r.Err != nil && strings.Contains(r.Err.Error(), "I2") && (caught.Err == nil || seed < caught.Seed) {
					caught = r
				}
				return caught.Err != nil
			})
			if caught.Err == nil {
				t.Fatalf("%d seeds did not find it", tried)
			}
			t.Logf("seed %d, after %d seeds: %v", caught.Seed, tried, firstLine(caught.Err))
		})
	}
}

// With clocks that run wrong by more than the protocol assumes, two members are active: the simulator sees what the assumption is for.
func TestClocksBeyondTheAssumptionBreakTheLease(t *testing.T) {
	found := false
	each(1, 3000, func(seed uint64) bool {
		r := Run(Options{Seed: seed, Drift: 120_000, Calm: time.Millisecond})
		if r.Err != nil && strings.Contains(r.Err.Error(), "I1") {
			found = true
			return true
		}
		return false
	})
	if !found {
		t.Error("no seed shows two actives with clocks that are wrong by 12 %")
	}
}

func TestSeedsThatHaveFailedOnceDoNotFailAgain(t *testing.T) {
	b, err := os.ReadFile("testdata/seeds")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		number, what, _ := strings.Cut(line, "\t")
		seed, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			continue // a comment
		}
		if r := Run(Options{Seed: seed}); r.Err != nil {
			t.Errorf("seed %d (%s): %v", seed, what, firstLine(r.Err))
		}
	}
}
