package house

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/hanode/hanode/"

type pkg struct {
	ImportPath string
	Dir        string
	Imports    []string
	GoFiles    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles", "./...")
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var out []pkg
	dec := json.NewDecoder(strings.NewReader(string(b)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
		for i := range p.Imports {
			p.Imports[i] = strings.TrimPrefix(p.Imports[i], module)
		}
		out = append(out, p)
	}
}

// within says whether a package is a room or lies in it.
func within(path, room string) bool { return path == room || strings.HasPrefix(path, room+"/") }

// The rooms from which each room may import, beside itself and the libraries. What is not listed may import nothing of the module.
// See the picture in docs/architecture.md; a new edge needs a reason there.
var mayImport = map[string][]string{
	"cluster":              {},
	"cluster/lock":         {"cluster"},
	"cluster/lease":        {"cluster", "cluster/lock"},
	"cluster/state":        {"cluster", "cluster/lock", "internal/pbwire"},
	"cluster/spec":         {"cluster"},
	"cluster/link":         {"cluster"},
	"cluster/raft":         {"cluster"},
	"cluster/gossip":       {"cluster"},
	"failover/plan":        {"cluster", "cluster/lock"},
	"failover/supervise":   {"cluster", "internal/cgroup", "internal/page", "internal/rt"},
	"failover/agent":       {"cluster", "failover/supervise", "internal/cgroup", "internal/rt"},
	"failover/notify":      {"cluster"},
	"netid":                {"cluster", "internal/nstest"},
	"replication":          {"cluster", "internal/page", "internal/rt", "internal/nstest"},
	"internal/pbwire":      {},
	"internal/pki":         {"cluster"},
	"internal/page":        {"cluster"},
	"internal/rt":          {"cluster"},
	"internal/cgroup":      {"cluster"},
	"internal/guard":       {"cluster", "internal/page", "internal/rt", "internal/cgroup"},
	"internal/nstest":      {},
	"internal/house":       {},
	"internal/core":        {"cluster", "cluster/lock", "cluster/lease", "cluster/state", "failover/plan", "internal/pbwire"},
	"internal/sim":         {"cluster", "failover/plan", "internal/core"},
	"internal/member":      {"cluster", "failover/plan", "internal/core", "internal/pki", "internal/rt"},
	"internal/witness":     {"cluster", "internal/core", "internal/member", "internal/pki", "internal/rt"},
	"internal/api":         {"cluster"},
	"internal/ui":          {"cluster", "internal/api"},
	"internal/cli":         {"internal/api", "internal/ui"},
	"internal/witnesscmd":  {"cluster", "internal/api", "internal/ui", "internal/cli"},
	"internal/witnesswire": {"cluster", "internal/api", "internal/cli", "internal/core", "internal/member", "internal/pki", "internal/ui", "internal/witness", "internal/witnesscmd"},
	"internal/demoapp":     {"cluster", "internal/page"},
	"internal/lab":         {"cluster", "internal/demoapp", "internal/page"},
	"internal/volserver":   {"cluster", "replication", "failover/supervise", "internal/cgroup", "internal/page", "internal/pki", "internal/rt"},
	"internal/volbench":    {"cluster", "replication"},
	"internal/node": {"internal/volserver", "cluster", "failover", "netid", "replication", "internal/api", "internal/cgroup", "internal/core", "internal/guard", "internal/member",
		"internal/page", "internal/pki", "internal/rt"},
	"cmd/hanode":  {"cluster", "failover/supervise", "internal", "netid/gate"},
	"cmd/witness": {"internal/api", "internal/cli", "internal/ui", "internal/witness", "internal/witnesscmd", "internal/witnesswire"},
}

// room is the longest listed prefix of a package.
func room(path string) string {
	best := ""
	for r := range mayImport {
		if within(path, r) && len(r) > len(best) {
			best = r
		}
	}
	return best
}

func TestImportsPointDownOnly(t *testing.T) {
	for _, p := range packages(t) {
		r := room(p.ImportPath)
		if r == "" {
			t.Errorf("%s is in no room of the house: see docs/architecture.md", p.ImportPath)
			continue
		}
		for _, i := range p.Imports {
			if room(i) == "" || within(i, r) {
				continue
			}
			if !slices.ContainsFunc(mayImport[r], func(ok string) bool {
				return i == ok || (ok != "cluster" || strings.HasPrefix(r, "internal/") || strings.HasPrefix(r, "cmd/")) && within(i, ok)
			}) {
				t.Errorf("%s imports %s: the room %s may import only %v", p.ImportPath, i, r, mayImport[r])
			}
		}
	}
}

// The deciding cores import nothing by which they could act or tell the time.
func TestTheDecidingCoresHaveNoClockAndNoIO(t *testing.T) {
	allowed := []string{"fmt", "errors", "time", "sort", "slices", "strings", "bytes", "math/bits", "encoding/json", "encoding/hex", "encoding/binary", "hash/crc32", "net/netip", "maps", "cmp", "math"}
	for _, p := range packages(t) {
		switch p.ImportPath {
		case "cluster", "cluster/lock", "cluster/lease", "cluster/state", "failover/plan", "internal/core", "replication", "replication/stream/replica", "replication/memory/image":
		default:
			continue
		}
		for _, i := range p.Imports {
			if room(i) == "" && !slices.Contains(allowed, i) {
				t.Errorf("%s imports %s", p.ImportPath, i)
			}
		}
		for _, f := range p.GoFiles {
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range []string{"time.Now(", "time.Since(", "time.After(", "time.Sleep(", "go func", "rand."} {
				if strings.Contains(string(b), word) {
					t.Errorf("%s/%s uses %s", p.ImportPath, f, word)
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range packages(t) {
		found := false
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			found = found || (file.Doc != nil && len(file.Doc.Text()) > 60)
		}
		if !found && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment of more than 60 characters", p.ImportPath)
		}
	}
}

func TestTheVersionsThatMustNotMoveAreThePinnedOnes(t *testing.T) {
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Path}} {{.Version}}", "all")
	cmd.Dir = "../.."
	b, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	for _, l := range strings.Split(string(b), "\n") {
		path, v, _ := strings.Cut(l, " ")
		have[path] = v
	}
	for path, want := range map[string]string{
		"github.com/hashicorp/raft":           "v1.7.3",
		"github.com/hashicorp/raft-boltdb/v2": "v2.3.1",
		"go.etcd.io/bbolt":                    "v1.5.0",
		"github.com/hashicorp/memberlist":     "v0.6.0",
		"github.com/hashicorp/go-metrics":     "v0.6.0",
		"github.com/mdlayher/arp":             "v0.0.0-20220512170110-6706a2966875",
		"github.com/mdlayher/ndp":             "v1.1.0",
		"github.com/hanwen/go-fuse/v2":        "v2.12.1",
	} {
		if have[path] != want {
			t.Errorf("%s is %q, want %q: see docs/decisions", path, have[path], want)
		}
	}
}

func TestNoFileIsTooLongToBeOneIdea(t *testing.T) {
	const most = 600
	for _, p := range packages(t) {
		for _, f := range p.GoFiles {
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(b), "\n"); n > most {
				t.Error(fmt.Sprintf("%s/%s has %d lines, more than %d", p.ImportPath, f, n, most))
			}
		}
	}
}
