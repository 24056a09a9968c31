// Package guard is the fence that does not need the daemon (gate G3 of the protocol, docs/protocol.md section 5): a small
// process of its own that watches the deadline page of each service, freezes the service's cgroup when 84 % of the lease
// have passed without a renewal, thaws it if the renewal still comes, and at the deadline kills the cgroup and removes
// the service's addresses, whether the daemon is well, hangs, is stopped, or has been killed.
//
// It never decides who is active, never extends anything, and talks to nobody but the daemon and the kernel.
//
// # Why it is correct
//
// The deadline comes from a page that only the daemon can write, and is compared with the same clock by which the voters
// of the group wait longer than the lease (P = TTL x 1.01 + margin) before anybody else is let in. The guard runs one
// priority above the daemon under SCHED_RR, with locked memory, and from its start on it does nothing on its way from
// the timer to the kill that could wait or allocate: descriptors of cgroup.kill and cgroup.freeze are open, netlink
// messages are ready, files are written by raw system calls. It waits for nothing before the kill, in particular not for
// frozen=1: a process that is blocked in a FUSE request never freezes. It kills again every 50 ms while the deadline is
// past and somebody lives. What to do is decided by watch.step, which is pure.
//
// The guard is in a session of its own and ignores SIGHUP, SIGINT and SIGTERM. When its socket closes, the daemon has
// gone; it stays until every deadline has passed and has been enforced, and then exits.
//
// # What it does not cover
//
// A kernel that hangs, a virtual machine that is paused, side effects that the processes had before the deadline, and
// hosts without cgroup v2 (Add says so).
//
// # What callers must do
//
// Start it before the first service can become active and Add each service before its page does. Watch Done: a guard
// that has died must be started again, with all services, and its absence alarmed. Set the page's TTL before its first
// deadline. Call Look after a page has changed its state. Move the page away from active, draining and fenced before starting processes in the group again.
package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/cgroup"
)

// Subcommand is the hidden subcommand of our binary that is the guard: cmd/hanode calls Main for it.
const Subcommand = "guard"

// Config is what Start needs.
type Config struct {
	Self   string        // path of our own binary; "": /proc/self/exe
	Group  *cgroup.Group // of the guard itself, so that the next incarnation finds it; may be nil
	Log    *slog.Logger  // nil: none
	Events func(Event)   // what the guard did; must return quickly; may be nil
}

// Guard is the daemon's end.
type Guard struct {
	log     *slog.Logger
	conn    *net.UnixConn
	process *os.Process
	refused string
	events  func(Event)
	gone    chan struct{} // closed when the process has ended
	wg      sync.WaitGroup

	mu      sync.Mutex
	seq     uint32
	waiting map[uint32]chan answer
}

// Service is what the guard is to watch.
type Service struct {
	No        cluster.ServiceNo
	Page      *os.File      // the deadline page
	Group     *cgroup.Group // of the service
	Addresses [][]byte      // netlink messages to send at the deadline, see DeleteAddress
	FuseAbort *os.File      // /sys/fs/fuse/connections/N/abort of the service's volume, written to when its processes outlive their kill by 100 ms; may be nil
}

// startLimit bounds the wait for the guard's first words.
const startLimit = 10 * time.Second

