package lock

import (
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hanode/hanode/cluster"
)

const ttl = 250 * time.Millisecond

// world is a service with data on members 1 and 2, held by 1 in epoch 3, and a witness 3.
func world() (*Service, *Group) {
	g := &Group{}
	g.SetVoters(cluster.SetOf(1, 2, 3))
	for n := cluster.MemberNo(1); n <= 3; n++ {
		g.Join(n, 5, cluster.BootID{byte(n)})
	}
	s := &Service{Epoch: 3, Holder: Holder{1, 5}, Data: true, Eligible: cluster.SetOf(1, 2), InSync: cluster.SetOf(1, 2), Gen: 7, TTL: ttl, TTLMax: ttl, Confirmed: 1,
		Boots: []MemberBoot{{1, cluster.BootID{1}}, {2, cluster.BootID{2}}}}
	return s, g
}

var both = []Promise{{2, 5}, {3, 5}}

// powerLoss reboots both nodes.
func powerLoss(g *Group, c *Grant) {
	g.Join(1, 6, cluster.BootID{8})
	g.Join(2, 6, cluster.BootID{9})
	c.To.Inc, c.Promises = 6, []Promise{{2, 6}, {3, 5}}
}

func TestWhichGrantsAreAccepted(t *testing.T) {
	for _, x := range []struct {
		what string
		do   func(s *Service, g *Group, c *Grant)
		want Result
	}{
		{"a majority promised", func(*Service, *Group, *Grant) {}, Accepted},
		{"the holder released", func(_ *Service, _ *Group, c *Grant) { c.Promises = []Promise{{1, 5}} }, Accepted},
		{"one promise is no majority", func(_ *Service, _ *Group, c *Grant) { c.Promises = both[:1] }, NoMajority},
		{"one promise twice is no majority", func(_ *Service, _ *Group, c *Grant) { c.Promises = []Promise{{2, 5}, {2, 5}} }, NoMajority},
		{"a promise of a dead run", func(_ *Service, _ *Group, c *Grant) { c.Promises = []Promise{{2, 5}, {3, 4}} }, NotAdmitted},
		{"a promise of nobody", func(_ *Service, _ *Group, c *Grant) { c.Promises = []Promise{{0, 0}, {2, 5}, {3, 5}} }, NotAdmitted},
		{"another epoch", func(_ *Service, _ *Group, c *Grant) { c.Epoch = 2 }, StaleEpoch},
		{"held", func(s *Service, _ *Group, _ *Grant) { s.Held = true }, IsHeld},
		{"sticky", func(s *Service, _ *Group, _ *Grant) { s.Sticky = true }, IsSticky},
		{"sticky, with the holder's release", func(s *Service, _ *Group, c *Grant) { s.Sticky = true; c.Promises = []Promise{{1, 5}} }, IsSticky},
		{"sticky, to the run that relies on it", func(s *Service, _ *Group, c *Grant) { s.Sticky = true; c.To = Holder{1, 5} }, IsSticky},
		{"sticky, to the run that has released", func(s *Service, _ *Group, c *Grant) {
			s.Sticky, c.To, c.Promises = true, Holder{1, 5}, []Promise{{1, 5}}
		}, Accepted},
		{"sticky, to the next run of its node", func(s *Service, g *Group, c *Grant) {
			s.Sticky, c.To = true, Holder{1, 6}
			g.Join(1, 6, cluster.BootID{1})
		}, Accepted},
		{"a target that is not in sync", func(s *Service, _ *Group, _ *Grant) { s.InSync = cluster.SetOf(1) }, NotInSync},
		{"a target that is not admitted", func(_ *Service, _ *Group, c *Grant) { c.To.Inc = 6 }, NotAdmitted},
		{"a target that is not eligible", func(_ *Service, _ *Group, c *Grant) { c.To = Holder{3, 5} }, NotEligible},
		{"a target that was rebooted", func(_ *Service, g *Group, c *Grant) {
			g.Join(2, 6, cluster.BootID{9})
			c.To.Inc, c.Promises = 6, []Promise{{2, 6}, {3, 5}}
		}, Rebooted},
		{"everybody rebooted, and nobody has said what was found", func(_ *Service, g *Group, c *Grant) { powerLoss(g, c) }, Rebooted},
		{"everybody rebooted, one has said", func(_ *Service, g *Group, c *Grant) {
			powerLoss(g, c)
			c.Reports = []Durable{{Holder{2, 6}, 3, 7, 10}}
		}, Rebooted},
		{"everybody rebooted, to the one with most", func(_ *Service, g *Group, c *Grant) {
			powerLoss(g, c)
			c.Reports = []Durable{{Holder{1, 6}, 3, 7, 9}, {Holder{2, 6}, 3, 7, 10}}
		}, Accepted},
		{"everybody rebooted, not to the one with most", func(_ *Service, g *Group, c *Grant) {
			powerLoss(g, c)
			c.Reports = []Durable{{Holder{1, 6}, 3, 7, 11}, {Holder{2, 6}, 3, 7, 10}}
		}, Rebooted},
		{"everybody rebooted, what a dead run said", func(_ *Service, g *Group, c *Grant) {
			powerLoss(g, c)
			c.Reports = []Durable{{Holder{1, 5}, 3, 7, 9}, {Holder{2, 6}, 3, 7, 10}}
		}, Rebooted},
		{"everybody rebooted, and one whose new run is not admitted", func(_ *Service, g *Group, c *Grant) {
			g.Join(2, 6, cluster.BootID{9})
			c.To.Inc, c.Promises = 6, []Promise{{2, 6}, {3, 5}}
			c.Reports = []Durable{{Holder{1, 6}, 3, 7, 9}, {Holder{2, 6}, 3, 7, 10}}
		}, Rebooted},
		{"everybody rebooted while sticky, to the holder's node", func(s *Service, g *Group, c *Grant) {
			powerLoss(g, c)
			s.Sticky, c.To = true, Holder{1, 6}
			c.Reports = []Durable{{Holder{1, 6}, 3, 7, 9}, {Holder{2, 6}, 3, 7, 10}}
		}, Accepted},
		{"everybody rebooted while sticky, to another", func(s *Service, g *Group, c *Grant) {
			powerLoss(g, c)
			s.Sticky = true
			c.Reports = []Durable{{Holder{1, 6}, 3, 7, 9}, {Holder{2, 6}, 3, 7, 10}}
		}, IsSticky},
		{"joint sets, a majority of one", func(_ *Service, g *Group, _ *Grant) { g.SetVoters(cluster.SetOf(1, 2, 4)) }, NoMajority},
		{"joint sets, a majority of both", func(_ *Service, g *Group, c *Grant) {
			g.SetVoters(cluster.SetOf(1, 2, 4))
			g.Join(4, 1, cluster.BootID{4})
			c.Promises = []Promise{{2, 5}, {3, 5}, {4, 1}}
		}, Accepted},
	} {
		s, g := world()
		c := Grant{Epoch: 3, To: Holder{2, 5}, TTL: 2 * ttl, Promises: both}
		x.do(s, g, &c)
		before := s.Clone()
		if got := s.Grant(g, c); got != x.want {
			t.Errorf("%s: %v, want %v", x.what, got, x.want)
		}
		if x.want != Accepted && !reflect.DeepEqual(before, s.Clone()) {
			t.Errorf("%s: refused, and changed the state", x.what)
		}
		if x.want == Accepted && (s.Epoch != 4 || s.Holder != c.To || s.InSync != cluster.SetOf(c.To.Node) || s.Gen != 8 || s.Sticky || s.TTLMax != 2*ttl) {
			t.Errorf("%s: %+v", x.what, s)
		}
	}
}

