package spec

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// oneKey reads src, which is one argument of b.
func (d *decoder) oneKey(t *testing.T, b *Block, v any, src string) {
	t.Helper()
	f, diags := hclsyntax.ParseConfig([]byte(src), "x", hcl.InitialPos)
	if diags.HasErrors() {
		t.Errorf("%s: %s: %v", b.Name, src, diags)
		return
	}
	for _, a := range f.Body.(*hclsyntax.Body).Attributes {
		k := b.key(a.Name)
		if l, ok := d.literal(a.Expr, ""); !ok || !d.assign(k, k.field(v), l, "", "") {
			t.Errorf("%s: %s: %v", b.Name, src, d.list().Error())
		}
	}
}

func TestFormatLaysOutAndIsIdempotent(t *testing.T) {
	got := Format([]byte("service \"db\" {\r\nnodes=[\"a\",\"b\"]\n  run =   \"active\" # why\n\n\n}   \n\n"))
	want := "service \"db\" {\n  nodes = [\"a\", \"b\"]\n  run   = \"active\" # why\n\n\n}\n"
	if string(got) != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
	for _, name := range []string{"postgres", "pair", "everything"} {
		src := validFile(t, name)
		if once := Format(src); !bytes.Equal(once, src) {
			t.Errorf("%s is not laid out:\n%s", name, once)
		}
	}
	for _, c := range readInvalid(t) {
		once := Format([]byte(c.src))
		if twice := Format(once); !bytes.Equal(once, twice) {
			t.Errorf("%s:\n%q\n%q", c.name, once, twice)
		}
	}
}

func TestFormatLeavesBrokenTextAlone(t *testing.T) {
	for _, src := range []string{"service {", "a = [", "x = 'y'\n"} {
		if got := Format([]byte(src)); string(got) != src {
			t.Errorf("%q became %q", src, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"postgres", "pair", "everything"} {
		f.Add(validFile(f, name))
	}
	for _, c := range readInvalid(f) {
		f.Add([]byte(c.src))
	}
	for _, s := range []string{"", "\xef\xbb\xbf", "\x00", "a = <<-E\n x\n E\n", "a = \"\\u00", "service \"\u00e4\" {}", "a = %{if}", "/*", "a {a=", "vip \"::/0\" {}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		s, ds := Parse("x.hcl", src, WithMembers(testMembers...))
		if (s == nil) == (len(ds) == 0) {
			t.Fatalf("spec %v, %d diagnostics", s != nil, len(ds))
		}
		for _, d := range ds {
			if d.Line < 1 || d.Column < 1 || d.What == "" || d.Remedy == "" {
				t.Fatalf("%+v", d)
			}
			_ = d.String()
		}
		once := Format(src)
		if twice := Format(once); !bytes.Equal(once, twice) {
			t.Fatalf("not idempotent:\n%q\n%q\n%q", src, once, twice)
		}
		if s == nil {
			return
		}
		same, ds := Parse("y.hcl", once)
		if ds != nil {
			t.Fatalf("formatted text is refused: %v\n%s", ds.Error(), once)
		}
		rendered := Render(s)
		back, ds := Parse("z.hcl", rendered)
		if ds != nil {
			t.Fatalf("rendered text is refused: %v\n%s", ds.Error(), rendered)
		}
		for _, other := range [][]Change{Diff(s, same), Diff(s, back), Diff(back, s)} {
			if len(other) > 0 {
				t.Fatalf("%+v", other)
			}
		}
	})
}

func TestTheSchemaHasEveryKeyAndIsJSON(t *testing.T) {
	var s map[string]any
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	get := func(path ...string) map[string]any {
		v := s
		for _, p := range path {
			v, _ = v[p].(map[string]any)
		}
		return v
	}
	svc := []string{"properties", "service", "additionalProperties", "properties"}
	mode := get(append(svc, "volume", "additionalProperties", "properties", "mode")...)
	if mode["default"] != "sync" || len(mode["enum"].([]any)) != 3 {
		t.Errorf("%v", mode)
	}
	if get(append(svc, "failback_after")...)["default"] != "10m" {
		t.Errorf("%v", get(append(svc, "failback_after")...))
	}
	check := get(append(svc, "check", "additionalProperties")...)
	if len(check["oneOf"].([]any)) != 12 || check["additionalProperties"] != false {
		t.Errorf("%v", check)
	}
	text := string(Schema())
	eachKey(Root(), func(b *Block, k *Key) {
		if !strings.Contains(text, `"`+k.Name+`": {`) {
			t.Errorf("%s %s is not in the schema", b.Name, k.Name)
		}
	})
}

func TestHelpDescribesEveryKey(t *testing.T) {
	all := Help("")
	eachKey(Root(), func(b *Block, k *Key) {
		if !strings.Contains(Help(b.Name), "\n  "+k.Name+" ") || !strings.Contains(all, "\n  "+k.Name+" ") {
			t.Errorf("%s %s", b.Name, k.Name)
		}
	})
	if Help("galaxy") != "" {
		t.Error("help of nothing")
	}
	if !strings.Contains(Help("check"), "active, standby") && !strings.Contains(Help("check"), `default ["active"]`) {
		t.Error(Help("check"))
	}
	if os.Getenv("SHOW") != "" {
		t.Log(all)
	}
}
