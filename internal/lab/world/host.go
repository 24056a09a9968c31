package world

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Spec describes a host.
type Spec struct {
	Name   string // at most 8 letters: interface names are short
	Nics   []Nic
	Client bool // runs probes and nothing with real-time priority: gets the lab's CPU weight in any case
}

const (
	switchFlags = unix.CLONE_NEWNET
	hostFlags   = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
)

// Host is one machine of the lab. It can die and be started again with the same disk.
type Host struct {
	w    *World
	spec Spec
	dir  string

	mu    sync.Mutex
	first *exec.Cmd // first process; nil: the host is off
	rpc   *caller
}

// Name of the host.
func (h *Host) Name() string { return h.spec.Name }

// Dir is the host's disk: what lies in it survives the host's death, but for run/, which is its /run; srv/ is its /srv.
func (h *Host) Dir() string { return h.dir }

// PID is that of the host's first process, as the lab sees it; 0 when the host is off.
func (h *Host) PID() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.first == nil {
		return 0
	}
	return h.first.Process.Pid
}

// Log is the path of a log file of the host.
func (h *Host) Log(name string) string { return filepath.Join(h.dir, "log", name+".log") }

// Cgroup is the host's directory in the cgroup v2 tree, writable for the processes of the host; "" where there is none.
func (h *Host) Cgroup() string {
	if h.w.group == nil {
		return ""
	}
	return h.w.group.dir(h.spec.Name)
}

// Start switches the host on: empty /run, network up, no process but the first.
func (h *Host) Start(ctx context.Context) error {
	h.mu.Lock()
	on := h.first != nil
	h.mu.Unlock()
	if on {
		return fmt.Errorf("host %s is on already", h.spec.Name)
	}
	if len(h.spec.Name) == 0 || len(h.spec.Name) > 8 {
		return fmt.Errorf("host name %q: choose 1 to 8 letters", h.spec.Name)
	}
	run := filepath.Join(h.dir, "run")
	srv := filepath.Join(h.dir, "srv")
	if err := errors.Join(os.RemoveAll(run), os.MkdirAll(run, 0o755), os.MkdirAll(filepath.Join(h.dir, "log"), 0o755), os.MkdirAll(srv, 0o755)); err != nil {
		return err
	}
	first, rpc, err := startChild(h.w.cfg.Self, HostCommand, h.spec.Name, hostFlags, h.Log("first"))
	if err != nil {
		return fmt.Errorf("start host %s: %w", h.spec.Name, err)
	}
	h.mu.Lock()
	h.first, h.rpc = first, rpc
	h.mu.Unlock()
	if err := h.furnish(ctx, first.Process.Pid, run, srv); err != nil {
		return errors.Join(fmt.Errorf("start host %s: %w", h.spec.Name, err), h.stop())
	}
	return nil
}

func (h *Host) furnish(ctx context.Context, pid int, run, srv string) error {
	if g := h.w.group; g != nil {
		if err := g.adopt(h.spec.Name, pid); err != nil {
			return err
		}
	}
	h.w.favour(pid, h.spec.Client)
	var notes []string
	if err := h.rpc.call(ctx, "setup", hostSetup{Hostname: h.spec.Name, Run: run, Srv: srv}, &notes); err != nil {
		return err
	}
	for _, n := range notes {
		h.w.note("hosts without " + n)
	}
	for _, n := range h.spec.Nics {
		if err := h.w.sw.call(ctx, "port-add", port{Host: h.spec.Name, Link: n.Link, Pid: pid, MAC: n.MAC}, nil); err != nil {
			return err
		}
	}
	return h.rpc.call(ctx, "net", netSetup{Nics: h.spec.Nics}, nil)
}

func (h *Host) call(ctx context.Context, op string, args, result any) error {
	h.mu.Lock()
	rpc := h.rpc
	h.mu.Unlock()
	if rpc == nil {
		return fmt.Errorf("host %s, %s: %w", h.spec.Name, op, errGone)
	}
	if err := rpc.call(ctx, op, args, result); err != nil {
		return fmt.Errorf("host %s, %w", h.spec.Name, err)
	}
	return nil
}

// Exec runs a command within the host to its end. A status other than 0 is not an error.
func (h *Host) Exec(ctx context.Context, c Cmd) (Result, error) {
	var r Result
	if dl, ok := ctx.Deadline(); ok && c.Timeout == 0 {
		c.Timeout = time.Until(dl)
	}
	err := h.call(ctx, "exec", c, &r)
	return r, err
}

