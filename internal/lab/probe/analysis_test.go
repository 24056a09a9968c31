package probe

import (
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
)

// stretch is a client that asks every 5 ms from one millisecond to another and is answered by node after 1 ms, or by
// nobody until 200 ms have gone if node is "".
func stretch(fromMS, toMS int, node string, epoch uint64) []Record {
	var out []Record
	for at := fromMS; at < toMS; at += 5 {
		r := Record{Start: cluster.Instant(at) * 1e6, Node: node, Epoch: epoch}
		if r.End = r.Start + 1e6; node == "" {
			r.End, r.Why = r.Start+200e6, Timeout
		}
		out = append(out, r)
	}
	return out
}

func join(parts ...[]Record) (out []Record) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

const t0 = cluster.Instant(2000 * 1e6)

func msec(n int) time.Duration { return time.Duration(n) * time.Millisecond }

func TestATakeoverIsAnOutageFromTheFaultAndAGapFromTheLastAnswer(t *testing.T) {
	f := Analyse(Window{Fault: t0}, join(stretch(1000, 2000, "a", 1), stretch(2000, 2300, "", 0), stretch(2300, 3000, "b", 2)))
	if !f.Moved || f.Outage != msec(301) || f.Gap != msec(305) || f.GapAt != -msec(4) || f.Dual != 0 || f.Stale != 0 {
		t.Errorf("%+v", f)
	}
	if f.Before != "a" || f.After != "b" || f.EpochBefore != 1 || f.EpochAfter != 2 || f.Switches != 1 || f.Fails != 60 || !f.Served() {
		t.Errorf("%+v", f)
	}
}

func TestAServiceThatComesBackInPlaceHasAnOutageToo(t *testing.T) {
	f := Analyse(Window{Fault: t0}, join(stretch(1000, 2000, "a", 1), stretch(2000, 2400, "", 0), stretch(2400, 3000, "a", 1)))
	if f.Moved || f.Outage != msec(405) {
		t.Errorf("%+v", f)
	}
	f = Analyse(Window{Fault: t0}, join(stretch(1000, 2000, "a", 1), stretch(2030, 3000, "a", 1)))
	if f.Outage != 0 || f.Gap != msec(35) {
		t.Errorf("a gap below %v is no interruption: %+v", Blink, f)
	}
}

func TestSilenceUntilTheEndCounts(t *testing.T) {
	f := Analyse(Window{Fault: t0}, join(stretch(1000, 2000, "a", 1), stretch(2000, 5000, "", 0)))
	if f.Served() || f.Gap < 3*time.Second || f.Outage != f.Gap || f.Good != 0 {
		t.Errorf("%+v", f)
	}
	// What starts after the window's end belongs to the healing.
	f = Analyse(Window{Fault: t0, End: t0 + 1000e6}, join(stretch(1000, 2000, "a", 1), stretch(2000, 3500, "", 0), stretch(3500, 4000, "b", 2)))
	if f.Moved || f.Served() {
		t.Errorf("%+v", f)
	}
}

func TestTwoActivesAreSeenThoughTheResolvingClientSeesOne(t *testing.T) {
	c := join(stretch(1000, 2200, "a", 1), stretch(2200, 4000, "b", 2))
	c1 := stretch(1000, 3200, "a", 1) // pinned to a, which goes on for a second
	c2 := join(stretch(1000, 2200, "", 0), stretch(2200, 4000, "b", 2))
	f := Analyse(Window{Fault: t0}, c, c1, c2)
	if f.Dual != msec(995) || f.DualFrom != msec(201) || f.DualTo != msec(1196) {
		t.Errorf("%+v", f)
	}
	if f.Stale == 0 {
		t.Error("a's answers after b's of epoch 2 were not seen as stale")
	}
	if clean := Analyse(Window{Fault: t0}, c, stretch(1000, 2200, "a", 1), c2); clean.Dual != 0 || clean.Stale != 0 {
		t.Errorf("a clean move: %+v", clean)
	}
}

func TestOneAnswerOfAnOldEpochIsEnoughUnlessItWasAskedForBefore(t *testing.T) {
	base := join(stretch(1000, 2000, "a", 1), stretch(2000, 3000, "b", 2))
	late := Record{Start: t0 + 5e5, End: t0 + 40e6, Node: "a", Epoch: 1} // asked just before b's first answer, delivered late
	if f := Analyse(Window{Fault: t0}, base, []Record{late}); f.Stale != 0 {
		t.Errorf("a late answer is none of a second active: %+v", f)
	}
	bad := Record{Start: t0 + 10e6, End: t0 + 11e6, Node: "a", Epoch: 1}
	if f := Analyse(Window{Fault: t0}, base, []Record{bad}); f.Stale != 1 {
		t.Errorf("asked after b had answered, a answered with epoch 1: %+v", f)
	}
}

func TestTheNoiseOfTheMachineIsTakenFromBeforeTheFault(t *testing.T) {
	f := Analyse(Window{Fault: t0}, join(stretch(1000, 1500, "a", 1), stretch(1560, 3000, "a", 1)))
	if f.Noise != msec(65) || f.Gap != msec(5) {
		t.Errorf("%+v", f)
	}
}

func TestLongestSilenceHasEdges(t *testing.T) {
	rs := join(stretch(2100, 2200, "a", 1), stretch(2500, 2600, "a", 1))
	if got := LongestSilence(rs, t0, t0+1000e6); got != msec(404) {
		t.Errorf("%v", got)
	}
	if got := LongestSilence(nil, t0, t0+1000e6); got != time.Second {
		t.Errorf("%v", got)
	}
}

func TestARecordSurvivesItsWayAndDamagedOnesAreRefused(t *testing.T) {
	in := Record{Start: 1 << 50, End: 1<<50 + 7, Epoch: 9, Count: 12, Why: Reset, Node: "n-with-14-char"}
	b := make([]byte, recordLen)
	in.encode(b)
	if out, err := decode(b); err != nil || out != in {
		t.Errorf("%+v, %v", out, err)
	}
	b[33] = maxNode + 1
	if _, err := decode(b); err == nil {
		t.Error("a name longer than its field was read")
	}
}

func TestAnswersAreReadWithAndWithoutAnEpoch(t *testing.T) {
	for line, want := range map[string]Record{
		"a 7 12 hello\n": {Node: "a", Epoch: 7, Count: 12},
		"n1 hello\n":     {Node: "n1"},
		"\n":             {},
	} {
		if n, e, c := parse(line); n != want.Node || e != want.Epoch || c != want.Count {
			t.Errorf("%q: %s %d %d", line, n, e, c)
		}
	}
}
