package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/lab/probe"
	"github.com/hanode/hanode/internal/lab/world"
)

// TestSituations lets every situation of the protocol's section 9 that needs no volume happen to one cluster of the real programs, one after the
// other. In each of them, whatever else it asks: two actives for 0 ms, no answer of an epoch that was succeeded, and at the end everything
// protected again. A cluster that one has spoiled is replaced for the next.
func TestSituations(t *testing.T) {
	if world.Privileged(testSelf(t)) != world.Full {
		t.Skip("needs root: hosts in namespaces, real-time scheduling and the eBPF gate")
	}
	if testing.Short() {
		t.Skip("takes two minutes")
	}
	s := &stage{t: t, dir: programs(t)}
	defer s.close()
	for _, x := range situations() {
		t.Run(x.name, func(t *testing.T) { s.play(t, x) })
	}
}

// situation is one row, or one variant of a row.
type situation struct {
	name  string // the row's letter first
	skip  string // why it cannot be shown yet
	moves bool   // the service ends on the other node
	play  func(*play)
	// own says that it may leave a cluster that the next one cannot use.
	own bool
}

func situations() []situation {
	var all []situation
	for _, some := range [][]situation{deaths(), cuts(), witnessSituations(), disks(), clocks(), doors(), powerCuts()} {
		all = append(all, some...)
	}
	return all
}

// programs builds the two programs from this tree; the build's cache makes that a matter of linking.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"hanode", "witness"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=situations", "-o", filepath.Join(dir, name), "../../cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
	return dir
}

// stage is the cluster on which the situations are played.
type stage struct {
	t    *testing.T
	dir  string
	cur  *session
	good bool
}

func (s *stage) close() {
	if s.cur != nil {
		if err := s.cur.close(); err != nil {
			s.t.Errorf("close the lab: %v", err)
		}
	}
}

// sideClient sits on the members' own network and has the service's address pinned to the active's MAC there: it shows whether a host serves through
// an interface that is not the address's own.
const sideClient = "c3"

func (s *stage) open(t *testing.T, ctx context.Context) {
	t.Helper()
	s.close()
	s.cur = &session{cfg: Config{Self: testSelf(t), Profile: "fast"}}
	err := s.cur.openWith(ctx, func(p *product) {
		p.hanode, p.witness, p.slowDisks = filepath.Join(s.dir, "hanode"), filepath.Join(s.dir, "witness"), true
	})
	if err != nil {
		(&play{T: t, ctx: ctx, product: s.cur.prod}).showLogs()
		t.Fatal(err)
	}
	_, err = s.cur.bed.world.Add(ctx, world.Spec{Name: sideClient, Client: true, Nics: []world.Nic{{Link: 1, Prefix: "10.78.0.13/8", MAC: "02:78:00:00:00:13"}}})
	must(t, err)
	s.good = true
}

func (s *stage) play(t *testing.T, x situation) {
	if x.skip != "" {
		t.Skip(x.skip)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Second)
	defer cancel()
	if !s.good {
		s.open(t, ctx)
	}
	s.good = false
	began := time.Now()
	p := &play{T: t, ctx: ctx, product: s.cur.prod, logs: map[string]int64{}}
	defer func() {
		if t.Failed() {
			p.showLogs()
		}
	}()
	p.start()
	t.Logf("ready to begin after %v", time.Since(began).Round(time.Millisecond))
	x.play(p)
	played := time.Now()
	p.finish(x)
	t.Logf("mended and judged in %v", time.Since(played).Round(time.Millisecond))
	s.good = !t.Failed() && !x.own
}

// play is one situation while it happens. Its methods end the test when they fail, but for check.
type play struct {
	*testing.T
	*product
	ctx             context.Context
	active, standby string
	epoch           uint64
	begin           cluster.Instant // just before the first fault
	noise           time.Duration
	logs            map[string]int64 // how long the daemons' logs were at the beginning
	more            []string         // clients beside the three that the bed has
}

