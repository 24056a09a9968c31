package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Procs lists the processes of g and of the groups below it. Processes come and go; use it to tell, not to kill.
func (g *Group) Procs() ([]int, error) {
	if g.dirs == nil {
		return g.list()
	}
	var pids []int
	for _, dir := range g.dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
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
			return nil, fmt.Errorf("list the processes of %s: %w", dir, err)
		}
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
	if g.dirs == nil {
		return g.marked(pid)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for _, dir := range g.dirs {
			rel := filepath.Base(g.root.dir) + strings.TrimPrefix(dir, g.root.dir) // "hanode-a/service/run/process"
			if strings.HasSuffix(path, "/"+rel) || strings.Contains(path, "/"+rel+"/") {
				return true
			}
		}
	}
	return false
}

// Handles are what the guard needs to act on the group of a service when we cannot.
type Handles struct {
	Freeze, Kill *os.File // cgroup.freeze and cgroup.kill, for writing
	Life         *os.File // cgroup.events that says populated
	Ice          *os.File // cgroup.events that says frozen
}

// Close closes all of them.
func (h Handles) Close() {
	for _, f := range []*os.File{h.Freeze, h.Kill, h.Life, h.Ice} {
		if f != nil {
			f.Close()
		}
	}
}

// Handles opens them. The caller closes them.
func (g *Group) Handles() (Handles, error) {
	if g.dirs == nil {
		return Handles{}, fmt.Errorf("%s is not a cgroup: the guard cannot freeze or kill it", g.mark)
	}
	if len(g.dirs) != 1 {
		return Handles{}, fmt.Errorf("%s is not the cgroup of a whole service", g.Path())
	}
	var errs []error
	open := func(dir, name string, flag int) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), flag, 0)
		errs = append(errs, err)
		return f
	}
	h := Handles{
		Freeze: open(g.run, "cgroup.freeze", os.O_WRONLY), Kill: open(g.dirs[0], "cgroup.kill", os.O_WRONLY),
		Life: open(g.dirs[0], "cgroup.events", os.O_RDONLY), Ice: open(g.run, "cgroup.events", os.O_RDONLY),
	}
	if err := errors.Join(errs...); err != nil {
		h.Close()
		return Handles{}, fmt.Errorf("open the guard's files (cgroup.kill needs Linux 5.14): %w", err)
	}
	return h, nil
}
