package link_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/internal/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is one cluster's authority and the machines that a test starts on loopback addresses.
type world struct {
	t       testing.TB
	ca      *pki.Authority
	wall    atomic.Int64
	limits  link.Limits
	revoked atomic.Pointer[string]
}

func newWorld(t testing.TB) *world {
	w := &world{t: t}
	w.wall.Store(time.Now().UnixNano())
	ca, err := pki.NewAuthority(pki.NewClusterID(), w.now())
	if err != nil {
		t.Fatal(err)
	}
	w.ca = ca
	return w
}

func (w *world) now() time.Time { return time.Unix(0, w.wall.Load()) }

// verify is what the wiring gives to every member.
func (w *world) verify(chain []*x509.Certificate) (link.Peer, error) {
	v := pki.Verifier{ClusterID: w.ca.ClusterID, Roots: []*x509.Certificate{w.ca.Cert}, Now: w.now, Revoked: func(s string) bool {
		r := w.revoked.Load()
		return r != nil && *r == s
	}}
	s, err := v.Verify(chain)
	return link.Peer{ID: s.ID, Name: s.Name, Role: s.Role}, err
}

// person is a name with its key and certificate.
type person struct {
	name string
	role cluster.Role
	id   cluster.NodeID
	key  crypto.Signer
	cert *pki.Identity
	inc  cluster.Incarnation
}

func (w *world) person(name string, role cluster.Role) *person {
	w.t.Helper()
	return w.personOf(w.ca, name, role)
}

func (w *world) personOf(ca *pki.Authority, name string, role cluster.Role) *person {
	w.t.Helper()
	p := &person{name: name, role: role, id: pki.NewNodeID(), key: pki.NewKey()}
	s := pki.Subject{ClusterID: ca.ClusterID, Role: role, Name: name, ID: p.id}
	req, err := pki.NewRequest(p.key, s)
	if err != nil {
		w.t.Fatal(err)
	}
	cert, err := ca.Sign(req, s, w.now())
	if err != nil {
		w.t.Fatal(err)
	}
	if p.cert, err = pki.NewIdentity(cert, p.key, []*x509.Certificate{ca.Cert}); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// host is one run of a person's daemon.
type host struct {
	*link.Mesh
	t      testing.TB
	person *person
	e      *link.Endpoint
	stop   func()
	got    chan link.Datagram // payloads copied
}

var (
	oneLink  = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	twoLinks = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("127.0.0.2:0")}
)

// start runs p on listen; each run has the next incarnation.
func (w *world) start(p *person, listen []netip.AddrPort) *host {
	w.t.Helper()
	p.inc++
	return w.startAs(p, listen, link.ClusterIdentity{})
}

func (w *world) startAs(p *person, listen []netip.AddrPort, id link.ClusterIdentity) *host {
	w.t.Helper()
	e, err := link.Listen(link.Config{Listen: listen, Limits: w.limits, Log: testLog(w.t, p.name), Wall: w.now})
	if err != nil {
		w.t.Fatal(err)
	}
	h := w.add(e, p, id)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	stopped := false
	h.stop = func() {
		cancel()
		if !stopped {
			stopped = true
			if err := <-done; err != nil {
				w.t.Errorf("%s: Run: %v", p.name, err)
			}
		}
	}
	w.t.Cleanup(h.stop)
	return h
}

// add makes p a member on an endpoint that may serve others too.
func (w *world) add(e *link.Endpoint, p *person, id link.ClusterIdentity) *host {
	w.t.Helper()
	id.ClusterID, id.Certificate = p.cert.Subject.ClusterID, p.cert.TLS()
	id.Self = link.Peer{ID: p.id, Name: p.name, Role: p.role, Addrs: id.Self.Addrs}
	if id.Incarnation == 0 {
		id.Incarnation = p.inc
	}
	if id.Verify == nil {
		id.Verify = w.verify
	}
	m, err := e.AddCluster(id)
	if err != nil {
		w.t.Fatal(err)
	}
	h := &host{Mesh: m, t: w.t, person: p, e: e, got: make(chan link.Datagram, 10000)}
	m.SetBeat(25 * time.Millisecond)
	m.Receive(func(d link.Datagram) {
		d.Payload = append([]byte(nil), d.Payload...)
		select {
		case h.got <- d:
		default:
		}
	})
	return h
}

func testLog(t testing.TB, name string) *slog.Logger {
	if os.Getenv("LINK_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", name)
}

// introduce makes all hosts know each other.
func introduce(hosts ...*host) {
	var peers []link.Peer
	for _, h := range hosts {
		peers = append(peers, h.Self())
	}
	for _, h := range hosts {
		h.SetPeers(peers)
	}
}

// within waits for a condition.
func within(t testing.TB, d time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > d {
			t.Fatalf("not within %v: %s", d, what)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(start)
}

// links are h's paths to p.
func (h *host) links(p *person) []link.LinkState {
	var out []link.LinkState
	for _, l := range h.Links() {
		if l.Peer == p.id {
			out = append(out, l)
		}
	}
	return out
}

func (h *host) up(p *person) int {
	n := 0
	for _, l := range h.links(p) {
		if l.Up {
			n++
		}
	}
	return n
}

func (h *host) keyed(p *person) bool {
	ls := h.links(p)
	return len(ls) > 0 && ls[0].Keyed
}

// receive waits for the next datagram.
func (h *host) receive() link.Datagram {
	h.t.Helper()
	select {
	case d := <-h.got:
		return d
	case <-time.After(5 * time.Second):
		h.t.Fatalf("%s received nothing", h.person.name)
		return link.Datagram{}
	}
}

// echo serves a channel by sending back what comes.
func (h *host) echo(ch link.Channel, allow func(link.Peer) bool) {
	l := h.Listener(ch, allow)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 1024)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					c.Write(b[:n])
				}
			}()
		}
	}()
}

func ask(t testing.TB, c net.Conn, text string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	defer c.SetDeadline(time.Time{})
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatalf("write: %v", err)
	}
	b := make([]byte, len(text))
	for n := 0; n < len(b); {
		k, err := c.Read(b[n:])
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		n += k
	}
	if string(b) != text {
		t.Fatalf("answer %q to %q", b, text)
	}
}

func dial(t testing.TB, from, to *host, ch link.Channel) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, to.person.id, ch)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