func (p *play) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// check complains and goes on.
func (p *play) check(ok bool, format string, args ...any) {
	p.Helper()
	if !ok {
		p.Errorf(format, args...)
	}
}

func (p *play) start() {
	p.Helper()
	p.must(p.waitProtected(p.ctx, protectedWithin))
	for _, h := range []string{nodeA, nodeB, witnessHost} {
		if st, err := os.Stat(p.bed.world.Host(h).Log("daemon")); err == nil {
			p.logs[h] = st.Size()
		}
	}
	p.now()
	p.wait(400 * time.Millisecond)
	p.begin = probe.Now()
}

// now takes note of who is active and in which epoch.
func (p *play) now() {
	p.Helper()
	at := probe.Now()
	p.bed.coll.Forget(at.Add(-3 * time.Second))
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	last, err := p.bed.coll.Await(ctx, client, at, nil)
	p.must(err)
	p.active, p.standby, p.epoch = last.Node, otherNode(last.Node), last.Epoch
}

func (p *play) wait(d time.Duration) {
	p.Helper()
	p.must(sleep(p.ctx, d))
}

// until waits for a condition.
func (p *play) until(what string, within time.Duration, ok func() bool) {
	p.Helper()
	for end := time.Now().Add(within); !ok(); {
		if time.Now().After(end) {
			st, _ := p.status(p.ctx)
			p.Fatalf("within %v: not %s; %s", within, what, st.describe())
		}
		p.wait(20 * time.Millisecond)
	}
}

func (p *play) host(name string) *world.Host { return p.bed.world.Host(name) }

// view judges what all clients saw from an instant on.
func (p *play) view(from, to cluster.Instant) probe.Finding {
	p.Helper()
	p.must(p.bed.settled(p.ctx, max(to, probe.Now())))
	w := probe.Window{Fault: from, End: to}
	since := from.Add(-1200 * time.Millisecond)
	var pinned [][]probe.Record
	for _, c := range append([]string{clientOfA, clientOfB}, p.more...) {
		pinned = append(pinned, p.bed.coll.Since(c, since))
	}
	return probe.Analyse(w, p.bed.coll.Since(client, since), pinned...)
}

// generous is how long a takeover may take on a machine that is busy with other tests.
const generous = 2 * time.Second

// takenOver waits until the other node serves, and checks that it does so in a newer epoch and soon enough.
func (p *play) takenOver(from cluster.Instant) {
	p.Helper()
	p.servedBy(p.standby, from, generous)
	f := p.view(from, probe.Now())
	p.Logf("outage %v, gap %v", f.Outage, f.Gap)
	p.check(f.Moved && f.EpochAfter > p.epoch, "%s did not take over in a newer epoch than %d: %+v", p.standby, p.epoch, f)
}

// servedBy waits until a node answers an attempt that began after an instant.
func (p *play) servedBy(node string, from cluster.Instant, within time.Duration) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, within)
	defer cancel()
	_, err := p.bed.coll.Await(ctx, client, from, func(r probe.Record) bool { return r.Node == node })
	if err != nil {
		st, e := p.status(p.ctx)
		p.Fatalf("%s does not serve within %v: %v; %s %v", node, within, err, st.describe(), e)
	}
}

// still is the longest gap where nothing has to move. A busy machine with few CPUs adds several hundred milliseconds whenever a daemon starts on it; that nothing
// moved is judged by who answers and in which epoch, strictly. The figures of a quiet machine are in docs/benchmarks.md.
const still = time.Second

// undisturbed checks that since an instant the active has served on, in the same epoch, without an interruption.
func (p *play) undisturbed(from cluster.Instant) {
	p.Helper()
	f := p.view(from, probe.Now())
	p.Logf("gap %v, %v after the fault (noise %v); attempts without an answer: %v", f.Gap, f.GapAt, f.Noise, f.Whys)
	p.check(!f.Moved && f.After == p.active && f.Served(), "%s does not serve any more: %+v", p.active, f)
	p.check(f.EpochAfter == p.epoch, "the epoch went from %d to %d though nothing had to change", p.epoch, f.EpochAfter)
	p.check(f.Gap <= max(still, 2*f.Noise), "a gap of %v though nothing had to move (noise %v)", f.Gap, f.Noise)
}

