package lease

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

const ttl = 250 * time.Millisecond

func three() []lock.VoterSet { return []lock.VoterSet{{C: 1, Set: cluster.SetOf(1, 2, 3)}} }

func serving(t testing.TB, now cluster.Instant) *Holder {
	h := &Holder{Self: 1}
	if !h.Grant(now, 1, ttl, three()) || !h.Ack(now, 2, 1, ttl, now) {
		t.Fatal("the first acknowledgement did not begin the tenure")
	}
	return h
}

func TestTheKthLatestIsThatOfASortedList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &Holder{Self: cluster.MemberNo(rapid.IntRange(1, 8).Draw(t, "self"))}
		set := cluster.MemberSet(rapid.Uint64Range(0, 1<<8).Draw(t, "set")) &^ 1
		var until []cluster.Instant
		for v := cluster.MemberNo(1); v <= 8; v++ {
			if rapid.Bool().Draw(t, "acked") {
				u := cluster.Instant(rapid.IntRange(1, 5).Draw(t, "until"))
				h.Acks = append(h.Acks, Ack{v, u})
				if set.Has(v) && v != h.Self {
					until = append(until, u)
				}
			}
		}
		slices.Sort(until)
		for k := 1; k <= 8; k++ {
			want := cluster.Instant(0)
			if k <= len(until) {
				want = until[len(until)-k]
			}
			if got := h.kthLatest(set, k); got != want {
				t.Fatalf("k=%d: %d, want %d", k, got, want)
			}
		}
	})
}

func TestTheOrderOfAcknowledgementsDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := cluster.Instant(time.Hour)
		type ack struct {
			v  cluster.MemberNo
			at cluster.Instant
		}
		acks := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) ack {
			return ack{cluster.MemberNo(rapid.IntRange(1, 3).Draw(t, "v")), now - cluster.Instant(rapid.IntRange(0, 600).Draw(t, "ms"))*cluster.Instant(time.Millisecond)}
		}), 1, 8).Draw(t, "acks")
		deadline := func(acks []ack) (cluster.Instant, Phase) {
			h := &Holder{Self: 1}
			h.Grant(now, 1, ttl, three())
			for _, a := range acks {
				h.Ack(now, a.v, 1, ttl, a.at)
			}
			return h.Deadline(now), h.Phase
		}
		d, p := deadline(acks)
		d2, p2 := deadline(rapid.Permutation(acks).Draw(t, "order"))
		if d != d2 || p != p2 {
			t.Fatalf("%d %v or %d %v", d, p, d2, p2)
		}
		latest := cluster.Instant(0)
		for _, a := range acks {
			if a.v != 1 {
				latest = max(latest, a.at)
			}
		}
		if p == Serving && d != latest.Add(ttl) {
			t.Fatalf("deadline %d, want the latest sending and the TTL: %d", d, latest.Add(ttl))
		}
	})
}

func TestWhichAcknowledgementsCount(t *testing.T) {
	now := cluster.Instant(time.Hour)
	for _, x := range []struct {
		what  string
		voter cluster.MemberNo
		e     cluster.Epoch
		ttl   time.Duration
		at    cluster.Instant
		want  bool
	}{
		{"a voter's", 2, 1, ttl, now, true},
		{"the holder's own", 1, 1, ttl, now, false},
		{"a stranger's", 9, 1, ttl, now, false},
		{"an older epoch's", 2, 0, ttl, now, false},
		{"a later epoch's", 2, 2, ttl, now, false},
		{"one with another TTL", 2, 1, 2 * ttl, now, false},
		{"one sent in the future", 2, 1, ttl, now + 1, false},
		{"one that has run out", 2, 1, ttl, now.Add(-ttl), false},
	} {
		h := &Holder{Self: 1}
		h.Grant(now, 1, ttl, three())
		if got := h.Ack(now, x.voter, x.e, x.ttl, x.at); got != x.want {
			t.Errorf("%s: %v", x.what, got)
		}
	}
}

