// Package linktest is cluster/link without a network: meshes of one process that reach each other through memory, with
// loss, delay and cuts that a test orders by pair and direction. It also holds the suite that both kinds of mesh pass
// (Contract), so that what is tested on this one holds on the real one.
//
// Every random choice comes from the seed of NewNetwork. Time is the time package's, so that a whole cluster can run in a
// testing/synctest bubble: nothing here blocks on anything but channels, conditions and timers. What it does not have:
// certificates, keys, second runs, and more than one link between two members.
//
// Tests must call Close on the network, which ends all connections.
package linktest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
)

// Mesh is what users of cluster/link need of it; *link.Mesh and *Member are two of them.
type Mesh interface {
	Self() link.Peer
	SetPeers([]link.Peer)
	Peers() []link.Peer
	Send(to cluster.NodeID, kind byte, payload []byte) error
	Receive(func(link.Datagram))
	Dial(ctx context.Context, to cluster.NodeID, ch link.Channel) (net.Conn, error)
	Listener(ch link.Channel, allow func(link.Peer) bool) net.Listener
	Links() []link.LinkState
	Close()
}

// direction is one way between two members.
type direction struct{ from, to cluster.NodeID }

type quality struct {
	cut         bool
	loss        float64
	least, most time.Duration
}

// Network connects the members that a test makes with Member.
type Network struct {
	began time.Time

	mu      sync.Mutex
	rng     *rand.Rand
	members map[cluster.NodeID]*Member
	ways    map[direction]quality
	conns   map[*conn]struct{}
	changed chan struct{} // closed and replaced when anything changes
}

// NewNetwork makes a network without faults.
func NewNetwork(seed uint64) *Network {
	return &Network{
		began: time.Now(), rng: rand.New(rand.NewPCG(seed, 0)), members: map[cluster.NodeID]*Member{},
		ways: map[direction]quality{}, conns: map[*conn]struct{}{}, changed: make(chan struct{}),
	}
}

// Now is the clock of all members.
func (n *Network) Now() cluster.Instant { return cluster.Instant(time.Since(n.began)) + 1 }

// Close closes all members.
func (n *Network) Close() {
	n.mu.Lock()
	var all []*Member
	for _, m := range n.members {
		all = append(all, m)
	}
	n.mu.Unlock()
	for _, m := range all {
		m.Close()
	}
}

// Cut stops, or lets pass again, what goes from one member to the other: datagrams are lost, connections stall.
func (n *Network) Cut(from, to cluster.NodeID, cut bool) {
	n.set(from, to, func(q *quality) { q.cut = cut })
}

// Partition cuts both ways between each of one side and each of the other, or heals them.
func (n *Network) Partition(side, other []cluster.NodeID, cut bool) {
	for _, a := range side {
		for _, b := range other {
			n.Cut(a, b, cut)
			n.Cut(b, a, cut)
		}
	}
}

// Lose drops each datagram from one member to the other with probability p.
func (n *Network) Lose(from, to cluster.NodeID, p float64) {
	n.set(from, to, func(q *quality) { q.loss = p })
}

// Delay holds datagrams from one member to the other for a time between the two, drawn for each; so they overtake each other.
func (n *Network) Delay(from, to cluster.NodeID, least, most time.Duration) {
	n.set(from, to, func(q *quality) { q.least, q.most = least, most })
}

func (n *Network) set(from, to cluster.NodeID, change func(*quality)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	q := n.ways[direction{from, to}]
	change(&q)
	n.ways[direction{from, to}] = q
	n.notify()
}

// notify wakes whoever waits for the network to change. Callers hold mu.
func (n *Network) notify() {
	close(n.changed)
	n.changed = make(chan struct{})
	for c := range n.conns {
		c.in.wake()
	}
}

// passes says whether the way is open. Callers hold mu.
func (n *Network) passes(from, to cluster.NodeID) bool { return !n.ways[direction{from, to}].cut }

// draw decides the fate of one datagram. Callers hold mu.
func (n *Network) draw(from, to cluster.NodeID) (after time.Duration, ok bool) {
	q := n.ways[direction{from, to}]
	if q.cut || q.loss > 0 && n.rng.Float64() < q.loss {
		return 0, false
	}
	after = q.least
	if q.most > q.least {
		after += time.Duration(n.rng.Int64N(int64(q.most - q.least)))
	}
	return after, true
}

