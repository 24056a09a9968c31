package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// result is a line of the report.
type result struct {
	System   string  `json:"system"`
	Workload string  `json:"workload"`
	Unit     string  `json:"unit"`
	Median   float64 `json:"median"`
	Min      float64 `json:"min"`
	Max      float64 `json:"max"`
	Ratio    float64 `json:"ratio_to_local,omitempty"`
	Runs     int     `json:"runs"`
}

func printValues(v []value) error { return json.NewEncoder(os.Stdout).Encode(v) }

// bench is one run: two disks, and the systems on them one after the other.
type bench struct {
	dir    string
	disks  [2]string
	time   time.Duration
	only   []string
	values map[[2]string][]float64
	units  map[string]string
	order  [][2]string
	n      int

	mu   sync.Mutex
	undo []func()
	live map[*proc]bool
}

var allSystems = []string{"local", "loopback", "hanode-sync", "hanode-sync-on-fsync", "hanode-async", "gluster"}

func run(args []string) error {
	fs := flag.NewFlagSet("run", flag.ContinueOnError)
	out := fs.String("out", "volume-bench.json", "where the results go")
	quick := fs.Bool("quick", false, "one round of short runs: under ten minutes")
	systems := fs.String("systems", "", "only these, with commas")
	only := fs.String("workloads", "", "only these, with commas")
	rounds := fs.Int("rounds", 0, "rounds of all systems; 0: 3, quick 1")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root: it mounts file systems and makes network namespaces")
	}
	b := &bench{time: 3 * time.Second, values: map[[2]string][]float64{}, units: map[string]string{}, live: map[*proc]bool{}}
	if *quick {
		b.time = 1500 * time.Millisecond
	}
	if *rounds == 0 {
		if *rounds = 3; *quick {
			*rounds = 1
		}
	}
	list := allSystems
	if *systems != "" {
		list = strings.Split(*systems, ",")
	}
	if *only != "" {
		b.only = strings.Split(*only, ",")
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-stop
		b.tidy()
		fmt.Fprintln(os.Stderr, "volbench: interrupted; its processes, mounts and disks are gone")
		os.Exit(1)
	}()
	err := b.all(list, *rounds)
	b.tidy()
	if werr := b.report(*out); err == nil {
		err = werr
	}
	return err
}

// tidy ends what was started and takes away what was made.
func (b *bench) tidy() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p := range b.live {
		p.cmd.Process.Signal(syscall.SIGTERM)
	}
	for p := range b.live {
		for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline) && p.cmd.Process.Signal(syscall.Signal(0)) == nil; {
			time.Sleep(10 * time.Millisecond)
		}
		p.cmd.Process.Kill()
	}
	for i := len(b.undo) - 1; i >= 0; i-- {
		b.undo[i]()
	}
	b.undo = nil
}

func (b *bench) all(systems []string, rounds int) error {
	if err := b.makeDisks(); err != nil {
		return err
	}
	for round := range rounds {
		if err := b.bounds(); err != nil {
			return fmt.Errorf("bare bounds: %w", err)
		}
		for _, s := range systems {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, rounds, s)
			if err := b.system(s); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
		if b.wants("pgbench") && pgBin() != "" {
			tps, err := pgOwnSync(b.disks[0], b.disks[1], 2*b.time)
			if err != nil {
				return fmt.Errorf("PostgreSQL's own standby: %w", err)
			}
			b.note("postgres-own-sync", value{"pgbench", "tx/s", tps})
		}
	}
	return nil
}

func (b *bench) wants(workload string) bool {
	return b.only == nil || slices.Contains(b.only, workload)
}

func (b *bench) note(system string, v value) {
	k := [2]string{system, v.Workload}
	if _, ok := b.values[k]; !ok {
		b.order = append(b.order, k)
	}
	b.values[k] = append(b.values[k], v.Value)
	b.units[v.Workload] = v.Unit
	fmt.Fprintf(os.Stderr, "  %-22s %-22s %12.1f %s\n", system, v.Workload, v.Value, v.Unit)
}

func (b *bench) later(undo func()) {
	b.mu.Lock()
	b.undo = append(b.undo, undo)
	b.mu.Unlock()
}

