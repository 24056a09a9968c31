package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Result is what a short command left.
type Result struct {
	Output []byte // the first bytes of stdout and stderr together
	Code   int    // exit status; -1: ended by a signal
	Took   time.Duration
}

// FirstLine is the first line of the output, at most n bytes of it.
func (r Result) FirstLine(n int) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(r.Output)), "\n")
	return strings.ToValidUTF8(line[:min(len(line), n)], "")
}

// Run runs a short command to its end, or kills it, with everything that it started, at the end of ctx: by its cgroup,
// which it must have for itself, else by its process group. At most keep bytes of its output are kept; the rest is read
// and dropped. A status other than 0 is not an error here.
func Run(ctx context.Context, p Program, keep int) (Result, error) {
	began := time.Now()
	out, outW, err := os.Pipe()
	if err != nil {
		return Result{}, fmt.Errorf("run %s: %w", p.Argv, err)
	}
	defer out.Close()
	p.Stdout, p.Stderr = outW, outW
	r, err := Start(p)
	outW.Close()
	if err != nil {
		return Result{}, err
	}
	kill := func() {
		unix.Kill(-r.Pid, unix.SIGKILL) // not reaped yet, so the number is still its own
		if p.Cgroup != nil {
			p.Cgroup.Kill()
		}
	}
	read := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(out, int64(keep)))
		io.Copy(io.Discard, out)
		read <- b
	}()
	type end struct {
		execErr, err error
		ps           *os.ProcessState
	}
	ended := make(chan end, 1)
	go func() {
		var e end
		e.execErr = r.Exec(execLimit)
		if e.execErr != nil {
			r.Signal(unix.SIGKILL)
		}
		e.ps, e.err = r.Wait()
		ended <- e
	}()
	var e end
	select {
	case e = <-ended:
	case <-ctx.Done():
		kill()
		e = <-ended
		err = fmt.Errorf("%s was killed after %v: %w", p.Argv[0], time.Since(began).Round(time.Millisecond), context.Cause(ctx))
	}
	if p.Cgroup != nil {
		p.Cgroup.Kill() // what it left in the background is no part of a short command
		gone, cancel := context.WithTimeout(context.Background(), goneLimit)
		err = errors.Join(err, p.Cgroup.WaitEmpty(gone))
		cancel()
	}
	out.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	res := Result{Output: <-read, Code: -1, Took: time.Since(began)}
	if e.ps != nil {
		res.Code = e.ps.ExitCode()
	}
	switch {
	case e.execErr != nil:
		return res, e.execErr
	case err == nil && e.err != nil:
		return res, fmt.Errorf("run %s: %w", p.Argv[0], e.err)
	}
	return res, err
}

// goneLimit bounds the wait for killed processes to be gone.
const goneLimit = 5 * time.Second

// execLimit bounds the wait for an exec step that was frozen between fork and exec.
const execLimit = time.Minute
