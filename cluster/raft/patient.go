package raft

import (
	"context"
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
}

// patientPause is between two attempts.
const patientPause = 50 * time.Millisecond

// AppendEntries sends entries, or a heartbeat.
func (t *patient) AppendEntries(id hraft.ServerID, to hraft.ServerAddress, q *hraft.AppendEntriesRequest, a *hraft.AppendEntriesResponse) error {
	err := t.transport.AppendEntries(id, to, q, a)
	if q.PrevLogEntry == 0 && q.PrevLogTerm == 0 && len(q.Entries) == 0 && q.LeaderCommitIndex == 0 {
		return err // a heartbeat
	}
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
