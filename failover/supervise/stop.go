package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/internal/rt"
)

// stop is the actor's part of Supervisor.Stop.
func (p *proc) stop(done chan error) {
	p.unwant("was stopped meanwhile")
	if p.run == nil && !p.clearing {
		p.show(func(v *ProcessState) { v.State, v.Role = "stopped", "" })
		done <- nil
		return
	}
	p.stopping = append(p.stopping, done)
	if p.run == nil || len(p.stopping) > 1 {
		return // what is left is being killed, or the stop is under way
	}
	p.killedBy = ""
	r := p.run
	p.show(func(v *ProcessState) { v.State = "stopping" })
	p.timers.stop = p.after(p.stopTimeout(), func() { p.stopLate(r) })
	if len(p.spec.Stop) == 0 {
		p.sendStop(r)
		return
	}
	p.command("stop", p.spec.Stop, p.stopTimeout(), func(err error) {
		if err != nil {
			p.s.log.Warn("the stop command did not work, its signal is sent", "process", p.spec.Name, "error", err)
			p.sendStop(r)
		}
	})
}

func (p *proc) stopTimeout() time.Duration {
	if p.spec.StopTimeout > 0 {
		return p.spec.StopTimeout
	}
	return 30 * time.Second
}

func (p *proc) sendStop(r *run) {
	if p.run != r {
		return
	}
	sig := unix.SIGTERM
	if s := unix.SignalNum("SIG" + p.spec.StopSignal); s != 0 {
		sig = s
	}
	if err := r.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.s.log.Warn("the stop signal could not be sent", "process", p.spec.Name, "error", err)
	}
}

func (p *proc) stopLate(r *run) {
	if p.run != r || p.want {
		return
	}
	p.killedBy = fmt.Sprintf("killed: it did not stop within stop_timeout = %v", p.stopTimeout())
	p.emit(Event{Kind: StopKilled, Pid: r.Pid, At: rt.Now(), Reason: p.killedBy})
	if err := p.group.Kill(); err != nil {
		p.s.log.Error("a process that does not stop could not be killed", "process", p.spec.Name, "error", err)
	}
}

// killed is the actor's part of Supervisor.Kill: nothing is wanted any more; the exit comes by itself.
func (p *proc) killed() {
	p.unwant("was killed meanwhile")
	p.killedBy = "killed"
	if p.run == nil && !p.clearing {
		p.show(func(v *ProcessState) { v.State, v.Role = "stopped", "" })
	} else {
		p.show(func(v *ProcessState) { v.State = "stopping" })
	}
}

// unwant ends every intention to run the program.
func (p *proc) unwant(why string) {
	p.want, p.failed, p.restartAt = false, false, nil
	stopTimer(&p.timers.restart)
	p.answer(&p.starting, errors.New(why))
	p.answer(&p.promoting, errors.New(why))
}

// awaitGone waits until the last program was reaped and its group is empty.
func (p *proc) awaitGone(ctx context.Context) error {
	gone := make(chan bool, 1)
	ok := p.post(func() {
		p.idle = append(p.idle, gone)
		p.tellIdle()
	})
	if !ok {
		return nil
	}
	select {
	case <-gone:
		return nil
	case <-p.quit:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("process %s was killed and is not gone: %w", p.spec.Name, ctx.Err()), p.group.WaitEmpty(ctx))
	}
}
