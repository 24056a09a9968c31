package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hanode/hanode/internal/lab/probe"
)

// specPlays show what the language of the spec promises beyond a pair with an address.
func specPlays() []situation {
	return []situation{
		{name: "an unchanged spec touches nothing", play: playUnchanged},
		{name: "hooks are run at their moments, with their context", play: playHooks},
		{name: "a service follows the one that it requires", moves: true, play: playRequires},
		{name: "after a failure only what is worth most runs", moves: true, play: playPriority},
		{name: "the address is announced when the service is ready", moves: true, play: playAnnounce},
		{name: "a failed check restarts before it fails over", play: playCheckRestart},
	}
}

// file is a path in a node's directory that all hosts see.
func (p *play) file(name string) string { return filepath.Join(p.host(nodeA).Dir(), name) }

func (p *play) read(name string) string {
	b, _ := os.ReadFile(p.file(name))
	return string(b)
}

// pid is that of a process of a service, as its node's status tells it.
func (p *play) pid(host, service string) int {
	var st struct {
		Services []struct {
			Name      string `json:"name"`
			Processes []struct {
				PID int `json:"pid"`
			} `json:"processes"`
		} `json:"services"`
	}
	p.must(json.Unmarshal([]byte(p.prints(host, nil, "status", "--local", "--json")), &st))
	for _, s := range st.Services {
		if s.Name == service && len(s.Processes) > 0 {
			return s.Processes[0].PID
		}
	}
	return 0
}

// serviceIs waits until a node says where a service is active and in which state.
func (p *play) serviceIs(host, service, state, active string, within time.Duration) {
	p.Helper()
	p.until(fmt.Sprintf("%s is %s on %q", service, state, active), within, func() bool {
		st, err := p.status(p.ctx, host)
		if err != nil {
			return false
		}
		for _, s := range st.Services {
			if s.Name == service {
				return s.State == state && (active == "any" || s.Active == active)
			}
		}
		return false
	})
}

func (p *play) restore(remove ...string) {
	p.Helper()
	p.must(p.heal())
	file := p.file("spec.hcl")
	args := []string{"apply", file, "--yes", "--timeout", "30s"}
	for _, r := range remove {
		args = append(args, "--remove", r)
	}
	p.until("the usual spec is in force", 30*time.Second, func() bool {
		_, err := p.command(p.ctx, p.askable()[0], args...)
		return err == nil
	})
}

func playHooks(p *play) {
	var hooks strings.Builder
	for _, at := range []string{"before-failover", "before-announce", "after-announce", "before-start", "after-start", "after-failover", "before-stop", "after-stop"} {
		fmt.Fprintf(&hooks, "\n  hook %q {\n    at   = %q\n    exec = [\"/bin/sh\", \"-c\", \"echo $HANODE_AT $HANODE_SERVICE $HANODE_KIND $HANODE_FROM $HANODE_TO >> %s-$HANODE_NODE\"]\n  }\n", at, at, p.file("hooks"))
	}
	p.applyWith("  on_failure {", hooks.String()+"\n  on_failure {")
	p.must(p.waitProtected(p.ctx, protectedWithin))
	p.must(p.host(p.active).Die(p.ctx))
	p.servedBy(p.standby, p.begin, generous)
	on := "hooks-" + p.standby
	var want string
	for _, at := range []string{"before-failover", "before-announce", "after-announce", "before-start", "after-start", "after-failover"} {
		want += fmt.Sprintf("%s %s failover %s %s\n", at, serviceName, p.active, p.standby)
	}
	p.until("the hooks of a failover have run in their order", 10*time.Second, func() bool { return p.read(on) == want })
	p.must(p.heal())
	p.must(p.waitProtected(p.ctx, protectedWithin))
	p.must(os.Remove(p.file(on)))
	p.must(p.switchover(p.ctx, serviceName, p.standby, p.active))
	p.until("the hooks of a switchover have run", 10*time.Second, func() bool {
		return strings.HasPrefix(p.read(on), "before-stop "+serviceName) && strings.Contains(p.read(on), "after-stop") &&
			strings.Contains(p.read("hooks-"+p.active), "after-start "+serviceName+" switchover "+p.standby+" "+p.active)
	})
	p.check(!strings.Contains(p.read("hooks-"+p.active), "failover echo"), "hooks of a failover were run in a planned move:\n%s", p.read("hooks-"+p.active))
	p.applyWith("  on_failure {", "\n  hook \"bad\" {\n    at   = \"after-stop\"\n    exec = [\"/bin/false\"]\n  }\n\n  on_failure {")
	p.must(p.switchover(p.ctx, serviceName, p.active, p.standby))
	p.alarmed(p.active, "hook-failed", 10*time.Second)
	p.must(p.waitProtected(p.ctx, protectedWithin))
	p.must(p.switchover(p.ctx, serviceName, p.standby, p.active))
	p.restore()
}

