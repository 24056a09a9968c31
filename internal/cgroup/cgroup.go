// Package cgroup holds the processes of each service together, so that all of them can be frozen, thawed and killed at
// once: what a fence needs, and what no list of process ids can do against a process that forks.
//
// It uses cgroup v2 by its files and nothing else (cgroups(7), Documentation/admin-guide/cgroup-v2.rst): pure v2, or the
// unified hierarchy of a hybrid machine, or a mount of its own where /sys was mounted anew ("ip netns exec"). Groups are
// made below the cgroup in which the daemon was started:
//
//	<own>/hanode-<node>/<service>/<process>
//
// It never moves a process (children are born into their group, CLONE_INTO_CGROUP) and never writes to a group that it
// did not make, except to pass a controller down.
//
// Why it is correct: cgroup.kill kills every member, those that are being forked, frozen or in sessions of their own
// included, and a member can only leave with write access to the hierarchy, which is root's. "populated 0" in
// cgroup.events then says that none is left.
//
// A kernel fault shapes this package: since 6.14 (seen on 6.18) each cgroup counts its kills, and a process born by
// CLONE_INTO_CGROUP dies at birth unless the count of its parent's group, not its own, is what its group's count is. So
// a group that was ever killed can get no new members, and a daemon in a group that was once killed can start nobody.
// Therefore Renew makes an empty group anew before each start, and Open finds by trial how often a new group has to be
// killed, empty, to have the daemon's count.
//
// Where no cgroup can be made (user namespaces, no cgroup2 in the kernel), Open returns a Root that works on lists of
// processes, found by a mark in their environment and by their parents. Its Report says what that does not cover.
//
// Callers must start every process of a group through Attr and Env, and call Remove only when the group is empty.
package cgroup

import (
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

	"golang.org/x/sys/unix"
)

// Mark is the environment variable by which a process of a group is known where there are no cgroups.
const Mark = "HANODE_GROUP"

// Report says what the groups of a Root are made of.
type Report struct {
	Mode        string   // "cgroup2", "hybrid" (cgroup2, but the memory controller is on v1), "processes" (no cgroups)
	Path        string   // directory of the root group; in mode "processes" the value of the mark
	Controllers []string // that limits may use
	NotCovered  string   // what a kill or freeze may miss, and why; empty: nothing
}

// Root is the group of one node; everything that the node starts is below it.
type Root struct {
	dir    string // in mode processes: ""
	mark   string
	report Report
	mount  *os.File // a mount of our own, kept open
	kills  int      // how often our own group was killed, see the package comment
}

// Group is a set of processes.
type Group struct {
	root *Root
	dir  string // "" in mode processes
	mark string
	fd   *os.File // the directory, for CLONE_INTO_CGROUP
}

// Report says what was found.
func (r *Root) Report() Report { return r.report }

// Path identifies the root. Keep it over a restart: the next incarnation may be started from another cgroup, and what
// is left of this one has to be found (see OpenPath).
func (r *Root) Path() string { return r.report.Path }

// Self is the root as a group: everything below it.
func (r *Root) Self() (*Group, error) { return r.open(r.dir, r.mark) }

// Group makes (or opens) a group below the root.
func (r *Root) Group(name string) (*Group, error) { return r.make(r.dir, r.mark, name) }

// Close releases descriptors; groups and processes stay.
func (r *Root) Close() error {
	if r.mount != nil {
		return r.mount.Close()
	}
	return nil
}

// Sub makes (or opens) a group within g.
func (g *Group) Sub(name string) (*Group, error) { return g.root.make(g.dir, g.mark, name) }

// Path is the group's directory, or its mark in mode "processes".
func (g *Group) Path() string {
	if g.dir == "" {
		return g.mark
	}
	return g.dir
}

// Cgroups says whether g is a real cgroup.
func (g *Group) Cgroups() bool { return g.dir != "" }

func (r *Root) make(dir, mark, name string) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if r.dir == "" {
		return &Group{root: r, mark: mark + "/" + name}, nil
	}
	dir = filepath.Join(dir, name)
	if err := r.mkdir(dir); err != nil {
		return nil, err
	}
	return r.open(dir, mark+"/"+name)
}

