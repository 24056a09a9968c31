// Package lease is the voter-promised lease: who may be active for how long, and when a voter may promise an epoch away.
//
// It is pure: events and time in, answers out; no clock, socket, goroutine or lock. The time is CLOCK_BOOTTIME of the member
// that runs the core; instants of two members are never compared.
//
// The argument (docs/protocol.md, section 3). A holder serves until the TTL has passed since it *sent* the k-th latest renewal
// that distinct voters acknowledged, k being what it needs beside itself for a majority. A takeover without the holder needs the
// promises of a majority, so at least one voter of each majority of acknowledgements is among those who promised. That voter promised
// only P = TTL x (1+rho) + m after its last acknowledgement, by its own clock; the acknowledgement came after the sending, and rho
// covers the drift of both clocks: the holder's deadline has passed. A voter that restarts forgets; therefore it stays mute until the log
// has admitted its new incarnation, its old promises no longer count, and it waits P from its start before it promises anything.
//
// Callers must run every event of one service on one goroutine, do the answers in the order in which they are given, close the gates
// before they send a Promise or a Release for an epoch of their own, and never let a reading of MayServe outlive one operation.
package lease

import (
	"time"

	"github.com/hanode/hanode/cluster"
)

// Voter is one voter's memory of one service. All of it is volatile: it belongs to one incarnation.
type Voter struct {
	Open     bool            // the log has admitted this incarnation; until then the voter answers nothing
	Started  cluster.Instant // when this incarnation began
	LastAck  cluster.Instant // when it last acknowledged a renewal; 0: not in this incarnation
	Closed   cluster.Epoch   // epochs up to this one are never acknowledged again
	Acked    cluster.Epoch   // the epoch of its last acknowledgement
	AckedTTL time.Duration   // the largest TTL acknowledged for Acked
	Released cluster.Epoch   // the newest epoch whose holder has released it
	Promised bool            // it has promised, or heard a Release, in this incarnation
}

// Known is what the voter's replicated state machine says of the service at the moment of the event.
type Known struct {
	Epoch  cluster.Epoch
	TTLMax time.Duration // the largest TTL that a holder may be counting with
}

// Answer to a renewal or to a request for a promise.
type Answer struct {
	Mute    bool          // say nothing at all
	Yes     bool          // acknowledged, or promised
	Highest cluster.Epoch // with a refusal: the highest epoch that the voter knows of
	In      time.Duration // with a refused promise: ask again in so long
}

// Renew answers a holder that asks to extend epoch e by ttl from its sending.
func (v *Voter) Renew(now cluster.Instant, e cluster.Epoch, ttl time.Duration, k Known) Answer {
	if !v.Open {
		return Answer{Mute: true}
	}
	if e <= v.Closed || e < k.Epoch {
		return Answer{Highest: max(v.Closed, k.Epoch)}
	}
	if e != v.Acked {
		v.Acked, v.AckedTTL = e, 0
	}
	v.AckedTTL = max(v.AckedTTL, ttl)
	v.LastAck = now
	v.Closed = max(v.Closed, e-1)
	return Answer{Yes: true}
}

// Wait is P for this voter now: from the largest TTL that it has acknowledged for an epoch that is not closed, and, while it has not
// promised in this incarnation, at least from the largest that the log knows: an earlier incarnation may have acknowledged that.
func (v *Voter) wait(k Known) time.Duration {
	var ttl time.Duration
	if v.Acked > v.Closed {
		ttl = v.AckedTTL
	}
	if !v.Promised {
		ttl = max(ttl, k.TTLMax)
	}
	if ttl == 0 {
		return 0
	}
	return cluster.Wait(ttl)
}

// PromiseIn tells how long the voter must still wait before it may promise epoch e; 0: it may.
func (v *Voter) PromiseIn(now cluster.Instant, e cluster.Epoch, k Known) time.Duration {
	if e <= v.Released {
		return 0
	}
	left := max(v.LastAck, v.Started).Add(v.wait(k)).Sub(now)
	return max(left, 0)
}

// Promise answers the request to promise epoch e. holder says that this member is the one that holds e, or the successor of the
// incarnation that held it: the caller has already closed the gates for good, and so it may promise at once.
func (v *Voter) Promise(now cluster.Instant, e cluster.Epoch, holder bool, k Known) Answer {
	if !v.Open {
		return Answer{Mute: true}
	}
	if e < k.Epoch {
		return Answer{Highest: max(v.Closed, k.Epoch)}
	}
	if !holder {
		if in := v.PromiseIn(now, e, k); in > 0 {
			return Answer{Highest: max(v.Closed, k.Epoch), In: in}
		}
	}
	v.close(e)
	return Answer{Yes: true}
}

// Release takes note that the holder of epoch e has ended its tenure. The caller has checked that it came from the holder's
// incarnation. A repeated or older one changes nothing.
func (v *Voter) Release(e cluster.Epoch) {
	if !v.Open || e <= v.Released {
		return
	}
	v.Released = e
	v.close(e)
}

// close forgets only the TTLs acknowledged for epochs up to e.
func (v *Voter) close(e cluster.Epoch) {
	v.Closed = max(v.Closed, e)
	v.Promised = true
	if v.Acked <= e {
		v.AckedTTL = 0
	}
}

// CloseAll is for a voter that learns that it was removed: it extends nothing any more.
func (v *Voter) CloseAll() { v.Closed = ^cluster.Epoch(0) }
