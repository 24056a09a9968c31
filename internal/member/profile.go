package member

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
)

// Fitness is what decides which profile a member can keep. Zero durations are not known yet, and stand against nothing.
type Fitness struct {
	Name     string
	Role     cluster.Role
	Known    bool // it has told of itself
	Realtime bool // it runs under real-time scheduling
	EBPF     bool // its gate is the eBPF program; of nodes
	Lateness time.Duration
	Fsync    time.Duration
	RTT      time.Duration
}

// How much shorter than a lease everything must be that may delay a renewal or a takeover. Source of the first: the protocol, section 3
// ("TTL < 10 x measured p99.9 lateness is refused"); the others: a round trip and two commits must fit into the margins of the same table.
const (
	latenessPart = 10
	rttPart      = 10
	fsyncPart    = 5
)

// Unfit says why a member cannot keep a profile; "": it can. It looks at what is the machine's own: lateness, scheduling, gate.
func Unfit(t cluster.Timing, f Fitness) string {
	quick := t.Profile == "fastest" || t.Profile == "fast"
	switch {
	case !f.Known:
		return ""
	case quick && !f.Realtime:
		return fmt.Sprintf("%s has no real-time scheduling, which profile %s needs: profile normal at best", f.Name, t.Profile)
	case t.Profile == "fastest" && f.Role == cluster.RoleNode && !f.EBPF:
		return fmt.Sprintf("%s has no eBPF gate, which profile fastest needs: profile fast at best", f.Name)
	case latenessPart*f.Lateness > t.TTL:
		return fmt.Sprintf("%s is up to %v late (p99.9 of 5 minutes), and a lease of %v allows %v", f.Name, f.Lateness.Round(100*time.Microsecond), t.TTL, t.TTL/latenessPart)
	}
	return ""
}

// slowFor is Unfit and, beside the machine, its disk and network: for the choice among profiles, where all of it costs time.
func slowFor(t cluster.Timing, f Fitness) string {
	if why := Unfit(t, f); why != "" {
		return why
	}
	switch {
	case rttPart*f.RTT > t.TTL:
		return fmt.Sprintf("the round trip to %s takes %v, and a lease of %v allows %v", f.Name, f.RTT.Round(100*time.Microsecond), t.TTL, t.TTL/rttPart)
	case fsyncPart*f.Fsync > t.TTL:
		return fmt.Sprintf("the disk of %s takes %v (p99) to make a decision durable, and a lease of %v allows %v", f.Name, f.Fsync.Round(100*time.Microsecond), t.TTL, t.TTL/fsyncPart)
	}
	return ""
}

// Fastest is the fastest profile that all members can keep, and why not the next faster one.
func Fastest(members []Fitness) (profile, why string) {
	for _, name := range cluster.ProfileNames() {
		t, err := cluster.Profile(name)
		if err != nil {
			continue
		}
		var against []string
		for _, f := range members {
			if w := slowFor(t, f); w != "" {
				against = append(against, w)
			}
		}
		if len(against) == 0 {
			return name, why
		}
		profile, why = name, strings.Join(against, "; ")
	}
	return profile, why // the slowest there is
}

// Fitness is that of every member, as it is known here; round trips are only known to this member.
func (m *Member) Fitness() []Fitness {
	heard := map[cluster.MemberNo]Health{}
	for _, h := range m.Health() {
		heard[h.Member] = h
	}
	var out []Fitness
	_ = m.On(func(c *core.Core) {
		for i := range c.State().Members {
			p := &c.State().Members[i]
			if p.Removed {
				continue
			}
			h := heard[p.No]
			f := Fitness{Name: p.Name, Role: p.Role, Known: h.Known, Realtime: h.Realtime, EBPF: h.EBPF, Lateness: h.Lateness, Fsync: h.FsyncP99}
			out = append(out, f)
		}
	})
	return out
}

// How profile auto moves: not before everything was measured for a while, quickly to a slower profile when the present one is not kept, and
// slowly to a faster one.
const (
	autoSettle = time.Minute      // after the start of this daemon, or since a member was last not heard
	autoSlower = time.Minute      // for so long the profile must not be kept
	autoFaster = 10 * time.Minute // for so long a faster one must be kept
	autoFirst  = 20 * time.Second // the first choice: for so long everything is measured after the spec says auto
)

// auto is what the leader remembers while the spec says auto.
type auto struct {
	began   cluster.Instant // when the spec said auto, to this leader
	settled cluster.Instant // since when every member is known
	want    string
	since   cluster.Instant // since when Fastest says want
}

// step answers the profile to pin, or "", and why. pinned is the profile in force.
func (a *auto) step(now cluster.Instant, pinned string, members []Fitness) (string, string) {
	if a.began == 0 {
		a.began = now
	}
	for _, f := range members {
		if !f.Known || f.Lateness == 0 || f.Fsync == 0 {
			a.settled = 0
			return "", ""
		}
	}
	if a.settled == 0 {
		a.settled = now
	}
	want, why := Fastest(members)
	if want != a.want {
		a.want, a.since = want, now
	}
	wait := autoSlower
	switch {
	case want == pinned:
		return "", ""
	case pinned == "":
		if now.Sub(a.began) < autoFirst {
			return "", ""
		}
		return want, why
	case now.Sub(a.settled) < autoSettle:
		return "", ""
	case rank(want) < rank(pinned):
		wait = autoFaster
	}
	if now.Sub(a.since) < wait {
		return "", ""
	}
	return want, why
}

func rank(profile string) int {
	for i, name := range cluster.ProfileNames() {
		if name == profile {
			return i
		}
	}
	return len(cluster.ProfileNames())
}

// pinProfile pins the profile for a spec that says auto. The leader calls it, in calm.
func (p *place) pinProfile(ctx context.Context) {
	pinned, wanted, calm := "", false, false
	err := p.m.On(func(c *core.Core) {
		st := c.State()
		pinned, wanted = st.Pinned, st.Compiled() != nil && st.Compiled().Profile == "auto"
		calm = !p.view.Restless
	})
	if err != nil || !wanted {
		p.auto = auto{}
		return
	}
	if !calm {
		return
	}
	members := p.m.Fitness()
	_ = p.m.On(func(c *core.Core) {
		for i := range members {
			if m := c.State().MemberByName(members[i].Name); m != nil && p.rtt[m.ID] != nil {
				members[i].RTT = p.rtt[m.ID].max()
			}
		}
	})
	profile, why := p.auto.step(p.m.now(), pinned, members)
	if profile == "" {
		return
	}
	t, err := cluster.Profile(profile)
	if err != nil {
		return
	}
	sentence := fmt.Sprintf("profile auto chose %s, lease %v: every member can keep it", profile, t.TTL)
	if why != "" {
		sentence += ", and not a faster one: " + why
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	o, err := p.m.Commit(ctx, &state.Command{Who: "policy", Reason: why, Pin: &state.Pin{Profile: profile},
		Decision: &state.Decision{Kind: "profile", OrderedBy: "policy", Sentence: sentence, Outcome: "done"}})
	if err != nil || o.Err() != nil {
		p.m.log.Warn("pin the profile", "profile", profile, "err", err, "refused", o.Err())
	}
}
