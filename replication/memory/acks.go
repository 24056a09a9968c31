package memory

import (
	"time"

	"github.com/hanode/hanode/replication/memory/wire"
)

// onAck: the member holds an image or a record.
func (p *peer) onAck(h *wire.Head) {
	s := p.s
	p.mu.Lock()
	for i := range p.sent {
		sn := &p.sent[i]
		if h.Kind == wire.PeerAck && (sn.seq != 0 || sn.tx != h.Tx) || h.Kind == wire.PeerLogged && (sn.seq != h.Tx || sn.regs[0].no != h.Region) {
			continue
		}
		for k, r := range sn.regs {
			st := p.state[r]
			if st == nil {
				continue
			}
			if sn.seq != 0 {
				st.logged = max(st.logged, sn.seq)
			} else {
				st.acked = max(st.acked, sn.heads[k].Number)
				st.logged = max(st.logged, sn.heads[k].LogSeq)
			}
		}
		p.syncs = 0
		p.bytes -= sn.bytes
		if i == 0 {
			p.sent = p.sent[1:]
		} else {
			p.sent = append(p.sent[:i], p.sent[i+1:]...)
		}
		break
	}
	if len(p.sent) == 0 {
		p.sent = nil
	}
	p.mu.Unlock()
	s.mu.Lock()
	var done []*flight
	if s.role == wire.Active && s.peers[p.member] == p {
		done = s.settle()
		if len(done) > 0 {
			s.changed.Broadcast()
		}
	}
	fresh := !p.told
	s.mu.Unlock()
	answer(done)
	if fresh {
		p.consider()
	}
}

// consider asks for the member to be in sync when it holds everything. First checkpoints wait for it; when it has also acknowledged all that was
// sent before that, it is proposed (D6).
func (p *peer) consider() {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.role != wire.Active || s.peers[p.member] != p || p.told {
		return
	}
	oldest, synced := p.oldest()
	if !p.waiting {
		if !synced || !oldest.IsZero() && time.Since(oldest) > prompt {
			return
		}
		p.waiting, p.since = true, time.Now()
		if !s.facts.inSync.Has(p.member) {
			s.proposed = s.proposed.With(p.member)
		}
	}
	if !oldest.IsZero() && !oldest.After(p.since) {
		return
	}
	p.told = true
	if f := s.cfg.Events.CaughtUp; f != nil && !s.facts.inSync.Has(p.member) {
		m, e, g := p.member, s.led, s.facts.gen
		s.event(func() { f(m, e, g) })
	}
}

// withdraw ends the waiting for a member that was not proposed yet. One that was is waited for until the log says something newer.
func (p *peer) withdraw() {
	s := p.s
	s.mu.Lock()
	var done []*flight
	if now := s.peers[p.member]; p.waiting && !p.told && (now == nil || now == p) {
		p.waiting = false
		s.proposed = s.proposed.Without(p.member)
		if s.role == wire.Active {
			done = s.settle()
		}
	}
	s.mu.Unlock()
	answer(done)
}

// prompt is how quickly a member must answer before checkpoints wait for it.
const prompt = 100 * time.Millisecond

// oldest is since when the member owes an answer, and synced whether every region was sent.
func (p *peer) oldest() (at time.Time, synced bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, st := range p.state {
		if !st.synced {
			return at, false
		}
	}
	if len(p.sent) > 0 {
		at = p.sent[0].at
	}
	return at, p.following
}

// onRefuse: the member refused a region, or this server's epoch.
func (p *peer) onRefuse(r *wire.Refusal) {
	s := p.s
	if r.Region != "" {
		s.log.Warn("a member cannot hold a region", "peer", p.member, "region", r.Region, "why", r.Text)
		reg := s.regions[r.Region]
		if reg == nil {
			return
		}
		p.mu.Lock()
		st := p.state[reg]
		if st != nil {
			st.synced, st.full, st.dirty = false, true, nil
			p.syncs++
			if !r.Again || p.syncs > 3 {
				st.refused = r.Text
			}
		}
		p.sent, p.bytes = nil, 0
		p.mu.Unlock()
		p.withdraw()
		p.poke()
		return
	}
	s.mu.Lock()
	higher := r.Epoch > s.led && !(s.facts.holder == s.cfg.Self && s.facts.epoch >= r.Epoch)
	if f := s.cfg.Events.HigherEpoch; f != nil && higher && s.role == wire.Active {
		s.event(func() { f(r.Epoch) })
	}
	s.mu.Unlock()
	s.log.Warn("refused by a member", "peer", p.member, "epoch", r.Epoch, "why", r.Text)
}
