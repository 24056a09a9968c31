package member

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/gossip"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/rt"
)

// A packet of memberlist must fit into a datagram of the links.
const _ = uint(link.MaxGossip - gossip.MaxPacket)

// Lateness counts how late the timers of this process ring. The members of one process (a witness of many clusters) share one.
type Lateness interface {
	Record(now cluster.Instant, d time.Duration)
	Quantile(now cluster.Instant, q float64) (time.Duration, int)
}

// Health is what is known of a member's health. It is hearsay (see cluster/gossip): it goes into status, alarms, the choice of a leader and
// the profile that is chosen in calm, and never into a decision about a lease.
type Health struct {
	gossip.Health
	Member      cluster.MemberNo
	Alive       bool          // by memberlist's judgement
	Known       bool          // it said something since this daemon started
	Age         time.Duration // since it said so
	ClockOffset time.Duration // its wall clock minus ours, about; 0 for this member
}

// healthEvery is how often a member measures itself and tells the others.
const healthEvery = 2 * time.Second

// probeEvery is memberlist's pace: its judgement is only hearsay here, and the beats of the lease channel are ten times quicker.
const probeEvery = 2 * time.Second

// minLateness is from how many samples on the lateness is told: with fewer, a p99.9 is only the worst of the start.
const minLateness = 1000

// health gathers what members say of themselves, and says what this one does.
type health struct {
	m    *Member
	note func() string // what this member knows to be wrong with itself; nil: nothing is asked

	mu     sync.Mutex
	gossip *gossip.Gossip // nil until the log has told the keys
	clocks map[cluster.NodeID]*clock
	own    gossip.Health
	at     time.Time
}

// clock estimates the difference of two wall clocks. What is told arrives late, never early, so the smallest of the last few is
// nearest to the truth.
type clock struct {
	last [4]time.Duration
	n    int
}

func (c *clock) add(told, now int64) {
	c.last[c.n%len(c.last)] = time.Duration(now-told) * time.Millisecond
	c.n++
}

func (c *clock) offset() time.Duration {
	if c.n == 0 {
		return 0
	}
	best := c.last[0]
	for _, d := range c.last[1:min(c.n, len(c.last))] {
		best = min(best, d)
	}
	return -best
}

// run gossips as soon as the log has told the keys, until ctx ends. Gossip that cannot run is no reason to end.
func (h *health) run(ctx context.Context) error {
	keys := h.waitKeys(ctx)
	if keys == nil {
		return nil
	}
	port := newGossipPort(h.m.mesh)
	g, err := gossip.New(gossip.Config{NodeID: h.m.id, ClusterID: h.m.ident.ClusterID, Network: port, Keys: keys, Log: h.m.log, HealthEvery: healthEvery, ProbeEvery: probeEvery,
		Peers: h.peers, Health: h.measure, OnChange: h.changed})
	if err != nil {
		port.Close()
		h.m.log.Warn("health is not shared", "err", err)
		return nil
	}
	h.mu.Lock()
	h.gossip = g
	h.mu.Unlock()
	rotated, stop := context.WithCancel(ctx)
	defer stop()
	go h.followKeys(rotated, g, keys)
	if err := g.Run(ctx); err != nil {
		h.m.log.Warn("health is not shared any more", "err", err)
	}
	return nil
}

func (h *health) waitKeys(ctx context.Context) [][]byte {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if keys, err := h.keys(); err != nil || len(keys) > 0 {
			return keys
		}
	}
}

func (h *health) keys() (keys [][]byte, err error) {
	err = h.m.On(func(c *core.Core) { keys = keysOf(c.State()) })
	return keys, err
}

func keysOf(st *state.State) [][]byte {
	var out [][]byte
	for _, k := range st.GossipKeys {
		out = append(out, append([]byte(nil), k.Key...))
	}
	return out
}

// keysEvery is how often the ring is compared with the log.
const keysEvery = 2 * time.Second

// KeysFollow is how long to wait between two steps of a change of keys: every member that follows the log has then taken the first one.
const KeysFollow = 2*keysEvery + time.Second

// followKeys makes the ring what the log says: new keys are added before the first one encrypts, and old ones dropped after.
func (h *health) followKeys(ctx context.Context, g *gossip.Gossip, have [][]byte) {
	t := rt.NewTicker(keysEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			t.Next()
		}
		want, err := h.keys()
		if err != nil {
			return
		}
		if len(want) == 0 || same(want, have) {
			continue
		}
		var errs []error
		for _, k := range want {
			errs = append(errs, g.Add(k))
		}
		errs = append(errs, g.Use(want[0]))
		for _, k := range have {
			if !containsKey(want, k) {
				errs = append(errs, g.Drop(k))
			}
		}
		if err := errors.Join(errs...); err != nil {
			h.m.log.Warn("the keys of gossip", "err", err)
		}
		have = want
	}
}

func same(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if string(a[i]) != string(b[i]) {
			return false
		}
	}
	return true
}

