package cgroup

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// The substitute for cgroups: processes found by their mark and by their ancestors.

// list returns the living processes of g: those that carry its mark, and the descendants of these.
func (g *Group) list() ([]int, error) {
	names, err := procNames()
	if err != nil {
		return nil, err
	}
	parent, member := make(map[int]int), make(map[int]bool)
	for _, pid := range names {
		ppid, state := parentOf(pid)
		if state == "" || state == "Z" || state == "X" {
			continue
		}
		parent[pid] = ppid
		member[pid] = g.marked(pid)
	}
	var out []int
	for pid := range parent {
		for p, depth := pid, 0; p > 1 && depth < 1000; p, depth = parent[p], depth+1 {
			if member[p] {
				out = append(out, pid)
				break
			}
		}
	}
	return out, nil
}

// signal sends sig to all processes of g until a look at /proc shows no new one: a process may fork between the look and
// the signal.
func (g *Group) signal(sig unix.Signal) error {
	seen := make(map[int]bool)
	for range 50 {
		pids, err := g.list()
		if err != nil {
			return err
		}
		fresh := 0
		for _, pid := range pids {
			if seen[pid] {
				continue
			}
			seen[pid] = true
			fresh++
			if err := signalChecked(pid, sig); err != nil && err != unix.ESRCH {
				return fmt.Errorf("send %v to pid %d of %s: %w", sig, pid, g.mark, err)
			}
		}
		if fresh == 0 {
			return nil
		}
	}
	return fmt.Errorf("send %v to %s: its processes fork faster than they can be listed", sig, g.mark)
}

// signalChecked holds the process by a pidfd, so that its number cannot pass to another one between look and signal.
func signalChecked(pid int, sig unix.Signal) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

func (g *Group) listState() (populated, frozen bool, err error) {
	pids, err := g.list()
	if err != nil {
		return false, false, err
	}
	frozen = len(pids) > 0
	for _, pid := range pids {
		// D: in the kernel, with the stop pending: it runs no code of its own before it stops. A shell waits so in vfork
		// for a child that was stopped before its exec.
		if _, state := parentOf(pid); state != "T" && state != "D" && state != "" {
			frozen = false
		}
	}
	return len(pids) > 0, frozen, nil
}

// marked says whether the process carries the mark of g or of a group below it.
func (g *Group) marked(pid int) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	want := []byte(Mark + "=" + g.mark)
	for _, v := range bytes.Split(env, []byte{0}) {
		if rest, ok := bytes.CutPrefix(v, want); ok && (len(rest) == 0 || rest[0] == '/') {
			return true
		}
	}
	return false
}

func procNames() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list the processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list the processes: %w", err)
	}
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// parentOf reads parent and state of a process; an empty state: it is gone.
func parentOf(pid int) (ppid int, state string) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, ""
	}
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return 0, ""
	}
	f := bytes.Fields(b[end+1:])
	if len(f) < 2 {
		return 0, ""
	}
	ppid, _ = strconv.Atoi(string(f[1]))
	return ppid, string(f[0])
}
