package core

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/cluster/state"
)

// Members of the tests: nodes a and b, witness w; the core under test is a's unless said otherwise.
const (
	a = cluster.MemberNo(1)
	b = cluster.MemberNo(2)
	w = cluster.MemberNo(3)
)

const ms = cluster.Instant(time.Millisecond)

// bench is one core with a log and a clock.
type bench struct {
	t     *testing.T
	c     *Core
	now   cluster.Instant
	index uint64
}

func id(n cluster.MemberNo) cluster.NodeID { return cluster.NodeID{byte(n)} }

// newBench is a member of a cluster of three, in profile fast, whose service web (number 1) nobody holds yet.
func newBench(t *testing.T, self cluster.MemberNo) *bench {
	role := cluster.RoleNode
	if self == w {
		role = cluster.RoleWitness
	}
	k := &bench{t: t, now: 1000 * ms}
	k.c = New(Config{ID: id(self), Role: role, Inc: 1}, k.now, new(state.State))
	k.apply(&state.Command{Init: &state.Init{ClusterID: "c", Level: state.FeatureLevel}})
	var servers []string
	for i, name := range []string{"a", "b", "w"} {
		m := state.Member{ID: id(cluster.MemberNo(i + 1)), Name: name, Role: cluster.RoleNode}
		if name == "w" {
			m.Role = cluster.RoleWitness
		}
		var h []byte // the first member needs no token
		if i > 0 {
			h = []byte{byte(i)}
			k.apply(&state.Command{TokenCreate: &state.Token{Hash: h, Role: m.Role, Until: 1 << 60}})
		}
		k.apply(&state.Command{MemberAdd: &state.MemberAdd{Member: m, TokenHash: h}})
		servers = append(servers, m.ServerID())
	}
	k.c.Voters(k.now, servers)
	for n := a; n <= w; n++ {
		k.apply(&state.Command{Join: &state.Join{ID: id(n), Inc: 1}})
	}
	spec := &cluster.Spec{Profile: "fast", MaxFailovers: 3, FailoversWithin: time.Minute, Services: []cluster.ServiceSpec{{Name: "web", Nodes: []string{"a", "b"},
		Run: "active", Failover: "automatic", Failback: "manual", WitnessLost: "protect"}}}
	compiled, err := spec.Encode()
	if err != nil {
		t.Fatal(err)
	}
	k.apply(&state.Command{SpecApply: &state.SpecApply{Compiled: compiled}})
	return k
}

func (k *bench) apply(c *state.Command) []Action {
	k.t.Helper()
	k.index++
	o, acts, err := k.c.Apply(k.now, 0, k.index, c)
	if err != nil || o.Err() != nil {
		k.t.Fatalf("apply %+v: %v, %v", c, err, o.Err())
	}
	return acts
}

func (k *bench) grant(e cluster.Epoch, to cluster.MemberNo, promises ...cluster.MemberNo) []Action {
	g := lock.Grant{Epoch: e, To: lock.Holder{Node: to, Inc: 1}, TTL: 250 * time.Millisecond}
	for _, p := range promises {
		g.Promises = append(g.Promises, lock.Promise{Node: p, Inc: 1})
	}
	return k.apply(&state.Command{Grant: &state.Grant{Grant: g, Service: 1}})
}

func (k *bench) step(ev Event) []Action { return k.c.Step(k.now, 0, ev) }

func (k *bench) hear(from cluster.MemberNo, f Frame) []Action {
	return k.step(Received{From: from, Frame: f})
}

// ack is a voter's answer to a renewal sent now.
func (k *bench) ack(from cluster.MemberNo, e cluster.Epoch) []Action {
	return k.hear(from, &Ack{Inc: 1, Sent: k.now, VoterInc: 1, Leases: []Lease{{Service: 1, Epoch: e, TTL: 250 * time.Millisecond}}})
}

// serve makes a serve in epoch 1.
func serve(t *testing.T) *bench {
	k := newBench(t, a)
	k.grant(0, a)
	if e := find[Extend](k.ack(w, 1)); e == nil || !e.First || e.Deadline != k.now+250*ms {
		t.Fatalf("after the first acknowledgement: %+v", e)
	}
	return k
}

func find[T Action](acts []Action) *T {
	for _, x := range acts {
		if v, ok := x.(T); ok {
			return &v
		}
	}
	return nil
}

