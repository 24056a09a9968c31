package volume

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Stats counts what the file system did since it was mounted.
type Stats struct {
	Reads, Writes, ReadBytes, WriteBytes atomic.Uint64
	Changes, Syncs, Opens, Passed        atomic.Uint64
	Gate, Failed, Unsafe, Stored         atomic.Uint64 // refused by the gate; accepted but not applied; opens that stores looks after, and bytes that it recorded
	Ack, Sync                            Histogram     // from Submit to Wait's answer; of Log.Sync
}

// Histogram counts durations by powers of two: bucket i holds those below 2^i µs, the last one everything longer.
type Histogram struct{ Buckets [24]atomic.Uint64 }

func (h *Histogram) since(start time.Time) { h.add(time.Since(start)) }

func (h *Histogram) add(d time.Duration) {
	h.Buckets[min(bits.Len64(uint64(max(d.Microseconds(), 0))), len(h.Buckets)-1)].Add(1)
}

// Quantile is an upper bound of the q-quantile, 0 if nothing was counted.
func (h *Histogram) Quantile(q float64) time.Duration {
	var counts [len(h.Buckets)]uint64
	var all uint64
	for i := range h.Buckets {
		counts[i] = h.Buckets[i].Load()
		all += counts[i]
	}
	if all == 0 {
		return 0
	}
	rank, seen := uint64(q*float64(all-1)), uint64(0)
	for i, c := range counts {
		if seen += c; seen > rank {
			return time.Microsecond << i
		}
	}
	return time.Microsecond << len(counts)
}

// Stats returns the counters, which go on counting.
func (v *FS) Stats() *Stats { return &v.stats }

// Handles is the number of files that clients have open.
func (v *FS) Handles() int { return v.handles.count() }
