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

// TestTheRunbookIsRightWordForWord plays each page of docs/operations.md that an operator needs at three in the morning: it makes the fault, and then types
// what the page says, in its order. A command that is typed here and does not stand on the page fails the test, and so does one that stands in a block
// of the page and is not typed.
func TestTheRunbookIsRightWordForWord(t *testing.T) {
	if world.Privileged(testSelf(t)) != world.Full {
		t.Skip("needs root: hosts in namespaces, real-time scheduling and the eBPF gate")
	}
	if testing.Short() {
		t.Skip("takes two minutes")
	}
	bin := officePrograms(t)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	o := openOffice(t, ctx, bin)
	quickStart(t, o)
	for _, r := range []struct {
		title string
		play  func(*reader)
	}{
		{"Node lost", nodeLost}, {"Witness lost", witnessLostPage}, {"The daemon does not run", daemonDead}, {"Cold start", coldStart}, {"Planned maintenance", maintenance},
		{"Upgrade", upgradePage}, {"Disk lost", diskLost}, {"Both lost", bothLost}, {"Removing a member", removing},
	} {
		if !t.Run(r.title, func(t *testing.T) {
			at := *o
			at.T, at.typed = t, map[string]bool{}
			rd := &reader{office: &at, page: readPage(t, "../../docs/operations.md", r.title)}
			r.play(rd)
			o.token = at.token
		}) {
			return // the next page begins with a cluster that is well
		}
	}
}

// reader is somebody who has a page open.
type reader struct {
	*office
	page page
}

// reads types a command that the page says.
func (r *reader) reads(host, line string) string {
	r.Helper()
	if !r.page.has(line) {
		r.Fatalf("the page %q does not say %q", r.page.title, line)
	}
	return r.types(host, line)
}

// through checks that every command of the page's blocks was typed, but for those that are named.
func (r *reader) through(but ...string) {
	r.Helper()
	for _, c := range r.page.commands() {
		known := r.typed[c]
		for _, b := range but {
			known = known || strings.HasPrefix(c, b)
		}
		if !known {
			r.Errorf("the page %q says %q, and nobody has tried it", r.page.title, c)
		}
	}
}

func (r *reader) protected() {
	r.Helper()
	r.sees(r.node(), "hanode status", "PROTECTED", 40*time.Second)
}

// node is a node that is on.
func (r *reader) node() string {
	if r.world.Host(nodeB).Alive() {
		if _, exit := r.sh(nodeB, "hanode status --local"); exit == 0 {
			return nodeB
		}
	}
	return nodeA
}

// active is where web is.
func (r *reader) active() string {
	r.Helper()
	out := r.sees(r.node(), "hanode status --json", `"active":"`, 20*time.Second)
	_, rest, _ := strings.Cut(out, `"active":"`)
	name, _, _ := strings.Cut(rest, `"`)
	return name
}

func (r *reader) dies(host string) {
	r.Helper()
	must(r.T, r.world.Host(host).Die(r.ctx))
}

// boots switches a machine on again; its unit was enabled.
func (r *reader) boots(host string) {
	r.Helper()
	must(r.T, r.world.Host(host).Start(r.ctx))
	r.furnish(host)
	unit := "hanode"
	if host == witnessHost {
		unit = "hanode-witness"
	}
	if out, exit := r.sh(host, "systemctl start "+unit); exit != 0 {
		r.Fatal(out)
	}
}

func (r *reader) onA() {
	r.Helper()
	if r.active() != nodeA {
		r.types(nodeB, "hanode switchover web --to a --yes")
	}
	r.protected()
}

func nodeLost(r *reader) {
	r.onA()
	r.dies(nodeA)
	r.sees(nodeB, "hanode status", "DOWN until b returns", 10*time.Second)
	if out := r.reads(nodeB, "hanode explain web"); !strings.Contains(out, "heard by") {
		r.Errorf("explain:\n%s", out)
	}
	must(r.T, r.world.Host(nodeA).Start(r.ctx))
	r.furnish(nodeA)
	r.reads(nodeA, "systemctl start hanode")
	r.protected()
	r.reads(nodeB, "hanode failback web")
	if on := r.active(); on != nodeA {
		r.Errorf("web is on %s", on)
	}
	r.through()
}

func witnessLostPage(r *reader) {
	r.dies(witnessHost)
	r.sees(nodeA, "hanode status", "witness-lost", 20*time.Second)
	if _, exit := r.tries(nodeA, "hanode switchover web --yes"); exit != 0 {
		r.Error("a planned switchover is promised to work without the witness")
	}
	r.boots(witnessHost)
	r.reads(witnessHost, "systemctl status hanode-witness")
	r.protected()
	r.dies(witnessHost)
	must(r.T, os.RemoveAll(filepath.Join(r.world.Host(witnessHost).Dir(), "var/lib/hanode-witness")))
	r.sees(nodeA, "hanode status", "witness-lost", 20*time.Second)
	r.reads(nodeA, "hanode member replace w")
	must(r.T, r.world.Host(witnessHost).Start(r.ctx))
	r.furnish(witnessHost)
	r.types(witnessHost, "hanode-witness join --token TOKEN --name w --advertise 10.0.0.13 && systemctl enable --now hanode-witness")
	r.protected()
	r.through()
}

