package link

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/hanode/hanode/cluster"
)

// Conn is an authenticated connection of one channel. It ends with Close, when its path goes down while another is up, when
// its member is removed or replaced by a newer run, and with the mesh.
type Conn struct {
	*tls.Conn
	raw     *net.TCPConn
	m       *Mesh
	member  *member // nil: not a listed member
	peer    Peer
	run     RunID
	channel Channel
	path    *path // nil: not one of the configured
	born    cluster.Instant
	theirs  bool // the other side dialled
	ended   sync.Once
}

// Peer is who is at the other end.
func (c *Conn) Peer() Peer { return c.peer }

// Channel is what the connection is for.
func (c *Conn) Channel() Channel { return c.channel }

// PeerOf is the authenticated peer of a connection from Dial or a Listener, of this package or of linktest.
func PeerOf(c net.Conn) (Peer, bool) {
	p, ok := c.(interface{ Peer() Peer })
	if !ok {
		return Peer{}, false
	}
	return p.Peer(), true
}

// Close ends the connection in good order (TLS close_notify).
func (c *Conn) Close() error {
	c.forget()
	return c.Conn.Close()
}

// abort ends it at once: what the kernel still holds is dropped, readers and writers return.
func (c *Conn) abort() {
	c.forget()
	abort(c.raw)
}

// register makes the endpoint, the mesh and the member know c; on false it is closed.
func (c *Conn) register() bool {
	if !c.m.addConn(c) {
		c.raw.Close()
		return false
	}
	if c.member != nil && !c.member.addConn(c) {
		c.abort()
		return false
	}
	return true
}

func (c *Conn) forget() {
	c.ended.Do(func() {
		if c.member != nil {
			c.member.dropConn(c)
		}
		c.m.dropConn(c)
	})
}

func (m *Mesh) addConn(c *Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.conns[c] = struct{}{}
	if c.theirs {
		m.accepted[c.channel]++
	}
	return true
}

func (m *Mesh) dropConn(c *Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.conns[c]; !ok {
		return
	}
	delete(m.conns, c)
	if c.theirs {
		m.accepted[c.channel]--
	}
}

// listener hands out the accepted connections of one channel.
type listener struct {
	m       *Mesh
	channel Channel
	allow   func(Peer) bool
	queue   chan *Conn
	done    chan struct{}
	once    sync.Once
}

// Listener takes the connections that others make on ch. allow decides who may, by its certificate; peers that are not in
// the list of members come with no Addrs. nil allows every listed member. There is one listener per channel; a second one
// is a mistake in the program and panics, unless the first was closed. At most Limits.Conns connections are open at once,
// and 16 wait for Accept; more are refused.
func (m *Mesh) Listener(ch Channel, allow func(Peer) bool) net.Listener {
	if ch == Join || ch == Lease {
		panic(fmt.Sprintf("link: the channel %s belongs to the package", ch))
	}
	l := &listener{m: m, channel: ch, allow: allow, queue: make(chan *Conn, 16), done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		close(l.done)
		return l
	}
	if m.listeners[ch] != nil {
		panic(fmt.Sprintf("link: channel %s has a listener already", ch))
	}
	m.listeners[ch] = l
	return l
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, fmt.Errorf("accept on channel %s: %w", l.channel, net.ErrClosed)
	default:
	}
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, fmt.Errorf("accept on channel %s: %w", l.channel, net.ErrClosed)
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		l.m.mu.Lock()
		if l.m.listeners[l.channel] == l {
			delete(l.m.listeners, l.channel)
		}
		l.m.mu.Unlock()
		select {
		case <-l.done: // made after the mesh was closed
		default:
			close(l.done)
		}
	})
	for {
		select {
		case c := <-l.queue:
			c.Close()
		default:
			return nil
		}
	}
}

var errBusy = errors.New("nobody takes the connection")

// offer gives c to the listener.
func (l *listener) offer(c *Conn) error {
	select {
	case <-l.done:
		return net.ErrClosed
	default:
	}
	select {
	case l.queue <- c:
		return nil
	default:
		return errBusy
	}
}

func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.m.self.Addrs[0]) }
