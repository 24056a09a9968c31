package link

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanode/hanode/cluster"
)

// Damping of a path that came back: protocol, section 9 (g).
const (
	dampFirst = 10 * time.Second
	dampMost  = 5 * time.Minute
)

// path is one way from this host to a member.
type path struct {
	own, peers    uint8 // indexes of the two addresses
	local, remote netip.AddrPort
	sender        *sender // under the member's sendMu

	heard     atomic.Int64 // Instant of the last authentic arrival
	confirmed atomic.Int64 // Instant at which the newest of our frames was sent that the other side says to have heard
	rtt       atomic.Int64 // ns
	sentN     atomic.Uint64
	receivedN atomic.Uint64
	errorsN   atomic.Uint64

	mu      sync.Mutex
	echoAt  cluster.Instant // the last arrival, and what its header says of its sending
	echo    cluster.Instant
	up      bool
	since   cluster.Instant // of up
	changed cluster.Instant // last change to down, or the first time it was judged
	alone   bool            // down while other paths work: the path failed, not the member
	flaps   int             // times that this happened lately
}

// arrived takes the header of an authentic frame.
func (q *path) arrived(h *header, at cluster.Instant) {
	q.receivedN.Add(1)
	q.heard.Store(int64(at))
	q.mu.Lock()
	q.echoAt, q.echo = at, h.sent
	q.mu.Unlock()
	if h.echo == 0 || h.echo > at || int64(h.echo) < q.confirmed.Load() {
		return
	}
	q.confirmed.Store(int64(h.echo))
	if rtt := at.Sub(h.echo) - h.age; rtt > 0 {
		old := time.Duration(q.rtt.Load())
		if old != 0 {
			rtt = old + (rtt-old)/8 // RFC 6298 section 2
		}
		q.rtt.Store(int64(rtt))
	}
}

// answer is what the next frame on this path says of the last one that came: its sending, and how long ago it came.
func (q *path) answer(now cluster.Instant) (echo cluster.Instant, age time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.echo, now.Sub(q.echoAt)
}

// works is the last instant at which both directions are known to have worked; 0: never.
func (q *path) works() cluster.Instant {
	return cluster.Instant(min(q.heard.Load(), q.confirmed.Load()))
}

// judge sets the path's state and says whether it changed. newest is when any path to the member worked.
func (q *path) judge(now, newest cluster.Instant, downAfter time.Duration) (up bool, since cluster.Instant, changed bool) {
	last := q.works()
	up = last != 0 && now.Sub(last) < downAfter
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.changed == 0 {
		q.changed = now
	}
	if changed = up != q.up; changed && up {
		q.since, q.alone = now, false
	} else if changed {
		q.changed = now
	}
	q.up = up
	if alone := !up && last != 0 && newest.Sub(last) >= downAfter/2; alone && !q.alone {
		q.alone = true // a member that stalled falls silent on all its paths at once; that is no fault of this one
		q.flaps++
	}
	if up && now.Sub(q.since) > dampMost {
		q.flaps = 0
	}
	return up, q.since, changed
}

// state says whether the path is up, and whether it is so for too short a time to be preferred.
func (q *path) state(now cluster.Instant) (up, damped bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.up, q.up && q.flaps > 0 && now.Sub(q.since) < min(dampFirst<<min(q.flaps-1, 8), dampMost)
}

// strands says whether a connection made at born on this path, which may be down, should be given up, given that another
// path works since liveSince: at once if the path failed under it; when a path that never worked yet, or that was known
// to have failed, has had time enough to come up; never because the member as a whole stalled.
func (q *path) strands(born, liveSince, now cluster.Instant, grace time.Duration) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	never := q.works() == 0
	switch {
	case q.up || !never && !q.alone:
		return false
	case !never && born < q.changed:
		return true
	}
	return now.Sub(max(born, liveSince, q.changed)) > grace
}

// judge finds out which paths work, and closes the connections on dead ones if there is a live one to redial on.
func (p *member) judge(now cluster.Instant) {
	after := p.m.downAfter()
	var liveSince, newest cluster.Instant
	for _, q := range *p.paths.Load() {
		newest = max(newest, q.works())
	}
	for i, q := range *p.paths.Load() {
		up, since, changed := q.judge(now, newest, after)
		if up && (liveSince == 0 || since < liveSince) {
			liveSince = since
		}
		switch {
		case changed && up:
			p.m.log.Info("link is up", "peer", p.name, "link", i, "local", q.local, "remote", q.remote, "rtt", time.Duration(q.rtt.Load()))
		case changed:
			p.m.e.count.linkDowns.Add(1)
			p.m.log.Warn("link is down", "peer", p.name, "link", i, "local", q.local, "remote", q.remote,
				"heard_ago", now.Sub(cluster.Instant(q.heard.Load())), "heard_there_ago", now.Sub(cluster.Instant(q.confirmed.Load())))
		}
	}
	if liveSince == 0 {
		return
	}
	for _, c := range p.stranded(liveSince, now, after) {
		p.m.log.Info("closing a connection whose link is down", "peer", p.name, "channel", c.channel, "remote", c.path.remote)
		c.abort()
	}
	for _, r := range p.strandedRaw(func(r *Raw) bool { return r.path.strands(r.born, liveSince, now, after) }) {
		p.m.log.Info("giving up a connection of a volume whose link is down", "peer", p.name, "service_no", r.Service, "remote", r.path.remote)
		r.down()
	}
}

func (p *member) stranded(liveSince, now cluster.Instant, grace time.Duration) []*Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*Conn
	for c := range p.conns {
		if c.path != nil && c.path.strands(c.born, liveSince, now, grace) {
			out = append(out, c)
		}
	}
	return out
}
