// Package launch starts one program of an operator: born into its cgroup, without the real-time scheduling, locked
// memory and OOM score of the daemon, as its user, with its limits, in its directory.
//
// The way leads through our own binary (the exec step): a process can only take some of these off itself, between fork
// and exec, and a Go program must not run code there. So the daemon starts "hanode exec-child {…} -- argv…", which does
// nothing but that and then becomes the program. It costs some milliseconds at a start and nothing afterwards.
//
// It never restarts anything and never decides when: that is supervise's.
//
// Errors of the step come back over a pipe that closes itself at the exec (close-on-exec), so Start knows the difference
// between "runs" and "could not be run", with the reason.
//
// Callers must call Wait once for every child that Start returned.
package launch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/internal/cgroup"
	"github.com/hanode/hanode/internal/rt"
)

// Subcommand is the hidden subcommand of our binary that is the exec step: cmd/hanode calls Child with the arguments
// after it.
const Subcommand = "exec-child"

// Program is what to start.
type Program struct {
	Self     string   // path of our own binary; "": /proc/self/exe
	Argv     []string // argv[0] is looked for in PATH of Env if it has no slash
	Env      []string // complete: nothing of the daemon's environment is added
	Dir      string   // "": /
	User     string   // name or number; "": as we are
	Group    string   // name or number; "": the user's
	FilesMax int      // RLIMIT_NOFILE; 0: the system's

	Cgroup    *cgroup.Group // may be nil
	Stay      bool          // stay where processes are born: killed with Cgroup, never frozen, started some milliseconds earlier
	MemoryMax int64         // memory.max of Cgroup in bytes; 0: none

	Input  []byte   // what it reads from its stdin; nil: /dev/null
	Stdout *os.File // nil: /dev/null
	Stderr *os.File
	Files  []*os.File // descriptors 3, 4, ...
}

// Running is a program that runs, or was about to.
type Running struct {
	Pid     int
	process *os.Process
	status  *os.File
}

// step is what the exec step is told.
type step struct {
	Dir      string   `json:"dir"`
	Cred     bool     `json:"cred,omitempty"`
	UID      uint32   `json:"uid,omitempty"`
	GID      uint32   `json:"gid,omitempty"`
	Groups   []uint32 `json:"groups,omitempty"`
	FilesMax int      `json:"files,omitempty"`
	Join     int      `json:"join,omitempty"` // descriptor of cgroup.procs; 0: none
	Status   int      `json:"status"`         // descriptor for errors
}

// Start starts p and returns as soon as the exec step runs: within a millisecond, as a rule. Exec says when the program
// itself runs.
func Start(p Program) (*Running, error) {
	if len(p.Argv) == 0 || p.Argv[0] == "" {
		return nil, errors.New("nothing to start: the argument list is empty")
	}
	st := step{Dir: p.Dir, FilesMax: p.FilesMax, Status: 3 + len(p.Files)}
	if st.Dir == "" {
		st.Dir = "/"
	}
	if p.User != "" || p.Group != "" {
		cred, err := lookup(p.User, p.Group)
		if err != nil {
			return nil, err
		}
		if cred != nil {
			st.Cred, st.UID, st.GID, st.Groups = true, cred.UID, cred.GID, cred.Groups
		}
	}
	files := p.Files
	if p.Cgroup != nil && !p.Stay {
		join, err := p.Cgroup.Joining()
		if err != nil {
			return nil, err
		}
		if join != nil {
			defer join.Close()
			st.Join, st.Status = st.Status, st.Status+1
			files = append(files[:len(files):len(files)], join)
		}
	}
	told, err := json.Marshal(st)
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	status, statusW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Argv[0], err)
	}
	defer statusW.Close()
	stdin := null
	if p.Input != nil {
		if stdin, err = inputFile(p.Input); err != nil {
			status.Close()
			return nil, fmt.Errorf("start %s: %w", p.Argv[0], err)
		}
		defer stdin.Close()
	}
	files = append(append([]*os.File{stdin, orNull(p.Stdout, null), orNull(p.Stderr, null)}, files...), statusW)
	self := p.Self
	if self == "" {
		self = "/proc/self/exe"
	}
	attr := &os.ProcAttr{Dir: "/", Env: p.Env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true}}
	if p.Cgroup != nil {
		if err := p.Cgroup.Renew(); err != nil {
			status.Close()
			return nil, err
		}
		if p.MemoryMax > 0 {
			if err := p.Cgroup.LimitMemory(p.MemoryMax); err != nil {
				status.Close()
				return nil, err
			}
		}
		p.Cgroup.Attr(attr.Sys)
		attr.Env = append(attr.Env[:len(attr.Env):len(attr.Env)], p.Cgroup.Env()...)
	}
	process, err := os.StartProcess(self, append([]string{self, Subcommand, string(told), "--"}, p.Argv...), attr)
	runtime.KeepAlive(p.Cgroup)
	if err != nil {
		status.Close()
		return nil, fmt.Errorf("start %s through %s: %w", p.Argv[0], self, err)
	}
	return &Running{Pid: process.Pid, process: process, status: status}, nil
}