func (r *Root) mkdir(dir string) error {
	switch err := os.Mkdir(dir, 0o755); {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return fmt.Errorf("make the cgroup %s: %w", dir, err)
	}
	for range r.kills {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil {
			return fmt.Errorf("prepare the cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// Renew makes an empty group without groups in it anew, so that processes can be born into it whatever was killed in it
// before; limits are lost. A group that has members stays as it is. It must not be called while a process is being
// started in g.
func (g *Group) Renew() error {
	if g.dir == "" {
		return nil
	}
	for n := 0; ; n++ {
		err := unix.Rmdir(g.dir)
		if errors.Is(err, unix.EBUSY) { // members, groups within, or a process that is not quite gone
			populated, _, stateErr := g.State()
			if stateErr != nil {
				return stateErr
			}
			if populated || n == 20 {
				return nil
			}
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("renew the cgroup %s: %w", g.dir, err)
		}
		break
	}
	if err := g.root.mkdir(g.dir); err != nil {
		return err
	}
	fresh, err := g.root.open(g.dir, g.mark)
	if err != nil {
		return err
	}
	g.Close()
	g.fd = fresh.fd
	return nil
}

func (r *Root) open(dir, mark string) (*Group, error) {
	if dir == "" {
		return &Group{root: r, mark: mark}, nil
	}
	fd, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the cgroup %s: %w", dir, err)
	}
	return &Group{root: r, dir: dir, mark: mark, fd: fd}, nil
}

// checkName keeps names from leaving their directory and from meeting the kernel's files.
func checkName(name string) error {
	bad := func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_.@", c))
	}
	if name == "" || len(name) > 128 || name[0] == '.' || strings.ContainsFunc(name, bad) || strings.HasPrefix(name, "cgroup.") {
		return fmt.Errorf("cgroup name %q: use 1 to 128 letters, digits, and -_.@, not starting with a dot or \"cgroup.\"", name)
	}
	return nil
}

// Attr makes a process that is started with attr a member of g from its first instruction. The group must stay open
// until the process was started.
func (g *Group) Attr(attr *syscall.SysProcAttr) {
	if g.dir != "" {
		attr.UseCgroupFD, attr.CgroupFD = true, int(g.fd.Fd())
	}
}

// Env is what the environment of each process of g must have besides; nothing where there are cgroups.
func (g *Group) Env() []string {
	if g.dir != "" {
		return nil
	}
	return []string{Mark + "=" + g.mark}
}

// Freeze asks the kernel to stop all processes of g; see WaitFrozen. A process in an uninterruptible wait keeps the
// group from becoming frozen.
func (g *Group) Freeze() error {
	if g.dir == "" {
		return g.signal(unix.SIGSTOP)
	}
	return g.write("cgroup.freeze", "1")
}

// Thaw undoes Freeze.
func (g *Group) Thaw() error {
	if g.dir == "" {
		return g.signal(unix.SIGCONT)
	}
	return g.write("cgroup.freeze", "0")
}

// Kill sends SIGKILL to all processes of g and below, frozen ones included. It does not wait for their end: WaitEmpty
// does. Linux before 5.14 has no cgroup.kill; there the processes are frozen, killed one by one and thawed.
func (g *Group) Kill() error {
	if g.dir == "" {
		return g.signal(unix.SIGKILL)
	}
	err := g.write("cgroup.kill", "1")
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Stat(filepath.Join(g.dir, "cgroup.procs")); statErr != nil {
			return nil // the group is gone, and with it everybody in it
		}
		return g.killEach()
	}
	return err
}

func (g *Group) killEach() error {
	if err := g.Freeze(); err != nil {
		return err
	}
	for range 100 {
		pids, err := g.Procs()
		if err != nil || len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(time.Millisecond)
	}
	return g.Thaw()
}

// State says whether g or a group below it has a process that lives, and whether all of them are frozen.
func (g *Group) State() (populated, frozen bool, err error) {
	if g.dir == "" {
		return g.listState()
	}
	b, err := os.ReadFile(filepath.Join(g.dir, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return false, false, nil // removed: nobody can be in it
	}
	if err != nil {
		return false, false, fmt.Errorf("state of the cgroup: %w", err)
	}
	populated, frozen = parseEvents(string(b))
	return populated, frozen, nil
}

func parseEvents(s string) (populated, frozen bool) {
	for line := range strings.Lines(s) {
		switch strings.TrimSpace(line) {
		case "populated 1":
			populated = true
		case "frozen 1":
			frozen = true
		}
	}
	return populated, frozen
}

// WaitEmpty waits until no process of g lives. Its error at the end of ctx names those that still do.
func (g *Group) WaitEmpty(ctx context.Context) error {
	return g.wait(ctx, "end", func(populated, _ bool) bool { return !populated })
}

// WaitFrozen waits until all processes of g are frozen or have ended.
func (g *Group) WaitFrozen(ctx context.Context) error {
	return g.wait(ctx, "freeze", func(populated, frozen bool) bool { return frozen || !populated })
}

// wait polls cgroup.events. The kernel reports changes of that file by POLLPRI, but at most every 10 ms, so short
// time-outs come first.
func (g *Group) wait(ctx context.Context, what string, done func(populated, frozen bool) bool) error {
	var events *os.File
	if g.dir != "" {
		if f, err := os.Open(filepath.Join(g.dir, "cgroup.events")); err == nil {
			events = f
			defer events.Close()
		}
	}
	for slice := time.Millisecond; ; slice = min(2*slice, 16*time.Millisecond) {
		populated, frozen, err := g.State()
		if err != nil {
			return err
		}
		if done(populated, frozen) {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("processes of %s did not %s: %s: %w", g.Path(), what, g.describe(), ctx.Err())
		}
		if events == nil {
			time.Sleep(slice)
			continue
		}
		fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		unix.Poll(fds, int(slice/time.Millisecond))
	}
}

// Procs lists the processes of g and of the groups below it. Processes come and go; use it to tell, not to kill.
func (g *Group) Procs() ([]int, error) {
	if g.dir == "" {
		return g.list()
	}
	var pids []int
	err := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return nil // removed meanwhile, or a threaded group
		}
		for line := range strings.Lines(string(b)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the processes of %s: %w", g.dir, err)
	}
	return pids, nil
}

// describe names up to five living processes with their state, because a kill that does not end is a story about a
// process in state D.
func (g *Group) describe() string {
	pids, err := g.Procs()
	if err != nil {
		return err.Error()
	}
	var out []string
	for i, pid := range pids {
		if i == 5 {
			out = append(out, fmt.Sprintf("and %d more", len(pids)-5))
			break
		}
		name, state := nameOf(pid)
		out = append(out, fmt.Sprintf("%s (pid %d, state %s)", name, pid, state))
	}
	if len(out) == 0 {
		return "none is listed any more"
	}
	return strings.Join(out, ", ")
}

func nameOf(pid int) (name, state string) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "?", "gone"
	}
	s := string(b)
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 0 || end < open || len(s) < end+3 {
		return "?", "?"
	}
	return s[open+1 : end], s[end+2 : end+3]
}