// Member is one mesh of the network.
type Member struct {
	n    *Network
	self link.Peer

	// Guarded by n.mu.
	peers     []link.Peer
	listeners map[link.Channel]*listener
	handler   func(link.Datagram)
	seq       uint64
	heard     map[cluster.NodeID]cluster.Instant
	inbox     []link.Datagram
	draining  bool
	closed    bool
}

// Member adds a member; one of the same id that was closed is replaced, as a restarted daemon is.
func (n *Network) Member(self link.Peer) *Member {
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.members[self.ID]; old != nil && !old.closed {
		panic(fmt.Sprintf("linktest: member %s runs already", self.Name))
	}
	m := &Member{n: n, self: self, listeners: map[link.Channel]*listener{}, heard: map[cluster.NodeID]cluster.Instant{}}
	n.members[self.ID] = m
	n.notify()
	return m
}

// Self is as link.Mesh's.
func (m *Member) Self() link.Peer { return m.self }

// SetPeers is as link.Mesh's.
func (m *Member) SetPeers(peers []link.Peer) {
	m.n.mu.Lock()
	m.peers = slices.DeleteFunc(slices.Clone(peers), func(p link.Peer) bool { return p.ID == m.self.ID })
	drop := m.n.connsOf(m, func(c *conn) bool { return !m.knows(c.peer.ID) })
	m.n.notify()
	m.n.mu.Unlock()
	for _, c := range drop {
		c.reset()
	}
}

// Peers is as link.Mesh's.
func (m *Member) Peers() []link.Peer {
	m.n.mu.Lock()
	defer m.n.mu.Unlock()
	out := slices.Clone(m.peers)
	slices.SortFunc(out, func(a, b link.Peer) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return out
}

// knows says whether id is listed. Callers hold n.mu.
func (m *Member) knows(id cluster.NodeID) bool {
	return slices.ContainsFunc(m.peers, func(p link.Peer) bool { return p.ID == id })
}

// meets says whether both list each other and run. Callers hold n.mu.
func (m *Member) meets(id cluster.NodeID) *Member {
	o := m.n.members[id]
	if o == nil || o.closed || m.closed || !m.knows(id) || !o.knows(m.self.ID) {
		return nil
	}
	return o
}

// Receive is as link.Mesh's; calls for one member do not overlap.
func (m *Member) Receive(f func(link.Datagram)) {
	m.n.mu.Lock()
	defer m.n.mu.Unlock()
	m.handler = f
}

// Send is as link.Mesh's. ErrNoKey is its answer while the other side does not run or does not list this one.
func (m *Member) Send(to cluster.NodeID, kind byte, payload []byte) error {
	n := m.n
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case !m.knows(to):
		return link.ErrUnknownPeer
	case len(payload) > link.MaxPayload:
		return link.ErrTooLong
	case kind == 0 || kind >= 240:
		return link.ErrReserved
	}
	o := m.meets(to)
	if o == nil {
		return link.ErrNoKey
	}
	m.seq++
	after, ok := n.draw(m.self.ID, to)
	if !ok {
		return nil
	}
	d := link.Datagram{From: m.self.ID, Kind: kind, Seq: m.seq, Sent: n.Now(), Payload: slices.Clone(payload)}
	if after == 0 {
		o.put(d)
		return nil
	}
	time.AfterFunc(after, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.members[to] == o && n.passes(m.self.ID, to) {
			o.put(d)
		}
	})
	return nil
}

// put queues an arrived datagram; whoever finds the queue idle starts the goroutine that empties it. Callers hold n.mu.
func (m *Member) put(d link.Datagram) {
	if m.closed || !m.knows(d.From) {
		return
	}
	d.At = m.n.Now()
	m.heard[d.From] = d.At
	m.inbox = append(m.inbox, d)
	if !m.draining {
		m.draining = true
		go m.drain()
	}
}

func (m *Member) drain() {
	m.n.mu.Lock()
	defer m.n.mu.Unlock()
	for len(m.inbox) > 0 && !m.closed {
		d, f := m.inbox[0], m.handler
		m.inbox = m.inbox[1:]
		if f == nil {
			continue
		}
		m.n.mu.Unlock()
		f(d)
		m.n.mu.Lock()
	}
	m.draining = false
}

