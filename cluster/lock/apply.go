package lock

import (
	"time"

	"github.com/hanode/hanode/cluster"
)

// Grant gives the service to another incarnation, or again to the same one, in the next epoch.
type Grant struct {
	Epoch    cluster.Epoch `pb:"1"` // the epoch that ends
	To       Holder        `pb:"2"`
	TTL      time.Duration `pb:"3"`
	Promises []Promise     `pb:"4"`
	Reports  []Durable     `pb:"5"` // after a power loss of all that were in sync: what each has found durable
}

// Durable is what a run of a member has found durable of the service's data after its host was rebooted.
type Durable struct {
	Node  Holder             `pb:"1"`
	Epoch cluster.Epoch      `pb:"2"`
	Gen   cluster.Generation `pb:"3"`
	Seq   uint64             `pb:"4"`
}

func (d Durable) position() cluster.Position {
	return cluster.Position{Epoch: d.Epoch, Gen: d.Gen, Seq: d.Seq}
}

// ForceGrant is a Grant that an operator orders to a member that may lack acknowledged operations.
type ForceGrant struct {
	Grant
	Off bool `pb:"6"` // power fencing has confirmed, or the operator has typed, that the old active is off
}

// Bump gives the holder its next epoch without an interruption, after a promise that led to no takeover.
type Bump struct {
	Epoch  cluster.Epoch `pb:"1"`
	Holder Holder        `pb:"2"`
	TTL    time.Duration `pb:"3"`
}

// Degrade takes members out of the in-sync set, so that the active may acknowledge without them.
type Degrade struct {
	Epoch cluster.Epoch      `pb:"1"`
	Gen   cluster.Generation `pb:"2"`
	Out   cluster.MemberSet  `pb:"3"`
}

// InSync puts a member into the in-sync set.
type InSync struct {
	Epoch cluster.Epoch      `pb:"1"`
	Gen   cluster.Generation `pb:"2"`
	Node  Holder             `pb:"3"`
}

// Sticky lets the holder stay without the witness; Unsticky (with Off) ends that. Alone says that the holder has
// acknowledged operations that nobody else holds.
type Sticky struct {
	Epoch  cluster.Epoch      `pb:"1"`
	Gen    cluster.Generation `pb:"2"`
	Holder Holder             `pb:"3"`
	Off    bool               `pb:"4"`
	Alone  bool               `pb:"5"`
}

// Confirm says that the holder counts its acknowledgements under the voter set C and all that are not yet settled.
type Confirm struct {
	Epoch  cluster.Epoch `pb:"1"`
	Holder Holder        `pb:"2"`
	C      uint64        `pb:"3"`
}

// Enough says whether these promises end the present epoch: each was given by the admitted incarnation, and the holder's own is
// among them or a majority of the voters gave theirs. A service that was never granted needs none.
func (s *Service) Enough(g *Group, promises []Promise) Result {
	var set cluster.MemberSet
	for _, p := range promises {
		if p.Node == 0 || g.Admission(p.Node).Inc != p.Inc {
			return NotAdmitted
		}
		set = set.With(p.Node)
	}
	switch {
	case s.Holder.Node == 0, set.Has(s.Holder.Node), g.Majority(set):
		return Accepted
	}
	return NoMajority
}

func gave(promises []Promise, h Holder) bool {
	for _, p := range promises {
		if p == h {
			return true
		}
	}
	return false
}

// MayHold says whether a Grant to this incarnation could be accepted as far as its data and admission go.
func (s *Service) MayHold(g *Group, to Holder) Result {
	a := g.Admission(to.Node)
	switch {
	case to.Node == 0 || a.Inc == 0 || a.Inc != to.Inc:
		return NotAdmitted
	case !s.Eligible.Has(to.Node):
		return NotEligible
	case !s.Data:
		return Accepted
	case !s.InSync.Has(to.Node):
		return NotInSync
	case s.Epoch == 0: // nobody has written yet: no reboot can have lost anything
		return Accepted
	}
	for _, b := range s.Boots {
		if b.Node == to.Node && b.Boot == a.Boot {
			return Accepted
		}
	}
	return Rebooted
}

