package gossip

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
)

// memNet joins Networks in memory. A member that is cut off is silent: its packets are lost and its dials hang.
type memNet struct {
	mu    sync.Mutex
	nodes map[cluster.NodeID]*memNode
	off   map[cluster.NodeID]bool
	drop  func(from, to cluster.NodeID) bool
	tap   func(b []byte)
}

type memNode struct {
	net     *memNet
	id      cluster.NodeID
	packets chan Packet
	streams chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newMemNet() *memNet {
	return &memNet{nodes: map[cluster.NodeID]*memNode{}, off: map[cluster.NodeID]bool{}}
}

func (n *memNet) node(id cluster.NodeID) *memNode {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := &memNode{net: n, id: id, packets: make(chan Packet, 256), streams: make(chan net.Conn, 16), closed: make(chan struct{})}
	n.nodes[id] = m
	return m
}

func (n *memNet) cut(id cluster.NodeID, off bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.off[id] = off
}

// reach returns the other end, or nil if it cannot be reached.
func (n *memNet) reach(from, to cluster.NodeID) *memNode {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.off[from] || n.off[to] || n.drop != nil && n.drop(from, to) {
		return nil
	}
	return n.nodes[to]
}

func (m *memNode) SendTo(to cluster.NodeID, b []byte) error {
	if m.net.tap != nil {
		m.net.tap(b)
	}
	other := m.net.reach(m.id, to)
	if other == nil {
		return nil // lost
	}
	select {
	case other.packets <- Packet{From: m.id, Data: append([]byte(nil), b...), At: time.Now()}:
	default:
	}
	return nil
}

func (m *memNode) Packets() <-chan Packet { return m.packets }

func (m *memNode) Dial(ctx context.Context, to cluster.NodeID) (net.Conn, error) {
	other := m.net.reach(m.id, to)
	if other == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	near, far := net.Pipe()
	select {
	case other.streams <- far:
		return near, nil
	case <-other.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *memNode) Accept() (net.Conn, error) {
	select {
	case c := <-m.streams:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *memNode) Close() error {
	m.once.Do(func() { close(m.closed) })
	return nil
}
