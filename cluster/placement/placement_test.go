package placement

import (
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"pgregory.net/rapid"
)

func at(d time.Duration) cluster.Instant { return cluster.Instant(time.Hour + d) }

func node(id string, active bool) Member {
	return Member{ServerID: id, Role: cluster.RoleNode, Active: active, Standby: !active, Reachable: true, CaughtUp: true, CommitP99: 2 * time.Millisecond}
}

func witness(p99 time.Duration) Member {
	return Member{ServerID: "w", Role: cluster.RoleWitness, Reachable: true, CaughtUp: true, CommitP99: p99}
}

func TestTheLeadGoesWhereADeathCostsLeast(t *testing.T) {
	gone := witness(time.Millisecond)
	gone.Reachable = false
	hears, behind := witness(0), witness(time.Millisecond)
	hears.Hears, behind.CaughtUp = true, false
	const ms = time.Millisecond
	for _, c := range []struct {
		what   string
		view   View
		now    time.Duration
		want   string
		reason string
	}{
		{"active leads, quick witness", View{Leader: "a", Members: []Member{node("a", true), node("b", false), witness(5 * ms)}}, Calm, "w", "quick"},
		{"active leads, slow witness", View{Leader: "a", Members: []Member{node("a", true), node("b", false), witness(11 * ms)}}, Calm, "b", "should not lead"},
		{"active leads, witness never measured", View{Leader: "a", Members: []Member{node("a", true), node("b", false), witness(0)}}, Calm, "b", "should not lead"},
		{"standby leads, quick witness", View{Leader: "b", Members: []Member{node("a", true), node("b", false), witness(5 * ms)}}, Calm, "w", "quick"},
		{"standby leads, slow witness", View{Leader: "b", Members: []Member{node("a", true), node("b", false), witness(50 * ms)}}, Calm, "", "not active leads"},
		{"witness leads, a little slower than it got the lead with", View{Leader: "w", Members: []Member{node("a", true), node("b", false), witness(15 * ms)}}, Calm, "", "quick witness leads"},
		{"witness leads, slow", View{Leader: "w", Members: []Member{node("a", true), node("b", false), witness(30 * ms)}}, Calm, "b", "slow"},
		{"witness leads, slow, standby gone", View{Leader: "w", Members: []Member{node("a", true), witness(30 * ms)}}, Calm, "", "every other"},
		{"both active, slow witness", View{Leader: "a", Members: []Member{node("a", true), node("b", true), witness(50 * ms)}}, Calm, "", "every other"},
		{"both active, quick witness", View{Leader: "a", Members: []Member{node("a", true), node("b", true), witness(5 * ms)}}, Calm, "w", "quick"},
		{"witness gone", View{Leader: "a", Members: []Member{node("a", true), node("b", false), gone}}, Calm, "b", "should not lead"},
		{"witness behind", View{Leader: "b", Members: []Member{node("a", true), node("b", false), behind}}, Calm, "", "not active leads"},
		{"not calm yet", View{Leader: "a", Members: []Member{node("a", true), node("b", false), witness(5 * ms)}}, Calm - 1, "", "later"},
		{"takeover in flight", View{Leader: "a", Restless: true, Members: []Member{node("a", true), node("b", false), witness(5 * ms)}}, Calm, "", "in flight"},
		{"moved lately", View{Leader: "a", Moved: at(0), Members: []Member{node("a", true), node("b", false), witness(5 * ms)}}, Pause - 1, "", "a minute"},
		{"cut off, witness reaches both, not calm, in flight", View{Leader: "b", CutOff: "a", Restless: true, Members: []Member{node("a", true), node("b", false), hears}}, 0, "w", "reaches both"},
		{"cut off, witness does not hear it", View{Leader: "b", CutOff: "a", Members: []Member{node("a", true), node("b", false), witness(ms)}}, Calm, "", "no witness"},
		{"cut off, moved a second ago", View{Leader: "b", CutOff: "a", Moved: at(0), Members: []Member{node("a", true), node("b", false), hears}}, time.Second, "", "just been moved"},
		{"leader removed", View{Leader: "x", Members: []Member{node("a", true)}}, Calm, "", "not among"},
	} {
		c.view.Changed = at(0)
		got, reason := Decide(at(c.now), c.view)
		if got != c.want || !strings.Contains(reason, c.reason) {
			t.Errorf("%s: %q because %q; want %q because of %q", c.what, got, reason, c.want, c.reason)
		}
	}
}

// Whatever the view: the target is another usable voter, an active is never chosen, and after the move there is no wish
// to move again, so the lead does not wander.
func TestTheLeadNeverWanders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dur := rapid.SampledFrom([]time.Duration{0, 1, 9e6, 10e6, 11e6, 19e6, 21e6, 1e9})
		v := View{Leader: "a", Changed: at(0)}
		for _, id := range []string{"a", "b", "c", "w", "x"} {
			m := Member{ServerID: id, Role: cluster.RoleNode, Active: rapid.Bool().Draw(t, "active"), Standby: rapid.Bool().Draw(t, "standby"),
				Reachable: rapid.Bool().Draw(t, "reachable"), CaughtUp: rapid.Bool().Draw(t, "caught"), CommitP99: dur.Draw(t, "p99")}
			if id == "w" || id == "x" {
				m.Role, m.Active, m.Standby = cluster.RoleWitness, false, false
			}
			v.Members = append(v.Members, m)
		}
		v.Leader = rapid.SampledFrom([]string{"a", "b", "w"}).Draw(t, "leader")
		target, _ := Decide(at(Calm), v)
		if target == "" {
			return
		}
		m := find(v.Members, target)
		if target == v.Leader || !m.usable() || m.Active {
			t.Fatalf("moved to %+v", m)
		}
		v.Leader, v.Moved = target, at(Calm)
		if again, why := Decide(at(Calm+Pause), v); again != "" {
			t.Fatalf("moved on to %s at once: %s", again, why)
		}
	})
}
