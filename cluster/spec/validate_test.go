package spec

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/hanode/hanode/cluster"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// goodNode is a member on which the sample with every key can run.
func goodNode(name string) NodeEnv {
	return NodeEnv{
		Name: name, StateDir: "/var/lib/hanode",
		LookupUser:  func(string) (uint32, uint32, error) { return 1000, 1001, nil },
		LookupGroup: func(string) (uint32, error) { return 33, nil },
		Executable:  func(string, string) error { return nil },
		Unit:        func(string) error { return nil },
		Agent:       func(string, string) error { return nil },
		Interfaces: func() ([]Interface, error) {
			return []Interface{{"lo", prefixes("127.0.0.1/8", "::1/128")}, {"eth0", prefixes("10.0.0.1/24", "2001:db8::1/64")}}, nil
		},
		Directory: func(string, string) error { return nil },
		Mountable: func(string, string) error { return nil },
		File:      func(path string) (string, error) { return "digest of " + path, nil },
	}
}

func TestAGoodNodeHasNoProblemsAndAnAbsentFunctionIsNotAsked(t *testing.T) {
	s := mustParse(t, string(validFile(t, "everything")))
	if p := Validate(s, goodNode("a")); len(p) > 0 {
		t.Errorf("%v", p)
	}
	if p := Validate(s, NodeEnv{Name: "a"}); len(p) > 0 {
		t.Errorf("%v", p)
	}
}

func TestEachThingThatIsNotThereIsAProblemOfItsPlace(t *testing.T) {
	s := mustParse(t, string(validFile(t, "everything")))
	no := errors.New("no such thing")
	for name, c := range map[string]struct {
		spoil func(*NodeEnv)
		want  []string // service|where|part of what
	}{
		"user":       {func(e *NodeEnv) { e.LookupUser = func(string) (uint32, uint32, error) { return 0, 0, no } }, []string{`db|process "app" user|there is no user app: no such thing`}},
		"group":      {func(e *NodeEnv) { e.LookupGroup = func(string) (uint32, error) { return 0, no } }, []string{`db|process "app" group|there is no group www-data`}},
		"unit":       {func(e *NodeEnv) { e.Unit = func(string) error { return no } }, []string{`proxy|process "nginx" systemd|nginx.service`, `db|check "systemd" systemd|app.service`}},
		"agent":      {func(e *NodeEnv) { e.Agent = func(string, string) error { return no } }, []string{`db|process "agent" ocf|heartbeat:pgsql`, `db|check "ocf" ocf|heartbeat:pgsql`}},
		"directory":  {func(e *NodeEnv) { e.Directory = func(string, string) error { return no } }, []string{`db|process "app" dir|app cannot work in /srv`}},
		"mount":      {func(e *NodeEnv) { e.Mountable = func(string, string) error { return no } }, []string{`db|volume "data"|/srv/data cannot be used`}},
		"state":      {func(e *NodeEnv) { e.StateDir = "/srv/bytes/hanode" }, []string{`db|volume "data"|/srv/bytes and hanode's own directory /srv/bytes/hanode`}},
		"interfaces": {func(e *NodeEnv) { e.Interfaces = func() ([]Interface, error) { return nil, no } }, []string{`db|vip|could not be read: no such thing`}},
		"interface": {func(e *NodeEnv) {
			e.Interfaces = func() ([]Interface, error) { return []Interface{{"ens3", prefixes("10.0.0.1/24")}}, nil }
		}, []string{`db|vip "10.0.0.50/24"|there is no interface eth0 (there are ens3)`, `db|vip "2001:db8::50/64"|no interface has an address in 2001:db8::/64`}},
		"two interfaces": {func(e *NodeEnv) {
			e.Interfaces = func() ([]Interface, error) {
				return []Interface{{"eth0", prefixes("2001:db8::1/64")}, {"eth1", prefixes("2001:db8::2/64")}}, nil
			}
		}, []string{`db|vip "2001:db8::50/64"|more than one interface has an address in 2001:db8::/64: eth0, eth1`}},
		"executables": {func(e *NodeEnv) { e.Executable = func(string, string) error { return no } }, []string{
			`db|hook "tell" exec|/usr/local/bin/tell cannot be executed by root`, `db|process "app" start|/usr/bin/app cannot be executed by app`, `db|process "app" stop|by app`,
			`db|process "app" promote|by app`, `db|check "exec" exec|/usr/local/bin/check`, `db|alert "page" exec|/usr/local/bin/page`}},
	} {
		env := goodNode("a")
		c.spoil(&env)
		got := Validate(s, env)
		if len(got) != len(c.want) {
			t.Errorf("%s: got %v", name, got)
			continue
		}
		for _, w := range c.want {
			part := strings.SplitN(w, "|", 3)
			found := false
			for _, p := range got {
				found = found || p.Service == part[0] && p.Where == part[1] && strings.Contains(p.What, part[2]) && p.Remedy != "" && p.Node == "a" && strings.Contains(p.String(), p.What)
			}
			if !found {
				t.Errorf("%s: want %s, got %v", name, w, got)
			}
		}
	}
}

