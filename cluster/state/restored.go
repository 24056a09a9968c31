package state

import (
	"fmt"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/internal/pbwire"
)

// Restored is what a cluster that is made anew takes over from the backup of another one. Nothing that grows there goes back here: fork count,
// epochs, generations, spec versions and decision numbers go on from what the backup says, and epochs leave room for everything that the old
// cluster may have done after the backup was made.
type Restored struct {
	From         string            `pb:"1"` // the old cluster's id
	ForkCount    uint64            `pb:"2"` // the old one's
	Spec         SpecVersion       `pb:"3"`
	Services     []RestoredService `pb:"4"`
	LastDecision uint64            `pb:"5"`
	LastEvent    uint64            `pb:"6"`
	LogTime      int64             `pb:"7"` // when the backup was made, by the old cluster's clocks
}

// RestoredService is where the lock of one service stood.
type RestoredService struct {
	Name  string             `pb:"1"`
	Epoch cluster.Epoch      `pb:"2"`
	Gen   cluster.Generation `pb:"3"`
}

// forkEpochs is by how much epochs grow when a cluster is forked or made anew (protocol, situation e').
const forkEpochs = 1 << 32

// Restore takes from s what a new cluster is made with.
func (s *State) Restore() *Restored {
	r := &Restored{From: s.ClusterID, ForkCount: s.ForkCount, Spec: s.Spec, LastDecision: s.LastDecision, LastEvent: s.LastEvent, LogTime: s.LogTime}
	for _, list := range [][]Service{s.Services, s.Gone} {
		for i := range list {
			r.Services = append(r.Services, RestoredService{Name: list[i].Name, Epoch: list[i].Lock.Epoch, Gen: list[i].Lock.Gen})
		}
	}
	return r
}

// Encode and DecodeRestored keep it on disk between the restore and the first start.
func (r *Restored) Encode() []byte { return pbwire.Marshal(r) }

// DecodeRestored reads what Encode wrote.
func DecodeRestored(b []byte) (*Restored, error) {
	r := new(Restored)
	if err := pbwire.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read what is to be taken over from a backup: %w", err)
	}
	return r, nil
}

// restored fills a new cluster from a backup. Its services are stopped: nobody here knows what the old members do, and whether they are off.
func (s *State) restored(r *Restored) Outcome {
	s.ForkCount, s.Spec, s.LastDecision, s.LastEvent, s.LogTime = r.ForkCount+1, r.Spec, r.LastDecision, r.LastEvent, r.LogTime
	if err := s.decodeSpec(); err != nil {
		return Outcome{Result: lock.Conflict, Text: err.Error()}
	}
	for _, old := range r.Services {
		v := Service{Name: old.Name, Lock: lock.Service{Epoch: old.Epoch + forkEpochs, Gen: old.Gen + 1}, Stopped: true, StoppedBy: fmt.Sprintf("restore of cluster %.8s", r.From)}
		s.LastService++
		v.No = cluster.ServiceNo(s.LastService)
		if s.compiled.Service(old.Name) == nil {
			s.Gone = append(s.Gone, v)
			continue
		}
		s.Services = append(s.Services, v)
	}
	return Outcome{}
}
