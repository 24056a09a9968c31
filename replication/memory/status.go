package memory

import (
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication/memory/image"
	"github.com/hanode/hanode/replication/memory/wire"
)

// Status is what a server does at this moment.
type Status struct {
	Role    string         `json:"role"`
	Epoch   cluster.Epoch  `json:"epoch"`
	Regions []RegionStatus `json:"regions"`
	Peers   []PeerStatus   `json:"peers"`
	Pending int            `json:"pending"` // checkpoints and records that wait
}

// RegionStatus is one region on this member.
type RegionStatus struct {
	Name  string        `json:"name"`
	Held  bool          `json:"held"` // there is an image
	Image image.Head    `json:"image"`
	Age   time.Duration `json:"age"`   // since it was complete on this member
	Owner int           `json:"owner"` // pid; 0: nobody has it open
	Log   uint64        `json:"log"`   // records that the image does not contain
	Mode  string        `json:"mode"`
}

// PeerStatus is another member, seen from the active.
type PeerStatus struct {
	Member  cluster.MemberNo `json:"member"`
	State   string           `json:"state"`   // all, behind, refused, away
	Waiting bool             `json:"waiting"` // checkpoints wait for it
	Stalled time.Duration    `json:"stalled"` // how long the oldest that was sent is unanswered
	Lag     uint64           `json:"lag"`     // bytes that it lacks
	Refused string           `json:"refused,omitempty"`
}

var roleText = map[uint16]string{wire.Standby: "standby", wire.Active: "active", wire.Fenced: "fenced"}

// Status tells what is held, and how the other members stand.
func (s *Server) Status() Status {
	var st Status
	for _, r := range s.list {
		rs := RegionStatus{Name: r.spec.Name, Mode: r.spec.Checkpoint}
		r.mu.Lock()
		if r.img != nil {
			rs.Image = r.img.Head()
			rs.Held = rs.Image.Number > 0
			rs.Log = r.img.Log().Last() - min(rs.Image.LogSeq, r.img.Log().Last())
		}
		s.mu.Lock()
		if rs.Held {
			rs.Age = time.Since(r.since)
		}
		if r.owner != nil {
			rs.Owner = r.owner.peer.PID
		}
		s.mu.Unlock()
		r.mu.Unlock()
		st.Regions = append(st.Regions, rs)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Role, st.Epoch, st.Pending = roleText[s.role], s.epoch(), len(s.flights)
	set := s.waitSet()
	for m, p := range s.peers {
		st.Peers = append(st.Peers, p.status(set.Has(m)))
		set = set.Without(m)
	}
	for ; set != 0; set &= set - 1 {
		away := PeerStatus{Member: first(set), State: "away", Waiting: true}
		if len(s.flights) > 0 {
			away.Stalled = time.Since(s.flights[0].begun)
		}
		st.Peers = append(st.Peers, away)
	}
	return st
}

func (p *peer) status(waiting bool) PeerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	ps := PeerStatus{Member: p.member, State: "all", Waiting: waiting, Lag: uint64(p.bytes)}
	if !p.following {
		ps.State = "behind"
	}
	for _, st := range p.state {
		if !st.synced {
			ps.State = "behind"
			ps.Lag += uint64(count(st.dirty)) * image.Block
		}
		if st.refused != "" {
			ps.Refused = st.refused
		}
	}
	if ps.Refused != "" {
		ps.State = "refused"
	}
	if len(p.sent) > 0 {
		ps.Stalled = time.Since(p.sent[0].at)
	}
	return ps
}
