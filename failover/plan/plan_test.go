package plan

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

// The members of the tables: nodes a and b, witness w.
const (
	a = cluster.MemberNo(1)
	b = cluster.MemberNo(2)
	w = cluster.MemberNo(3)
)

var fast, _ = cluster.Profile("fast")

func boot(n cluster.MemberNo) cluster.BootID { return cluster.BootID{byte(n)} }

// scene is two nodes and a witness, all heard; the service is active on a, in epoch 4, and b is ready and in sync.
func scene(self cluster.MemberNo) (*View, *Service) {
	g := &lock.Group{Admitted: []lock.Admission{{}, {Inc: 1, Boot: boot(a)}, {Inc: 1, Boot: boot(b)}, {Inc: 1, Boot: boot(w)}},
		Sets: []lock.VoterSet{{C: 1, Set: cluster.SetOf(a, b, w)}}}
	v := &View{Self: self, Up: time.Hour, Timing: fast, Group: g, Damping: 3, Members: []Member{
		{No: a, Name: "a", Role: cluster.RoleNode, Inc: 1}, {No: b, Name: "b", Role: cluster.RoleNode, Inc: 1}, {No: w, Name: "w", Role: cluster.RoleWitness, Inc: 1}}}
	s := &Service{No: 1, Name: "web", Spec: &cluster.ServiceSpec{Name: "web", Nodes: []string{"a", "b"}, Run: "active", Failover: "automatic", Failback: "manual",
		FailbackAfter: time.Minute, ColdStartWait: 30 * time.Second},
		Lock: &lock.Service{Epoch: 4, Holder: lock.Holder{Node: a, Inc: 1}, Eligible: cluster.SetOf(a, b), InSync: cluster.SetOf(a, b),
			Boots: []lock.MemberBoot{{Node: a, Boot: boot(a)}, {Node: b, Boot: boot(b)}}, Gen: 7},
		Reports: map[cluster.MemberNo]Report{a: {Epoch: 4, Serving: true, Ready: true}, b: {Ready: true}}}
	return v, s
}

// silent lets nobody hear a member any more.
func (v *View) silent(n cluster.MemberNo) {
	m := v.Member(n)
	m.Age, m.Own = time.Second, time.Second
}