// Links is as link.Mesh's; there is one link to each peer, up if both ways are open.
func (m *Member) Links() []link.LinkState {
	m.n.mu.Lock()
	defer m.n.mu.Unlock()
	var out []link.LinkState
	for _, p := range m.peers {
		s := link.LinkState{Peer: p.ID, Name: p.Name, Keyed: m.meets(p.ID) != nil, Heard: -1}
		s.Up = s.Keyed && m.n.passes(m.self.ID, p.ID) && m.n.passes(p.ID, m.self.ID)
		if at := m.heard[p.ID]; at != 0 {
			s.Heard = m.n.Now().Sub(at)
		}
		if len(m.self.Addrs) > 0 && len(p.Addrs) > 0 {
			s.Local, s.Remote = m.self.Addrs[0], p.Addrs[0]
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b link.LinkState) int { return slices.Compare(a.Peer[:], b.Peer[:]) })
	return out
}

// Close ends the member as the end of its process would.
func (m *Member) Close() {
	m.n.mu.Lock()
	m.closed = true
	m.inbox = nil
	var ls []*listener
	for _, l := range m.listeners {
		ls = append(ls, l)
	}
	drop := m.n.connsOf(m, func(*conn) bool { return true })
	m.n.notify()
	m.n.mu.Unlock()
	for _, l := range ls {
		l.Close()
	}
	for _, c := range drop {
		c.reset()
	}
}

// connsOf lists m's ends of connections. Callers hold mu.
func (n *Network) connsOf(m *Member, want func(*conn) bool) []*conn {
	var out []*conn
	for c := range n.conns {
		if c.owner == m && want(c) {
			out = append(out, c)
		}
	}
	return out
}

// Dial is as link.Mesh's. Through a cut it waits, at most three seconds.
func (m *Member) Dial(ctx context.Context, to cluster.NodeID, ch link.Channel) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for {
		m.n.mu.Lock()
		l, err := m.tryDial(to, ch)
		changed := m.n.changed
		m.n.mu.Unlock()
		var c *conn
		if l != nil {
			c, err = l.take(m)
		}
		if c != nil {
			return c, nil
		}
		if err != nil {
			return nil, fmt.Errorf("dial %v for %s: %w", to, ch, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("dial %v for %s: %w", to, ch, ctx.Err())
		case <-changed:
		}
	}
}

// tryDial finds the listener; it returns neither if the way is cut. Callers hold n.mu.
func (m *Member) tryDial(to cluster.NodeID, ch link.Channel) (*listener, error) {
	n := m.n
	o := n.members[to]
	switch {
	case m.closed:
		return nil, link.ErrClosed
	case !m.knows(to):
		return nil, link.ErrUnknownPeer
	case !n.passes(m.self.ID, to) || !n.passes(to, m.self.ID):
		return nil, nil
	case o == nil || o.closed:
		return nil, fmt.Errorf("connection refused")
	}
	if l := o.listeners[ch]; l != nil {
		return l, nil
	}
	return nil, &link.RefusedError{Code: "channel", Text: fmt.Sprintf("%s does not serve %s now", o.self.Name, ch)}
}

// take asks the listener, which may ask its mesh, for a connection.
func (l *listener) take(from *Member) (*conn, error) {
	n, o := from.n, l.m
	if l.allow != nil && !l.allow(from.self) {
		return nil, &link.RefusedError{Code: "not-allowed", Text: fmt.Sprintf("%s may not use %s on %s", from.self.Name, l.channel, o.self.Name)}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if l.allow == nil && !o.knows(from.self.ID) {
		return nil, &link.RefusedError{Code: "not-member", Text: fmt.Sprintf("%s does not know %s as a member", o.self.Name, from.self.Name)}
	}
	if o.closed || from.closed {
		return nil, link.ErrClosed
	}
	mine, theirs := n.pipe(from, o)
	select {
	case l.queue <- theirs:
		return mine, nil
	default:
		n.forget(mine, theirs)
		return nil, &link.RefusedError{Code: "busy", Text: fmt.Sprintf("nobody takes connections for %s on %s", l.channel, o.self.Name)}
	}
}