// makeDisks makes an ext4 for each node on a loop device whose file is in memory.
func (b *bench) makeDisks() error {
	var err error
	if b.dir, err = os.MkdirTemp("/dev/shm", "volbench-"); err != nil {
		return err
	}
	b.later(func() { os.RemoveAll(b.dir) })
	for i := range b.disks {
		img := filepath.Join(b.dir, fmt.Sprintf("disk%d.img", i))
		b.disks[i] = filepath.Join(b.dir, fmt.Sprintf("disk%d", i))
		if err := os.Mkdir(b.disks[i], 0o755); err != nil {
			return err
		}
		for _, c := range [][]string{{"truncate", "-s", "4G", img}, {"mkfs.ext4", "-q", "-F", img}, {"mount", "-o", "loop", img, b.disks[i]}} {
			if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", c[0], err, out)
			}
		}
		b.later(func() { syscall.Unmount(b.disks[i], syscall.MNT_DETACH) })
	}
	return os.Chmod(b.dir, 0o755)
}

// proc is a process of ours that says "ready".
type proc struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	ended func()
}

// start starts volbench anew, in a network namespace of its own if told so.
func (b *bench) start(ownNet bool, args ...string) (*proc, error) {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Stderr = os.Stderr
	if ownNet {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	}
	p := &proc{cmd: cmd, lines: make(chan string, 1000)}
	var err error
	if p.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.live[p] = true
	b.mu.Unlock()
	p.ended = func() { b.mu.Lock(); delete(b.live, p); b.mu.Unlock() }
	go func() {
		defer close(p.lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			p.lines <- sc.Text()
		}
	}()
	return p, nil
}

// await waits for a line that begins with text.
func (p *proc) await(text string) (string, error) {
	late := time.After(60 * time.Second)
	for {
		select {
		case l, ok := <-p.lines:
			if !ok {
				return "", fmt.Errorf("process %v ended before it said %q", p.cmd.Args[1:], text)
			}
			if strings.HasPrefix(l, text) {
				return l, nil
			}
			fmt.Fprintln(os.Stderr, "  "+l)
		case <-late:
			return "", fmt.Errorf("process %v has not said %q within 60 s", p.cmd.Args[1:], text)
		}
	}
}

func (p *proc) end() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(10*time.Second, func() { p.cmd.Process.Kill() })
	defer timer.Stop()
	for range p.lines {
	}
	p.cmd.Wait()
	p.ended()
}

const (
	addrA = "10.99.0.1"
	addrB = "10.99.0.2"
)

// cable joins the network namespaces of two processes.
func (b *bench) cable(a, c *proc) error {
	attrs := netlink.NewLinkAttrs()
	b.n++
	attrs.Name = fmt.Sprintf("vb%d-%da", os.Getpid()%100000, b.n)
	peer := fmt.Sprintf("vb%d-%db", os.Getpid()%100000, b.n)
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}); err != nil {
		return err
	}
	for name, to := range map[string]struct {
		p    *proc
		name string
	}{attrs.Name: {a, "va"}, peer: {c, "vb"}} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetName(l, fmt.Sprintf("%s%d", to.name, os.Getpid())); err != nil {
			return err
		}
		if err := netlink.LinkSetNsPid(l, to.p.cmd.Process.Pid); err != nil {
			return err
		}
	}
	return nil
}

func ifName(side string) string { return fmt.Sprintf("%s%d", side, os.Getpid()) }

// bounds measures what no replication can be quicker than.
func (b *bench) bounds() error {
	e, err := b.start(true, "echo", "--if", ifName("vb"), "--addr", addrB+"/24", "--file", filepath.Join(b.disks[1], "bound"))
	if err != nil {
		return err
	}
	defer e.end()
	a, err := b.start(true, "ask", "--if", ifName("va"), "--addr", addrA+"/24", "--peer", addrB, "--file", filepath.Join(b.disks[0], "bound"), "--time", b.time.String())
	if err != nil {
		return err
	}
	defer a.end()
	if err := b.cable(a, e); err != nil {
		return err
	}
	l, err := a.await("[")
	if err != nil {
		return err
	}
	var vs []value
	if err := json.Unmarshal([]byte(l), &vs); err != nil {
		return err
	}
	for _, v := range vs {
		b.note("bare", v)
	}
	return nil
}

