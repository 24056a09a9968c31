package lab

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/lab/world"
)

// quickStart follows the quick start of the README on fresh machines, until the service is protected, and answers with how many commands and how much time.
func quickStart(t *testing.T, o *office) (commands int, took time.Duration) {
	t.Helper()
	p := readPage(t, "../../README.md", "Quick start")
	_, spec, _ := strings.Cut(p.text, "```hcl\n")
	spec, _, ok := strings.Cut(spec, "```")
	if !ok {
		t.Fatal("the quick start has no spec")
	}
	must(t, os.WriteFile(filepath.Join(o.world.Host(nodeA).Dir(), "web.hcl"), []byte(spec), 0o644))
	began := time.Now()
	for _, l := range strings.Split(p.text, "\n") {
		l, ok := strings.CutPrefix(l, "    ")
		if !ok || len(l) < 4 || l[1] != '#' {
			continue
		}
		host, line := l[:1], strings.TrimSpace(l[2:])
		line, _, _ = strings.Cut(line, "  #")
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "hanode switchover") {
			break // the service is protected by then; what follows is for the joy of it
		}
		if strings.HasPrefix(line, "hanode token") || strings.HasPrefix(line, "hanode apply") {
			o.sees(host, "hanode status --local", "MEMBER", 15*time.Second) // a person sees the daemon come up
		}
		if strings.HasPrefix(line, "hanode apply") {
			o.sees(host, "hanode member list", "witness", 15*time.Second)
		}
		out := o.types(host, line)
		if strings.HasPrefix(line, "hanode status") && !strings.Contains(out, "PROTECTED") {
			o.sees(host, "hanode status", "PROTECTED", 30*time.Second)
		}
	}
	return o.count, time.Since(began)
}

func TestTheQuickStartLeadsFromNothingToAProtectedService(t *testing.T) {
	if world.Privileged(testSelf(t)) != world.Full {
		t.Skip("needs root: hosts in namespaces, real-time scheduling and the eBPF gate")
	}
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	bin := officePrograms(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	o := openOffice(t, ctx, bin)
	commands, took := quickStart(t, o)
	t.Logf("%d lines typed, %v", commands, took.Round(100*time.Millisecond))
	if commands > 10 || took > 60*time.Second {
		t.Errorf("%d commands and %v: at most 10 and 60 s are promised", commands, took)
	}
	if out, exit := o.sh(nodeB, "curl -s --max-time 2 http://10.0.0.50:8080/"); exit != 0 || !strings.Contains(out, "well") {
		t.Errorf("the service does not answer on its address: %d %s", exit, out)
	}
	o.types(nodeA, "hanode switchover web")
	o.types(nodeA, "hanode explain web")
}

// officePrograms are the programs under the names that packages give them.
func officePrograms(t *testing.T) string {
	bin := programs(t)
	must(t, os.Rename(filepath.Join(bin, "witness"), filepath.Join(bin, "hanode-witness")))
	must(t, os.Chmod(bin, 0o755))
	return bin
}
