package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/lab/probe"
	"github.com/hanode/hanode/internal/lab/world"
)

// TestContract does on a cluster of the real programs what the contract with operators promises beside moves and faults.
func TestContract(t *testing.T) {
	if world.Privileged(testSelf(t)) != world.Full {
		t.Skip("needs root: hosts in namespaces, real-time scheduling and the eBPF gate")
	}
	if testing.Short() {
		t.Skip("takes two minutes")
	}
	s := &stage{t: t, dir: programs(t)}
	defer s.close()
	for _, x := range contractPlays() {
		t.Run(x.name, func(t *testing.T) { s.play(t, x) })
	}
}

func contractPlays() []situation {
	return append(specPlays(), []situation{
		{name: "checks are listed, run and paused", play: playChecks},
		{name: "an alert is tried", play: playAlert},
		{name: "gossip gets a new key while the service serves on", play: playKeys},
		{name: "an upgrade is looked at and finished", play: playUpgrade},
		{name: "the daemon is dead and status answers", play: playDeadDaemon},
		{name: "a manual failover is ordered although the active is dead", moves: true, play: playManual},
		{name: "an approver declines, and then agrees", moves: true, play: playApprover},
		{name: "everything is lost and restored from a backup", own: true, play: playRestore},
	}...)
}

// says runs a command that must succeed, and checks what it prints.
func (p *play) prints(host string, want []string, args ...string) string {
	p.Helper()
	out, err := p.command(p.ctx, host, args...)
	p.must(err)
	for _, w := range want {
		p.check(strings.Contains(string(out), w), "hanode %s prints no %q:\n%s", strings.Join(args, " "), w, out)
	}
	return string(out)
}

// applyText puts a spec in force that is the usual one with something replaced.
func (p *play) applyWith(old, new string) {
	p.Helper()
	text := p.spec()
	if !strings.Contains(text, old) {
		p.Fatalf("the spec has no %q", old)
	}
	file := filepath.Join(p.host(nodeA).Dir(), "changed.hcl")
	p.must(os.WriteFile(file, []byte(strings.Replace(text, old, new, 1)), 0o644))
	host := p.askable()[0]
	_, err := p.command(p.ctx, host, "apply", file, "--yes")
	p.must(err)
}

const nodesLine = `nodes = ["a", "b"]`

func playChecks(p *play) {
	p.prints(nodeB, []string{serviceName + "/port", "tcp", "ok"}, "check", "list")
	p.prints(p.standby, []string{"check " + serviceName + "/port succeeds on " + p.active}, "check", "run", serviceName+"/port")
	p.prints(p.standby, []string{"is paused until"}, "check", "pause", serviceName+"/port", "--for", "10m", "--yes", "--reason", "trial")
	p.until("the check is paused on the active", 5*time.Second, func() bool {
		return strings.Contains(p.prints(p.active, nil, "status"), "port paused on "+p.active)
	})
	p.prints(p.active, []string{"paused", "by root"}, "check", "list", serviceName)
	p.prints(p.active, []string{"is run again"}, "check", "resume", serviceName+"/port")
	p.until("the check is run again", 5*time.Second, func() bool { return strings.Contains(p.prints(p.active, nil, "check", "list"), " ok ") })
	p.refused(p.active, 2, "has no check x", "check", "run", serviceName+"/x")
	p.stillThere(p.begin)
}

func playAlert(p *play) {
	told := filepath.Join(p.host(nodeA).Dir(), "told")
	p.refused(nodeA, 3, "nobody hears of any alarm", "alert", "test")
	p.applyWith("service \"echo\" {", fmt.Sprintf("alert \"page\" {\n  exec = [\"/bin/sh\", \"-c\", \"echo $HANODE_ALARM_STATE $HANODE_ALARM_CODE >> %s\"]\n}\n\nservice \"echo\" {", told))
	p.until("the alert is known on "+nodeA, 5*time.Second, func() bool {
		out, err := p.command(p.ctx, nodeA, "alert", "test")
		return err == nil && strings.Contains(string(out), "told on a: page")
	})
	b, err := os.ReadFile(told)
	p.must(err)
	p.check(strings.Contains(string(b), "raised test\n") && strings.Contains(string(b), "over test\n"), "the program was told %q", b) // beside the alarms that there are
	p.applyWith("service \"echo\" {", "alert \"page\" {\n  exec = [\"/bin/false\"]\n}\n\nservice \"echo\" {")
	p.until("a broken alert is seen", 5*time.Second, func() bool {
		_, err := p.command(p.ctx, nodeA, "alert", "test")
		var ce *commandError
		return errors.As(err, &ce) && ce.exit == 1 && strings.Contains(ce.said, "told nobody")
	})
	p.must(p.apply(p.ctx))
	p.stillThere(p.begin)
}

