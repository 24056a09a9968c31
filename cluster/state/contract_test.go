package state

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

// levelled is group at the newest feature level.
func levelled(t *testing.T) *State {
	s := group(t)
	for n := byte(1); n <= 3; n++ {
		must(t, s, &Command{Join: &Join{ID: id(n), Inc: 2, Level: FeatureLevel}})
	}
	must(t, s, &Command{Level: &Level{Level: FeatureLevel}})
	return s
}

func TestALevelIsRaisedOnlyWhenEveryMemberKnowsIt(t *testing.T) {
	s := group(t)
	if s.FeatureLevel != 1 {
		t.Fatalf("a cluster that was founded by the first version has level %d", s.FeatureLevel)
	}
	if o := apply(t, s, &Command{Approval: &Approval{Service: "web"}}); o.Result != lock.Conflict || !strings.Contains(o.Text, "hanode upgrade finish") {
		t.Fatalf("a command of level 2 at level 1: %+v", o)
	}
	must(t, s, &Command{Join: &Join{ID: id(1), Inc: 2, Level: 2, Version: "2"}})
	must(t, s, &Command{Join: &Join{ID: id(2), Inc: 2, Level: 2, Version: "2"}})
	if o := apply(t, s, &Command{Level: &Level{Level: 2}}); o.Result != lock.Conflict || !strings.Contains(o.Text, "w runs") {
		t.Fatalf("w knows level 1: %+v", o)
	}
	must(t, s, &Command{Join: &Join{ID: id(3), Inc: 2, Level: 2, Version: "2"}})
	must(t, s, &Command{Level: &Level{Level: 2}})
	must(t, s, &Command{Level: &Level{Level: 1}})
	if s.FeatureLevel != 2 {
		t.Fatalf("level %d", s.FeatureLevel)
	}
	if _, err := s.Apply(9, &Command{Level: &Level{Level: FeatureLevel + 1}}); !errors.Is(err, ErrUnknownCommand) {
		t.Fatalf("a level beyond what this version knows: %v", err)
	}
}

func TestAnApprovalCountsForItsEpochOnly(t *testing.T) {
	s := levelled(t)
	if o := apply(t, s, &Command{Approval: &Approval{Service: "web", Epoch: 7, Yes: true}}); o.Result != lock.Conflict {
		t.Fatalf("another epoch: %+v", o)
	}
	must(t, s, &Command{Who: "ann", Approval: &Approval{Service: "web", Epoch: 0, Yes: true, Who: "ann"}})
	if yes, who := s.Services[0].Approved(); !yes || who != "ann" {
		t.Fatalf("%v, %q", yes, who)
	}
	must(t, s, &Command{Grant: &Grant{Grant: lock.Grant{To: lock.Holder{Node: 1, Inc: 2}, TTL: 1}, Service: 1}})
	if yes, who := s.Services[0].Approved(); yes || who != "" {
		t.Fatalf("after the Grant that it was for: %v, %q", yes, who)
	}
	must(t, s, &Command{Approval: &Approval{Service: "web", Epoch: 1, Who: "ann"}})
	if yes, who := s.Services[0].Approved(); yes || who != "ann" {
		t.Fatalf("declined: %v, %q", yes, who)
	}
}

func TestAPausedCheckIsKeptUntilItIsResumed(t *testing.T) {
	s := levelled(t)
	s.compiled.Services[0].Checks = []cluster.CheckSpec{{Name: "page"}}
	if o := apply(t, s, &Command{CheckPause: &CheckPause{Service: "web", Check: "x", Until: 5}}); o.Result != lock.Unknown {
		t.Fatalf("%+v", o)
	}
	must(t, s, &Command{CheckPause: &CheckPause{Service: "web", Check: "page", Until: 5, Who: "ann"}})
	must(t, s, &Command{CheckPause: &CheckPause{Service: "web", Check: "page", Until: 9, Who: "ann"}})
	if p := s.Services[0].Paused; len(p) != 1 || p[0].Until != 9 {
		t.Fatalf("%+v", p)
	}
	must(t, s, &Command{CheckPause: &CheckPause{Service: "web", Check: "page"}})
	if p := s.Services[0].Paused; len(p) != 0 {
		t.Fatalf("%+v", p)
	}
}

func TestTheGossipKeyIsChangedInThreeSteps(t *testing.T) {
	s := levelled(t)
	old, fresh := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	s.GossipKeys = []GossipKey{{old}}
	step := func(what string, key []byte) lock.Result {
		return apply(t, s, &Command{KeyChange: &KeyChange{Step: what, Key: key}}).Result
	}
	if step(KeyUse, fresh) != lock.Unknown || step(KeyAdd, []byte("short")) != lock.Conflict {
		t.Fatal("a key was used before it was added, or is too short")
	}
	if step(KeyAdd, fresh) != 0 || step(KeyAdd, fresh) != 0 || step(KeyAdd, bytes.Repeat([]byte{3}, 32)) != lock.Conflict {
		t.Fatal("add")
	}
	if step(KeyDrop, fresh) != lock.Conflict {
		t.Fatal("the ring was reduced to a key that nobody encrypts with yet")
	}
	if step(KeyUse, fresh) != 0 || !reflect.DeepEqual(s.GossipKeys, []GossipKey{{fresh}, {old}}) {
		t.Fatalf("use: %v", s.GossipKeys)
	}
	if step(KeyDrop, fresh) != 0 || !reflect.DeepEqual(s.GossipKeys, []GossipKey{{fresh}}) {
		t.Fatalf("drop: %v", s.GossipKeys)
	}
}

func TestNothingGoesBackWhenAClusterIsMadeAnewFromABackup(t *testing.T) {
	old := levelled(t)
	must(t, old, &Command{Grant: &Grant{Grant: lock.Grant{To: lock.Holder{Node: 1, Inc: 2}, TTL: 1}, Service: 1}, Decision: &Decision{Kind: "start"}})
	s := new(State)
	must(t, s, &Command{Init: &Init{ClusterID: strings.Repeat("d", 32), Name: "shop", Level: FeatureLevel, Restored: old.Restore()}})
	v := s.ServiceByName("web")
	switch {
	case v == nil || v.Lock.Epoch <= old.Services[0].Lock.Epoch || v.Lock.Gen <= old.Services[0].Lock.Gen:
		t.Fatalf("the lock of web went back: %+v", v)
	case v.Lock.Holder.Node != 0 || !v.Stopped:
		t.Fatalf("web would start although nobody knows whether its old active is off: %+v", v)
	case s.ForkCount != old.ForkCount+1 || s.Spec.N != old.Spec.N || s.LastDecision < old.LastDecision || s.LastEvent < old.LastEvent || s.ClusterID == old.ClusterID:
		t.Fatalf("%+v", s)
	}
	must(t, s, &Command{MemberAdd: &MemberAdd{Member: Member{ID: id(9), Name: "a", Role: cluster.RoleNode}}})
	must(t, s, &Command{Join: &Join{ID: id(9), Inc: 1, Level: FeatureLevel}})
	if !v.Lock.Eligible.Has(1) {
		t.Fatalf("a is one of its nodes: %+v", v.Lock)
	}
	must(t, s, &Command{Grant: &Grant{Grant: lock.Grant{Epoch: v.Lock.Epoch, To: lock.Holder{Node: 1, Inc: 1}, TTL: 1}, Service: v.No}})
	if back, err := Restore(s.Snapshot()); err != nil || back.ForkCount != s.ForkCount {
		t.Fatal(err)
	}
}