func TestOnlyTheMembersConcernedAreAsked(t *testing.T) {
	s := mustParse(t, `
service "x" {
  nodes = ["a"]
  process "p" { start = ["/bin/p"] }
  check "own" { exec = ["/bin/own"] }
  check "far" {
    exec = ["/bin/far"]
    from = ["witness"]
  }
}
`)
	for _, c := range []struct {
		name string
		role cluster.Role
		want int
	}{{"a", cluster.RoleNode, 3}, {"b", cluster.RoleNode, 0}, {"w", cluster.RoleWitness, 1}} {
		env := NodeEnv{Name: c.name, Role: c.role, Executable: func(string, string) error { return errors.New("no") }}
		if got := Validate(s, env); len(got) != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestAnAddressThatIsThereAlreadyFindsItsInterfaceByTheOthers(t *testing.T) {
	v := cluster.VIPSpec{Prefix: netip.MustParsePrefix("10.0.0.50/24")}
	name, err := InterfaceFor(v, []Interface{{"eth0", prefixes("10.0.0.50/24", "10.0.0.1/24")}, {"eth1", prefixes("10.0.1.1/24")}})
	if name != "eth0" || err != nil {
		t.Error(name, err)
	}
	if _, err := InterfaceFor(v, []Interface{{"eth0", prefixes("10.0.0.50/24")}}); err == nil {
		t.Error("the VIP itself is no reason")
	}
}

func TestUsersAndFilesThatDifferBetweenNodesAreTold(t *testing.T) {
	s := mustParse(t, string(validFile(t, "everything")))
	other := goodNode("b")
	other.LookupUser = func(string) (uint32, uint32, error) { return 1002, 1001, nil }
	other.File = func(string) (string, error) { return "other", nil }
	same := []Facts{Gather(s, goodNode("a")), Gather(s, goodNode("b"))}
	if p := Compare(s, same); len(p) > 0 {
		t.Errorf("%v", p)
	}
	p := Compare(s, []Facts{same[0], Gather(s, other)})
	if len(p) != 2 || p[0].Where != `process "app" user` || !strings.Contains(p[0].What, "app:www-data is not the same on all nodes: a 1000:33, b 1002:33") || p[1].Where != "same_files" || p[1].Service != "db" {
		t.Errorf("%v", p)
	}
	unread := goodNode("b")
	unread.File = func(string) (string, error) { return "", errors.New("permission denied") }
	if p := Compare(s, []Facts{Gather(s, unread), Gather(s, unread)}); len(p) != 1 || !strings.Contains(p[0].What, "permission denied") {
		t.Errorf("%v", p)
	}
	elsewhere := Gather(s, goodNode("c"))
	if len(elsewhere.Users) != 0 || len(elsewhere.Files) != 0 {
		t.Errorf("%+v", elsewhere)
	}
}
