package link

import (
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanode/hanode/cluster"
)

// Mesh is this process's membership of one cluster. All methods may be called concurrently.
type Mesh struct {
	e    *Endpoint
	id   ClusterIdentity
	self Peer
	tag  uint64
	log  *slog.Logger

	creds   atomic.Pointer[credentials]
	members atomic.Pointer[map[cluster.NodeID]*member] // replaced under mu, never changed
	handler atomic.Pointer[func(Datagram)]
	gossip  atomic.Pointer[func(GossipDatagram)]
	beat    atomic.Int64 // time.Duration

	handOver atomic.Pointer[func(Raw) error]

	mu        sync.Mutex
	listeners map[Channel]*listener
	accepted  map[Channel]int // open connections that others made
	conns     map[*Conn]struct{}
	join      *joinServer
	closed    bool
}

// AddCluster makes this process a member of a cluster. The mesh works as soon as the endpoint runs.
func (e *Endpoint) AddCluster(id ClusterIdentity) (*Mesh, error) {
	if err := id.check(); err != nil {
		return nil, fmt.Errorf("cluster identity: %w", err)
	}
	if id.Run == (RunID{}) {
		rand.Read(id.Run[:])
	}
	m := &Mesh{
		e: e, id: id, self: id.Self, tag: clusterTag(id.ClusterID), log: e.log.With("cluster", id.ClusterID),
		listeners: map[Channel]*listener{}, accepted: map[Channel]int{}, conns: map[*Conn]struct{}{},
	}
	if len(m.self.Addrs) == 0 {
		m.self.Addrs = e.Addrs()
	}
	m.self.Addrs = slices.Clone(m.self.Addrs)
	m.members.Store(&map[cluster.NodeID]*member{})
	m.SetBeat(50 * time.Millisecond)
	m.Renew(id.Certificate)

	e.meshMu.Lock()
	defer e.meshMu.Unlock()
	if e.meshes[id.ClusterID] != nil {
		return nil, fmt.Errorf("cluster %s is already served on this port by this process: one member per cluster and process", id.ClusterID)
	}
	tags := maps.Clone(*e.byTag.Load())
	if tags[m.tag] != nil {
		return nil, fmt.Errorf("cluster %s has the same short id as %s: give it another id", id.ClusterID, tags[m.tag].id.ClusterID)
	}
	tags[m.tag] = m
	e.byTag.Store(&tags)
	e.meshes[id.ClusterID] = m
	return m, nil
}

// Self is this member as it presents itself.
func (m *Mesh) Self() Peer { return m.self }

// Run is this run's id.
func (m *Mesh) RunID() RunID { return m.id.Run }

// Renew replaces the member's certificate; open connections and keys stay.
func (m *Mesh) Renew(cert tls.Certificate) { m.creds.Store(m.newCredentials(cert)) }

// SetBeat tells how often members send to each other; it is the profile's Renew (protocol, section 3). A path is down after
// four beats without a sign that both directions work, 100 ms at least.
func (m *Mesh) SetBeat(d time.Duration) { m.beat.Store(int64(d)) }

func (m *Mesh) downAfter() time.Duration {
	return max(4*time.Duration(m.beat.Load()), 100*time.Millisecond)
}

// runSilence is how long a run must be silent before another may take its place, if its end was not seen. It is below
// Limits.HandshakeTimeout, so that the new run's first connection waits for it.
func (m *Mesh) runSilence() time.Duration {
	return min(max(10*time.Duration(m.beat.Load()), time.Second), m.e.limits.HandshakeTimeout*4/5)
}

