package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
)

const (
	keyRetry    = 100 * time.Millisecond // while there is no key
	keyAgain    = time.Second            // between keyings while there is one
	keptKeys    = 4                      // receiving keys of a run that are accepted at once
	keptSession = 4                      // open lease sessions with one member
	confirmByte = 'K'
	exportLabel = "EXPORTER-hanode-datagram-1"
)

// keyingState is guarded by member.mu.
type keyingState struct {
	busy     bool
	force    bool            // a frame under an unknown key came
	next     cluster.Instant // not before
	hinted   cluster.Instant // last time such a frame was heeded
	failures int
}

// deriveKeys takes both directions' keys from a session. The context binds them to the cluster, the two members and runs.
func deriveKeys(s tls.ConnectionState, clusterID string, client, server cluster.NodeID, clientRun, serverRun RunID, born cluster.Instant) (toServer, toClient halfKey, err error) {
	ctx := append([]byte(clusterID), 0)
	ctx = append(append(ctx, client[:]...), server[:]...)
	ctx = append(append(ctx, clientRun[:]...), serverRun[:]...)
	material, err := s.ExportKeyingMaterial(exportLabel, ctx, 2*halfKeyLen)
	if err != nil {
		return halfKey{}, halfKey{}, fmt.Errorf("export datagram keys: %w", err)
	}
	toServer, err = newHalfKey(material[:halfKeyLen], born)
	if err != nil {
		return halfKey{}, halfKey{}, err
	}
	toClient, err = newHalfKey(material[halfKeyLen:], born)
	return toServer, toClient, err
}

// keyIfDue starts a keying session if there is no key, none newer than half its life, or no session by which the other
// side's end would be noticed.
func (p *member) keyIfDue(now cluster.Instant) {
	tx := p.tx.Load()
	p.mu.Lock()
	k := &p.keying
	due := !k.busy && !p.removed && now >= k.next &&
		(k.force || tx == nil || len(p.session) == 0 || now.Sub(tx.born) > p.m.e.limits.KeyLife/2)
	if due {
		k.busy = true
	}
	p.mu.Unlock()
	if due && !p.m.e.spawn(p.key) {
		p.mu.Lock()
		k.busy = false
		p.mu.Unlock()
	}
}

// key dials a keying session and stays with it until it ends.
func (p *member) key(ctx context.Context) {
	c, err := p.keySession(ctx)
	now := p.m.e.now()
	p.mu.Lock()
	k := &p.keying
	k.busy = false
	switch {
	case err == nil:
		k.force, k.failures, k.next = false, 0, now.Add(keyAgain)
	case p.tx.Load() != nil || errors.Is(err, ErrSecondRun):
		k.failures++
		k.next = now.Add(jitter(keyAgain))
	default:
		k.failures++
		k.next = now.Add(jitter(min(keyRetry<<min(k.failures/100, 8), keyAgain)))
	}
	failures := k.failures
	p.mu.Unlock()
	if err == nil {
		c.waitEnd()
		return
	}
	if failures == 1 && ctx.Err() == nil {
		p.m.log.Info("no datagram key yet; trying again", "peer", p.name, "error", err)
	}
}

func jitter(d time.Duration) time.Duration { return d*7/10 + rand.N(d*6/10) }

func (p *member) keySession(ctx context.Context) (*Conn, error) {
	c, err := p.dial(ctx, Lease)
	if err != nil {
		return nil, err
	}
	m := p.m
	toServer, toClient, err := deriveKeys(c.ConnectionState(), m.id.ClusterID, m.self.ID, p.id, m.id.Run, c.run, m.e.now())
	if err != nil {
		abort(c.raw)
		return nil, err
	}
	rx := &rxKey{member: p, run: c.run, halfKey: toClient}
	if err := p.addKey(rx); err != nil {
		abort(c.raw)
		return nil, err
	}
	if _, err := c.Write([]byte{confirmByte}); err != nil {
		p.dropKey(rx)
		abort(c.raw)
		return nil, fmt.Errorf("confirm the datagram keys: %w", err)
	}
	if !c.register() {
		p.dropKey(rx)
		return nil, ErrClosed
	}
	p.useKeys(rx, &txKey{toServer})
	return c, nil
}

