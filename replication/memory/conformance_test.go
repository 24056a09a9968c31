package memory_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/page"
	"github.com/hanode/hanode/replication/memory/region"
)

// The libraries of all languages do the same: one script of cases, run through a small driver program in each.

// driver is a program that speaks to a library: a command a line, "ok VALUE" or "err STATUS TEXT" a line.
type driver struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
	cmd *exec.Cmd
}

func drive(t *testing.T, language string) *driver {
	t.Helper()
	var cmd *exec.Cmd
	switch language {
	case "go":
		cmd = exec.Command("/proc/self/exe", "-test.run", "TestDriver")
		cmd.Env = append(os.Environ(), "HANODE_DRIVER=1")
	case "c":
		gcc, err := exec.LookPath("gcc")
		if err != nil {
			t.Skip("no C compiler (gcc) on this machine")
		}
		bin, err := cDriver(gcc)
		if err != nil {
			t.Fatal(err)
		}
		cmd = exec.Command(bin)
	case "python":
		python, err := exec.LookPath("python3")
		if err != nil {
			t.Skip("no python3 on this machine")
		}
		cmd = exec.Command(python, "-B", "../../contrib/python/driver.py")
	}
	d := &driver{t: t, cmd: cmd}
	cmd.Stderr = os.Stderr
	var err error
	if d.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.out = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return d
}

