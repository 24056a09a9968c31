package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanode/hanode/cluster"
)

// tick is how often gaps are filled and paths are judged at most; with slow beats it is done less often, see maintain.
const tick = 10 * time.Millisecond

// Endpoint is the port of this process. All methods may be called concurrently.
type Endpoint struct {
	cfg    Config
	log    *slog.Logger
	now    func() cluster.Instant
	wall   func() time.Time
	limits Limits
	socks  []*socket
	reader *reader
	count  counters
	probes probeTable
	wake   chan struct{} // there is keying to do
	pulse  chan struct{} // a caller sends its beat

	keys   atomic.Pointer[map[uint64]*rxKey] // by key id; replaced, never changed
	byTag  atomic.Pointer[map[uint64]*Mesh]  // replaced, never changed
	meshMu sync.RWMutex
	meshes map[string]*Mesh // by cluster id

	mu         sync.Mutex
	handshakes map[netip.Addr]int
	underWay   int
	conns      map[io.Closer]struct{} // every open connection
	closed     bool
	ctx        context.Context // while Run runs
	wg         sync.WaitGroup
}

// Listen binds all addresses of cfg, or none. It starts nothing; Run serves.
func Listen(cfg Config) (*Endpoint, error) {
	if len(cfg.Listen) < 1 || len(cfg.Listen) > MaxLinks {
		return nil, fmt.Errorf("%d addresses to listen on: want 1 to %d", len(cfg.Listen), MaxLinks)
	}
	e := &Endpoint{
		cfg: cfg, log: cfg.Log, now: cfg.Now, wall: cfg.Wall, limits: cfg.Limits.withDefaults(),
		wake: make(chan struct{}, 1), pulse: make(chan struct{}, 1), meshes: map[string]*Mesh{},
		handshakes: map[netip.Addr]int{}, conns: map[io.Closer]struct{}{},
	}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if e.now == nil {
		e.now = boottime
	}
	if e.wall == nil {
		e.wall = time.Now
	}
	e.keys.Store(&map[uint64]*rxKey{})
	e.byTag.Store(&map[uint64]*Mesh{})
	for _, addr := range cfg.Listen {
		s, err := openSocket(addr)
		if err != nil {
			e.closeSockets()
			return nil, err
		}
		e.socks = append(e.socks, s)
		e.warnIfAbsent(addr.Addr())
	}
	var err error
	if e.reader, err = newReader(e.socks); err != nil {
		e.closeSockets()
		return nil, err
	}
	return e, nil
}

// warnIfAbsent says that an address is not there yet: the socket is bound all the same and works when it comes.
func (e *Endpoint) warnIfAbsent(ip netip.Addr) {
	if ip.IsUnspecified() {
		return
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if n.Contains(ip.AsSlice()) && (n.IP.Equal(net.IP(ip.AsSlice())) || ip.IsLoopback()) {
				return
			}
		}
	}
	e.log.Warn("link address is on no interface; listening on it for when it comes", "address", ip)
}

// Addrs are the addresses as bound.
func (e *Endpoint) Addrs() []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range e.socks {
		out = append(out, s.addr)
	}
	return out
}

// Run serves until ctx ends or a socket fails, then closes everything, all connections and meshes included, and returns
// when nothing of it runs any more. It is called once.
func (e *Endpoint) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e.mu.Lock()
	if e.ctx != nil || e.closed {
		e.mu.Unlock()
		return errors.New("the endpoint was already run")
	}
	e.ctx = ctx
	e.mu.Unlock()
	for _, s := range e.socks {
		e.wg.Go(func() { e.accept(ctx, s) })
	}
	e.wg.Go(func() { e.read(ctx, cancel) })
	e.maintain(ctx)
	cause := context.Cause(ctx)
	e.Close()
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return nil
	}
	return cause
}

// Close ends everything; Run calls it. It is for an endpoint that is never run.
func (e *Endpoint) Close() {
	e.mu.Lock()
	e.closed = true
	var open []io.Closer
	for c := range e.conns {
		open = append(open, c)
	}
	e.mu.Unlock()
	e.closeSockets()
	for _, m := range e.allMeshes() {
		m.Close()
	}
	for _, c := range open {
		c.Close()
	}
	e.wg.Wait()
}

func (e *Endpoint) closeSockets() {
	if e.reader != nil {
		e.reader.close()
	}
	for _, s := range e.socks {
		s.close()
	}
}

// spawn runs f unless the endpoint is not running.
func (e *Endpoint) spawn(f func(context.Context)) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || e.ctx == nil || e.ctx.Err() != nil {
		return false
	}
	ctx := e.ctx
	e.wg.Go(func() { f(ctx) })
	return true
}

