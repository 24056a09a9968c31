package link

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
)

// JoinHandler decides who may join.
type JoinHandler struct {
	// Authorize looks the token up without using it up, and checks that name, role and clock are possible. Errors: ErrBadToken,
	// *TryElsewhere, or a refusal whose text the joiner sees.
	Authorize func(context.Context, JoinRequest) error
	// Admit is called when all ports have answered: it uses the token up, signs, and makes the member known. It must give the
	// same answer again to the same request, because the first may be lost on its way.
	Admit func(context.Context, JoinRequest) (JoinAnswer, error)
}

// joinServer is the serving side of one mesh.
type joinServer struct {
	h       JoinHandler
	guesses guesses
	slots   chan struct{} // joins under way
}

// ServeJoin lets new members join through this one; nil ends that.
func (m *Mesh) ServeJoin(h *JoinHandler) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case h == nil:
		m.join = nil
	case m.join != nil: // what it knows of guesses stays
		m.join.h = *h
	default:
		m.join = &joinServer{h: *h, guesses: guesses{max: m.e.limits.JoinGuesses}, slots: make(chan struct{}, 4)}
	}
}

func (m *Mesh) joins() *joinServer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.join
}

// serveJoin answers one joiner, within a time that each step bounds anew.
func (m *Mesh) serveJoin(ctx context.Context, c *tls.Conn, raw *net.TCPConn) {
	from := netip.AddrPortFrom(remoteIP(raw), 0)
	js := m.joins()
	if js == nil {
		return
	}
	m.mu.Lock()
	h := js.h
	m.mu.Unlock()
	reply, req, err := m.joinSteps(ctx, js, h, c, raw, from)
	if err != nil {
		m.e.count.joinsRefused.Add(1)
		m.log.Warn("join refused", "name", req.Name, "remote", raw.RemoteAddr(), "why", err)
		reply = refusal(err)
	}
	raw.SetDeadline(time.Now().Add(m.e.limits.HandshakeTimeout))
	if err := writeMessage(c, reply, maxJoin); err != nil {
		m.log.Warn("the answer to a join was not sent; the joiner may ask again", "name", req.Name, "remote", raw.RemoteAddr(), "error", err)
		return
	}
	if reply.Code == "" {
		m.log.Info("a member joined", "name", req.Name, "role", req.Role, "addresses", req.Addrs)
	}
	c.CloseWrite()
	io.Copy(io.Discard, io.LimitReader(raw, maxJoin)) // until the joiner has closed: a reset could overtake the answer
}

func (m *Mesh) joinSteps(ctx context.Context, js *joinServer, h JoinHandler, c *tls.Conn, raw *net.TCPConn, from netip.AddrPort) (joinReply, JoinRequest, error) {
	now := m.e.now()
	if wait := js.guesses.locked(from.Addr(), now); wait > 0 {
		return joinReply{}, JoinRequest{}, &RefusedError{codeBusy, fmt.Sprintf("too many wrong tokens came from %v: locked out for %v", from.Addr(), wait.Round(time.Second))}
	}
	select {
	case js.slots <- struct{}{}:
		defer func() { <-js.slots }()
	default:
		return joinReply{}, JoinRequest{}, &RefusedError{codeBusy, "other members are joining at this moment: try again"}
	}
	var w joinMessage
	if err := readMessage(c, &w, maxJoin); err != nil {
		return joinReply{}, JoinRequest{}, err
	}
	req, err := w.decode(from)
	if err != nil {
		return joinReply{}, req, err
	}
	if skew := req.Clock.Sub(m.e.wall()); skew.Abs() > maxSkew {
		return joinReply{}, req, fmt.Errorf("the clock of %s differs from that of %s by %v: set it (NTP), certificates need it within %v", req.Name, m.self.Name, skew.Round(time.Second), maxSkew)
	}
	raw.SetDeadline(time.Now().Add(2*joinTimeout + 2*m.e.limits.ProbeTimeout))
	actx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := h.Authorize(actx, req); err != nil {
		if errors.Is(err, ErrBadToken) {
			m.e.count.joinGuesses.Add(1)
			js.guesses.wrong(from.Addr(), now)
		}
		return joinReply{}, req, err
	}
	if err := m.joinProbes(ctx, c, req, w.Nonce); err != nil {
		return joinReply{}, req, err
	}
	bctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	a, err := h.Admit(bctx, req)
	if err != nil {
		return joinReply{}, req, err
	}
	return joinReply{Name: m.self.Name, Cert: a.Cert, CAs: a.CAs, Data: a.Data}, req, nil
}

