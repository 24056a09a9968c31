package spec

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/hanode/hanode/cluster"
)

func validFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata/valid", name+".hcl"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustParse(t testing.TB, src string, opts ...Option) *cluster.Spec {
	t.Helper()
	s, ds := Parse("x.hcl", []byte(src), opts...)
	if ds != nil {
		t.Fatalf("%s\n%v", src, ds.Error())
	}
	return s
}

func TestTheFirstSampleOfTheContractCompilesWithItsDefaults(t *testing.T) {
	got := mustParse(t, string(validFile(t, "postgres")), WithMembers(testMembers...))
	want := &cluster.Spec{
		Profile: "auto", MaxFailovers: 3, FailoversWithin: 10 * time.Minute,
		Services: []cluster.ServiceSpec{{
			Name: "db", Nodes: []string{"a", "b"}, Run: "active", Failover: "automatic", Failback: "manual", SiteFailover: "manual",
			FailbackAfter: 10 * time.Minute, Priority: 100, Healthy: "all", ColdStartWait: time.Minute, AloneAck: "disk", WitnessLost: "protect", Fence: "none",
			VIPs: []cluster.VIPSpec{{Prefix: netip.MustParsePrefix("10.0.0.50/24"), MAC: "own", Announce: "start"}},
			Volumes: []cluster.VolumeSpec{{Name: "data", Path: "/var/lib/postgresql/15/main", Backing: "/var/lib/postgresql/15/.hanode-main",
				Mode: "sync-on-fsync", MaxLag: 30 * time.Second, JournalSize: 1 << 30}},
			Processes: []cluster.ProcessSpec{{Name: "postgres", Start: []string{"/usr/lib/postgresql/15/bin/postgres", "-D", "/var/lib/postgresql/15/main"},
				StopSignal: "INT", StopTimeout: time.Minute, StartTimeout: 10 * time.Minute, Ready: "checks", Standby: "cold", User: "postgres", Dir: "/"}},
			Checks: []cluster.CheckSpec{{Name: "sql", Kind: "postgres", Target: "host=/run/postgresql user=postgres",
				Every: time.Second, Timeout: time.Second, Failures: 3, From: []string{"active"}}},
			OnFailure: cluster.OnFailure{Restarts: 2, Within: 10 * time.Minute, Backoff: time.Second, BackoffMax: 30 * time.Second, Then: "failover"},
		}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if !got.Services[0].HasData() || got.Services[0].Hot() {
		t.Error("the service has data and is not hot")
	}
}

func TestTheSecondSampleOfTheContractCompiles(t *testing.T) {
	s := mustParse(t, string(validFile(t, "pair")), WithMembers(testMembers...))
	if len(s.Services) != 3 || s.Services[0].Run != "everywhere" || s.Services[0].Processes[0].Systemd != "nginx.service" ||
		!reflect.DeepEqual(s.Service("web2").Nodes, []string{"b", "a"}) || s.Service("web2").Failback != "automatic" || s.Service("web1").VIPs[0].Prefix.String() != "10.0.0.61/24" {
		t.Errorf("%+v", s)
	}
}

func TestAnEmptyFileIsTheDefaults(t *testing.T) {
	s := mustParse(t, "# nothing yet\n")
	if s.Profile != "auto" || s.MaxFailovers != 3 || s.FailoversWithin != 10*time.Minute || len(s.Services) != 0 {
		t.Errorf("%+v", s)
	}
}

func TestTheSampleWithEveryKeyGivesEveryKeyAnotherValueThanItsDefault(t *testing.T) {
	s := mustParse(t, string(validFile(t, "everything")))
	given := map[string]bool{}
	walk(Root(), s, "", "", func(b *Block, v any, _, _ string) {
		for i := range b.Keys {
			if k := &b.Keys[i]; b.given(k, v) || k.Required && !equalsDefault(k, k.field(v)) {
				given[b.Name+" "+k.Name] = true
			}
		}
	})
	var missing []string
	eachKey(Root(), func(b *Block, k *Key) {
		if !given[b.Name+" "+k.Name] && b.Name+" "+k.Name != "remote mode" { // async is its default, and max_lag wants it
			missing = append(missing, b.Name+" "+k.Name)
		}
	})
	if missing != nil {
		t.Errorf("not given: %v", missing)
	}
	if c := s.Service("db").Checks[0]; c.Target != "127.0.0.1:5432" || c.OnFailure == nil || c.OnFailure.Restarts != 0 || c.OnFailure.Within != 10*time.Minute {
		t.Errorf("%+v %+v", c, c.OnFailure)
	}
	if p := s.Service("db").Processes[0]; p.Start[2] != "costs ${5}" || p.Start[3] != `a "b" \ c` || p.Env["PORT"] != "80" {
		t.Errorf("%+v", p)
	}
	if o := s.Service("db").OnFailure; o.BackoffMax != 45*time.Second {
		t.Errorf("%+v", o)
	}
	if !s.Witnesses["w"].Vote || s.Nodes["b"].Vote || !s.Nodes["a"].Vote {
		t.Errorf("votes: %+v %+v", s.Nodes, s.Witnesses)
	}
	back := mustParse(t, string(Render(s)))
	if !reflect.DeepEqual(s, back) {
		t.Errorf("Render lost something:\n%s", Render(s))
	}
}

func eachKey(b *Block, f func(*Block, *Key)) {
	for i := range b.Keys {
		f(b, &b.Keys[i])
	}
	for _, c := range b.Blocks {
		eachKey(c, f)
	}
}

// Every field of the compiled spec is some key's, a label, or derived: a field that is added to cluster.Spec and
// forgotten in the table would never be set, rendered or compared.
func TestEveryFieldOfTheCompiledSpecIsInTheTable(t *testing.T) {
	reached := map[string]bool{"cluster.VIPSpec.prefix": true, "cluster.OnFailure.backoff_max": true, "cluster.CheckSpec.kind": true, "cluster.AlertSpec.kind": true}
	s := mustParse(t, string(validFile(t, "everything")))
	walk(Root(), s, "", "", func(b *Block, v any, _, _ string) {
		if m, ok := v.(*namedMember); ok {
			v = &m.NodeSpec
			for i := range b.Keys {
				reached["cluster.NodeSpec."+b.Keys[i].Name] = true
			}
			return
		}
		rv := reflect.ValueOf(v).Elem()
		for i := range rv.NumField() {
			field, tag := rv.Field(i).Addr().Interface(), rv.Type().Field(i).Tag.Get("json")
			name := rv.Type().String() + "." + strings.Split(tag, ",")[0]
			for k := range b.Keys {
				if b.Keys[k].field(v) == field {
					reached[name] = true
					if own := b.Keys[k].Name; !b.Keys[k].Kind && !strings.HasSuffix(name, "."+own) {
						t.Errorf("key %s of %s is kept in %s", own, b.Name, name)
					}
				}
			}
			if b.label != nil && (strings.HasSuffix(name, ".name") || strings.HasSuffix(name, ".site")) {
				reached[name] = true
			}
			switch rv.Field(i).Kind() { // blocks
			case reflect.Slice:
				if rv.Field(i).Type().Elem().Kind() == reflect.Struct {
					reached[name] = true
				}
			case reflect.Struct, reflect.Pointer:
				reached[name] = true
			case reflect.Map:
				if rv.Field(i).Type().Elem().Kind() == reflect.Struct {
					reached[name] = true
				}
			}
		}
	})
	var all func(rt reflect.Type)
	seen := map[reflect.Type]bool{}
	all = func(rt reflect.Type) {
		for rt.Kind() == reflect.Slice || rt.Kind() == reflect.Pointer || rt.Kind() == reflect.Map {
			rt = rt.Elem()
		}
		if rt.Kind() != reflect.Struct || seen[rt] || rt.PkgPath() != reflect.TypeFor[cluster.Spec]().PkgPath() {
			return
		}
		seen[rt] = true
		for i := range rt.NumField() {
			name := rt.String() + "." + strings.Split(rt.Field(i).Tag.Get("json"), ",")[0]
			if !reached[name] {
				t.Errorf("no key of the table is kept in %s", name)
			}
			all(rt.Field(i).Type)
		}
	}
	all(reflect.TypeFor[cluster.Spec]())
}

func TestTheTableIsWellFormed(t *testing.T) {
	eachKey(Root(), func(b *Block, k *Key) {
		where := b.Name + " " + k.Name
		if k.Doc == "" || k.Class == "" || k.field == nil || k.Type == "" {
			t.Errorf("%s: doc, class, field and type must be there", where)
		}
		if (k.Type == Word) != (len(k.Values) > 0) && k.Type != Count && k.Type != List {
			t.Errorf("%s: words and only words have values", where)
		}
		if k.Default == nil && k.Example == "" && k.Type != Word {
			t.Errorf("%s: an example or a default is needed", where)
		}
		if k.Only != nil && b.key(k.Only.Key) == nil {
			t.Errorf("%s: depends on %s, which is no key", where, k.Only.Key)
		}
		for _, n := range k.NotWith {
			if b.key(n) == nil {
				t.Errorf("%s: excludes %s, which is no key", where, n)
			}
		}
		if ex := k.example(); ex == "..." {
			t.Errorf("%s: no example", where)
		}
	})
}

func TestEveryExampleAndDefaultOfTheTableIsAcceptedByTheParser(t *testing.T) {
	eachKey(Root(), func(b *Block, k *Key) {
		for _, text := range []string{k.Example, k.defaultLiteral()} {
			if text == "" {
				continue
			}
			src := k.Name + " = " + text + "\n"
			d := &decoder{journal: newJournal("x", []byte(src)), src: []byte(src), pos: map[string]hcl.Range{}}
			v := b.make(new(cluster.ServiceSpec))
			if b.Name == "cluster" {
				v = new(cluster.Spec)
			}
			d.oneKey(t, b, v, src)
		}
	})
}

func TestLeaseAndDurationsMayBeWrittenInSeveralWays(t *testing.T) {
	for text, want := range map[string]time.Duration{`"0"`: 0, `0`: 0, `"90s"`: 90 * time.Second, `"1m30s"`: 90 * time.Second, `"1.5h"`: 90 * time.Minute} {
		s := mustParse(t, "service \"x\" {\n nodes = [\"a\"]\n failback_after = "+text+"\n}\n")
		if got := s.Services[0].FailbackAfter; got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	for text, want := range map[string]int64{`"0"`: 0, `0`: 0, `"4096KiB"`: 4 << 20, `"1TiB"`: 1 << 40, `"2000000B"`: 2000000} {
		s := mustParse(t, "service \"x\" {\n nodes = [\"a\"]\n process \"p\" {\n start = [\"/bin/x\"]\n memory_max = "+text+"\n}\n}\n")
		if got := s.Services[0].Processes[0].MemoryMax; got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestVolumesOfServicesThatNeverMeetMayShareAPath(t *testing.T) {
	mustParse(t, `
service "x" {
  nodes = ["a"]
  volume "d" { path = "/srv/d" }
}
service "y" {
  nodes = ["b"]
  volume "d" { path = "/srv/d" }
}
`)
}

func TestSpecsThatWouldExhaustTheParserAreRefusedBeforeIt(t *testing.T) {
	deep := strings.Repeat("[", 100_000)
	for name, src := range map[string]string{
		"brackets": "a = " + deep, "braces": strings.Repeat("a {\n", 50_000), "not": "a = " + strings.Repeat("!", 100_000) + "true",
		"minus": "a = " + strings.Repeat("-", 100_000) + "1", "conditions": "a = " + strings.Repeat("true?", 50_000) + "1",
		"templates": "a = " + strings.Repeat(`"${`, 50_000), "parentheses": "a = " + strings.Repeat("(", 100_000), "long": "# " + strings.Repeat("x", maxSource),
		"calls": "a = " + strings.Repeat("f(", 100_000), "maps": "a = " + strings.Repeat("{a=", 80_000), "for": "a = " + strings.Repeat("[for x in ", 20_000),
		"comparisons": "a = " + strings.Repeat("1==", 80_000) + "1",
	} {
		began := time.Now()
		s, ds := Parse("x.hcl", []byte(src))
		if s != nil || len(ds) == 0 {
			t.Errorf("%s: accepted", name)
		}
		if got := Format([]byte(src)); string(got) != src && name != "long" {
			t.Errorf("%s: formatted", name)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
}

func TestNoFileMakesMoreThanAHundredDiagnostics(t *testing.T) {
	_, ds := Parse("x.hcl", []byte(strings.Repeat("wibble {\n}\n", 500)))
	if len(ds) != maxDiagnostics || !strings.Contains(ds[maxDiagnostics-1].What, "401 more") {
		t.Errorf("%d: %v", len(ds), ds[len(ds)-1])
	}
}

func TestDiagnosticsShowNoControlCharactersAndFitTheScreen(t *testing.T) {
	src := "service \"db\" {\n  nodes = [\"a\"]\n\tfence = \"" + strings.Repeat("\u00e4", 300) + "\x1b[31m\" # " + strings.Repeat("y", 300) + "\n}\n"
	_, ds := Parse("x.hcl", []byte(src))
	if len(ds) == 0 {
		t.Fatal("accepted")
	}
	text := ds.Error()
	if strings.ContainsRune(text, 0x1b) {
		t.Errorf("an escape reached the screen: %q", text)
	}
	for _, l := range strings.Split(text, "\n") {
		if n := len([]rune(l)); n > 200 {
			t.Errorf("a line of %d characters: %s", n, l)
		}
	}
}

func TestErrIsNilWithoutDiagnostics(t *testing.T) {
	if Diagnostics(nil).Err() != nil || (Diagnostics{{}}).Err() == nil {
		t.Error("Err")
	}
	if b, err := json.Marshal(Diagnostics{{File: "x", Line: 1}}); err != nil || !strings.Contains(string(b), `"line":1`) {
		t.Errorf("%s %v", b, err)
	}
}
