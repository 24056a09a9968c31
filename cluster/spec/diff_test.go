package spec

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
)

func copySpec(t testing.TB, s *cluster.Spec) *cluster.Spec {
	t.Helper()
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.DecodeSpec(b)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// alter gives a compiled field another value.
func alter(field any) {
	switch p := field.(type) {
	case *string:
		*p += "x"
	case *int:
		*p++
	case *int64:
		*p++
	case *bool:
		*p = !*p
	case *time.Duration:
		*p++
	case *[]string:
		*p = append(*p, "x")
	case *map[string]string:
		m := map[string]string{"X": "y"}
		for k, v := range *p {
			m[k] = v
		}
		*p = m
	}
}

// Each key of each block of the sample is changed alone: Diff must say exactly that, with the key's class.
func TestEveryChangedKeyIsOneChangeOfItsClass(t *testing.T) {
	old := mustParse(t, string(validFile(t, "everything")))
	if c := Diff(old, copySpec(t, old)); c != nil {
		t.Fatalf("nothing changed, but %+v", c)
	}
	n := 0
	count := 0
	walk(Root(), old, "", "", func(b *Block, v any, _, _ string) { count += len(b.Keys) })
	for target := 0; target < count; target++ {
		now := copySpec(t, old)
		at := 0
		var want Change
		walk(Root(), now, "", "", func(b *Block, v any, service, where string) {
			for i := range b.Keys {
				k := &b.Keys[i]
				if at++; at-1 != target || k.Kind && !b.given(k, v) || k.field == nil {
					continue
				}
				if _, member := v.(*namedMember); member {
					continue // walked as copies; tested below
				}
				alter(k.field(v))
				key := strings.ReplaceAll(where, ",", "") + " " + k.Name
				if b.Name == "service" {
					key = k.Name
				}
				want = Change{Service: service, Key: key, New: literalOf(k, k.field(v)), Class: k.Class}
			}
		})
		if want.Key == "" {
			continue
		}
		n++
		got := Diff(old, now)
		if len(got) != 1 {
			t.Errorf("%+v: got %+v", want, got)
			continue
		}
		want.Old = got[0].Old
		if got[0] != want || got[0].Old == got[0].New {
			t.Errorf("got  %+v\nwant %+v", got[0], want)
		}
	}
	if n < 90 {
		t.Errorf("only %d keys were changed", n)
	}
}

func TestDiffSaysWhatAnOperatorExpects(t *testing.T) {
	const base = `
cluster {
  profile = "fast"
}
node "a" {
  site = "paris"
}
service "db" {
  nodes = ["a", "b"]
  vip "10.0.0.50/24" {}
  volume "data" {
    path = "/srv/data"
  }
  process "one" {
    start = ["/bin/one"]
  }
  process "two" {
    start = ["/bin/two"]
  }
  check "c" {
    tcp = "127.0.0.1:80"
  }
}
service "web" {
  nodes = ["a"]
}
`
	edit := func(from, to string) string {
		if !strings.Contains(base, from) {
			t.Fatalf("%q is not there", from)
		}
		return strings.Replace(base, from, to, 1)
	}
	for name, c := range map[string]struct {
		now  string
		want []Change
	}{
		"nothing":                     {base, nil},
		"comments and order of keys":  {"# why\n" + base, nil},
		"a default that is written":   {edit(`  nodes = ["a"]`, "  nodes = [\"a\"]\n  run   = \"active\""), nil},
		"a member block of defaults":  {base + "node \"b\" {}\n", nil},
		"profile":                     {edit(`"fast"`, `"normal"`), []Change{{"", "cluster profile", `"fast"`, `"normal"`, NextGrant}}},
		"no cluster block":            {edit("cluster {\n  profile = \"fast\"\n}", ""), []Change{{"", "cluster profile", `"fast"`, `"auto"`, NextGrant}}},
		"site":                        {edit("site = \"paris\"", ""), []Change{{"", `node "a" site`, `"paris"`, `"default"`, Live}}},
		"member block gone":           {edit("node \"a\" {\n  site = \"paris\"\n}", ""), []Change{{"", `node "a" site`, `"paris"`, `"default"`, Live}}},
		"member block come":           {base + "node \"b\" {\n  vote = false\n}\n", []Change{{"", `node "b" vote`, "true", "false", Live}}},
		"order of preference":         {edit(`["a", "b"]`, `["b", "a"]`), []Change{{"db", "nodes", `["a", "b"]`, `["b", "a"]`, Live}}},
		"service gone":                {edit("service \"web\" {\n  nodes = [\"a\"]\n}\n", ""), []Change{{"web", "service", Present, "", Refused}}},
		"service come":                {base + "service \"new\" {\n  nodes = [\"a\"]\n}\n", []Change{{"new", "service", "", Present, Live}}},
		"vip moved":                   {edit("10.0.0.50/24", "10.0.0.51/24"), []Change{{"db", `vip "10.0.0.50/24"`, Present, "", NeedsStop}, {"db", `vip "10.0.0.51/24"`, "", Present, NeedsStop}}},
		"backing":                     {edit("path = \"/srv/data\"", "path = \"/srv/data\"\n    backing = \"/srv/b\""), []Change{{"db", `volume "data" backing`, `"/srv/.hanode-data"`, `"/srv/b"`, Refused}}},
		"command":                     {edit(`"/bin/one"`, `"/bin/one", "-v"`), []Change{{"db", `process "one" start`, `["/bin/one"]`, `["/bin/one", "-v"]`, NeedsStop}}},
		"a key that was not there":    {edit("start = [\"/bin/one\"]", "start = [\"/bin/one\"]\n    memory_max = \"1GiB\""), []Change{{"db", `process "one" memory_max`, "", `"1GiB"`, NeedsStop}}},
		"another kind of process":     {edit(`start = ["/bin/one"]`, `systemd = "one.service"`), []Change{{"db", `process "one" start`, `["/bin/one"]`, "", NeedsStop}, {"db", `process "one" systemd`, "", `"one.service"`, NeedsStop}}},
		"another kind of check":       {edit(`tcp = "127.0.0.1:80"`, `http = "http://127.0.0.1/"`), []Change{{"db", `check "c" tcp`, `"127.0.0.1:80"`, "", Live}, {"db", `check "c" http`, "", `"http://127.0.0.1/"`, Live}}},
		"a check of its own mind":     {edit(`tcp = "127.0.0.1:80"`, "tcp = \":80\"\n    on_failure {\n      then = \"ignore\"\n    }"), []Change{{"db", `check "c" on_failure`, "", Present, Live}}},
		"on_failure":                  {edit("  vip", "  on_failure {\n    restarts = 0\n  }\n  vip"), []Change{{"db", "on_failure restarts", "2", "0", NeedsStop}}},
		"processes in another order":  {edit("process \"one\" {\n    start = [\"/bin/one\"]\n  }\n  process \"two\" {\n    start = [\"/bin/two\"]\n  }", "process \"two\" {\n    start = [\"/bin/two\"]\n  }\n  process \"one\" {\n    start = [\"/bin/one\"]\n  }"), []Change{{"db", "process order", "one, two", "two, one", NextGrant}}},
		"a process more, between two": {edit("  process \"two\"", "  process \"new\" {\n    start = [\"/bin/new\"]\n  }\n  process \"two\""), []Change{{"db", `process "new"`, "", Present, NeedsStop}}},
	} {
		got := Diff(mustParse(t, base), mustParse(t, c.now))
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, c.want)
		}
	}
	all := Diff(nil, mustParse(t, base))
	if len(all) != 4 || !Touched(all, "db") || Touched(all, "x") || Strictest(all) != NextGrant || Strictest(nil) != Live {
		t.Errorf("%+v", all)
	}
	if gone := Diff(mustParse(t, base), nil); Strictest(gone) != Refused {
		t.Errorf("%+v", gone)
	}
}