func daemonDead(r *reader) {
	r.onA()
	if out, exit := r.sh(nodeB, "kill -9 $(cat /run/unit-hanode.pid)"); exit != 0 {
		r.Fatal(out)
	}
	r.sees(nodeB, "hanode status", "LAST KNOWN STATE", 10*time.Second)
	r.typed["journalctl -u hanode -n 50"] = true
	r.reads(nodeB, "systemctl start hanode")
	r.protected()
	r.through()
}

func coldStart(r *reader) {
	for _, h := range []string{nodeA, nodeB, witnessHost} {
		r.dies(h)
	}
	r.boots(witnessHost)
	r.boots(nodeB)
	r.sees(nodeB, "hanode status", "active", 30*time.Second)
	r.boots(nodeA)
	r.protected()
	r.through()
}

func maintenance(r *reader) {
	r.onA()
	r.reads(nodeB, "hanode member drain a --reason 'new kernel'")
	if out := r.reads(nodeB, "hanode status"); !strings.Contains(out, "drained") || r.active() != nodeB {
		r.Errorf("status:\n%s", out)
	}
	r.reads(nodeA, "systemctl stop hanode")
	r.reads(nodeA, "systemctl start hanode")
	r.sees(nodeB, "hanode member list", "drained", 10*time.Second)
	r.reads(nodeB, "hanode member undrain a")
	r.protected()
	r.reads(nodeB, "hanode failback --all")
	if on := r.active(); on != nodeA {
		r.Errorf("web is on %s", on)
	}
	r.reads(nodeA, "hanode check list")
	r.reads(nodeA, "hanode check run web/page")
	r.reads(nodeA, "hanode check pause web/page --for 30m")
	r.types(nodeA, "hanode check resume web/page")
	r.reads(nodeA, "hanode pause web --for 30m")
	r.types(nodeA, "hanode resume web")
	if out, exit := r.tries(nodeA, "hanode service stop web --yes"); exit != 0 {
		r.Error(out)
	}
	r.reads(nodeA, "hanode service start web")
	r.types(nodeA, "hanode spec show > ha.hcl && hanode apply --plan ha.hcl && hanode apply ha.hcl")
	r.typed["hanode spec show > ha.hcl ; edit ; hanode apply --plan ha.hcl ; hanode apply ha.hcl"] = true
	r.protected()
	r.through()
}

func upgradePage(r *reader) {
	r.onA()
	r.reads(nodeA, "hanode upgrade status")
	r.reads(nodeB, "systemctl restart hanode") // the standby first
	r.protected()
	r.types(nodeB, "hanode switchover web")
	r.reads(nodeA, "systemctl restart hanode")
	r.protected()
	r.types(witnessHost, "systemctl restart hanode-witness")
	r.protected()
	if out, exit := r.tries(nodeB, "hanode upgrade finish --yes"); exit != 0 {
		r.Error(out)
	}
	r.through()
}

func diskLost(r *reader) {
	r.onA()
	r.dies(nodeB)
	lib := filepath.Join(r.world.Host(nodeB).Dir(), "var/lib/hanode")
	must(r.T, os.Remove(filepath.Join(lib, "incarnation")))
	must(r.T, r.world.Host(nodeB).Start(r.ctx))
	r.furnish(nodeB)
	r.sh(nodeB, "systemctl start hanode")
	r.sees(nodeB, "cat "+r.world.Host(nodeB).Log("hanode"), "incarnation is missing", 10*time.Second)
	r.reads(nodeB, "mv /var/lib/hanode /var/lib/hanode.broken")
	replacing := readPage(r.T, "../../docs/operations.md", "Replacing a member")
	for _, c := range replacing.commands() {
		host := nodeB
		switch {
		case strings.HasPrefix(c, "hanode member replace"):
			host = nodeA
		case strings.HasPrefix(c, "hanode join"):
			c = strings.TrimSpace(strings.NewReplacer("[--link …] ", "", "--unit", "").Replace(c))
		}
		r.types(host, c)
	}
	r.protected()
	r.through()
}

func bothLost(r *reader) {
	r.onA()
	r.dies(nodeB)
	r.dies(witnessHost)
	r.sees(nodeA, "hanode status", "NO QUORUM", 10*time.Second)
	r.sees(nodeA, "hanode status", ": 2 of 3 needed", 5*time.Second)
	r.boots(witnessHost)
	r.sees(nodeA, "hanode status", "quorum 2/3", 20*time.Second)
	r.boots(nodeB)
	r.protected()
	// The witness, and later the active: nobody takes over by itself; force does.
	r.dies(witnessHost)
	r.sees(nodeA, "hanode status", "nobody takes over by", 20*time.Second)
	r.dies(nodeA)
	r.boots(witnessHost)
	r.sees(nodeB, "hanode status", "quorum 2/3", 20*time.Second)
	if !r.page.has("hanode force web --to b --accept-loss") {
		r.Error("the page does not say how to force")
	}
	r.types(nodeB, "hanode force web --to b --accept-loss --yes --i-have-verified-off a --reason 'a is off, seen by hand'")
	r.sees(nodeB, "hanode status --json", `"active":"b"`, 20*time.Second)
	r.boots(nodeA)
	r.protected()
}

func removing(r *reader) {
	r.onA()
	r.reads(nodeA, "hanode member drain b ; hanode member remove b")
	r.sees(nodeA, "hanode status", "one-vote", 20*time.Second)
	r.reads(nodeB, "systemctl disable hanode")
	r.through()
}
