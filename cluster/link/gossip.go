package link

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/hanode/hanode/cluster"
)

// A gossip datagram: class 'G', magic 'h' 'n', version, cluster tag (64 bits), the sender's node id, payload. It is not
// authenticated here: memberlist encrypts its payload itself, and gossip decides nothing.
const (
	gossipHeader = 4 + 8 + 16

	// MaxGossip is the longest payload of a gossip datagram. Set memberlist's UDPBufferSize to it.
	MaxGossip = MaxDatagram - gossipHeader
)

// GossipDatagram is one as it came. Payload is valid only until the handler returns.
type GossipDatagram struct {
	From    cluster.NodeID // claimed by the sender; a listed member's
	Source  netip.AddrPort
	At      cluster.Instant
	Payload []byte
}

// GossipPort is what a memberlist transport is made of: datagrams and streams to members by their ids, all clusters over
// one port.
type GossipPort struct{ m *Mesh }

// Gossip returns the mesh's.
func (m *Mesh) Gossip() GossipPort { return GossipPort{m} }

// Send sends payload, MaxGossip bytes at most, on the best path to a member; on all if none is known to work. It needs no
// key and does not wait.
func (g GossipPort) Send(to cluster.NodeID, payload []byte) error {
	p := g.m.member(to)
	if p == nil {
		return fmt.Errorf("gossip to %v: %w", to, ErrUnknownPeer)
	}
	if len(payload) > MaxGossip {
		return fmt.Errorf("gossip of %d bytes: %w: at most %d", len(payload), ErrTooLong, MaxGossip)
	}
	paths := p.preferred()
	if len(paths) > 0 {
		if up, _ := paths[0].state(g.m.e.now()); up {
			paths = paths[:1]
		}
	}
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	b := append(p.buf[:0], classGossip, 'h', 'n', wireVersion)
	b = binary.BigEndian.AppendUint64(b, g.m.tag)
	b = append(b, g.m.self.ID[:]...)
	b = append(b, payload...)
	taken := false
	for _, q := range paths {
		if err := q.sender.send(b); err != nil {
			q.errorsN.Add(1)
			g.m.e.count.sendErrors.Add(1)
			continue
		}
		taken = true
	}
	if !taken {
		return fmt.Errorf("gossip to %s: %w", p.name, ErrNoPath)
	}
	return nil
}

// Receive sets the handler; it is called as that of Mesh.Receive is. nil drops what comes.
func (g GossipPort) Receive(f func(GossipDatagram)) {
	if f == nil {
		g.m.gossip.Store(nil)
		return
	}
	g.m.gossip.Store(&f)
}

// Dial opens a stream to a member.
func (g GossipPort) Dial(ctx context.Context, to cluster.NodeID) (net.Conn, error) {
	return g.m.Dial(ctx, to, Gossip)
}

// Listener takes the streams of listed members.
func (g GossipPort) Listener() net.Listener { return g.m.Listener(Gossip, nil) }

func (e *Endpoint) gossipDatagram(b []byte, from netip.AddrPort, at cluster.Instant) {
	if len(b) < gossipHeader || len(b) > MaxDatagram || b[1] != 'h' || b[2] != 'n' || b[3] != wireVersion {
		e.count.malformed.Add(1)
		return
	}
	m := (*e.byTag.Load())[binary.BigEndian.Uint64(b[4:])]
	if m == nil {
		e.count.noKey.Add(1)
		return
	}
	id := cluster.NodeID(b[12:gossipHeader])
	f := m.gossip.Load()
	if f == nil || m.member(id) == nil {
		return
	}
	(*f)(GossipDatagram{From: id, Source: from, At: at, Payload: slices.Clip(b[gossipHeader:])})
}
