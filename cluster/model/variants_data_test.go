package model

import (
	"testing"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/lock"
)

const notOnDisk = "an fsynced operation is not on the disk of a member in sync"

func aVolume() config {
	c := data()
	c.ops, c.crashes, c.reboots = 1, 0, false
	return c
}

func aVolumeAndReboot() config {
	c := data()
	c.ops, c.prompt = 1, cluster.SetOf(3)
	return c
}

func aVolumeAndSticky() config {
	c := dataSticky()
	c.crashes, c.prompt = 0, cluster.SetOf(2, 3)
	return c
}

func anFsyncVolume() config {
	c := aVolume()
	c.onFsync = true
	return c
}

func anFsyncVolumeAndReboot() config {
	c := aVolumeAndReboot()
	c.onFsync = true
	return c
}

func twoOpsOnFsync() config {
	c := anFsyncVolume()
	c.ops = 2
	return c
}

const gap = "an operation is in a copy without one that came before it"

// The rules of mode sync-on-fsync: what a Sync was answered for survives, and a copy is a prefix. Two rules of mode sync are not among them, because without them
// no promise of this mode is broken within the bounds (the second one searched completely): frames of any epoch accepted (a frame names what it follows, and that suffices where
// nothing is read back), and a re-grant that keeps the in-sync set. The code keeps both.
var fsyncVariants = []variant{
	{"sync-on-fsync: a Sync answered by the own disk alone", anFsyncVolume, func(c *config) { c.code.syncAlone = true }, ""},
	{"sync-on-fsync: a Sync answered when the standby has received it", anFsyncVolume, func(c *config) { c.code.syncReceipt = true }, notOnDisk},
	{"sync-on-fsync: a standby that accepts with a gap", twoOpsOnFsync, func(c *config) { c.code.acceptsGaps = true }, gap},
	{"sync-on-fsync: a Sync answered alone before Degrade is applied", anFsyncVolume, func(c *config) { c.code.degradeUnapplied = true }, ""},
	{"sync-on-fsync: in-sync proposed before waiting", anFsyncVolume, func(c *config) { c.code.inSyncEarly = true }, ""},
	{"sync-on-fsync: in-sync before the standby has fsynced", anFsyncVolume, func(c *config) { c.code.inSyncUnfsynced = true }, notOnDisk},
	{"sync-on-fsync: what was on the disk of a standby before its resync counted", anFsyncVolume, func(c *config) { c.code.oldAccepts = true }, ""},
	{"sync-on-fsync: a Sync that is answered after the deposition", anFsyncVolume, func(c *config) { c.code.syncSurvives = true }, ""},
	{"sync-on-fsync: a standby promoted after a reboot that lost its page cache", anFsyncVolumeAndReboot, func(c *config) {
		c.code.grant = func(s *lock.Service, g *lock.Group, cmd lock.Grant) lock.Result {
			s.Data = false
			r := s.Grant(g, cmd)
			if r == lock.Accepted {
				s.Boots = []lock.MemberBoot{{Node: cmd.To.Node, Boot: g.Admission(cmd.To.Node).Boot}}
			}
			return r
		}
	}, ""},
}

func TestEveryBrokenRuleOfSyncOnFsyncIsCaught(t *testing.T) { table(t, fsyncVariants) }

// Section 4 of the protocol wants that a standby accepts nothing of an epoch that it has promised (D2). No order of events was found in which that
// matters to the data: who promises has either applied no later epoch, and then every operation that it accepts is in the copy that it would take over with, or
// has, and then refuses the epoch itself. See docs/protocol-findings.md.
func TestFramesOfAPromisedEpoch(t *testing.T) {
	for _, in := range []func() config{aVolume, dataBump, dataSticky, onFsync, threeCopies} {
		c := in()
		c.code = product()
		c.code.acceptsPromised = true
		c.most = bound(200_000)
		r := explore(&c)
		t.Logf("%s: %v", c.name_, r)
		if r.broken != "" {
			t.Error(r.broken)
			for i, l := range r.trace {
				t.Logf("%2d %s", i+1, l)
			}
		}
	}
}

