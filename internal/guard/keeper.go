package guard

import (
	"fmt"
	"os/signal"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/page"
	"github.com/hanode/hanode/internal/rt"
)

// socketFD is where the guard finds its end of the socket pair.
const socketFD = 3

// Main is the guard itself: the hidden subcommand of cmd/hanode. It returns when the daemon has gone and nothing is left
// to enforce.
func Main() error {
	runtime.GOMAXPROCS(1) // there is one goroutine; more would only be looked for
	runtime.LockOSThread()
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE) // only its work or SIGKILL ends it
	report := rt.EnterWith(rt.Guard())
	k, err := newKeeper(socketFD)
	if err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	text := ""
	if err := report.Err(); err != nil {
		text = err.Error()
	}
	k.answer(answer{kind: kindHello, text: text[:min(len(text), maxMessage-answerLen)]})
	runtime.GC() // the last one, unless the limit of rt.Guard is reached
	for !k.turn() {
	}
	return nil
}

// service is one watched service with its descriptors.
type service struct {
	used    bool
	no      uint32
	page    *page.Reader
	freeze  int
	kill    int
	life    int
	ice     int
	abort   int // -1: none
	watch   watch
	quiesce bool
	waiting uint32 // seq of a quiesce that is not answered yet
	netlink [maxNetlink][maxNetlinkN]byte
	lens    [maxNetlink]int
}

// keeper is the guard's whole state, made once. turn and what it calls allocate nothing.
type keeper struct {
	sock     int // -1: the daemon has gone
	timer    int
	netlink  int
	services [maxServices]service

	in   [maxMessage]byte
	out  [maxMessage]byte
	oob  [64]byte
	text [256]byte
	scan [512]byte
	iov  unix.Iovec
	msg  unix.Msghdr
	poll [2]unix.PollFd
	spec itimerspec
	fds  [maxFDs]int
	nfds int
}

type itimerspec struct{ interval, value unix.Timespec }

func newKeeper(sock int) (*keeper, error) {
	k := &keeper{sock: sock}
	unix.CloseOnExec(sock)
	if err := unix.SetNonblock(sock, true); err != nil {
		return nil, fmt.Errorf("its socket (descriptor %d): %w", sock, err)
	}
	var err error
	if k.timer, err = unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("timerfd_create: %w", err)
	}
	if k.netlink, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return k, nil
}

// idleLook is between two rounds of a guard without services.
const idleLook = time.Second

// turn is one round: look at each service, act, sleep until the next instant or message. true: nothing is left to do.
func (k *keeper) turn() bool {
	wake := k.act(rt.Now())
	if wake == 0 {
		return true
	}
	k.sleep(wake)
	for k.sock >= 0 && k.receive() {
	}
	return false
}

// act steps every service and returns when to do so again; 0: never.
func (k *keeper) act(now cluster.Instant) cluster.Instant {
	wake := now.Add(idleLook)
	if k.sock < 0 {
		wake = 0
	}
	for i := range k.services {
		s := &k.services[i]
		if !s.used {
			continue
		}
		snap := s.page.Load()
		a, next := s.watch.step(now, snap, s.quiesce)
		k.do(s, a, now)
		if snap.State != page.Active && snap.State != page.Draining {
			s.quiesce = false
		}
		if s.waiting != 0 {
			next = min(next, k.quiesced(s, now))
		}
		if k.sock < 0 {
			if populated, _ := k.state(s); s.watch.enforced(now, populated) {
				continue
			}
		}
		if wake == 0 || next < wake {
			wake = next
		}
	}
	return wake
}

// do carries out, the kill first: nothing may delay it.
func (k *keeper) do(s *service, a action, now cluster.Instant) {
	if a.kill {
		again := !a.first
		if populated, _ := k.state(s); !again || populated {
			k.tell(s, Killed, now, now.Sub(s.watch.deadline), writeOne(s.kill, '1'), again)
		}
	}
	if a.drop {
		errno := unix.Errno(0)
		for i, n := range s.lens {
			if n > 0 {
				if e := k.send(s.netlink[i][:n]); e != 0 {
					errno = e
				}
			}
		}
		if s.lens[0] > 0 {
			k.tell(s, Dropped, now, now.Sub(s.watch.deadline), errno, false)
		}
	}
	if a.abort && s.abort >= 0 {
		if populated, _ := k.state(s); populated {
			k.tell(s, Aborted, now, now.Sub(s.watch.deadline)-abortAfter, writeOne(s.abort, '1'), false)
		}
	}
	if a.freeze {
		late := now.Sub(s.watch.deadline.Add(-s.watch.ttl * freezePart / 100))
		k.tell(s, Froze, now, max(late, 0), writeOne(s.freeze, '1'), false)
	}
	if a.thaw {
		k.tell(s, Thawed, now, 0, writeOne(s.freeze, '0'), s.watch.killed)
	}
}