func TestAGrantThatIsNeverAcknowledgedIsGivenUp(t *testing.T) {
	now := cluster.Instant(time.Hour)
	h := &Holder{Self: 1}
	h.Grant(now, 1, ttl, three())
	if h.MayServe(now) {
		t.Error("serves on the Grant alone")
	}
	if ended, _ := h.Tick(now.Add(firstAck * ttl)); ended {
		t.Error("given up too early")
	}
	if ended, _ := h.Tick(now.Add(firstAck*ttl + 1)); !ended || h.Phase != Fenced {
		t.Error("not given up")
	}
	if h.Ack(now.Add(firstAck*ttl+2), 2, 1, ttl, now.Add(firstAck*ttl+1)) {
		t.Error("begins after it was given up")
	}
}

func TestABumpCarriesTheLeaseAndDropsLateAnswers(t *testing.T) {
	now := cluster.Instant(time.Hour)
	h := serving(t, now)
	h.Bumping = 1
	if h.Saw(2) {
		t.Error("fenced by the epoch of its own Bump")
	}
	if !h.Bumped(2, 2*ttl) || h.Deadline(now) != now.Add(ttl) {
		t.Error("the lease of the older epoch goes on until its own end")
	}
	h.Ack(now.Add(ttl/2), 2, 1, ttl, now.Add(ttl/2))
	if h.Deadline(now) != now.Add(ttl) {
		t.Error("an answer of the older epoch was counted")
	}
	h.Fence()
	if h.Bumped(3, 2*ttl) || h.MayServe(now) {
		t.Error("serves on a Bump after having fenced")
	}
}

func TestStickyGoesOnWithoutAcknowledgementsUntilItIsLeft(t *testing.T) {
	now := cluster.Instant(time.Hour)
	h := serving(t, now)
	h.Stick(now, true)
	for range 20 { // nobody answers
		now = now.Add(ttl / 5)
		if ended, _ := h.Tick(now); ended || !h.MayServe(now) {
			t.Fatal("does not go on without acknowledgements")
		}
	}
	if h.Fresh(now) > now {
		t.Error("what sticky gives was taken for acknowledgements")
	}
	h.Ack(now, 2, 1, ttl, now.Add(-ttl/5))
	h.Stick(now, false)
	if h.Deadline(now) != now.Add(ttl*4/5) {
		t.Error("relies on sticky after it was left")
	}
	if ended, _ := h.Tick(h.Fresh(now)); !ended {
		t.Error("the tenure does not end with its last acknowledgement")
	}
	h.Stick(now, true)
	if h.Sticky {
		t.Error("enters sticky without serving")
	}
}

func TestAChangeOfVotersCarriesTheDeadlineButIsConfirmedOnlyWhenCovered(t *testing.T) {
	now := cluster.Instant(time.Hour)
	h := serving(t, now)
	joint := []lock.VoterSet{three()[0], {C: 2, Set: cluster.SetOf(1, 4, 5)}}
	h.SetVoters(now, joint)
	if !h.MayServe(now) || h.Deadline(now) != now.Add(ttl) || h.MayConfirm(now) {
		t.Error("the lease under the older set stands until its end, and is no confirmation")
	}
	h.Ack(now.Add(2), 4, 1, ttl, now.Add(1))
	if h.MayConfirm(now.Add(2)) {
		t.Error("confirms while the deadline is the older set's")
	}
	h.Ack(now.Add(2), 2, 1, ttl, now.Add(1))
	if !h.MayConfirm(now.Add(2)) || h.Deadline(now.Add(2)) != now.Add(ttl+1) {
		t.Error("does not confirm though both sets cover it")
	}
}

