// Package gossip spreads what members say about their own health, and who hears whom, with memberlist.
//
// It advises and never decides. Nobody is fenced, granted a lease or kicked because of what is heard here: its detector
// needs about half a second, believes what other members say, and is wrong now and then under load. What it says goes
// into status, alerts and the choice of a leader (cluster/placement). The lease channel has its own beats.
//
// It runs over a Network that the caller gives (the one port of cluster/link): packets and streams between members that
// have authenticated each other, addressed by node id. On top of that each packet and stream is encrypted with a key of
// the cluster's own keyring, and unencrypted ones are refused. Keys are rotated by Add on all members, then Use on all,
// then Drop on all.
//
// memberlist v0.6.0 trusts members that hold a key and a certificate to some degree: a push/pull message with a short
// version list makes it panic. Alive messages are filtered here before they get that far.
//
// Callers must call Run; Members is empty before. OnChange and the callbacks must not block.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hashicorp/memberlist"
)

// Network carries gossip between members. Both kinds of traffic come from members that have been authenticated.
type Network interface {
	// SendTo sends one packet of at most MaxPacket bytes, or loses it. It does not block.
	SendTo(node cluster.NodeID, b []byte) error
	// Packets delivers what arrives. The channel is never closed.
	Packets() <-chan Packet
	Dial(ctx context.Context, node cluster.NodeID) (net.Conn, error)
	// Accept returns the next stream from another member, or an error once Close was called.
	Accept() (net.Conn, error)
	// Close ends Accept.
	Close() error
}

// Packet is one that has arrived.
type Packet struct {
	From cluster.NodeID
	Data []byte // the receiver may keep and change it
	At   time.Time
}

// MaxPacket is the longest packet that is sent: it leaves room in a 1200-byte frame of cluster/link.
const MaxPacket = 1140

// MaxState bounds the larger state that a member shares now and then.
const MaxState = 64 << 10

// Config says how a Gossip runs.
type Config struct {
	NodeID    cluster.NodeID
	ClusterID string // label of all traffic: clusters that share a witness do not mix
	Network   Network
	Keys      [][]byte // 32 bytes each; the first one encrypts
	Log       *slog.Logger

	// Peers names the other members; those that are not heard are called on every five seconds. Others are ignored.
	Peers func() []cluster.NodeID
	// Health is asked every HealthEvery (1 s), and at once after Changed.
	Health      func() Health
	HealthEvery time.Duration
	// ProbeEvery is how often one member is probed (100 ms); everything that is spread waits for up to half of it. It is most of what gossip
	// costs a member that has nothing to say.
	ProbeEvery time.Duration
	// State, if set, is what is given to each member every 30 s and to every newcomer; at most MaxState bytes. OnState
	// gets it there.
	State   func() []byte
	OnState func(from cluster.NodeID, state []byte)
	// OnChange is called when a member comes or goes or its health changes.
	OnChange func(MemberHealth)
}

// MemberHealth is what is known about one member.
type MemberHealth struct {
	Node   cluster.NodeID
	Alive  bool // by memberlist's judgement, which is a hint
	Health Health
	Age    time.Duration // since Health was last received or, for a member that is not alive, since it went
	Known  bool          // something was heard from it in this run
}

// Gossip is this member's part.
type Gossip struct {
	cfg  Config
	ring *memberlist.Keyring

	mu      sync.Mutex
	members map[cluster.NodeID]*seen
	nudge   chan struct{}
}

type seen struct {
	alive  bool
	health Health
	since  time.Time
}