// stillThere is undisturbed where a daemon was started meanwhile: on the few CPUs that all hosts of the lab share, that alone keeps the clients waiting.
func (p *play) stillThere(from cluster.Instant) {
	p.Helper()
	f := p.view(from, probe.Now())
	p.Logf("gap %v, %v after the fault (noise %v); attempts without an answer: %v", f.Gap, f.GapAt, f.Noise, f.Whys)
	p.check(!f.Moved && f.After == p.active && f.Served() && f.Gap < 3*time.Second, "%s does not serve on: %+v", p.active, f)
	p.check(f.EpochAfter == p.epoch, "the epoch went from %d to %d though nothing had to change", p.epoch, f.EpochAfter)
}

// unserved checks that nobody has answered an attempt that began after an instant.
func (p *play) unserved(from, to cluster.Instant) {
	p.Helper()
	p.must(p.bed.settled(p.ctx, max(to, probe.Now())))
	for _, c := range append([]string{client, clientOfA, clientOfB}, p.more...) {
		for _, r := range p.bed.coll.Since(c, from) {
			if r.Start >= from && r.End <= to && r.Why == probe.OK {
				p.Fatalf("%s answered %s %v after the begin of a time in which nobody may, in epoch %d", r.Node, c, r.End.Sub(from), r.Epoch)
			}
		}
	}
}

// ask is the status as one node tells it.
func (p *play) ask(host string) status {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, 5*time.Second)
	defer cancel()
	st, err := p.status(ctx, host)
	p.must(err)
	return st
}

func (s status) reasons() []string     { return s.service(serviceName).Reasons }
func (s status) protection() string    { return s.service(serviceName).Protection }
func (s status) standby() string       { return s.service(serviceName).Standby }
func (s status) ifActiveFails() string { return s.service(serviceName).IfFails }

func (s status) alarm(code string) string {
	for _, a := range s.Alarms {
		if a.Code == code {
			return a.Text
		}
	}
	return ""
}

// says waits until a node tells a reason why the service is not protected.
func (p *play) says(host, reason string, within time.Duration) {
	p.Helper()
	p.until(host+" says "+reason, within, func() bool { return slices.Contains(p.ask(host).reasons(), reason) })
}

// alarmed waits for an alarm on a node.
func (p *play) alarmed(host, code string, within time.Duration) {
	p.Helper()
	p.until("the alarm "+code+" on "+host, within, func() bool { return p.ask(host).alarm(code) != "" })
}

// explained checks the sentence that a node has for the newest decision.
func (p *play) explained(host string, words ...string) {
	p.Helper()
	_, sentence, err := p.explain(p.ctx, host)
	p.must(err)
	p.Logf("%s explains: %s", host, sentence)
	for _, w := range words {
		p.check(strings.Contains(sentence, w), "%s explains %q; %q is missing", host, sentence, w)
	}
}

// lead makes a member the leader of the group.
func (p *play) lead(name string) {
	p.Helper()
	var why error
	defer func() {
		if p.Failed() {
			p.Logf("the order to lead: %v", why)
		}
	}()
	p.until(name+" leads", 15*time.Second, func() bool {
		if p.leader() == name {
			return true
		}
		if _, err := p.command(p.ctx, nodeA, "leader", "--to", name, "--yes", "--timeout", "5s"); err != nil {
			why = err
			p.wait(300 * time.Millisecond) // two kicks in a row are refused
		}
		return p.leader() == name
	})
	p.begin = probe.Now()
}

func (p *play) leader() string { return p.ask(p.askable()[0]).Cluster.Leader }

// said is what a member's daemon has written since the situation began.
func (p *play) said(host string) string {
	f, err := os.Open(p.host(host).Log("daemon"))
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	b := make([]byte, 4<<20)
	n, _ := f.ReadAt(b, p.logs[host]) // a short read is the usual case
	return string(b[:n])
}