// quiesced answers a waiting quiesce if the processes are frozen or gone, and says when to look again.
func (k *keeper) quiesced(s *service, now cluster.Instant) cluster.Instant {
	populated, frozen := k.state(s)
	if populated && !frozen {
		return now.Add(1e6)
	}
	k.answer(answer{kind: kindDone, seq: s.waiting, no: s.no})
	s.waiting = 0
	return now.Add(look)
}

// state reads cgroup.events; a group that cannot be read has been removed and is empty.
func (k *keeper) state(s *service) (populated, frozen bool) {
	return k.says(s.life, "populated 1"), k.says(s.ice, "frozen 1")
}

func (k *keeper) says(fd int, line string) bool {
	n, _, e := unix.RawSyscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(&k.scan)), uintptr(len(k.scan)), 0, 0, 0)
	return e == 0 && hasLine(k.scan[:n], line)
}

func hasLine(b []byte, line string) bool {
	for len(b) >= len(line) {
		if string(b[:len(line)]) == line && (len(b) == len(line) || b[len(line)] == '\n') {
			return true
		}
		i := 0
		for i < len(b) && b[i] != '\n' {
			i++
		}
		b = b[min(i+1, len(b)):]
	}
	return false
}

func writeOne(fd int, c byte) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_PWRITE64, uintptr(fd), uintptr(unsafe.Pointer(&c)), 1, 0, 0, 0)
	return e
}

// send hands a message to the kernel, which acts before it returns; then it drops what the kernel says to it.
func (k *keeper) send(m []byte) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(k.netlink), uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return e
	}
	n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(k.netlink), uintptr(unsafe.Pointer(&k.scan)), uintptr(len(k.scan)), unix.MSG_DONTWAIT, 0, 0)
	if e == 0 && n >= unix.NLMSG_HDRLEN+4 && order.Uint16(k.scan[4:]) == unix.NLMSG_ERROR {
		return unix.Errno(-int32(order.Uint32(k.scan[unix.NLMSG_HDRLEN:])))
	}
	return 0
}

// sleep waits for wake (BOOTTIME, absolute) or a message.
func (k *keeper) sleep(wake cluster.Instant) {
	k.spec.value = unix.Timespec{Sec: int64(wake) / 1e9, Nsec: int64(wake) % 1e9}
	unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, uintptr(k.timer), unix.TFD_TIMER_ABSTIME, uintptr(unsafe.Pointer(&k.spec)), 0, 0, 0)
	k.poll[0] = unix.PollFd{Fd: int32(k.timer), Events: unix.POLLIN}
	k.poll[1] = unix.PollFd{Fd: int32(k.sock), Events: unix.POLLIN} // a negative one is ignored
	// Announced: a raw wait would keep the runtime's monitor thread awake, which looks a hundred times a second whether this goroutine still holds
	// its processor, and interrupts it. Nothing else of this process wants the processor, so it is there when the wait is over.
	unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&k.poll)), 2, 0, 0, 0, 0)
}