// AllRebooted says that every member that was in sync runs in another boot of its host than then: what was not fsynced is gone everywhere, and
// nobody could be granted the service any more. A member whose new run the log has not admitted counts as in its old boot.
func (s *Service) AllRebooted(g *Group) bool {
	if !s.Data || s.InSync == 0 || s.Epoch == 0 {
		return false
	}
	for _, n := range s.InSync.List() {
		same := true
		for _, b := range s.Boots {
			if b.Node == n {
				same = b.Boot == g.Admission(n).Boot
			}
		}
		if same {
			return false
		}
	}
	return true
}

// Highest says whether to is the member of the in-sync set that has found most durable, after a power loss of all of them, and all have said what
// they found. What was fsynced is there then: every one of them has that.
func (s *Service) Highest(g *Group, to Holder, reports []Durable) bool {
	if !s.AllRebooted(g) {
		return false
	}
	var best, own cluster.Position
	var said cluster.MemberSet
	for _, r := range reports {
		if !s.InSync.Has(r.Node.Node) || g.Admission(r.Node.Node).Inc != r.Node.Inc {
			continue
		}
		said = said.With(r.Node.Node)
		p := r.position()
		if p.Compare(best) > 0 {
			best = p
		}
		if r.Node == to {
			own = p
		}
	}
	// While sticky only the holder's node can have acknowledged anything alone; it is the one that may be granted then, and has what was fsynced.
	return said == s.InSync && said.Has(to.Node) && (own.Compare(best) == 0 || s.Sticky && to.Node == s.Holder.Node)
}

// Grant applies c.
func (s *Service) Grant(g *Group, c Grant) Result {
	switch {
	case c.Epoch != s.Epoch:
		return StaleEpoch
	case s.Held:
		return IsHeld
	case s.Sticky && (c.To.Node != s.Holder.Node || c.To == s.Holder && !gave(c.Promises, s.Holder)):
		// Nor to the run that holds it, unless that has ended its tenure: it would end the sticky state without the knowledge
		// of the one that relies on it.
		return IsSticky
	}
	may := s.MayHold(g, c.To)
	if may != Accepted && !(may == Rebooted && s.Highest(g, c.To, c.Reports)) {
		return may
	}
	if r := s.Enough(g, c.Promises); r != Accepted {
		return r
	}
	if may == Rebooted || s.Epoch == 0 && s.Data {
		s.setBoot(c.To.Node, g.Admission(c.To.Node).Boot)
	}
	s.grant(g, c)
	return Accepted
}

// Force applies c: as Grant, but to any eligible member, and whether or not the witness is lost.
func (s *Service) Force(g *Group, c ForceGrant) Result {
	switch r := s.MayHold(g, c.To); {
	case c.Epoch != s.Epoch:
		return StaleEpoch
	case s.Held:
		return IsHeld
	case r != Accepted && r != NotInSync && r != Rebooted:
		return r
	}
	if r := s.Enough(g, c.Promises); r != Accepted && !(r == NoMajority && c.Off) {
		return r
	}
	s.setBoot(c.To.Node, g.Admission(c.To.Node).Boot)
	s.grant(g, c.Grant)
	s.Forced = s.Epoch
	return Accepted
}

func (s *Service) grant(g *Group, c Grant) {
	s.Epoch++
	s.Holder = c.To
	s.InSync = cluster.SetOf(c.To.Node)
	s.keepBoots()
	s.Gen++
	s.Sticky = false
	s.TTL, s.TTLMax = c.TTL, c.TTL
	s.Confirmed = g.C()
}

// Bump applies c. The in-sync set and the generation stay: pending operations are sent again in the new epoch.
func (s *Service) Bump(c Bump) Result {
	switch {
	case c.Epoch != s.Epoch:
		return StaleEpoch
	case c.Holder != s.Holder:
		return NotHolder
	case s.Held:
		return IsHeld
	case c.TTL < s.TTL:
		return LowerTTL
	}
	s.Epoch++
	s.TTL = c.TTL
	s.TTLMax = max(s.TTLMax, c.TTL)
	return Accepted
}

// Degrade applies c. The holder itself stays in sync.
func (s *Service) Degrade(c Degrade) Result {
	if r := s.based(c.Epoch, c.Gen); r != Accepted {
		return r
	}
	s.InSync &^= c.Out.Without(s.Holder.Node)
	s.keepBoots()
	s.Gen++
	return Accepted
}