func (p *play) showLogs() {
	for _, h := range []string{nodeA, nodeB, witnessHost} {
		text := p.said(h)
		if len(text) > 6000 {
			text = "..." + text[len(text)-6000:]
		}
		p.Logf("the log of %s:\n%s", h, text)
	}
}

// finish mends everything and judges the whole of it.
func (p *play) finish(x situation) {
	p.Helper()
	if x.own {
		return
	}
	p.must(p.heal())
	p.must(p.waitProtected(p.ctx, protectedWithin))
	p.wait(250 * time.Millisecond)
	f := p.view(p.begin, probe.Now())
	p.check(f.Dual == 0, "two nodes answered at the same time for %v, from %v to %v", f.Dual, f.DualFrom, f.DualTo)
	p.check(f.Stale == 0, "%d answers came from an epoch that had been succeeded", f.Stale)
	p.check(f.Served(), "the service does not answer at the end: %+v", f)
	want := p.active
	if x.moves {
		want = p.standby
	}
	p.check(f.After == want, "%s serves at the end, not %s", f.After, want)
	p.check(f.EpochAfter >= p.epoch, "the epoch went back from %d to %d", p.epoch, f.EpochAfter)
}

// heal mends the network, plugs cables in, lets everything run that was stopped, and starts what is dead.
func (p *play) heal() error {
	errs := []error{p.bed.world.Heal(p.ctx)}
	for _, name := range []string{nodeA, nodeB, witnessHost} {
		_ = os.Remove(p.slowDisk(name))
		h := p.host(name)
		if !h.Alive() {
			errs = append(errs, p.revive(p.ctx, name))
			continue
		}
		errs = append(errs, h.Plug(p.ctx), h.Thaw(p.ctx))
		if gone := h.Signal(p.ctx, p.daemons[name], syscall.SIGCONT); gone != nil {
			errs = append(errs, p.startDaemon(p.ctx, name))
		}
	}
	return errors.Join(errs...)
}

// killDaemon ends a daemon at once and waits until it is gone.
func (p *play) killDaemon(host string) {
	p.Helper()
	p.must(p.signalDaemon(p.ctx, host, syscall.SIGKILL))
	_, err := p.host(host).Wait(p.ctx, p.daemons[host])
	p.must(err)
}

// refused runs a command that must end with a status and say something.
func (p *play) refused(host string, status int, words string, args ...string) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, 20*time.Second)
	defer cancel()
	p.refusal(p.command(ctx, host, args...))(status, words)
}

func (p *play) refusal(out []byte, err error) func(int, string) {
	return func(status int, words string) {
		p.Helper()
		var ce *commandError
		switch {
		case err == nil:
			p.Errorf("it was done, and should have been refused with %q: %s", words, out)
		case !errors.As(err, &ce):
			p.Error(err)
		case ce.exit != status || !strings.Contains(strings.Join(strings.Fields(ce.said), " "), words):
			p.Errorf("refused with status %d: %s\nwant status %d and %q", ce.exit, ce.said, status, words)
		default:
			p.Logf("refused: %s", strings.TrimSpace(firstLines(ce.said, 3)))
		}
	}
}

// probeFrom starts one more client, within a member's host or elsewhere.
func (p *play) probeFrom(host string) {
	p.Helper()
	name := "in-" + host
	if !slices.Contains(p.more, name) {
		p.more = append(p.more, name)
	}
	target := fmt.Sprintf("%s:%d", VIP, Port)
	p.must(p.bed.startSelf(p.ctx, host, "probe", probe.Command, "-name", name, "-target", target, "-sink", p.bed.sink, "-every", "10ms"))
}

// answers counts what a client was answered by a node in attempts that began after an instant.
func (p *play) answers(from string, node string, after cluster.Instant) int {
	n := 0
	for _, r := range p.bed.coll.Since(from, after) {
		if r.Start >= after && r.Why == probe.OK && r.Node == node {
			n++
		}
	}
	return n
}
