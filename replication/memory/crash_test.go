package memory_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication/memory"
	"github.com/hanode/hanode/replication/memory/region"
)

// Random kills of application, server and node, with real processes and SIGKILL. After each one: no region is torn, no two regions are of different checkpoints, and nothing that
// a checkpoint acknowledged is missing.
var (
	crashSeed  = flag.Uint64("crash.seed", 1, "seed of the random kills")
	crashKills = flag.Int("crash.kills", 200, "number of random kills")
	crashTime  = flag.Duration("crash.time", 60*time.Second, "after this time no more kills are begun; 0: no bound")
)

// child is a process of the test: this binary, in another role.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser

	mu    sync.Mutex
	lines []string
	ended bool
}

func spawn(t *testing.T, what string, args ...string) *child {
	t.Helper()
	c := &child{cmd: exec.Command("/proc/self/exe", "-test.run", "TestCrashChild$", "-test.timeout", "0")}
	c.cmd.Env = append(os.Environ(), "HANODE_CRASH_CHILD="+what+" "+strings.Join(args, " "), "GOMAXPROCS=2")
	c.cmd.Stderr = os.Stderr
	in, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.in = in
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s := bufio.NewScanner(out)
		for s.Scan() {
			c.mu.Lock()
			c.lines = append(c.lines, s.Text())
			c.mu.Unlock()
		}
		c.mu.Lock()
		c.ended = true
		c.mu.Unlock()
	}()
	return c
}

// kill ends the process with SIGKILL and waits until everything that it said was read.
func (c *child) kill(t *testing.T) {
	c.cmd.Process.Kill()
	within(t, "the last words of a killed process", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.ended })
	c.cmd.Wait()
}

// await waits for a line that begins so after the n-th, and returns what follows.
func (c *child) await(t *testing.T, after int, prefix string) string {
	t.Helper()
	found := ""
	within(t, prefix, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, l := range c.lines[min(after, len(c.lines)):] {
			if rest, ok := strings.CutPrefix(l, prefix); ok {
				found = strings.TrimSpace(rest)
				return true
			}
		}
		return false
	})
	return found
}

func (c *child) count() int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.lines) }

func (c *child) tell(format string, args ...any) { fmt.Fprintf(c.in, format+"\n", args...) }

// crashWorld is two nodes and what the log says of them.
type crashWorld struct {
	t      *testing.T
	rng    *rand.Rand
	dirs   [3]string
	server [3]*child
	app    [3]*child
	log    log
	active int
	acked  uint64 // highest that any application was told is held
	checks int
}

func TestNoImageIsTornStaleOrMixedAfterRandomKills(t *testing.T) {
	w := &crashWorld{t: t, rng: rand.New(rand.NewPCG(*crashSeed, 7)), active: 1}
	for i := 1; i <= 2; i++ {
		w.dirs[i] = tmp(t)
		w.startServer(i)
	}
	t.Cleanup(func() {
		for i := 1; i <= 2; i++ {
			for _, c := range []*child{w.app[i], w.server[i]} {
				if c != nil {
					c.cmd.Process.Kill()
					c.cmd.Wait()
				}
			}
		}
	})
	w.lead(1)
	w.bringUp(2)
	w.startApp(1)
	w.startApp(2)
	begun, kills := time.Now(), 0
	for ; kills < *crashKills && (*crashTime == 0 || time.Since(begun) < *crashTime) && !t.Failed(); kills++ {
		w.progress()
		switch w.rng.IntN(5) {
		case 0:
			w.killApp()
		case 1:
			w.killActiveServer()
		case 2, 3:
			w.killActiveNode()
		case 4:
			w.killStandbyServer()
		}
		if t.Failed() {
			t.Fatalf("after kill %d; to see it again: go test ./replication/memory -run RandomKills -crash.seed %d -crash.kills %d -crash.time 0", kills+1, *crashSeed, kills+1)
		}
	}
	t.Logf("%d kills, %d restarts and takeovers looked at, %d checkpoints acknowledged", kills, w.checks, w.acked)
	if kills < 5 {
		t.Errorf("only %d kills within %v", kills, *crashTime)
	}
}

