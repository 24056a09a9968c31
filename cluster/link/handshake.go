package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
)

// Versions of the protocol behind TLS that this program speaks.
const (
	minVersion = 1
	maxVersion = 1
)

// hello is what the dialling side says first; who it is stands in its certificate.
type hello struct {
	MinVersion  int                 `json:"min"`
	MaxVersion  int                 `json:"max"`
	Incarnation cluster.Incarnation `json:"inc"`
	Run         RunID               `json:"run"`
	Path        uint8               `json:"path"` // as in datagrams
}

// answer is what the accepting side says to it.
type answer struct {
	Version     int                 `json:"v,omitempty"`
	Incarnation cluster.Incarnation `json:"inc,omitempty"`
	Run         RunID               `json:"run,omitzero"`
	Code        string              `json:"code,omitempty"` // of a refusal
	Text        string              `json:"text,omitempty"`
}

// credentials are the TLS settings of one certificate.
type credentials struct {
	members *tls.Config // server side, client certificate required
	joiners *tls.Config // server side, nobody asked who he is
	client  *tls.Config
}

func (m *Mesh) newCredentials(cert tls.Certificate) *credentials {
	base := tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		SessionTicketsDisabled: true, // each connection proves its key and is judged anew
	}
	c := &credentials{members: base.Clone(), joiners: base.Clone(), client: base.Clone()}
	// The chain is judged by ClusterIdentity.Verify: after the handshake here, so that a refusal can carry its reason, and
	// within it on the client, which shows its own certificate only to a member.
	c.members.ClientAuth = tls.RequireAnyClientCert
	c.members.NextProtos = memberProtos
	c.joiners.NextProtos = []string{string(Join)}
	c.client.ServerName = m.id.ClusterID
	c.client.InsecureSkipVerify = true // names are URIs: verified by VerifyConnection
	return c
}

// serve does the handshake of one accepted connection and hands it to its channel.
func (e *Endpoint) serve(ctx context.Context, raw *net.TCPConn) {
	if !e.track(raw) {
		return
	}
	kept := false
	defer func() {
		e.untrack(raw)
		if !kept {
			raw.Close()
		}
	}()
	raw.SetDeadline(time.Now().Add(e.limits.HandshakeTimeout))
	running := ctx
	ctx, cancel := context.WithTimeout(ctx, e.limits.HandshakeTimeout)
	defer cancel()

	var first [1]byte
	if _, err := io.ReadFull(raw, first[:]); err != nil {
		e.count.failed.Add(1)
		return
	}
	if first[0] == classProbe {
		e.probeConn(raw)
		return
	}
	var m *Mesh
	var service cluster.ServiceNo
	heard := &overheard{Conn: &prefixed{Conn: quiet(raw), first: first[:]}, limit: maxOverheard}
	tc := tls.Server(heard, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			if m = e.mesh(h.ServerName); m == nil {
				return nil, fmt.Errorf("no cluster %q here", h.ServerName)
			}
			var ok bool
			if service, ok = heard.handOver(m, h); ok {
				return nil, errHandedOver
			}
			heard.limit, heard.seen = 0, nil
			if slices.Contains(h.SupportedProtos, string(Join)) && m.joins() != nil {
				return m.creds.Load().joiners, nil
			}
			return m.creds.Load().members, nil
		},
	})
	if err := tc.HandshakeContext(ctx); err != nil {
		if heard.gone {
			kept = e.handTo(m, raw, service, heard.seen) == nil
			return
		}
		e.count.failed.Add(1)
		e.log.Debug("handshake", "remote", raw.RemoteAddr(), "error", err)
		return
	}
	state := tc.ConnectionState()
	if state.NegotiatedProtocol == string(Join) {
		m.serveJoin(running, tc, raw)
		return
	}
	c := &Conn{Conn: tc, raw: raw, m: m, channel: Channel(state.NegotiatedProtocol), born: e.now(), theirs: true}
	err := c.welcome(ctx, state)
	if err != nil {
		m.log.Debug("connection refused", "remote", raw.RemoteAddr(), "channel", c.channel, "peer", c.peer.Name, "error", err)
		return
	}
	e.count.handshakes.Add(1)
	kept = true
}

// prefixed gives back the byte that was read to tell what a connection is.
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