func TestWhatThisVersionCannotRunIsToldByTheTableOfLimits(t *testing.T) {
	s := mustParse(t, string(validFile(t, "everything")))
	limits := []Limit{
		{"volume", "", "", "volumes come with a later version"},
		{"check", "postgres", "", "use tcp or exec"},
		{"check", "tcp", "", "never"},
		{"alert", "mail", "", "use exec"},
		{"service", "fence", "required", "use none"}, // the sample says try
		{"service", "witness_lost", "hold", "use protect"},
		{"check", "from", "", "checks run on the active only"},
		{"cluster", "lease", "", "use a profile"},
	}
	got := map[string]string{}
	for _, p := range Unsupported(s, limits) {
		got[p.Service+"|"+p.Where] = p.Remedy
	}
	want := map[string]string{
		`db|volume "data"`: limits[0].Why, `db|check "postgres" postgres`: limits[1].Why, `db|check "tcp" tcp`: limits[2].Why, `db|alert "mail" mail`: limits[3].Why,
		`db|service witness_lost`: limits[5].Why, `db|check "tcp" from`: limits[6].Why, `|cluster lease`: limits[7].Why,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if p := Unsupported(s, []Limit{{"galaxy", "", "", ""}, {"check", "galaxy", "", ""}}); len(p) != 2 {
		t.Errorf("a limit of nothing must be told: %v", p)
	}
	if p := Unsupported(mustParse(t, string(validFile(t, "pair"))), limits); len(p) != 0 {
		t.Errorf("%v", p)
	}
}