func TestDecideInTheSituationsOfTheProtocol(t *testing.T) {
	tests := []struct {
		name      string
		self      cluster.MemberNo
		change    func(v *View, s *Service)
		to        cluster.MemberNo // 0: no move
		kind      string
		automatic bool
		ask       cluster.MemberSet
		says      string
	}{
		{"all is well", w, func(*View, *Service) {}, 0, "", false, 0, "a is active and is heard"},
		{"(a) the active dies", w, func(v *View, s *Service) { v.silent(a); delete(s.Reports, a) }, b, "failover", true, cluster.SetOf(b, w),
			"b took over because a, the active, was heard by nobody for 1s"},
		{"(b) the active dies and led; the standby leads now", b, func(v *View, s *Service) { v.silent(a); delete(s.Reports, a) }, b, "failover", true,
			cluster.SetOf(b, w), "heard by nobody"},
		{"(a) with data, in sync", w, func(v *View, s *Service) { v.silent(a); s.Lock.Data = true }, b, "failover", true, cluster.SetOf(b, w),
			"b held every acknowledged write"},
		{"(a) with data, not in sync", w, func(v *View, s *Service) { v.silent(a); s.Lock.Data = true; s.Lock.InSync = cluster.SetOf(a) }, 0, "", false, 0,
			"b is not in sync"},
		{"(c) the nodes are cut from each other and both reach the witness", b, func(v *View, s *Service) { v.Member(a).Own = time.Minute }, 0, "", false, 0,
			"a is active and is heard"},
		{"(d) the active leads and is cut off: it hears itself", a, func(v *View, s *Service) { v.silent(b); v.silent(w) }, 0, "", false, 0, "a is active and is heard"},
		{"(e) the witness is dead", b, func(v *View, s *Service) { v.silent(w); s.Lock.Sticky = true }, 0, "", false, 0, "a is active and is heard"},
		{"(e) and then the active dies", b, func(v *View, s *Service) { v.silent(w); v.silent(a); s.Lock.Sticky = true }, 0, "", false, 0,
			"b may not: the witness was lost and a may be going on alone"},
		{"(e) and the active's daemon was started anew", b, func(v *View, s *Service) {
			v.silent(w)
			s.Lock.Sticky = true
			v.Member(a).Inc, v.Group.Admitted[a].Inc = 2, 2
			s.Reports[a] = Report{Ready: true}
		}, a, "return", false, cluster.SetOf(a, b, w), "a is active again"},
		{"(e') held by an operator", w, func(v *View, s *Service) { v.silent(a); s.Lock.Held, s.HeldWhy = true, "maintenance" }, 0, "", false, 0, "held: maintenance"},
		{"(g) too many failovers of late", w, func(v *View, s *Service) { v.silent(a); s.Moves = 3 }, 0, "", false, 0, "held until hanode service clear web"},
		{"(g) a fenced active that released", w, func(v *View, s *Service) {
			s.Released, s.Why = true, "no voter has renewed its lease in time"
			s.Reports[a] = Report{Epoch: 4, Ready: true}
		}, b, "failover", true, cluster.SetOf(a, b, w), "had stopped serving: no voter has renewed its lease in time"},
		{"(g) the preferred node is back, and failback is manual", w, func(v *View, s *Service) {
			s.Lock.Holder.Node = b
			s.Reports[b] = Report{Epoch: 4, Serving: true}
		}, 0, "", false, 0, "b is active and is heard"},
		{"(i) the active was frozen, has fenced itself and could not release", w, func(v *View, s *Service) { s.Reports[a] = Report{Epoch: 4, Ready: true} }, b,
			"failover", true, cluster.SetOf(b, w), "b took over"},
		{"(m) after a power cut the previous active is waited for", b, func(v *View, s *Service) {
			v.Up = 2 * time.Second
			v.Member(a).Age, v.Member(a).Own = Never, Never
			v.Member(b).Inc, v.Group.Admitted[b].Inc = 2, 2
			s.Lock.Data = true
		}, 0, "", false, 0, "b waits up to 28s for a"},
		{"(m) but not for ever", b, func(v *View, s *Service) {
			v.Up = time.Minute
			v.Member(a).Age, v.Member(a).Own = Never, Never
			v.Member(b).Inc, v.Group.Admitted[b].Inc = 2, 2
			s.Lock.Data = true
		}, b, "failover", true, cluster.SetOf(b, w), "b took over"},
		{"(m) nor by a node that lost its page cache", b, func(v *View, s *Service) {
			v.Up = time.Minute
			v.Member(a).Age, v.Member(a).Own = Never, Never
			v.Member(b).Inc, v.Group.Admitted[b] = 2, lock.Admission{Inc: 2, Boot: boot(9)}
			s.Lock.Data = true
		}, 0, "", false, 0, "rebooted since it was in sync"},
		{"(m) the previous active is preferred", w, func(v *View, s *Service) {
			v.Up = 2 * time.Second
			v.Member(a).Inc, v.Group.Admitted[a].Inc = 2, 2
			v.Member(b).Inc, v.Group.Admitted[b].Inc = 2, 2
			s.Lock.Data = true
			s.Reports = map[cluster.MemberNo]Report{a: {Ready: true}, b: {Ready: true}}
		}, a, "return", false, cluster.SetOf(a, b, w), "a is active again"},
		{"(o) while voters change all of them are asked", b, func(v *View, s *Service) {
			v.silent(a)
			v.Group.Sets = append(v.Group.Sets, lock.VoterSet{C: 2, Set: cluster.SetOf(a, b, w, 4)})
		}, b, "failover", true, cluster.SetOf(b, w, 4), "b took over"},
		{"first start", w, func(v *View, s *Service) {
			*s.Lock = lock.Service{Eligible: cluster.SetOf(a, b)}
			s.Reports = map[cluster.MemberNo]Report{a: {Ready: true}, b: {Ready: true}}
		}, a, "start", false, 0, "a starts web"},
		{"switchover: released for a named node", w, func(v *View, s *Service) {
			s.Released, s.Target, s.Kind, s.By, s.Why = true, b, "switchover", "tom", "trial"
		}, b, "switchover", false, cluster.SetOf(a, b, w), "b took over because a gave it up: trial"},
		{"switchover although automatic actions are paused", w, func(v *View, s *Service) {
			s.Released, s.Target, s.Kind, s.By, s.Paused = true, b, "switchover", "tom", true
		}, b, "switchover", false, cluster.SetOf(a, b, w), "gave it up"},
		{"paused", w, func(v *View, s *Service) { v.silent(a); s.Paused = true }, 0, "", false, 0, "automatic actions are paused"},
		{"manual", w, func(v *View, s *Service) { v.silent(a); s.Spec.Failover = "manual" }, 0, "", false, 0, "failover = manual"},
		{"manual, and the active comes back", w, func(v *View, s *Service) {
			s.Spec.Failover = "manual"
			v.Member(a).Inc, v.Group.Admitted[a].Inc = 2, 2
			s.Reports[a] = Report{Ready: true}
		}, a, "return", false, cluster.SetOf(a, b, w), "a is active again"},
		{"manual, ordered although the active is lost", w, func(v *View, s *Service) {
			v.silent(a)
			delete(s.Reports, a)
			s.Spec.Failover, s.Approved, s.Approver = "manual", true, "tom"
		}, b, "failover", false, cluster.SetOf(b, w), "heard by nobody for 1s; tom agreed to it"},
		{"paused, ordered although the active is lost", w, func(v *View, s *Service) {
			v.silent(a)
			delete(s.Reports, a)
			s.Paused, s.Approved, s.Approver = true, true, "tom"
		}, b, "failover", false, cluster.SetOf(b, w), "tom agreed to it"},
		{"approvers are asked", w, func(v *View, s *Service) { v.silent(a); s.Spec.Approvers = []string{"ann", "tom"} }, 0, "", false, 0, "waits for the word of ann or tom: hanode approve web"},
		{"an approver declined", w, func(v *View, s *Service) { v.silent(a); s.Spec.Approvers = []string{"ann"}; s.Approver = "ann" }, 0, "", false, 0, "declined by ann"},
		{"an approver agreed", w, func(v *View, s *Service) {
			v.silent(a)
			s.Spec.Approvers, s.Approved, s.Approver = []string{"ann"}, true, "ann"
		}, b, "failover", false, cluster.SetOf(b, w), "ann agreed to it"},
		{"an approval promotes nobody who may not hold it", w, func(v *View, s *Service) {
			v.silent(a)
			s.Lock.Data, s.Lock.InSync = true, cluster.SetOf(a)
			s.Spec.Approvers, s.Approved, s.Approver = []string{"ann"}, true, "ann"
		}, 0, "", false, 0, "b is not in sync"},
		{"stopped", w, func(v *View, s *Service) { v.silent(a); s.Stopped = true }, 0, "", false, 0, "stopped by order"},
		{"the standby is drained", w, func(v *View, s *Service) { v.silent(a); v.Member(b).Drained = true }, 0, "", false, 0, "b is drained"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v, s := scene(tt.self)
			tt.change(v, s)
			d := v.Decide(s)
			if again := v.Decide(s); !reflect.DeepEqual(d, again) {
				t.Errorf("the same view gave %+v and %+v", d, again)
			}
			if d.Move != (tt.to != 0) || d.To.Node != tt.to || d.Kind != tt.kind || d.Automatic != tt.automatic || d.Ask != tt.ask {
				t.Errorf("%+v, want to %d, kind %q, automatic %v, asked %b", d, tt.to, tt.kind, tt.automatic, tt.ask)
			}
			if d.Move && d.To.Inc != v.Group.Admission(tt.to).Inc {
				t.Errorf("granted to run %d", d.To.Inc)
			}
			if !strings.Contains(d.Sentence, tt.says) {
				t.Errorf("says %q, want %q", d.Sentence, tt.says)
			}
		})
	}
}