// tell reports to the daemon, or to stderr when there is none any more.
func (k *keeper) tell(s *service, what Done, now cluster.Instant, late time.Duration, errno unix.Errno, quiet bool) {
	if quiet && errno == 0 {
		return
	}
	if k.sock >= 0 {
		k.answer(answer{kind: kindEvent, seq: uint32(what), no: s.no, errno: uint32(errno), epoch: uint64(s.watch.epoch), at: int64(now), late: int64(late)})
		return
	}
	b := append(k.text[:0], "hanode guard: "...)
	b = append(b, what.String()...)
	b = append(b, " service "...)
	b = strconv.AppendUint(b, uint64(s.no), 10)
	b = append(b, " epoch "...)
	b = strconv.AppendUint(b, uint64(s.watch.epoch), 10)
	b = append(b, ", the daemon has gone, late_us="...)
	b = strconv.AppendInt(b, int64(late)/1000, 10)
	b = append(b, " errno="...)
	b = strconv.AppendInt(b, int64(errno), 10)
	b = append(b, '\n')
	unix.RawSyscall(unix.SYS_WRITE, 2, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
}

// answer never waits: a daemon that does not read loses answers, not its fence.
func (k *keeper) answer(a answer) {
	if k.sock < 0 {
		return
	}
	b := putAnswer(k.out[:], a)
	unix.RawSyscall6(unix.SYS_SENDTO, uintptr(k.sock), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
}

// receive takes one message; false: there is none.
func (k *keeper) receive() bool {
	k.iov = unix.Iovec{Base: &k.in[0]}
	k.iov.SetLen(len(k.in))
	k.msg = unix.Msghdr{Iov: &k.iov, Control: &k.oob[0]}
	k.msg.SetIovlen(1)
	k.msg.SetControllen(len(k.oob))
	n, _, e := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(k.sock), uintptr(unsafe.Pointer(&k.msg)), unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	switch {
	case e == unix.EAGAIN || e == unix.EINTR:
		return false
	case e != 0 || n == 0:
		unix.Close(k.sock)
		k.sock = -1
		return false
	}
	k.takeFDs()
	r, ok := decodeRequest(k.in[:n])
	errno := unix.EBADMSG
	if ok {
		errno = k.handle(r)
	}
	for _, fd := range k.fds[:k.nfds] { // those that handle did not keep
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if errno != 0 || r.kind != kindQuiesce && r.kind != kindLook {
		k.answer(answer{kind: kindDone, seq: r.seq, no: r.no, errno: uint32(errno)})
	}
	return true
}

// takeFDs reads the descriptors of the message just received (cmsg(3)).
func (k *keeper) takeFDs() {
	k.nfds = 0
	const head = unix.SizeofCmsghdr
	if k.msg.Controllen < head {
		return
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&k.oob[0]))
	if h.Level != unix.SOL_SOCKET || h.Type != unix.SCM_RIGHTS || uint64(h.Len) > uint64(len(k.oob)) {
		return
	}
	for at := head; at+4 <= int(h.Len) && k.nfds < maxFDs; at += 4 {
		k.fds[k.nfds] = int(int32(order.Uint32(k.oob[at:])))
		k.nfds++
	}
}

func (k *keeper) handle(r request) unix.Errno {
	s := k.find(r.no)
	switch r.kind {
	case kindAdd:
		if s != nil {
			return unix.EEXIST
		}
		return k.add(r)
	case kindUpdate:
		if s == nil {
			return unix.ENOENT
		}
		return s.setNetlink(r)
	case kindRemove:
		if s == nil {
			return unix.ENOENT
		}
		k.remove(s)
		return 0
	case kindQuiesce:
		if s == nil {
			return unix.ENOENT
		}
		s.quiesce, s.waiting = true, r.seq
		return 0
	case kindLook:
		return 0 // the next turn looks
	case kindResume:
		if s == nil {
			return unix.ENOENT
		}
		s.quiesce, s.waiting = false, 0
		return 0
	}
	return unix.EINVAL
}

func (k *keeper) find(no uint32) *service {
	for i := range k.services {
		if k.services[i].used && k.services[i].no == no {
			return &k.services[i]
		}
	}
	return nil
}

// add is the one thing that allocates: some bytes for the mapping, once per service.
func (k *keeper) add(r request) unix.Errno {
	if k.nfds < 5 {
		return unix.EINVAL
	}
	for i := range k.services {
		s := &k.services[i]
		if s.used {
			continue
		}
		p, err := page.OpenFD(k.fds[0])
		if err != nil {
			return unix.EBADF
		}
		*s = service{used: true, no: r.no, page: p, freeze: k.fds[1], kill: k.fds[2], life: k.fds[3], ice: k.fds[4], abort: -1}
		k.fds[1], k.fds[2], k.fds[3], k.fds[4] = -1, -1, -1, -1 // kept; the page's own one is not needed any more
		if k.nfds > 5 {
			s.abort, k.fds[5] = k.fds[5], -1
		}
		if e := s.setNetlink(r); e != 0 {
			k.remove(s)
			return e
		}
		return 0
	}
	return unix.ENOSPC
}

func (s *service) setNetlink(r request) unix.Errno {
	clear(s.lens[:])
	for i := range r.count {
		m, ok := r.next()
		if !ok {
			clear(s.lens[:])
			return unix.EBADMSG
		}
		s.lens[i] = copy(s.netlink[i][:], m)
	}
	return 0
}

// remove forgets a service. What we froze is thawed: nobody else would.
func (k *keeper) remove(s *service) {
	if s.watch.frozen {
		writeOne(s.freeze, '0')
	}
	s.page.Close()
	for _, fd := range []int{s.freeze, s.kill, s.life, s.ice, s.abort} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	*s = service{}
}