// New checks cfg. It starts nothing.
func New(cfg Config) (*Gossip, error) {
	var errs []error
	if cfg.NodeID.IsZero() {
		errs = append(errs, errors.New("node id: none given"))
	}
	if cfg.ClusterID == "" || len(cfg.ClusterID) > memberlist.LabelMaxSize {
		errs = append(errs, fmt.Errorf("cluster id %q: choose 1 to %d bytes", cfg.ClusterID, memberlist.LabelMaxSize))
	}
	if cfg.Network == nil || cfg.Health == nil || cfg.Peers == nil {
		errs = append(errs, errors.New("network, health and peers: all three are needed"))
	}
	if len(cfg.Keys) == 0 {
		errs = append(errs, errors.New("keys: none given, and gossip is never sent in the clear"))
	}
	for i, k := range cfg.Keys {
		if len(k) != 32 {
			errs = append(errs, fmt.Errorf("key %d has %d bytes: use 32", i, len(k)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	ring, err := memberlist.NewKeyring(cfg.Keys, cfg.Keys[0])
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	if cfg.HealthEvery == 0 {
		cfg.HealthEvery = time.Second
	}
	if cfg.ProbeEvery == 0 {
		cfg.ProbeEvery = 100 * time.Millisecond
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.OnChange == nil {
		cfg.OnChange = func(MemberHealth) {}
	}
	return &Gossip{cfg: cfg, ring: ring, members: map[cluster.NodeID]*seen{}, nudge: make(chan struct{}, 1)}, nil
}

// tuning is the row of the measurements that stood 8 busy loops without a false alarm: kill to notice 490 ms (408-586).
func (g *Gossip) tuning(t memberlist.Transport) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.cfg.NodeID.String()
	c.Label = g.cfg.ClusterID
	c.Transport = t
	c.Keyring = g.ring
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.ProbeInterval, c.ProbeTimeout = g.cfg.ProbeEvery, g.cfg.ProbeEvery/2
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = 3, 2
	c.GossipInterval, c.GossipNodes = g.cfg.ProbeEvery/2, 3
	c.GossipToTheDeadTime = 10 * time.Second
	c.AwarenessMaxMultiplier = 2
	c.IndirectChecks = 1
	c.DisableTcpPings = true
	c.TCPTimeout = 3 * time.Second
	c.PushPullInterval = 30 * time.Second
	c.DeadNodeReclaimTime = time.Second
	c.UDPBufferSize = MaxPacket
	c.EnableCompression = false // small packets; and nothing to decompress from others
	c.RequireNodeNames = false
	c.DNSConfigPath = ""
	d := &delegate{g}
	c.Delegate, c.Events, c.Alive = d, d, d
	c.Logger = log.New(logLines{g.cfg.Log}, "", 0)
	return c
}

// Run takes part until ctx ends. Then it says goodbye, so that the others do not count it as dead.
func (g *Gossip) Run(ctx context.Context) error {
	t := newTransport(g.cfg.NodeID, g.cfg.Network, g.cfg.Log)
	var calls sync.WaitGroup
	defer func() { t.wait(); calls.Wait() }()
	ml, err := memberlist.Create(g.tuning(t))
	if err != nil {
		t.Shutdown()
		return fmt.Errorf("start gossip: %w", err)
	}
	defer ml.Shutdown()
	health := time.NewTicker(g.cfg.HealthEvery)
	defer health.Stop()
	call := time.NewTicker(5 * time.Second)
	defer call.Stop()
	g.callOn(&calls, ml)
	for {
		select {
		case <-ctx.Done():
			ml.Leave(200 * time.Millisecond)
			return nil
		case <-call.C:
			g.callOn(&calls, ml)
			continue
		case <-g.nudge:
		case <-health.C:
		}
		if err := ml.UpdateNode(50 * time.Millisecond); err != nil {
			g.cfg.Log.Debug("gossip: health not yet passed on", "err", err)
		}
	}
}

// callOn contacts the peers that are not heard, all at the same time, without waiting for those that do not answer.
func (g *Gossip) callOn(calls *sync.WaitGroup, ml *memberlist.Memberlist) {
	for _, m := range g.Members() {
		p := m.Node
		if m.Alive {
			continue
		}
		calls.Add(1)
		go func() {
			defer calls.Done()
			if _, err := ml.Join([]string{p.String() + "/" + addrOf(p).String()}); err != nil {
				g.cfg.Log.Debug("gossip: a peer does not answer", "peer", p, "err", err)
			}
		}()
	}
}

// Changed says that the health has changed so much that the others should hear of it now.
func (g *Gossip) Changed() {
	select {
	case g.nudge <- struct{}{}:
	default:
	}
}

// Members returns what is known about the peers, ordered by node id.
func (g *Gossip) Members() []MemberHealth {
	peers := g.cfg.Peers()
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []MemberHealth
	for _, p := range peers {
		if m := g.members[p]; m != nil {
			out = append(out, MemberHealth{Node: p, Alive: m.alive, Health: m.health, Age: time.Since(m.since), Known: true})
		} else if p != g.cfg.NodeID {
			out = append(out, MemberHealth{Node: p})
		}
	}
	slices.SortFunc(out, func(a, b MemberHealth) int { return slices.Compare(a.Node[:], b.Node[:]) })
	return out
}

// note records news about a member and passes it on.
func (g *Gossip) note(n *memberlist.Node, alive bool) {
	id, err := cluster.ParseNodeID(n.Name)
	if err != nil || id == g.cfg.NodeID {
		return
	}
	h, err := DecodeHealth(n.Meta)
	if err != nil {
		g.cfg.Log.Debug("gossip: health of a member cannot be read", "peer", id, "err", err)
	}
	g.mu.Lock()
	m := g.members[id]
	if m == nil {
		m = &seen{}
		g.members[id] = m
	}
	m.alive, m.since = alive, time.Now()
	if err == nil {
		m.health = h
	}
	out := MemberHealth{Node: id, Alive: alive, Health: m.health, Known: true}
	g.mu.Unlock()
	g.cfg.OnChange(out)
}

// Add lets key decrypt; Use encrypts with it from now on; Drop forgets it, unless it is in use.
func (g *Gossip) Add(key []byte) error {
	if len(key) != 32 {
		return fmt.Errorf("gossip key of %d bytes: use 32", len(key))
	}
	return g.ring.AddKey(slices.Clone(key))
}

// Use is the second step of a rotation, see Add.
func (g *Gossip) Use(key []byte) error { return g.ring.UseKey(key) }

// Drop is the third step of a rotation, see Add.
func (g *Gossip) Drop(key []byte) error { return g.ring.RemoveKey(key) }