// AddInSync applies c.
func (s *Service) AddInSync(g *Group, c InSync) Result {
	if r := s.based(c.Epoch, c.Gen); r != Accepted {
		return r
	}
	a := g.Admission(c.Node.Node)
	switch {
	case a.Inc == 0 || a.Inc != c.Node.Inc:
		return NotAdmitted
	case !s.Eligible.Has(c.Node.Node):
		return NotEligible
	}
	s.InSync = s.InSync.With(c.Node.Node)
	s.setBoot(c.Node.Node, a.Boot)
	return Accepted
}

// Stick applies c.
func (s *Service) Stick(c Sticky) Result {
	if r := s.based(c.Epoch, c.Gen); r != Accepted {
		return r
	}
	switch {
	case c.Holder != s.Holder:
		return NotHolder
	case c.Off && !s.Sticky:
		return NotSticky
	}
	s.Sticky = !c.Off
	if c.Off && c.Alone {
		s.InSync = cluster.SetOf(s.Holder.Node)
		s.keepBoots()
	}
	s.Gen++
	return Accepted
}

// Confirm applies c.
func (s *Service) Confirm(c Confirm) Result {
	switch {
	case c.Epoch != s.Epoch:
		return StaleEpoch
	case c.Holder != s.Holder:
		return NotHolder
	}
	s.Confirmed = max(s.Confirmed, c.C)
	return Accepted
}

func (s *Service) based(e cluster.Epoch, g cluster.Generation) Result {
	switch {
	case e != s.Epoch:
		return StaleEpoch
	case g != s.Gen:
		return StaleGeneration
	}
	return Accepted
}

// FirstBoot records in which boot a member first ran that was named as the one that has the data before it had run at all: it was never
// granted anything, and so it can have lost nothing.
func (s *Service) FirstBoot(n cluster.MemberNo, b cluster.BootID) {
	for _, have := range s.Boots {
		if have.Node == n && have.Boot == (cluster.BootID{}) {
			s.setBoot(n, b)
		}
	}
}

func (s *Service) setBoot(n cluster.MemberNo, b cluster.BootID) {
	out := make([]MemberBoot, 0, len(s.Boots)+1)
	done := false
	for _, have := range s.Boots {
		if !done && have.Node >= n {
			out, done = append(out, MemberBoot{n, b}), true
		}
		if have.Node != n {
			out = append(out, have)
		}
	}
	if !done {
		out = append(out, MemberBoot{n, b})
	}
	s.Boots = out
}

func (s *Service) keepBoots() {
	var out []MemberBoot
	for _, b := range s.Boots {
		if s.InSync.Has(b.Node) {
			out = append(out, b)
		}
	}
	s.Boots = out
}

// Join admits an incarnation of a member.
func (g *Group) Join(n cluster.MemberNo, inc cluster.Incarnation, boot cluster.BootID) Result {
	if n == 0 || n > cluster.MaxMembers {
		return Unknown
	}
	if inc <= g.Admission(n).Inc {
		return NotAdmitted
	}
	for int(n) >= len(g.Admitted) {
		g.Admitted = append(g.Admitted, Admission{})
	}
	g.Admitted[n] = Admission{Inc: inc, Boot: boot}
	return Accepted
}

// SetVoters records the voters that the log has changed to. The first set needs no settling.
func (g *Group) SetVoters(set cluster.MemberSet) {
	if n := len(g.Sets); n > 0 && g.Sets[n-1].Set == set {
		return
	}
	g.Sets = append(g.Sets, VoterSet{C: g.C() + 1, Set: set})
}

// Settle makes the voter set c the only one that counts, unless the holder of one of the services may still count under
// an older one: it has not confirmed c, was not granted after c, and its epoch was not closed by itself or by a majority of each
// older set. closed holds, for each service of such a kind, the promises that closed its present epoch.
func (g *Group) Settle(c uint64, services []*Service, closed map[*Service][]Promise) Result {
	at := -1
	for i, v := range g.Sets {
		if v.C == c {
			at = i
		}
	}
	if at <= 0 {
		return Unknown
	}
	older := Group{Admitted: g.Admitted, Sets: g.Sets[:at]}
	for _, s := range services {
		if s.Holder.Node == 0 || s.Confirmed >= c {
			continue
		}
		if p, ok := closed[s]; ok && s.Enough(&older, p) == Accepted {
			continue
		}
		return NotSettled
	}
	g.Sets = append([]VoterSet(nil), g.Sets[at:]...)
	return Accepted
}