// inputFile is a file in memory that holds b: unlike a pipe it needs nobody who writes while the program reads.
func inputFile(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("stdin", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "stdin")
	if _, err = f.Write(b); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func orNull(f, null *os.File) *os.File {
	if f == nil {
		return null
	}
	return f
}

// Exec waits until the program itself runs (nil) or the exec step has said why it cannot, for at most d. A step that
// died without a word is no error here: Wait tells of it. It must be called by one goroutine, once.
func (r *Running) Exec(d time.Duration) error {
	defer r.status.Close()
	r.status.SetReadDeadline(time.Now().Add(d))
	b, err := io.ReadAll(io.LimitReader(r.status, 4096))
	if len(b) > 0 {
		return errors.New(string(bytes.TrimSpace(b)))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the exec step of pid %d did not become the program within %v: the machine is overloaded, or its cgroup is frozen", r.Pid, d)
	}
	return err
}

// Signal sends sig to the program, and never to another process that got its number meanwhile (pidfd).
func (r *Running) Signal(sig syscall.Signal) error { return r.process.Signal(sig) }

// Wait waits for the end of the program. It is told by the kernel (waitid on a pidfd), not by polling.
func (r *Running) Wait() (*os.ProcessState, error) { return r.process.Wait() }

// setgroupsDenied says whether this process is in a user namespace that an ordinary user made, in which nobody's groups can be changed
// (user_namespaces(7)). Its root then keeps the groups that the ordinary user has outside.
func setgroupsDenied() bool {
	b, err := os.ReadFile("/proc/self/setgroups")
	return err == nil && strings.TrimSpace(string(b)) == "deny"
}

// Child is the exec step: args are the arguments after Subcommand. It returns only if the program could not be started;
// the error has then been told to the daemon, and the caller exits with status 127.
func Child(args []string) error {
	runtime.LockOSThread() // scheduling is the thread's, and the thread that calls exec is the one that stays
	if len(args) < 3 || args[1] != "--" {
		return errors.New("exec-child is for the daemon's own use")
	}
	var st step
	if err := json.Unmarshal([]byte(args[0]), &st); err != nil {
		return fmt.Errorf("exec-child is for the daemon's own use: %w", err)
	}
	unix.CloseOnExec(st.Status)
	if st.Join != 0 {
		unix.CloseOnExec(st.Join)
	}
	err := become(st, args[2:])
	msg := []byte(err.Error())
	unix.Write(st.Status, msg[:min(len(msg), 4096)])
	return err
}

func become(st step, argv []string) error {
	if st.Join != 0 {
		if _, err := unix.Write(st.Join, []byte("0")); err != nil {
			return fmt.Errorf("join the service's cgroup: %w", err)
		}
	} // if the service is frozen, we wait here
	if err := rt.Reset(); err != nil {
		return err
	}
	unix.Umask(0o022)
	if st.FilesMax > 0 {
		lim := syscall.Rlimit{Cur: uint64(st.FilesMax), Max: uint64(st.FilesMax)}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
			return fmt.Errorf("files_max = %d: %w (more than the daemon's own limit needs LimitNOFILE in its unit)", st.FilesMax, err)
		}
	}
	if st.Cred {
		groups := make([]int, len(st.Groups))
		for i, g := range st.Groups {
			groups[i] = int(g)
		}
		if err := syscall.Setgroups(groups); err != nil && !(os.Getuid() == int(st.UID) && setgroupsDenied()) {
			return fmt.Errorf("set the groups of user %d: %w", st.UID, err)
		}
		if err := syscall.Setresgid(int(st.GID), int(st.GID), int(st.GID)); err != nil {
			return fmt.Errorf("become group %d: %w", st.GID, err)
		}
		if err := syscall.Setresuid(int(st.UID), int(st.UID), int(st.UID)); err != nil {
			return fmt.Errorf("become user %d: %w", st.UID, err)
		}
	}
	if err := os.Chdir(st.Dir); err != nil {
		return fmt.Errorf("dir: %w", err)
	}
	path, err := LookPath(argv[0], os.Environ())
	if err != nil {
		return err
	}
	if err := syscall.Exec(path, argv, os.Environ()); err != nil {
		return fmt.Errorf("exec %s: %w", path, err)
	}
	return nil
}

// LookPath finds an executable as execvp(3) does, in the PATH of env.
func LookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	dirs := DefaultPath
	for _, v := range env {
		if p, ok := strings.CutPrefix(v, "PATH="); ok {
			dirs = p
		}
	}
	for _, dir := range filepath.SplitList(dirs) {
		if p := filepath.Join(dir, name); dir != "" && executable(p) == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: %w in %s", name, exec.ErrNotFound, dirs)
}

// DefaultPath is where programs are looked for unless their env says otherwise.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s is a directory, not a program", path)
	case info.Mode()&0o111 == 0:
		return fmt.Errorf("%s is not executable: chmod +x it", path)
	}
	return nil
}
