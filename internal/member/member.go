// Package member is what a node and a witness have in common: the Raft group, the links and the deciding core, run together.
//
// One goroutine, the loop, owns the core and with it the replicated state; frames, committed commands, answers and time reach it as
// functions, and what the core answers is carried out in order. What concerns services on this machine goes to Local, which a node
// implements and a witness does not need.
//
// It decides nothing. It must not be run twice on one state directory (the directory is locked), nor before what an earlier run left
// behind on this machine has been stopped: the log admits the new run on that word.
package member

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	hraft "github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/cluster/raft"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/pki"
)

// Local is the machine's side of the services. Do is called on the loop, in order, and must return at once.
type Local interface {
	Do(core.Action)
	// Applied tells of a committed command, accepted or not, after the core has seen it.
	Applied(index uint64, cmd *state.Command, o state.Outcome)
}

// Nothing is the Local of a witness.
type Nothing struct{ Step func(core.Event) }

// Do answers at once that what is not there is shut.
func (n Nothing) Do(a core.Action) {
	if c, ok := a.(core.Close); ok && n.Step != nil {
		n.Step(core.Shut{Service: c.Service, Epoch: c.Epoch})
	}
}

// Applied does nothing.
func (Nothing) Applied(uint64, *state.Command, state.Outcome) {}

// Config says how a member runs.
type Config struct {
	Dir      *Dir
	Local    Local
	Endpoint *link.Endpoint // nil: one of its own, on the advertised addresses
	Version  string
	Log      *slog.Logger
	Ballast  int64 // see raft.Config
	// Wall is the wall clock; nil: time.Now. No role and no lease depends on it: for people, and for the validity of certificates.
	Wall func() time.Time
	// Slow delays writes of the Raft log. For the lab.
	Slow func() time.Duration
	// OnAlarm is told of trouble of the log's disk.
	OnAlarm func(raft.Alarm)
	// Lateness counts how late the loop's timer rings; nil: it is not counted.
	Lateness Lateness
	// Realtime and EBPF say what this machine gave: real-time scheduling, and the quickest gate.
	Realtime, EBPF bool
	// OnLate is told, on the loop, that it was late by more than half a lease; it must return at once. nil: nobody is.
	OnLate func(late, ttl time.Duration)
	// OnRenewed is told how long each answer to a renewal took, on the goroutines that read the sockets; nil: nobody is.
	OnRenewed func(time.Duration)
	// Note is what this member knows to be wrong with itself, for the others to see; nil or "": nothing.
	Note func() string
}

// Member is one member at work.
type Member struct {
	cfg      Config
	log      *slog.Logger
	ident    Identity
	id       cluster.NodeID
	serverID string
	ep       *link.Endpoint
	ownEP    bool
	mesh     *link.Mesh
	group    *raft.Group
	relay    *raft.Relay
	proposer *raft.Proposer
	loop     *loop
	core     *core.Core
	local    Local
	ctx      context.Context
	fail     chan error

	peersMu sync.Mutex
	byName  map[string]cluster.NodeID // server id to node id, for those who dial

	malformed atomic.Uint64
	leaving   bool // this member was removed; only on the loop
	leading   atomic.Bool
	beat      raft.Beat
	logTime   atomic.Int64
	health    health
	place     place
	committed chan struct{}   // as leader: something was committed that followers act on
	led       raft.State      // who leads, as Raft said last; only on the loop
	startWall time.Time       // the wall clock when this daemon started,
	startAt   cluster.Instant // at this instant
}

