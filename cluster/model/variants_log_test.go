package model

import (
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/lock"
)

// small bounds in which the rules of each kind can be broken.
func aBump() config {
	c := bumping()
	c.crashes = 0
	return c
}

func aBumpAndCrash() config {
	c := bumping()
	c.crashes, c.crashing, c.grantTTLs, c.prompt = 1, cluster.SetOf(3), []uint8{1}, cluster.SetOf(1, 2)
	return c
}

var bumpVariants = []variant{
	{"a lease time changed by one member alone", func() config { c := base(); c.bumpTTLs = []uint8{3}; c.crashes = 0; return c }, func(c *config) {
		c.code.ttlAlone = true
		c.code.renew = func(v *lease.Voter, now cluster.Instant, e cluster.Epoch, ttl time.Duration, k lease.Known) lease.Answer {
			return v.Renew(now, e, min(ttl, k.TTLMax), k) // the voters wait for what the log says
		}
	}, two},
	{"a Bump that lowers the lease time, and voters that wait for the newest only", aBump, func(c *config) {
		c.code.bump = func(s *lock.Service, b lock.Bump) lock.Result {
			s.TTL, s.TTLMax = 0, b.TTL
			r := s.Bump(b)
			s.TTLMax = b.TTL
			return r
		}
		c.grantTTLs, c.bumpTTLs = []uint8{2}, []uint8{1, 2}
		c.lowerBumps = true
		c.code.bumped = func(h *lease.Holder, e cluster.Epoch, ttl time.Duration) bool { return h.Bumped(e, max(ttl, h.TTL)) }
		c.code.renew = func(v *lease.Voter, now cluster.Instant, e cluster.Epoch, ttl time.Duration, k lease.Known) lease.Answer {
			return v.Renew(now, e, min(ttl, k.TTLMax), k)
		}
	}, two},
	{"a restarted voter that waits from the current TTL", aBumpAndCrash, func(c *config) {
		c.grantTTLs, c.bumpTTLs = []uint8{1}, []uint8{2}
		p := c.code.promise
		c.code.promise = func(v *lease.Voter, now cluster.Instant, e cluster.Epoch, holder bool, k lease.Known) lease.Answer {
			k.TTLMax = min(k.TTLMax, tick) // the TTL that its spec says by now
			return p(v, now, e, holder, k)
		}
	}, two},
	{"a late Release that resets the largest TTL", func() config {
		c := aBump()
		c.lateRelease, c.keepAcks, c.grantTTLs = true, true, []uint8{1}
		return c
	}, func(c *config) {
		c.code.release = func(v *lease.Voter, e cluster.Epoch) { v.Release(e); v.AckedTTL = 0; v.LastAck = 0 }
	}, two},
	{"an ack of an older epoch counted with the new TTL", func() config {
		c := aBump()
		c.keepAcks, c.grantTTLs, c.bumpTTLs = true, []uint8{1}, []uint8{3}
		return c
	}, func(c *config) {
		c.code.ack = func(h *lease.Holder, now cluster.Instant, voter cluster.MemberNo, _ cluster.Epoch, _ time.Duration, at cluster.Instant) bool {
			return h.Ack(now, voter, h.Epoch, h.TTL, at)
		}
	}, two},
	{"serving on a Bump after having fenced", aBump, func(c *config) {
		c.code.bumped = func(h *lease.Holder, e cluster.Epoch, ttl time.Duration) bool {
			if e > h.Epoch && h.Phase >= lease.Fenced {
				h.Phase = lease.Serving
				h.Acks = append(h.Acks, lease.Ack{Voter: 3, Until: now.Add(ttl)}) // as if the lease went on
			}
			return h.Bumped(e, ttl)
		}
	}, two},
	{"a holder that answers for its own next epoch as any voter", aBump, func(c *config) { c.code.promiseAhead = true }, two},
	{"a Bump by one that is not, or no longer, the holder", aBump, func(c *config) {
		c.code.bump = func(s *lock.Service, b lock.Bump) lock.Result {
			b.Epoch, b.Holder = s.Epoch, s.Holder
			r := s.Bump(b)
			s.Holder = lock.Holder{Node: 1, Inc: 1}
			return r
		}
		c.bumpsOfAnyEpoch = true
	}, two},
}

func TestEveryBrokenRuleOfBumpIsCaught(t *testing.T) { table(t, bumpVariants) }

func aSticky() config {
	c := sticking()
	c.crashes = 0
	return c
}

// aStickyUnaware lets A alone lag.
func aStickyUnaware() config {
	c := aSticky()
	c.lag, c.prompt = 2, cluster.SetOf(2, 3)
	return c
}

