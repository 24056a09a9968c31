package raft

import (
	"slices"
	"sync"
	"time"
)

// latencies keeps the last 512 durations. The zero value is ready.
type latencies struct {
	mu   sync.Mutex
	ring [512]uint32 // microseconds
	n    uint64
}

func (l *latencies) add(d time.Duration) {
	us := min(max(d.Microseconds(), 0), 1<<32-1)
	l.mu.Lock()
	l.ring[l.n%uint64(len(l.ring))] = uint32(us)
	l.n++
	l.mu.Unlock()
}

// quantiles returns the p50 and p99 of what was kept, 0 when nothing was.
func (l *latencies) quantiles() (p50, p99 time.Duration, n uint64) {
	l.mu.Lock()
	kept := append([]uint32(nil), l.ring[:min(l.n, uint64(len(l.ring)))]...)
	n = l.n
	l.mu.Unlock()
	if len(kept) == 0 {
		return 0, 0, 0
	}
	slices.Sort(kept)
	at := func(q int) time.Duration { return time.Duration(kept[(len(kept)-1)*q/100]) * time.Microsecond }
	return at(50), at(99), n
}