// serveLease is the accepting side: it installs its receiving key, then answers, and sends under the new key only after the
// confirmation.
func (c *Conn) serveLease(a answer) error {
	p, m := c.member, c.m
	toServer, toClient, err := deriveKeys(c.ConnectionState(), m.id.ClusterID, p.id, m.self.ID, c.run, m.id.Run, m.e.now())
	if err != nil {
		return err
	}
	rx := &rxKey{member: p, run: c.run, halfKey: toServer}
	if err := p.addKey(rx); err != nil {
		return err
	}
	var confirm [1]byte
	if err = writeMessage(c.Conn, a, maxHello); err == nil {
		if _, err = c.Read(confirm[:]); err == nil && confirm[0] != confirmByte {
			err = errMalformed
		}
	}
	if err == nil && !c.register() {
		err = ErrClosed
	}
	if err != nil {
		p.dropKey(rx)
		return err
	}
	c.raw.SetDeadline(time.Time{})
	p.useKeys(rx, &txKey{toClient})
	if !m.e.spawn(func(context.Context) { c.waitEnd() }) {
		c.abort()
	}
	return nil
}

// waitEnd waits for the end of a lease session. Nothing is sent on it: it only shows, at once, that the other side's
// process has ended. The keys stay.
func (c *Conn) waitEnd() {
	var b [1]byte
	_, err := c.Read(b[:])
	byUs := errors.Is(err, net.ErrClosed)
	c.abort()
	if byUs {
		return
	}
	p := c.member
	now := p.m.e.now()
	p.mu.Lock()
	if p.run == c.run && len(p.session) == 0 {
		p.ended = now
		p.keying.next = max(p.keying.next, now.Add(jitter(keyRetry)))
	}
	p.mu.Unlock()
}

// addKey makes a receiving key known.
func (p *member) addKey(k *rxKey) error {
	e := p.m.e
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.removed || p.run != k.run {
		return fmt.Errorf("datagram key of %s: its run was replaced meanwhile", p.name)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	keys := maps.Clone(*e.keys.Load())
	if keys[k.halfKey.id] != nil {
		return errors.New("this datagram key is in use already")
	}
	keys[k.halfKey.id] = k
	e.keys.Store(&keys)
	p.rx = append(p.rx, k)
	return nil
}

// useKeys makes a completed session's keys the current ones, and forgets the oldest receiving ones.
func (p *member) useKeys(rx *rxKey, tx *txKey) {
	p.mu.Lock()
	var drop []*rxKey
	var old *Conn
	if p.run == rx.run && !p.removed {
		rx.confirmed = true
		p.tx.Store(tx)
		p.ended = 0
		confirmed := slices.DeleteFunc(slices.Clone(p.rx), func(k *rxKey) bool { return !k.confirmed })
		if n := len(confirmed) - keptKeys; n > 0 {
			drop = confirmed[:n]
			p.rx = slices.DeleteFunc(p.rx, func(k *rxKey) bool { return slices.Contains(drop, k) })
		}
		for c := range p.session {
			if len(p.session) > keptSession && (old == nil || c.born < old.born) {
				old = c
			}
		}
	}
	p.m.e.dropKeys(drop)
	p.mu.Unlock()
	if old != nil {
		old.abort()
	}
	p.m.e.count.keyings.Add(1)
	p.m.log.Debug("datagram keys made", "peer", p.name)
	p.fillGap(p.m.e.now())
}

func (p *member) dropKey(k *rxKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rx = slices.DeleteFunc(p.rx, func(o *rxKey) bool { return o == k })
	p.m.e.dropKeys([]*rxKey{k})
}

func (e *Endpoint) dropKeys(drop []*rxKey) {
	if len(drop) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	keys := maps.Clone(*e.keys.Load())
	for _, k := range drop {
		if keys[k.halfKey.id] == k {
			delete(keys, k.halfKey.id)
		}
	}
	e.keys.Store(&keys)
}

// unknownKey heeds a frame under a key that this run does not have: its sender may not know that this side restarted.
// Nothing in the frame is proven, so it is heeded once a second at most, and only to dial whom the list names.
func (e *Endpoint) unknownKey(h *header, from netip.AddrPort, at cluster.Instant) {
	m := (*e.byTag.Load())[h.cluster]
	if m == nil {
		return
	}
	for _, p := range *m.members.Load() {
		for _, q := range *p.paths.Load() {
			if q.remote != from {
				continue
			}
			p.mu.Lock()
			if k := &p.keying; at.Sub(k.hinted) > keyAgain {
				k.hinted, k.force = at, true
			}
			p.mu.Unlock()
			return
		}
	}
}