// welcome finds out who dialled, decides, and answers. If it returns nil, the connection belongs to its channel.
func (c *Conn) welcome(ctx context.Context, state tls.ConnectionState) error {
	e, m := c.m.e, c.m
	var h hello
	err := readMessage(c.Conn, &h, maxHello)
	if err != nil {
		e.count.failed.Add(1)
		return err
	}
	l, err := c.judge(ctx, state, &h)
	if err == nil && c.channel == Lease {
		return c.serveLease(m.ownAnswer())
	}
	if err == nil && !c.register() {
		return ErrClosed
	}
	if err == nil {
		if err = writeMessage(c.Conn, m.ownAnswer(), maxHello); err == nil {
			c.raw.SetDeadline(time.Time{})
			if err = l.offer(c); err == nil {
				return nil
			}
		}
		c.forget()
		e.count.refused.Add(1)
		return err
	}
	e.count.refused.Add(1)
	var r *RefusedError
	if !errors.As(err, &r) {
		r = &RefusedError{codeBusy, err.Error()}
	}
	text := r.Text
	writeMessage(c.Conn, answer{Code: r.Code, Text: text[:min(len(text), 1000)]}, maxHello)
	c.Conn.CloseWrite() // so that the answer is not lost to a reset
	return err
}

func (m *Mesh) ownAnswer() answer {
	return answer{Version: maxVersion, Incarnation: m.id.Incarnation, Run: m.id.Run}
}

// judge fills in who c is, and refuses whom the channel is not for.
func (c *Conn) judge(ctx context.Context, state tls.ConnectionState, h *hello) (*listener, error) {
	e, m := c.m.e, c.m
	who, err := m.id.Verify(state.PeerCertificates)
	if err != nil {
		return nil, &RefusedError{codeCertificate, err.Error()}
	}
	c.peer, c.run = Peer{ID: who.ID, Name: who.Name, Role: who.Role}, h.Run
	if h.MinVersion > maxVersion || h.MaxVersion < minVersion {
		return nil, &RefusedError{codeVersion, fmt.Sprintf("%s speaks link protocol %d to %d, %s speaks %d to %d: update the older one",
			who.Name, h.MinVersion, h.MaxVersion, m.self.Name, minVersion, maxVersion)}
	}
	if who.ID == m.self.ID {
		e.count.secondRuns.Add(1)
		return nil, &RefusedError{codeSecondRun, fmt.Sprintf("%s itself: %v", who.Name, ErrSecondRun)}
	}
	if c.member = m.member(who.ID); c.member != nil {
		if err := c.knownMember(ctx, h); err != nil {
			return nil, err
		}
	}
	if c.channel == Lease {
		if c.member == nil {
			return nil, &RefusedError{codeNotMember, fmt.Sprintf("%s does not know %s (%v) as a member yet", m.self.Name, who.Name, who.ID)}
		}
		return nil, nil
	}
	return m.admits(c)
}

// knownMember compares the certificate with the list of members and admits the run.
func (c *Conn) knownMember(ctx context.Context, h *hello) error {
	p := c.member
	if p.name != c.peer.Name || p.role != c.peer.Role {
		return &RefusedError{codeNotAllowed, fmt.Sprintf("certificate says %s (%v), the cluster knows this id as %s (%v)", c.peer.Name, c.peer.Role, p.name, p.role)}
	}
	c.peer = p.peer()
	_, c.path = p.pathBy(h.Path)
	if err := p.admit(ctx, h.Incarnation, h.Run); err != nil {
		if errors.Is(err, ErrSecondRun) {
			c.m.e.count.secondRuns.Add(1)
			c.m.log.Warn("refused a second run of a member", "peer", p.name, "remote", c.raw.RemoteAddr(), "incarnation", h.Incarnation, "error", err)
			return &RefusedError{codeSecondRun, err.Error()}
		}
		return err
	}
	return nil
}

// admits asks the channel's listener.
func (m *Mesh) admits(c *Conn) (*listener, error) {
	m.mu.Lock()
	l, open := m.listeners[c.channel], m.accepted[c.channel]
	m.mu.Unlock()
	switch {
	case l == nil:
		return nil, &RefusedError{codeChannel, fmt.Sprintf("%s does not serve %s now", m.self.Name, c.channel)}
	case l.allow == nil && c.member == nil:
		return nil, &RefusedError{codeNotMember, fmt.Sprintf("%s does not know %s as a member", m.self.Name, c.peer.Name)}
	case l.allow != nil && !l.allow(c.peer):
		return nil, &RefusedError{codeNotAllowed, fmt.Sprintf("%s (%v) may not use %s on %s", c.peer.Name, c.peer.Role, c.channel, m.self.Name)}
	case open >= m.e.limits.Conns:
		return nil, &RefusedError{codeBusy, fmt.Sprintf("%s has %d connections for %s, the most it takes", m.self.Name, open, c.channel)}
	}
	return l, nil
}

// verifyServer is the client's half: the server must be the member that was dialled.
func (p *member) verifyServer(chain []*x509.Certificate) error {
	who, err := p.m.id.Verify(chain)
	if err != nil {
		return err
	}
	if who.ID != p.id || who.Name != p.name || who.Role != p.role {
		return fmt.Errorf("%s (%v, id %v) answers there, not %s (%v, id %v)", who.Name, who.Role, who.ID, p.name, p.role, p.id)
	}
	return nil
}