// joinProbes makes both sides try each other's ports at the same time.
func (m *Mesh) joinProbes(ctx context.Context, c *tls.Conn, req JoinRequest, theirs []byte) error {
	nonce := make([]byte, nonceLen)
	rand.Read(nonce)
	defer m.e.expectProbesAt(m.self.Addrs, nonce)()
	if err := writeMessage(c, joinReply{Name: m.self.Name, Nonce: nonce, Addrs: m.self.Addrs}, maxJoin); err != nil {
		return err
	}
	failed := m.e.probeAll(ctx, m.self.Addrs, req.Addrs, theirs, m.self.Name, req.Name)
	var report joinReport
	if err := readMessage(c, &report, maxJoin); err != nil {
		return fmt.Errorf("%s told nothing of its tries: %w", req.Name, err)
	}
	if failed = append(failed, report.Failures[:min(len(report.Failures), maxReports)]...); len(failed) > 0 {
		return fmt.Errorf("%d of the ports between %s and %s do not answer:\n%s", len(failed), m.self.Name, req.Name, strings.Join(failed, "\n"))
	}
	return nil
}

// refusal is err as the joiner sees it.
func refusal(err error) joinReply {
	var r *RefusedError
	var elsewhere *TryElsewhere
	switch {
	case errors.Is(err, ErrBadToken):
		return joinReply{Code: codeToken, Text: ErrBadToken.Error()}
	case errors.As(err, &elsewhere):
		return joinReply{Code: codeElsewhere, Text: err.Error(), Elsewhere: elsewhere.Addrs}
	case errors.As(err, &r):
		return joinReply{Code: r.Code, Text: r.Text}
	}
	text := err.Error()
	return joinReply{Code: codeNotAllowed, Text: text[:min(len(text), 8<<10)]}
}

// guesses counts wrong tokens by source. A source with too many within a minute is locked out, for a minute first and then
// for twice as long each time, at most an hour. When the table is full, new sources count as one.
type guesses struct {
	max int
	mu  sync.Mutex
	by  map[netip.Prefix]*guesser
}

type guesser struct {
	since cluster.Instant // of the first in this minute
	n     int
	locks int
	until cluster.Instant
}

const (
	guessWindow  = time.Minute
	guessLock    = time.Minute
	guessLockMax = time.Hour
	guessSources = 1024
)

// source is what counts as one: an IPv4 address or an IPv6 network of 64 bits.
func (g *guesses) source(ip netip.Addr, now cluster.Instant) *guesser {
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits)
	if g.by == nil {
		g.by = map[netip.Prefix]*guesser{}
	}
	if s := g.by[p]; s != nil {
		return s
	}
	if len(g.by) >= guessSources {
		for k, s := range g.by {
			if now >= s.until && now.Sub(s.since) > guessLockMax {
				delete(g.by, k)
			}
		}
	}
	if len(g.by) >= guessSources {
		p = netip.Prefix{}
	}
	if g.by[p] == nil {
		g.by[p] = &guesser{since: now}
	}
	return g.by[p]
}

// locked is for how long ip is locked out still.
func (g *guesses) locked(ip netip.Addr, now cluster.Instant) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(g.source(ip, now).until.Sub(now), 0)
}

func (g *guesses) wrong(ip netip.Addr, now cluster.Instant) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.source(ip, now)
	if now.Sub(s.since) > guessWindow {
		s.since, s.n = now, 0
	}
	if s.n++; s.n >= g.max {
		s.until = now.Add(min(guessLock<<min(s.locks, 10), guessLockMax))
		s.n = 0
		s.locks++
	}
}