// track makes sure that c is closed with the endpoint; it closes c at once if that is over.
func (e *Endpoint) track(c io.Closer) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		c.Close()
		return false
	}
	e.conns[c] = struct{}{}
	return true
}

func (e *Endpoint) untrack(c io.Closer) {
	e.mu.Lock()
	delete(e.conns, c)
	e.mu.Unlock()
}

func (e *Endpoint) allMeshes() []*Mesh {
	e.meshMu.RLock()
	defer e.meshMu.RUnlock()
	var out []*Mesh
	for _, m := range e.meshes {
		out = append(out, m)
	}
	return out
}

func (e *Endpoint) mesh(clusterID string) *Mesh {
	e.meshMu.RLock()
	defer e.meshMu.RUnlock()
	return e.meshes[clusterID]
}

// pace is the shortest beat of all meshes.
func (e *Endpoint) pace() time.Duration {
	p := 10 * tick
	for _, m := range e.allMeshes() {
		p = min(p, time.Duration(m.beat.Load()))
	}
	return max(p, 2*tick)
}

// maintain fills gaps and judges paths of all meshes: with each Pulse, so that a process whose callers send in time wakes up for both at once, and
// twice in a beat when there is none.
func (e *Endpoint) maintain(ctx context.Context) {
	wait := e.pace() / 2
	armed := wait
	t := time.NewTimer(wait)
	defer t.Stop()
	var last, holdUntil, noHoldBefore cluster.Instant
	for {
		// After a stall of this process the frames of that time are still to be read: nobody is silent yet. But a process
		// that is always late must judge all the same.
		now := e.now()
		if last != 0 && now.Sub(last) > armed+2*tick && now >= noHoldBefore {
			holdUntil, noHoldBefore = now.Add(2*tick), now.Add(200*time.Millisecond)
		}
		last = now
		for _, m := range e.allMeshes() {
			m.tick(now, now >= holdUntil)
		}
		armed = wait
		t.Reset(armed)
		for due := false; !due; {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				wait, due = e.pace()/2, true
			case <-e.wake:
				wait, due = e.pace()/2, true
			case <-e.pulse:
				wait = e.pace() * 3 / 2
				due = e.now().Sub(last) >= wait/3 // one of several meshes may have pulsed just before
			}
		}
	}
}

// Pulse says that the caller sends its beat now: what else is due is done with it. It does not wait.
func (m *Mesh) Pulse() {
	select {
	case m.e.pulse <- struct{}{}:
	default:
	}
}

func (e *Endpoint) wakeUp() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// accept takes connections; each handshake has its own goroutine, bounded in number by address and in all.
func (e *Endpoint) accept(ctx context.Context, s *socket) {
	for {
		c, err := s.tcp.AcceptTCP()
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		case err != nil: // no descriptors, or a connection that is gone already
			e.log.Warn("accepting connections", "address", s.addr, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		ip := remoteIP(c)
		if !e.enter(ip) {
			e.count.flooded.Add(1)
			abort(c)
			continue
		}
		if !e.spawn(func(ctx context.Context) {
			defer e.leave(ip)
			e.serve(ctx, c)
		}) {
			c.Close()
		}
	}
}

func remoteIP(c net.Conn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// abort closes c with a reset: nothing of it stays in the kernel.
func abort(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

func (e *Endpoint) enter(ip netip.Addr) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.underWay >= e.limits.Handshakes || e.handshakes[ip] >= e.limits.HandshakesPerIP {
		return false
	}
	e.underWay++
	e.handshakes[ip]++
	return true
}

func (e *Endpoint) leave(ip netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.underWay--
	if e.handshakes[ip]--; e.handshakes[ip] == 0 {
		delete(e.handshakes, ip)
	}
}

// read takes the datagrams of all sockets.
func (e *Endpoint) read(ctx context.Context, fail context.CancelCauseFunc) {
	var complained cluster.Instant
	err := e.reader.run(ctx, func(s *socket, b []byte, from *rawAddr) {
		e.datagram(s, b, from.addrPort(), e.now())
	}, func(s *socket, err error) {
		if now := e.now(); complained == 0 || now.Sub(complained) > time.Second { // an error that stays must not fill the log
			complained = now
			e.log.Warn("reading datagrams", "address", s.addr, "error", err)
		}
	})
	if err != nil {
		fail(fmt.Errorf("reading datagrams: %w", err))
	}
}

// datagram hands b to whom it is for.
func (e *Endpoint) datagram(s *socket, b []byte, from netip.AddrPort, at cluster.Instant) {
	if len(b) == 0 {
		e.count.malformed.Add(1)
		return
	}
	switch b[0] {
	case classLease:
		e.leaseDatagram(b, from, at)
	case classGossip:
		e.gossipDatagram(b, from, at)
	case classProbe:
		e.probeDatagram(s, b, from)
	default:
		e.count.malformed.Add(1)
	}
}
