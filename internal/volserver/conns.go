package volserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/internal/pki"
)

// What others can make this process do with connections.
const (
	maxHandshakes    = 8  // at once
	maxConns         = 64 // open
	handshakeTimeout = 3 * time.Second
)

// conns makes authenticated connections of the descriptors that the daemon passes.
type conns struct {
	h *host

	mu         sync.Mutex
	open       map[*streamConn]struct{}
	handshakes int
	done       uint64
	refused    uint64
}

// streamConn is a connection after TLS, which the daemon is told the end of.
type streamConn struct {
	net.Conn
	c    *conns
	id   uint64
	peer cluster.MemberNo
	raw  *net.TCPConn
	once sync.Once
}

func newConns(h *host) (*conns, error) {
	if _, err := pki.LoadIdentity(h.start.PKI); err != nil {
		return nil, err
	}
	return &conns{h: h, open: map[*streamConn]struct{}{}}, nil
}

func (c *conns) counts() (open int, done, refused uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open), c.done, c.refused
}

// take does the handshake of a passed connection on a goroutine of its own.
func (c *conns) take(m message) {
	if m.Conn == nil || len(m.files) != 1 {
		closeAll(m.files)
		return
	}
	raw, err := tcpOf(m.files[0])
	if err != nil {
		c.h.log.Debug("a passed connection", "err", err)
		return
	}
	c.mu.Lock()
	if c.handshakes >= maxHandshakes || len(c.open) >= maxConns {
		c.refused++
		c.mu.Unlock()
		c.over(*m.Conn, raw)
		return
	}
	c.handshakes++
	c.mu.Unlock()
	c.h.wg.Go(func() {
		err := c.greet(*m.Conn, raw)
		c.mu.Lock()
		c.handshakes--
		if err != nil {
			c.refused++
		} else {
			c.done++
		}
		c.mu.Unlock()
		if err != nil {
			c.h.log.Info("a connection for the volumes was not made", "incoming", m.Conn.Incoming, "remote", raw.RemoteAddr(), "err", err)
			c.over(*m.Conn, raw)
		}
	})
}

// over closes a connection that came to nothing.
func (c *conns) over(k Conn, raw *net.TCPConn) {
	raw.SetLinger(0)
	raw.Close()
	if k.ID != 0 {
		c.h.event(message{Kind: kindClosed, Conn: &Conn{ID: k.ID}})
	}
}

func tcpOf(f *os.File) (*net.TCPConn, error) {
	defer f.Close()
	nc, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	raw, ok := nc.(*net.TCPConn)
	if !ok {
		nc.Close()
		return nil, errors.New("the passed descriptor is no TCP connection")
	}
	return raw, nil
}

func (c *conns) greet(k Conn, raw *net.TCPConn) error {
	ctx, cancel := context.WithTimeout(c.h.ctx, handshakeTimeout)
	defer cancel()
	raw.SetNoDelay(true)
	cert, err := pki.LoadIdentity(c.h.start.PKI) // anew each time: it may have been renewed
	if err != nil {
		return err
	}
	var who Peer
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert.TLS()}, SessionTicketsDisabled: true}
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		p, err := c.verify(cert, s)
		if err == nil && !k.Incoming && p.Member != k.Peer {
			err = fmt.Errorf("%s answers there, and not the member that was dialled", p.Name)
		}
		who = p
		return err
	}
	var tc *tls.Conn
	if k.Incoming {
		cfg.ClientAuth = tls.RequireAnyClientCert
		cfg.NextProtos = []string{string(link.Stream)}
		tc = tls.Server(&prefixed{Conn: raw, first: k.First}, cfg)
	} else {
		cfg.InsecureSkipVerify = true // names are URIs: verified by VerifyConnection
		cfg.ServerName = c.h.start.Cluster
		cfg.NextProtos = []string{string(link.Stream), link.ServiceProto(c.h.start.No)}
		tc = tls.Client(raw, cfg)
	}
	if err := tc.HandshakeContext(ctx); err != nil {
		return err
	}
	if p := tc.ConnectionState().NegotiatedProtocol; p != string(link.Stream) {
		return fmt.Errorf("the other side speaks %q and not the channel %s", p, link.Stream)
	}
	s := &streamConn{Conn: tc, c: c, id: k.ID, peer: who.Member, raw: raw}
	c.mu.Lock()
	c.open[s] = struct{}{}
	c.mu.Unlock()
	c.h.eng.AddConn(who.Member, s, k.Incoming)
	return nil
}

// verify says which node of the service is at the other end.
func (c *conns) verify(cert *pki.Identity, s tls.ConnectionState) (Peer, error) {
	f := c.h.Facts()
	v := pki.Verifier{ClusterID: c.h.start.Cluster, Roots: cert.CAs, Now: func() time.Time {
		if at := time.UnixMilli(f.LogTime); at.After(time.Now()) {
			return at // never earlier than the newest entry of the log
		}
		return time.Now()
	}}
	who, err := v.Verify(s.PeerCertificates, cluster.RoleNode)
	if err != nil {
		return Peer{}, err
	}
	for _, p := range f.Peers {
		if p.ID == who.ID && p.Name == who.Name && p.Member != c.h.start.Self.Member {
			return p, nil
		}
	}
	return Peer{}, fmt.Errorf("%s is no other node of service %s", who.Name, c.h.start.Service)
}

// down gives a dialled connection up.
func (c *conns) down(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.open {
		if s.id == id && id != 0 {
			s.raw.SetLinger(0)
			s.raw.Close() // readers and writers return, and close it
		}
	}
}

// left gives up the connections to copies that the log no longer calls in sync: one that does not take what is sent would hold the others' writes
// back until its time is over. It connects again, and catches up.
func (c *conns) left(out cluster.MemberSet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.open {
		if out.Has(s.peer) {
			s.raw.SetLinger(0)
			s.raw.Close()
		}
	}
}

// Close ends the connection; the daemon's copy of the descriptor is gone already.
func (s *streamConn) Close() error {
	err := s.Conn.Close()
	s.once.Do(func() {
		s.c.mu.Lock()
		delete(s.c.open, s)
		s.c.mu.Unlock()
		if s.id != 0 {
			s.c.h.event(message{Kind: kindClosed, Conn: &Conn{ID: s.id}})
		}
	})
	return err
}

// NetConn is the TCP connection below.
func (s *streamConn) NetConn() net.Conn { return s.raw }

// prefixed gives back the bytes that the daemon has read.
type prefixed struct {
	net.Conn
	first []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 && len(b) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}
