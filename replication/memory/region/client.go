// Package region protects an application's memory: what is in a region when a checkpoint has returned is in the memory of the standby too, and there
// when the standby takes over.
//
//	app, err := region.Dial("")                                        // the service's socket, from HANODE_MEMORY
//	calls, err := app.Open("calls", region.Options{Size: 1 << 20})     // its content is the newest image
//	epoch, err := app.WaitActive(ctx)                                  // a hot standby waits here, and sees each image as it arrives
//	for req := range requests {
//		calls.Update(func(b []byte) { apply(b, req) })
//		if err := calls.Checkpoint(); err != nil { ... }            // the standby holds it
//		answer(req)
//	}
//
// # What the caller must do
//
// Write to a region only within Update, or only in the goroutine that makes its checkpoints: what is written at that moment may or may not be part of the image.
// Do not answer a client before the checkpoint of what it was told. Ask MayAct before anything that must not happen twice. Write nothing while standby.
// Keep no Go pointers in a region: they mean nothing to another process.
//
// # What is in it
//
// The changed pages are found by the kernel (userfaultfd with asynchronous write protection and PAGEMAP_SCAN, Linux 6.7 and newer), from the ranges that the
// application declares, or else by comparing. An image is consistent because Checkpoint waits until no Update is under way, takes note of the changed pages and protects them
// anew, and copies them before the next Update begins; the standby uses an image only when all of it has arrived.
package region

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/page"
	"github.com/hanode/hanode/replication/memory/wire"
)

// Socket is the environment variable that names the socket of the service's memory.
const Socket = "HANODE_MEMORY"

// Role is what this process is for its service.
type Role uint16

const (
	Idle    = Role(wire.Idle)
	Standby = Role(wire.Standby)
	Active  = Role(wire.Active)
	Fenced  = Role(wire.Fenced)
)

func (r Role) String() string {
	switch r {
	case Idle:
		return "idle"
	case Standby:
		return "standby"
	case Active:
		return "active"
	case Fenced:
		return "fenced"
	}
	return fmt.Sprintf("role(%d)", uint16(r))
}

// App is a connection to the server of a service's memory. Its methods may be called by several goroutines.
type App struct {
	path, service string
	page          *page.Reader

	conn   *net.UnixConn
	wmu    sync.Mutex
	out    []byte
	nextID atomic.Uint64
	acting atomic.Bool // active, and every region has the newest image
	gone   atomic.Bool // err is set

	mu      sync.Mutex
	role    Role
	epoch   uint64
	was     Role  // what it was when the connection was lost
	err     error // why the connection is away
	closed  bool
	asked   map[uint64]question
	regions []*Region
	changed chan struct{} // closed and replaced at each change of role, epoch or err
	onRole  func(Role, uint64)
	roles   chan wire.App // from the reader to the keeper
	done    chan struct{}
	wg      sync.WaitGroup
}

// question is what waits for an answer. done is called first, on the reader's goroutine; it must not wait.
type question struct {
	ch   chan reply
	done func(err error)
}

func (q question) answer(r reply) {
	if q.done != nil {
		err := r.err
		if err == nil && r.m.Status != wire.OK {
			err = &answerError{r.m.Status, ""}
		}
		q.done(err)
	}
	q.ch <- r
}

type reply struct {
	m   wire.App
	fds []int
	err error
}

// Dial connects to the server at path; "" means the environment's HANODE_MEMORY.
func Dial(path string) (*App, error) {
	if path == "" {
		if path = os.Getenv(Socket); path == "" {
			return nil, fmt.Errorf("%s is not set: start this program as a process of a service that has memory, or name the socket", Socket)
		}
	}
	a := &App{path: path, asked: map[uint64]question{}, changed: make(chan struct{}), roles: make(chan wire.App, 64), done: make(chan struct{})}
	if err := a.connect(); err != nil {
		return nil, err
	}
	a.wg.Go(a.keep)
	return a, nil
}

// connect makes the connection and says hello; its reader runs from then on.
func (a *App) connect() error {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: a.path, Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("connect to the memory of the service: %w: %w", ErrAway, err)
	}
	name := []byte(os.Args[0])
	b := wire.AppendApp(nil, &wire.App{Kind: wire.Hello, ID: 1, Value: wire.Version, Body: name[:min(len(name), 64)]})
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write(b); err != nil {
		conn.Close()
		return fmt.Errorf("connect to the memory of the service: %w: %w", ErrAway, err)
	}
	r := receive(conn, make([]byte, wire.MaxApp))
	conn.SetDeadline(time.Time{})
	if r.err == nil && r.m.Status != wire.OK {
		r.err = &answerError{r.m.Status, string(r.m.Body)}
	}
	if r.err == nil && len(r.fds) > 0 && a.page == nil {
		a.page, r.err = page.OpenFD(r.fds[0])
	}
	for _, fd := range r.fds {
		unix.Close(fd)
	}
	if r.err != nil {
		conn.Close()
		return fmt.Errorf("connect to the memory of the service: %w", r.err)
	}
	a.mu.Lock()
	a.conn, a.service, a.err = conn, string(r.m.Body), nil
	a.gone.Store(false)
	a.mu.Unlock()
	a.nextID.Store(1)
	a.setRole(Role(r.m.Flags), r.m.Value)
	a.wg.Go(func() { a.read(conn) })
	return nil
}