func (w *crashWorld) startServer(i int) {
	w.server[i] = spawn(w.t, "server", strconv.Itoa(i), w.dirs[i])
	w.server[i].await(w.t, 0, "port")
}

func (w *crashWorld) startApp(i int) {
	w.app[i] = spawn(w.t, "app", filepath.Join(w.dirs[i], "memory.sock"))
	if i == w.active {
		w.look(i, 0)
	} else {
		w.app[i].await(w.t, 0, "open")
	}
}

// look checks with what an application began to be active.
func (w *crashWorld) look(i, after int) {
	n, _ := strconv.ParseUint(w.app[i].await(w.t, after, "start"), 10, 64)
	w.checks++
	if n < w.acked {
		w.t.Errorf("node %d begins with %d, and %d was acknowledged", i, n, w.acked)
	}
}

// heard notes what an application said.
func (w *crashWorld) heard(i int) {
	c := w.app[i]
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lines {
		if n, ok := strings.CutPrefix(l, "acked "); ok {
			v, _ := strconv.ParseUint(n, 10, 64)
			w.acked = max(w.acked, v)
		}
		if strings.HasPrefix(l, "TORN") {
			w.t.Errorf("node %d: %s", i, l)
		}
	}
}

// progress waits until a few more checkpoints were acknowledged.
func (w *crashWorld) progress() {
	from := w.app[w.active].count()
	w.app[w.active].await(w.t, from+w.rng.IntN(8), "acked")
	w.heard(1)
	w.heard(2)
}

func (w *crashWorld) facts() {
	for i := 1; i <= 2; i++ {
		if w.server[i] != nil {
			w.server[i].tell("facts %d %d %d %d", w.log.epoch, w.log.gen, w.log.holder, w.log.inSync)
		}
	}
}

func (w *crashWorld) lead(i int) {
	w.log.epoch++
	w.log.gen++
	w.log.holder, w.log.inSync = cluster.MemberNo(i), cluster.SetOf(cluster.MemberNo(i))
	w.active = i
	w.facts()
	after := w.server[i].count()
	w.server[i].tell("lead %d %d", w.log.epoch, w.log.gen)
	w.server[i].await(w.t, after, fmt.Sprintf("led %d", w.log.epoch))
}

// bringUp connects the standby and waits until it is in sync.
func (w *crashWorld) bringUp(i int) {
	a := w.server[w.active]
	after := a.count()
	a.tell("dial %d %s", i, w.server[i].await(w.t, 0, "port"))
	a.await(w.t, after, fmt.Sprintf("caught %d %d %d", i, w.log.epoch, w.log.gen))
	w.log.inSync = w.log.inSync.With(cluster.MemberNo(i))
	w.facts()
}

func (w *crashWorld) killApp() {
	i := w.active
	w.app[i].kill(w.t)
	w.heard(i)
	w.startApp(i)
}

// killActiveServer: the server of the active dies and is granted the service anew; its application lives and brings its memory, or dies too and finds the images.
func (w *crashWorld) killActiveServer() {
	i := w.active
	both := w.rng.IntN(2) == 0
	if both {
		w.app[i].kill(w.t)
		w.heard(i)
	}
	w.server[i].kill(w.t)
	w.startServer(i)
	w.lead(i)
	w.bringUp(3 - i)
	if both {
		w.startApp(i)
	}
}

// killActiveNode: everything on the active dies, with its memory; the standby takes over in place.
func (w *crashWorld) killActiveNode() {
	i, o := w.active, 3-w.active
	if w.rng.IntN(2) == 0 {
		w.app[i].kill(w.t)
		w.server[i].kill(w.t)
	} else {
		w.server[i].kill(w.t)
		w.app[i].kill(w.t)
	}
	w.heard(i)
	w.server[i] = nil
	if w.rng.IntN(3) > 0 { // the machine: its memory is gone
		os.RemoveAll(filepath.Join(w.dirs[i], "images"))
	}
	after := w.app[o].count()
	w.lead(o)
	w.look(o, after)
	w.startServer(i)
	w.facts()
	w.bringUp(i)
	w.startApp(i)
}

