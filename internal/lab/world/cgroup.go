package world

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const groupPrefix = "hanode-lab-"

// cgroups is the lab's part of the cgroup v2 tree (freeze and kill need no controller, so a hybrid mount will do) and,
// where the machine has the v1 cpu controller, a group of large weight, because the machine may be shared.
type cgroups struct {
	root   string // "" before newCgroups has succeeded
	weight string // v1 cpu group; "": none
	rt     bool   // weight has a real-time budget, so that daemons may be put there too
}

// newCgroups makes the lab's own groups, below the one of this process, and moves pid, a child of this process, into
// one of them. The error says why there are none.
func newCgroups(pid int) (*cgroups, error) {
	v2, cpu, err := cgroupDirs()
	if err != nil {
		return nil, err
	}
	if v2 == "" {
		return nil, errors.New("no cgroup v2 tree is mounted")
	}
	sweep(v2)
	name := fmt.Sprintf("%s%d-%x", groupPrefix, os.Getpid(), time.Now().UnixNano()&0xffffff)
	g := &cgroups{root: filepath.Join(v2, name)}
	if err := os.Mkdir(g.root, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := g.try(pid); err != nil {
		_ = removeTree(g.root)
		return nil, err
	}
	if cpu != "" {
		sweep(cpu)
		g.makeWeight(filepath.Join(cpu, name))
	}
	return g, nil
}

// try proves that a process of ours may be moved into a group of ours: directories may be made in more places than
// processes be moved to.
func (g *cgroups) try(pid int) error {
	if err := g.adopt("switch", pid); err != nil {
		return err
	}
	_, err := os.Stat(filepath.Join(g.dir("switch"), "cgroup.freeze"))
	return err
}

func (g *cgroups) makeWeight(dir string) {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return
	}
	if err := os.WriteFile(filepath.Join(dir, "cpu.shares"), []byte("100000"), 0); err != nil {
		_ = os.Remove(dir)
		return
	}
	g.weight = dir
	// Without a budget of its own a v1 cpu group refuses SCHED_RR with EPERM, and the daemons want it.
	g.rt = os.WriteFile(filepath.Join(dir, "cpu.rt_runtime_us"), []byte("900000"), 0) == nil
}

// favour gives a host's first process, and so all its processes, the lab's CPU weight.
func (w *World) favour(pid int, client bool) {
	g := w.group
	if g == nil || g.weight == "" || !client && !g.rt {
		return
	}
	if err := os.WriteFile(filepath.Join(g.weight, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		w.note(fmt.Sprintf("no CPU weight for the lab: %v", err))
	}
}

func (g *cgroups) dir(host string) string { return filepath.Join(g.root, host) }

// adopt moves a host's first process into <host>/init. The host's own directory stays free of processes, so that
// whoever runs in the host may make groups beside it, with controllers.
func (g *cgroups) adopt(host string, pid int) error {
	d := filepath.Join(g.dir(host), "init")
	if err := removeTree(g.dir(host)); err != nil {
		return err
	}
	if err := os.MkdirAll(d, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

func (g *cgroups) freeze(ctx context.Context, host string, on bool) error {
	v, want := "0", "frozen 0"
	if on {
		v, want = "1", "frozen 1"
	}
	if err := os.WriteFile(filepath.Join(g.dir(host), "cgroup.freeze"), []byte(v), 0); err != nil {
		return err
	}
	err := until(ctx, 2*time.Second, func() bool {
		b, err := os.ReadFile(filepath.Join(g.dir(host), "cgroup.events"))
		return err != nil || strings.Contains(string(b), want)
	})
	if err != nil {
		return fmt.Errorf("host %s: %q is not reported by its cgroup: %w", host, want, err)
	}
	return nil
}

func (g *cgroups) kill(host string) error {
	return os.WriteFile(filepath.Join(g.dir(host), "cgroup.kill"), []byte("1"), 0)
}

func (g *cgroups) remove() error {
	err := removeTree(g.root)
	if g.weight != "" {
		err = errors.Join(err, removeTree(g.weight))
	}
	return err
}

// removeTree kills what is in a group and removes it with all groups below. Killed processes leave a little later.
func removeTree(dir string) error {
	_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) // v1 groups have no such file
	var dirs []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		err = errors.Join(err, retry(func() error {
			if e := os.Remove(dirs[i]); e != nil && !errors.Is(e, fs.ErrNotExist) {
				return e
			}
			return nil
		}, syscall.EBUSY))
	}
	return err
}

// sweep removes what labs have left that were killed themselves.
func sweep(base string) {
	old, _ := filepath.Glob(filepath.Join(base, groupPrefix+"*"))
	for _, d := range old {
		if Orphaned(filepath.Base(d)) {
			_ = removeTree(d)
		}
	}
}

// Orphaned says that the process whose lab made something named "hanode-lab-<pid>-..." is no more. Within a user
// namespace nobody can know, as pids are others there.
func Orphaned(name string) bool {
	number, _, _ := strings.Cut(strings.TrimPrefix(name, groupPrefix), "-")
	pid, err := strconv.Atoi(number)
	return err == nil && os.Getenv(userMark) == "" && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// cgroupDirs finds this process's own directory in the v2 tree and in the v1 cpu hierarchy; "" where there is none.
func cgroupDirs() (v2, cpu string, err error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	defer mounts.Close()
	var v2Mount, cpuMount string
	for sc := bufio.NewScanner(mounts); sc.Scan(); {
		// proc(5): ID parent major:minor root mount-point options [optional ...] - type source super-options
		pre, post, ok := strings.Cut(sc.Text(), " - ")
		f, g := strings.Fields(pre), strings.Fields(post)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		switch {
		case g[0] == "cgroup2" && v2Mount == "":
			v2Mount = f[4]
		case g[0] == "cgroup" && hasWord(g[2], "cpu"):
			cpuMount = f[4]
		}
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(own)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		switch {
		case f[0] == "0" && v2Mount != "":
			v2 = filepath.Join(v2Mount, f[2])
		case hasWord(f[1], "cpu") && cpuMount != "":
			cpu = filepath.Join(cpuMount, f[2])
		}
	}
	return v2, cpu, nil
}

func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}