func playRequires(p *play) {
	p.applyWith("service \"echo\" {", "service \"side\" {\n  nodes = [\"a\", \"b\"]\n  run   = \"everywhere\"\n\n  process \"sleep\" {\n    start = [\"/bin/sleep\", \"100000\"]\n  }\n\n  on_failure {\n    restarts = 0\n  }\n}\n\nservice \"echo\" {\n  requires = [\"side\"]")
	p.serviceIs(nodeA, "side", "active", "", 10*time.Second)
	p.until("both run it", 10*time.Second, func() bool { return p.pid(nodeA, "side") != 0 && p.pid(nodeB, "side") != 0 })
	p.prints(nodeA, []string{"the others go on"}, "status")
	p.must(p.waitProtected(p.ctx, protectedWithin))
	p.must(p.bed.signal(p.ctx, p.active, p.pid(p.active, "side"), syscall.SIGKILL))
	p.servedBy(p.standby, p.begin, 5*time.Second)
	p.explained(p.standby, "side, which echo requires, is not well on "+p.active)
	p.until("it says what is wrong", 5*time.Second, func() bool {
		return strings.Contains(p.prints(p.standby, nil, "status"), p.active+" is not well")
	})
	p.refused(p.standby, 3, "side, which echo requires, is not well there", "switchover", serviceName, "--to", p.active, "--yes")
	p.prints(p.standby, []string{"restarted on all nodes"}, "service", "restart", "side", "--yes", "--timeout", "20s")
	p.serviceIs(p.standby, "side", "active", "", 10*time.Second)
	p.must(p.waitProtected(p.ctx, protectedWithin))
	p.restore("side")
}

func playPriority(p *play) {
	batch := "service \"batch\" {\n  nodes    = [\"a\", \"b\"]\n  priority = 10\n  load     = 60\n\n  process \"sleep\" {\n    start = [\"/bin/sleep\", \"100000\"]\n  }\n}\n\n"
	p.applyWith("service \"echo\" {", batch+"service \"echo\" {\n  load = 60")
	p.serviceIs(p.active, "batch", "active", p.standby, 15*time.Second)
	began := probe.Now()
	p.must(p.host(p.active).Die(p.ctx))
	p.servedBy(p.standby, began, generous)
	p.serviceIs(p.standby, "batch", "failed", "", 15*time.Second)
	p.until("it says why", 5*time.Second, func() bool {
		return strings.Contains(p.prints(p.standby, nil, "explain", "batch"), p.standby+" is full")
	})
	p.must(p.heal())
	p.serviceIs(p.standby, "batch", "active", p.active, 30*time.Second)
	p.restore("batch")
}

func playAnnounce(p *play) {
	p.must(os.WriteFile(p.file("ready-"+p.active), nil, 0o644))
	ready := fmt.Sprintf("  check \"ready\" {\n    exec    = [\"/bin/sh\", \"-c\", \"test -e %s-$HANODE_NODE\"]\n    timeout = \"5s\"\n  }\n\n  on_failure {", p.file("ready"))
	text := strings.Replace(strings.Replace(p.spec(), "/24\" {}", "/24\" {\n    announce = \"ready\"\n  }", 1), "  on_failure {", ready, 1)
	p.must(os.WriteFile(p.file("changed.hcl"), []byte(text), 0o644))
	p.prints(nodeA, nil, "apply", p.file("changed.hcl"), "--yes")
	p.must(p.waitProtected(p.ctx, protectedWithin))
	p.servedBy(p.active, probe.Now(), 10*time.Second)
	p.must(p.switchover(p.ctx, serviceName, p.active, p.standby))
	moved := probe.Now()
	p.wait(time.Second)
	p.unserved(moved, probe.Now())
	p.must(os.WriteFile(p.file("ready-"+p.standby), nil, 0o644))
	p.servedBy(p.standby, moved, 5*time.Second)
	p.restore()
}

func playCheckRestart(p *play) {
	p.must(os.WriteFile(p.file("well"), nil, 0o644))
	check := fmt.Sprintf("  check \"well\" {\n    exec    = [\"/usr/bin/test\", \"-e\", %q]\n    timeout = \"5s\"\n    every   = \"250ms\"\n  }\n\n  on_failure {\n    restarts = 2", p.file("well"))
	p.applyWith("  on_failure {\n    restarts = 0", check)
	p.must(p.waitProtected(p.ctx, protectedWithin))
	p.until("the process runs", 10*time.Second, func() bool { return p.pid(p.active, serviceName) != 0 })
	p.now()
	before := p.pid(p.active, serviceName)
	p.must(os.Remove(p.file("well")))
	p.until("the process was restarted", 15*time.Second, func() bool { n := p.pid(p.active, serviceName); return n != 0 && n != before })
	p.must(os.WriteFile(p.file("well"), nil, 0o644))
	p.must(p.waitProtected(p.ctx, protectedWithin))
	st := p.ask(p.standby)
	p.check(st.active() == p.active && st.epoch() == p.epoch, "it was moved although restarts were left: %s", st.describe())
	p.prints(p.active, []string{"restart 1 of 2"}, "explain", serviceName)
	p.restore()
}

func playUnchanged(p *play) {
	pid := p.pid(p.active, serviceName)
	text := p.spec()
	for i := range 10 {
		same := text
		if i%2 == 1 { // another text of the same meaning
			same = "# version " + fmt.Sprint(i) + "\n\n" + strings.ReplaceAll(text, "\n\n", "\n\n\n")
		}
		p.must(os.WriteFile(p.file("same.hcl"), []byte(same), 0o644))
		p.prints(p.standby, nil, "apply", "--plan", p.file("same.hcl"))
		p.prints(p.standby, nil, "apply", "--yes", p.file("same.hcl"))
	}
	p.undisturbed(p.begin)
	p.check(p.pid(p.active, serviceName) == pid, "the process %d was touched", pid)
	kept, bad := 0, 0
	for _, r := range p.bed.coll.Since(probe.KeptName, p.begin) {
		if kept++; r.Why != probe.OK {
			bad++
		}
	}
	p.check(kept > 10 && bad == 0, "of %d questions on a connection that was kept open %d had no answer", kept, bad)
	p.applyWith("max_failovers = 1000", "max_failovers = 999")
	p.applyWith("    tcp = ", "    every = \"2s\"\n    tcp = ")
	p.prints(p.standby, []string{`check "port" every`, "at once"}, "apply", "--plan", p.file("spec.hcl"))
	p.restore()
}