// cDriver compiles the driver program of the C library, once.
var cDriver = func() func(gcc string) (string, error) {
	var once sync.Once
	var bin string
	var err error
	return func(gcc string) (string, error) {
		once.Do(func() {
			const dir = "../../contrib/c/"
			var tmp string
			if tmp, err = os.MkdirTemp("", "hanode-driver-"); err != nil {
				return
			}
			bin = filepath.Join(tmp, "driver")
			out, e := exec.Command(gcc, "-O2", "-Wall", "-Wextra", "-Werror", "-std=gnu11", "-o", bin, dir+"driver.c", dir+"hanode_memory.c").CombinedOutput()
			if e != nil {
				err = fmt.Errorf("gcc: %w\n%s", e, out)
			}
		})
		return bin, err
	}
}()

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, _ := cDriver("true"); bin != "" {
		os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

func (d *driver) try(format string, args ...any) (value string, status int) {
	d.t.Helper()
	line := fmt.Sprintf(format, args...)
	begun := time.Now()
	defer func() {
		if took := time.Since(begun); took > time.Second {
			d.t.Logf("%s took %v", line, took)
		}
	}()
	if _, err := fmt.Fprintln(d.in, line); err != nil {
		d.t.Fatalf("%s: %v", line, err)
	}
	answer, err := d.out.ReadString('\n')
	if err != nil {
		d.t.Fatalf("%s: %v", line, err)
	}
	word, rest, _ := strings.Cut(strings.TrimSpace(answer), " ")
	if word == "ok" {
		return rest, 0
	}
	n, text, _ := strings.Cut(rest, " ")
	status, _ = strconv.Atoi(n)
	return text, max(status, 1)
}

func (d *driver) do(want, format string, args ...any) {
	d.t.Helper()
	if got, status := d.try(format, args...); status != 0 || want != "*" && got != want {
		d.t.Fatalf("%s: %d %q, want %q", fmt.Sprintf(format, args...), status, got, want)
	}
}

func (d *driver) refused(says, format string, args ...any) {
	d.t.Helper()
	if got, status := d.try(format, args...); status == 0 || !strings.Contains(got, says) {
		d.t.Errorf("%s: %d %q, want an error that says %q", fmt.Sprintf(format, args...), status, got, says)
	}
}

func TestEveryLibraryDoesTheSame(t *testing.T) {
	for _, language := range []string{"go", "c", "python"} {
		for i, tracking := range []string{"auto", "kernel", "declared", "compare"} {
			t.Run(language+"/"+tracking, func(t *testing.T) { conform(t, language, i) })
		}
	}
}

func conform(t *testing.T, language string, tracking int) {
	l, a, b := pair(t)
	act, hot := drive(t, language), drive(t, language)
	act.do("db", "dial %s", a.sock)
	hot.do("db", "dial %s", b.sock)
	if v, status := act.try("open calls %d 1 0 %d", 1<<20, tracking); status != 0 {
		if tracking == 1 && strings.Contains(v, "6.7") {
			t.Skip(v)
		}
		t.Fatal(v)
	}
	act.do("65536", "open more 65536 1 0 %d", tracking)
	hot.do("*", "open calls %d 1 0 %d", 1<<20, tracking)
	act.do("*", "active")
	act.do("1", "mayact")
	hot.do("0", "mayact")
	hot.refused("standby", "checkpoint calls")
	// Content, alone and together.
	for i := range 30 {
		act.do("", "put calls %d %d", i*4096*7+16, i+1)
		act.do("", "put more %d %d", i*8, i+1)
		if i%2 == 0 {
			act.do("", "checkpoint calls more")
		} else {
			act.do("", "checkpoint calls")
		}
	}
	within(t, "the hot standby sees the image", func() bool { v, _ := hot.try("get calls %d", 29*4096*7+16); return v == "30" })
	act.do("", "checkpoint calls") // nothing has changed
	act.do("", "async calls 1000")
	act.do("", "checkpoint calls more")
	// What was written since the checkpoint can be thrown away.
	act.do("", "put calls 0 5")
	act.do("", "restore calls")
	act.do("1019", "get calls 0")
	// Growth.
	act.do("", "grow calls %d", 2<<20)
	act.do("", "put calls %d 77", 2<<20-8)
	act.do("", "checkpoint calls")
	act.refused("spec", "grow calls %d", 1<<30)
	// Bad input.
	act.refused("0 bytes", "open ticks 0 1 0 0")
	act.refused("spec", "open ticks %d 1 0 0", 1<<30)
	act.refused("add memory", "open nosuch 1 1 0 0")
	act.refused("already", "open calls 1 1 0 0")
	other := drive(t, language)
	other.do("db", "dial %s", a.sock)
	other.refused("belongs to process", "open calls 1 1 0 0")
	other.do("*", "open ticks 100 1 0 0")
	other.do("", "release ticks")
	// The daemon's side.
	act.do("", "ready")
	act.do("", "heartbeat")
	act.do("", "fail out-of-luck")
	// Message log.
	for i := range 5 {
		act.do("", "append calls r%d", i)
	}
	// The server ends and comes back; the application brings its memory along.
	a.end(t)
	within(t, "the library notices", func() bool { _, status := act.try("checkpoint calls"); return status == 10 })
	act.do("", "put calls 8 99")
	a2 := start(t, 1, a.dir)
	l.gen++
	l.lead(t, a2, b)
	connect(t, a2, b)
	l.inSyncNow(t, a2, b)
	act.do("", "redial")
	act.do("*", "active")
	act.do("1019", "get calls 0")
	act.do("", "append calls r5")
	act.do("", "checkpoint calls")
	act.do("", "append calls r6")
	act.do("", "append calls r7")
	// Fenced by the deadline, then by the log.
	a2.page.Set(l.epoch, 1, page.Active)
	act.do("0", "mayact")
	act.refused("fenced", "checkpoint calls")
	l.lead(t, b, a2)
	act.refused("fenced", "checkpoint calls")
	within(t, "the application learns that it is fenced", func() bool { v, _ := act.try("role"); return strings.HasPrefix(v, "4 ") })
	act.refused("fenced", "active")
	// The hot one takes over in place.
	hot.do("", "active")
	hot.do("1", "mayact")
	for i := range 30 {
		hot.do(strconv.Itoa(i+1), "get calls %d", i*4096*7+16)
	}
	hot.do("1019", "get calls 0")
	hot.do("99", "get calls 8")
	hot.do("77", "get calls %d", 2<<20-8)
	hot.do("7236,7237,", "replay calls")
	hot.do("65536", "open more 65536 1 0 %d", tracking)
	hot.do("30", "get more %d", 29*8)
	hot.do("", "put more 0 4")
	hot.do("", "checkpoint calls more")
}

// TestDriver is the driver program of the Go library.
func TestDriver(t *testing.T) {
	if os.Getenv("HANODE_DRIVER") == "" {
		t.Skip("runs as a child of the conformance suite")
	}
	in := bufio.NewScanner(os.Stdin)
	d := goDriver{regions: map[string]*region.Region{}}
	for in.Scan() {
		w := append(strings.Fields(in.Text()), "", "", "", "", "")
		if w[0] == "quit" {
			break
		}
		v, err := d.do(w)
		if err != nil {
			status := 1
			if errors.Is(err, region.ErrAway) {
				status = 10
			}
			fmt.Printf("err %d %s\n", status, strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Println("ok", v)
	}
	os.Exit(0)
}

type goDriver struct {
	app     *region.App
	regions map[string]*region.Region
}

func (d *goDriver) do(w []string) (v string, err error) {
	n := make([]int, 6)
	for i := range n {
		if i < len(w) {
			n[i], _ = strconv.Atoi(w[i])
		}
	}
	r := d.regions[w[1]]
	switch w[0] {
	case "dial":
		app, err := region.Dial(w[1])
		if err != nil {
			return "", err
		}
		d.app = app
		return app.Service(), nil
	case "open":
		track := map[int]region.Tracking{0: region.Auto, 1: region.Kernel, 2: region.Declared, 3: region.Compare}[n[5]]
		r, err := d.app.Open(w[1], region.Options{Size: n[2], Layout: uint32(n[3]), Tracking: track})
		if err != nil {
			return "", err
		}
		d.regions[w[1]] = r
		return strconv.Itoa(len(r.Bytes())), nil
	case "put":
		r.Mark(n[2], 8)
		put(r, n[2], uint64(n[3]))
	case "get":
		r.Update(func([]byte) { v = strconv.FormatUint(get(r, n[2]), 10) })
	case "checkpoint":
		if w[2] != "" {
			return "", d.app.Checkpoint(r, d.regions[w[2]])
		}
		return "", r.Checkpoint()
	case "async":
		var handles []*region.Handle
		for i := range 20 {
			r.Mark(0, 8)
			put(r, 0, uint64(n[2]+i))
			h, err := r.Start()
			if err != nil {
				return "", err
			}
			handles = append(handles, h)
		}
		last := uint64(0)
		for _, h := range handles {
			num, err := h.Wait()
			if err != nil || num <= last {
				return "", fmt.Errorf("image %d after %d: %w", num, last, err)
			}
			last = num
		}
	case "append":
		return "", r.Append([]byte(w[2]))
	case "replay":
		err = r.Replay(func(rec []byte) error { v += fmt.Sprintf("%x,", rec); return nil })
	case "grow":
		return "", r.Grow(n[2])
	case "restore":
		return "", r.Restore()
	case "release":
		return "", r.Close()
	case "role":
		role, e := d.app.Role()
		return fmt.Sprintf("%d %d", role, e), nil
	case "active":
		c, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err = d.app.WaitActive(c)
	case "mayact":
		if d.app.MayAct() {
			return "1", nil
		}
		return "0", nil
	case "ready":
		_, e := d.app.Role()
		return "", d.app.Ready(e)
	case "heartbeat":
		return "", d.app.Heartbeat()
	case "fail":
		return "", d.app.Fail(w[1])
	case "redial": // by itself
	default:
		return "", errors.New("unknown command " + w[0])
	}
	return v, err
}
