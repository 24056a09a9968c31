package lab

import (
	"slices"
	"strings"
	"time"

	"github.com/hanode/hanode/internal/lab/probe"
	"github.com/hanode/hanode/internal/lab/world"
)

// cuts are the rows c, d and g: the network fails between some of the members.
func cuts() []situation {
	return []situation{
		{name: "c: the nodes are cut from each other, the standby leads", play: func(p *play) {
			p.lead(p.standby)
			p.must(p.bed.world.Cut(p.ctx, nodeA, nodeB))
			p.until("the witness leads", 5*time.Second, func() bool { return p.ask(p.active).Cluster.Leader == witnessHost })
			p.orders(p.active)
			p.wait(time.Second)
			p.undisturbed(p.begin)
		}},
		{name: "c: the nodes are cut from each other, the active leads", play: func(p *play) {
			p.lead(p.active)
			p.must(p.bed.world.Cut(p.ctx, nodeA, nodeB))
			p.wait(time.Second)
			p.undisturbed(p.begin)
		}},
		{name: "c: the active is cut from the witness, which leads", play: func(p *play) {
			p.lead(witnessHost)
			p.must(p.bed.world.Cut(p.ctx, p.active, witnessHost))
			p.wait(time.Second)
			p.orders(p.active) // by way of the standby
			p.undisturbed(p.begin)
		}},
		{name: "c: the standby is cut from the witness", play: func(p *play) {
			p.must(p.bed.world.Cut(p.ctx, p.standby, witnessHost))
			p.wait(time.Second)
			p.undisturbed(p.begin)
		}},
		{name: "d: the active is isolated from all", moves: true, play: isolated},
		{name: "d: all cables of the active are pulled", moves: true, play: func(p *play) {
			p.must(p.host(p.active).Unplug(p.ctx))
			p.takenOver(p.begin)
			p.wait(time.Second)
			p.must(p.host(p.active).Plug(p.ctx))
		}},
		{name: "g: what the active sends does not reach the standby", play: func(p *play) { p.oneWay(p.active, p.standby) }},
		{name: "g: what the active sends does not reach the witness", play: func(p *play) { p.oneWay(p.active, witnessHost) }},
		{name: "g: what the standby sends does not reach the active", play: func(p *play) { p.oneWay(p.standby, p.active) }},
		{name: "g: the active is heard by nobody, and hears all", moves: true, play: func(p *play) {
			p.must(p.bed.world.OneWay(p.ctx, p.active, p.standby))
			p.must(p.bed.world.OneWay(p.ctx, p.active, witnessHost))
			p.takenOver(p.begin)
			p.wait(time.Second)
		}},
		{name: "g: the active is heard by all, and hears nobody", moves: true, play: func(p *play) {
			p.must(p.bed.world.OneWay(p.ctx, p.standby, p.active))
			p.must(p.bed.world.OneWay(p.ctx, witnessHost, p.active))
			p.takenOver(p.begin)
			p.wait(time.Second)
		}},
		{name: "g: the first of two links is cut between all members", play: func(p *play) {
			p.must(p.bed.world.Drop(p.ctx, amongMembers(world.Rule{Link: 0})...))
			p.wait(2 * time.Second)
			p.undisturbed(p.begin)
			p.check(p.ask(p.active).protection() == "protected", "with one link of two the service is %s", p.ask(p.active).protection())
		}},
		{name: "g: of all frames among the members 30 % are lost", play: func(p *play) {
			p.must(p.bed.world.Drop(p.ctx, amongMembers(world.Rule{Link: world.AllLinks, Permille: 300})...))
			p.wait(5 * time.Second)
			f := p.view(p.begin, probe.Now())
			p.Logf("%d changes of the active, epoch %d to %d, longest gap %v", f.Switches, p.epoch, f.EpochAfter, f.Gap)
			p.check(f.EpochAfter <= p.epoch+1, "the epoch went from %d to %d in 5 s", p.epoch, f.EpochAfter)
			p.must(p.bed.world.Heal(p.ctx))
			p.now() // it may have moved once
		}},
		{name: "g: an active that flaps is held, and cleared by order", moves: false, play: flapping},
	}
}

