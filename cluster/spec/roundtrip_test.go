package spec

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zclconf/go-cty/cty"
	"pgregory.net/rapid"

	"github.com/hanode/hanode/cluster"
)

// specs draws compiled specs by the table: every key of every block, with any value that the table allows.
func specs() *rapid.Generator[*cluster.Spec] {
	return rapid.Custom(func(t *rapid.T) *cluster.Spec {
		s := new(cluster.Spec)
		g := &drawing{t: t, s: s}
		root := Root()
		root.fill(s)
		g.blocks(root, s)
		for i := range s.Services {
			g.settle(&s.Services[i], s.Services[:i])
		}
		return s
	})
}

type drawing struct {
	t      *rapid.T
	s      *cluster.Spec
	serial int
}

func (g *drawing) blocks(parent *Block, v any) {
	for _, b := range parent.Blocks {
		n := 1
		if b.Label != NoLabel || !b.Always {
			n = rapid.IntRange(0, 2).Draw(g.t, b.Name)
		}
		if b.Label == NoLabel {
			n = min(n, 1)
		}
		for range n {
			g.serial++
			c := b.make(v)
			b.fill(c)
			label := ""
			switch b.Label {
			case NoLabel:
			case CIDRLabel:
				label = rapid.SampledFrom([]string{"10.1.%d.50/24", "2001:db8:%x::50/64", "172.16.%d.9/30"}).Draw(g.t, "vip")
				label = fmt.Sprintf(label, g.serial)
			default:
				label = fmt.Sprintf("%s%d", rapid.StringMatching(`[a-z0-9-]{1,8}`).Draw(g.t, "name"), g.serial)
			}
			if label != "" {
				b.name(c, label)
			}
			g.keys(b, c)
			g.blocks(b, c)
			if b.done != nil {
				b.done(c)
			}
			b.put(v, label, c)
		}
	}
}

func (g *drawing) keys(b *Block, v any) {
	kind := ""
	if kinds := b.kinds(); kinds != nil {
		kind = rapid.SampledFrom(kinds).Draw(g.t, "kind")
		if b.kind != nil {
			*b.kind(v) = kind
		}
	}
	var later []*Key
	for i := range b.Keys {
		k := &b.Keys[i]
		if k.Only != nil || k.NotWith != nil {
			later = append(later, k)
		} else if k.Name == kind || !k.Kind && (k.Required || rapid.Bool().Draw(g.t, "given")) {
			g.value(k, k.field(v))
		}
	}
	for _, k := range later {
		allowed := k.Only == nil || b.holds(k.Only, v)
		for _, n := range k.NotWith {
			allowed = allowed && !b.given(b.key(n), v)
		}
		if allowed && (k.Required || rapid.Bool().Draw(g.t, "given")) {
			g.value(k, k.field(v))
		}
	}
	for i := range b.Keys {
		if k := &b.Keys[i]; k.derive != nil && *k.field(v).(*string) == "" {
			*k.field(v).(*string) = k.derive(v)
		}
	}
}

func (g *drawing) number(k *Key, unit int64) int64 {
	top := k.Max
	if top == 0 {
		top = 1 << 40
	}
	n := rapid.Int64Range(k.Min, top).Draw(g.t, k.Name)
	if r := n - n%unit; r >= k.Min {
		n = r
	}
	return n
}

func (g *drawing) value(k *Key, field any) {
	switch p := field.(type) {
	case *bool:
		*p = rapid.Bool().Draw(g.t, k.Name)
	case *int:
		*p = int(g.number(k, 1))
	case *int64:
		*p = g.number(k, rapid.SampledFrom([]int64{1, 1 << 10, 1 << 20, 1 << 30}).Draw(g.t, "unit"))
	case *time.Duration:
		*p = time.Duration(g.number(k, rapid.SampledFrom([]int64{1, 1000, ms, 1000 * ms, 60_000 * ms, hour}).Draw(g.t, "unit")))
	case *map[string]string:
		m := rapid.MapOfN(rapid.StringMatching(`[A-Z_a-z][A-Z_a-z0-9]{0,5}`), text(), 1, 3).Draw(g.t, k.Name)
		*p = m
	case *[]string:
		n := rapid.IntRange(1, 3).Draw(g.t, "n")
		*p = nil
		for i := range n {
			s := ""
			switch {
			case k.Type == Argv && i > 0:
				s = text().Draw(g.t, "argument")
			case k.Type == Argv:
				s = "/bin/" + rapid.StringMatching(`[a-z]{1,9}`).Draw(g.t, "program")
			default:
				s = g.word(k)
			}
			if k.Type == Argv || !contains(*p, s) {
				*p = append(*p, s)
			}
		}
	case *string:
		*p = g.word(k)
	}
}

