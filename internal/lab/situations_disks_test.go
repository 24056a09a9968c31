package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hanode/hanode/internal/lab/probe"
	"github.com/hanode/hanode/internal/lab/world"
)

// disks are the rows h and j: the disk of a Raft log hangs, or is full.
func disks() []situation {
	return []situation{
		{name: "h: the disk of the witness, which leads, hangs for a while", play: func(p *play) {
			p.lead(witnessHost)
			p.hang(witnessHost)
			p.until("another leader", 10*time.Second, func() bool { l := p.ask(p.active).Cluster.Leader; return l != "" && l != witnessHost })
			p.orders(p.active)
			p.undisturbed(p.begin)
			p.check(strings.Contains(p.said(witnessHost), "alarm=store-stalled"), "the witness does not say that its disk hangs")
			p.quick(witnessHost)
			p.until("the witness takes part again", 10*time.Second, func() bool { return strings.Contains(p.said(witnessHost), "alarm=store-recovered") })
		}},
		{name: "h: the disk of the standby, which leads, hangs for a while", play: func(p *play) {
			p.lead(p.standby)
			p.hang(p.standby)
			p.until("another leader", 10*time.Second, func() bool { l := p.ask(p.active).Cluster.Leader; return l != "" && l != p.standby })
			p.alarmed(p.standby, "store-stalled", 5*time.Second)
			p.orders(p.active)
			p.undisturbed(p.begin)
			p.quick(p.standby)
			p.until("no alarm", 10*time.Second, func() bool { return p.ask(p.standby).alarm("store-stalled") == "" })
		}},
		{name: "h: the disk of the active, which leads, hangs for good", moves: true, play: func(p *play) {
			p.lead(p.active)
			p.hang(p.active)
			p.until("another leader", 10*time.Second, func() bool { l := p.ask(p.standby).Cluster.Leader; return l != "" && l != p.active })
			p.alarmed(p.active, "store-stalled", 5*time.Second)
			p.undisturbed(p.begin) // the lease needs no disk
			p.servedBy(p.standby, p.begin, 20*time.Second)
			f := p.view(p.begin, probe.Now())
			p.Logf("handed over, with a gap of %v", f.Gap)
			p.check(f.Gap <= 500*time.Millisecond, "the gap of the handing over was %v", f.Gap)
			ctx, cancel := context.WithTimeout(p.ctx, 20*time.Second)
			defer cancel()
			_, err := p.host(p.active).Wait(ctx, p.daemons[p.active])
			p.must(err) // the daemon has ended
			p.Logf("the daemon has ended %v after its disk began to hang", probe.Now().Sub(p.begin))
			p.quick(p.active)
		}},
		{name: "j: the disk of the standby's Raft log is full", play: full},
	}
}

// hang lets every write to a host's Raft log take longer than the log waits.
func (p *play) hang(host string) {
	p.Helper()
	p.must(os.WriteFile(p.slowDisk(host), []byte("1s"), 0o644))
	p.begin = probe.Now()
}

func (p *play) quick(host string) {
	p.Helper()
	p.must(os.Remove(p.slowDisk(host)))
}

// sh runs a line of shell on a host.
func (p *play) sh(host, format string, args ...any) {
	p.Helper()
	line := fmt.Sprintf(format, args...)
	res, err := p.host(host).Exec(p.ctx, world.Cmd{Argv: []string{"/bin/sh", "-ec", line}, Env: p.env(host)})
	p.must(err)
	if res.Exit != 0 {
		p.Fatalf("on %s: %s: status %d: %s", host, line, res.Exit, res.Stderr)
	}
}

// full gives the Raft log of the standby a small file system of its own and fills it: first the ballast is given up and nothing else happens; then the
// member stops, and the service does not care; with room again it comes back.
func full(p *play) {
	raft := filepath.Join(p.dataDir(p.standby), "raft")
	aside := filepath.Join(p.host(p.standby).Dir(), "raft-aside")
	p.killDaemon(p.standby)
	p.sh(p.standby, "rm -f %[1]s/ballast; cp -a %[1]s %[2]s; mount -t tmpfs -o size=80m,mode=0700 tmpfs %[1]s; cp -a %[2]s/. %[1]s; rm -r %[2]s", raft, aside)
	p.must(p.startDaemon(p.ctx, p.standby))
	p.must(p.waitProtected(p.ctx, protectedWithin))

	p.sh(p.standby, "dd if=/dev/zero of=%s/fill1 bs=64k 2>/dev/null || true", raft)
	p.until("the alarm store-disk-full", 30*time.Second, func() bool {
		p.orders(p.active)
		return p.ask(p.standby).alarm("store-disk-full") != ""
	})
	p.must(p.waitProtected(p.ctx, protectedWithin))
	p.stillThere(p.begin)

	p.sh(p.standby, "dd if=/dev/zero of=%s/fill2 bs=64k 2>/dev/null || true", raft)
	p.until(p.standby+" has stopped", 30*time.Second, func() bool {
		p.orders(p.active)
		return p.host(p.standby).Signal(p.ctx, p.daemons[p.standby], 0) != nil
	})
	p.check(strings.Contains(p.said(p.standby), "no space left"), "%s does not say why it has stopped", p.standby)
	p.says(p.active, "no-standby", 5*time.Second)
	p.stillThere(p.begin)

	p.sh(p.standby, "rm %s/fill1 %[1]s/fill2", raft)
	p.must(p.startDaemon(p.ctx, p.standby))
	p.must(p.waitProtected(p.ctx, protectedWithin))
	p.stillThere(p.begin)
	p.killDaemon(p.standby)
	p.sh(p.standby, "rm -f %[1]s/ballast; cp -a %[1]s %[2]s; umount %[1]s; rm -r %[1]s; mv %[2]s %[1]s", raft, aside)
	p.must(p.startDaemon(p.ctx, p.standby))
}