// amongMembers makes a rule hold between all members, both ways.
func amongMembers(r world.Rule) []world.Rule {
	var out []world.Rule
	for _, from := range []string{nodeA, nodeB, witnessHost} {
		for _, to := range []string{nodeA, nodeB, witnessHost} {
			if from != to {
				r.From, r.To = from, to
				out = append(out, r)
			}
		}
	}
	return out
}

// orders checks that a member still gets something committed.
func (p *play) orders(host string) {
	p.Helper()
	began := time.Now()
	_, err := p.command(p.ctx, host, "pause", serviceName, "--for", "1m", "--yes", "--timeout", "5s")
	p.must(err)
	_, err = p.command(p.ctx, host, "resume", serviceName, "--yes", "--timeout", "5s")
	p.must(err)
	p.Logf("two orders committed in %v", time.Since(began))
}

func (p *play) oneWay(from, to string) {
	p.Helper()
	p.must(p.bed.world.OneWay(p.ctx, from, to))
	p.wait(time.Second)
	p.undisturbed(p.begin)
}

// isolated looks at the isolated active from all sides: from the client on its network, from one on the members' network, and from itself.
func isolated(p *play) {
	p.probeFrom(p.active)
	p.must(p.host(sideClient).Pin(p.ctx, "eth1", VIP, mac(p.active, 1)))
	p.probeFrom(sideClient)
	own, side := "in-"+p.active, "in-"+sideClient
	p.until("answers within the host and at its other interface", 5*time.Second, func() bool {
		return p.answers(own, p.active, p.begin) > 20 && p.answers(side, p.active, p.begin) > 20
	})
	p.begin = probe.Now()
	p.must(p.bed.world.Isolate(p.ctx, p.active, pinnedOf(p.active), sideClient))
	cut := probe.Now()
	p.takenOver(p.begin)
	p.wait(2 * time.Second)
	const lease = 250 * time.Millisecond
	for _, c := range []string{pinnedOf(p.active), own, side} {
		late := p.answers(c, p.active, cut.Add(lease))
		p.check(late == 0, "%s was answered %d times by %s after its lease had run out", c, late, p.active)
		p.check(p.answers(c, p.active, p.begin) > 0, "%s was not answered after the cut at all: it shows nothing", c)
	}
	back := probe.Now()
	p.must(p.bed.world.Heal(p.ctx))
	p.must(p.waitProtected(p.ctx, protectedWithin))
	p.wait(time.Second)
	for _, c := range []string{client, pinnedOf(p.active), side} {
		p.check(p.answers(c, p.active, back) == 0, "%s was answered by %s again, without a new grant", c, p.active)
	}
	p.check(p.ask(p.active).active() == p.standby, "%s says that %s is active", p.active, p.ask(p.active).active())
}

// flapping isolates whoever is active again and again: after two automatic failovers the service is held, and an operator gets it going.
func flapping(p *play) {
	p.maxFailovers = 2
	p.must(p.apply(p.ctx))
	_, err := p.command(p.ctx, nodeA, "service", "clear", serviceName, "--yes")
	p.must(err)
	first := p.active
	for range 2 {
		at := probe.Now()
		p.must(p.bed.world.Isolate(p.ctx, p.active))
		p.takenOver(at)
		p.must(p.bed.world.Heal(p.ctx))
		p.must(p.waitProtected(p.ctx, protectedWithin))
		p.now()
	}
	p.must(p.bed.world.Isolate(p.ctx, p.active))
	p.until("held", 5*time.Second, func() bool {
		st := p.ask(p.standby)
		return len(st.Services) == 1 && st.Services[0].State == "held"
	})
	at := probe.Now()
	p.wait(time.Second)
	p.unserved(at, probe.Now())
	p.explained(p.standby, "2 automatic failovers", "hanode service clear "+serviceName)
	st := p.ask(p.standby)
	p.check(slices.Contains(st.reasons(), "held") && st.protection() == "down", "held, it is %s %v", st.protection(), st.reasons())
	p.alarmed(p.standby, "held", 4*time.Second)
	_, err = p.command(p.ctx, p.standby, "service", "clear", serviceName, "--yes")
	p.must(err)
	p.servedBy(p.standby, at, 5*time.Second)
	p.check(!strings.Contains(p.said(p.standby), "panic"), "a panic")
	p.must(p.bed.world.Heal(p.ctx))
	p.maxFailovers = 0
	p.must(p.apply(p.ctx))
	p.now()
	p.Logf("the service went from %s to %s", first, p.active)
}
