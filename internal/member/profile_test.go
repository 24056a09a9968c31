package member

import (
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
)

func fit(change func(*Fitness)) []Fitness {
	f := Fitness{Name: "b", Role: cluster.RoleNode, Known: true, Realtime: true, EBPF: true, Lateness: time.Millisecond, Fsync: 2 * time.Millisecond, RTT: time.Millisecond}
	if change != nil {
		change(&f)
	}
	return []Fitness{{Name: "a", Role: cluster.RoleNode, Known: true, Realtime: true, EBPF: true, Lateness: 500 * time.Microsecond, Fsync: time.Millisecond},
		{Name: "w", Role: cluster.RoleWitness, Known: true, Realtime: true, Lateness: time.Millisecond, Fsync: time.Millisecond}, f}
}

func TestTheFastestProfileIsTheOneThatEveryMemberCanKeep(t *testing.T) {
	for _, c := range []struct {
		change func(*Fitness)
		want   string
		why    string
	}{
		{nil, "fastest", ""},
		{func(f *Fitness) { f.EBPF = false }, "fast", "eBPF"},
		{func(f *Fitness) { f.Realtime = false }, "normal", "real-time"},
		{func(f *Fitness) { f.Lateness = 14*time.Millisecond + time.Microsecond }, "fast", "b is up to 14ms late"},
		{func(f *Fitness) { f.Lateness = 26 * time.Millisecond }, "normal", "26ms"},
		{func(f *Fitness) { f.Lateness = 400 * time.Millisecond }, "wan", "400ms"},
		{func(f *Fitness) { f.RTT = 40 * time.Millisecond }, "normal", "round trip to b"},
		{func(f *Fitness) { f.Fsync = 60 * time.Millisecond }, "normal", "disk of b"},
	} {
		got, why := Fastest(fit(c.change))
		if got != c.want || !strings.Contains(why, c.why) || (c.why == "") != (why == "") {
			t.Errorf("got %s because %q, want %s because of %q", got, why, c.want, c.why)
		}
	}
}

func TestAutoIsSlowToGetFasterAndQuickerToGetSlower(t *testing.T) {
	var a auto
	now := cluster.Instant(time.Hour)
	step := func(d time.Duration, pinned string, m []Fitness) string {
		now = now.Add(d)
		got, _ := a.step(now, pinned, m)
		return got
	}
	late := fit(func(f *Fitness) { f.Lateness = 20 * time.Millisecond })
	if got := step(0, "", fit(func(f *Fitness) { f.Lateness = 0 })); got != "" {
		t.Fatalf("%s was chosen before b was measured", got)
	}
	if got := step(0, "", late); got != "" {
		t.Fatalf("%s was chosen at once", got)
	}
	if got := step(autoSettle, "", late); got != "fast" {
		t.Fatalf("first %q, want fast", got)
	}
	if got := step(time.Second, "fast", fit(nil)); got != "" {
		t.Fatalf("%s was chosen at the first sign", got)
	}
	if got := step(autoSlower, "fast", fit(nil)); got != "" {
		t.Fatalf("%s was chosen too soon for a faster one", got)
	}
	if got := step(autoFaster, "fast", fit(nil)); got != "fastest" {
		t.Fatalf("%q, want fastest", got)
	}
	if got := step(time.Second, "fastest", late); got != "" {
		t.Fatalf("%s was chosen for one bad second", got)
	}
	if got := step(autoSlower, "fastest", late); got != "fast" {
		t.Fatalf("%q, want fast", got)
	}
	if got := step(time.Second, "fast", late); got != "" {
		t.Fatalf("%s was chosen again", got)
	}
}
