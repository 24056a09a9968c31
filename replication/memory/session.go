package memory

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication/memory/image"
	"github.com/hanode/hanode/replication/memory/store"
	"github.com/hanode/hanode/replication/memory/wire"
)

// Peer is the process at the other end of the socket, as the kernel says.
type Peer struct {
	PID      int
	UID, GID uint32
	Cgroup   string // of the unified hierarchy
}

// maxSessions bounds the applications of one service, and maxPending what one of them may have under way.
const (
	maxSessions = 64
	maxPending  = 1024
)

// session is one application's connection.
type session struct {
	s    *Server
	conn *net.UnixConn
	peer Peer
	wmu  sync.Mutex
	out  []byte
	open map[uint32]*opened // the reader's own
}

// opened is a region of an application.
type opened struct {
	r      *region
	live   *os.File // the application's memory
	stage  *os.File // where it puts checkpoints
	size   uint64   // of live, in bytes as the application asked
	layout uint32
	stale  []uint64 // r.mu: blocks of live that differ from the image (standby)
}

// release ends the application's view of the images.
func (o *opened) release() {
	o.r.mu.Lock()
	if o.r.view == o {
		o.r.view = nil
	}
	o.r.mu.Unlock()
}

func (s *Server) accept() {
	for {
		conn, err := s.ln.AcceptUnix()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.log.Warn("the applications' socket ended", "err", err)
			}
			return
		}
		c := &session{s: s, conn: conn, open: map[uint32]*opened{}}
		s.mu.Lock()
		full := len(s.sessions) >= maxSessions || s.closed
		if !full {
			s.sessions[c] = true
		}
		s.mu.Unlock()
		if full {
			c.send(&wire.App{Kind: wire.Hello | wire.Answer, Status: wire.Busy, Body: fmt.Appendf(nil, "service %s has %d applications already", s.cfg.Service, maxSessions)})
			conn.Close()
			continue
		}
		s.wg.Go(c.run)
	}
}

func (c *session) run() {
	defer c.end()
	buf, oob := make([]byte, wire.MaxApp+1), make([]byte, 128)
	greeted := false
	for {
		n, oobn, flags, _, err := c.conn.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			return
		}
		fd := received(oob[:oobn])
		var m wire.App
		if flags&unix.MSG_TRUNC != 0 || n > wire.MaxApp {
			err = fmt.Errorf("a message of more than %d bytes", wire.MaxApp)
		} else {
			err = wire.ParseApp(buf[:n], &m)
		}
		if err == nil && (m.Kind == wire.Hello) == greeted {
			err = errors.New("the first message, and only that, is hello")
		}
		if err != nil {
			closeFD(fd)
			c.answer(&m, refuse(wire.Invalid, "service %s: %v; the connection ends, nothing was changed", c.s.cfg.Service, err))
			return
		}
		if !greeted { // the question was read first: the answer would be lost otherwise
			if err := c.admit(); err != nil {
				closeFD(fd)
				c.s.log.Warn("a process was turned away", "pid", c.peer.PID, "uid", c.peer.UID, "err", err)
				c.answer(&m, &refused{wire.Foreign, err.Error()})
				return
			}
			greeted = true
		}
		if err := c.serve(&m, fd); err != nil {
			c.answer(&m, err)
		}
	}
}

func (c *session) admit() error {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil || err != nil {
		return errors.Join(e, err)
	}
	c.peer = Peer{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cred.Pid))
	if err != nil {
		return fmt.Errorf("process %d cannot be looked at: %w", cred.Pid, err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			c.peer.Cgroup = path
		}
	}
	if c.s.cfg.Admit != nil {
		return c.s.cfg.Admit(c.peer)
	}
	if uid := os.Geteuid(); int(c.peer.UID) != uid {
		return fmt.Errorf("process %d of user %d may not use the memory of service %s: run it as user %d", c.peer.PID, c.peer.UID, c.s.cfg.Service, uid)
	}
	return nil
}

// OfService admits the processes in the service's cgroup (a path of the unified hierarchy; "" = any) of the given users (nil = any).
func OfService(service, cgroup string, uids []uint32) func(Peer) error {
	return func(p Peer) error {
		if cgroup != "" && p.Cgroup != cgroup && !strings.HasPrefix(p.Cgroup, strings.TrimSuffix(cgroup, "/")+"/") {
			return fmt.Errorf("process %d is not one of service %s: its cgroup is %q, not below %q; start it as a process of the service", p.PID, service, p.Cgroup, cgroup)
		}
		for _, u := range uids {
			if u == p.UID {
				return nil
			}
		}
		if uids != nil {
			return fmt.Errorf("process %d of user %d may not use the memory of service %s, whose processes run as user %v", p.PID, p.UID, service, uids)
		}
		return nil
	}
}

func received(oob []byte) int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1
	}
	keep := -1
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			if keep < 0 {
				keep = fd
			} else {
				unix.Close(fd)
			}
		}
	}
	return keep
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// send writes one message; an application that does not read for a second is cut off.
func (c *session) send(m *wire.App, files ...*os.File) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.out = wire.AppendApp(c.out[:0], m)
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	_, _, err := c.conn.WriteMsgUnix(c.out, oob, nil)
	if err != nil {
		c.conn.Close()
	}
}

