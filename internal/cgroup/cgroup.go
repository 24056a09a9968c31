// Package cgroup holds the processes of each service together, so that all of them can be frozen, thawed and killed at
// once: what a fence needs, and what no list of process ids can do against a process that forks.
//
// It uses cgroup v2 by its files and nothing else (cgroups(7), Documentation/admin-guide/cgroup-v2.rst): pure v2, or the
// unified hierarchy of a hybrid machine, or a mount of its own where /sys was mounted anew ("ip netns exec"). Groups are
// made below the cgroup in which the daemon was started:
//
//	<own>/hanode-<node>/<service>/born/<process>   exec steps, for some milliseconds; killed with the service, never frozen
//	<own>/hanode-<node>/<service>/run/<process>    programs; killed and frozen with the service
//
// It never moves a process (a child is born into its group by CLONE_INTO_CGROUP, and moves itself from born to run) and
// never writes to a group that it did not make, except to pass a controller down.
//
// # Why it is correct
//
// cgroup.kill kills every member, those that are being forked, frozen or in sessions of their own included, and a member
// can only leave with write access to the hierarchy, which is root's. "populated 0" in cgroup.events then says that none
// is left. A process that moves from born to run is under the service's cgroup.kill all the time; a kill of one process
// hits born first and run second, so it cannot slip through between.
//
// Why born is never frozen: a child that is born into a frozen group freezes before its exec, and its parent, a thread of
// the daemon, waits in vfork for that exec, holding the lock of all forks. Seen in the lab: the whole daemon could start
// nothing for as long as the group was frozen. What moves into a frozen group freezes there as well, but alone.
//
// A kernel fault shapes this package too: since about 6.14 (seen on 6.18) each cgroup counts its kills, and a process
// born by CLONE_INTO_CGROUP dies at birth unless the count of its parent's group, not its own, is what its group's count
// is. So a group that was ever killed can get no new-born members, and a daemon in a group that was once killed can start
// nobody. Therefore Renew makes a born group anew before each start, and Open finds by trial how often a new group has to
// be killed, empty, to have the daemon's count.
//
// Where no cgroup can be made (user namespaces, no cgroup2 in the kernel), Open returns a Root that works on lists of
// processes, found by a mark in their environment and by their parents. Its Report says what that does not cover.
//
// Callers must start every process of a group through Renew, Attr and Env, let it join before it runs foreign code, and
// call Remove only when the group is empty.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	mark string
	dirs []string // what is killed, in this order; nil in mode processes
	run  string   // what is frozen
	born string   // where processes are born; "": none are
	fd   *os.File // born, for CLONE_INTO_CGROUP
}

// Report says what was found.
func (r *Root) Report() Report { return r.report }

// Path identifies the root. Keep it over a restart: the next incarnation may be started from another cgroup, and what
// is left of this one has to be found (see OpenPath).
func (r *Root) Path() string { return r.report.Path }

// Self is the root as a group: everything below it.
func (r *Root) Self() (*Group, error) {
	if r.dir == "" {
		return &Group{root: r, mark: r.mark}, nil
	}
	return &Group{root: r, mark: r.mark, dirs: []string{r.dir}, run: r.dir}, nil
}

// Group makes (or opens) the group of a service below the root.
func (r *Root) Group(name string) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	g := &Group{root: r, mark: r.mark + "/" + name}
	if r.dir == "" {
		return g, nil
	}
	dir := filepath.Join(r.dir, name)
	g.dirs, g.run, g.born = []string{dir}, filepath.Join(dir, "run"), filepath.Join(dir, "born")
	return g, g.make(dir, g.run, g.born)
}

// Close releases descriptors; groups and processes stay.
func (r *Root) Close() error {
	if r.mount != nil {
		return r.mount.Close()
	}
	return nil
}

// Sub makes (or opens) the group of a process within the group of a service.
func (g *Group) Sub(name string) (*Group, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	sub := &Group{root: g.root, mark: g.mark + "/" + name}
	if g.dirs == nil {
		return sub, nil
	}
	if g.born == "" {
		return nil, fmt.Errorf("cgroup %s: processes are in groups of services only", g.Path())
	}
	sub.run, sub.born = filepath.Join(g.run, name), filepath.Join(g.born, name)
	sub.dirs = []string{sub.born, sub.run}
	return sub, sub.make(sub.run, sub.born)
}

func (g *Group) make(dirs ...string) error {
	for _, dir := range dirs {
		if err := g.root.mkdir(dir); err != nil {
			return err
		}
	}
	return g.open()
}

func (g *Group) open() error {
	fd, err := os.OpenFile(g.born, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open the cgroup: %w", err)
	}
	g.fd = fd
	return nil
}