func playKeys(p *play) {
	p.prints(nodeA, []string{"gossip has a new key"}, "key", "rotate", "--yes")
	for _, h := range []string{nodeA, nodeB, witnessHost} {
		p.check(!strings.Contains(p.said(h), "the keys of gossip"), "%s could not follow the change of keys", h)
	}
	p.check(p.ask(nodeB).alarm("unwell") == "", "gossip says that somebody is unwell")
	p.undisturbed(p.begin)
}

func playUpgrade(p *play) {
	p.prints(nodeA, []string{"nothing is to be done"}, "upgrade", "status")
	p.prints(nodeA, []string{"has feature level"}, "upgrade", "finish", "--yes")
}

func playDeadDaemon(p *play) {
	p.killDaemon(p.standby)
	p.refused(p.standby, 4, "LAST KNOWN STATE", "status", "--data", p.dataDir(p.standby))
	p.refused(p.standby, 2, "HANODE CRITICAL", "status", "--nagios", "--data", p.dataDir(p.standby))
	p.refused(p.active, 1, "HANODE WARNING", "status", "--nagios")
	p.stillThere(p.begin)
}

func playManual(p *play) {
	p.applyWith(nodesLine, nodesLine+"\n  failover = \"manual\"")
	p.until("it says whose order it waits for", 5*time.Second, func() bool { return p.ask(p.standby).ifActiveFails() == p.standby+", by your order" })
	p.must(p.host(p.active).Die(p.ctx))
	p.until("the active is missed", 10*time.Second, func() bool { return p.ask(p.standby).active() == "" })
	died := probe.Now()
	p.wait(time.Second)
	p.unserved(died, probe.Now())
	p.explained(p.standby, "hanode failover "+serviceName)
	p.prints(p.standby, []string{"is active on " + p.standby}, "failover", serviceName, "--yes", "--reason", "trial")
	p.takenOver(p.begin)
	p.explained(p.standby, "root agreed to it")
	p.must(p.heal())
	p.must(p.apply(p.ctx))
}

func playApprover(p *play) {
	p.applyWith(nodesLine, nodesLine+"\n  approvers = [\"root\"]")
	p.until("it says whose word it waits for", 5*time.Second, func() bool { return p.ask(p.standby).ifActiveFails() == p.standby+", after approval" })
	p.refused(p.standby, 3, "nothing waits for your word", "approve", serviceName, "--yes")
	p.must(p.host(p.active).Die(p.ctx))
	p.until("the active is missed", 10*time.Second, func() bool { return p.ask(p.standby).active() == "" })
	p.explained(p.standby, "waits for the word of root")
	p.prints(p.standby, []string{"stays where it is"}, "decline", serviceName, "--yes")
	p.explained(p.standby, "declined by root")
	died := probe.Now()
	p.wait(time.Second)
	p.unserved(died, probe.Now())
	p.prints(p.standby, []string{"is active on " + p.standby}, "approve", serviceName, "--yes")
	p.takenOver(p.begin)
	p.must(p.heal())
	p.must(p.apply(p.ctx))
}

func playRestore(p *play) {
	file := filepath.Join(p.host(nodeA).Dir(), "backup")
	p.prints(nodeA, []string{file}, "backup", "-o", file)
	epoch := p.ask(nodeA).epoch()
	for _, h := range []string{nodeA, nodeB, witnessHost} {
		p.must(p.host(h).Die(p.ctx))
	}
	p.must(p.host(nodeB).Start(p.ctx))
	old := p.dataDir(nodeB)
	p.must(os.Rename(old, old+".broken"))
	args := append([]string{"restore", "--name", nodeB, "--data", old}, advertise(nodeB)...)
	p.refused(nodeB, 2, "--yes", append(args, file)...)
	p.prints(nodeB, []string{"made anew"}, append(args, "--yes", file)...)
	p.must(p.startDaemon(p.ctx, nodeB))
	p.until("the restored state", 10*time.Second, func() bool { return p.ask(nodeB).epoch() > epoch })
	p.check(p.ask(nodeB).active() == "", "a restored service runs although nobody has said that its old active is off")
	p.prints(nodeB, []string{"active on " + nodeB}, "service", "start", serviceName, "--yes")
	p.servedBy(nodeB, p.begin, generous)
	p.check(p.ask(nodeB).epoch() > epoch+1<<32-1, "the epoch was %d and is %d", epoch, p.ask(nodeB).epoch())
	// An old member that comes back has no part in it: it belongs to another cluster.
	p.must(p.revive(p.ctx, nodeA))
	p.wait(2 * time.Second)
	p.check(p.ask(nodeA).active() == "", "the old member serves")
	p.check(len(p.ask(nodeB).Members) == 1, "the old member has part in the restored cluster")
}