func TestWhenAVoterMayPromise(t *testing.T) {
	start := cluster.Instant(time.Hour)
	k := Known{Epoch: 1, TTLMax: ttl}
	p := cluster.Wait(ttl)
	type state struct {
		what string
		do   func(v *Voter)
		e    cluster.Epoch
		in   time.Duration // from the start; -1: never
	}
	for _, x := range []state{
		{"after its start it waits for what an older run may have acknowledged", func(*Voter) {}, 1, p},
		{"after an acknowledgement it waits from that", func(v *Voter) { v.Renew(start.Add(p), 1, ttl, k) }, 1, 2 * p},
		{"the largest TTL counts", func(v *Voter) { v.Renew(start, 1, 2*ttl, k); v.Renew(start, 1, ttl, k) }, 1, cluster.Wait(2 * ttl)},
		{"after a Release it does not wait", func(v *Voter) { v.Renew(start, 1, ttl, k); v.Release(1) }, 1, 0},
		{"a Release of an older epoch changes nothing", func(v *Voter) { v.Release(1); v.Renew(start, 2, ttl, k); v.Release(1) }, 2, p},
		{"a closed epoch is not promised in the name of an older one", func(*Voter) {}, 0, -1},
		{"a mute voter says nothing", func(v *Voter) { v.Open = false }, 1, -1},
	} {
		v := &Voter{Open: true, Started: start}
		x.do(v)
		for _, d := range []time.Duration{-1, 0} {
			w := *v
			got := w.Promise(start.Add(x.in+d), x.e, false, k).Yes
			if want := x.in >= 0 && d == 0 || x.in == 0; got != want && !(x.in < 0 && !got) {
				t.Errorf("%s: at %v: %v", x.what, x.in+d, got)
			}
		}
	}
}

func TestAVoterNeverAcknowledgesWhatItPromised(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := &Voter{Open: true}
		now := cluster.Instant(time.Hour)
		promised := cluster.Epoch(0)
		k := Known{Epoch: 1, TTLMax: ttl}
		for range 30 {
			now = now.Add(time.Duration(rapid.IntRange(0, 400).Draw(t, "ms")) * time.Millisecond)
			e := cluster.Epoch(rapid.IntRange(1, 5).Draw(t, "e"))
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				if v.Renew(now, e, ttl, k).Yes && e <= promised {
					t.Fatalf("acknowledged %d after having promised %d", e, promised)
				}
			case 1:
				last, acked := v.LastAck, v.Acked > v.Closed
				if v.Promise(now, e, false, k).Yes {
					if acked && e > v.Released && now < last.Add(cluster.Wait(ttl)) {
						t.Fatal("promised before the wait")
					}
					promised = max(promised, e)
				}
			case 2:
				v.Release(e)
				promised = max(promised, e)
			case 3:
				k.Epoch = max(k.Epoch, e)
			}
		}
	})
}

func TestACoordinatorProposesOnceAndOnlyWithPromisesThatCount(t *testing.T) {
	g := &lock.Group{Sets: three()}
	for n := cluster.MemberNo(1); n <= 3; n++ {
		g.Join(n, 1, cluster.BootID{1})
	}
	s := &lock.Service{Epoch: 4, Holder: lock.Holder{Node: 1, Inc: 1}, Eligible: cluster.SetOf(1, 2)}
	c := Begin(10, 4, lock.Holder{Node: 2, Inc: 1}, ttl, cluster.SetOf(2, 3))
	if got := c.Due(10, ttl); !slices.Equal(got, []cluster.MemberNo{2, 3}) {
		t.Fatal("asks", got)
	}
	c.Later(10, 3, 4, 2*ttl)
	if got := c.Due(cluster.Instant(10).Add(ttl), ttl); !slices.Equal(got, []cluster.MemberNo{2}) {
		t.Error("asks again", got)
	}
	if _, ok := c.Promise(lock.Promise{Node: 2, Inc: 1}, 3, s, g); ok || len(c.Promises) > 0 {
		t.Error("a promise of another epoch was taken")
	}
	c.Promise(lock.Promise{Node: 3, Inc: 0}, 4, s, g) // of a dead run: dropped, and asked for again
	if _, ok := c.Promise(lock.Promise{Node: 2, Inc: 1}, 4, s, g); ok {
		t.Error("proposes with a promise of a dead run")
	}
	grant, ok := c.Promise(lock.Promise{Node: 3, Inc: 1}, 4, s, g)
	if !ok || len(grant.Promises) != 2 || s.Grant(g, grant) != lock.Accepted {
		t.Error("does not propose", grant)
	}
	if _, ok := c.Promise(lock.Promise{Node: 3, Inc: 1}, 4, s, g); ok || c.Due(1e18, ttl) != nil {
		t.Error("proposes twice")
	}
}
