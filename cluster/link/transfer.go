package link

import (
	"net/netip"

	"github.com/hanode/hanode/cluster"
)

// Send sends payload, MaxPayload bytes at most, to a member on every path at once. kind is the caller's, 1 to 239. It neither
// waits nor allocates, and may be called concurrently. nil means that the kernel took at least one copy, not that any
// arrived. Errors: ErrUnknownPeer, ErrNoKey, ErrTooLong, ErrReserved, ErrNoPath.
func (m *Mesh) Send(to cluster.NodeID, kind byte, payload []byte) error {
	p := m.member(to)
	switch {
	case p == nil:
		return ErrUnknownPeer
	case len(payload) > MaxPayload:
		return ErrTooLong
	case kind == kindBeat || kind >= firstReserved:
		return ErrReserved
	}
	return p.send(kind, payload)
}

func (p *member) send(kind byte, payload []byte) error {
	e := p.m.e
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	k := p.tx.Load()
	if k == nil {
		return ErrNoKey
	}
	now := e.now()
	if now.Sub(k.born) > e.limits.KeyLife {
		return ErrNoKey
	}
	p.seq++
	p.sent.Store(int64(now))
	taken := false
	for _, q := range *p.paths.Load() {
		h := header{cluster: p.m.tag, seq: p.seq, sent: now, path: pathByte(q.own, q.peers), kind: kind}
		h.echo, h.age = q.answer(now)
		if err := q.sender.send(k.seal(p.buf[:], &h, payload)); err != nil {
			q.errorsN.Add(1)
			e.count.sendErrors.Add(1)
			continue
		}
		taken = true
		q.sentN.Add(1)
		e.count.sent.Add(1)
	}
	if !taken {
		return ErrNoPath
	}
	return nil
}

// fillGap sends an empty frame when nothing was sent for a beat and a quarter, so that the paths' state is known without any caller, and that no
// frame is added to those of a caller who sends with every beat.
func (p *member) fillGap(now cluster.Instant) {
	if p.tx.Load() != nil && now.Sub(cluster.Instant(p.sent.Load())).Nanoseconds() >= p.m.beat.Load()*5/4 {
		p.send(kindBeat, nil) // errors are in the counters
	}
}

// leaseDatagram takes one from the wire. b is overwritten.
func (e *Endpoint) leaseDatagram(b []byte, from netip.AddrPort, at cluster.Instant) {
	h, err := parseHeader(b)
	if err != nil {
		e.count.malformed.Add(1)
		return
	}
	k := (*e.keys.Load())[h.key]
	if k == nil || k.member.m.tag != h.cluster || at.Sub(k.halfKey.born) > e.limits.KeyLife {
		e.count.noKey.Add(1)
		e.unknownKey(&h, from, at)
		return
	}
	payload, v := k.open(b, &h)
	switch v {
	case forged:
		e.count.forged.Add(1)
		return
	case replayed:
		e.count.replayed.Add(1)
		return
	}
	e.count.received.Add(1)
	p := k.member
	p.heard.Store(int64(at))
	i, q := p.pathBy(h.path)
	if q != nil {
		q.arrived(&h, at)
	}
	if v == duplicate || h.kind == kindBeat || h.kind >= firstReserved {
		return
	}
	if f := p.m.handler.Load(); f != nil {
		(*f)(Datagram{From: p.id, Link: i, Kind: h.kind, Seq: h.seq, Sent: h.sent, At: at, Payload: payload})
	}
}
