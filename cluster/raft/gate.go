package raft

import (
	"fmt"
	"net"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"
)

// gate is the stream layer of one Raft instance: it lends the caller's stream to the instance and takes it away at once,
// with every connection, when the instance must neither vote nor write any more. A dial to oneself, which only Kick
// makes, never leaves the process.
type gate struct {
	stream hraft.StreamLayer
	self   string
	in     chan net.Conn
	closed chan struct{}

	mu    sync.Mutex
	conns map[*gateConn]struct{} // nil once closed
}

func newGate(stream hraft.StreamLayer, self string) *gate {
	return &gate{stream: stream, self: self, in: make(chan net.Conn), closed: make(chan struct{}), conns: map[*gateConn]struct{}{}}
}

// gateConn leaves the gate's books when it is closed.
type gateConn struct {
	net.Conn
	g *gate
}

func (c *gateConn) Close() error {
	c.g.mu.Lock()
	delete(c.g.conns, c)
	c.g.mu.Unlock()
	return c.Conn.Close()
}

func (g *gate) enter(c net.Conn) (net.Conn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conns == nil {
		c.Close()
		return nil, net.ErrClosed
	}
	gc := &gateConn{c, g}
	g.conns[gc] = struct{}{}
	return gc, nil
}

// offer hands an accepted connection to the instance, or closes it when there is none.
func (g *gate) offer(c net.Conn) {
	select {
	case g.in <- c:
	case <-g.closed:
		c.Close()
	}
}

func (g *gate) Accept() (net.Conn, error) {
	select {
	case c := <-g.in:
		return g.enter(c)
	case <-g.closed:
		return nil, net.ErrClosed
	}
}

func (g *gate) Dial(to hraft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	if string(to) == g.self {
		near, far := net.Pipe()
		wait := time.NewTimer(timeout)
		defer wait.Stop()
		select {
		case g.in <- far:
			return g.enter(near)
		case <-g.closed:
			return nil, net.ErrClosed
		case <-wait.C:
			return nil, fmt.Errorf("raft of %s does not accept its own connection", g.self)
		}
	}
	select {
	case <-g.closed:
		return nil, net.ErrClosed
	default:
	}
	c, err := g.stream.Dial(to, timeout)
	if err != nil {
		return nil, err
	}
	return g.enter(c)
}

// Close cuts the instance off. It leaves the caller's stream open for the next instance.
func (g *gate) Close() error {
	g.mu.Lock()
	conns := g.conns
	g.conns = nil
	g.mu.Unlock()
	if conns == nil {
		return nil
	}
	close(g.closed)
	for c := range conns {
		c.Conn.Close()
	}
	return nil
}

// Addr is the ServerID: members are found by it alone, wherever they are.
func (g *gate) Addr() net.Addr { return serverAddr(g.self) }

type serverAddr string

func (serverAddr) Network() string  { return "hanode" }
func (a serverAddr) String() string { return string(a) }