// answer answers m with err.
func (c *session) answer(m *wire.App, err error) {
	var r *refused
	status := wire.Broken
	if errors.As(err, &r) {
		status = r.status
	}
	c.send(&wire.App{Kind: m.Kind | wire.Answer, ID: m.ID, Region: m.Region, Status: status, Body: []byte(err.Error())})
}

func (c *session) tellRole() {
	s := c.s
	s.mu.Lock()
	m := wire.App{Kind: wire.Role, Flags: s.role, Value: uint64(s.epoch())}
	s.mu.Unlock()
	c.send(&m)
}

// epoch is the epoch that applications are told (s.mu).
func (s *Server) epoch() cluster.Epoch {
	if s.role == wire.Active {
		return s.led
	}
	return s.facts.epoch
}

// end is the end of the connection: the application's regions are free again. What it had sent completely is an image like any other.
func (c *session) end() {
	c.conn.Close()
	s := c.s
	for _, o := range c.open {
		c.drop(o)
	}
	s.mu.Lock()
	delete(s.sessions, c)
	s.mu.Unlock()
}

func (c *session) drop(o *opened) {
	c.s.mu.Lock()
	o.r.owner = nil
	c.s.mu.Unlock()
	o.release()
	o.live.Close()
	o.stage.Close()
	delete(c.open, o.r.no)
}

func (c *session) serve(m *wire.App, fd int) error {
	if m.Kind != wire.Open {
		closeFD(fd)
	}
	switch m.Kind {
	case wire.Hello:
		return c.hello(m)
	case wire.Open:
		return c.opens(m, fd)
	case wire.Checkpoint:
		return c.checkpoint(m)
	case wire.Heartbeat, wire.Fail:
		return c.health(m)
	case wire.Ready:
		if f := c.s.cfg.Events.Ready; f != nil {
			pid, e := c.peer.PID, cluster.Epoch(m.Value)
			c.s.mu.Lock()
			c.s.event(func() { f(pid, e) })
			c.s.mu.Unlock()
		}
		c.send(&wire.App{Kind: m.Kind | wire.Answer, ID: m.ID})
		return nil
	}
	o := c.open[m.Region]
	if o == nil {
		return refuse(wire.Unknown, "service %s: region %d was not opened on this connection", c.s.cfg.Service, m.Region)
	}
	switch m.Kind {
	case wire.Append:
		return c.append(m, o)
	case wire.Grow:
		return c.grow(m, o)
	case wire.Take:
		return c.take(m, o)
	case wire.Replay:
		return c.replay(m, o)
	case wire.Close:
		c.drop(o)
		c.send(&wire.App{Kind: m.Kind | wire.Answer, ID: m.ID, Region: m.Region})
		return nil
	}
	return refuse(wire.Invalid, "service %s: question %d is not known to this version", c.s.cfg.Service, m.Kind)
}

func (c *session) hello(m *wire.App) error {
	s := c.s
	if m.Value != wire.Version {
		return refuse(wire.Invalid, "service %s: protocol version %d, this server speaks %d: use a library of the server's version", s.cfg.Service, m.Value, wire.Version)
	}
	s.mu.Lock()
	a := wire.App{Kind: m.Kind | wire.Answer, ID: m.ID, Flags: s.role, Value: uint64(s.epoch()), Body: []byte(s.cfg.Service)}
	s.mu.Unlock()
	if s.cfg.Page != nil {
		c.send(&a, s.cfg.Page)
		return nil
	}
	c.send(&a)
	return nil
}

func (c *session) health(m *wire.App) error {
	text, healthy := string(m.Body), m.Kind == wire.Heartbeat
	if f := c.s.cfg.Events.Health; f != nil {
		c.s.mu.Lock()
		c.s.event(func() { f(c.peer.PID, healthy, text) })
		c.s.mu.Unlock()
	}
	c.send(&wire.App{Kind: m.Kind | wire.Answer, ID: m.ID})
	return nil
}

// opens gives a region to the application: memory with the newest image in it, and staging memory.
func (c *session) opens(m *wire.App, fd int) error {
	s := c.s
	var ask wire.Opening
	if err := ask.Parse(m.Body); err != nil {
		closeFD(fd)
		return refuse(wire.Invalid, "service %s: %v", s.cfg.Service, err)
	}
	r := s.regions[ask.Name]
	if r == nil {
		closeFD(fd)
		return refuse(wire.Unknown, "region %q is not in the spec of service %s: add memory %q { size = … }", ask.Name, s.cfg.Service, ask.Name)
	}
	if (ask.Flags&wire.OpenBring != 0) != (fd >= 0) {
		closeFD(fd)
		return refuse(wire.Invalid, "region %s: memory comes with the flag that says so, and only then", ask.Name)
	}
	if err := c.claim(r); err != nil {
		closeFD(fd)
		return err
	}
	o, err := c.openAs(r, &ask, m.Value, fd)
	if err != nil {
		s.mu.Lock()
		r.owner = nil
		s.mu.Unlock()
		return err
	}
	c.open[r.no] = o
	r.mu.Lock()
	info := s.info(o)
	r.mu.Unlock()
	c.send(&wire.App{Kind: m.Kind | wire.Answer, ID: m.ID, Region: r.no, Value: info.Number, Body: info.Append(nil)}, o.live, o.stage)
	return nil
}