// system sets one system up, runs the workloads on it, and takes it away.
func (b *bench) system(name string) error {
	b.n++
	mnt := filepath.Join(b.dir, fmt.Sprintf("mnt%d", b.n))
	b.later(func() {
		for _, m := range []string{mnt, mnt + "s"} {
			syscall.Unmount(m, syscall.MNT_DETACH) // of a server that was killed
			mutable(m)
		}
	})
	back := func(i int) string { return filepath.Join(b.disks[i], fmt.Sprintf("back%d", b.n)) }
	defer func() {
		for i := range b.disks {
			os.RemoveAll(back(i))
		}
	}()
	switch name {
	case "local":
		if err := os.MkdirAll(back(0), 0o755); err != nil {
			return err
		}
		return b.workloads(name, back(0))
	case "loopback":
		p, err := b.start(false, "serve", "--backing", back(0), "--mount", mnt)
		if err != nil {
			return err
		}
		defer p.end()
		if _, err := p.await("ready"); err != nil {
			return err
		}
		return b.workloads(name, mnt)
	case "gluster":
		if _, err := exec.LookPath("glusterd"); err != nil {
			fmt.Fprintln(os.Stderr, "  GlusterFS is not installed: left out")
			return nil
		}
		return b.gluster()
	}
	mode, ok := strings.CutPrefix(name, "hanode-")
	if !ok {
		return errors.New("no such system")
	}
	standby, err := b.start(true, "node", "--member", "2", "--mode", mode, "--backing", back(1), "--mount", mnt+"s", "--if", ifName("vb"), "--addr", addrB+"/24")
	if err != nil {
		return err
	}
	defer standby.end()
	active, err := b.start(true, "node", "--member", "1", "--mode", mode, "--backing", back(0), "--mount", mnt, "--if", ifName("va"), "--addr", addrA+"/24", "--peer", addrB)
	if err != nil {
		return err
	}
	defer active.end()
	if err := b.cable(active, standby); err != nil {
		return err
	}
	for _, p := range []*proc{standby, active} {
		if _, err := p.await("ready"); err != nil {
			return err
		}
	}
	if mode != "async" {
		if _, err := active.await("caughtup"); err != nil {
			return err
		}
		for _, p := range []*proc{standby, active} {
			fmt.Fprintln(p.in, "insync")
			if _, err := p.await("insync"); err != nil {
				return err
			}
		}
	}
	return b.workloads(name, mnt)
}

// mutable takes the flag off a mount point that keeps it from being removed.
func mutable(dir string) {
	d, err := os.Open(dir)
	if err != nil {
		return
	}
	defer d.Close()
	if flags, err := unix.IoctlGetUint32(int(d.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
		unix.IoctlSetPointerInt(int(d.Fd()), unix.FS_IOC_SETFLAGS, int(flags&^0x10))
	}
}

// workloads runs each workload in a process of its own.
func (b *bench) workloads(system, dir string) error {
	work := filepath.Join(dir, "w")
	if err := exec.Command("mkdir", "-p", "-m", "755", work).Run(); err != nil {
		return err
	}
	for _, w := range workloads {
		if !b.wants(w.name) || w.name == "pgbench" && pgBin() == "" {
			continue
		}
		cmd := exec.Command("/proc/self/exe", "work", "--name", w.name, "--dir", work, "--time", b.time.String())
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		var vs []value
		if err := json.Unmarshal(out, &vs); err != nil {
			return err
		}
		for _, v := range vs {
			b.note(system, v)
		}
	}
	return nil
}

// report writes medians and ratios.
func (b *bench) report(path string) error {
	var all []result
	for _, k := range b.order {
		v := slices.Sorted(slices.Values(b.values[k]))
		r := result{System: k[0], Workload: k[1], Unit: b.units[k[1]], Median: v[len(v)/2], Min: v[0], Max: v[len(v)-1], Runs: len(v)}
		if l := slices.Sorted(slices.Values(b.values[[2]string{"local", k[1]}])); len(l) > 0 && k[0] != "bare" {
			r.Ratio = r.Median / l[len(l)/2]
		}
		all = append(all, r)
	}
	j, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	for _, r := range all {
		fmt.Printf("%-22s %-22s %12.1f %-5s  ×%.2f\n", r.System, r.Workload, r.Median, r.Unit, r.Ratio)
	}
	return os.WriteFile(path, append(j, '\n'), 0o644)
}