func sent[T Frame](acts []Action) (out []T) {
	for _, x := range acts {
		if s, ok := x.(Send); ok {
			if f, ok := s.Frame.(T); ok {
				out = append(out, f)
			}
		}
	}
	return out
}

func TestAfterAStandstillTheFirstThingIsToFence(t *testing.T) {
	first := map[string]func(k *bench) []Action{
		"a tick": func(k *bench) []Action { return k.step(Tick{}) },
		"a frame": func(k *bench) []Action {
			return k.hear(w, &Granted{Service: 1, Epoch: 1, To: lock.Holder{Node: a, Inc: 1}, TTL: 250 * time.Millisecond})
		},
		"a beat":  func(k *bench) []Action { return k.hear(b, &Beat{Inc: 1}) },
		"the log": func(k *bench) []Action { return k.apply(&state.Command{Nop: &state.Nop{}}) },
		"an ack":  func(k *bench) []Action { return k.ack(w, 1) },
	}
	for name, f := range first {
		k := serve(t)
		k.now += 250 * ms
		acts := f(k)
		if find[Close](acts) == nil || find[Extend](acts) != nil || len(sent[*Renew](acts)) > 0 {
			t.Errorf("%s came first, and it answered %+v", name, acts)
		}
	}
}

func TestTheEndOfStickyIsNotReliedOnWhateverBecameOfIt(t *testing.T) {
	for _, unknown := range []bool{true, false} {
		k := serve(t)
		l := k.c.st.Services[0].Lock
		k.apply(&state.Command{Sticky: &state.Sticky{Service: 1, Sticky: lock.Sticky{Epoch: 1, Gen: l.Gen, Holder: l.Holder}}})
		k.now += 200 * ms
		k.step(Tick{})
		v := k.c.svcs[0]
		if d := v.holder.Deadline(k.now); d != k.now+250*ms {
			t.Fatalf("sticky: until %v", d-k.now)
		}
		k.hear(w, &Ack{Inc: 1, Sent: k.now - 20*ms, VoterInc: 1, Leases: []Lease{{Service: 1, Epoch: 1, TTL: 250 * time.Millisecond}}})
		k.now += 50 * ms
		k.step(Tick{})
		k.c.unstick(v)
		acts := k.c.take()
		e, p := find[Extend](acts), find[Propose](acts)
		if e == nil || e.Deadline != k.now+180*ms || p == nil || p.Command.Sticky == nil || !p.Command.Sticky.Off {
			t.Fatalf("the gates keep the deadline that Sticky gave: %+v, %+v", e, p)
		}
		answer := Proposed{ID: p.ID}
		if unknown {
			answer.Err = errors.New("unknown")
		}
		acts = k.step(answer)
		k.now += 20 * ms
		acts = append(acts, k.step(Tick{})...)
		if find[Extend](acts) != nil || v.holder.Sticky {
			t.Errorf("unknown %v: relies on Sticky again: %+v", unknown, acts)
		}
		// Another generation says that the Unsticky cannot be accepted any more.
		k.apply(&state.Command{Sticky: &state.Sticky{Service: 1, Sticky: lock.Sticky{Epoch: 1, Gen: l.Gen + 1, Holder: l.Holder}}})
		if !v.holder.Sticky {
			t.Errorf("unknown %v: a newer Sticky is not relied on", unknown)
		}
	}
}

func TestAGrantIsNotBegunUnderOlderVoters(t *testing.T) {
	k := newBench(t, a)
	f := &Granted{Service: 1, Epoch: 1, To: lock.Holder{Node: a, Inc: 1}, TTL: 250 * time.Millisecond, VoterSets: 2}
	if acts := k.hear(w, f); find[Begin](acts) != nil {
		t.Errorf("began with voter set 1: %+v", acts)
	}
	f.VoterSets = 1
	if acts := k.hear(w, f); find[Begin](acts) == nil {
		t.Error("did not begin")
	}
}