func (c *session) claim(r *region) error {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.owner == c:
		return refuse(wire.Busy, "region %s is open on this connection already", r.spec.Name)
	case r.owner != nil:
		return refuse(wire.Busy, "region %s belongs to process %d: end that one first, or give this process a region of its own in the spec", r.spec.Name, r.owner.peer.PID)
	}
	r.owner = c
	return nil
}

func (c *session) openAs(r *region, ask *wire.Opening, size uint64, fd int) (o *opened, err error) {
	s := c.s
	o = &opened{r: r, layout: ask.Layout, size: size}
	defer func() {
		if err != nil {
			o.release()
			for _, f := range []*os.File{o.live, o.stage} {
				if f != nil {
					f.Close()
				}
			}
		}
	}()
	if fd >= 0 {
		o.live = os.NewFile(uintptr(fd), "region "+r.spec.Name)
	}
	if err := image.CheckSize(r.spec.Name, size, r.spec.Size); err != nil {
		return o, refuse(wire.TooBig, "%v", err)
	}
	if err := s.settled(c, r); err != nil {
		return o, err
	}
	if err := s.prepare(r, o, ask); err != nil {
		return o, err
	}
	if o.stage, err = memfd("stage "+r.spec.Name, store.BufferSize(r.spec.Size)); err != nil {
		return o, err
	}
	if o.live == nil {
		if o.live, err = memfd("region "+r.spec.Name, o.size); err != nil {
			return o, err
		}
	} else if err := bring(o.live, o.size); err != nil {
		return o, refuse(wire.Invalid, "region %s: %v", r.spec.Name, err)
	}
	if ask.Flags&wire.OpenBring != 0 && s.isActive() {
		return o, nil // its own content stands; its next checkpoint is of all blocks
	}
	return o, o.show(true)
}

func (s *Server) isActive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.role == wire.Active
}

// settled waits until nothing of the region is under way: nobody sees an image that the standby may not hold (D3).
func (s *Server) settled(c *session, r *region) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	deadline := time.Now().Add(10 * time.Second)
	for {
		under := false
		for _, f := range s.flights {
			for _, fr := range f.regs {
				under = under || fr == r
			}
		}
		switch {
		case !under:
			return nil
		case s.closed:
			return refuse(wire.Ended, "the server of the service's memory ends")
		case time.Now().After(deadline):
			return refuse(wire.Busy, "region %s: the standby has not answered for the last checkpoint for 10 s: see hanode status", r.spec.Name)
		}
		t := time.AfterFunc(100*time.Millisecond, s.changed.Broadcast)
		s.changed.Wait()
		t.Stop()
	}
}

// memfd makes memory that cannot shrink: whoever maps it never meets its end.
func memfd(name string, size uint64) (*os.File, error) {
	fd, err := unix.MemfdCreate("hanode-"+name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make memory for %s: memfd_create: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := errors.Join(f.Truncate(int64(round(size))), seal(fd)); err != nil {
		f.Close()
		return nil, fmt.Errorf("make memory for %s, %d bytes: %w", name, size, err)
	}
	return f, nil
}

func seal(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	return err
}

func round(size uint64) uint64 { return image.Blocks(size) * image.Block }

// bring checks memory that an application brought.
func bring(f *os.File, size uint64) error {
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return fmt.Errorf("the memory that came with it was not made by a server of regions (seals %#x, %v)", seals, err)
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if uint64(st.Size()) < round(size) {
		return fmt.Errorf("the memory that came with it has %d bytes, the region %d", st.Size(), size)
	}
	return nil
}

// info describes a region to its application (r.mu is held).
func (s *Server) info(o *opened) wire.Info {
	h := o.r.img.Head()
	s.mu.Lock()
	age := time.Since(o.r.since)
	s.mu.Unlock()
	i := wire.Info{Epoch: uint64(h.Epoch), Gen: uint64(h.Gen), Number: h.Number, AgeNs: uint64(age), Size: o.size, Max: o.r.spec.Size, Stage: store.BufferSize(o.r.spec.Size),
		LogSeq: h.LogSeq, LastSeq: o.r.img.Log().Last(), EveryNs: uint64(o.r.spec.Every), Layout: h.Layout, Mode: 1}
	switch o.r.spec.Checkpoint {
	case "timed":
		i.Mode = 2
	case "async":
		i.Mode = 3
	}
	return i
}

func boottime() cluster.Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock_gettime(CLOCK_BOOTTIME): " + err.Error()) // cannot happen since Linux 2.6.39
	}
	return cluster.Instant(ts.Nano())
}
