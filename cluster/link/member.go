package link

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanode/hanode/cluster"
)

// member is what this process knows of another member of one cluster.
type member struct {
	m    *Mesh
	id   cluster.NodeID
	name string
	role cluster.Role

	paths atomic.Pointer[[]*path] // replaced under mu
	tx    atomic.Pointer[txKey]
	heard atomic.Int64 // Instant of the last authentic datagram of the admitted run; 0: none
	sent  atomic.Int64 // Instant of the last datagram to it

	sendMu sync.Mutex // guards seq, buf, the txKey's scratch and the paths' senders
	seq    uint64
	buf    [MaxDatagram]byte

	mu      sync.Mutex
	addrs   []netip.AddrPort
	run     RunID // admitted; zero: none yet
	inc     cluster.Incarnation
	ended   cluster.Instant // when the other side closed its last lease session; 0: it did not
	rx      []*rxKey        // newest last
	conns   map[*Conn]struct{}
	session map[*Conn]struct{} // open lease sessions
	raws    map[*Raw]struct{}  // dialled for volume servers
	keying  keyingState
	removed bool
}

func newMember(m *Mesh, p Peer) *member {
	n := &member{m: m, id: p.ID, name: p.Name, role: p.Role, conns: map[*Conn]struct{}{}, session: map[*Conn]struct{}{}, raws: map[*Raw]struct{}{}}
	n.paths.Store(&[]*path{})
	n.setAddrs(p.Addrs)
	return n
}

func (p *member) peer() Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Peer{ID: p.id, Name: p.name, Role: p.role, Addrs: slices.Clone(p.addrs)}
}

// setAddrs makes the paths fit addrs; a path that stays keeps its state.
func (p *member) setAddrs(addrs []netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Equal(addrs, p.addrs) {
		return
	}
	p.addrs = addrs
	var next []*path
	for _, pair := range pairing(len(p.m.self.Addrs), len(addrs)) {
		next = append(next, p.pathOrNew(pair[0], pair[1], addrs[pair[1]]))
	}
	p.paths.Store(&next)
	p.keying.next = 0
}

func (p *member) pathOrNew(own, peers uint8, addr netip.AddrPort) *path {
	for _, q := range *p.paths.Load() {
		if q.own == own && q.peers == peers && q.remote == addr {
			return q
		}
	}
	s := p.m.localFor(own)
	return &path{own: own, peers: peers, local: p.m.self.Addrs[own], remote: addr, sender: newSender(s, addr)}
}

// pathBy is the path that its other end calls b.
func (p *member) pathBy(b uint8) (int, *path) {
	for i, q := range *p.paths.Load() {
		if pathByte(q.peers, q.own) == b {
			return i, q
		}
	}
	return -1, nil
}

// inFlight is how long after the end of a process its last frames may still be read.
const inFlight = 5 * time.Millisecond

// admit decides whether a run of the member may talk to this process. A newer run replaces a silent one; while the old one
// may still be alive, admit waits until it is heard again (the new one is a copy) or has been silent for long enough.
func (p *member) admit(ctx context.Context, inc cluster.Incarnation, run RunID) error {
	asked := p.m.e.now()
	for {
		ok, err := p.tryAdmit(asked, inc, run)
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: its previous run has not been silent for long enough: %w", p.name, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (p *member) tryAdmit(asked cluster.Instant, inc cluster.Incarnation, run RunID) (bool, error) {
	now := p.m.e.now()
	heard := cluster.Instant(p.heard.Load())
	p.mu.Lock()
	if p.run == run && p.inc == inc || p.run == (RunID{}) {
		p.run, p.inc = run, inc
		p.mu.Unlock()
		return true, nil
	}
	if inc <= p.inc {
		was := p.inc
		p.mu.Unlock()
		return false, fmt.Errorf("%s, incarnation %d, after incarnation %d was seen: %w", p.name, inc, was, ErrSecondRun)
	}
	// The old run's process has ended if its sessions were closed and nothing came since (the kernel does that at once); else
	// it must have been silent for longer than a stall lasts.
	gone := p.ended != 0 && heard < p.ended.Add(inFlight) && now > p.ended.Add(inFlight)
	if heard > asked && !gone {
		p.mu.Unlock()
		return false, fmt.Errorf("%s, incarnation %d, while incarnation %d is heard: %w", p.name, inc, p.inc, ErrSecondRun)
	}
	if !gone && heard != 0 && now.Sub(heard) < p.m.runSilence() {
		p.mu.Unlock()
		return false, nil
	}
	old := p.inc
	drop := p.endRun()
	p.run, p.inc = run, inc
	p.mu.Unlock()
	for _, c := range drop {
		c.abort()
	}
	p.m.log.Info("a new run of a member replaces the old one", "peer", p.name, "incarnation", inc, "before", old, "silent", now.Sub(heard))
	return true, nil
}

// endRun forgets all that belongs to the admitted run and returns the connections to close. Callers hold mu.
func (p *member) endRun() []*Conn {
	p.m.e.dropKeys(p.rx)
	p.rx, p.ended = nil, 0
	p.tx.Store(nil)
	p.heard.Store(0)
	p.keying.next = 0
	var drop []*Conn
	for c := range p.conns {
		drop = append(drop, c)
	}
	return drop
}

// remove ends everything with a member that is no longer one.
func (p *member) remove() {
	p.mu.Lock()
	p.removed = true
	drop := p.endRun()
	p.mu.Unlock()
	for _, c := range drop {
		c.abort()
	}
	for _, r := range p.strandedRaw(func(*Raw) bool { return true }) {
		r.down()
	}
}

// addConn registers c, so that it ends with the run, the membership and its path. It returns false if that is over.
func (p *member) addConn(c *Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.removed || p.run != c.run {
		return false
	}
	p.conns[c] = struct{}{}
	if c.channel == Lease {
		p.session[c] = struct{}{}
	}
	return true
}

func (p *member) dropConn(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	delete(p.session, c)
}

func (p *member) appendLinks(out []LinkState, now cluster.Instant) []LinkState {
	keyed := p.tx.Load() != nil
	for i, q := range *p.paths.Load() {
		s := LinkState{
			Peer: p.id, Name: p.name, Link: i, Local: q.local, Remote: q.remote, Keyed: keyed, Heard: -1,
			RTT: time.Duration(q.rtt.Load()), Sent: q.sentN.Load(), Received: q.receivedN.Load(), SendErrors: q.errorsN.Load(),
		}
		if at := q.heard.Load(); at != 0 {
			s.Heard = now.Sub(cluster.Instant(at))
		}
		s.Up, s.Damped = q.state(now)
		out = append(out, s)
	}
	return out
}