func TestAForcedGrantNeedsNoInSyncButTheEndOfTheOldActive(t *testing.T) {
	s, g := world()
	s.InSync, s.Sticky = cluster.SetOf(1), true
	c := ForceGrant{Grant: Grant{Epoch: 3, To: Holder{2, 5}, TTL: ttl}}
	if r := s.Force(g, c); r != NoMajority {
		t.Error(r)
	}
	if c.Off = true; s.Force(g, c) != Accepted || s.Forced != 4 || s.InSync != cluster.SetOf(2) || s.Sticky {
		t.Errorf("%+v", s)
	}
}

func TestTheInSyncSetChangesOnlyOnItsOwnGeneration(t *testing.T) {
	s, g := world()
	if r := s.Degrade(Degrade{3, 7, cluster.SetOf(1, 2)}); r != Accepted || s.InSync != cluster.SetOf(1) || s.Gen != 8 || len(s.Boots) != 1 {
		t.Errorf("%v %+v", r, s)
	}
	if r := s.AddInSync(g, InSync{3, 7, Holder{2, 5}}); r != StaleGeneration {
		t.Error(r)
	}
	if r := s.AddInSync(g, InSync{3, 8, Holder{2, 4}}); r != NotAdmitted {
		t.Error(r)
	}
	if r := s.AddInSync(g, InSync{3, 8, Holder{2, 5}}); r != Accepted || s.InSync != cluster.SetOf(1, 2) || s.Gen != 8 {
		t.Errorf("%v %+v", r, s)
	}
}

