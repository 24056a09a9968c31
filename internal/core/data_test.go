package core

import (
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/cluster/state"
)

func TestAWaitIsCountedOnFromWhenItWasTold(t *testing.T) {
	at := cluster.Instant(time.Hour)
	r := replica{Replica: Replica{Connected: true, Waiting: 100 * time.Millisecond}, at: at}
	if got := r.waiting(at.Add(50 * time.Millisecond)); got != 150*time.Millisecond {
		t.Errorf("after 50 ms more it says %v, want 150 ms", got)
	}
	r = replica{Replica: Replica{Connected: true}, at: at}
	if got := r.waiting(at.Add(time.Minute)); got != 0 {
		t.Errorf("nothing waits, and it says %v", got)
	}
	r = replica{at: at, gone: at}
	if got := r.waiting(at.Add(time.Second)); got != time.Second {
		t.Errorf("away for a second, and it says %v", got)
	}
}

func TestFactsAreToldOncePerChange(t *testing.T) {
	f := Facts{Epoch: 1, Gen: 2, InSync: cluster.SetOf(1, 2), Members: []Node{{Holder: lock.Holder{Node: 1, Inc: 1}}}}
	g := f
	g.Members = []Node{{Holder: lock.Holder{Node: 1, Inc: 1}}}
	if !f.same(&g) {
		t.Error("the same facts count as a change")
	}
	g.Members[0].Inc = 2
	if f.same(&g) {
		t.Error("a new run of a member is not told")
	}
}

// dataBench is a, serving a service with data in epoch 1, with b in sync.
func dataBench(t *testing.T) *bench {
	k := newBench(t, a)
	spec := &cluster.Spec{Profile: "fast", MaxFailovers: 3, FailoversWithin: time.Minute, Services: []cluster.ServiceSpec{{Name: "web", Nodes: []string{"a", "b"},
		Run: "active", Failover: "automatic", Failback: "manual", WitnessLost: "protect", Volumes: []cluster.VolumeSpec{{Name: "data"}}}}}
	compiled, err := spec.Encode()
	if err != nil {
		t.Fatal(err)
	}
	k.apply(&state.Command{SpecApply: &state.SpecApply{Base: 1, Compiled: compiled}})
	k.grant(0, a)
	k.ack(w, 1)
	k.pass(100*time.Millisecond, b, w)
	k.apply(&state.Command{InSync: &state.InSync{Service: 1, InSync: lock.InSync{Epoch: 1, Gen: k.lock().Gen, Node: lock.Holder{Node: b, Inc: 1}}}})
	k.step(Replica{Service: 1, Member: b, Connected: true, Good: true})
	return k
}

func (k *bench) lock() *lock.Service { return &k.c.State().Service(1).Lock }

// pass lets time pass in beats; from are the members that are heard meanwhile.
func (k *bench) pass(d time.Duration, from ...cluster.MemberNo) (out []Action) {
	for end := k.now.Add(d); k.now < end; {
		k.now = k.now.Add(10 * time.Millisecond)
		for _, n := range from {
			out = append(out, k.step(Received{From: n, Frame: &Beat{Inc: 1}})...)
		}
		if len(from) > 0 {
			out = append(out, k.ack(w, 1)...)
		}
		out = append(out, k.step(Tick{})...)
	}
	return out
}

func degrades(acts []Action) (out []*state.Degrade) {
	for _, x := range acts {
		if p, ok := x.(Propose); ok && p.Command.Degrade != nil {
			out = append(out, p.Command.Degrade)
		}
	}
	return out
}

func TestAStandbyWhoseBeatsStopIsLeftBehindAfterThreeOfThem(t *testing.T) {
	k := dataBench(t)
	if d := degrades(k.pass(time.Second, b, w)); len(d) != 0 {
		t.Fatalf("a standby that answers is left behind: %+v", d[0])
	}
	k.step(Replica{Service: 1, Member: b, Connected: true, Waiting: 10 * time.Millisecond})
	if d := degrades(k.pass(120*time.Millisecond, w)); len(d) != 0 {
		t.Fatal("left behind before three beats were missed")
	}
	d := degrades(k.pass(60*time.Millisecond, w))
	if len(d) == 0 || d[0].Out != cluster.SetOf(b) || d[0].Gen != k.lock().Gen {
		t.Fatalf("after 180 ms without b: %+v, want a Degrade of b", d)
	}
}

