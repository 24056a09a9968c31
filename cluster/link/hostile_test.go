package link_test

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/internal/pki"
)

// knock connects as p to h on a channel and says hello, byte by byte as the wire has it.
func knock(t *testing.T, h *host, p *person, ch string, hello string) (reply string, err error) {
	t.Helper()
	cfg := &tls.Config{ServerName: h.person.cert.Subject.ClusterID, NextProtos: []string{ch}, InsecureSkipVerify: true}
	if p != nil {
		cfg.Certificates = []tls.Certificate{p.cert.TLS()}
	}
	c, err := tls.Dial("tcp", h.e.Addrs()[0].String(), cfg)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte(hello)); err != nil {
		return "", err
	}
	var head [8]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return "", err
	}
	b := make([]byte, min(binary.BigEndian.Uint32(head[4:]), 1<<16))
	_, err = io.ReadFull(c, b)
	return string(b), err
}

func frame(body string) string {
	return string(binary.BigEndian.AppendUint32([]byte("hnf1"), uint32(len(body)))) + body
}

const goodHello = `{"min":1,"max":1,"inc":1,"run":"00112233445566778899aabbccddeeff","path":0}`

func TestOnlyMembersOfThisClusterGetIn(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.person("a", cluster.RoleNode), oneLink)
	b, wit := w.person("b", cluster.RoleNode), w.person("w", cluster.RoleWitness)
	operator := w.person("alice", pki.RoleOperator)
	stranger := w.person("c", cluster.RoleNode)
	other := newWorld(t)
	foreign := other.person("b", cluster.RoleNode)
	foreign.id = b.id
	liar := w.person("b2", cluster.RoleNode) // listed under another name
	a.SetPeers([]link.Peer{{ID: b.id, Name: "b", Role: cluster.RoleNode}, {ID: wit.id, Name: "w", Role: cluster.RoleWitness}, {ID: liar.id, Name: "d", Role: cluster.RoleNode}})
	l := a.Listener(link.Stream, func(p link.Peer) bool { return p.Role == cluster.RoleNode && p.Name != "c" })
	a.Listener(link.Raft, nil)
	a.Listener(link.API, func(p link.Peer) bool { return p.Role == pki.RoleOperator })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "!")
			c.Close()
		}
	}()
	for _, c := range []struct {
		what    string
		who     *person
		channel link.Channel
		want    string // in the reply
	}{
		{"a node on stream", b, link.Stream, `"v":1`},
		{"a witness on stream", wit, link.Stream, "not-allowed"},
		{"an operator on the API", operator, link.API, `"v":1`},
		{"an operator on raft", operator, link.Raft, "not-member"},
		{"a node on the operators' API", b, link.API, "not-allowed"},
		{"somebody not listed on raft", stranger, link.Raft, "not-member"},
		{"somebody not listed wants keys", stranger, link.Lease, "not-member"},
		{"another authority", foreign, link.Raft, "certificate"},
		{"another name than listed", liar, link.Raft, "not-allowed"},
		{"a channel that is not served", b, link.Memory, `"channel"`},
	} {
		reply, err := knock(t, a, c.who, string(c.channel), frame(goodHello))
		if !strings.Contains(reply, c.want) {
			t.Errorf("%s: %q, %v; want %s", c.what, reply, err, c.want)
		}
	}
	if reply, err := knock(t, a, nil, "raft", frame(goodHello)); err == nil {
		t.Errorf("without a certificate: %q", reply)
	}
	if reply, err := knock(t, a, b, "join", frame(goodHello)); err == nil {
		t.Errorf("join while it is off: %q", reply)
	}
	serial := pki.Serial(b.cert.Cert)
	w.revoked.Store(&serial)
	if reply, err := knock(t, a, b, "stream", frame(goodHello)); !strings.Contains(reply, "revoked") {
		t.Errorf("a revoked certificate: %q, %v", reply, err)
	}
}

func TestAnExpiredCertificateOpensNothingNewAndEndsNothingOld(t *testing.T) {
	w, a, b := pair(t, oneLink)
	b.echo(link.Raft, nil)
	introduce(a, b)
	keyedBoth(t, a, b)
	c := dial(t, a, b, link.Raft)
	w.wall.Add(int64(365 * 24 * time.Hour))
	if _, err := a.Dial(t.Context(), b.person.id, link.Raft); err == nil || !strings.Contains(err.Error(), "clocks") {
		t.Errorf("a dial a year later: %v", err)
	}
	if reply, _ := knock(t, b, a.person, "raft", frame(goodHello)); !strings.Contains(reply, "certificate") {
		t.Errorf("an accept a year later: %q", reply)
	}
	ask(t, c, "the open connection lives")
	a.Send(b.person.id, 1, nil)
	b.receive()
	// A renewed certificate helps without a restart.
	for _, h := range []*host{a, b} {
		s := h.person.cert.Subject
		req, _ := pki.NewRequest(h.person.key, s)
		cert, err := w.ca.Sign(req, s, w.now())
		if err != nil {
			t.Fatal(err)
		}
		h.person.cert.Cert = cert
		h.Renew(h.person.cert.TLS())
	}
	ask(t, dial(t, a, b, link.Raft), "renewed")
}

