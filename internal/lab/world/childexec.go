package world

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// Cmd is a command to be run within a host.
type Cmd struct {
	Argv    []string      `json:"argv"` // [0] is a path, not looked up
	Env     []string      `json:"env,omitempty"`
	Dir     string        `json:"dir,omitempty"`
	Log     string        `json:"log,omitempty"`     // file to which a started command's output is appended
	Timeout time.Duration `json:"timeout,omitempty"` // Exec only: then its process group is killed
}

// Result is what an executed command left.
type Result struct {
	Exit     int           `json:"exit"` // 128+signal when it was killed
	Stdout   []byte        `json:"stdout"`
	Stderr   []byte        `json:"stderr"`
	Took     time.Duration `json:"took"`
	TimedOut bool          `json:"timed_out,omitempty"`
}

// maxOutput bounds what is kept of each stream of an executed command.
const maxOutput = 4 << 20

// procs starts and reaps the processes of a host. The host's first process must reap orphans, so nobody here may use
// os/exec, whose Wait would race with the reaper: everything is started by ForkExec and waited for in one place.
type procs struct {
	mu   sync.Mutex // held across a start, so that a child is known before it is reaped
	mine map[int]*child
}

type child struct {
	done   chan struct{}
	status syscall.WaitStatus
}

func newProcs() *procs { return &procs{mine: map[int]*child{}} }

// reap runs for ever.
func (p *procs) reap() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGCHLD)
	for range c {
		for p.reapOne() {
		}
	}
}

func (p *procs) reapOne() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ws syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
	if errors.Is(err, syscall.EINTR) {
		return true
	}
	if pid <= 0 || err != nil {
		return false
	}
	if ch := p.mine[pid]; ch != nil && (ws.Exited() || ws.Signaled()) {
		ch.status = ws
		close(ch.done)
	}
	return true
}

func (p *procs) spawn(c Cmd, stdout, stderr uintptr) (int, *child, error) {
	if len(c.Argv) == 0 {
		return 0, nil, errors.New("no command")
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	env := c.Env
	if env == nil {
		env = os.Environ()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, err := syscall.ForkExec(c.Argv[0], c.Argv, &syscall.ProcAttr{
		Dir: c.Dir, Env: env, Files: []uintptr{null.Fd(), stdout, stderr}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", c.Argv[0], err)
	}
	ch := &child{done: make(chan struct{})}
	p.mine[pid] = ch
	return pid, ch, nil
}

// start runs a command in the background and returns its pid within the host.
func (p *procs) start(c Cmd) (int, error) {
	name := c.Log
	if name == "" {
		name = os.DevNull
	}
	log, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	pid, _, err := p.spawn(c, log.Fd(), log.Fd())
	return pid, err
}

// wait waits for a command that start began, and forgets it.
func (p *procs) wait(pid int) (int, error) {
	p.mu.Lock()
	ch := p.mine[pid]
	p.mu.Unlock()
	if ch == nil {
		return 0, fmt.Errorf("no process %d was started here", pid)
	}
	<-ch.done
	p.forget(pid)
	return exitOf(ch.status), nil
}

func (p *procs) forget(pid int) {
	p.mu.Lock()
	delete(p.mine, pid)
	p.mu.Unlock()
}

func exitOf(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// exec runs a command to its end.
func (p *procs) exec(c Cmd) (Result, error) {
	begin := time.Now()
	var out, errs stream
	if err := out.open(); err != nil {
		return Result{}, err
	}
	if err := errs.open(); err != nil {
		out.abandon()
		return Result{}, err
	}
	pid, ch, err := p.spawn(c, out.w.Fd(), errs.w.Fd())
	if err != nil {
		out.abandon()
		errs.abandon()
		return Result{}, err
	}
	out.collect()
	errs.collect()
	var res Result
	var timeout <-chan time.Time
	if c.Timeout > 0 {
		t := time.NewTimer(c.Timeout)
		defer t.Stop()
		timeout = t.C
	}
	select {
	case <-ch.done:
	case <-timeout:
		res.TimedOut = true
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		<-ch.done
	}
	p.forget(pid)
	res.Exit, res.Took = exitOf(ch.status), time.Since(begin)
	res.Stdout, res.Stderr = out.finish(), errs.finish()
	return res, nil
}

// stream collects one output of a command. A grandchild may keep the pipe open: 100 ms after the command's end the
// rest is let go.
type stream struct {
	r, w *os.File
	buf  bytes.Buffer
	done chan struct{}
}

func (s *stream) open() (err error) {
	s.r, s.w, err = os.Pipe()
	return err
}

func (s *stream) abandon() {
	s.r.Close()
	s.w.Close()
}

func (s *stream) collect() {
	s.w.Close()
	s.done = make(chan struct{})
	go func() {
		defer close(s.done)
		_, _ = io.Copy(&s.buf, io.LimitReader(s.r, maxOutput)) // what was read before an error counts
	}()
}

func (s *stream) finish() []byte {
	select {
	case <-s.done:
	case <-time.After(100 * time.Millisecond):
		_ = s.r.SetReadDeadline(time.Now())
		<-s.done
	}
	s.r.Close()
	return s.buf.Bytes()
}

// killReq addresses one process of the host, or with a negative pid a process group.
type killReq struct {
	Pid int `json:"pid"`
	Sig int `json:"sig"`
}

func (p *procs) signal(k killReq) error {
	if k.Pid == 0 || k.Pid == 1 || k.Pid == -1 {
		return fmt.Errorf("pid %d is not one that may be signalled", k.Pid)
	}
	return syscall.Kill(k.Pid, syscall.Signal(k.Sig))
}
