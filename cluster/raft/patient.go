package raft

import (
	"context"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"
)

// patient sends entries to a member that cannot be reached until it can, as long as this instance leads in the same term and the member is one of the
// group. hashicorp/raft would pause after each failure for twice as long as before, up to 41 s (replication.go, maxFailureScale): so long a member that
// comes back would wait for the log, and be no standby. Heartbeats are left alone: their pauses are bounded by the heartbeat time-out.
type patient struct {
	transport
	over context.Context
	raft func() *hraft.Raft // nil until it is built

	beat *Beat         // nil: heartbeats do not wait
	pace time.Duration // the longest that one waits, counted from the one before
	stay time.Duration // for how long heartbeats are sent before hashicorp/raft hears of their success
	mu   sync.Mutex
	last map[hraft.ServerID]time.Time // heartbeat to each member
}

// hold keeps a heartbeat until the caller sends as well, but not beyond the pace, and two thirds of it in any case: that is often enough. A first one, to a member that was
// not talked to for long, leaves at once.
func (t *patient) hold(id hraft.ServerID) {
	t.mu.Lock()
	last := t.last[id]
	t.mu.Unlock()
	rest := t.pace - time.Since(last)
	if rest > 0 {
		full := time.NewTimer(rest)
		defer full.Stop()
		for beat := t.beat.Next(); ; beat = t.beat.Next() {
			select {
			case <-full.C:
			case <-t.over.Done():
			case <-beat:
				if time.Since(last) < t.pace*2/3 {
					continue
				}
			}
			break
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil || len(t.last) > 64 {
		t.last = map[hraft.ServerID]time.Time{}
	}
	t.last[id] = time.Now()
}

// patientPause is between two attempts.
const patientPause = 50 * time.Millisecond

// AppendEntries sends entries, or a heartbeat.
func (t *patient) AppendEntries(id hraft.ServerID, to hraft.ServerAddress, q *hraft.AppendEntriesRequest, a *hraft.AppendEntriesResponse) error {
	if q.PrevLogEntry == 0 && q.PrevLogTerm == 0 && len(q.Entries) == 0 && q.LeaderCommitIndex == 0 { // a heartbeat
		if t.beat == nil {
			return t.transport.AppendEntries(id, to, q, a)
		}
		// Several at a time: before each call hashicorp/raft waits on a timer of its own.
		for began := time.Now(); ; *a = (hraft.AppendEntriesResponse{}) {
			t.hold(id)
			err := t.transport.AppendEntries(id, to, q, a)
			if err != nil || time.Since(began) >= t.stay || !t.worthwhile(id, q.Term) {
				return err
			}
		}
	}
	err := t.transport.AppendEntries(id, to, q, a)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for err != nil && t.worthwhile(id, q.Term) {
		pause.Reset(patientPause)
		select {
		case <-pause.C:
		case <-t.over.Done():
			return err
		}
		*a = hraft.AppendEntriesResponse{}
		err = t.transport.AppendEntries(id, to, q, a)
	}
	return err
}

func (t *patient) worthwhile(id hraft.ServerID, term uint64) bool {
	r := t.raft()
	if r == nil || t.over.Err() != nil || r.State() != hraft.Leader || r.CurrentTerm() != term {
		return false
	}
	for _, s := range r.GetConfiguration().Configuration().Servers {
		if s.ID == id {
			return true
		}
	}
	return false
}