// Path is the group's directory, or its mark in mode "processes".
func (g *Group) Path() string {
	switch {
	case g.dirs == nil:
		return g.mark
	case len(g.dirs) == 1:
		return g.dirs[0]
	}
	return g.run
}

// Cgroups says whether g is a real cgroup.
func (g *Group) Cgroups() bool { return g.dirs != nil }

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

// Renew makes the place where processes of g are born anew, so that they survive their birth whatever was killed there
// before. It waits up to renewWait for what is still dying there; an error names what does not. It must not be called
// while a process is being started in g.
func (g *Group) Renew() error {
	if g.born == "" {
		return nil
	}
	for give := time.Now().Add(renewWait); ; time.Sleep(500 * time.Microsecond) {
		err := unix.Rmdir(g.born)
		if err == nil || errors.Is(err, unix.ENOENT) {
			break
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(give) { // busy: somebody in it is not quite gone
			return fmt.Errorf("renew the cgroup %s: %s: %w", g.born, g.describe(), err)
		}
	}
	if err := g.root.mkdir(g.born); err != nil {
		return err
	}
	g.Close()
	return g.open()
}

// renewWait see Renew.
const renewWait = time.Second

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
	if g.born != "" {
		attr.UseCgroupFD, attr.CgroupFD = true, int(g.fd.Fd())
	}
}

// Joining opens the file by which a process that was born into g joins those that are frozen with the service: it writes
// "0" to it, and freezes there if they are frozen. nil where there are no cgroups. The caller closes it.
func (g *Group) Joining() (*os.File, error) {
	if g.born == "" {
		return nil, nil
	}
	f, err := os.OpenFile(filepath.Join(g.run, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("join the cgroup: %w", err)
	}
	return f, nil
}

// Env is what the environment of each process of g must have besides; nothing where there are cgroups.
func (g *Group) Env() []string {
	if g.dirs != nil {
		return nil
	}
	return []string{Mark + "=" + g.mark}
}

// Freeze asks the kernel to stop all programs of g; see WaitFrozen. A process in an uninterruptible wait keeps the group
// from becoming frozen.
func (g *Group) Freeze() error {
	if g.dirs == nil {
		return g.signal(unix.SIGSTOP)
	}
	return write(g.run, "cgroup.freeze", "1")
}

// Thaw undoes Freeze.
func (g *Group) Thaw() error {
	if g.dirs == nil {
		return g.signal(unix.SIGCONT)
	}
	if g.run == g.root.dir {
		return nil // the root itself is never frozen
	}
	return write(g.run, "cgroup.freeze", "0")
}

// Kill sends SIGKILL to all processes of g and below, frozen ones included. It does not wait for their end: WaitEmpty
// does. Linux before 5.14 has no cgroup.kill; there the processes are frozen, killed one by one and thawed.
func (g *Group) Kill() error {
	if g.dirs == nil {
		return g.signal(unix.SIGKILL)
	}
	var errs []error
	for _, dir := range g.dirs {
		err := write(dir, "cgroup.kill", "1")
		if errors.Is(err, fs.ErrNotExist) {
			if _, statErr := os.Stat(filepath.Join(dir, "cgroup.procs")); statErr != nil {
				continue // the group is gone, and with it everybody in it
			}
			return g.killEach()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
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

// State says whether g or a group below it has a process that lives, and whether all of its programs are frozen.
func (g *Group) State() (populated, frozen bool, err error) {
	if g.dirs == nil {
		return g.listState()
	}
	for _, dir := range g.dirs {
		p, _, err := eventsOf(dir)
		if err != nil {
			return false, false, err
		}
		populated = populated || p
	}
	_, frozen, err = eventsOf(g.run)
	return populated, frozen, err
}

func eventsOf(dir string) (populated, frozen bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
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
	if g.dirs != nil {
		if f, err := os.Open(filepath.Join(g.run, "cgroup.events")); err == nil {
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

// Remove removes g and the groups below it. They must be empty.
func (g *Group) Remove() error {
	g.Close()
	var errs []error
	for _, dir := range g.dirs {
		errs = append(errs, removeTree(dir))
	}
	return errors.Join(errs...)
}

// RemoveBelow removes the groups within the root, which must be empty, and keeps the root.
func (g *Group) RemoveBelow() error {
	if g.dirs == nil {
		return nil
	}
	entries, err := os.ReadDir(g.Path())
	if err != nil {
		return fmt.Errorf("remove groups: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeTree(filepath.Join(g.Path(), e.Name())))
		}
	}
	return err
}

// Close releases the descriptor of g; the group stays.
func (g *Group) Close() error {
	if g.fd == nil {
		return nil
	}
	err := g.fd.Close()
	g.fd = nil
	return err
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

func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("write %s of a cgroup: %w", file, err)
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("write %q to %s/%s: %w", value, dir, file, err)
	}
	return nil
}
