package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/supervise/launch"
	"github.com/hanode/hanode/internal/rt"
)

// signalsEnv asks for role signals, in the env of a spec or as a message of sd_notify.
const signalsEnv = "HANODE_ROLE_SIGNALS"

// promote tells a running standby that it is active. The role was set already.
func (p *proc) promote(done chan error) {
	r := p.run
	p.emit(Event{Kind: Promoted, Pid: r.Pid, At: rt.Now()})
	p.tell(r, signalWait)
	switch {
	case len(p.spec.Promote) > 0:
		p.promoting = append(p.promoting, done)
		p.runPromote(r)
	case r.ready:
		done <- nil
	default:
		p.starting = append(p.starting, done)
	}
}

// runPromote runs the promote command if somebody waits for it and the program is ready for it.
func (p *proc) runPromote(r *run) {
	if len(p.promoting) == 0 || !r.ready {
		return
	}
	waiting := p.promoting
	p.promoting = nil
	timeout := p.spec.StartTimeout
	if timeout <= 0 {
		timeout = time.Minute
	}
	p.command("promote", p.spec.Promote, timeout, func(err error) { p.answer(&waiting, err) })
}

// demote is the actor's part of Supervisor.Demote.
func (p *proc) demote(epoch cluster.Epoch, done chan error) {
	stays := p.want && !p.failed && p.spec.Standby == "hot" &&
		(p.role == Standby || p.run == nil || p.run.asked || len(p.spec.Promote) == 0)
	if !stays {
		p.stop(done)
		return
	}
	p.role, p.epoch = Standby, epoch
	p.show(func(v *ProcessState) { v.Role = Standby })
	if p.run != nil {
		p.tell(p.run, signalWait)
	}
	done <- nil
}

// tell sends the signal of the role, once, to a program that asked for it and catches it by now; else it looks again
// later, less and less often.
func (p *proc) tell(r *run, again time.Duration) {
	if p.run != r || !r.asked || r.role == p.role {
		return
	}
	sig := unix.SIGUSR1
	if p.role == Standby {
		sig = unix.SIGUSR2
	}
	if catches(r.Pid, sig) {
		r.role = p.role
		if err := r.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			p.s.log.Error("a process could not be told its role", "process", p.spec.Name, "error", err)
		}
		return
	}
	stopTimer(&p.timers.signal)
	p.timers.signal = p.after(again, func() { p.tell(r, min(2*again, time.Second)) })
}

// catches says whether a process has a handler for sig: a signal without one would end it (proc_pid_status(5), SigCgt).
func catches(pid int, sig syscall.Signal) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(b), "\nSigCgt:")
	if !ok {
		return false
	}
	line, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	return err == nil && mask&(1<<(uint(sig)-1)) != 0
}

// command runs the stop or promote command of the spec beside the program, in a group of its own within the service, and
// hands its error to then, in the actor.
func (p *proc) command(what string, argv []string, timeout time.Duration, then func(error)) {
	group, err := p.s.cfg.Group.Sub(p.spec.Name + "." + what)
	if err != nil {
		then(err)
		return
	}
	prog := p.program(argv)
	prog.Cgroup = group
	prog.Files = nil
	name := p.spec.Name
	p.commands++
	p.wg.Go(func() {
		defer p.post(func() { p.commands--; p.tellIdle() })
		ctx, cancel := context.WithTimeoutCause(context.Background(), timeout, fmt.Errorf("the %s command took longer than %v", what, timeout))
		defer cancel()
		res, err := launch.Run(ctx, prog, 4096)
		if err == nil && res.Code != 0 {
			err = fmt.Errorf("the %s command %s ended with status %d: %s", what, argv[0], res.Code, res.FirstLine(256))
		}
		if p.s.cfg.Output != nil {
			for line := range strings.Lines(string(res.Output)) {
				p.s.cfg.Output(name, []byte(strings.TrimRight(line, "\n")))
			}
		}
		p.post(func() { then(err) })
		wait, cancelWait := context.WithTimeout(context.Background(), killWait)
		defer cancelWait()
		if err := errors.Join(group.WaitEmpty(wait), group.Remove()); err != nil {
			p.s.log.Warn("the group of a command was not removed", "process", name, "error", err)
		}
	})
}

// program is what every start of this process has in common.
func (p *proc) program(argv []string) launch.Program {
	env := newEnvironment(launch.BaseEnv(p.spec.User, p.spec.Group))
	env.add(p.s.cfg.Env...)
	env.add(
		"HANODE_SERVICE="+p.s.cfg.Service,
		"HANODE_PROCESS="+p.spec.Name,
		"HANODE_ROLE="+p.role,
		"HANODE_EPOCH="+strconv.FormatUint(uint64(p.epoch), 10),
	)
	for k, v := range p.spec.Env {
		env.add(k + "=" + v)
	}
	return launch.Program{
		Self: p.s.cfg.Self, Argv: argv, Env: env.list(), Dir: p.spec.Dir,
		User: p.spec.User, Group: p.spec.Group, FilesMax: p.spec.FilesMax, Cgroup: p.group,
	}
}

// launch starts the program itself.
func (p *proc) launch() (*run, error) {
	prog := p.program(p.spec.Start)
	prog.MemoryMax = p.spec.MemoryMax
	r := &run{role: p.role, asked: p.spec.Env[signalsEnv] == "1"}
	env := newEnvironment(prog.Env)
	if p.s.cfg.Page != nil {
		prog.Files = []*os.File{p.s.cfg.Page}
		env.add("HANODE_PAGE_FD=3")
	}
	if p.spec.Ready == "notify" || p.spec.Standby == "hot" {
		sock, err := listenNotify()
		if err != nil {
			return nil, err
		}
		r.notify = sock
		env.add("NOTIFY_SOCKET=" + sock.name)
	}
	var write *os.File
	if p.s.cfg.Output != nil {
		read, w, err := os.Pipe()
		if err != nil {
			r.closeIO()
			return nil, fmt.Errorf("make the pipe of its output: %w", err)
		}
		r.output, write = read, w
		prog.Stdout, prog.Stderr = w, w
	}
	prog.Env = env.list()
	running, err := launch.Start(prog)
	r.started = rt.Now()
	if write != nil {
		write.Close()
	}
	if err != nil {
		r.closeIO()
		if r.output != nil {
			r.output.Close()
		}
		return nil, err
	}
	r.Running = running
	if r.output != nil {
		p.wg.Go(func() { readLines(r.output, func(line []byte) { p.s.cfg.Output(p.spec.Name, line) }) })
	}
	if r.notify != nil {
		p.wg.Go(func() { p.readNotify(r) })
	}
	return r, nil
}

// closeIO is called when nobody of the run lives any more: what is in the pipe is still read, for a moment.
func (r *run) closeIO() {
	if r.output != nil {
		r.output.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	}
	if r.notify != nil {
		r.notify.conn.Close()
	}
}

// environment keeps one value per name, the last one.
type environment struct {
	order  []string
	values map[string]string
}

func newEnvironment(vars []string) *environment {
	e := &environment{values: make(map[string]string)}
	e.add(vars...)
	return e
}

func (e *environment) add(vars ...string) {
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		if _, ok := e.values[name]; !ok {
			e.order = append(e.order, name)
		}
		e.values[name] = value
	}
}

func (e *environment) list() []string {
	out := make([]string, 0, len(e.order))
	for _, n := range e.order {
		out = append(out, n+"="+e.values[n])
	}
	return out
}
