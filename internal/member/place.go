package member

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/placement"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/rt"
)

// placeEvery is how often the leader asks itself whether another member should lead.
const placeEvery = time.Second

// place keeps the lead where it should be (cluster/placement). The one urgent case, an active that does not reach the leader, is the core's: it
// sees it within a beat, and here View.CutOff stays empty.
type place struct {
	m     *Member
	rtt   map[cluster.NodeID]*slowest
	print string // of what Changed is counted from
	view  placement.View
	auto  auto

	mu   sync.Mutex
	heir string
	why  string
}

// slowest keeps the largest of the last minute's round trips, one a second: near enough to their p99.
type slowest struct {
	last [60]time.Duration
	n    int
}

func (s *slowest) add(d time.Duration) {
	s.last[s.n%len(s.last)] = d
	s.n++
}

func (s *slowest) max() time.Duration {
	var out time.Duration
	for _, d := range s.last[:min(s.n, len(s.last))] {
		out = max(out, d)
	}
	return out
}

// run decides once a second while this member leads.
func (p *place) run(ctx context.Context) error {
	t := rt.NewTicker(placeEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			t.Next()
		}
		p.trips()
		if !p.look() {
			return nil
		}
		if !p.m.leading.Load() {
			p.auto = auto{}
			p.say("", "")
			continue
		}
		to, why := placement.Decide(p.m.now(), p.view)
		p.say(p.preferred(), why)
		p.pinProfile(ctx)
		if to == "" || !p.caughtUp(ctx, to) {
			continue
		}
		p.view.Moved = p.m.now()
		p.m.log.Info("handing over the lead", "to", to, "why", why)
		p.m.transfer(to)
	}
}

// trips notes the round trip to each member, on the best path.
func (p *place) trips() {
	best := map[cluster.NodeID]time.Duration{}
	for _, l := range p.m.mesh.Links() {
		if have, ok := best[l.Peer]; l.Up && l.RTT > 0 && (!ok || l.RTT < have) {
			best[l.Peer] = l.RTT
		}
	}
	for id := range p.rtt {
		if _, ok := best[id]; !ok {
			delete(p.rtt, id)
		}
	}
	for id, d := range best {
		if p.rtt[id] == nil {
			p.rtt[id] = new(slowest)
		}
		p.rtt[id].add(d)
	}
}

// look makes the view of this moment; false: the daemon stops.
func (p *place) look() bool {
	fsync := map[cluster.MemberNo]time.Duration{}
	for _, h := range p.m.Health() {
		if h.Known {
			fsync[h.Member] = h.FsyncP99
		}
	}
	print := ""
	err := p.m.On(func(c *core.Core) {
		st := c.State()
		standby := map[cluster.MemberNo]bool{}
		active := map[cluster.MemberNo]bool{}
		restless := len(st.Group.Sets) > 1
		view := c.View(p.m.now(), p.m.wall())
		for i := range st.Services {
			s := &st.Services[i]
			look, _ := c.Look(view, s.No)
			restless = restless || look.Moving
			standby[look.Outlook.Standby] = true
			if !s.Stopped {
				active[s.Lock.Holder.Node] = true
			}
			print += fmt.Sprint(s.Lock.Epoch, s.Lock.Gen, s.Stopped, " ")
		}
		p.view = placement.View{Leader: p.m.serverID, Restless: restless, Changed: p.view.Changed, Moved: p.view.Moved}
		for _, n := range st.Group.Voters().List() {
			m := st.Member(n)
			if m == nil {
				continue
			}
			alive := n == c.Self() || c.Alive(n)
			print += fmt.Sprint(n, alive, " ")
			p.view.Members = append(p.view.Members, placement.Member{ServerID: m.ServerID(), Role: m.Role, Active: active[n], Standby: standby[n],
				Reachable: alive, CaughtUp: alive, CommitP99: p.commitTime(st, c.Self(), m, fsync)})
		}
		print += fmt.Sprint(c.Leads(), st.Group.C())
	})
	if print != p.print {
		p.print, p.view.Changed = print, p.m.now()
	}
	return err == nil
}

// commitTime is the p99 of a member's fsync and of the round trip that a commit under its lead takes.
func (p *place) commitTime(st *state.State, self cluster.MemberNo, m *state.Member, fsync map[cluster.MemberNo]time.Duration) time.Duration {
	if fsync[m.No] == 0 {
		return 0
	}
	if m.No != self {
		if p.rtt[m.ID] == nil {
			return 0
		}
		return fsync[m.No] + p.rtt[m.ID].max()
	}
	nearest := time.Duration(0)
	for _, n := range st.Group.Voters().List() {
		if o := st.Member(n); o != nil && p.rtt[o.ID] != nil && n != self {
			if d := p.rtt[o.ID].max(); nearest == 0 || d < nearest {
				nearest = d
			}
		}
	}
	return fsync[m.No] + nearest
}

// preferred is who should lead if the disk of this leader hung now: a standby, else a witness.
func (p *place) preferred() string {
	best, rank := "", 0
	for _, m := range p.view.Members {
		r := 1
		switch {
		case m.ServerID == p.m.serverID || !m.Reachable:
			continue
		case m.Standby && !m.Active:
			r = 4
		case !m.Active && m.Role == cluster.RoleNode:
			r = 3
		case m.Role == cluster.RoleWitness:
			r = 2
		}
		if r > rank {
			best, rank = m.ServerID, r
		}
	}
	return best
}

// caughtUp asks a member how far it is, before it gets the lead.
func (p *place) caughtUp(ctx context.Context, serverID string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	pos, err := p.m.proposer.Ask(ctx, serverID)
	const lag = 16 // entries that a follower may lack; they come within a round trip
	return err == nil && !pos.Stalled && pos.Applied+lag >= p.m.group.Position().Applied
}

func (p *place) say(heir, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heir, p.why = heir, why
}

// Heir is the server id of who should lead next; "": this member does not lead, or nobody can.
func (p *place) Heir() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.heir
}

// LeadWhy is why this member leads still, in words; empty while it does not.
func (m *Member) LeadWhy() string {
	m.place.mu.Lock()
	defer m.place.mu.Unlock()
	return m.place.why
}

// spread lets the followers learn at once what was committed: with the entry that follows it. Otherwise they would learn it up to twice
// commitTimeout later.
func (m *Member) spread(ctx context.Context) error {
	nop := (&state.Command{Nop: &state.Nop{}}).Encode()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.committed:
		}
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		if _, _, err := m.group.Apply(ctx, nop); err != nil {
			m.log.Debug("tell the followers what was committed", "err", err)
		}
		cancel()
	}
}

// raftTimeout is that of Raft's heartbeats and elections: twice the 300 ms that stood every load, for every timer of it costs a quiet member several wake-ups. It is the
// last resort only: the detector of the beats is quicker than either.
const raftTimeout = 600 * time.Millisecond

// commitTimeout is how long a quiet leader waits before it tells its followers again how far the log is committed. It costs a round trip to
// each of them; what they must act on is told at once (spread), and grants on the lease channel.
const commitTimeout = 300 * time.Millisecond