func (w *crashWorld) killStandbyServer() {
	o := 3 - w.active
	w.server[o].kill(w.t)
	w.app[o].kill(w.t)
	w.heard(o)
	w.log.gen++ // Degrade
	w.log.inSync = cluster.SetOf(cluster.MemberNo(w.active))
	w.server[o] = nil
	w.facts()
	w.startServer(o)
	w.facts()
	w.bringUp(o)
	w.startApp(o)
}

// TestCrashChild is a process that gets killed.
func TestCrashChild(t *testing.T) {
	args := strings.Fields(os.Getenv("HANODE_CRASH_CHILD"))
	switch {
	case len(args) == 0:
		t.Skip("runs as a child of the test with random kills")
	case args[0] == "server":
		crashServer(args[1], args[2])
	case args[0] == "app":
		crashApp(args[1])
	}
	os.Exit(0)
}

var crashOut sync.Mutex

func out(format string, args ...any) {
	crashOut.Lock()
	defer crashOut.Unlock()
	fmt.Fprintf(os.Stdout, format+"\n", args...)
}

func crashServer(no, dir string) {
	self, _ := strconv.Atoi(no)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	s, err := memory.NewServer(memory.Config{Cluster: "c", Service: "db", Self: cluster.MemberNo(self), Dir: filepath.Join(dir, "images"), Socket: filepath.Join(dir, "memory.sock"),
		Regions: specs, Events: memory.Events{CaughtUp: func(m cluster.MemberNo, e cluster.Epoch, g cluster.Generation) { out("caught %d %d %d", m, e, g) }}})
	if err != nil {
		panic(err)
	}
	go s.Serve(context.Background())
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.AddConn(cluster.MemberNo(3-self), c)
		}
	}()
	out("port %d", ln.Addr().(*net.TCPAddr).Port)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var a, b, c, d uint64
		w := in.Text()
		switch {
		case strings.HasPrefix(w, "facts"):
			fmt.Sscanf(w, "facts %d %d %d %d", &a, &b, &c, &d)
			s.SetFacts(cluster.Epoch(a), cluster.Generation(b), cluster.MemberNo(c), cluster.MemberSet(d))
		case strings.HasPrefix(w, "lead"):
			fmt.Sscanf(w, "lead %d %d", &a, &b)
			led, err := s.Lead(cluster.Epoch(a), cluster.Generation(b))
			if err != nil || len(led.Left) > 0 {
				panic(fmt.Sprint(led.Left, err))
			}
			out("led %d", a)
		case strings.HasPrefix(w, "dial"):
			fmt.Sscanf(w, "dial %d %d", &a, &b)
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", b))
			if err != nil {
				panic(err)
			}
			s.AddConn(cluster.MemberNo(a), conn)
		}
	}
}

// crashApp counts: the number stands in many blocks of two regions, which are checkpointed together.
func crashApp(sock string) {
	app, err := region.Dial(sock)
	if err != nil {
		panic(err)
	}
	r, err := app.Open("calls", region.Options{Size: 1 << 20})
	if err != nil {
		panic(err)
	}
	q, err := app.Open("more", region.Options{Size: 256 << 10})
	if err != nil {
		panic(err)
	}
	out("open")
	value := func() (n uint64) {
		n = get(r, 0)
		for i := range 16 {
			if a, b := get(r, i*13*4096), get(q, i*3*4096); a != n || b != n {
				out("TORN block %d has %d and %d, the first %d", i, a, b, n)
			}
		}
		return n
	}
	var epoch cluster.Epoch
	for {
		e, err := app.WaitActive(context.Background())
		if err != nil {
			panic(err)
		}
		n := value()
		if epoch == 0 {
			out("start %d", n)
		}
		epoch = e
		for {
			n++
			r.Update(func(b []byte) {
				for i := range 16 {
					binary.LittleEndian.PutUint64(b[i*13*4096:], n)
				}
			})
			q.Update(func(b []byte) {
				for i := range 16 {
					binary.LittleEndian.PutUint64(b[i*3*4096:], n)
				}
			})
			if err := app.Checkpoint(r, q); err != nil {
				break
			}
			out("acked %d", n)
		}
	}
}
