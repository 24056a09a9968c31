package stream

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/replication/stream/replica"
)

var (
	kills     = flag.Int("kills", 20, "how many times TestCrash kills something")
	crashSeed = flag.Uint64("crash-seed", 0, "seed of TestCrash; 0: a new one")
)

// proc is a child and what is known of it.
type crashProc struct {
	no    int
	dir   string
	cmd   *exec.Cmd
	in    *json.Encoder
	addr  string
	lines chan string
	ended chan struct{}
}

// crashWorld is the log, the daemons and the clients of two volume servers that are killed.
type crashWorld struct {
	t     *testing.T
	r     *rand.Rand
	mode  replica.Mode
	mu    sync.Mutex
	moved sync.Cond
	p     [3]*crashProc
	svc   lock.Service
	grp   lock.Group
	grant cluster.Epoch
	led   cluster.Epoch // the last epoch of which a child has said that it leads
	ledNo string        // why it does not
	dirs  [3]string
	dirty [3]bool

	acked, synced, renamed [crashFiles]int64
	removed                map[string]bool
	inEpoch                map[[2]int64]int64 // of each acknowledged record
	acks, resyncs, asides  int
	failed                 []string
}

func (w *crashWorld) fatal(format string, a ...any) {
	w.t.Helper()
	w.t.Fatalf(format, a...)
}

func (w *crashWorld) start(no int) {
	w.t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+w.dirs[no], fmt.Sprintf("%s_NO=%d", childEnv, no), childEnv+"_MODE="+w.mode.String())
	if w.dirty[no] {
		cmd.Env = append(cmd.Env, childEnv+"_DIRTY=1")
		w.dirty[no] = false
		w.resyncs++
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		w.fatal("%v", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.fatal("%v", err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		w.fatal("%v", err)
	}
	p := &crashProc{no: no, cmd: cmd, in: json.NewEncoder(in), ended: make(chan struct{})}
	w.mu.Lock()
	w.p[no] = p
	w.mu.Unlock()
	go w.hear(p, out)
	w.await("node %d listens", func() bool { return p.addr != "" }, no)
	w.mu.Lock()
	w.facts(p)
	w.mu.Unlock()
}

// hear reads what a child says; what it acknowledged before it was killed is in the pipe.
func (w *crashWorld) hear(p *crashProc, out io.Reader) {
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		n := func(i int) int64 { v, _ := strconv.ParseInt(f[i], 10, 64); return v }
		w.mu.Lock()
		switch f[0] {
		case "listening":
			p.addr = f[1]
		case "a":
			w.acks++
			w.acked[n(1)] = max(w.acked[n(1)], n(2))
			w.inEpoch[[2]int64{n(1), n(2)}] = n(3)
		case "s":
			w.synced[n(1)] = max(w.synced[n(1)], n(2))
		case "r":
			w.renamed[n(1)] = max(w.renamed[n(1)], n(2))
		case "u":
			w.removed[f[1]] = true
		case "led":
			if f[2] == "<nil>" {
				w.led = cluster.Epoch(n(1))
			} else {
				w.ledNo = sc.Text()
			}
		case "caughtup":
			if w.svc.AddInSync(&w.grp, lock.InSync{Epoch: cluster.Epoch(n(2)), Gen: cluster.Generation(n(3)), Node: lock.Holder{Node: cluster.MemberNo(n(1)), Inc: 1}}) == lock.Accepted {
				w.spread()
			}
		case "degrade":
			w.degrade(int(n(1)))
		case "dial":
			if o := w.p[n(1)]; o != nil && o.addr != "" {
				p.in.Encode(order{Cmd: "conn", Addr: o.addr})
			}
		case "aside":
			w.asides++
		case "failed", "broken":
			w.failed = append(w.failed, fmt.Sprintf("node %d: %s", p.no, sc.Text()))
		}
		w.moved.Broadcast()
		w.mu.Unlock()
	}
	p.cmd.Wait()
	w.mu.Lock()
	close(p.ended)
	w.moved.Broadcast()
	w.mu.Unlock()
}

