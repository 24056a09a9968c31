package link

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// RunJoin is Join for a process that has no endpoint yet: it opens one on cfg for the time of the join, so that the members can
// try its ports.
func RunJoin(ctx context.Context, cfg Config, t JoinTarget, r JoinRequest) (JoinAnswer, error) {
	e, err := Listen(cfg)
	if err != nil {
		return JoinAnswer{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	a, err := e.Join(ctx, t, r)
	cancel()
	if rerr := <-done; err == nil {
		err = rerr
	}
	return a, err
}

// Join asks the members that the token names, one after the other, to make this process a member. The endpoint must be running:
// its ports are tried by the member that answers, as the member's are from here. Errors: ErrBadToken, *RefusedError, or why
// each address did not answer.
func (e *Endpoint) Join(ctx context.Context, t JoinTarget, r JoinRequest) (JoinAnswer, error) {
	if len(r.Addrs) == 0 {
		r.Addrs = e.Addrs()
	}
	r.Clock = e.wall()
	if err := r.check(); err != nil {
		return JoinAnswer{}, fmt.Errorf("join: %w", err)
	}
	var errs []error
	todo, asked := slices.Clone(t.Addrs), 0
	for ; len(todo) > 0 && asked < 2*MaxLinks; asked++ {
		addr := todo[0]
		todo = todo[1:]
		a, elsewhere, err := e.joinAt(ctx, t, r, addr)
		if err == nil {
			return a, nil
		}
		errs = append(errs, fmt.Errorf("join at %v: %w", addr, err))
		var refused *RefusedError
		if ctx.Err() != nil || errors.Is(err, ErrBadToken) || errors.As(err, &refused) && refused.Code != codeElsewhere {
			break
		}
		for _, x := range elsewhere[:min(len(elsewhere), MaxLinks)] {
			if x.IsValid() && !slices.Contains(todo, x) {
				todo = append([]netip.AddrPort{x}, todo...)
			}
		}
	}
	return JoinAnswer{}, errors.Join(errs...)
}

// joinAt asks one member.
func (e *Endpoint) joinAt(ctx context.Context, t JoinTarget, r JoinRequest, addr netip.AddrPort) (a JoinAnswer, elsewhere []netip.AddrPort, err error) {
	dctx, cancel := context.WithTimeout(ctx, e.limits.HandshakeTimeout)
	defer cancel()
	var d net.Dialer
	raw, err := d.DialContext(dctx, "tcp", addr.String())
	if err != nil {
		return a, nil, fmt.Errorf("%w: open tcp port %d towards the cluster, or make a token with other addresses", err, addr.Port())
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: t.ClusterID, NextProtos: []string{string(Join)},
		InsecureSkipVerify: true, // the authority is known by its fingerprint only: verified below
		VerifyConnection:   func(s tls.ConnectionState) error { return t.VerifyServer(s.PeerCertificates) },
	})
	if err := c.HandshakeContext(dctx); err != nil {
		return a, nil, explainAlert(err, t.ClusterID)
	}
	nonce := make([]byte, nonceLen)
	rand.Read(nonce)
	defer e.expectProbesAt(r.Addrs, nonce)()
	reply, err := e.joinTalk(ctx, c, raw, r, nonce)
	if err != nil {
		return a, reply.Elsewhere, err
	}
	return JoinAnswer{Cert: reply.Cert, CAs: reply.CAs, Data: reply.Data}, nil, nil
}

func (e *Endpoint) joinTalk(ctx context.Context, c *tls.Conn, raw net.Conn, r JoinRequest, nonce []byte) (joinReply, error) {
	raw.SetDeadline(time.Now().Add(2*joinTimeout + 3*e.limits.ProbeTimeout + e.limits.HandshakeTimeout))
	err := writeMessage(c, joinMessage{
		MinVersion: minVersion, MaxVersion: maxVersion, Secret: r.Secret, Name: r.Name, Role: r.Role, ID: r.ID.String(),
		Addrs: r.Addrs, CSR: r.CSR, Clock: r.Clock, Nonce: nonce, Data: r.Data,
	}, maxJoin)
	if err != nil {
		return joinReply{}, err
	}
	probe, err := readReply(c)
	if err != nil {
		return probe, err
	}
	if len(probe.Nonce) != nonceLen || len(probe.Addrs) > MaxLinks {
		return joinReply{}, errMalformed
	}
	failed := e.probeAll(ctx, r.Addrs, probe.Addrs, probe.Nonce, r.Name, probe.Name)
	if err := writeMessage(c, joinReport{failed}, maxJoin); err != nil {
		return joinReply{}, err
	}
	return readReply(c)
}

// readReply turns refusals into errors.
func readReply(c *tls.Conn) (joinReply, error) {
	var r joinReply
	if err := readMessage(c, &r, maxJoin); err != nil {
		return r, err
	}
	switch r.Code {
	case "":
		return r, nil
	case codeToken:
		return r, ErrBadToken
	}
	return r, &RefusedError{r.Code, r.Text}
}