func receive(conn *net.UnixConn, buf []byte) (r reply) {
	var oob [64]byte
	n, oobn, flags, _, err := conn.ReadMsgUnix(buf, oob[:])
	if err != nil {
		return reply{err: err}
	}
	if n == 0 {
		return reply{err: errors.New("it closed the connection")}
	}
	if oobn > 0 {
		if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
			for i := range msgs {
				fds, _ := unix.ParseUnixRights(&msgs[i])
				for _, fd := range fds {
					unix.CloseOnExec(fd)
				}
				r.fds = append(r.fds, fds...)
			}
		}
	}
	if flags&unix.MSG_TRUNC != 0 {
		r.err = errors.New("a message was cut short")
		return r
	}
	r.err = wire.ParseApp(buf[:n], &r.m)
	return r
}

// read gives answers to those who asked, and notices to the keeper, until the connection ends.
func (a *App) read(conn *net.UnixConn) {
	buf := make([]byte, wire.MaxApp)
	for {
		r := receive(conn, buf)
		if r.err != nil {
			conn.Close()
			a.lose(conn, r.err)
			return
		}
		switch {
		case r.m.Kind == wire.Role || r.m.Kind == wire.Image:
			r.m.Body = nil
			select {
			case a.roles <- r.m:
			case <-a.done:
			}
			continue
		case r.m.ID == 0: // the server ends the connection and says why
			conn.Close()
			a.lose(conn, &answerError{r.m.Status, string(r.m.Body)})
			return
		}
		r.m.Body = append([]byte(nil), r.m.Body...)
		a.mu.Lock()
		q := a.asked[r.m.ID]
		if r.m.Kind != wire.Record|wire.Answer {
			delete(a.asked, r.m.ID)
		}
		a.mu.Unlock()
		if q.ch == nil {
			for _, fd := range r.fds {
				unix.Close(fd)
			}
			continue
		}
		q.answer(r)
	}
}

// lose notes that the connection is away; everybody who waits is told.
func (a *App) lose(conn *net.UnixConn, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn != conn || a.err != nil {
		return
	}
	if a.err = away(a.service, err); a.role == Active {
		a.was = Active
	}
	a.acting.Store(false)
	a.role = Idle
	a.gone.Store(true)
	for id, q := range a.asked {
		delete(a.asked, id)
		q.answer(reply{err: a.err})
	}
	a.tell()
	select {
	case a.roles <- wire.App{}: // wake the keeper
	default:
	}
}

// tell wakes those who wait for a change (a.mu is held).
func (a *App) tell() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// start sends a question; the answer comes to the channel, which must have room for all of it.
func (a *App) start(m *wire.App, room int, done func(error), fds ...int) (chan reply, error) {
	ch := make(chan reply, room)
	m.ID = a.nextID.Add(1)
	a.mu.Lock()
	if a.err != nil || a.closed {
		defer a.mu.Unlock()
		if a.closed {
			return nil, errors.New("the connection to the service's memory was closed")
		}
		return nil, a.err
	}
	a.asked[m.ID] = question{ch, done}
	conn := a.conn
	a.mu.Unlock()
	a.wmu.Lock()
	defer a.wmu.Unlock()
	a.out = wire.AppendApp(a.out[:0], m)
	var err error
	if len(fds) > 0 {
		_, _, err = conn.WriteMsgUnix(a.out, unix.UnixRights(fds...), nil)
	} else {
		_, err = conn.Write(a.out)
	}
	if err != nil {
		conn.Close() // the reader tells all who wait
	}
	return ch, nil
}

// ask sends a question and waits for its answer.
func (a *App) ask(m *wire.App, fds ...int) (reply, error) {
	ch, err := a.start(m, 1, nil, fds...)
	if err != nil {
		return reply{}, err
	}
	return wait(ch)
}

func wait(ch chan reply) (reply, error) {
	r := <-ch
	if r.err == nil && r.m.Status != wire.OK {
		r.err = &answerError{r.m.Status, string(r.m.Body)}
	}
	return r, r.err
}

// keep follows the notices: takes images as a standby, and takes over.
func (a *App) keep() {
	for {
		select {
		case <-a.done:
			return
		case m := <-a.roles:
			switch m.Kind {
			case wire.Role:
				a.takeRole(Role(m.Flags), m.Value)
			case wire.Image:
				a.takeImage(m.Region)
			default:
				a.redial()
			}
		}
	}
}

// takeRole brings every region to the newest image before the process learns that it is active.
func (a *App) takeRole(role Role, epoch uint64) {
	if role == Active && !a.acting.Load() {
		for _, r := range a.all() {
			if err := r.take(); err != nil {
				return // the connection is away, or the role is over already
			}
		}
	}
	a.setRole(role, epoch)
}

