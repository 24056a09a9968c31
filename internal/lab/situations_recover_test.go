package lab

import (
	"encoding/json"
	"os"
	"time"

	"github.com/hanode/hanode/internal/lab/probe"
)

// recovered is situation e': the active and the witness are lost for good, and an operator makes a new cluster of the standby.
func recovered(p *play) {
	keep, lost := p.standby, p.active
	order := func(off string) []string {
		return []string{"recover", "--keep", keep, "--i-have-verified-off=" + off, "--yes", "--reason", "the rack burnt"}
	}
	p.refused(keep, 3, "there is a quorum", order(lost+",w")...)
	p.must(p.host(witnessHost).Die(p.ctx))
	p.must(p.host(lost).Die(p.ctx))
	dead := probe.Now()
	p.until("the quorum is seen to be lost", 10*time.Second, func() bool { return !p.ask(keep).Cluster.Quorum })
	p.refused(keep, 3, "is lost for only", order(lost+",w")...)
	p.wait(dead.Add(62 * time.Second).Sub(probe.Now()))
	p.unserved(dead.Add(time.Second), probe.Now())

	p.refused(keep, 3, "nobody has said that w is off", order(lost)...)
	p.refused(keep, 2, "is no other member", order(lost+",w,x")...)
	p.refused(keep, 3, "can only keep the node", "recover", "--keep", lost, "--i-have-verified-off=w", "--yes")
	before := p.ask(keep)
	at := probe.Now()
	out, err := p.command(p.ctx, keep, append(order(lost+",w"), "--json")...)
	p.must(err)
	var said struct {
		Next []string `json:"next"`
	}
	p.must(json.Unmarshal(out, &said))
	p.check(len(said.Next) == 3, "it prints %q, want a line for each old member", said.Next)

	// The new cluster is of one member, and serves in an epoch that no part of the old one can reach.
	p.servedBy(keep, at, 20*time.Second)
	var st status
	p.until("a new cluster of one", 10*time.Second, func() bool { st = p.ask(keep); return st.Cluster.Quorum && len(st.Members) == 1 && st.active() == keep })
	p.check(st.epoch() > 1<<32 && st.epoch() > before.epoch(), "the epoch is %d, and was %d", st.epoch(), before.epoch())
	p.check(st.Cluster.Votes.Total == 1, "%d votes", st.Cluster.Votes.Total)

	// An old member that was not off after all is refused, and does not serve, whatever it remembers.
	p.must(p.revive(p.ctx, lost))
	back := probe.Now()
	p.wait(3 * time.Second)
	p.check(p.ask(keep).active() == keep && len(p.ask(keep).Members) == 1, "with an old member back %s says: %s", keep, p.ask(keep).describe())
	p.check(!p.ask(lost).Cluster.Quorum, "the old member says that it has a quorum: %s", p.ask(lost).describe())
	f := p.view(back, probe.Now())
	p.check(f.Dual == 0 && f.Stale == 0 && f.After == keep, "with an old member back: %+v", f)
	p.must(p.host(lost).Die(p.ctx))

	// They join anew, with what they had put aside.
	for _, h := range []struct{ host, role string }{{lost, "node"}, {witnessHost, "witness"}} {
		out, err := p.command(p.ctx, keep, "token", "create", "--role", h.role, "--json")
		p.must(err)
		var any any
		p.must(json.Unmarshal(out, &any))
		p.must(p.host(h.host).Start(p.ctx))
		p.must(os.Rename(p.dataDir(h.host), p.dataDir(h.host)+".before-recover"))
		_, err = p.command(p.ctx, h.host, append([]string{"join", "--token", findText(any, "token"), "--name", h.host, "--data", p.dataDir(h.host)}, advertise(h.host)...)...)
		p.must(err)
		p.must(p.startDaemon(p.ctx, h.host))
	}
	p.must(p.waitProtected(p.ctx, protectedWithin))
	p.until("three votes again", 20*time.Second, func() bool { return p.ask(keep).Cluster.Votes.Total == 3 })
}