// New opens the log and the port, and starts nothing.
func New(cfg Config) (*Member, error) {
	m := &Member{cfg: cfg, log: cfg.Log, ident: cfg.Dir.Identity, local: cfg.Local, fail: make(chan error, 4), byName: map[string]cluster.NodeID{}}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	m.committed = make(chan struct{}, 1)
	m.place = place{m: m, rtt: map[cluster.NodeID]*slowest{}}
	m.health = health{m: m, note: cfg.Note, clocks: map[cluster.NodeID]*clock{}}
	if m.cfg.Wall == nil {
		m.cfg.Wall = time.Now
	}
	m.startWall, m.startAt = m.cfg.Wall(), m.now()
	var err error
	if m.id, err = m.ident.ID(); err != nil {
		return nil, err
	}
	m.serverID = cluster.ServerID(m.ident.Name, m.id)
	addrs, err := m.ident.Addrs()
	if err != nil {
		return nil, err
	}
	if m.loop, err = newLoop(m); err != nil {
		return nil, err
	}
	role, err := pki.ParseRole(m.ident.Role)
	if err != nil {
		return nil, err
	}
	m.core = core.New(core.Config{ID: m.id, Role: role, Inc: cfg.Dir.Inc, Boot: cfg.Dir.Boot, Version: cfg.Version}, m.now(), new(state.State))
	if m.ep = cfg.Endpoint; m.ep == nil {
		if m.ep, err = link.Listen(link.Config{Listen: addrs, Log: m.log}); err != nil {
			return nil, err
		}
		m.ownEP = true
	}
	if err := m.open(addrs, role); err != nil {
		if m.ownEP {
			m.ep.Close()
		}
		return nil, err
	}
	return m, nil
}

// SetLocal replaces Local; before Run.
func (m *Member) SetLocal(l Local) { m.local = l }

func (m *Member) open(addrs []netipAddr, role cluster.Role) error {
	var err error
	m.mesh, err = m.ep.AddCluster(link.ClusterIdentity{
		ClusterID: m.ident.ClusterID, Self: link.Peer{ID: m.id, Name: m.ident.Name, Role: role, Addrs: addrs}, Incarnation: m.cfg.Dir.Inc,
		Certificate: m.cfg.Dir.PKI.TLS(),
		Verify:      m.verify,
		OnSecondRun: func(err error) { m.fatal(err) },
	})
	if err != nil {
		return err
	}
	m.setPeers(m.cfg.Dir.Peers())
	dir := filepath.Join(m.cfg.Dir.Path, "raft")
	if err := m.cfg.Dir.checkLog(); err != nil {
		m.mesh.Close()
		return err
	}
	m.group, err = raft.Open(raft.Config{Dir: dir, ClusterID: m.ident.ClusterID, ServerID: m.serverID, FSM: machine{m.loop}, Stream: &stream{m: m, l: m.mesh.Listener(link.Raft, nil)},
		Log: m.log, Ballast: m.cfg.Ballast, Slow: m.cfg.Slow, Probe: func() []byte { return (&state.Command{Nop: &state.Nop{}}).Encode() },
		HeartbeatTimeout: raftTimeout, CommitTimeout: commitTimeout, Beat: &m.beat, Heir: m.place.Heir, OnState: m.onState, OnAlarm: m.onAlarm, OnFatal: func(err error) { m.fatal(err) }})
	if err != nil {
		m.mesh.Close()
		return err
	}
	if err := m.cfg.Dir.logBegun(); err != nil {
		m.mesh.Close()
		return errors.Join(err, m.group.Close())
	}
	m.relay = raft.NewRelay(func(ctx context.Context, serverID string) (net.Conn, error) { return m.dial(ctx, serverID, link.Relay) }, 0)
	m.proposer = raft.NewProposer(m.group, m.relay, encodeResult)
	return nil
}

func encodeResult(v any) ([]byte, error) {
	switch v := v.(type) {
	case state.Outcome:
		return state.EncodeOutcome(v), nil
	case error:
		return nil, v
	}
	return nil, fmt.Errorf("a result of type %T", v)
}

// now is CLOCK_BOOTTIME.
func (m *Member) now() cluster.Instant { return bootTime() }

func bootTime() cluster.Instant {
	var ts unix.Timespec
	// It cannot fail for this clock, and never blocks: the Go scheduler need not be told, which would wake up its monitor thread.
	unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ts)), 0)
	return cluster.Instant(ts.Nano())
}

func (m *Member) wall() int64 { return m.cfg.Wall().UnixMilli() }