// Start starts the guard and waits until it is on its post. The goroutines that listen to it end with it or with Close.
func Start(cfg Config) (*Guard, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Self == "" {
		cfg.Self = "/proc/self/exe"
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start the guard: socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "guard")
	defer theirs.Close()
	ours := os.NewFile(uintptr(fds[0]), "guard")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	g := &Guard{log: cfg.Log, conn: conn.(*net.UnixConn), events: cfg.Events, gone: make(chan struct{}), waiting: make(map[uint32]chan answer)}
	if err := g.spawn(cfg, theirs); err != nil {
		g.conn.Close()
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	g.wg.Go(func() {
		g.process.Wait()
		close(g.gone)
	})
	if err := g.hello(); err != nil {
		g.process.Kill()
		g.conn.Close()
		g.wg.Wait()
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	g.wg.Go(g.listen)
	return g, nil
}

func (g *Guard) spawn(cfg Config, theirs *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	attr := &os.ProcAttr{Dir: "/", Env: []string{}, Files: []*os.File{null, null, os.Stderr, theirs}, Sys: &syscall.SysProcAttr{Setsid: true}}
	if cfg.Group != nil {
		if err := cfg.Group.Renew(); err != nil {
			return err
		}
		cfg.Group.Attr(attr.Sys)
		attr.Env = append(attr.Env, cfg.Group.Env()...)
	}
	g.process, err = os.StartProcess(cfg.Self, []string{cfg.Self, Subcommand}, attr)
	runtime.KeepAlive(cfg.Group)
	return err
}

// hello reads the guard's first words.
func (g *Guard) hello() error {
	g.conn.SetReadDeadline(time.Now().Add(startLimit))
	defer g.conn.SetReadDeadline(time.Time{})
	buf := make([]byte, maxMessage)
	n, err := g.conn.Read(buf)
	if err != nil {
		return fmt.Errorf("it did not report for duty: %w", err)
	}
	a, err := decodeAnswer(buf[:n])
	if err != nil || a.kind != kindHello {
		return fmt.Errorf("it did not report for duty: got kind %d, %v", a.kind, err)
	}
	g.refused = a.text
	return nil
}

// Refused says what the machine refused the guard (real-time scheduling, memory lock, OOM score), with remedies; empty:
// nothing.
func (g *Guard) Refused() string { return g.refused }

// Pid of the guard.
func (g *Guard) Pid() int { return g.process.Pid }

// Done is closed when the guard's process has ended.
func (g *Guard) Done() <-chan struct{} { return g.gone }

// Add puts a service under the guard. Its error says when the service cannot be guarded at all.
func (g *Guard) Add(ctx context.Context, s Service) error {
	h, err := s.Group.Handles()
	if err != nil {
		return fmt.Errorf("guard service %d: %w", s.No, err)
	}
	defer h.Close()
	files := []*os.File{s.Page, h.Freeze, h.Kill, h.Life, h.Ice}
	if s.FuseAbort != nil {
		files = append(files, s.FuseAbort)
	}
	return g.request(ctx, kindAdd, s.No, s.Addresses, files)
}

// SetAddresses replaces the netlink messages of a service.
func (g *Guard) SetAddresses(ctx context.Context, no cluster.ServiceNo, addresses [][]byte) error {
	return g.request(ctx, kindUpdate, no, addresses, nil)
}

// Remove ends the watch of a service. Its page must not be active.
func (g *Guard) Remove(ctx context.Context, no cluster.ServiceNo) error {
	return g.request(ctx, kindRemove, no, nil, nil)
}

// Quiesce freezes the processes of a service and returns nil when they are frozen or none is left: the guard's report of
// rule H6, on which a Release may be sent. On an error (ctx ended first: 50 ms is the protocol's limit) there must be no
// Release. They stay frozen until Resume, or until the page says standby or idle.
func (g *Guard) Quiesce(ctx context.Context, no cluster.ServiceNo) error {
	return g.request(ctx, kindQuiesce, no, nil, nil)
}

// Resume undoes Quiesce, as far as the deadline allows.
func (g *Guard) Resume(ctx context.Context, no cluster.ServiceNo) error {
	return g.request(ctx, kindResume, no, nil, nil)
}

// Look tells the guard that a page has changed its state. It neither waits nor fails: a word that is lost costs the guard's own look, a little later.
func (g *Guard) Look() {
	raw, err := g.conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&lookRequest[0])), uintptr(len(lookRequest)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	})
}

// lookRequest is a request of kind kindLook.
var lookRequest, _ = encodeRequest(kindLook, 0, 0, nil) // without messages it cannot fail

// Close leaves the guard alone, as the death of the daemon does: it enforces what is left to enforce and exits. Close
// waits for that until ctx ends.
func (g *Guard) Close(ctx context.Context) error {
	g.conn.Close()
	select {
	case <-g.gone:
		g.wg.Wait()
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the guard (pid %d) still has a lease to enforce: %w", g.Pid(), ctx.Err())
	}
}

func (g *Guard) request(ctx context.Context, kind uint32, no cluster.ServiceNo, netlink [][]byte, files []*os.File) error {
	got := make(chan answer, 1)
	g.mu.Lock()
	g.seq++
	seq := g.seq
	g.waiting[seq] = got
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.waiting, seq)
		g.mu.Unlock()
	}()
	b, err := encodeRequest(kind, seq, no, netlink)
	if err != nil {
		return err
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, 0, len(files))
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		rights = unix.UnixRights(fds...)
	}
	_, _, err = g.conn.WriteMsgUnix(b, rights, nil)
	runtime.KeepAlive(files)
	if err != nil {
		return fmt.Errorf("tell the guard about service %d: %w", no, err)
	}
	select {
	case a := <-got:
		if a.errno != 0 {
			return fmt.Errorf("the guard refuses service %d: %w", no, unix.Errno(a.errno))
		}
		return nil
	case <-g.gone:
		return errors.New("the guard has died")
	case <-ctx.Done():
		return fmt.Errorf("the guard did not report on service %d: %w", no, ctx.Err())
	}
}

// listen hands out answers and events until the connection ends.
func (g *Guard) listen() {
	buf := make([]byte, maxMessage)
	for {
		n, err := g.conn.Read(buf)
		if err != nil || n == 0 {
			return
		}
		a, err := decodeAnswer(buf[:n])
		if err != nil {
			g.log.Error("an answer of the guard was not understood", "error", err)
			continue
		}
		switch a.kind {
		case kindDone:
			g.mu.Lock()
			w := g.waiting[a.seq]
			g.mu.Unlock()
			if w == nil {
				continue
			}
			select {
			case w <- a:
			default: // answered already
			}
		case kindEvent:
			e := Event{Service: cluster.ServiceNo(a.no), What: Done(a.seq), Epoch: cluster.Epoch(a.epoch),
				At: cluster.Instant(a.at), Late: time.Duration(a.late), Errno: unix.Errno(a.errno)}
			g.log.Warn("the guard "+e.What.String()+" a service", "service_no", e.Service, "epoch", e.Epoch, "late", e.Late, "errno", int(e.Errno))
			if g.events != nil {
				g.events(e)
			}
		}
	}
}
