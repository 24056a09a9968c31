package replica

import (
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
)

func led(t *testing.T, in ...cluster.MemberNo) (*Active, Facts) {
	t.Helper()
	a := NewActive(Run{1, 1}, []Mode{Sync}, true, 0, Flag{})
	f := Facts{Epoch: 3, Grant: 3, Gen: 5, Holder: Run{1, 1}, InSync: cluster.SetOf(append(in, 1)...), Admitted: []Run{{1, 1}, {2, 1}, {3, 1}}}
	a.SetFacts(1, f)
	if err := a.MayLead(3, 2, true); err != nil {
		t.Fatal(err)
	}
	a.Lead(0)
	return a, f
}

func has[T Action](acts []Action) (found bool) {
	for _, x := range acts {
		if _, ok := x.(T); ok {
			found = true
		}
	}
	return found
}

// follow brings member 2 to the point where its session streams.
func follow(t *testing.T, a *Active, session uint64) {
	t.Helper()
	a.Connected(2, Run{2, 1}, session)
	if !has[Go](a.Compared(2, 2, session, PlanTail)) {
		t.Fatal("the session does not go on")
	}
}

func TestNothingIsAcknowledgedWithoutAMemberInSync(t *testing.T) {
	a, f := led(t, 2)
	follow(t, a, 1)
	a.Submitted(7)
	a.Written(7)
	a.Durable(7)
	if got := a.MayAck(Sync); got != 0 {
		t.Errorf("acknowledged to %d before the standby has said anything", got)
	}
	if a.MayAck(SyncOnFsync) != 7 || a.MaySync(SyncOnFsync) != 0 || a.MaySync(Async) != 7 {
		t.Errorf("the other modes: %d, %d, %d, want 7, 0, 7", a.MayAck(SyncOnFsync), a.MaySync(SyncOnFsync), a.MaySync(Async))
	}
	a.Ack(3, 2, 1, 3, 5, 2, true)
	if a.MayAck(Sync) != 5 || a.MaySync(Sync) != 2 {
		t.Errorf("acknowledged to %d, synced to %d, want 5 and 2", a.MayAck(Sync), a.MaySync(Sync))
	}
	a.Lost(4, 2, 1)
	if a.MayAck(Sync) != 5 {
		t.Errorf("what was acknowledged was taken back: %d", a.MayAck(Sync))
	}
	f.Gen, f.InSync = 6, cluster.SetOf(1)
	a.SetFacts(5, f)
	if a.MayAck(Sync) != 7 {
		t.Errorf("alone after the Degrade: %d, want 7", a.MayAck(Sync))
	}
}

func TestAStalledMemberIsNotWaitedForAgainBeforeItHasCaughtUp(t *testing.T) {
	a, f := led(t, 2)
	follow(t, a, 1)
	a.Ack(3, 2, 1, 3, 0, 0, true)
	a.Submitted(9)
	a.Written(9)
	a.Durable(9)
	a.Tick(4)
	late := cluster.Instant(2 * time.Second)
	if r := a.Replicas(late, nil); len(r) != 1 || r[0].Stalled < time.Second || r[0].Phase != InSync {
		t.Fatalf("the member is not seen to stall: %+v", r)
	}
	f.Gen, f.InSync = 6, cluster.SetOf(1)
	a.SetFacts(late, f)
	for range 5 {
		a.Tick(late)
	}
	if a.MayAck(Sync) != 9 {
		t.Fatalf("still waits for it after its Degrade: %d", a.MayAck(Sync))
	}
	a.Ack(late, 2, 1, 3, 9, 0, true) // it accepts, but its disk hangs
	a.Submitted(10)
	a.Written(10)
	a.Durable(10)
	if a.MayAck(Sync) != 10 || a.MaySync(Sync) != 10 {
		t.Error("waits for a member whose disk does not answer")
	}
	a.Ack(late, 2, 1, 3, 10, 9, true)
	a.Submitted(11)
	a.Written(11)
	a.Durable(11)
	if a.MayAck(Sync) != 10 {
		t.Error("does not wait for a member that keeps up")
	}
	if has[CaughtUp](a.Ack(late, 2, 1, 3, 11, 9, true)) {
		t.Error("InSync is asked for before the member's disk has what was acknowledged")
	}
	if !has[CaughtUp](a.Ack(late, 2, 1, 3, 11, 11, true)) {
		t.Error("InSync is not asked for")
	}
}

