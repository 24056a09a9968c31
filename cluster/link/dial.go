package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
)

// stagger is the time between the starts of attempts on different paths (as RFC 8305, for paths of a millisecond).
const stagger = 20 * time.Millisecond

// Dial connects to a member on ch. It tries the member's paths, those that are up first, each 20 ms after the one before or
// when that one failed, and returns the first connection that the member has accepted. An attempt gets no longer than
// Limits.HandshakeTimeout. Errors: ErrUnknownPeer, *RefusedError (ErrSecondRun), or what each path said.
func (m *Mesh) Dial(ctx context.Context, to cluster.NodeID, ch Channel) (net.Conn, error) {
	p := m.member(to)
	if p == nil {
		return nil, fmt.Errorf("dial %v for %s: %w", to, ch, ErrUnknownPeer)
	}
	c, err := p.dial(ctx, ch)
	if err != nil {
		return nil, err
	}
	if !c.register() {
		return nil, fmt.Errorf("dial %s for %s: %w", p.name, ch, ErrClosed)
	}
	return c, nil
}

// preferred lists the paths in the order in which to try them.
func (p *member) preferred() []*path {
	now := p.m.e.now()
	rank := func(q *path) int {
		switch up, damped := q.state(now); {
		case up && !damped:
			return 0
		case up:
			return 1
		}
		return 2
	}
	paths := slices.Clone(*p.paths.Load())
	slices.SortStableFunc(paths, func(a, b *path) int { return rank(a) - rank(b) })
	return paths
}

// greeting makes a connection of a TCP connection on a path.
type greeting func(ctx context.Context, raw *net.TCPConn, q *path) (*Conn, error)

type attempt struct {
	c   *Conn
	err error
}

// dial returns a connection that is not registered yet.
func (p *member) dial(ctx context.Context, ch Channel) (*Conn, error) {
	return p.dialBy(ctx, ch, func(ctx context.Context, raw *net.TCPConn, q *path) (*Conn, error) {
		return p.introduce(ctx, raw, ch, q)
	})
}

// dialBy connects on the best path; what follows on a TCP connection is done by greet.
func (p *member) dialBy(ctx context.Context, ch Channel, greet greeting) (*Conn, error) {
	paths := p.preferred()
	if len(paths) == 0 {
		return nil, fmt.Errorf("dial %s for %s: no address of it is known", p.name, ch)
	}
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan attempt) // each attempt either delivers or, after cancel, closes what it made
	running := 0
	defer func() {
		cancel()
		for ; running > 0; running-- {
			if r := <-results; r.c != nil {
				abort(r.c.raw)
			}
		}
	}()
	next := time.NewTimer(0)
	defer next.Stop()
	var errs []error
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("dial %s for %s: %w", p.name, ch, errors.Join(append(errs, ctx.Err())...))
		case <-next.C:
			if len(paths) == 0 {
				continue
			}
			q := paths[0]
			paths = paths[1:]
			running++
			go func() {
				c, err := p.dialPath(ctx, greet, q)
				results <- attempt{c, err}
			}()
			next.Reset(stagger)
		case r := <-results:
			running--
			if r.err == nil {
				return r.c, nil
			}
			errs = append(errs, r.err)
			var refused *RefusedError
			if len(paths)+running == 0 || errors.As(r.err, &refused) { // it would refuse on every path
				return nil, fmt.Errorf("dial %s for %s: %w", p.name, ch, errors.Join(errs...))
			}
			next.Reset(0)
		}
	}
}

// dialPath makes one attempt.
func (p *member) dialPath(ctx context.Context, greet greeting, q *path) (_ *Conn, err error) {
	e := p.m.e
	ctx, cancel := context.WithTimeout(ctx, e.limits.HandshakeTimeout)
	defer cancel()
	defer func() {
		if err != nil {
			err = fmt.Errorf("%v from %v: %w", q.remote, q.local, err)
		}
	}()
	d := net.Dialer{LocalAddr: p.m.dialFrom(q.own), KeepAliveConfig: keepAlive()}
	nc, err := d.DialContext(ctx, "tcp", q.remote.String())
	if err != nil {
		return nil, err
	}
	raw := nc.(*net.TCPConn)
	if !e.track(raw) {
		return nil, ErrClosed
	}
	defer e.untrack(raw)
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	c, err := greet(ctx, raw, q)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		abort(raw)
		return nil, err
	}
	return c, nil
}

// introduce does TLS and the exchange of hellos.
func (p *member) introduce(ctx context.Context, raw *net.TCPConn, ch Channel, q *path) (*Conn, error) {
	m := p.m
	cfg := m.creds.Load().client.Clone()
	cfg.NextProtos = []string{string(ch)}
	cfg.VerifyConnection = func(s tls.ConnectionState) error { return p.verifyServer(s.PeerCertificates) }
	tc := tls.Client(quiet(raw), cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, explainAlert(err, m.id.ClusterID)
	}
	if tc.ConnectionState().NegotiatedProtocol != string(ch) {
		return nil, fmt.Errorf("it does not know the channel %s: update it", ch)
	}
	h := hello{MinVersion: minVersion, MaxVersion: maxVersion, Incarnation: m.id.Incarnation, Run: m.id.Run, Path: pathByte(q.own, q.peers)}
	if err := writeMessage(tc, h, maxHello); err != nil {
		return nil, err
	}
	var a answer
	if err := readMessage(tc, &a, maxHello); err != nil {
		return nil, explainAlert(err, m.id.ClusterID)
	}
	if a.Code != "" {
		err := &RefusedError{a.Code, a.Text}
		if a.Code == codeSecondRun && m.id.OnSecondRun != nil {
			m.id.OnSecondRun(err)
		}
		return nil, err
	}
	if a.Version < minVersion || a.Version > maxVersion {
		return nil, &RefusedError{codeVersion, fmt.Sprintf("it answered with link protocol %d, this program speaks %d to %d", a.Version, minVersion, maxVersion)}
	}
	if err := p.admit(ctx, a.Incarnation, a.Run); err != nil {
		return nil, err
	}
	return &Conn{Conn: tc, raw: raw, m: m, member: p, peer: p.peer(), run: a.Run, channel: ch, path: q, born: m.e.now()}, nil
}

// explainAlert says what a TLS alert (RFC 8446 section 6) of the other side means here.
func explainAlert(err error, clusterID string) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" { // crypto/tls exports no type for it
		return err
	}
	switch op.Err.Error() {
	case tls.AlertError(80).Error(): // internal_error: GetConfigForClient found no mesh
		return fmt.Errorf("the member there does not serve cluster %s: it was removed, has not started, or the address is another cluster's: %w", clusterID, err)
	case tls.AlertError(120).Error(): // no_application_protocol
		return fmt.Errorf("the member there does not serve this channel: %w", err)
	}
	return err
}