// verify says who presents a certificate. One that has not begun yet or is over by the wall clock is accepted if it is valid by one of two other
// clocks: the wall clock as it was when this daemon started, gone on with CLOCK_BOOTTIME, for a clock that was set since; or the time that the log has
// seen last, for a machine that starts with a wrong one. A wrong clock must not keep members from each other.
func (m *Member) verify(chain []*x509.Certificate) (link.Peer, error) {
	steady := m.startWall.Add(m.now().Sub(m.startAt))
	var first error
	for _, at := range []time.Time{m.cfg.Wall(), steady, time.UnixMilli(m.logTime.Load())} {
		v := &pki.Verifier{ClusterID: m.ident.ClusterID, Roots: m.cfg.Dir.PKI.CAs, Now: func() time.Time { return at }}
		s, err := v.Verify(chain)
		if err == nil || !errors.Is(err, pki.ErrExpired) {
			return link.Peer{ID: s.ID, Name: s.Name, Role: s.Role}, err
		}
		if first == nil {
			first = err
		}
	}
	return link.Peer{}, first
}

func (m *Member) fatal(err error) {
	select {
	case m.fail <- err:
	default:
	}
}

// Run takes part in the cluster until ctx ends or something fails beyond which it is not safe to go on.
func (m *Member) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.ctx = ctx
	g, gctx := errgroup.WithContext(ctx)
	if m.ownEP {
		g.Go(func() error { return m.ep.Run(gctx) })
	}
	m.mesh.Receive(m.loop.receive)
	m.serveJoin()
	loopCtx, stopLoop := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLoop()
	loopDone := make(chan struct{})
	go func() { defer close(loopDone); m.loop.run(loopCtx) }()
	g.Go(func() error {
		defer stopLoop() // after Raft, which waits for the loop
		return m.group.Run(gctx)
	})
	g.Go(func() error { return m.serveRelay(gctx) })
	g.Go(func() error { return m.keepRoster(gctx) })
	g.Go(func() error { return m.health.run(gctx) })
	g.Go(func() error { return m.place.run(gctx) })
	g.Go(func() error { return m.spread(gctx) })
	g.Go(func() error {
		select {
		case err := <-m.fail:
			return err
		case <-gctx.Done():
			return nil
		}
	})
	err := g.Wait()
	stopLoop()
	<-loopDone
	m.relay.Close()
	m.mesh.Receive(nil)
	m.mesh.Close()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// beaten runs on the loop when this member has sent its beats: what else is due at that pace is done with them, so that the process wakes up once for all.
func (m *Member) beaten() {
	m.mesh.Pulse()
	m.beat.Pulse()
}

// NextBeat is closed when this member sends its beats again.
func (m *Member) NextBeat() <-chan struct{} { return m.beat.Next() }

// On runs f on the loop with the core, for those who read the state or hand in events.
func (m *Member) On(f func(*core.Core)) error { return m.loop.call(func() { f(m.core) }) }

// Step gives an event to the core. The events of one goroutine reach it in the order in which they are given. It may wait for the loop, and must
// not be called on it.
func (m *Member) Step(ev core.Event) { m.loop.post(func() { m.loop.step(ev) }, false) }

// StepNow gives an event to the core after the one at hand; only on the loop, that is from Local.Do.
func (m *Member) StepNow(ev core.Event) { m.loop.own = append(m.loop.own, ev) }

// Now is CLOCK_BOOTTIME as the core sees it.
func (m *Member) Now() cluster.Instant { return m.now() }

// Mesh is the member's links.
func (m *Member) Mesh() *link.Mesh { return m.mesh }

// Group is the member's part of the Raft group.
func (m *Member) Group() *raft.Group { return m.group }

// Dir is the member's state directory.
func (m *Member) Dir() *Dir { return m.cfg.Dir }

// Commit has a command committed, wherever the leader is, and answers what it came to. A refusal by the state is in the Outcome; an error means that the
// command was not, or, for raft.ErrUnknownOutcome, may have been, committed.
func (m *Member) Commit(ctx context.Context, cmd *state.Command) (state.Outcome, error) {
	cmd.At = m.wall()
	return m.commit(ctx, cmd)
}

func (m *Member) commit(ctx context.Context, cmd *state.Command) (state.Outcome, error) {
	b, index, err := m.proposer.Propose(ctx, cmd.Encode())
	if err != nil {
		return state.Outcome{Result: lock.Unknown}, err
	}
	o, err := state.DecodeOutcome(b)
	o.Index = index
	return o, err
}

