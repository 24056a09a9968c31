package state

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

func id(b byte) cluster.NodeID { return cluster.NodeID{b} }

// group is a cluster of two nodes and a witness with one service.
func group(t *testing.T) *State {
	t.Helper()
	s := new(State)
	spec := &cluster.Spec{Profile: "fast", Services: []cluster.ServiceSpec{{Name: "web", Nodes: []string{"a", "b"}}}}
	compiled, err := spec.Encode()
	if err != nil {
		t.Fatal(err)
	}
	must(t, s, &Command{Init: &Init{ClusterID: strings.Repeat("c", 32), Name: "shop"}})
	must(t, s, &Command{MemberAdd: &MemberAdd{Member: Member{ID: id(1), Name: "a", Role: cluster.RoleNode}}})
	for i, name := range []string{"b", "w"} {
		role := cluster.RoleNode
		if name == "w" {
			role = cluster.RoleWitness
		}
		h := []byte{byte(i + 1)}
		must(t, s, &Command{TokenCreate: &Token{Hash: h, Role: role, Until: 100}})
		must(t, s, &Command{At: 50, MemberAdd: &MemberAdd{TokenHash: h, Member: Member{ID: id(byte(i + 2)), Name: name, Role: role}}})
	}
	s.VotersChanged([]string{s.Members[0].ServerID(), s.Members[1].ServerID(), s.Members[2].ServerID()})
	for n := byte(1); n <= 3; n++ {
		must(t, s, &Command{Join: &Join{ID: id(n), Inc: 1}})
	}
	must(t, s, &Command{SpecApply: &SpecApply{Compiled: compiled}})
	return s
}

func must(t *testing.T, s *State, c *Command) Outcome {
	t.Helper()
	o := apply(t, s, c)
	if o.Err() != nil {
		t.Fatalf("%+v: %v", c, o.Err())
	}
	return o
}

func apply(t *testing.T, s *State, c *Command) Outcome {
	t.Helper()
	back, err := Decode(c.Encode())
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.Apply(1, back)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestASnapshotHoldsEverything(t *testing.T) {
	s := group(t)
	must(t, s, &Command{At: 7, Who: "policy", Grant: &Grant{Service: 1, Grant: lock.Grant{To: lock.Holder{Node: 1, Inc: 1}, TTL: time.Second}},
		Decision: &Decision{Kind: "start", Service: "web", Sentence: "first start", Seen: []Seen{{What: "health", Answers: map[string]string{"a": "ok"}}}}})
	back, err := Restore(s.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(s, back) {
		t.Fatalf("the snapshot lost something:\n%+v\n%+v", s, back)
	}
	if !bytes.Equal(s.Snapshot(), back.Snapshot()) {
		t.Fatal("two equal states have different snapshots")
	}
	if d := back.Decision(1); d == nil || d.EpochTo != 1 || d.Index != 1 {
		t.Fatalf("the decision was not kept with its epoch: %+v", d)
	}
}

func TestACommandOfANewerVersionHaltsTheMember(t *testing.T) {
	s := group(t)
	c, err := Decode([]byte{0xfa, 0x7f, 0x01, 0x00}) // field 2047, bytes
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(9, c); err != ErrUnknownCommand {
		t.Fatalf("applied an unknown command: %v", err)
	}
}

func TestATokenAdmitsOnlyWhomItNames(t *testing.T) {
	s := group(t)
	add := func(at int64, name string, role cluster.Role, hash byte) Outcome {
		return apply(t, s, &Command{At: at, MemberAdd: &MemberAdd{TokenHash: []byte{hash}, Member: Member{ID: id(hash), Name: name, Role: role}}})
	}
	must(t, s, &Command{TokenCreate: &Token{Hash: []byte{9}, Role: cluster.RoleWitness, Name: "x", Until: 100}})
	for _, c := range []struct {
		why  string
		got  Outcome
		want string
	}{
		{"unknown", add(1, "x", cluster.RoleWitness, 77), "not known"},
		{"used", add(1, "x", cluster.RoleWitness, 1), "used already"},
		{"expired", add(101, "x", cluster.RoleWitness, 9), "expired"},
		{"role", add(1, "x", cluster.RoleNode, 9), "for a witness"},
		{"name", add(1, "y", cluster.RoleWitness, 9), "for x"},
	} {
		if c.got.Err() == nil || !strings.Contains(c.got.Text, c.want) {
			t.Errorf("%s: %+v", c.why, c.got)
		}
	}
	if o := add(1, "x", cluster.RoleWitness, 9); o.Err() != nil || o.Member != 4 {
		t.Fatalf("the rightful one was refused: %+v", o)
	}
}

func TestReplacingAMemberGivesItsPlaceToANewOne(t *testing.T) {
	s := group(t)
	must(t, s, &Command{TokenCreate: &Token{Hash: []byte{8}, Role: cluster.RoleWitness, Replace: "w", Until: 100}})
	must(t, s, &Command{MemberAdd: &MemberAdd{TokenHash: []byte{8}, Member: Member{ID: id(8), Name: "w", Role: cluster.RoleWitness}}})
	if m := s.MemberByName("w"); m.No != 4 || !s.Members[2].Removed {
		t.Fatalf("members: %+v", s.Members)
	}
	if o := apply(t, s, &Command{Join: &Join{ID: id(3), Inc: 2}}); o.Err() == nil {
		t.Fatal("the replaced witness was admitted again")
	}
}

func TestASpecIsACompareAndSetAndDeletesOnlyWhatIsNamed(t *testing.T) {
	s := group(t)
	empty, _ := (&cluster.Spec{Profile: "fast"}).Encode()
	if o := apply(t, s, &Command{SpecApply: &SpecApply{Base: 0, Compiled: empty}}); o.Err() == nil {
		t.Fatal("a change based on an older version was accepted")
	}
	if o := apply(t, s, &Command{SpecApply: &SpecApply{Base: 1, Compiled: empty}}); o.Err() == nil || !strings.Contains(o.Text, "--remove") {
		t.Fatalf("a service was deleted without being named: %+v", o)
	}
	must(t, s, &Command{SpecApply: &SpecApply{Base: 1, Compiled: empty, Remove: []string{"web"}}})
	if len(s.Services) != 0 || s.Spec.N != 2 {
		t.Fatalf("services %v, version %d", s.Services, s.Spec.N)
	}
}