func TestAnAcceptedBumpDoesNotFenceItsHolderBeforeItIsAppliedHere(t *testing.T) {
	k := serve(t)
	refuse := func(h cluster.Epoch) []Action {
		return k.hear(b, &Ack{Inc: 1, Sent: k.now, VoterInc: 1, Leases: []Lease{{Service: 1, Epoch: 1, TTL: 250 * time.Millisecond, Refused: true, Highest: h}}})
	}
	p := find[Propose](refuse(1))
	if p == nil || p.Command.Bump == nil {
		t.Fatalf("no Bump: %+v", p)
	}
	k.step(Proposed{ID: p.ID, Outcome: state.Outcome{Epoch: 2}})
	if acts := refuse(2); find[Close](acts) != nil {
		t.Errorf("fenced by its own Bump: %+v", acts)
	}
	if acts := k.apply(p.Command); find[Bumped](acts) == nil || find[Close](acts) != nil {
		t.Errorf("the Bump applied: %+v", acts)
	}
}

func TestATenureThatWasPromisedAwayDoesNotBegin(t *testing.T) {
	k := newBench(t, b)
	k.grant(0, a)
	k.now += 10_000 * ms
	ps := sent[*Promise](k.hear(w, &PromiseReq{Service: 1, Epoch: 2}))
	if len(ps) != 1 || !ps[0].Yes {
		t.Fatalf("the promise: %+v", ps)
	}
	acts := k.grant(1, b, a)
	if len(sent[*Renew](acts)) > 0 || find[Begin](acts) != nil {
		t.Errorf("began: %+v", acts)
	}
	if acts = k.step(Shut{Service: 1, Epoch: 2}); len(sent[*Release](acts)) == 0 {
		t.Errorf("does not release what it will not hold: %+v", acts)
	}
}

func TestAHolderPromisesNothingNewerWhileItServes(t *testing.T) {
	k := serve(t)
	acts := k.hear(w, &PromiseReq{Service: 1, Epoch: 2})
	if len(sent[*Promise](acts)) > 0 || find[Close](acts) == nil {
		t.Errorf("asked for the epoch after its own: %+v", acts)
	}
}

func TestNoReleaseBeforeEverythingIsShut(t *testing.T) {
	k := serve(t)
	k.now += 250 * ms
	k.step(Tick{})
	for range 5 {
		k.now += 50 * ms
		if r := sent[*Release](k.step(Tick{})); len(r) > 0 {
			t.Fatalf("released before it was shut: %+v", r[0])
		}
	}
	if acts := k.step(Shut{Service: 1, Epoch: 1, Err: errors.New("a process hangs")}); len(sent[*Release](acts)) > 0 || find[Alarm](acts) == nil {
		t.Errorf("after a Shut with an error: %+v", acts)
	}
	k.apply(&state.Command{Bump: &state.Bump{Service: 1, Bump: lock.Bump{Epoch: 1, Holder: lock.Holder{Node: a, Inc: 1}, TTL: 250 * time.Millisecond}}})
	if r := sent[*Release](k.step(Tick{})); len(r) > 0 {
		t.Errorf("a late Bump was released although nothing is sure to be shut: %+v", r[0])
	}
	if r := sent[*Release](k.step(Shut{Service: 1, Epoch: 1})); len(r) == 0 || r[0].Epoch != 2 {
		t.Errorf("released: %+v, want epoch 2", r)
	}
}

func TestAReleaseFitsIntoAFrameWhateverTheReason(t *testing.T) {
	k := serve(t)
	k.hear(b, &Beat{Inc: 1, Reports: []Report{{Service: 1, Ready: true}}})
	long := strings.Repeat("because ä ", 300)
	acts := k.step(&Order{ID: 1, Service: 1, To: "b", What: "switchover", By: long, Reason: long})
	if find[Prepare](acts) == nil {
		t.Fatalf("no move: %+v", acts)
	}
	k.step(Drained{Service: 1, Epoch: 1})
	rs := sent[*Release](k.step(Shut{Service: 1, Epoch: 1}))
	if len(rs) == 0 {
		t.Fatal("no release")
	}
	buf := EncodeFrame(rs[0])
	if f, err := DecodeFrame(KindRelease, buf); err != nil || f.(*Release).To != b {
		t.Errorf("%d bytes: %v", len(buf), err)
	}
}

func TestALeaderThatWasRemovedHandsOver(t *testing.T) {
	k := newBench(t, a)
	k.hear(b, &Beat{Inc: 1})
	k.apply(&state.Command{MemberRemove: &state.MemberRemove{Name: "a"}})
	if x := find[Transfer](k.step(Leadership{Leader: a, Mine: true})); x == nil || x.To != b {
		t.Errorf("it keeps the lead: %+v", x)
	}
}

