package spec

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/hanode/hanode/cluster"
)

// A case of testdata/invalid.txt: the text with @@ where each diagnostic must point, and what it must say. Where fewer
// marks stand than diagnostics are expected, the last mark is for the rest.
type invalid struct {
	name, src    string
	marks        [][2]int // line, column
	whats, dowys []string
	members      bool
}

func readInvalid(t testing.TB) []invalid {
	t.Helper()
	b, err := os.ReadFile("testdata/invalid.txt")
	if err != nil {
		t.Fatal(err)
	}
	var out []invalid
	for _, part := range strings.Split("\n"+string(b), "\n=== ")[1:] {
		name, rest, _ := strings.Cut(part, "\n")
		c := invalid{name: name}
		var src []string
		for _, l := range strings.Split(rest, "\n") {
			if what, ok := strings.CutPrefix(l, "--- "); ok {
				c.whats = append(c.whats, what)
			} else if do, ok := strings.CutPrefix(l, "+++ "); ok {
				c.dowys = append(c.dowys, do)
			} else if l == "#members" {
				c.members = true
			} else if len(c.whats) == 0 {
				for strings.Contains(l, "@@") {
					before, after, _ := strings.Cut(l, "@@")
					c.marks = append(c.marks, [2]int{len(src) + 1, len([]rune(before)) + 1})
					l = before + after
				}
				src = append(src, l)
			}
		}
		c.src = strings.Join(src, "\n") + "\n"
		out = append(out, c)
	}
	return out
}

var testMembers = []Member{
	{"a", cluster.RoleNode, "default", []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
	{"b", cluster.RoleNode, "", []netip.Addr{netip.MustParseAddr("10.0.0.2")}},
	{"w", cluster.RoleWitness, "lyon", nil},
}

func TestEachWrongSpecIsRefusedAtItsPlaceWithARemedy(t *testing.T) {
	cases := readInvalid(t)
	if len(cases) < 120 {
		t.Fatalf("only %d cases", len(cases))
	}
	names := map[string]bool{}
	for _, c := range cases {
		if names[c.name] {
			t.Errorf("two cases are named %q", c.name)
		}
		names[c.name] = true
		t.Run(c.name, func(t *testing.T) {
			var opts []Option
			if c.members {
				opts = append(opts, WithMembers(testMembers...))
			}
			s, ds := Parse("x.hcl", []byte(c.src), opts...)
			if s != nil || len(ds) != len(c.whats) || len(c.whats) == 0 || len(c.marks) == 0 {
				t.Fatalf("%d diagnostics, want %d; spec %v\n%s\n%v", len(ds), len(c.whats), s != nil, c.src, ds.Error())
			}
			for i, d := range ds {
				mark := c.marks[min(i, len(c.marks)-1)]
				if d.Line != mark[0] || d.Column != mark[1] || !strings.Contains(d.What, c.whats[i]) || !strings.Contains(d.Remedy, c.dowys[i]) {
					t.Errorf("want %d:%d: %s\n  %s\ngot\n%s", mark[0], mark[1], c.whats[i], c.dowys[i], d)
				}
				text := d.String()
				if !strings.HasPrefix(text, fmt.Sprintf("x.hcl:%d:%d: ", d.Line, d.Column)) || strings.Contains(text, "\n") && !strings.Contains(text, "^") && d.Source != "" {
					t.Errorf("badly shown:\n%s", text)
				}
				if d.Remedy == "" || d.File != "x.hcl" {
					t.Errorf("no remedy or file: %+v", d)
				}
			}
		})
	}
}
