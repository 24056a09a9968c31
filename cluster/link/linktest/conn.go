package linktest

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
)

// bufferLen is how much a writer can be ahead of its reader.
const bufferLen = 256 << 10

// half is one direction of a connection.
type half struct {
	mu       sync.Mutex
	cond     *sync.Cond
	buf      []byte
	eof      bool // the writer has closed
	broken   bool // reset: both ends get errors
	readBy   time.Time
	writeBy  time.Time
	open     func() bool // whether the network lets bytes through
	shutRead bool        // the reader has closed
}

func newHalf(open func() bool) *half {
	h := &half{open: open}
	h.cond = sync.NewCond(&h.mu)
	return h
}

func (h *half) wake() {
	// Not under h.mu: callers hold the network's lock, which h.open takes below h.mu. A waiter can miss this one only between
	// its check and its Wait; the goroutine closes that gap.
	go func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.cond.Broadcast()
	}()
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (h *half) read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.shutRead:
			return 0, net.ErrClosed
		case h.broken:
			return 0, syscall.ECONNRESET
		case past(h.readBy):
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case (len(h.buf) > 0 || h.eof) && h.open():
			if len(h.buf) == 0 {
				return 0, io.EOF
			}
			n := copy(b, h.buf)
			h.buf = h.buf[n:]
			h.cond.Broadcast()
			return n, nil
		}
		h.cond.Wait()
	}
}

func (h *half) write(b []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.eof:
			return n, net.ErrClosed
		case h.broken, h.shutRead:
			return n, syscall.EPIPE
		case past(h.writeBy):
			return n, os.ErrDeadlineExceeded
		case len(b) == 0:
			return n, nil
		case len(h.buf) < bufferLen:
			k := min(len(b), bufferLen-len(h.buf))
			h.buf = append(h.buf, b[:k]...)
			b, n = b[k:], n+k
			h.cond.Broadcast()
			continue
		}
		h.cond.Wait()
	}
}

func (h *half) change(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	h.cond.Broadcast()
}

// conn is one end of a connection.
type conn struct {
	n       *Network
	owner   *Member
	peer    link.Peer
	in, out *half
}

// pipe makes both ends. Callers hold n.mu.
func (n *Network) pipe(a, b *Member) (*conn, *conn) {
	way := func(from, to cluster.NodeID) *half {
		return newHalf(func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.passes(from, to)
		})
	}
	ab, ba := way(a.self.ID, b.self.ID), way(b.self.ID, a.self.ID)
	ca := &conn{n: n, owner: a, peer: b.self, in: ba, out: ab}
	cb := &conn{n: n, owner: b, peer: a.self, in: ab, out: ba}
	n.conns[ca], n.conns[cb] = struct{}{}, struct{}{}
	return ca, cb
}

// forget drops ends from the network's list. Callers hold mu.
func (n *Network) forget(cs ...*conn) {
	for _, c := range cs {
		delete(n.conns, c)
	}
}

// Peer makes it known to link.PeerOf.
func (c *conn) Peer() link.Peer { return c.peer }

func (c *conn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *conn) Write(b []byte) (int, error) { return c.out.write(b) }

// CloseWrite ends this end's half.
func (c *conn) CloseWrite() error {
	c.out.change(func() { c.out.eof = true })
	return nil
}

func (c *conn) Close() error {
	c.out.change(func() { c.out.eof = true })
	c.in.change(func() { c.in.shutRead = true })
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.n.forget(c)
	return nil
}

// reset breaks both directions.
func (c *conn) reset() {
	for _, h := range []*half{c.in, c.out} {
		h.change(func() { h.broken = true })
	}
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.n.forget(c)
}

type addr string

func (addr) Network() string  { return "linktest" }
func (a addr) String() string { return string(a) }

func addrOf(p link.Peer) net.Addr {
	if len(p.Addrs) > 0 {
		return net.TCPAddrFromAddrPort(p.Addrs[0])
	}
	return addr(p.Name)
}

func (c *conn) LocalAddr() net.Addr  { return addrOf(c.owner.self) }
func (c *conn) RemoteAddr() net.Addr { return addrOf(c.peer) }

func (c *conn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.change(func() { c.in.readBy = t })
	wakeAt(c.in, t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.change(func() { c.out.writeBy = t })
	wakeAt(c.out, t)
	return nil
}

func wakeAt(h *half, t time.Time) {
	if !t.IsZero() {
		time.AfterFunc(time.Until(t), func() { h.change(func() {}) })
	}
}

// listener is one channel of one member.
type listener struct {
	m       *Member
	channel link.Channel
	allow   func(link.Peer) bool
	queue   chan *conn
	done    chan struct{}
	once    sync.Once
}

// Listener is as link.Mesh's.
func (m *Member) Listener(ch link.Channel, allow func(link.Peer) bool) net.Listener {
	m.n.mu.Lock()
	defer m.n.mu.Unlock()
	l := &listener{m: m, channel: ch, allow: allow, queue: make(chan *conn, 16), done: make(chan struct{})}
	if m.closed {
		l.once.Do(func() { close(l.done) })
		return l
	}
	if m.listeners[ch] != nil {
		panic(fmt.Sprintf("linktest: channel %s has a listener already", ch))
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
		l.m.n.mu.Lock()
		delete(l.m.listeners, l.channel)
		l.m.n.mu.Unlock()
		close(l.done)
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

func (l *listener) Addr() net.Addr { return addrOf(l.m.self) }