func TestAServiceMadeAgainWaitsForItsLastHolder(t *testing.T) {
	k := serve(t)
	st := k.c.st
	with := st.Spec.Compiled
	none, _ := (&cluster.Spec{Profile: "fast"}).Encode()
	acts := k.apply(&state.Command{SpecApply: &state.SpecApply{Base: 1, Compiled: none, Remove: []string{"web"}}})
	if find[Close](acts) == nil {
		t.Fatalf("the deleted service serves on: %+v", acts)
	}
	acts = k.apply(&state.Command{SpecApply: &state.SpecApply{Base: 2, Compiled: with}})
	s := st.ServiceByName("web")
	if s.No != 1 || s.Lock.Epoch != 2 || s.Lock.Enough(&st.Group, nil) == lock.Accepted || find[Begin](acts) != nil {
		t.Fatalf("the service made again: %+v, %+v", s, acts)
	}
	if ps := sent[*Promise](k.hear(w, &PromiseReq{Service: 1, Epoch: 2})); len(ps) > 0 {
		t.Errorf("promises while its processes are not known to be shut: %+v", ps[0])
	}
	k.step(Shut{Service: 1, Epoch: 1})
	if ps := sent[*Promise](k.hear(w, &PromiseReq{Service: 1, Epoch: 2})); len(ps) != 1 || !ps[0].Yes {
		t.Errorf("does not promise when everything is shut: %+v", ps)
	}
}

func TestAnAnswerThatComesAfterTheServiceWasDeletedDoesNoHarm(t *testing.T) {
	k := serve(t)
	v := k.c.svcs[0]
	k.c.stick(v, false)
	p := find[Propose](k.c.take())
	none, _ := (&cluster.Spec{Profile: "fast"}).Encode()
	k.apply(&state.Command{SpecApply: &state.SpecApply{Base: 1, Compiled: none, Remove: []string{"web"}}})
	k.step(Proposed{ID: p.ID, Err: errors.New("unknown")})
}

func TestStickyEndsAlthoughTheSpecForbidsItNow(t *testing.T) {
	k := serve(t)
	l := k.c.st.Services[0].Lock
	k.apply(&state.Command{Sticky: &state.Sticky{Service: 1, Sticky: lock.Sticky{Epoch: 1, Gen: l.Gen, Holder: l.Holder}}})
	spec, err := cluster.DecodeSpec(k.c.st.Spec.Compiled)
	if err != nil {
		t.Fatal(err)
	}
	spec.Services[0].WitnessLost = "hold"
	compiled, _ := spec.Encode()
	k.apply(&state.Command{SpecApply: &state.SpecApply{Base: 1, Compiled: compiled}})
	for range 40 {
		k.hear(w, &Beat{Inc: 1})
		for _, x := range append(k.ack(w, 1), k.step(Tick{})...) {
			if p, ok := x.(Propose); ok && p.Command.Sticky != nil && p.Command.Sticky.Off {
				return
			}
		}
		k.now += 50 * ms
	}
	t.Error("the witness is back for two seconds and the service is still sticky")
}

func TestALeaseIsRenewedAtItsOwnPaceAfterTheProfileHasBecomeSlower(t *testing.T) {
	k := serve(t)
	spec := *k.c.State().Compiled()
	spec.Profile = "wan"
	compiled, err := spec.Encode()
	if err != nil {
		t.Fatal(err)
	}
	k.apply(&state.Command{SpecApply: &state.SpecApply{Base: 1, Compiled: compiled}})
	began := k.now
	var asked []cluster.Instant // each is answered 10 ms later
	for ; k.now < began+3000*ms; k.now += 10 * ms {
		var acts []Action
		for _, at := range asked {
			acts = append(acts, k.hear(w, &Ack{Inc: 1, Sent: at, VoterInc: 1, Leases: []Lease{{Service: 1, Epoch: 1, TTL: 250 * time.Millisecond}}})...)
		}
		acts = append(acts, k.step(Tick{})...)
		if c := find[Close](acts); c != nil {
			t.Fatalf("%v after the change: %s", time.Duration(k.now-began), c.Why)
		}
		asked = asked[:0]
		for _, r := range sent[*Renew](acts) {
			asked = append(asked, r.Sent)
		}
	}
}
