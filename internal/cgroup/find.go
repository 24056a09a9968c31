package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Options say where the groups of a node shall be.
type Options struct {
	Name      string // of the node: the root group is hanode-<name>
	Parent    string // a cgroup2 directory to use instead of the one we run in; default $HANODE_CGROUP
	Processes bool   // do not use cgroups even where there are some
}

// Open finds or makes the node's root group. It falls back to lists of processes when no cgroup can be made, and says so
// in the Report; an explicit Parent that cannot be used is an error.
func Open(o Options) (*Root, error) {
	if err := checkName("hanode-" + o.Name); err != nil {
		return nil, err
	}
	name := "hanode-" + o.Name
	if o.Parent == "" {
		o.Parent = os.Getenv("HANODE_CGROUP")
	}
	if o.Processes {
		return processes(name, errors.New("ordered by the configuration")), nil
	}
	if o.Parent != "" {
		if err := isCgroup2(o.Parent); err != nil {
			return nil, fmt.Errorf("cgroup %s (HANODE_CGROUP): %w", o.Parent, err)
		}
		r, err := openBelow(o.Parent, name)
		if err != nil {
			return nil, fmt.Errorf("cgroup %s (HANODE_CGROUP): %w", o.Parent, err)
		}
		return r, nil
	}
	own, mount, err := findOwn()
	if err != nil {
		return processes(name, err), nil
	}
	r, err := openBelow(own, name)
	if err != nil {
		if mount != nil {
			mount.Close()
		}
		return processes(name, err), nil
	}
	r.mount = mount
	return r, nil
}

// OpenPath opens the root of an earlier incarnation by what its Path said. It returns nil when nothing of it is left.
func OpenPath(p string) (*Root, error) {
	if !strings.HasPrefix(p, "/") {
		return processes(p, errors.New("as in the previous incarnation")), nil
	}
	if strings.HasPrefix(p, "/proc/") {
		return nil, nil // a mount of that process's own; the same group is found again by Open
	}
	if !strings.HasPrefix(filepath.Base(p), "hanode-") {
		return nil, fmt.Errorf("%s is not a group that we made", p)
	}
	if _, err := os.Stat(p); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err := isCgroup2(p); err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	return &Root{dir: p, mark: filepath.Base(p), report: Report{Mode: "cgroup2", Path: p}}, nil
}

func openBelow(own, name string) (*Root, error) {
	// systemd's DelegateSubgroup=daemon: the unit's own cgroup is one above, and only there controllers can be passed on.
	if filepath.Base(own) == "daemon" && isCgroup2(filepath.Dir(own)) == nil && unix.Access(filepath.Dir(own), unix.W_OK) == nil {
		own = filepath.Dir(own)
	}
	dir := filepath.Join(own, name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make the cgroup %s: %w", dir, err)
	}
	if err := unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK); err != nil {
		return nil, fmt.Errorf("the cgroup %s is not ours to write: %w", dir, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "cgroup.freeze")); err != nil {
		return nil, fmt.Errorf("the cgroup %s cannot be frozen (needs Linux 5.2): %w", dir, err)
	}
	b, _ := os.ReadFile(filepath.Join(own, "cgroup.controllers"))
	rep := Report{Mode: "cgroup2", Path: dir, Controllers: strings.Fields(string(b))}
	if !slices.Contains(rep.Controllers, "memory") {
		rep.Mode = "hybrid"
	}
	r := &Root{dir: dir, mark: name, report: rep}
	if err := r.countKills(); err != nil {
		return nil, err
	}
	return r, nil
}

// maxKills bounds the trials of countKills.
const maxKills = 100

// countKills finds how often our own cgroup was killed (see the package comment), by starting a program in a group that
// is killed, empty, once more after each try that died at birth. It takes some milliseconds, once per start of the
// daemon, and ends at the first try on kernels without the fault.
func (r *Root) countKills() error {
	program, args := "/bin/true", []string{"true"}
	if _, err := os.Stat(program); err != nil {
		program, args = "/bin/sh", []string{"sh", "-c", ":"}
	}
	g, err := r.Group(fmt.Sprintf("trial-%d", os.Getpid()))
	if err != nil {
		return err
	}
	defer g.Remove()
	for ; r.kills < maxKills; r.kills++ {
		attr := &syscall.SysProcAttr{}
		g.Attr(attr)
		p, err := os.StartProcess(program, args, &os.ProcAttr{Sys: attr})
		if err != nil {
			return fmt.Errorf("start a process in the cgroup %s (needs clone3, Linux 5.7): %w", g.Path(), err)
		}
		state, err := p.Wait()
		if err != nil {
			return fmt.Errorf("start a process in the cgroup %s: %w", g.Path(), err)
		}
		if ws, ok := state.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
			return nil
		}
		if err := write(g.born, "cgroup.kill", "1"); err != nil {
			return err
		}
	}
	return fmt.Errorf("processes that are started in the cgroup %s are killed at once: start the daemon from another cgroup", g.Path())
}

func processes(name string, why error) *Root {
	return &Root{mark: name, report: Report{Mode: "processes", Path: name,
		NotCovered: "no cgroup can be used (" + why.Error() + "): a process that clears its environment and leaves its parent is neither frozen nor killed, " +
			"and the guard cannot act without the daemon"}}
}

// findOwn returns the directory of the cgroup that we run in.
func findOwn() (dir string, mount *os.File, err error) {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", nil, fmt.Errorf("read our cgroup: %w", err)
	}
	own := ""
	for line := range strings.Lines(string(self)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			own = p
		}
	}
	if own == "" {
		return "", nil, errors.New("the kernel has no cgroup v2 hierarchy")
	}
	if strings.Contains(own, "/..") {
		return "", nil, fmt.Errorf("our cgroup %s is outside the cgroup namespace", own)
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", nil, fmt.Errorf("read the mounts: %w", err)
	}
	if at, ok := mountedAt(string(info), own); ok && isCgroup2(at) == nil {
		return at, nil, nil
	}
	return ownMount(own)
}

// mountedAt returns where the cgroup own is to be seen, by the text of mountinfo (proc_pid_mountinfo(5)).
func mountedAt(info, own string) (string, bool) {
	for line := range strings.Lines(info) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		f := strings.Fields(before)
		if !ok || len(f) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		root, point := unescape(f[3]), unescape(f[4])
		switch {
		case root == "/":
			return path.Join(point, own), true
		case own == root || strings.HasPrefix(own, root+"/"):
			return path.Join(point, strings.TrimPrefix(own, root)), true
		}
	}
	return "", false
}

// unescape undoes the \040 of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// ownMount makes a mount of cgroup2 that is attached nowhere and seen by this process only: for hosts whose /sys was
// mounted anew, as "ip netns exec" does. Linux 5.2 and newer.
func ownMount(own string) (string, *os.File, error) {
	fsfd, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", nil, fmt.Errorf("no cgroup2 is mounted here, and mounting it was refused: fsopen: %w", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return "", nil, fmt.Errorf("no cgroup2 is mounted here, and mounting it was refused: fsconfig: %w", err)
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return "", nil, fmt.Errorf("no cgroup2 is mounted here, and mounting it was refused: fsmount: %w", err)
	}
	f := os.NewFile(uintptr(mfd), "cgroup2")
	return fmt.Sprintf("/proc/self/fd/%d%s", mfd, path.Clean("/"+own)), f, nil
}

func isCgroup2(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("%s is not a cgroup2 directory", dir)
	}
	return nil
}