func containsKey(keys [][]byte, k []byte) bool {
	for _, have := range keys {
		if string(have) == string(k) {
			return true
		}
	}
	return false
}

func (h *health) peers() []cluster.NodeID {
	var out []cluster.NodeID
	for _, p := range h.m.mesh.Peers() {
		out = append(out, p.ID)
	}
	return out
}

// changed notes when a member told its time. It runs on memberlist's goroutines.
func (h *health) changed(n gossip.MemberHealth) {
	if !n.Alive || n.Health.Wall == 0 {
		return
	}
	now := h.m.wall()
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.clocks[n.Node]
	if c == nil {
		if len(h.clocks) > 2*cluster.MaxMembers { // members of long ago
			h.clocks = map[cluster.NodeID]*clock{}
		}
		c = new(clock)
		h.clocks[n.Node] = c
	}
	c.add(n.Health.Wall, now)
}

// measure is this member's own health, measured at most once per half of healthEvery.
func (h *health) measure() gossip.Health {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.at) < healthEvery/2 {
		return h.own
	}
	m := h.m
	out := gossip.Health{Version: m.cfg.Version, Load: load(), FsyncP99: m.group.Stats().FsyncP99, Wall: m.wall()}
	if m.cfg.Lateness != nil {
		if late, n := m.cfg.Lateness.Quantile(m.now(), 0.999); n >= minLateness {
			out.Lateness = late
		}
	}
	out.Realtime, out.EBPF = m.cfg.Realtime, m.cfg.EBPF
	out.FreeDisk, out.FreeRatio = freeDisk(m.cfg.Dir.Path)
	for _, l := range m.mesh.Links() {
		if l.Up {
			out.LinksUp++
		} else {
			out.LinksDown++
		}
	}
	if h.note != nil {
		out.Note = h.note()
		out.Degraded = out.Note != ""
	}
	h.own, h.at = out, time.Now()
	return out
}

// load is the load average of a minute for each processor; 0 where /proc does not tell.
func load() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	l, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return l / float64(runtime.NumCPU())
}

func freeDisk(dir string) (bytes uint64, percent uint8) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Blocks == 0 {
		return 0, 0
	}
	return st.Bavail * uint64(st.Bsize), uint8(st.Bavail * 100 / st.Blocks)
}

// Health is what is known of the health of every member, this one first.
func (m *Member) Health() []Health {
	h := &m.health
	no := map[cluster.NodeID]cluster.MemberNo{}
	if m.On(func(c *core.Core) {
		for i := range c.State().Members {
			if p := &c.State().Members[i]; !p.Removed {
				no[p.ID] = p.No
			}
		}
	}) != nil {
		return nil
	}
	out := []Health{{Health: h.measure(), Member: no[m.id], Alive: true, Known: true}}
	h.mu.Lock()
	g := h.gossip
	h.mu.Unlock()
	if g == nil {
		return out
	}
	for _, p := range g.Members() {
		if no[p.Node] == 0 {
			continue
		}
		one := Health{Health: p.Health, Member: no[p.Node], Alive: p.Alive, Known: p.Known, Age: p.Age}
		h.mu.Lock()
		if c := h.clocks[p.Node]; c != nil {
			one.ClockOffset = c.offset()
		}
		h.mu.Unlock()
		out = append(out, one)
	}
	return out
}

// HealthChanged says that the others should hear of this member's health now.
func (m *Member) HealthChanged() {
	m.health.mu.Lock()
	g := m.health.gossip
	m.health.at = time.Time{}
	m.health.mu.Unlock()
	if g != nil {
		g.Changed()
	}
}

// gossipPort is the links as cluster/gossip sees them.
type gossipPort struct {
	port    link.GossipPort
	streams net.Listener
	packets chan gossip.Packet
}

func newGossipPort(mesh *link.Mesh) *gossipPort {
	p := &gossipPort{port: mesh.Gossip(), packets: make(chan gossip.Packet, 64)}
	p.streams = p.port.Listener()
	p.port.Receive(p.receive)
	return p
}

// receive runs on the goroutine that reads the socket: what nobody takes is lost, as a datagram may be.
func (p *gossipPort) receive(d link.GossipDatagram) {
	select {
	case p.packets <- gossip.Packet{From: d.From, Data: append([]byte(nil), d.Payload...), At: time.Now()}:
	default:
	}
}

func (p *gossipPort) SendTo(to cluster.NodeID, b []byte) error { return p.port.Send(to, b) }
func (p *gossipPort) Packets() <-chan gossip.Packet            { return p.packets }
func (p *gossipPort) Accept() (net.Conn, error)                { return p.streams.Accept() }

func (p *gossipPort) Dial(ctx context.Context, to cluster.NodeID) (net.Conn, error) {
	c, err := p.port.Dial(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	return c, nil
}

func (p *gossipPort) Close() error {
	p.port.Receive(nil)
	return p.streams.Close()
}
