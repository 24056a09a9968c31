package raft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"
)

// network joins members of one test over loopback TCP. A cut is silent: what is written disappears, dials time out, and
// a connection that lost something stays dead, as a TCP connection with a hole in it would.
type network struct {
	mu    sync.Mutex
	addrs map[string]string
	cuts  map[[2]string]bool
}

func newNetwork() *network {
	return &network{addrs: map[string]string{}, cuts: map[[2]string]bool{}}
}

func (n *network) cut(a, b string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[[2]string{a, b}], n.cuts[[2]string{b, a}] = on, on
}

func (n *network) isolate(a string, others ...string) {
	for _, b := range others {
		n.cut(a, b, true)
	}
}

func (n *network) isCut(a, b string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cuts[[2]string{a, b}]
}

type stream struct {
	net.Listener
	net  *network
	self string
	kind string
}

func (n *network) listen(t testing.TB, self, kind string) *stream {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.addrs[kind+self] = l.Addr().String()
	n.mu.Unlock()
	return &stream{l, n, self, kind}
}

func (s *stream) Dial(to hraft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.dial(ctx, string(to))
}

func (s *stream) dial(ctx context.Context, to string) (net.Conn, error) {
	if s.net.isCut(s.self, to) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	s.net.mu.Lock()
	addr := s.net.addrs[s.kind+to]
	s.net.mu.Unlock()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(append([]byte{byte(len(s.self))}, s.self...)); err != nil {
		return nil, err
	}
	return &lossy{Conn: c, net: s.net, from: s.self, to: to}, nil
}

func (s *stream) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	head := make([]byte, 1)
	if _, err := c.Read(head); err != nil {
		return nil, err
	}
	name := make([]byte, head[0])
	if _, err := c.Read(name); err != nil {
		return nil, err
	}
	return &lossy{Conn: c, net: s.net, from: s.self, to: string(name)}, nil
}

type lossy struct {
	net.Conn
	net      *network
	from, to string
	dead     atomic.Bool
}

func (l *lossy) Write(b []byte) (int, error) {
	if l.dead.Load() || l.net.isCut(l.from, l.to) {
		l.dead.Store(true)
		return len(b), nil
	}
	return l.Conn.Write(b)
}

// counter is a state machine that sums up numbers and remembers what it saw.
type counter struct {
	mu     sync.Mutex
	sum    uint64
	last   uint64
	voters []string
}

func (c *counter) Apply(index uint64, data []byte) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	if index <= c.last {
		panic(fmt.Sprintf("entry %d applied after %d", index, c.last))
	}
	c.last = index
	if len(data) == 8 {
		c.sum += binary.BigEndian.Uint64(data)
	}
	return c.sum
}

func (c *counter) Voters(index uint64, servers []hraft.Server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.voters = nil
	for _, s := range servers {
		if s.Suffrage == hraft.Voter {
			c.voters = append(c.voters, string(s.ID))
		}
	}
}

func (c *counter) Snapshot() ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, c.sum), c.last), nil
}

func (c *counter) Restore(b []byte) error {
	if len(b) != 16 {
		return errors.New("bad snapshot")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sum, c.last = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	return nil
}

func (c *counter) value() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sum
}

func add(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// member is one group with its relay, running.
type member struct {
	*Group
	id     string
	cfg    Config
	fsm    *counter
	prop   *Proposer
	slow   atomic.Int64 // ns; a write ends when it has taken this long, or when the disk was made quick again
	alarms chan Alarm
	fatal  chan error
	stop   context.CancelFunc
	done   chan error
}

type cluster struct {
	t       testing.TB
	net     *network
	dirs    map[string]string
	members map[string]*member
}

const testCluster = "c0ffee"

func newCluster(t testing.TB, ids ...string) *cluster {
	c := &cluster{t: t, net: newNetwork(), dirs: map[string]string{}, members: map[string]*member{}}
	for i, id := range ids {
		c.dirs[id] = t.TempDir()
		others := append(append([]string{}, ids[:i]...), ids[i+1:]...)
		if err := Bootstrap(c.dirs[id], testCluster, id, others...); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// start runs the member id over its directory.
func (c *cluster) start(id string, change ...func(*Config)) *member {
	c.t.Helper()
	if c.dirs[id] == "" {
		c.dirs[id] = c.t.TempDir()
	}
	m := &member{id: id, fsm: &counter{}, alarms: make(chan Alarm, 16), fatal: make(chan error, 1), done: make(chan error, 1)}
	m.cfg = Config{
		Dir: c.dirs[id], ClusterID: testCluster, ServerID: id, FSM: m.fsm, Ballast: -1,
		Stream:  c.net.listen(c.t, id, "raft/"),
		OnAlarm: func(a Alarm) { m.alarms <- a }, OnFatal: func(err error) { m.fatal <- err },
		Slow: func() time.Duration {
			for end := time.Now().Add(time.Duration(m.slow.Load())); time.Now().Before(end) && m.slow.Load() != 0; {
				time.Sleep(time.Millisecond)
			}
			return 0
		},
	}
	for _, f := range change {
		f(&m.cfg)
	}
	g, err := Open(m.cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	m.Group = g
	relayStream := c.net.listen(c.t, id, "relay/")
	relay := NewRelay(relayStream.dial, 0)
	m.prop = NewProposer(g, relay, func(v any) ([]byte, error) { return add(v.(uint64)), nil })
	ctx, cancel := context.WithCancel(context.Background())
	go func() { m.done <- g.Run(ctx) }()
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			conn, err := relayStream.Accept()
			if err != nil {
				return
			}
			wg.Add(1)
			go func() { defer wg.Done(); m.prop.ServeConn(ctx, conn) }()
		}
	}()
	m.stop = sync.OnceFunc(func() {
		cancel()
		relay.Close()
		relayStream.Close()
		wg.Wait()
		select {
		case err := <-m.done:
			m.done <- err
		case <-time.After(10 * time.Second):
			c.t.Errorf("%s does not end", id)
		}
	})
	c.t.Cleanup(m.stop)
	c.members[id] = m
	return m
}

// within polls until ok, and fails the test after d.
func within(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", d, what)
		}
	}
}

// leader waits for one among the named members (all if none) that has committed something in its term.
func (c *cluster) leader(among ...string) *member {
	c.t.Helper()
	if len(among) == 0 {
		for id := range c.members {
			among = append(among, id)
		}
	}
	var found *member
	within(c.t, 10*time.Second, fmt.Sprintf("a leader among %v", among), func() bool {
		for _, id := range among {
			m := c.members[id]
			if _, mine, _ := m.Leader(); mine {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				if m.Barrier(ctx) == nil {
					found = m
					return true
				}
			}
		}
		return false
	})
	return found
}

// leads makes id the leader.
func (c *cluster) leads(id string) *member {
	c.t.Helper()
	within(c.t, 10*time.Second, id+" leads", func() bool {
		l := c.leader()
		if l.id == id {
			return true
		}
		l.TransferTo(short(c.t), id)
		return false
	})
	return c.members[id]
}

func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (c *cluster) three() (a, b, w *member) {
	return c.start("a-1"), c.start("b-2"), c.start("w-3")
}
