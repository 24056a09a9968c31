package link

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// A probe shows that a port answers: class 'P', magic 'h' 'n', version, 'q' or 'a', 16 bytes. The answer to question x is known
// only to whom the nonce behind x was told over TLS; an endpoint answers only questions that it expects, with as many
// bytes as it got.
const probeLen = 4 + 1 + 16

type probeToken [16]byte

func probeHash(what string, nonce []byte) probeToken {
	sum := sha256.Sum256(append([]byte("hanode probe "+what+"\x00"), nonce...))
	return probeToken(sum[:16])
}

func probeMessage(kind byte, t probeToken) []byte {
	return append([]byte{classProbe, 'h', 'n', wireVersion, kind}, t[:]...)
}

func parseProbe(b []byte) (kind byte, t probeToken, ok bool) {
	if len(b) != probeLen || b[0] != classProbe || b[1] != 'h' || b[2] != 'n' || b[3] != wireVersion {
		return 0, t, false
	}
	return b[4], probeToken(b[5:]), true
}

// probeTable is the questions that this endpoint answers and the answers that it waits for.
type probeTable struct {
	mu     sync.Mutex
	expect map[probeToken]probeToken
	wait   map[probeToken]func(netip.AddrPort)
}

// expectProbes makes the endpoint answer questions made from nonce until the returned function is called.
func (e *Endpoint) expectProbes(nonce []byte) func() {
	q := probeHash("ask", nonce)
	t := &e.probes
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.expect == nil {
		t.expect = map[probeToken]probeToken{}
	}
	t.expect[q] = probeHash("answer", nonce)
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.expect, q)
	}
}

func (t *probeTable) answerTo(q probeToken) (probeToken, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a, ok := t.expect[q]
	return a, ok
}

// await calls f for each answer made from nonce that comes by UDP.
func (t *probeTable) await(nonce []byte, f func(from netip.AddrPort)) func() {
	a := probeHash("answer", nonce)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wait == nil {
		t.wait = map[probeToken]func(netip.AddrPort){}
	}
	t.wait[a] = f
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.wait, a)
	}
}

// probeDatagram takes one from the wire.
func (e *Endpoint) probeDatagram(s *socket, b []byte, from netip.AddrPort) {
	kind, t, ok := parseProbe(b)
	switch {
	case !ok:
		e.count.malformed.Add(1)
	case kind == 'q':
		if a, ok := e.probes.answerTo(t); ok {
			newSender(s, from).send(probeMessage('a', a))
		}
	case kind == 'a':
		e.probes.mu.Lock()
		f := e.probes.wait[t]
		e.probes.mu.Unlock()
		if f != nil {
			f(from)
		}
	}
}

// probeConn answers a question on an accepted connection whose first byte was read.
func (e *Endpoint) probeConn(c net.Conn) {
	b := make([]byte, probeLen)
	b[0] = classProbe
	if _, err := io.ReadFull(c, b[1:]); err != nil {
		e.count.failed.Add(1)
		return
	}
	kind, q, ok := parseProbe(b)
	a, known := e.probes.answerTo(q)
	if !ok || kind != 'q' || !known {
		e.count.failed.Add(1)
		return
	}
	c.Write(probeMessage('a', a))
}

// probeAll asks every address of a peer over TCP and UDP, link by link when both have the same number of links; otherwise
// each address must answer to any of the own. It returns what did not answer. me and peer are names for the text.
func (e *Endpoint) probeAll(ctx context.Context, own, peers []netip.AddrPort, nonce []byte, me, peer string) []string {
	ctx, cancel := context.WithTimeout(ctx, e.limits.ProbeTimeout)
	defer cancel()
	var wg sync.WaitGroup
	out := make([]string, 2*len(peers))
	for j, to := range peers {
		var from []*socket
		for _, pair := range pairing(len(own), len(peers)) {
			if int(pair[1]) == j {
				from = append(from, e.socketFor(int(pair[0]), len(own)))
			}
		}
		wg.Go(func() {
			if err := e.probeTCP(ctx, from, to, nonce); err != nil {
				out[2*j] = fmt.Sprintf("tcp from %s to %s at %v: %v", me, peer, to, err)
			}
		})
		wg.Go(func() {
			if err := e.probeUDP(ctx, from, to, nonce); err != nil {
				out[2*j+1] = fmt.Sprintf("udp from %s to %s at %v: %v", me, peer, to, err)
			}
		})
	}
	wg.Wait()
	var failed []string
	for _, s := range out {
		if s != "" {
			failed = append(failed, s)
		}
	}
	return failed
}

func (e *Endpoint) socketFor(i, links int) *socket {
	if len(e.socks) == links {
		return e.socks[i]
	}
	return e.socks[0]
}

func (e *Endpoint) probeTCP(ctx context.Context, from []*socket, to netip.AddrPort, nonce []byte) error {
	var last error
	for _, s := range from {
		if last = probeTCPFrom(ctx, s, to, nonce); last == nil {
			return nil
		}
	}
	return last
}

func probeTCPFrom(ctx context.Context, s *socket, to netip.AddrPort, nonce []byte) error {
	d := net.Dialer{LocalAddr: dialFrom(s.addr.Addr())}
	c, err := d.DialContext(ctx, "tcp", to.String())
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nothing listens there: is it another machine's address?", err)
	case err != nil:
		return fmt.Errorf("%w: open tcp port %d in the firewalls between, or correct the address", err, to.Port())
	}
	defer c.Close()
	if at, ok := ctx.Deadline(); ok {
		c.SetDeadline(at)
	}
	b := make([]byte, probeLen)
	if _, err = c.Write(probeMessage('q', probeHash("ask", nonce))); err == nil {
		_, err = io.ReadFull(c, b)
	}
	if err != nil {
		return fmt.Errorf("another program answers there: %w", err)
	}
	if kind, t, ok := parseProbe(b); !ok || kind != 'a' || t != probeHash("answer", nonce) {
		return errors.New("another program or machine answers there")
	}
	return nil
}

// probeUDP asks each 100 ms.
func (e *Endpoint) probeUDP(ctx context.Context, from []*socket, to netip.AddrPort, nonce []byte) error {
	// One nonce per address: answers are told apart by it, not by their source.
	nonce = append([]byte(to.String()+" "), nonce...)
	got := make(chan struct{})
	var once sync.Once
	defer e.probes.await(nonce, func(netip.AddrPort) { once.Do(func() { close(got) }) })()
	var last error
	ask := probeMessage('q', probeHash("ask", nonce))
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		for _, s := range from {
			if err := newSender(s, to).send(ask); err != nil {
				last = err
			}
		}
		select {
		case <-got:
			return nil
		case <-t.C:
		case <-ctx.Done():
			if last != nil {
				return last
			}
			return fmt.Errorf("no answer in %v: open udp port %d in the firewalls between, in both directions", e.limits.ProbeTimeout, to.Port())
		}
	}
}

// expectProbesAt makes the endpoint answer what probeAll asks at addrs.
func (e *Endpoint) expectProbesAt(addrs []netip.AddrPort, nonce []byte) func() {
	stops := []func(){e.expectProbes(nonce)}
	for _, a := range addrs {
		stops = append(stops, e.expectProbes(append([]byte(a.String()+" "), nonce...)))
	}
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}