// Spawn runs a command in the background and returns its pid within the host.
func (h *Host) Spawn(ctx context.Context, c Cmd) (int, error) {
	var pid int
	err := h.call(ctx, "start", c, &pid)
	return pid, err
}

// Wait waits for the end of a spawned command and returns its exit status, 128+signal when it was killed.
func (h *Host) Wait(ctx context.Context, pid int) (int, error) {
	var exit int
	err := h.call(ctx, "wait", pid, &exit)
	return exit, err
}

// Signal sends a signal to one process of the host, or to a process group by its negative number.
func (h *Host) Signal(ctx context.Context, pid int, sig syscall.Signal) error {
	return h.call(ctx, "signal", killReq{Pid: pid, Sig: int(sig)}, nil)
}

// AddAddr adds an address ("10.77.0.100/24") to an interface, behind the back of whoever manages it.
func (h *Host) AddAddr(ctx context.Context, dev, prefix string) error {
	return h.call(ctx, "addr-add", addrReq{Dev: dev, Prefix: prefix}, nil)
}

// DelAddr removes an address.
func (h *Host) DelAddr(ctx context.Context, dev, prefix string) error {
	return h.call(ctx, "addr-del", addrReq{Dev: dev, Prefix: prefix}, nil)
}

// Announce sends one gratuitous ARP request for an address, whether the host has it or not.
func (h *Host) Announce(ctx context.Context, dev, prefix string) error {
	return h.call(ctx, "announce", addrReq{Dev: dev, Prefix: prefix}, nil)
}

// Pin makes the host send everything for ip to one MAC for ever, whatever ARP says.
func (h *Host) Pin(ctx context.Context, dev, ip, mac string) error {
	return h.call(ctx, "arp", neighReq{Dev: dev, IP: ip, MAC: mac}, nil)
}

// Unplug pulls all cables of the host at the switch: it sees its carriers go.
func (h *Host) Unplug(ctx context.Context) error { return h.cables(ctx, false) }

// Plug puts them back.
func (h *Host) Plug(ctx context.Context) error { return h.cables(ctx, true) }

func (h *Host) cables(ctx context.Context, up bool) error {
	var errs []error
	for _, n := range h.spec.Nics {
		errs = append(errs, h.w.sw.call(ctx, "port-set", port{Host: h.spec.Name, Link: n.Link, Up: up}, nil))
	}
	return errors.Join(errs...)
}

// Freeze stops all processes of the host at one instant; its kernel goes on (it answers ARP, and takes connections
// until a backlog is full), as that of a machine whose user space hangs.
func (h *Host) Freeze(ctx context.Context) error {
	if g := h.w.group; g != nil {
		return g.freeze(ctx, h.spec.Name, true)
	}
	return h.call(ctx, "signal-all", int(syscall.SIGSTOP), nil)
}

// Thaw ends Freeze.
func (h *Host) Thaw(ctx context.Context) error {
	if g := h.w.group; g != nil {
		return g.freeze(ctx, h.spec.Name, false)
	}
	return h.call(ctx, "signal-all", int(syscall.SIGCONT), nil)
}

// Die is a power cut: the cables go dead and all processes end at the same instant.
func (h *Host) Die(ctx context.Context) error {
	cut := make(chan error, 1)
	go func() { cut <- h.cables(ctx, false) }()
	err := h.stop()
	return errors.Join(<-cut, err)
}

// Alive says that the host is on.
func (h *Host) Alive() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.first != nil
}

// stop kills everything of the host and waits for its first process. It does not pull the cables.
func (h *Host) stop() error {
	h.mu.Lock()
	first, rpc := h.first, h.rpc
	h.first, h.rpc = nil, nil
	h.mu.Unlock()
	if first == nil {
		return nil
	}
	if g := h.w.group; g != nil {
		_ = g.kill(h.spec.Name) // the next line does the same, a little later
	}
	_ = first.Process.Kill()
	rpc.close()
	_ = first.Wait() // "signal: killed" is what was wanted
	return nil
}

// startChild starts a first process with new namespaces, connected by a socket pair.
func startChild(self []string, command, name string, flags uintptr, logFile string) (*exec.Cmd, *caller, error) {
	log, err := os.OpenFile(logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "lab")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, nil, err
	}
	argv := append(append([]string(nil), self...), command, name)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Setsid: true}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return cmd, newCaller(conn), nil
}

// Tail is the end of one of the host's log files, for error messages.
func (h *Host) Tail(name string, bytes int64) string {
	f, err := os.Open(h.Log(name))
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() > bytes {
		_, _ = f.Seek(-bytes, io.SeekEnd)
	}
	b, _ := io.ReadAll(io.LimitReader(f, bytes))
	return string(b)
}
