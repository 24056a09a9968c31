package rt

import (
	"math/bits"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
)

// Histogram counts durations of the last minutes. Its buckets grow by a quarter of a power of two, so a quantile is at
// most 19 % above the truth and never below it. It is a ring of time slices: what is older than its window is forgotten. All
// methods may be called by many goroutines; Record takes a lock for some nanoseconds and never allocates.
type Histogram struct {
	mu     sync.Mutex
	slice  time.Duration
	slices [ringSlices]ringSlice
}

const (
	ringSlices = 16
	perOctave  = 4
	buckets    = 36 * perOctave // 1 ns to 68 s
)

type ringSlice struct {
	no    int64 // which slice of time it counts; 0: none yet
	n     uint32
	max   time.Duration
	count [buckets]uint32
}

// NewHistogram returns a histogram of the last window; windows below a second are taken for a second.
func NewHistogram(window time.Duration) *Histogram {
	return &Histogram{slice: max(window, time.Second) / (ringSlices - 1)}
}

// Record counts d at now.
func (h *Histogram) Record(now cluster.Instant, d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	no := int64(now)/int64(h.slice) + 1
	s := &h.slices[no%ringSlices]
	if s.no != no {
		*s = ringSlice{no: no}
	}
	s.n++
	s.max = max(s.max, d)
	s.count[bucketOf(d)]++
}

// Quantile returns the duration that q (0 to 1) of those recorded within the window before now did not exceed, and how
// many these were. For small numbers it is the largest one.
func (h *Histogram) Quantile(now cluster.Instant, q float64) (time.Duration, int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	no := int64(now)/int64(h.slice) + 1
	var sum [buckets]uint64
	var n uint64
	var top time.Duration
	for i := range h.slices {
		s := &h.slices[i]
		if s.no == 0 || s.no <= no-ringSlices {
			continue
		}
		n += uint64(s.n)
		top = max(top, s.max)
		for b, c := range s.count {
			sum[b] += uint64(c)
		}
	}
	if n == 0 {
		return 0, 0
	}
	rank := uint64(q * float64(n))
	var seen uint64
	for b, c := range sum {
		seen += c
		if seen > rank {
			return min(upper(b), top), int(n)
		}
	}
	return top, int(n)
}

// bucketOf and upper: bucket b holds the durations below upper(b) that are in no lower one.
func bucketOf(d time.Duration) int {
	if d < perOctave {
		return max(int(d), 0)
	}
	v := uint64(d)
	oct := bits.Len64(v) - 1 // 2^oct <= v
	sub := int(v >> (oct - 2) & (perOctave - 1))
	return min((oct-1)*perOctave+sub, buckets-1)
}

func upper(b int) time.Duration {
	if b < perOctave {
		return time.Duration(b)
	}
	oct, sub := b/perOctave+1, b%perOctave
	return time.Duration(uint64(perOctave+sub+1)<<(oct-2)) - 1
}