// SetPeers makes the list of the other members what it is; an entry for this member itself is ignored. Members that are no
// longer in it lose their keys and connections at once. Keys for new ones are made at once.
func (m *Mesh) SetPeers(peers []Peer) {
	m.mu.Lock()
	old := *m.members.Load()
	next := map[cluster.NodeID]*member{}
	for _, p := range peers {
		if p.ID == m.self.ID || p.ID.IsZero() {
			continue
		}
		p.Addrs = slices.Clone(p.Addrs[:min(len(p.Addrs), MaxLinks)])
		if have := old[p.ID]; have != nil && have.name == p.Name && have.role == p.Role {
			have.setAddrs(p.Addrs)
			next[p.ID] = have
			continue
		}
		next[p.ID] = newMember(m, p)
	}
	if m.closed {
		next = map[cluster.NodeID]*member{}
	}
	m.members.Store(&next)
	m.mu.Unlock()
	for id, p := range old {
		if next[id] != p {
			p.remove()
		}
	}
	m.e.wakeUp()
}

func (m *Mesh) member(id cluster.NodeID) *member { return (*m.members.Load())[id] }

// Peers lists the other members.
func (m *Mesh) Peers() []Peer {
	var out []Peer
	for _, p := range *m.members.Load() {
		out = append(out, p.peer())
	}
	slices.SortFunc(out, func(a, b Peer) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return out
}

// Receive sets the handler of datagrams. It is called on the goroutines that read the sockets, one per local address, so
// possibly concurrently; while it runs, datagrams of all clusters on that address wait. nil drops them.
func (m *Mesh) Receive(f func(Datagram)) {
	if f == nil {
		m.handler.Store(nil)
		return
	}
	m.handler.Store(&f)
}

// Links is the state of every path to every member, in the order of their ids and links.
func (m *Mesh) Links() []LinkState {
	now := m.e.now()
	var out []LinkState
	for _, p := range *m.members.Load() {
		out = p.appendLinks(out, now)
	}
	slices.SortStableFunc(out, func(a, b LinkState) int { return slices.Compare(a.Peer[:], b.Peer[:]) })
	return out
}

// Close leaves the cluster: connections, listeners and keys of the mesh end.
func (m *Mesh) Close() {
	m.e.meshMu.Lock()
	if m.e.meshes[m.id.ClusterID] == m {
		delete(m.e.meshes, m.id.ClusterID)
		tags := maps.Clone(*m.e.byTag.Load())
		delete(tags, m.tag)
		m.e.byTag.Store(&tags)
	}
	m.e.meshMu.Unlock()

	m.mu.Lock()
	m.closed = true
	ls := slices.Collect(maps.Values(m.listeners))
	cs := slices.Collect(maps.Keys(m.conns))
	m.mu.Unlock()
	m.SetPeers(nil)
	for _, l := range ls {
		l.Close()
	}
	for _, c := range cs {
		c.abort()
	}
}

// tick judges the paths unless this process was late itself, fills gaps and starts keying where it is due.
func (m *Mesh) tick(now cluster.Instant, judge bool) {
	for _, p := range *m.members.Load() {
		if judge {
			p.judge(now)
		}
		p.fillGap(now)
		p.keyIfDue(now)
	}
}

// localFor is the socket that path i of this member leaves by.
func (m *Mesh) localFor(i uint8) *socket {
	if len(m.e.socks) == len(m.self.Addrs) {
		return m.e.socks[i]
	}
	return m.e.socks[0]
}

// pairing is the paths between two lists of addresses: link by link when both have the same number of links, else each
// with each.
func pairing(own, peers int) [][2]uint8 {
	var out [][2]uint8
	for i := range own {
		for j := range peers {
			if own != peers || i == j {
				out = append(out, [2]uint8{uint8(i), uint8(j)})
			}
		}
	}
	return out
}

// dialFrom is the local address for connections of path i: nil where the kernel chooses.
func (m *Mesh) dialFrom(i uint8) net.Addr {
	return dialFrom(m.localFor(i).addr.Addr())
}

func dialFrom(ip netip.Addr) net.Addr {
	if ip.IsUnspecified() {
		return nil
	}
	return &net.TCPAddr{IP: ip.AsSlice(), Zone: ip.Zone()}
}