// text is any text that a program can be given, in the normal form that HCL gives to texts.
func text() *rapid.Generator[string] {
	return rapid.Map(rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"${x}", "%{if}", "$${", "\"", "\\", "\n", "\t", "$", "%%{", "#", "//", "${", "}", "\u2028", "\u00e9"})), func(s string) string {
		return cty.StringVal(strings.ReplaceAll(strings.ToValidUTF8(s, ""), "\x00", "")).AsString()
	})
}

func (g *drawing) word(k *Key) string {
	if k.Type == Count && rapid.Bool().Draw(g.t, "number") {
		return "1"
	}
	if k.Values != nil {
		return rapid.SampledFrom(k.Values).Draw(g.t, k.Name)
	}
	g.serial++
	switch k.Name {
	case "path", "backing":
		return fmt.Sprintf("/srv/d%d/%s", g.serial, rapid.StringMatching(`[a-z]{1,5}`).Draw(g.t, "dir"))
	case "dir", "same_files":
		return "/" + rapid.StringMatching(`[a-zA-Z ${"%]{1,9}`).Draw(g.t, "path")
	case "nodes":
		return rapid.StringMatching(`[a-z]{1,5}`).Draw(g.t, k.Name) // labels end with a digit: never a witness's name
	case "site", "sites", "heartbeat", "interface", "group", "user", "approvers":
		return rapid.StringMatching(`[a-z][a-z0-9-]{0,7}`).Draw(g.t, k.Name)
	case "requires", "apart":
		return "none" // settled later
	}
	s, err := strconv.Unquote(k.Example)
	if err != nil {
		panic(k.Name + ": " + k.Example)
	}
	c, w := k.syntax(s)
	if w != nil {
		panic(w.what)
	}
	return c
}

// settle makes what sv says of others true.
func (g *drawing) settle(sv *cluster.ServiceSpec, earlier []cluster.ServiceSpec) {
	sv.Nodes = append([]string{"common"}, sv.Nodes...)
	sv.Requires, sv.Apart = nil, nil
	if sv.Run == "everywhere" {
		sv.VIPs, sv.Volumes, sv.Remotes, sv.Memories = nil, nil, nil, nil
		for i := range sv.Processes {
			sv.Processes[i].Standby, sv.Processes[i].Promote = "cold", nil
		}
	}
	if _, err := strconv.Atoi(sv.Healthy); err == nil && len(sv.Checks) == 0 {
		sv.Healthy = "any"
	}
	for i := range sv.Checks {
		if contains(sv.Checks[i].From, "witness") && loopback(sv.Checks[i].Target) {
			sv.Checks[i].From = []string{"standby"}
		}
	}
	apart := rapid.Bool().Draw(g.t, "apart")
	for i := range earlier {
		o := &earlier[i]
		switch {
		case !rapid.Bool().Draw(g.t, "refers"):
		case apart && sv.Run == "active" && o.Run == "active":
			sv.Apart = append(sv.Apart, o.Name)
		case !apart && (sv.Run == "active" || o.Run == "everywhere") && !anyApart(earlier):
			sv.Requires = append(sv.Requires, o.Name)
		}
	}
}

// anyApart says that some of them must be apart: then it is not tried whether one may require two of them.
func anyApart(all []cluster.ServiceSpec) bool {
	for i := range all {
		if len(all[i].Apart) > 0 {
			return true
		}
	}
	return false
}

func TestWhatRenderWritesParsesToTheSameSpec(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := specs().Draw(t, "spec")
		rendered := Render(s)
		back, ds := Parse("x.hcl", rendered)
		if ds != nil {
			t.Fatalf("%v\n%s", ds.Error(), rendered)
		}
		if !reflect.DeepEqual(s, back) {
			t.Fatalf("got  %+v\nwant %+v\n%s", back, s, rendered)
		}
		if again := Format(rendered); string(again) != string(rendered) {
			t.Fatalf("Render does not lay out as Format does:\n%s\n%s", rendered, again)
		}
		if c := Diff(s, back); len(c) > 0 {
			t.Fatalf("%+v", c)
		}
		b, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if kept, err := cluster.DecodeSpec(b); err != nil || len(Diff(s, kept)) > 0 || len(Diff(kept, s)) > 0 {
			t.Fatalf("the log keeps something else: %v %+v", err, Diff(s, kept))
		}
	})
}
