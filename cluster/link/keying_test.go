package link_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
)

func pair(t *testing.T, listen []netip.AddrPort) (*world, *host, *host) {
	t.Helper()
	w := newWorld(t)
	return w, w.start(w.person("a", cluster.RoleNode), listen), w.start(w.person("b", cluster.RoleNode), listen)
}

func keyedBoth(t testing.TB, a, b *host) {
	t.Helper()
	within(t, 5*time.Second, "keys", func() bool { return a.keyed(b.person) && b.keyed(a.person) })
	within(t, 5*time.Second, "links", func() bool {
		return a.up(b.person) == len(a.links(b.person)) && b.up(a.person) == len(b.links(a.person))
	})
}

func TestABrokenTCPSessionEndsNoKey(t *testing.T) {
	_, a, b := pair(t, oneLink)
	rs := through(a, b)
	keyedBoth(t, a, b)
	for _, r := range rs[0] {
		r.refuse(true, false)
		r.breakTCP()
	}
	keyings := a.e.Counters().Keyings
	for i := range 60 { // 600 ms without any TCP
		if err := a.Send(b.person.id, 1, []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		if d := b.receive(); d.Payload[0] != byte(i) {
			t.Fatalf("frame %d came where %d was sent", d.Payload[0], i)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if a.up(b.person) != 1 {
		t.Error("the link is down because TCP is")
	}
	for _, r := range rs[0] {
		r.refuse(false, false)
	}
	within(t, 5*time.Second, "a new keying when TCP is back", func() bool { return a.e.Counters().Keyings > keyings })
	a.Send(b.person.id, 2, []byte("after"))
	if d := b.receive(); string(d.Payload) != "after" {
		t.Errorf("%q", d.Payload)
	}
}

func TestARestartedMemberIsHeardAgainAtOnce(t *testing.T) {
	w, a, b := pair(t, twoLinks)
	introduce(a, b)
	keyedBoth(t, a, b)
	var took []time.Duration
	for range 10 {
		at := b.e.Addrs()
		b.stop()
		b = w.start(b.person, at)
		start := time.Now()
		b.SetPeers([]link.Peer{a.Self()})
		for len(a.got) > 0 {
			<-a.got
		}
		within(t, 5*time.Second, "b speaks", func() bool { return b.Send(a.person.id, 1, []byte("back")) == nil })
		if d := a.receive(); string(d.Payload) != "back" {
			t.Fatalf("%q", d.Payload)
		}
		within(t, 5*time.Second, "b hears", func() bool { a.Send(b.person.id, 1, nil); return len(b.got) > 0 })
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("restart to both directions: median %v, max %v", took[5], took[9])
	if took[5] > 50*time.Millisecond {
		t.Errorf("median %v, want 50 ms at most", took[5])
	}
}

func TestANewRunReplacesAnOldOneThatFellSilent(t *testing.T) {
	w, a, b := pair(t, oneLink)
	rs := through(a, b)
	keyedBoth(t, a, b)
	rs[0][0].cut(true) // the power of b's machine fails: nothing more comes, nothing is closed
	rs[0][1].cut(true)
	b2 := w.start(b.person, oneLink)
	p := b2.Self()
	a.SetPeers([]link.Peer{p})
	b2.SetPeers([]link.Peer{a.Self()})
	took := within(t, 5*time.Second, "the new run is heard", func() bool { return b2.Send(a.person.id, 1, nil) == nil && len(a.got) > 0 })
	t.Logf("new run after silent death: %v (silence wanted: 1 s)", took)
	old := a.e.Counters().DatagramsNoKey
	rs[0][0].cut(false) // the old run was only cut off, and comes back
	within(t, 5*time.Second, "the old run's frames are refused", func() bool {
		b.Send(a.person.id, 9, []byte("old"))
		return a.e.Counters().DatagramsNoKey > old
	})
	for len(a.got) > 0 {
		if d := <-a.got; d.Kind == 9 {
			t.Fatal("a frame of a replaced run came through")
		}
	}
}

func TestASecondRunIsRefusedWhileTheFirstIsHeard(t *testing.T) {
	w, a, b := pair(t, oneLink)
	introduce(a, b)
	keyedBoth(t, a, b)
	var told atomic.Pointer[error]
	clone := func(inc cluster.Incarnation) *host {
		told.Store(nil)
		c := w.startAs(b.person, oneLink, link.ClusterIdentity{Incarnation: inc, OnSecondRun: func(err error) { told.Store(&err) }})
		c.SetPeers([]link.Peer{a.Self()})
		return c
	}
	for _, inc := range []cluster.Incarnation{b.person.inc + 1, b.person.inc, b.person.inc - 1} {
		c := clone(inc)
		within(t, 5*time.Second, "the copy is told", func() bool { return told.Load() != nil })
		if err := *told.Load(); !errors.Is(err, link.ErrSecondRun) {
			t.Errorf("told %v", err)
		}
		if _, err := c.Dial(t.Context(), a.person.id, link.Raft); !errors.Is(err, link.ErrSecondRun) {
			t.Errorf("dial of the copy: %v", err)
		}
		if c.keyed(a.person) {
			t.Error("the copy got a key")
		}
		c.stop()
	}
	b.Send(a.person.id, 1, []byte("first"))
	if d := a.receive(); string(d.Payload) != "first" {
		t.Errorf("%q", d.Payload)
	}
	if a.e.Counters().SecondRuns < 3 {
		t.Error("not counted")
	}
	// With the first gone, a copy of the same incarnation still is none: its promises would be taken for the first one's.
	b.stop()
	clone(b.person.inc)
	within(t, 5*time.Second, "the copy is told", func() bool { return told.Load() != nil })
}

func TestReplayedAndForgedDatagramsAreCountedAndDropped(t *testing.T) {
	_, a, b := pair(t, oneLink)
	r := through(a, b)[0][1]
	keyedBoth(t, a, b)
	for i := range 20 {
		a.Send(b.person.id, 1, []byte(fmt.Sprint("lease ", i)))
		b.receive()
	}
	frames := r.recorded()
	before := b.e.Counters()
	for _, f := range frames {
		r.inject(f)
	}
	within(t, 5*time.Second, "replays are counted", func() bool {
		return b.e.Counters().DatagramsReplayed-before.DatagramsReplayed == uint64(len(frames))
	})
	if len(b.got) != 0 {
		t.Error("a replayed frame came through")
	}
	last := frames[len(frames)-1]
	n := 0
	for bit := range 8 * len(last) {
		f := slices.Clone(last)
		f[bit/8] ^= 1 << (bit % 8)
		r.inject(f)
		if n++; n%32 == 0 {
			time.Sleep(time.Millisecond) // the receiver's queue
		}
	}
	sum := func() uint64 {
		c := b.e.Counters()
		return c.DatagramsForged + c.DatagramsMalformed + c.DatagramsNoKey + c.DatagramsReplayed - before.DatagramsReplayed - uint64(len(frames))
	}
	within(t, 5*time.Second, "each flipped bit is noticed", func() bool { return sum() >= uint64(n) })
	if len(b.got) != 0 {
		t.Errorf("a frame with a flipped bit came through: %+v", <-b.got)
	}
}

func TestKeysAreReplacedWithoutAGap(t *testing.T) {
	w := newWorld(t)
	w.limits.KeyLife = 1500 * time.Millisecond
	a := w.start(w.person("a", cluster.RoleNode), oneLink)
	b := w.start(w.person("b", cluster.RoleNode), oneLink)
	introduce(a, b)
	keyedBoth(t, a, b)
	before := a.e.Counters().Keyings
	n := 0
	for end := time.Now().Add(2200 * time.Millisecond); time.Now().Before(end); n++ {
		if err := a.Send(b.person.id, 1, []byte{byte(n)}); err != nil {
			t.Fatalf("frame %d: %v", n, err)
		}
		if d := b.receive(); d.Payload[0] != byte(n) {
			t.Fatalf("frame %d came where %d was sent", d.Payload[0], byte(n))
		}
		time.Sleep(5 * time.Millisecond)
	}
	if k := a.e.Counters().Keyings - before; k < 2 {
		t.Errorf("%d keyings in 2.2 s with keys that live for 1.5 s", k)
	}
}

func TestAKeyIsNotUsedBeyondItsLife(t *testing.T) {
	w := newWorld(t)
	w.limits.KeyLife = 500 * time.Millisecond
	a := w.start(w.person("a", cluster.RoleNode), oneLink)
	b := w.start(w.person("b", cluster.RoleNode), oneLink)
	rs := through(a, b)
	keyedBoth(t, a, b)
	for _, r := range rs[0] {
		r.refuse(true, false)
		r.breakTCP()
	}
	within(t, 5*time.Second, "the key expires", func() bool { return errors.Is(a.Send(b.person.id, 1, nil), link.ErrNoKey) })
}