// Has says whether pid is in g or below it.
func (g *Group) Has(pid int) bool {
	if g.dir == "" {
		return g.marked(pid)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			rel := strings.TrimPrefix(g.mark, g.root.mark) // "/service/process"
			tail := filepath.Base(g.root.dir) + rel
			return strings.HasSuffix(path, "/"+tail) || strings.Contains(path, "/"+tail+"/")
		}
	}
	return false
}

// Files opens what the guard needs to act on g when we cannot: cgroup.freeze and cgroup.kill for writing, cgroup.events
// for reading. The caller closes them.
func (g *Group) Files() (freeze, kill, events *os.File, err error) {
	if g.dir == "" {
		return nil, nil, nil, fmt.Errorf("%s is not a cgroup: the guard cannot freeze or kill it", g.mark)
	}
	open := func(name string, flag int) *os.File {
		f, e := os.OpenFile(filepath.Join(g.dir, name), flag, 0)
		err = errors.Join(err, e)
		return f
	}
	freeze, kill, events = open("cgroup.freeze", os.O_WRONLY), open("cgroup.kill", os.O_WRONLY), open("cgroup.events", os.O_RDONLY)
	if err != nil {
		for _, f := range []*os.File{freeze, kill, events} {
			f.Close()
		}
		return nil, nil, nil, fmt.Errorf("open the guard's files (cgroup.kill needs Linux 5.14): %w", err)
	}
	return freeze, kill, events, nil
}

// Remove removes g and the groups below it. They must be empty.
func (g *Group) Remove() error {
	g.Close()
	if g.dir == "" {
		return nil
	}
	return removeTree(g.dir)
}

// RemoveBelow removes the groups within g, which must be empty, and keeps g.
func (g *Group) RemoveBelow() error {
	if g.dir == "" {
		return nil
	}
	entries, err := os.ReadDir(g.dir)
	if err != nil {
		return fmt.Errorf("remove groups: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeTree(filepath.Join(g.dir, e.Name())))
		}
	}
	return err
}

// Close releases the descriptor of g; the group stays.
func (g *Group) Close() error {
	if g.fd != nil {
		return g.fd.Close()
	}
	return nil
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove the cgroup: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	// The kernel may need a moment after the last process has ended.
	for n := 0; ; n++ {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || n == 20 {
			return fmt.Errorf("remove the cgroup %s: %w", dir, err)
		}
		time.Sleep(time.Millisecond)
	}
}

func (g *Group) write(file, value string) error {
	f, err := os.OpenFile(filepath.Join(g.dir, file), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("write %s of a cgroup: %w", file, err)
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("write %q to %s/%s: %w", value, g.dir, file, err)
	}
	return nil
}