func TestStickyIsTheHoldersAndAloneDropsTheOthers(t *testing.T) {
	s, _ := world()
	for _, x := range []struct {
		c    Sticky
		want Result
	}{
		{Sticky{Epoch: 3, Gen: 7, Holder: Holder{1, 5}, Off: true}, NotSticky},
		{Sticky{Epoch: 3, Gen: 7, Holder: Holder{1, 4}}, NotHolder},
		{Sticky{Epoch: 3, Gen: 7, Holder: Holder{1, 5}}, Accepted},
		{Sticky{Epoch: 3, Gen: 7, Holder: Holder{1, 5}, Off: true}, StaleGeneration},
		{Sticky{Epoch: 3, Gen: 8, Holder: Holder{1, 5}, Off: true, Alone: true}, Accepted},
	} {
		if got := s.Stick(x.c); got != x.want {
			t.Errorf("%+v: %v", x.c, got)
		}
	}
	if s.InSync != cluster.SetOf(1) || s.Gen != 9 {
		t.Errorf("%+v", s)
	}
}

func TestABumpKeepsOrRaisesTheLease(t *testing.T) {
	s, _ := world()
	if r := s.Bump(Bump{3, Holder{1, 5}, ttl / 2}); r != LowerTTL {
		t.Error(r)
	}
	if r := s.Bump(Bump{3, Holder{2, 5}, ttl}); r != NotHolder {
		t.Error(r)
	}
	if r := s.Bump(Bump{3, Holder{1, 5}, 2 * ttl}); r != Accepted || s.TTLMax != 2*ttl || s.Gen != 7 || s.InSync.Len() != 2 {
		t.Error(r)
	}
	if r := s.Bump(Bump{3, Holder{1, 5}, 2 * ttl}); r != StaleEpoch {
		t.Error(r)
	}
}

