package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
)

// Raw is a TCP connection of the channel Stream on which this process does no TLS: it belongs to the volume server of a service, which does (same
// certificate, same verification, member pinned). The volume server names the service in the ClientHello (RFC 8446 section 4.1.2) by a second
// ALPN name beside that of the channel, so that the other end knows whose it is without a key.
//
// Whoever takes one closes Conn, and calls Forget when the connection is over.
type Raw struct {
	Conn    *net.TCPConn
	First   []byte            // what was read of an accepted connection already
	Service cluster.ServiceNo // whose it is
	Peer    cluster.NodeID    // who was dialled; zero for an accepted one, whose peer TLS will tell

	member *member
	path   *path
	born   cluster.Instant
	down   func()
}

// maxRaw bounds how many dialled connections to one member are watched: more than it has services.
const maxRaw = 256

// ServiceProto is the ALPN name by which a connection of the channel Stream says whose it is.
func ServiceProto(no cluster.ServiceNo) string { return string(Stream) + "/" + strconv.Itoa(int(no)) }

// serviceOf reads the ALPN names of a ClientHello: those of a hand-over are the channel's and one that names the service.
func serviceOf(protos []string) (cluster.ServiceNo, bool) {
	if len(protos) != 2 || protos[0] != string(Stream) {
		return 0, false
	}
	digits, ok := strings.CutPrefix(protos[1], string(Stream)+"/")
	n, err := strconv.ParseUint(digits, 10, 32)
	return cluster.ServiceNo(n), ok && err == nil && n != 0
}

// HandOver gives accepted connections of the channel Stream to take, which decides quickly and says with an error that nobody wants it; the
// connection is closed then. It is called on the goroutine of the handshake, of which there are few at a time. nil: they are refused.
func (m *Mesh) HandOver(take func(Raw) error) {
	if take == nil {
		m.handOver.Store(nil)
		return
	}
	m.handOver.Store(&take)
}

var errHandedOver = errors.New("the connection belongs to a volume server")

// overheard is an accepted connection whose first bytes are kept, and to which nothing is written once it is somebody else's.
type overheard struct {
	net.Conn
	seen  []byte
	gone  bool
	limit int
}

func (o *overheard) Read(b []byte) (int, error) {
	n, err := o.Conn.Read(b)
	if !o.gone && o.limit > 0 {
		o.limit -= n
		o.seen = append(o.seen, b[:n]...)
	}
	return n, err
}

func (o *overheard) Write(b []byte) (int, error) {
	if o.gone {
		return len(b), nil // the alert that ends our part of the handshake
	}
	return o.Conn.Write(b)
}

// maxOverheard is more than a ClientHello of ours has.
const maxOverheard = 16 << 10

// handOver says whether a ClientHello asks for a volume server of this mesh, and which.
func (o *overheard) handOver(m *Mesh, h *tls.ClientHelloInfo) (cluster.ServiceNo, bool) {
	no, ok := serviceOf(h.SupportedProtos)
	o.gone = ok && m.handOver.Load() != nil && o.limit > 0
	return no, o.gone
}

// handTo gives a connection away.
func (e *Endpoint) handTo(m *Mesh, raw *net.TCPConn, no cluster.ServiceNo, seen []byte) error {
	take := m.handOver.Load()
	if take == nil {
		return ErrClosed
	}
	raw.SetDeadline(time.Time{})
	if err := (*take)(Raw{Conn: raw, First: seen, Service: no}); err != nil {
		e.count.handOversRefused.Add(1)
		m.log.Debug("a connection for a volume was refused", "remote", raw.RemoteAddr(), "service_no", no, "error", err)
		return err
	}
	e.count.handOvers.Add(1)
	return nil
}

// DialStream connects to a member for the volume server of a service, on the best path as Dial does, without TLS. down is called, at most once and on a
// goroutine that must not be held up, when the path has failed while another one works, or when the member is one no longer: the connection is to
// be given up, and dialled again if it is still wanted.
func (m *Mesh) DialStream(ctx context.Context, to cluster.NodeID, no cluster.ServiceNo, down func()) (*Raw, error) {
	p := m.member(to)
	if p == nil {
		return nil, fmt.Errorf("dial %v for the volumes of service %d: %w", to, no, ErrUnknownPeer)
	}
	c, err := p.dialBy(ctx, Stream, func(_ context.Context, raw *net.TCPConn, q *path) (*Conn, error) {
		return &Conn{raw: raw, m: m, path: q, channel: Stream}, nil
	})
	if err != nil {
		return nil, err
	}
	r := &Raw{Conn: c.raw, Service: no, Peer: to, member: p, path: c.path, born: m.e.now(), down: down}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.removed || len(p.raws) >= maxRaw {
		abort(c.raw)
		return nil, fmt.Errorf("dial %s for the volumes of service %d: it is no member any more, or has %d such connections", p.name, no, len(p.raws))
	}
	p.raws[r] = struct{}{}
	return r, nil
}

// Forget ends the watch over a dialled connection.
func (r *Raw) Forget() {
	if r.member == nil {
		return
	}
	r.member.mu.Lock()
	delete(r.member.raws, r)
	r.member.mu.Unlock()
}

// strandedRaw takes out those dialled connections whose path has failed.
func (p *member) strandedRaw(fails func(*Raw) bool) (out []*Raw) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for r := range p.raws {
		if fails(r) {
			delete(p.raws, r)
			out = append(out, r)
		}
	}
	return out
}
