package lease

import (
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

// Coordinator collects the promises that a Grant needs, for one service. Any member that leads the Raft group, or believes that it does, runs one
// for each move; safety lies in the promises and in the compare-and-set of the Grant, not in who collects them.
type Coordinator struct {
	Epoch    cluster.Epoch
	To       lock.Holder
	TTL      time.Duration
	Asks     []Ask // one for each voter that is asked
	Promises []lock.Promise
	Proposed bool // a Grant is on its way; nothing more is asked
}

// Ask is when a voter is to be asked next.
type Ask struct {
	Voter cluster.MemberNo
	At    cluster.Instant
}

// Begin starts a move of the service from epoch e. ask are the voters to be asked: the holder is among them only where it is meant to stop.
func Begin(now cluster.Instant, e cluster.Epoch, to lock.Holder, ttl time.Duration, ask cluster.MemberSet) Coordinator {
	c := Coordinator{Epoch: e, To: to, TTL: ttl}
	for _, v := range ask.List() {
		c.Asks = append(c.Asks, Ask{v, now})
	}
	return c
}

// Ask changes whom to ask: voters and their runs come and go while promises are collected.
func (c *Coordinator) Ask(now cluster.Instant, ask cluster.MemberSet) {
	kept := c.Asks[:0]
	for _, a := range c.Asks {
		if ask.Has(a.Voter) {
			kept = append(kept, a)
			ask = ask.Without(a.Voter)
		}
	}
	c.Asks = kept
	for _, v := range ask.List() {
		c.Asks = append(c.Asks, Ask{v, now})
	}
}

// Due returns the voters to be asked now, and asks them again after retry should no answer come.
func (c *Coordinator) Due(now cluster.Instant, retry time.Duration) []cluster.MemberNo {
	if c.Proposed {
		return nil
	}
	var out []cluster.MemberNo
	for i := range c.Asks {
		if now >= c.Asks[i].At && !c.has(c.Asks[i].Voter) {
			c.Asks[i].At = now.Add(retry)
			out = append(out, c.Asks[i].Voter)
		}
	}
	return out
}

// Next is when Due has something to do again.
func (c *Coordinator) Next() cluster.Instant {
	var next cluster.Instant
	for _, a := range c.Asks {
		if !c.has(a.Voter) && (next == 0 || a.At < next) {
			next = a.At
		}
	}
	return next
}

// Later takes note that a voter can promise only in so long.
func (c *Coordinator) Later(now cluster.Instant, voter cluster.MemberNo, e cluster.Epoch, in time.Duration) {
	if e != c.Epoch {
		return
	}
	for i := range c.Asks {
		if c.Asks[i].Voter == voter {
			c.Asks[i].At = now.Add(in)
		}
	}
}

// Promise takes note of a promise for epoch e; a Release is the holder's. It answers the Grant to propose once the promises suffice, by the same
// rule by which the log will judge them.
func (c *Coordinator) Promise(p lock.Promise, e cluster.Epoch, s *lock.Service, g *lock.Group) (lock.Grant, bool) {
	if e != c.Epoch || c.Proposed {
		return lock.Grant{}, false
	}
	c.drop(p.Node)
	c.Promises = append(c.Promises, p)
	return c.Ready(s, g)
}

// Ready answers the Grant to propose if the promises suffice as the log stands now. Promises of incarnations that the log has
// replaced meanwhile are dropped and asked for again.
func (c *Coordinator) Ready(s *lock.Service, g *lock.Group) (lock.Grant, bool) {
	if c.Proposed || c.Epoch != s.Epoch {
		return lock.Grant{}, false
	}
	kept := c.Promises[:0]
	for _, p := range c.Promises {
		if g.Admission(p.Node).Inc == p.Inc {
			kept = append(kept, p)
		}
	}
	c.Promises = kept
	if s.Enough(g, c.Promises) != lock.Accepted {
		return lock.Grant{}, false
	}
	c.Proposed = true
	return lock.Grant{Epoch: c.Epoch, To: c.To, TTL: c.TTL, Promises: append([]lock.Promise(nil), c.Promises...)}, true
}

func (c *Coordinator) has(n cluster.MemberNo) bool {
	for _, p := range c.Promises {
		if p.Node == n {
			return true
		}
	}
	return false
}

func (c *Coordinator) drop(n cluster.MemberNo) {
	kept := c.Promises[:0]
	for _, p := range c.Promises {
		if p.Node != n {
			kept = append(kept, p)
		}
	}
	c.Promises = kept
}