func (w *crashWorld) snapshot() replica.Facts {
	f := replica.Facts{Epoch: w.svc.Epoch, Grant: w.grant, Gen: w.svc.Gen, Holder: replica.Run{Member: w.svc.Holder.Node, Inc: w.svc.Holder.Inc}, InSync: w.svc.InSync}
	for i := 1; i <= 2; i++ {
		f.Admitted = append(f.Admitted, replica.Run{Member: cluster.MemberNo(i), Inc: 1})
	}
	return f
}

func (w *crashWorld) facts(p *crashProc) {
	if w.svc.Epoch > 0 {
		p.in.Encode(order{Cmd: "facts", Facts: w.snapshot()})
	}
}

func (w *crashWorld) spread() {
	for _, p := range w.p {
		if p != nil {
			w.facts(p)
		}
	}
}

func (w *crashWorld) degrade(no int) {
	if w.svc.Degrade(lock.Degrade{Epoch: w.svc.Epoch, Gen: w.svc.Gen, Out: cluster.SetOf(cluster.MemberNo(no))}) == lock.Accepted {
		w.spread()
	}
}

func (w *crashWorld) await(what string, ok func() bool, a ...any) {
	w.t.Helper()
	timer := time.AfterFunc(90*time.Second, func() { w.mu.Lock(); w.moved.Broadcast(); w.mu.Unlock() })
	defer timer.Stop()
	until := time.Now().Add(90 * time.Second)
	w.mu.Lock()
	defer w.mu.Unlock()
	for !ok() {
		if len(w.failed) > 0 {
			w.t.Fatalf("%s; while waiting: "+what, append([]any{strings.Join(w.failed, "; ")}, a...)...)
		}
		if time.Now().After(until) {
			w.t.Fatalf("not within 90 s: "+what+"; in sync %v, epoch %d, led %d %s", append(a, w.svc.InSync.List(), w.svc.Epoch, w.led, w.ledNo)...)
		}
		w.moved.Wait()
	}
}

// kill ends processes at one instant.
func (w *crashWorld) kill(nos ...int) {
	w.mu.Lock()
	var dead []*crashProc
	for _, no := range nos {
		if p := w.p[no]; p != nil {
			dead = append(dead, p)
			w.p[no] = nil
			p.cmd.Process.Kill()
		}
	}
	w.mu.Unlock()
	for _, p := range dead {
		<-p.ended
	}
}

// promote grants the service to a node that the log allows, and has it lead. early says that it is killed meanwhile.
func (w *crashWorld) promote(no int, early bool) bool {
	w.mu.Lock()
	promises := []lock.Promise{{Node: 1, Inc: 1}, {Node: 2, Inc: 1}, {Node: 3, Inc: 1}}
	if r := w.svc.Grant(&w.grp, lock.Grant{Epoch: w.svc.Epoch, To: lock.Holder{Node: cluster.MemberNo(no), Inc: 1}, TTL: time.Second, Promises: promises}); r != lock.Accepted {
		w.mu.Unlock()
		w.fatal("no grant to node %d: %v", no, r)
	}
	w.grant = w.svc.Epoch
	w.ledNo = ""
	w.spread()
	e := w.svc.Epoch
	w.p[no].in.Encode(order{Cmd: "lead", Epoch: e})
	w.mu.Unlock()
	if early {
		time.Sleep(time.Duration(w.r.IntN(6000)) * time.Microsecond)
		w.kill(no)
		return false
	}
	w.await("node %d leads epoch %d", func() bool { return w.led == e || w.ledNo != "" }, no, e)
	if w.ledNo != "" {
		w.fatal("node %d: %s", no, w.ledNo)
	}
	w.check(no)
	w.mu.Lock()
	w.p[no].in.Encode(order{Cmd: "write"})
	w.mu.Unlock()
	return true
}

// look reads a copy as an ordinary directory. While it changes, a listing may show a file that is renamed twice, or miss it.
func (w *crashWorld) look(no int) (names, texts map[int]string, temps []string, twice string) {
	names, texts = map[int]string{}, map[int]string{}
	dir := filepath.Join(w.dirs[no], "tree")
	list, err := os.ReadDir(dir)
	if err != nil {
		w.fatal("%v", err)
	}
	for _, e := range list {
		if e.Name()[0] == 't' {
			temps = append(temps, e.Name())
			continue
		}
		f := int(e.Name()[1] - '0')
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			twice = err.Error()
		}
		if names[f] != "" {
			twice = fmt.Sprintf("file %d of node %d has two names, %s and %s", f, no, names[f], e.Name())
		}
		names[f], texts[f] = e.Name(), string(b)
	}
	return names, texts, temps, twice
}