func TestAVoterSetIsSettledOnlyWhenNobodyCountsUnderTheOldOne(t *testing.T) {
	for _, x := range []struct {
		what string
		do   func(s *Service, g *Group) map[*Service][]Promise
		want Result
	}{
		{"nobody said so", func(*Service, *Group) map[*Service][]Promise { return nil }, NotSettled},
		{"confirmed", func(s *Service, _ *Group) map[*Service][]Promise { s.Confirm(Confirm{3, Holder{1, 5}, 2}); return nil }, Accepted},
		{"confirmed by another run", func(s *Service, _ *Group) map[*Service][]Promise { s.Confirm(Confirm{3, Holder{1, 4}, 2}); return nil }, NotSettled},
		{"a Bump is no confirmation", func(s *Service, _ *Group) map[*Service][]Promise { s.Bump(Bump{3, Holder{1, 5}, ttl}); return nil }, NotSettled},
		{"closed by the holder", func(s *Service, _ *Group) map[*Service][]Promise {
			return map[*Service][]Promise{s: {{1, 5}}}
		}, Accepted},
		{"closed by a majority of the older set", func(s *Service, _ *Group) map[*Service][]Promise {
			return map[*Service][]Promise{s: both}
		}, Accepted},
		{"closed by a majority of the newer set alone", func(s *Service, g *Group) map[*Service][]Promise {
			return map[*Service][]Promise{s: {{2, 5}, {4, 1}}}
		}, NotSettled},
		{"nobody holds it", func(s *Service, _ *Group) map[*Service][]Promise { s.Holder = Holder{}; return nil }, Accepted},
	} {
		s, g := world()
		g.Join(4, 1, cluster.BootID{4})
		g.SetVoters(cluster.SetOf(1, 2, 4))
		if got := g.Settle(2, []*Service{s}, x.do(s, g)); got != x.want {
			t.Errorf("%s: %v, want %v", x.what, got, x.want)
		}
		if len(g.Sets) != map[bool]int{true: 1, false: 2}[x.want == Accepted] || g.C() != 2 {
			t.Errorf("%s: %+v", x.what, g.Sets)
		}
	}
}

// Whatever is proposed, epochs and generations never fall, one epoch has one holder, and Boots are those of the set, in order.
func TestNothingEverGoesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, g := world()
		holder := map[cluster.Epoch]Holder{s.Epoch: s.Holder}
		n := func(what string, lo, hi int) int { return rapid.IntRange(lo, hi).Draw(t, what) }
		for range 40 {
			e, gen := s.Epoch+cluster.Epoch(n("e", 0, 1))-cluster.Epoch(n("e-", 0, 1)), s.Gen-cluster.Generation(n("g", 0, 1))
			who := Holder{cluster.MemberNo(n("node", 0, 4)), cluster.Incarnation(n("inc", 4, 7))}
			was := s.Clone()
			switch n("what", 0, 6) {
			case 0:
				s.Grant(g, Grant{Epoch: e, To: who, TTL: ttl, Promises: []Promise{{2, g.Admission(2).Inc}, {3, g.Admission(3).Inc}}})
			case 1:
				s.Force(g, ForceGrant{Grant: Grant{Epoch: e, To: who, TTL: ttl}, Off: true})
			case 2:
				s.Bump(Bump{e, s.Holder, ttl * time.Duration(n("ttl", 1, 3))})
			case 3:
				s.Degrade(Degrade{e, gen, cluster.SetOf(who.Node)})
			case 4:
				s.AddInSync(g, InSync{e, gen, who})
			case 5:
				s.Stick(Sticky{Epoch: e, Gen: gen, Holder: s.Holder, Off: n("off", 0, 1) == 1, Alone: n("alone", 0, 1) == 1})
			case 6:
				g.Join(who.Node, who.Inc, cluster.BootID{byte(n("boot", 1, 9))})
			}
			if s.Epoch < was.Epoch || s.Gen < was.Gen || s.TTLMax < s.TTL {
				t.Fatalf("%+v became %+v", was, s)
			}
			if s.Epoch == was.Epoch && s.Holder != was.Holder {
				t.Fatalf("epoch %d has two holders", s.Epoch)
			}
			if h, ok := holder[s.Epoch]; ok && h != s.Holder {
				t.Fatalf("epoch %d has two holders", s.Epoch)
			}
			holder[s.Epoch] = s.Holder
			var have cluster.MemberSet
			last := cluster.MemberNo(0)
			for _, b := range s.Boots {
				if b.Node <= last {
					t.Fatalf("boots out of order: %v", s.Boots)
				}
				last, have = b.Node, have.With(b.Node)
			}
			if have != s.InSync {
				t.Fatalf("boots of %v, in sync %v", have.List(), s.InSync.List())
			}
		}
	})
}
