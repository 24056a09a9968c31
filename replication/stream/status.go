package stream

import (
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication/stream/replica"
)

// buckets are the upper bounds of a histogram: 16 µs doubled up to 8 s, and beyond.
const buckets = 20

type histogram struct {
	n   [buckets + 1]uint64
	sum time.Duration
}

func (h *histogram) add(d time.Duration) {
	i := 0
	for b := 16 * time.Microsecond; i < buckets && d > b; b *= 2 {
		i++
	}
	h.n[i]++
	h.sum += d
}

type stats struct {
	acks, written, syncs histogram
	bytes                uint64
}

// Bucket is a part of a histogram: so many took at most UpTo; 0: longer.
type Bucket struct {
	UpTo  time.Duration `json:"up_to"`
	Count uint64        `json:"count"`
}

// Histogram is how long something took.
type Histogram struct {
	Buckets []Bucket      `json:"buckets"`
	Count   uint64        `json:"count"`
	Sum     time.Duration `json:"sum"`
}

func (h *histogram) shown() Histogram {
	out := Histogram{Sum: h.sum}
	b := 16 * time.Microsecond
	for i, n := range h.n {
		if i == buckets {
			b = 0
		}
		if n > 0 {
			out.Buckets = append(out.Buckets, Bucket{b, n})
		}
		out.Count += n
		b *= 2
	}
	return out
}

// Replica is what the active knows of another copy.
type Replica struct {
	Member    cluster.MemberNo `json:"member"`
	Phase     string           `json:"phase"`
	Needed    bool             `json:"needed"` // nothing is acknowledged without it
	Connected bool             `json:"connected"`
	Accepted  uint64           `json:"accepted"`
	Durable   uint64           `json:"durable"`
	Applied   uint64           `json:"applied"`
	Lag       uint64           `json:"lag"`       // operations that it has not accepted
	LagBytes  uint64           `json:"lag_bytes"` // of what was sent to it
	Stalled   time.Duration    `json:"stalled"`   // how long something has waited for it without any progress
	Why       string           `json:"why,omitempty"`
}

// Status is how the stream is.
type Status struct {
	Leads        bool             `json:"leads"`
	Position     cluster.Position `json:"position"` // of the last operation here
	Written      uint64           `json:"written"`
	Durable      uint64           `json:"durable"`
	Applied      uint64           `json:"applied"`
	Alone        bool             `json:"alone"`
	Inconsistent bool             `json:"inconsistent"`
	Source       cluster.MemberNo `json:"source,omitempty"` // the standby: whom it follows
	Waiting      int              `json:"waiting"`          // operations and syncs that wait now
	Bytes        uint64           `json:"bytes"`            // of records, since the start
	Replicas     []Replica        `json:"replicas,omitempty"`
	Acks         Histogram        `json:"acks"`  // how long operations waited for their acceptance
	Syncs        Histogram        `json:"syncs"` // how long syncs waited after the own disk had them
	Failed       string           `json:"failed,omitempty"`
}

// Status is for the daemon, and for whoever looks.
func (s *Stream) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.c.Now()
	st := Status{Leads: s.act.Leads(), Position: s.c.Journal.Last(), Written: s.c.Journal.Last().Seq, Durable: s.c.Journal.Durable(), Applied: s.redone,
		Alone: s.act.Alone(), Inconsistent: s.state.Inconsistent, Waiting: len(s.waiters), Bytes: s.stats.bytes, Acks: s.stats.acks.shown(), Syncs: s.stats.syncs.shown()}
	switch {
	case s.failed != nil:
		st.Failed = s.failed.Error()
	case s.applyError != nil:
		st.Failed = s.applyError.Error()
	}
	if s.source != nil {
		st.Source = s.source.run.Member
	}
	if !st.Leads {
		return st
	}
	st.Position = cluster.Position{Epoch: s.epoch, Gen: s.gen, Seq: s.last}
	st.Applied = s.applied.low
	for _, r := range s.act.Replicas(now, nil) {
		x := Replica{Member: r.Member, Phase: r.Phase.String(), Needed: r.Needed, Accepted: r.Accepted, Durable: r.Durable, Lag: s.last - min(s.last, r.Accepted), Stalled: r.Stalled}
		if f := s.follower(r.Member); f != nil {
			x.Connected, x.Applied, x.LagBytes, x.Why = true, f.applied, f.bytesSent-f.consumed, f.why
			if r.Phase < replica.CatchUp {
				x.Lag = s.last - min(s.last, f.fork)
			}
		}
		st.Replicas = append(st.Replicas, x)
	}
	return st
}
