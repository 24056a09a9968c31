package probe

import (
	"sort"
	"time"

	"github.com/hanode/hanode/cluster"
)

// MergeWithin joins good answers of one node that lie at most so far apart into one interval of service.
const MergeWithin = 30 * time.Millisecond

// Window says what is to be judged.
type Window struct {
	Fault cluster.Instant // just before the fault was injected (or healed)
	End   cluster.Instant // attempts that start later are not looked at; 0: all
}

// Finding is the judgement of one window.
type Finding struct {
	Before, After           string // the node that answered last before the fault, and last of all
	EpochBefore, EpochAfter uint64

	// Outage is the time from the fault to the first good answer of another node than Before, as the resolving client
	// saw it; Moved says that there was one. Without a move it is the length of the longest silence if the service was
	// interrupted at all (a silence over Blink), else 0.
	Outage time.Duration
	Moved  bool

	Gap      time.Duration // longest silence of the resolving client that ends 50 ms before the fault or later, up to the end
	GapAt    time.Duration // its begin, from the fault
	Silent   time.Duration // from the last good answer to the end
	Noise    time.Duration // longest silence of the second before the fault: what the machine itself adds
	Fails    int           // attempts of the resolving client that ended after the fault without an answer
	Whys     map[string]int
	Switches int // how often the answering node changed, for the resolving client
	Good     int // answers after the fault

	Dual             time.Duration // time in which two nodes answered, over all probes
	DualFrom, DualTo time.Duration // from the fault; 0 and 0 if Dual is 0
	Stale            int           // answers with an epoch older than one that some client had before the attempt began
}

// Served says that the client had answers until the window's end.
func (f Finding) Served() bool { return f.Good > 0 && f.Silent <= 500*time.Millisecond }

// Blink is the longest silence that is no interruption: a few missed probes on a busy machine.
const Blink = 50 * time.Millisecond

// Analyse judges a window from the records of the resolving client and of all pinned ones. The method is that of the
// peers' lab, so that figures can be compared.
func Analyse(w Window, resolving []Record, pinned ...[]Record) Finding {
	good, f := w.good(resolving)
	all := append([]Record(nil), resolving...)
	for _, p := range pinned {
		all = append(all, p...)
	}
	all = w.cut(all)
	w.follow(good, &f)
	var end cluster.Instant
	for _, r := range w.cut(resolving) {
		end = max(end, r.End)
	}
	if n := len(good); n > 0 {
		if f.Silent = end.Sub(good[n-1].End); f.Silent > f.Gap {
			f.Gap, f.GapAt = f.Silent, good[n-1].End.Sub(w.Fault)
		}
	}
	if !f.Moved && f.Gap > Blink {
		f.Outage = f.Gap
	}
	w.dual(all, &f)
	f.Stale = stale(all)
	return f
}

func (w Window) cut(rs []Record) []Record {
	if w.End == 0 {
		return rs
	}
	var out []Record
	for _, r := range rs {
		if r.Start <= w.End {
			out = append(out, r)
		}
	}
	return out
}

// good returns the good answers in the order of their ends, and counts the others.
func (w Window) good(rs []Record) ([]Record, Finding) {
	f := Finding{Whys: map[string]int{}}
	var good []Record
	for _, r := range w.cut(rs) {
		switch {
		case r.Why == OK:
			good = append(good, r)
		case r.End >= w.Fault:
			f.Fails++
			f.Whys[r.Why.String()]++
		}
	}
	sort.Slice(good, func(i, j int) bool { return good[i].End < good[j].End })
	return good, f
}

// follow walks along the good answers of the resolving client.
func (w Window) follow(good []Record, f *Finding) {
	const lead = 50 * time.Millisecond
	var prev *Record
	for i := range good {
		g := &good[i]
		if g.End <= w.Fault {
			f.Before, f.EpochBefore = g.Node, g.Epoch
		} else {
			f.Good++
			if !f.Moved && f.Before != "" && g.Node != f.Before {
				f.Moved, f.Outage = true, g.End.Sub(w.Fault)
			}
		}
		if prev != nil {
			silence := g.End.Sub(prev.End)
			if g.End > w.Fault.Add(-lead) && silence > f.Gap {
				f.Gap, f.GapAt = silence, prev.End.Sub(w.Fault)
			}
			if g.End <= w.Fault.Add(-lead) && g.End > w.Fault.Add(-time.Second) {
				f.Noise = max(f.Noise, silence)
			}
			if g.Node != prev.Node {
				f.Switches++
			}
		}
		prev = g
		f.After, f.EpochAfter = g.Node, max(f.EpochAfter, g.Epoch)
	}
}

type interval struct{ from, to cluster.Instant }

// intervals in which a node answered.
func intervals(rs []Record, node string) []interval {
	var ends []cluster.Instant
	for _, r := range rs {
		if r.Why == OK && r.Node == node {
			ends = append(ends, r.End)
		}
	}
	sort.Slice(ends, func(i, j int) bool { return ends[i] < ends[j] })
	var out []interval
	for _, e := range ends {
		if n := len(out); n > 0 && e.Sub(out[n-1].to) <= MergeWithin {
			out[n-1].to = e
		} else {
			out = append(out, interval{e, e})
		}
	}
	return out
}

// dual adds up the time in which intervals of any two nodes overlap.
func (w Window) dual(all []Record, f *Finding) {
	var nodes []string
	seen := map[string]bool{"": true}
	for _, r := range all {
		if !seen[r.Node] {
			seen[r.Node] = true
			nodes = append(nodes, r.Node)
		}
	}
	for i, a := range nodes {
		for _, b := range nodes[i+1:] {
			for _, x := range intervals(all, a) {
				for _, y := range intervals(all, b) {
					lo, hi := max(x.from, y.from), min(x.to, y.to)
					if hi <= lo {
						continue
					}
					if f.Dual == 0 || lo.Sub(w.Fault) < f.DualFrom {
						f.DualFrom = lo.Sub(w.Fault)
					}
					f.Dual += hi.Sub(lo)
					f.DualTo = max(f.DualTo, hi.Sub(w.Fault))
				}
			}
		}
	}
}

// stale counts answers that break the order of epochs: some client had an answer of a higher epoch before the attempt
// began. However short, that is two actives, and no lateness of a probe can look like it.
func stale(all []Record) int {
	var byEnd, byStart []Record
	for _, r := range all {
		if r.Why == OK && r.Epoch > 0 {
			byEnd = append(byEnd, r)
		}
	}
	byStart = append(byStart, byEnd...)
	sort.Slice(byEnd, func(i, j int) bool { return byEnd[i].End < byEnd[j].End })
	sort.Slice(byStart, func(i, j int) bool { return byStart[i].Start < byStart[j].Start })
	n, i := 0, 0
	var highest uint64
	for _, r := range byStart {
		for i < len(byEnd) && byEnd[i].End < r.Start {
			highest = max(highest, byEnd[i].Epoch)
			i++
		}
		if r.Epoch < highest {
			n++
		}
	}
	return n
}

// LongestSilence is the longest time without a good answer in [from, to], its edges included: for the plain clients,
// whose attempts are few and long.
func LongestSilence(rs []Record, from, to cluster.Instant) time.Duration {
	last, longest := from, time.Duration(0)
	for _, r := range rs {
		if r.Why != OK || r.End < from {
			continue
		}
		if r.End > to {
			break
		}
		longest = max(longest, r.End.Sub(last))
		last = r.End
	}
	return max(longest, to.Sub(last))
}
