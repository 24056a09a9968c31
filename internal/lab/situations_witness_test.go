package lab

import (
	"encoding/json"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/hanode/hanode/internal/lab/probe"
)

// witnessSituations are the rows e, e' and o: the witness is lost, and comes back as it was or as another one.
func witnessSituations() []situation {
	return []situation{
		{name: "e: the witness dies, then the standby falls silent", play: func(p *play) {
			p.loseWitness()
			p.must(p.bed.world.Cut(p.ctx, nodeA, nodeB))
			p.wait(time.Second)
			p.undisturbed(p.begin)
			p.must(p.bed.world.Heal(p.ctx))
			p.until("a quorum again", 10*time.Second, func() bool { return p.ask(p.active).Cluster.Quorum })
			p.must(p.host(p.standby).Die(p.ctx))
			p.wait(time.Second)
			p.undisturbed(p.begin)
			p.must(p.heal())
			p.must(p.waitProtected(p.ctx, protectedWithin))
			p.stillThere(p.begin)
			p.until("no alarm", 10*time.Second, func() bool { return p.ask(p.active).alarm("witness-lost") == "" })
		}},
		{name: "e: the witness dies, the service is moved by order, then the active dies", moves: true, play: func(p *play) {
			p.loseWitness()
			at := probe.Now()
			p.must(p.switchover(p.ctx, serviceName, p.active, p.standby))
			p.takenOver(at)
			p.active, p.standby = p.standby, p.active
			defer func() { p.active, p.standby = p.standby, p.active }()
			p.until("the new active goes on without the witness, too", 10*time.Second, p.sticky)

			p.must(p.host(p.active).Die(p.ctx))
			dead := probe.Now()
			p.wait(2500 * time.Millisecond)
			p.unserved(dead, probe.Now())
			st := p.ask(p.standby)
			p.check(st.protection() == "down" && !st.Cluster.Quorum, "with the active and the witness dead %s says: %s", p.standby, st.describe())
			p.refused(p.standby, 4, "there is no quorum", "failover", serviceName, "--to", p.standby, "--yes")
			p.must(p.revive(p.ctx, p.active))
			p.servedBy(p.active, dead, 10*time.Second)
			p.check(p.ask(p.active).epoch() > p.epoch+1, "the epoch is %d, and was %d before", p.ask(p.active).epoch(), p.epoch+1)
		}},
		{name: "e': the active and the witness are lost for good, and the standby is made a cluster of its own", own: true, play: recovered},
		{name: "o: the disk of the witness is lost, and a new one takes its place", play: replaced},
	}
}

// loseWitness kills the witness and waits until the active goes on without it.
func (p *play) loseWitness() {
	p.Helper()
	p.must(p.host(witnessHost).Die(p.ctx))
	p.says(p.active, "witness-lost", 3*time.Second)
	p.alarmed(p.active, "witness-lost", 12*time.Second)
	p.until("the decision to go on without the witness", 10*time.Second, p.sticky)
	p.undisturbed(p.begin)
}

// sticky says whether the active goes on without the witness: nobody else may take the service.
func (p *play) sticky() bool {
	st := p.ask(p.active)
	return slices.Contains(st.reasons(), "witness-lost") && st.ifActiveFails() == "DOWN until "+p.active+" returns" && st.standby() == ""
}

// replaced empties the disk of the witness.
func replaced(p *play) {
	w := p.host(witnessHost)
	before := p.identity()
	p.must(w.Die(p.ctx))
	p.must(os.RemoveAll(p.dataDir(witnessHost)))
	p.must(w.Start(p.ctx))
	p.refused(witnessHost, 1, "serves no cluster yet", "run", "--data", p.dataDir(witnessHost))

	// The old name alone gives it nothing.
	token, err := p.token(p.ctx, "witness")
	p.must(err)
	join := func(token string) []string {
		return append([]string{"join", "--token", token, "--name", witnessHost, "--data", p.dataDir(witnessHost)}, advertise(witnessHost)...)
	}
	p.refused(witnessHost, 3, "a member named w exists", join(token)...)
	p.check(p.identity() == before, "the refused witness is a member")

	out, err := p.command(p.ctx, p.active, "member", "replace", witnessHost, "--yes", "--json")
	p.must(err)
	var any any
	p.must(json.Unmarshal(out, &any))
	token = findText(any, "token")
	_, err = p.command(p.ctx, witnessHost, join(token)...)
	p.must(err)
	p.refused(witnessHost, 3, "", join(token)...) // into a directory that is one already
	p.must(p.startDaemon(p.ctx, witnessHost))
	p.must(p.waitProtected(p.ctx, protectedWithin))
	p.stillThere(p.begin)
	after := p.identity()
	p.check(after != "" && after != before, "the witness's id is %q and was %q", after, before)
	p.until("three votes", 20*time.Second, func() bool {
		st := p.ask(p.active)
		return st.Cluster.Votes.Total == 3 && st.Cluster.Votes.Heard == 3
	})

	// It counts: with the standby stopped the active lives on its vote alone.
	p.must(p.signalDaemon(p.ctx, p.standby, syscall.SIGSTOP))
	p.wait(time.Second)
	p.stillThere(p.begin)
}

// identity is the witness's node id as the cluster knows it.
func (p *play) identity() string {
	for _, m := range p.ask(p.active).Members {
		if m.Name == witnessHost {
			return m.NodeID
		}
	}
	return ""
}