func TestTheActiveLeavesOnlyWithAReasonAndATarget(t *testing.T) {
	well := map[cluster.MemberNo]time.Duration{b: time.Hour}
	tests := []struct {
		name   string
		change func(v *View, s *Service) Active
		to     cluster.MemberNo
		kind   string
	}{
		{"nothing is wrong", func(v *View, s *Service) Active { return Active{Heard: well} }, 0, ""},
		{"its processes have failed", func(v *View, s *Service) Active { return Active{GaveUp: "exit status 1", Heard: well} }, b, "failover"},
		{"and the spec says manual", func(v *View, s *Service) Active { s.Spec.Failover = "manual"; return Active{GaveUp: "exit status 1"} }, 0, ""},
		{"and the other node has failed too", func(v *View, s *Service) Active { s.Reports[b] = Report{Unhealthy: true}; return Active{GaveUp: "x"} }, 0, ""},
		{"and the other node is silent", func(v *View, s *Service) Active { v.silent(b); return Active{GaveUp: "x"} }, 0, ""},
		{"and it has moved too often", func(v *View, s *Service) Active { s.Moves = 3; return Active{GaveUp: "x"} }, 0, ""},
		{"and it is paused", func(v *View, s *Service) Active { s.Paused = true; return Active{GaveUp: "x"} }, 0, ""},
		{"it is drained", func(v *View, s *Service) Active { v.Member(a).Drained = true; return Active{} }, b, "drain"},
		{"it is drained and the standby is behind", func(v *View, s *Service) Active {
			v.Member(a).Drained, s.Lock.Data, s.Lock.InSync = true, true, cluster.SetOf(a)
			return Active{}
		}, 0, ""},
		{"(g) the preferred node is back, and long enough", func(v *View, s *Service) Active {
			s.Spec.Nodes, s.Spec.Failback = []string{"b", "a"}, "automatic"
			return Active{Heard: well}
		}, b, "failback"},
		{"(g) not yet long enough", func(v *View, s *Service) Active {
			s.Spec.Nodes, s.Spec.Failback = []string{"b", "a"}, "automatic"
			return Active{Heard: map[cluster.MemberNo]time.Duration{b: time.Second}}
		}, 0, ""},
		{"(g) failback is manual", func(v *View, s *Service) Active { s.Spec.Nodes = []string{"b", "a"}; return Active{Heard: well} }, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v, s := scene(a)
			to, kind, why := v.Leave(s, tt.change(v, s))
			switch {
			case tt.to == 0 && to != nil:
				t.Errorf("leaves for %s: %s", to.Name, why)
			case tt.to != 0 && (to == nil || to.No != tt.to || kind != tt.kind || why == ""):
				t.Errorf("to %+v, kind %q, why %q", to, kind, why)
			}
		})
	}
}