func TestAWaitThatMayBecomeInSyncEndsOnlyWithALaterGeneration(t *testing.T) {
	a, f := led(t)
	follow(t, a, 1)
	a.Ack(3, 2, 1, 3, 0, 0, true)
	if !has[CaughtUp](a.Ack(3, 2, 1, 3, 0, 0, true)) && a.members[0].proposed == (Flag{}) {
		t.Fatal("InSync is not asked for")
	}
	a.Submitted(1)
	a.Written(1)
	a.Durable(1)
	if !has[WantDegrade](a.Lost(4, 2, 1)) {
		t.Error("no Degrade is asked for, which would make the InSync void")
	}
	if a.MayAck(Sync) != 0 {
		t.Error("acknowledged while an InSync is on its way")
	}
	f.Gen = 6
	a.SetFacts(5, f)
	if a.MayAck(Sync) != 1 {
		t.Error("still waits although the InSync is void")
	}
}

func TestADeposedActiveAcknowledgesNothingMore(t *testing.T) {
	a, f := led(t)
	a.Submitted(1)
	a.Written(1)
	f.Epoch, f.Grant, f.Gen, f.Holder = 4, 4, 6, Run{2, 1}
	if !has[Deposed](a.SetFacts(5, f)) {
		t.Fatal("not deposed")
	}
	a.Durable(1)
	if a.MayAck(Sync) != 0 || a.Leads() {
		t.Error("acknowledged after the deposition")
	}
	b, f := led(t)
	f.Epoch = 4 // a Bump: the same tenure
	if acts := b.SetFacts(5, f); has[Deposed](acts) || !has[Turned](acts) || !b.Leads() {
		t.Errorf("a Bump: %v", acts)
	}
}

func TestWhoMayLead(t *testing.T) {
	for _, c := range []struct {
		what       string
		epoch      cluster.Epoch
		header     cluster.Epoch
		consistent bool
		ok         bool
	}{
		{"the holder", 3, 2, true, true},
		{"a copy in a resync", 3, 2, false, false},
		{"a copy that a process has led before in this tenure", 3, 3, true, false},
		{"an epoch that the log does not say", 4, 2, true, false},
	} {
		a := NewActive(Run{1, 1}, []Mode{Sync}, true, 0, Flag{})
		a.SetFacts(1, Facts{Epoch: 3, Grant: 3, Gen: 5, Holder: Run{1, 1}, Admitted: []Run{{1, 1}}})
		if err := a.MayLead(c.epoch, c.header, c.consistent); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestWhatAStandbyAccepts(t *testing.T) {
	from := Run{1, 1}
	for _, c := range []struct {
		what        string
		header      cluster.Epoch
		closed      cluster.Epoch
		from        Run
		epoch       cluster.Epoch
		gen         cluster.Generation
		first, last uint64
		want        Verdict
	}{
		{"the next", 3, 0, from, 3, 5, 8, 9, Accept},
		{"an epoch that is over", 3, 0, from, 2, 5, 8, 9, Refuse},
		{"an epoch below the header, which the log does not know of", 4, 0, from, 3, 5, 8, 9, Refuse},
		{"an epoch that the log does not say yet", 3, 0, from, 4, 5, 8, 9, Later},
		{"an epoch that it has promised", 3, 3, from, 3, 5, 8, 9, Later},
		{"from another run", 3, 0, Run{1, 2}, 3, 5, 8, 9, Refuse},
		{"from another member", 3, 0, Run{2, 1}, 3, 5, 8, 9, Refuse},
		{"a gap", 3, 0, from, 3, 5, 9, 9, Gap},
		{"what it has already", 3, 0, from, 3, 5, 7, 9, Gap},
		{"backwards", 3, 0, from, 3, 5, 8, 3, Gap},
		{"an older generation", 3, 0, from, 3, 4, 8, 9, Refuse},
	} {
		s := NewStandby(3, 7)
		f := Facts{Epoch: 3, Grant: 3, Gen: 5, Holder: from}
		s.SetFacts(f)
		s.Begin(from, 3)
		s.Frame(3, 5, 8, 7)
		s.header = c.header
		f.Closed = c.closed
		s.SetFacts(f)
		s.from = c.from
		if v, _, why := s.Frame(c.epoch, c.gen, c.first, c.last); v != c.want {
			t.Errorf("%s: %v (%s), want %v", c.what, v, why, c.want)
		}
	}
}

func TestTheAcknowledgementOfAMemberInSyncAllocatesNothing(t *testing.T) {
	a, _ := led(t, 2)
	follow(t, a, 1)
	a.Ack(3, 2, 1, 3, 0, 0, true)
	seq := uint64(0)
	if n := testing.AllocsPerRun(100, func() {
		seq++
		a.Submitted(seq)
		a.Written(seq)
		a.Ack(4, 2, 1, 3, seq, 0, true)
		if a.MayAck(Sync) != seq {
			t.Fatal("not acknowledged")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