func (m *Member) kick() {
	if err := m.group.Kick(); err != nil {
		m.log.Debug("kick", "err", err)
	}
}

func (m *Member) transfer(serverID string) {
	ctx, cancel := context.WithTimeout(m.ctx, 2*time.Second)
	defer cancel()
	if err := m.group.TransferTo(ctx, serverID); err != nil {
		m.log.Warn("the lead was not handed over", "to", serverID, "err", err)
	}
}

// onState follows the leadership. A new leader coordinates only after it has applied everything that was committed before.
func (m *Member) onState(s raft.State) {
	go func() {
		if s.Mine && !m.leading.Load() {
			ctx, cancel := context.WithTimeout(m.ctx, 2*time.Second)
			err := m.group.Barrier(ctx)
			cancel()
			if err != nil {
				m.log.Info("leads, but could not catch up", "err", err)
			}
		}
		now := m.group.State()
		m.leading.Store(now.Mine)
		m.loop.post(func() {
			cur := m.group.State() // what came first may be posted last
			switch {
			case !cur.Mine || now.Mine && now.Term == cur.Term:
				m.led = cur
			case m.led.Mine && m.led.Term == cur.Term:
				// it leads and has caught up: this is older news
			default:
				m.led = now // that it leads is told when it has caught up
			}
			m.tellLeader()
		}, false)
	}()
}

// tellLeader tells the core who leads, by the name that Raft knows: the core finds the member when the log names it. Only on the loop.
func (m *Member) tellLeader() {
	m.loop.step(core.Leadership{ServerID: m.led.Leader, Mine: m.led.Mine})
}

func (m *Member) onAlarm(a raft.Alarm) {
	m.log.Warn(a.Text, "alarm", string(a.Kind))
	if m.cfg.OnAlarm != nil {
		m.cfg.OnAlarm(a)
	}
}

// applied runs on the loop after each command.
func (m *Member) applied(index uint64, cmd *state.Command, o state.Outcome) {
	if cmd.At != 0 {
		m.logTime.Store(cmd.At)
	}
	if cmd.Nop == nil {
		m.tellFollowers()
	}
	m.local.Applied(index, cmd, o)
}

// tellFollowers has a leader tell the others how far the log is committed: what was is something that they act on.
func (m *Member) tellFollowers() {
	if !m.leading.Load() {
		return
	}
	select {
	case m.committed <- struct{}{}:
	default:
	}
}

// stream is the Raft transport over the links, by server id.
type stream struct {
	m *Member
	l net.Listener
}

func (s *stream) Dial(address hraft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.m.dial(ctx, string(address), link.Raft)
}

func (s *stream) Accept() (net.Conn, error) { return s.l.Accept() }
func (s *stream) Close() error              { return s.l.Close() }
func (s *stream) Addr() net.Addr            { return serverAddr(s.m.serverID) }

type serverAddr string

func (serverAddr) Network() string  { return "hanode" }
func (a serverAddr) String() string { return string(a) }

func (m *Member) dial(ctx context.Context, serverID string, ch link.Channel) (net.Conn, error) {
	m.peersMu.Lock()
	id, ok := m.byName[serverID]
	m.peersMu.Unlock()
	if !ok {
		return nil, fmt.Errorf("%s is not known here yet", serverID)
	}
	return m.mesh.Dial(ctx, id, ch)
}

// Drops counts the frames that the loop did not take in time, and those that could not be read.
func (m *Member) Drops() (dropped, malformed uint64) { return m.loop.drops.Load(), m.malformed.Load() }

// Dial opens a connection to a member by its node id.
func (m *Member) Dial(ctx context.Context, to cluster.NodeID, ch link.Channel) (net.Conn, error) {
	return m.mesh.Dial(ctx, to, ch)
}

func (m *Member) serveRelay(ctx context.Context) error {
	l := m.mesh.Listener(link.Relay, nil)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept relayed commands: %w", err)
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := m.proposer.ServeConn(ctx, c); err != nil && ctx.Err() == nil {
				m.log.Debug("relay", "err", err)
			}
		}()
	}
}