// check: every acknowledged operation is in the copy of the new active, and the copy is a prefix.
func (w *crashWorld) check(no int) {
	w.t.Helper()
	names, texts, temps, twice := w.look(no)
	if twice != "" {
		w.t.Error(twice)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var have [crashFiles]int64
	for f := range crashFiles {
		have[f] = int64(len(texts[f])) / recordSize
		must := w.acked[f]
		if w.mode == replica.SyncOnFsync {
			must = w.synced[f]
		}
		if have[f] <= must {
			w.t.Errorf("node %d: file %d has %d records, and number %d was acknowledged", no, f, have[f], must)
		}
		if len(texts[f])%recordSize != 0 {
			w.t.Errorf("node %d: file %d ends within a record", no, f)
		}
		if w.mode != replica.Sync || names[f] == "" {
			continue
		}
		if n, _ := strconv.ParseInt(names[f][3:], 10, 64); n < w.renamed[f] || have[f] > 0 && n < (have[f]-1)/renameEvery || have[f] < n*renameEvery {
			w.t.Errorf("node %d: file %d is named %s with %d records; %d renames were acknowledged", no, f, names[f], have[f], w.renamed[f])
		}
	}
	for _, name := range temps {
		if w.removed[name] && w.mode == replica.Sync {
			w.t.Errorf("node %d: %s is there, whose removal was acknowledged", no, name)
		}
	}
	for f := range crashFiles {
		for i := int64(0); i < have[f]; i++ {
			rec := strings.Fields(texts[f][i*recordSize : (i+1)*recordSize])
			if len(rec) != 3+crashFiles {
				w.t.Errorf("node %d: record %d of file %d is %q", no, i, f, rec)
				break
			}
			if n, _ := strconv.ParseInt(rec[1], 10, 64); n != i || rec[0] != strconv.Itoa(f) {
				w.t.Errorf("node %d: record %d of file %d says %v", no, i, f, rec[:2])
			}
			e, _ := strconv.ParseInt(rec[2], 10, 64)
			if want, ok := w.inEpoch[[2]int64{int64(f), i}]; ok && e != want && w.mode == replica.Sync {
				w.t.Errorf("node %d: record %d of file %d is of epoch %d, and was acknowledged in epoch %d: the copy went a way of its own", no, i, f, e, want)
			}
			for o := range crashFiles {
				if v, _ := strconv.ParseInt(rec[3+o], 10, 64); v >= have[o] {
					w.t.Errorf("node %d: record %d of file %d came after record %d of file %d, which is not there", no, i, f, v, o)
				}
			}
		}
	}
	if w.mode == replica.SyncOnFsync { // what was taken back is written again
		for f := range crashFiles {
			w.acked[f], w.synced[f] = min(w.acked[f], have[f]-1), min(w.synced[f], have[f]-1)
		}
	}
	if w.t.Failed() {
		w.t.FailNow()
	}
}

func (w *crashWorld) awaitInSync() {
	w.t.Helper()
	w.await("both are in sync", func() bool { return w.svc.InSync == cluster.SetOf(1, 2) })
}

// same waits until both copies are equal; nothing writes.
func (w *crashWorld) same() {
	w.t.Helper()
	show := func(no int) string {
		names, texts, temps, twice := w.look(no)
		sort.Strings(temps)
		return fmt.Sprint(names, texts, temps, twice)
	}
	until := time.Now().Add(30 * time.Second)
	for show(1) != show(2) {
		if time.Now().After(until) {
			w.fatal("the copies differ:\n%.2000s\n%.2000s", show(1), show(2))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestCrash(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: trees keep trusted attributes")
	}
	seed := *crashSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	modes := []replica.Mode{replica.Sync, replica.SyncOnFsync}
	for i, mode := range modes {
		n := *kills / 4
		if mode == replica.Sync {
			n = *kills - n
		}
		t.Run(mode.String(), func(t *testing.T) {
			t.Logf("seed: go test ./replication/stream -run Crash -crash-seed=%d -kills=%d", seed, *kills)
			crash(t, seed+uint64(i), mode, n)
		})
	}
}

func crash(t *testing.T, seed uint64, mode replica.Mode, n int) {
	w := &crashWorld{t: t, removed: map[string]bool{}, inEpoch: map[[2]int64]int64{}, r: rand.New(rand.NewPCG(seed, 3)), mode: mode}
	w.moved.L = &w.mu
	for f := range crashFiles {
		w.acked[f], w.synced[f] = -1, -1
	}
	for no := 1; no <= 3; no++ {
		w.grp.Join(cluster.MemberNo(no), 1, cluster.BootID{1})
	}
	w.grp.SetVoters(cluster.SetOf(1, 2, 3))
	w.svc.Data, w.svc.InSync, w.svc.Eligible = true, cluster.SetOf(1), cluster.SetOf(1, 2)
	for no := 1; no <= 2; no++ {
		w.dirs[no] = filepath.Join(t.TempDir(), "backing")
		w.start(no)
	}
	t.Cleanup(func() { w.kill(1, 2) })
	active := 1
	w.promote(active, false)
	w.awaitInSync()
	killed := map[string]int{}
	for total := 0; total < n; {
		standby := 3 - active
		time.Sleep(time.Duration(w.r.IntN(40_000)) * time.Microsecond) // the random instant
		switch k := w.r.IntN(10); {
		case k < 4:
			killed["active"]++
			total++
			w.kill(active)
			early := w.r.IntN(3) == 0
			if early {
				killed["during promotion"]++
				total++
			}
			if !w.promote(standby, early) {
				w.start(standby)
				w.promote(standby, false)
			}
			w.start(active)
			active = standby
		case k < 6:
			killed["standby"]++
			total++
			w.kill(standby)
			w.mu.Lock()
			w.degrade(standby)
			w.mu.Unlock()
			w.start(standby)
		case k < 8:
			killed["both"]++
			total++
			switch w.r.IntN(3) {
			case 0:
				w.kill(active, standby)
			case 1:
				w.kill(standby, active)
			case 2: // the active goes on for a moment: what it journals then was never acknowledged
				w.kill(standby)
				time.Sleep(time.Duration(w.r.IntN(10_000)) * time.Microsecond)
				w.kill(active)
			}
			w.start(active)
			w.start(standby)
			next := active
			if w.r.IntN(3) > 0 {
				next = standby
			}
			w.promote(next, false)
			active = next
		default:
			killed["during resync"]++
			total++
			w.kill(standby)
			w.mu.Lock()
			w.degrade(standby)
			w.mu.Unlock()
			w.dirty[standby] = true
			w.start(standby)
			time.Sleep(time.Duration(w.r.IntN(30_000)) * time.Microsecond)
			w.mu.Lock()
			in := w.svc.InSync.Has(cluster.MemberNo(standby))
			w.mu.Unlock()
			if w.r.IntN(2) == 0 || in {
				w.kill(standby)
				w.mu.Lock()
				w.degrade(standby)
				w.mu.Unlock()
				w.start(standby)
			} else { // the source dies: the copy that is in a resync must not lead
				w.kill(active)
				w.start(active)
				w.promote(active, false)
			}
		}
		w.awaitInSync()
	}
	// At the end a planned move: nothing is lost, and both are equal.
	w.kill(active)
	w.promote(3-active, false)
	w.kill(3 - active)
	w.start(3 - active)
	w.start(active)
	w.mu.Lock()
	promises := []lock.Promise{{Node: 1, Inc: 1}, {Node: 2, Inc: 1}, {Node: 3, Inc: 1}}
	w.svc.Grant(&w.grp, lock.Grant{Epoch: w.svc.Epoch, To: lock.Holder{Node: cluster.MemberNo(3 - active), Inc: 1}, TTL: time.Second, Promises: promises})
	w.grant = w.svc.Epoch
	w.spread()
	w.p[3-active].in.Encode(order{Cmd: "lead", Epoch: w.svc.Epoch})
	w.mu.Unlock()
	w.awaitInSync()
	w.same()
	t.Logf("killed %v; %d operations acknowledged, %d resyncs, %d times set aside", killed, w.acks, w.resyncs, w.asides)
}
