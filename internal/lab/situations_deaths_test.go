package lab

import (
	"strings"
	"syscall"
	"time"

	"github.com/hanode/hanode/internal/lab/probe"
)

// deaths are the rows a, b and i: somebody dies, or stands still.
func deaths() []situation {
	return []situation{
		{name: "a: the active, which does not lead, dies", moves: true, play: func(p *play) {
			p.lead(witnessHost)
			p.must(p.host(p.active).Die(p.ctx))
			p.takenOver(p.begin)
			p.explained(p.standby, p.standby+" took over because "+p.active, "heard by nobody")
			st := p.ask(p.standby)
			p.check(st.protection() == "degraded", "without a standby the service is %s", st.protection())
		}},
		{name: "a': the active dies while the standby leads", moves: true, play: func(p *play) {
			p.lead(p.standby)
			p.must(p.host(p.active).Die(p.ctx))
			p.takenOver(p.begin)
		}},
		{name: "b: the active, which leads, dies", moves: true, play: func(p *play) {
			p.lead(p.active)
			p.must(p.host(p.active).Die(p.ctx))
			p.takenOver(p.begin)
			p.check(strings.Contains(p.said(p.standby), "taking the lead"), "%s did not kick itself into candidacy", p.standby)
			leader := p.ask(p.standby).Cluster.Leader
			p.check(leader != "" && leader != p.active, "the leader is %q", leader)
			p.explained(p.standby, "heard by nobody")
		}},
		{name: "i: the daemon of the active is stopped, and goes on later", moves: true, play: func(p *play) {
			p.must(p.signalDaemon(p.ctx, p.active, syscall.SIGSTOP))
			p.takenOver(p.begin)
			p.goesOn(func() { p.must(p.signalDaemon(p.ctx, p.active, syscall.SIGCONT)) })
		}},
		{name: "i: the witness leads and is stopped", play: func(p *play) {
			p.lead(witnessHost)
			p.must(p.signalDaemon(p.ctx, witnessHost, syscall.SIGSTOP))
			p.until("another leader", 3*time.Second, func() bool { l := p.ask(p.active).Cluster.Leader; return l != "" && l != witnessHost })
			p.wait(time.Second)
			p.undisturbed(p.begin)
			p.must(p.signalDaemon(p.ctx, witnessHost, syscall.SIGCONT))
		}},
		{name: "i: the host of the active, which leads, is frozen, and thaws", moves: true, play: func(p *play) {
			p.lead(p.active)
			p.must(p.host(p.active).Freeze(p.ctx))
			p.takenOver(p.begin)
			p.wait(time.Second)
			p.goesOn(func() { p.must(p.host(p.active).Thaw(p.ctx)) })
		}},
		{name: "i: the daemon of the standby is stopped for a while", play: func(p *play) {
			p.must(p.signalDaemon(p.ctx, p.standby, syscall.SIGSTOP))
			p.says(p.active, "no-standby", 3*time.Second)
			p.wait(time.Second)
			p.must(p.signalDaemon(p.ctx, p.standby, syscall.SIGCONT))
			p.must(p.waitProtected(p.ctx, protectedWithin))
			p.undisturbed(p.begin)
		}},
	}
}

// goesOn lets the old active go on and checks that the first thing it does of its service is to shut it, and that it never answers.
func (p *play) goesOn(how func()) {
	p.Helper()
	before := len(p.said(p.active))
	at := probe.Now()
	how()
	p.until(p.active+" has shut its service", 5*time.Second, func() bool { return strings.Contains(p.said(p.active)[before:], "msg=shut ") })
	p.wait(time.Second)
	text := p.said(p.active)[before:]
	shut, opened := strings.Index(text, "msg=shut "), strings.Index(text, "msg=active ")
	p.check(opened < 0 || shut < opened, "%s opened before it shut:\n%s", p.active, text)
	for _, c := range []string{client, clientOfA, clientOfB} {
		p.check(p.answers(c, p.active, at) == 0, "%s answered %s after it had gone on", p.active, c)
	}
}
