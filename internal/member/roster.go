package member

import (
	"context"
	"crypto"
	"crypto/rand"
	"fmt"
	"net/netip"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/cluster/raft"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/pki"
	"github.com/hanode/hanode/internal/rt"
)

type netipAddr = netip.AddrPort

type cryptoSigner = crypto.Signer

func newGossipKey() []byte {
	k := make([]byte, 32)
	rand.Read(k)
	return k
}

// membersChanged makes the links follow the members that the log names. Only on the loop.
func (m *Member) membersChanged() {
	st := m.core.State()
	var peers []Peer
	for i := range st.Members {
		p := &st.Members[i]
		if !p.Removed && p.ID != m.id {
			peers = append(peers, Peer{ID: p.ID.String(), Name: p.Name, Role: pki.RoleWord(p.Role), Addrs: p.Addrs})
		}
	}
	me := st.MemberByID(m.id)
	if me == nil {
		return // still catching up: what the directory remembers is better
	}
	if me.Removed && !m.leaving {
		m.leaving = true
		go m.leaveSoon()
	}
	m.mesh.SetBeat(st.Timing().Renew)
	m.setPeers(peers)
	go func() {
		if err := m.cfg.Dir.SavePeers(peers); err != nil {
			m.log.Warn("remember the members for the next start", "err", err)
		}
	}()
}

func (m *Member) setPeers(peers []Peer) {
	var out []link.Peer
	names := map[string]cluster.NodeID{m.serverID: m.id}
	for _, p := range peers {
		id, err := cluster.ParseNodeID(p.ID)
		role, err2 := pki.ParseRole(p.Role)
		addrs, err3 := parseAddrs(p.Addrs)
		if err != nil || err2 != nil || err3 != nil {
			m.log.Warn("a member's entry cannot be used", "member", p.Name, "err", err, "role", err2, "addrs", err3)
			continue
		}
		out = append(out, link.Peer{ID: id, Name: p.Name, Role: role, Addrs: addrs})
		names[cluster.ServerID(p.Name, id)] = id
	}
	m.peersMu.Lock()
	m.byName = names
	m.peersMu.Unlock()
	m.mesh.SetPeers(out)
}

// rosterEvery is how often the leader compares the members with the Raft configuration.
const rosterEvery = 250 * time.Millisecond

// keepRoster makes the Raft configuration follow the members, while this member leads: new ones are added without a vote, votes go
// from one to three together, removed ones lose theirs.
func (m *Member) keepRoster(ctx context.Context) error {
	t := rt.NewTicker(rosterEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			t.Next()
		}
		if !m.leading.Load() {
			continue
		}
		var members []state.Member
		settled, empty := false, false
		if m.On(func(c *core.Core) {
			for _, p := range c.State().Members {
				// A member that the log has not admitted yet extends no lease: it gets its vote when it does.
				p.NoVote = p.NoVote || c.State().Group.Admission(p.No).Inc == 0
				members = append(members, p)
			}
			settled = len(c.State().Group.Sets) <= 1
			empty = c.State().ClusterID == "" || len(c.State().Members) == 0
		}) != nil {
			return nil
		}
		if empty {
			if err := m.found(ctx); err != nil {
				m.log.Warn("found the cluster", "err", err)
			}
			continue
		}
		if err := m.roster(ctx, members, settled); err != nil && ctx.Err() == nil {
			m.log.Info("the votes do not follow the members yet", "err", err)
		}
	}
}

func (m *Member) roster(ctx context.Context, members []state.Member, settled bool) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	have := map[string]raft.Server{}
	voters := 0
	for _, s := range m.group.Servers() {
		have[s.ID] = s
		if s.Voter {
			voters++
		}
	}
	want := map[string]bool{}
	var candidates []string
	for i := range members {
		p := &members[i]
		if p.Removed {
			continue
		}
		id := p.ServerID()
		want[id] = true
		s, ok := have[id]
		if !ok {
			_, err := m.group.AddNonvoter(ctx, id, m.group.ConfigIndex())
			return err
		}
		if !s.Voter && !p.NoVote {
			candidates = append(candidates, id)
		}
	}
	if !settled {
		return nil
	}
	if !want[m.serverID] {
		// This member was removed while it leads: another voter takes its vote away.
		for id, s := range have {
			if want[id] && s.Voter {
				return m.group.TransferTo(ctx, id)
			}
		}
		return nil
	}
	for id := range have {
		if !want[id] && id != m.serverID {
			_, err := m.group.Remove(ctx, id, m.group.ConfigIndex())
			return err
		}
	}
	return m.vote(ctx, voters, candidates)
}

// maxVoters is the most votes that a group has.
const maxVoters = 7

// vote gives votes so that their number stays odd; a single one only where a vote was taken away before.
func (m *Member) vote(ctx context.Context, voters int, candidates []string) error {
	switch {
	case voters%2 == 1 && len(candidates) >= 2 && voters+2 <= maxVoters:
		_, err := m.group.PromoteTogether(ctx, candidates[0], candidates[1], m.proposer.Ask)
		return err
	case voters%2 == 0 && len(candidates) >= 1:
		if _, err := m.proposer.Ask(ctx, candidates[0]); err != nil {
			return err
		}
		_, err := m.group.Promote(ctx, candidates[0], m.group.ConfigIndex())
		return err
	}
	return nil
}

// removedStays is how long a removed member goes on, so that the others can take its vote away.
const removedStays = 5 * time.Second

// leaveSoon ends the daemon of a member that was removed: it has nothing to do here any more.
func (m *Member) leaveSoon() {
	select {
	case <-time.After(removedStays):
		m.fatal(fmt.Errorf("%s was removed from the cluster: this daemon ends. To join again, put %s aside and use a new token (hanode token create)", m.ident.Name, m.cfg.Dir.Path))
	case <-m.ctx.Done():
	}
}