func TestADialledAddressMustBeTheMemberItself(t *testing.T) {
	w, a, b := pair(t, oneLink)
	c := w.person("c", cluster.RoleNode)
	a.SetPeers([]link.Peer{{ID: c.id, Name: "c", Role: cluster.RoleNode, Addrs: b.e.Addrs()}})
	if _, err := a.Dial(t.Context(), c.id, link.Raft); err == nil || !strings.Contains(err.Error(), "not c") {
		t.Errorf("b answered for c: %v", err)
	}
	self := a.Self()
	self.ID, self.Name = w.person("x", cluster.RoleNode).id, "x"
	a.SetPeers([]link.Peer{self})
	if _, err := a.Dial(t.Context(), self.ID, link.Raft); err == nil {
		t.Error("a took itself for x")
	}
}

func TestSlowAndFloodingClientsAreDisconnected(t *testing.T) {
	w := newWorld(t)
	w.limits = link.Limits{HandshakeTimeout: 700 * time.Millisecond, HandshakesPerIP: 4}
	a := w.start(w.person("a", cluster.RoleNode), oneLink)
	b := w.start(w.person("b", cluster.RoleNode), []netip.AddrPort{netip.MustParseAddrPort("127.0.0.3:0")})
	a.echo(link.Raft, nil)
	introduce(a, b)
	keyedBoth(t, a, b)
	var slow []net.Conn
	start := time.Now()
	for i := range 8 {
		c, err := net.Dial("tcp", a.e.Addrs()[0].String())
		if err != nil {
			continue // reset already
		}
		defer c.Close()
		slow = append(slow, c)
		if i%2 == 0 {
			c.Write([]byte{0x16, 3, 1}) // the beginning of a ClientHello
		}
	}
	within(t, 5*time.Second, "four of eight are closed unread", func() bool { return a.e.Counters().Flooded == 4 })
	ask(t, dial(t, b, a, link.Raft), "others are served meanwhile")
	for _, c := range slow {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a silent connection stays open")
		}
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("they were kept for %v", took)
	}
	// One byte at a time is as slow.
	c, err := tls.Dial("tcp", a.e.Addrs()[0].String(), &tls.Config{ServerName: w.ca.ClusterID, NextProtos: []string{"raft"},
		InsecureSkipVerify: true, Certificates: []tls.Certificate{b.person.cert.TLS()}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	start = time.Now()
	for _, ch := range []byte(frame(goodHello)) {
		if _, err = c.Write([]byte{ch}); err != nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err == nil || time.Since(start) > 3*time.Second {
		t.Errorf("a hello of one byte each 50 ms was read to its end: %v after %v", err, time.Since(start))
	}
}

func TestMalformedHellosAndDatagramsAreCountedAndHarmless(t *testing.T) {
	_, a, b := pair(t, oneLink)
	introduce(a, b)
	keyedBoth(t, a, b)
	b.echo(link.Raft, nil)
	before := b.e.Counters().HandshakesFailed
	bad := []string{
		"", "hnf1", "GET / HTTP/1.1\r\n\r\n", "hnf1\xff\xff\xff\xff", "hnf1\x80\x00\x00\x00", "hnf1\x00\x00\x08\x01", frame("{"), frame("[]"),
		frame(`{"run":"zz"}`), frame(`{"path":300}`), frame(strings.Repeat("[", 2000)), "xxxx\x00\x00\x00\x02{}",
	}
	for _, s := range bad {
		// A client that ends early is a short hello; ReadAll returns when the server closes.
		func() {
			c, err := tls.Dial("tcp", b.e.Addrs()[0].String(), &tls.Config{ServerName: a.person.cert.Subject.ClusterID, NextProtos: []string{"raft"},
				InsecureSkipVerify: true, Certificates: []tls.Certificate{a.person.cert.TLS()}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write([]byte(s))
			c.CloseWrite()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if got, err := io.ReadAll(c); len(got) > 0 || err != nil && strings.Contains(err.Error(), "timeout") {
				t.Errorf("hello %.20q was answered: %q, %v", s, got, err)
			}
		}()
	}
	if n := b.e.Counters().HandshakesFailed - before; n != uint64(len(bad)) {
		t.Errorf("%d of %d counted", n, len(bad))
	}
	raw, err := net.Dial("udp", b.e.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	junk := make([]byte, 1500)
	for n := range 400 {
		rand.Read(junk)
		copy(junk, []string{"Lhn\x01", "Ghn\x01", "Phn\x01", "", "L"}[n%5])
		raw.Write(junk[:n*1500/400])
		if n%50 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	a.Send(b.person.id, 1, []byte("still well"))
	if d := b.receive(); string(d.Payload) != "still well" {
		t.Errorf("%q", d.Payload)
	}
	c := b.e.Counters()
	if c.DatagramsMalformed == 0 || c.DatagramsNoKey == 0 {
		t.Errorf("nothing counted: %+v", c)
	}
}

func TestConnectionsPerChannelAreBounded(t *testing.T) {
	w := newWorld(t)
	w.limits = link.Limits{Conns: 3}
	a := w.start(w.person("a", cluster.RoleNode), oneLink)
	b := w.start(w.person("b", cluster.RoleNode), oneLink)
	b.echo(link.Raft, nil)
	b.echo(link.API, nil)
	introduce(a, b)
	var cs []net.Conn
	for range 3 {
		cs = append(cs, dial(t, a, b, link.Raft))
	}
	var refused *link.RefusedError
	if _, err := a.Dial(t.Context(), b.person.id, link.Raft); !errors.As(err, &refused) || refused.Code != "busy" {
		t.Errorf("the fourth: %v", err)
	}
	ask(t, dial(t, a, b, link.API), "another channel has its own")
	cs[0].Close()
	within(t, 5*time.Second, "a closed one makes room", func() bool {
		c, err := a.Dial(t.Context(), b.person.id, link.Raft)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}