func TestASlowStreamIsLeftBehindAfterTwoSecondsWithAnAlarmBefore(t *testing.T) {
	k := dataBench(t)
	k.step(Replica{Service: 1, Member: b, Connected: true, Waiting: 10 * time.Millisecond})
	acts := k.pass(1900*time.Millisecond, b, w)
	if d := degrades(acts); len(d) != 0 {
		t.Fatal("left behind before 2 s")
	}
	alarmed := false
	for _, x := range acts {
		if al, ok := x.(Alarm); ok && al.Code == "standby-slow" && !al.Clear {
			alarmed = true
		}
	}
	if !alarmed {
		t.Error("no alarm after 200 ms")
	}
	if d := degrades(k.pass(200*time.Millisecond, b, w)); len(d) == 0 {
		t.Error("not left behind after 2 s")
	}
}

func TestAStandbyThatIsAwayLeavesTheInSyncSetAlthoughNothingIsWritten(t *testing.T) {
	k := dataBench(t)
	k.step(Replica{Service: 1, Member: b})
	if d := degrades(k.pass(2100*time.Millisecond, b, w)); len(d) == 0 {
		t.Error("the in-sync set still names a standby that has been away for 2 s")
	}
}

func TestAFailedDiskMovesTheServiceAtOnceWhereAStandbyIsInSync(t *testing.T) {
	k := dataBench(t)
	k.pass(100*time.Millisecond, b, w)
	acts := k.step(DiskFailed{Service: 1, Text: "fdatasync: input/output error"})
	closed := false
	for _, x := range acts {
		if cl, ok := x.(Close); ok && !cl.Planned {
			closed = true
		}
	}
	if !closed {
		t.Fatalf("the tenure goes on: %+v", acts)
	}
	for _, x := range k.step(Shut{Service: 1, Epoch: 1}) {
		if s, ok := x.(Send); ok {
			if r, ok := s.Frame.(*Release); ok && r.To != b {
				t.Errorf("released to %d, want b", r.To)
			}
		}
	}
}

func TestAFailedDiskWithoutAStandbyStays(t *testing.T) {
	k := dataBench(t)
	k.apply(&state.Command{Degrade: &state.Degrade{Service: 1, Degrade: lock.Degrade{Epoch: 1, Gen: k.lock().Gen, Out: cluster.SetOf(b)}}})
	for _, x := range k.step(DiskFailed{Service: 1, Text: "fdatasync: input/output error"}) {
		if _, ok := x.(Close); ok {
			t.Error("the tenure ends although nobody can take over")
		}
	}
}

func TestAFollowersHigherEpochFences(t *testing.T) {
	k := dataBench(t)
	for _, x := range k.step(HigherEpoch{Service: 1, Epoch: 2}) {
		if _, ok := x.(Close); ok {
			return
		}
	}
	t.Error("it goes on serving")
}

func TestInSyncIsProposedOnlyForWhatTheLogSaysNow(t *testing.T) {
	k := dataBench(t)
	k.apply(&state.Command{Degrade: &state.Degrade{Service: 1, Degrade: lock.Degrade{Epoch: 1, Gen: k.lock().Gen, Out: cluster.SetOf(b)}}})
	gen := k.lock().Gen
	proposed := func(e CaughtUp) bool {
		for _, x := range k.step(e) {
			if p, ok := x.(Propose); ok && p.Command.InSync != nil {
				return true
			}
		}
		return false
	}
	if proposed(CaughtUp{Service: 1, Member: b, Inc: 1, Epoch: 1, Gen: gen - 1}) {
		t.Error("proposed for an older generation")
	}
	if proposed(CaughtUp{Service: 1, Member: b, Inc: 2, Epoch: 1, Gen: gen}) {
		t.Error("proposed for a run that the log has not admitted")
	}
	if !proposed(CaughtUp{Service: 1, Member: b, Inc: 1, Epoch: 1, Gen: gen}) {
		t.Error("not proposed")
	}
	if proposed(CaughtUp{Service: 1, Member: b, Inc: 1, Epoch: 1, Gen: gen}) {
		t.Error("proposed twice")
	}
}