func TestASwitchoverIsRefusedWithAWayOn(t *testing.T) {
	tests := []struct {
		name   string
		change func(v *View, s *Service)
		to     string
		goes   string
		why    string
	}{
		{"to the standby", func(*View, *Service) {}, "b", "b", ""},
		{"to the best node", func(*View, *Service) {}, "", "b", ""},
		{"to itself", func(*View, *Service) {}, "a", "", "a is the active already"},
		{"to nobody known", func(*View, *Service) {}, "c", "", "there is no node c"},
		{"to a silent node", func(v *View, s *Service) { v.silent(b) }, "b", "", "b is not heard"},
		{"to the best node when there is none", func(v *View, s *Service) { v.silent(b) }, "", "", "no other node can take it now"},
		{"to a node that is behind", func(v *View, s *Service) { s.Lock.Data, s.Lock.InSync = true, cluster.SetOf(a) }, "b", "", "not in sync"},
		{"to a node where it has failed", func(v *View, s *Service) { s.Reports[b] = Report{Unhealthy: true} }, "b", "", "have failed on b of late"},
		{"(e) without the witness, which the active ends before its Release", func(v *View, s *Service) { s.Lock.Sticky = true }, "b", "b", ""},
		{"stopped", func(v *View, s *Service) { s.Stopped = true }, "b", "", "the service is stopped"},
		{"held", func(v *View, s *Service) { s.Lock.Held = true }, "b", "", "the service is held"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v, s := scene(a)
			tt.change(v, s)
			to, r := v.Switchover(s, tt.to)
			switch {
			case tt.goes != "" && (r != nil || to == nil || to.Name != tt.goes):
				t.Errorf("%v, %v", to, r)
			case tt.goes == "" && (r == nil || !strings.Contains(r.Why, tt.why) || r.Do == "" || !strings.Contains(r.What, "switchover of web")):
				t.Errorf("%v, %v, want %q", to, r, tt.why)
			}
		})
	}
}

func TestTheOutlookSaysWhatHappensIfTheActiveDies(t *testing.T) {
	tests := []struct {
		name    string
		change  func(v *View, s *Service)
		safe    bool
		text    string
		reasons string
	}{
		{"protected", func(*View, *Service) {}, true, "b takes over by itself", ""},
		{"(e) the witness is silent", func(v *View, s *Service) { v.silent(w) }, false, "DOWN until a returns", "witness-lost"},
		{"(e) sticky", func(v *View, s *Service) { s.Lock.Sticky = true }, false, "DOWN until a returns", "witness-lost"},
		{"the standby is silent", func(v *View, s *Service) { v.silent(b) }, false, "DOWN until a returns", "no-standby"},
		{"the standby is behind", func(v *View, s *Service) { s.Lock.Data, s.Lock.InSync = true, cluster.SetOf(a) }, false, "DOWN until a returns", "standby-behind"},
		{"paused", func(v *View, s *Service) { s.Paused = true }, false, "b, by your order", "paused"},
		{"manual", func(v *View, s *Service) { s.Spec.Failover = "manual" }, false, "b, by your order", "approval-needed"},
		{"held", func(v *View, s *Service) { s.Lock.Held, s.HeldWhy = true, "maintenance" }, false, "held: maintenance", "held"},
		{"a single node", func(v *View, s *Service) { s.Spec.Nodes = []string{"a"} }, false, "DOWN until a returns", "no-standby"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v, s := scene(w)
			tt.change(v, s)
			o := v.Outlook(s)
			if o.Protected != tt.safe || o.Text != tt.text || strings.Join(o.Reasons, " ") != tt.reasons {
				t.Errorf("%+v, want %v, %q, %q", o, tt.safe, tt.text, tt.reasons)
			}
		})
	}
}