var stickyVariants = []variant{
	{"sticky relied on after its end was proposed", aSticky, func(c *config) {
		c.code.stick = func(h *lease.Holder, now cluster.Instant, on bool) { h.Stick(now, true) }
	}, two},
	{"sticky relied on again when its end's proposal timed out", aSticky, func(c *config) { c.code.restickOnTimeout = true }, two},
	{"the end of sticky proposed while the gates are open by it", aSticky, func(c *config) {
		c.code.unstickStaysPushed = true
		c.code.fresh = func(h *lease.Holder, now cluster.Instant) cluster.Instant { return now.Add(h.TTL) }
	}, two},
	{"a Grant to another node while sticky", aSticky, func(c *config) {
		c.code.grant = func(s *lock.Service, g *lock.Group, cmd lock.Grant) lock.Result {
			was := s.Sticky
			s.Sticky = false
			r := s.Grant(g, cmd)
			if r != lock.Accepted {
				s.Sticky = was
			}
			return r
		}
	}, "granted away while sticky"},
	{"a Grant to the run that relies on sticky, without its promise", aStickyUnaware, func(c *config) {
		c.code.grant = func(s *lock.Service, g *lock.Group, cmd lock.Grant) lock.Result {
			was := s.Sticky
			s.Sticky = was && cmd.To.Node != s.Holder.Node
			r := s.Grant(g, cmd)
			if r != lock.Accepted {
				s.Sticky = was
			}
			return r
		}
	}, two},
	{"serving again after a restart while sticky without quorum", func() config { c := aStickyUnaware(); c.crashes, c.crashing, c.lag = 1, cluster.SetOf(1), 2; return c }, func(c *config) {
		c.code.stickyWithoutQuorum = true
	}, two},
}

func TestEveryBrokenRuleOfStickyIsCaught(t *testing.T) { table(t, stickyVariants) }

func aChange() config {
	c := witnessReplaced()
	c.lag = 2
	c.epochs = 2
	return c
}

// aStale lets A and the old witness lag, while B and the new one know everything.
func aStale() config {
	c := witnessReplaced()
	c.prompt, c.epochs, c.lag = cluster.SetOf(2, 4), 3, 3
	return c
}

// aPushed lets B and the old witness lag.
func aPushed() config {
	c := witnessReplaced()
	c.prompt, c.epochs, c.lag, c.without = cluster.SetOf(1, 4), 3, 4, []kind{doFence}
	return c
}

func onlyNewest(g *lock.Group) *lock.Group {
	n := g.Clone()
	n.Sets = n.Sets[len(n.Sets)-1:]
	return &n
}

var voterVariants = []variant{
	{"one voter set counted during a change, by a Grant", aChange, func(c *config) {
		c.code.ready = func(co *lease.Coordinator, s *lock.Service, g *lock.Group) (lock.Grant, bool) {
			return co.Ready(s, onlyNewest(g))
		}
		c.code.grant = func(s *lock.Service, g *lock.Group, cmd lock.Grant) lock.Result {
			r := s.Grant(onlyNewest(g), cmd)
			return r
		}
	}, two},
	{"Settled without confirmation", aStale, func(c *config) {
		c.code.settle = func(g *lock.Group, n uint64, services []*lock.Service, closed map[*lock.Service][]lock.Promise) lock.Result {
			return g.Settle(n, nil, nil)
		}
	}, two},
	{"a Bump taken for the confirmation of a new voter set", func() config {
		c := aStale()
		c.bumps, c.bumpTTLs, c.lag = true, []uint8{1}, 4
		return c
	}, func(c *config) {
		c.code.bump = func(s *lock.Service, b lock.Bump) lock.Result {
			r := s.Bump(b)
			if r == lock.Accepted {
				s.Confirmed = 2
			}
			return r
		}
	}, two},
	{"a voter set confirmed while the gates are open by the older one alone", func() config {
		c := aChange()
		c.grantTTLs, c.prompt = []uint8{2}, cluster.SetOf(1, 2, 3, 4)
		return c
	}, func(c *config) {
		c.code.confirms = func(h *lease.Holder, now cluster.Instant) bool { return h.Phase == lease.Serving && h.Fresh(now) > now }
	}, two},
	{"a Grant heard of early and counted under the voter sets of before", aPushed, func(c *config) { c.code.pushedGrant = true }, two},
	{"closed by the newest set alone", aStale, func(c *config) {
		c.code.settle = func(g *lock.Group, n uint64, services []*lock.Service, closed map[*lock.Service][]lock.Promise) lock.Result {
			for s, p := range closed {
				if s.Enough(onlyNewest(g), p) == lock.Accepted {
					s2 := *s
					s2.Confirmed = n
					return g.Settle(n, []*lock.Service{&s2}, closed)
				}
			}
			return g.Settle(n, services, closed)
		}
	}, two},
}

func TestEveryBrokenRuleOfVoterChangesIsCaught(t *testing.T) { table(t, voterVariants) }