func (a *App) setRole(role Role, epoch uint64) {
	a.mu.Lock()
	a.role, a.epoch = role, epoch
	a.acting.Store(role == Active)
	f := a.onRole
	a.tell()
	a.mu.Unlock()
	if f != nil {
		f(role, epoch)
	}
}

func (a *App) all() []*Region {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]*Region(nil), a.regions...)
}

func (a *App) takeImage(no uint32) {
	for _, r := range a.all() {
		if r.no.Load() == no && r.take() == nil && r.opt.OnImage != nil {
			r.opt.OnImage(r)
		}
	}
}

// redial connects again after the server has ended; the regions' memory is brought along.
func (a *App) redial() {
	for {
		a.mu.Lock()
		lost := a.err != nil && !a.closed
		a.mu.Unlock()
		if !lost {
			return
		}
		if a.reconnect() == nil {
			return
		}
		select {
		case <-a.done:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (a *App) reconnect() error {
	if err := a.connect(); err != nil {
		a.mu.Lock()
		if a.err == nil {
			a.err = err
		}
		a.mu.Unlock()
		return err
	}
	a.mu.Lock()
	role, epoch, conn, was := a.role, a.epoch, a.conn, a.was
	a.mu.Unlock()
	a.acting.Store(false)
	if was == Active && role == Standby {
		// The new server does not lead yet. What it holds may be older than this memory: it must not be shown in its place.
		err := errors.New("the new server does not lead yet")
		conn.Close()
		a.lose(conn, err)
		return err
	}
	for _, r := range a.all() {
		if err := r.reopen(); err != nil {
			conn.Close()
			a.lose(conn, err)
			return err
		}
	}
	a.mu.Lock()
	a.was = Idle
	a.mu.Unlock()
	a.setRole(role, epoch)
	return nil
}

// Service is the name of the service.
func (a *App) Service() string { return a.service }

// Role is what this process is, and the epoch.
func (a *App) Role() (Role, cluster.Epoch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.role, cluster.Epoch(a.epoch)
}

// OnRole sets what is called at each change of role or epoch, on a goroutine of the library. When it is called with Active every region has the newest image.
func (a *App) OnRole(f func(Role, uint64)) {
	a.mu.Lock()
	a.onRole = f
	a.mu.Unlock()
}

// WaitActive waits until this process is active and every region has the newest image, and returns the epoch. Fenced is an error.
func (a *App) WaitActive(ctx context.Context) (cluster.Epoch, error) {
	for {
		a.mu.Lock()
		role, epoch, changed, closed := a.role, a.epoch, a.changed, a.closed
		a.mu.Unlock()
		switch {
		case closed:
			return 0, errors.New("the connection to the service's memory was closed")
		case role == Active:
			return cluster.Epoch(epoch), nil
		case role == Fenced:
			return 0, fmt.Errorf("service %s: %w: fenced in epoch %d", a.service, ErrFenced, epoch)
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-changed:
		}
	}
}

// MayAct says whether this process may act at this very moment: active, every region taken over, and the lease not over. It reads the clock and the page that
// the daemon writes, and takes well under a microsecond: ask before each act.
func (a *App) MayAct() bool {
	if !a.acting.Load() {
		return false
	}
	return a.page == nil || a.page.MayAct(now())
}

// now reads CLOCK_BOOTTIME without telling the Go scheduler, which the call is too short for.
func now() cluster.Instant {
	var ts unix.Timespec
	if _, _, e := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(ptr(&ts)), 0); e != 0 {
		panic("clock_gettime(CLOCK_BOOTTIME): " + e.Error()) // cannot happen since Linux 2.6.39
	}
	return cluster.Instant(ts.Nano())
}

// Ready tells the daemon that this process has taken its role in this epoch.
func (a *App) Ready(e cluster.Epoch) error {
	_, err := a.ask(&wire.App{Kind: wire.Ready, Value: uint64(e)})
	return err
}

// Heartbeat tells the daemon that this process is well.
func (a *App) Heartbeat() error {
	_, err := a.ask(&wire.App{Kind: wire.Heartbeat})
	return err
}

// Fail tells the daemon that this process cannot go on, and why.
func (a *App) Fail(why string) error {
	_, err := a.ask(&wire.App{Kind: wire.Fail, Body: []byte(why[:min(len(why), 1024)])})
	return err
}

// Close ends the connection; the regions' memory is unmapped and must not be touched any more.
func (a *App) Close() error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil
	}
	a.closed = true
	a.acting.Store(false)
	conn, regions := a.conn, a.regions
	a.regions = nil
	a.tell()
	a.mu.Unlock()
	close(a.done)
	conn.Close()
	a.wg.Wait()
	for _, r := range regions {
		r.unmap()
	}
	if a.page != nil {
		a.page.Close()
	}
	return nil
}
