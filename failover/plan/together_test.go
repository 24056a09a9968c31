package plan

import (
	"strings"
	"testing"

	"github.com/hanode/hanode/cluster"
)

// neighbours gives the scene two more services: nginx runs everywhere, db is active on a.
func neighbours(v *View) (nginx, db *Neighbour) {
	v.Others = []Neighbour{
		{Name: "db", Spec: &cluster.ServiceSpec{Name: "db", Run: "active", Priority: 100}, Active: a},
		{Name: "nginx", Spec: &cluster.ServiceSpec{Name: "nginx", Run: "everywhere"}, Reports: map[cluster.MemberNo]Report{a: {Ready: true}, b: {Ready: true}}},
		{Name: "web", Spec: &cluster.ServiceSpec{Name: "web", Run: "active"}, Active: a},
	}
	return &v.Others[1], &v.Others[0]
}

func TestAServiceRunsOnlyWhereTheOthersLetIt(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(v *View, s *Service, nginx, db *Neighbour)
		to     cluster.MemberNo // after the death of a
		says   string
	}{
		{"nothing is said of the others", func(*View, *Service, *Neighbour, *Neighbour) {}, b, "took over"},
		{"what it requires is well there", func(_ *View, s *Service, _, _ *Neighbour) { s.Spec.Requires = []string{"nginx"} }, b, "took over"},
		{"what it requires is not well there", func(_ *View, s *Service, nginx, _ *Neighbour) {
			s.Spec.Requires = []string{"nginx"}
			nginx.Reports[b] = Report{Unhealthy: true}
		}, 0, "b: nginx, which web requires, is not well there"},
		{"what it requires is on its way", func(_ *View, s *Service, _, db *Neighbour) {
			s.Spec.Requires = []string{"db"}
			db.Active, db.Coming = 0, b
		}, 0,
			"b: db, which web requires, is not active there"},
		{"what it requires has arrived", func(_ *View, s *Service, _, db *Neighbour) { s.Spec.Requires = []string{"db"}; db.Active = b }, b, "took over"},
		{"what it must be apart from is there", func(_ *View, s *Service, _, db *Neighbour) { s.Spec.Apart = []string{"db"}; db.Active = b }, 0,
			"b: db is active there, and web must be apart from it"},
		{"the other one says that they are to be apart", func(_ *View, _ *Service, _, db *Neighbour) {
			db.Spec.Apart = []string{"web"}
			db.Active, db.Coming = 0, b
		}, 0, "must be apart"},
		{"it is worth more than what it must be apart from", func(_ *View, s *Service, _, db *Neighbour) {
			s.Spec.Apart, s.Spec.Priority = []string{"db"}, 200
			db.Active = b
		}, b, "took over"},
		{"the node has room", func(v *View, s *Service, _, db *Neighbour) { s.Spec.Load, db.Spec.Load, db.Active = 60, 40, b }, b, "took over"},
		{"the node has none", func(v *View, s *Service, _, db *Neighbour) { s.Spec.Load, db.Spec.Load, db.Active = 60, 50, b }, 0,
			"b is full: of a capacity of 100 it carries db 50, and web is a load of 60"},
		{"the node is larger", func(v *View, s *Service, _, db *Neighbour) {
			s.Spec.Load, db.Spec.Load, db.Active = 60, 50, b
			v.Capacity = map[cluster.MemberNo]int{b: 120}
		}, b, "took over"},
		{"what is there is worth less and gives way", func(v *View, s *Service, _, db *Neighbour) {
			s.Spec.Load, s.Spec.Priority, db.Spec.Load, db.Active = 60, 200, 50, b
		}, b, "took over"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, s := scene(w)
			v.silent(a)
			delete(s.Reports, a)
			nginx, db := neighbours(v)
			db.Active = 0
			v.Others[2].Active = 0
			tt.change(v, s, nginx, db)
			d := v.Decide(s)
			if d.To.Node != tt.to || !strings.Contains(d.Sentence, tt.says) {
				t.Errorf("to %d, want %d: %q, want %q", d.To.Node, tt.to, d.Sentence, tt.says)
			}
		})
	}
}

func TestAnActiveGivesWay(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(v *View, s *Service, nginx, db *Neighbour)
		to     cluster.MemberNo
		says   string // "": it stays
	}{
		{"all is well", func(*View, *Service, *Neighbour, *Neighbour) {}, 0, ""},
		{"what it requires has moved", func(_ *View, s *Service, _, db *Neighbour) { s.Spec.Requires = []string{"db"}; db.Active = b }, b, "db, which web requires, is active on b"},
		{"what it requires is down: moving helps nobody", func(_ *View, s *Service, _, db *Neighbour) { s.Spec.Requires = []string{"db"}; db.Active = 0 }, 0, ""},
		{"what it requires is stopped", func(_ *View, s *Service, _, db *Neighbour) {
			s.Spec.Requires = []string{"db"}
			db.Active, db.Stopped = b, true
		}, 0, ""},
		{"what it requires is ill here", func(_ *View, s *Service, nginx, _ *Neighbour) {
			s.Spec.Requires = []string{"nginx"}
			nginx.Reports[a] = Report{Unhealthy: true}
		}, b, "nginx, which web requires, is not well on a"},
		{"one that is worth more came, and they are to be apart", func(_ *View, s *Service, _, db *Neighbour) { s.Spec.Apart = []string{"db"}; s.Spec.Priority = 50 }, b,
			"db is active on a, and web must be apart from it"},
		{"one that is worth less came", func(_ *View, s *Service, _, db *Neighbour) { s.Spec.Apart = []string{"db"}; s.Spec.Priority = 200 }, 0, ""},
		{"there is no room for it any more, and room elsewhere", func(_ *View, s *Service, _, db *Neighbour) { s.Spec.Load, s.Spec.Priority, db.Spec.Load = 60, 50, 50 }, b, "a is full"},
		{"there is no room for it anywhere", func(v *View, s *Service, _, db *Neighbour) {
			s.Spec.Load, s.Spec.Priority, db.Spec.Load = 60, 50, 50
			v.Capacity = map[cluster.MemberNo]int{b: 10}
		}, 0, "a is full"},
		{"the same worth: who is there stays", func(_ *View, s *Service, _, db *Neighbour) { s.Spec.Load, s.Spec.Priority, db.Spec.Load = 60, 100, 50 }, 0, ""},
		{"paused", func(_ *View, s *Service, _, db *Neighbour) {
			s.Spec.Requires = []string{"db"}
			db.Active = b
			s.Paused = true
		}, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, s := scene(a)
			s.Spec.Priority = 100
			nginx, db := neighbours(v)
			tt.change(v, s, nginx, db)
			to, why := v.GiveWay(s)
			no := cluster.MemberNo(0)
			if to != nil {
				no = to.No
			}
			if no != tt.to || (why == "") != (tt.says == "") || !strings.Contains(why, tt.says) {
				t.Errorf("to %d, want %d: %q, want %q", no, tt.to, why, tt.says)
			}
		})
	}
}
