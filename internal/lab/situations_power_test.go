package lab

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanode/hanode/internal/lab/probe"
)

// powerCuts is row m: all lose power at once.
func powerCuts() []situation {
	return []situation{
		{name: "m: all members lose power and come back", play: func(p *play) {
			before := p.incarnations()
			p.everyMember(func(h string) error { return p.host(h).Die(p.ctx) })
			dark := probe.Now()
			p.wait(500 * time.Millisecond)
			p.unserved(dark, probe.Now())
			p.everyMember(func(h string) error { return p.revive(p.ctx, h) })
			p.servedBy(p.active, dark, 20*time.Second)
			p.check(p.ask(p.active).epoch() > p.epoch, "the epoch is %d and was %d: the lease of before counts still", p.ask(p.active).epoch(), p.epoch)
			for h, n := range p.incarnations() {
				p.check(n > before[h], "%s counts its runs as %d, and before as %d", h, n, before[h])
			}
			p.explained(p.active, "active again")
		}},
		{name: "m: all lose power, and the one that was active stays away", moves: true, play: func(p *play) {
			p.everyMember(func(h string) error { return p.host(h).Die(p.ctx) })
			dark := probe.Now()
			for _, h := range []string{p.standby, witnessHost} {
				p.must(p.revive(p.ctx, h))
			}
			p.servedBy(p.standby, dark, 30*time.Second) // it waits a little for the other
		}},
	}
}

// everyMember does something to all three at the same time: the pids are noted one by one.
func (p *play) everyMember(f func(host string) error) {
	p.Helper()
	if p.host(nodeA).Alive() {
		var wg sync.WaitGroup
		for _, h := range []string{nodeA, nodeB, witnessHost} {
			wg.Go(func() { p.check(f(h) == nil, "%s", h) })
		}
		wg.Wait()
		return
	}
	for _, h := range []string{witnessHost, nodeB, nodeA} {
		p.must(f(h))
	}
}

// incarnations reads how often each member has started.
func (p *play) incarnations() map[string]uint64 {
	p.Helper()
	out := map[string]uint64{}
	for _, h := range []string{nodeA, nodeB, witnessHost} {
		files, _ := filepath.Glob(filepath.Join(p.dataDir(h), "incarnation"))
		more, _ := filepath.Glob(filepath.Join(p.dataDir(h), "*", "incarnation"))
		for _, f := range append(files, more...) {
			b, err := os.ReadFile(f)
			p.must(err)
			n, err := strconv.ParseUint(strings.Fields(string(b))[0], 10, 64)
			p.must(err)
			out[h] = n
		}
	}
	return out
}

// clocks is row k, as far as one kernel can show it: a jump of the wall clock is in internal/member's tests, because setting it would hit the whole machine.
func clocks() []situation {
	const unshare, offset = "/usr/bin/unshare", "1000000"
	s := situation{name: "k: the clock of one node is eleven days ahead of the kernel's", moves: false, play: func(p *play) {
		p.around = func(host string) []string {
			if host != p.standby {
				return nil
			}
			return []string{unshare, "--time", "--boottime", offset, "--monotonic", offset}
		}
		ahead := p.standby
		p.killDaemon(ahead)
		p.must(p.startDaemon(p.ctx, ahead))
		p.must(p.waitProtected(p.ctx, protectedWithin))
		p.stillThere(p.begin)
		p.must(p.switchover(p.ctx, serviceName, p.active, ahead))
		p.must(p.waitProtected(p.ctx, protectedWithin))
		p.now()

		// Its gate must shut at the right time though nobody tells it to.
		p.must(p.signalDaemon(p.ctx, ahead, syscall.SIGSTOP))
		stopped := probe.Now()
		p.takenOver(stopped)
		p.wait(500 * time.Millisecond)
		late := p.answers(pinnedOf(ahead), ahead, stopped.Add(250*time.Millisecond))
		p.check(late == 0, "%s answered %d times after its lease had run out", ahead, late)
		p.goesOn(func() { p.must(p.signalDaemon(p.ctx, ahead, syscall.SIGCONT)) })
		p.around = nil
		p.must(p.waitProtected(p.ctx, protectedWithin))
		p.killDaemon(ahead)
		p.now()
	}}
	if _, err := os.Stat(unshare); err != nil {
		s.skip = "needs unshare(1) of util-linux 2.36 or newer for a time namespace"
	}
	return []situation{s}
}