var dataVariants = []variant{
	{"pending writes that survive deposition", aVolume, func(c *config) { c.code.pendingSurvive = true }, "an operation of an ended tenure was acknowledged"},
	{"degrade without commit", aVolume, func(c *config) { c.code.degradeUnapplied = true }, ""},
	{"in-sync without generation", func() config {
		c := aVolume()
		c.prompt, c.without = cluster.SetOf(2, 3), []kind{doFence, doFsync, doBump}
		return c
	}, func(c *config) {
		c.keepAcks = true
		c.code.inSync = func(s *lock.Service, g *lock.Group, i lock.InSync) lock.Result {
			i.Gen = s.Gen
			return s.AddInSync(g, i)
		}
	}, ""},
	{"in-sync proposed before waiting", aVolume, func(c *config) { c.code.inSyncEarly = true }, ""},
	{"in-sync before the standby has fsynced", aVolume, func(c *config) { c.code.inSyncUnfsynced = true }, notOnDisk},
	{"what a standby accepted before its resync or its restart counted", aVolumeAndReboot, func(c *config) { c.code.oldAccepts = true }, ""},
	{"promotion of a member not in sync", aVolume, func(c *config) {
		c.code.grant = func(s *lock.Service, g *lock.Group, cmd lock.Grant) lock.Result {
			s.Data = false
			r := s.Grant(g, cmd)
			if r == lock.Accepted {
				s.Boots = []lock.MemberBoot{{Node: cmd.To.Node, Boot: g.Admission(cmd.To.Node).Boot}}
			}
			return r
		}
	}, "granted to a member that is not in sync"},
	{"no epoch in the stream", aVolume, func(c *config) { c.code.noStreamEpoch = true }, ""},
	{"bytes visible before they are replicated", aVolume, func(c *config) { c.code.visibleEarly = true }, ""},
	{"a re-grant that keeps the in-sync set", aVolume, keepInSync, ""},
	{"a re-grant after a crash that keeps the in-sync mark", func() config {
		c := aVolume()
		c.crashes, c.crashing = 1, cluster.SetOf(1)
		c.without = []kind{doBump, doFence}
		return c
	}, func(c *config) {
		keepInSync(c)
		g := c.code.grant
		c.code.grant = func(s *lock.Service, gr *lock.Group, cmd lock.Grant) lock.Result {
			if cmd.To == s.Holder || cmd.To.Node != s.Holder.Node {
				return s.Grant(gr, cmd)
			}
			return g(s, gr, cmd)
		}
	}, ""},
	{"a standby promoted after a reboot that lost its page cache", aVolumeAndReboot, func(c *config) {
		c.code.grant = func(s *lock.Service, g *lock.Group, cmd lock.Grant) lock.Result {
			for i := range s.Boots {
				s.Boots[i].Boot = g.Admission(s.Boots[i].Node).Boot
			}
			return s.Grant(g, cmd)
		}
	}, ""},
	{"the boot id recorded by a Grant", aVolumeAndReboot, func(c *config) {
		c.code.join = func(g *lock.Group, n cluster.MemberNo, inc cluster.Incarnation, boot cluster.BootID) lock.Result {
			return g.Join(n, inc, g.Admission(n).Boot) // the log never learns of the new boot
		}
	}, ""},
	{"a Grant to an incarnation whose Join is not committed", aVolumeAndReboot, func(c *config) {
		c.code.grantUnjoined = true
		c.code.grant = func(s *lock.Service, g *lock.Group, cmd lock.Grant) lock.Result {
			was := g.Admission(cmd.To.Node)
			g.Admitted[cmd.To.Node].Inc = cmd.To.Inc
			r := s.Grant(g, cmd)
			g.Admitted[cmd.To.Node] = was
			return r
		}
	}, ""},
	{"Unsticky that does not say that the active was alone", aVolumeAndSticky, func(c *config) { c.code.aloneNotCarried = true }, ""},
	{"alone after the end of sticky was proposed", aVolumeAndSticky, func(c *config) {
		c.code.stick = func(h *lease.Holder, now cluster.Instant, on bool) { h.Stick(now, true) }
	}, ""},
	{"ForceGrant taken for lossless while sticky", aVolumeAndSticky, func(c *config) {
		c.forces, c.forceKeeps = true, true
	}, ""},
}

func keepInSync(c *config) {
	c.code.grant = func(s *lock.Service, g *lock.Group, cmd lock.Grant) lock.Result {
		in, boots := s.InSync, append([]lock.MemberBoot(nil), s.Boots...)
		r := s.Grant(g, cmd)
		if r == lock.Accepted {
			s.InSync, s.Boots = in.With(cmd.To.Node), boots
		}
		return r
	}
}

func TestEveryBrokenRuleOfTheDataIsCaught(t *testing.T) { table(t, dataVariants) }
