package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// Fast is the measuring client: a new connection every Every, given up after Timeout, closed with a reset so that no
// port stays in TIME_WAIT. One thread, one epoll, no goroutine per attempt: three of them beside the service under test
// must not be what the machine is busy with.
type Fast struct {
	Target  netip.AddrPort
	Every   time.Duration // default 5 ms
	Timeout time.Duration // default 200 ms
}

// attempt is a connection under way.
type attempt struct {
	fd    int
	start cluster.Instant
	sent  bool
	open  bool
	got   []byte
}

type fast struct {
	Fast
	ep    int
	byFD  map[int]*attempt
	queue []*attempt // by start; all have the same timeout
	free  []*attempt
	out   sink
	addr  unix.Sockaddr
}

const maxInFlight = 4096

// Run probes until ctx ends, writing records to w after a header with the name.
func (f Fast) Run(ctx context.Context, name string, w io.Writer) error {
	if f.Every <= 0 {
		f.Every = 5 * time.Millisecond
	}
	if f.Timeout <= 0 {
		f.Timeout = 200 * time.Millisecond
	}
	if !f.Target.Addr().Is4() {
		return fmt.Errorf("probe of %v: only IPv4 so far", f.Target)
	}
	if _, err := w.Write(header(name)); err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	defer unix.Close(ep)
	tick, err := ticker(ep, f.Every)
	if err != nil {
		return err
	}
	defer unix.Close(tick)
	p := &fast{Fast: f, ep: ep, byFD: map[int]*attempt{}, out: sink{w: w},
		addr: &unix.SockaddrInet4{Port: int(f.Target.Port()), Addr: f.Target.Addr().As4()}}
	defer func() {
		for _, a := range p.byFD {
			unix.Close(a.fd)
		}
	}()
	return p.loop(ctx, tick)
}

// ticker is a timerfd in the epoll. It counts missed ticks itself: a probe that was held up does not catch up.
func ticker(ep int, every time.Duration) (int, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("timer: %w", err)
	}
	iv := unix.NsecToTimespec(every.Nanoseconds())
	if err := unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Interval: iv, Value: iv}, nil); err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("timer: %w", err)
	}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("timer: %w", err)
	}
	return fd, nil
}

func (p *fast) loop(ctx context.Context, tick int) error {
	events := make([]unix.EpollEvent, 64)
	var drain [8]byte
	for ctx.Err() == nil {
		n, err := unix.EpollWait(p.ep, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll: %w", err)
		}
		ticked := false
		for _, ev := range events[:max(n, 0)] {
			if int(ev.Fd) == tick {
				ticked = true
				_, _ = unix.Read(tick, drain[:])
			} else if a := p.byFD[int(ev.Fd)]; a != nil {
				p.step(a, ev.Events)
			}
		}
		if !ticked {
			continue
		}
		now := Now()
		p.expire(now)
		if err := p.begin(now); err != nil {
			return err
		}
		if err := p.out.flush(now, false); err != nil {
			return err
		}
	}
	return p.out.flush(0, true)
}

func (p *fast) begin(now cluster.Instant) error {
	if len(p.byFD) >= maxInFlight {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) // else TIME_WAIT, no more
	var a *attempt
	if n := len(p.free); n > 0 {
		a, p.free = p.free[n-1], p.free[:n-1]
	} else {
		a = &attempt{got: make([]byte, 0, 128)}
	}
	a.fd, a.start, a.sent, a.open, a.got = fd, now, false, true, a.got[:0]
	p.byFD[fd] = a
	p.queue = append(p.queue, a)
	if err := unix.Connect(fd, p.addr); err != nil && err != unix.EINPROGRESS {
		p.end(a, "", err)
		return nil
	}
	return unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET, Fd: int32(fd)})
}

var hello = []byte("hello\n")

// step goes on with an attempt whose socket has news.
func (p *fast) step(a *attempt, events uint32) {
	if !a.sent && events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		if soerr, err := unix.GetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && soerr != 0 {
			p.end(a, "", unix.Errno(soerr))
			return
		}
		if _, err := unix.Write(a.fd, hello); err == unix.EAGAIN {
			return
		} else if err != nil {
			p.end(a, "", err)
			return
		}
		a.sent = true
	}
	if !a.sent {
		return
	}
	for {
		n, err := unix.Read(a.fd, a.got[len(a.got):cap(a.got)])
		switch {
		case err == unix.EAGAIN:
			return
		case err == unix.EINTR:
			continue
		case err != nil:
			p.end(a, "", err)
			return
		case n == 0:
			p.end(a, "", io.EOF)
			return
		}
		a.got = a.got[:len(a.got)+n]
		if a.got[len(a.got)-1] == '\n' || len(a.got) == cap(a.got) {
			p.end(a, string(a.got), nil)
			return
		}
	}
}

func (p *fast) expire(now cluster.Instant) {
	for len(p.queue) > 0 {
		a := p.queue[0]
		if a.open && now.Sub(a.start) < p.Timeout {
			return
		}
		if a.open {
			p.end(a, "", unix.ETIMEDOUT)
		}
		p.queue = p.queue[1:]
		p.free = append(p.free, a) // only what has left the queue may be used again
	}
}

func (p *fast) end(a *attempt, line string, err error) {
	now := Now()
	unix.Close(a.fd)
	delete(p.byFD, a.fd)
	a.open = false
	r := Record{Start: a.start, End: now, Why: reason(err)}
	if err == nil {
		r.Node, r.Epoch, r.Count = parse(line)
		if r.Node == "" {
			r.Why = Other
		}
	}
	p.out.add(r)
}

// parse reads "<node> <epoch> <counter> hello"; a service that says only "<node> hello" has epoch 0.
func parse(line string) (node string, epoch, count uint64) {
	f := strings.Fields(line)
	if len(f) == 0 {
		return "", 0, 0
	}
	if len(f) >= 3 {
		epoch, _ = strconv.ParseUint(f[1], 10, 64)
		count, _ = strconv.ParseUint(f[2], 10, 64)
	}
	return f[0], epoch, count
}

func reason(err error) Why {
	switch {
	case err == nil:
		return OK
	case errors.Is(err, unix.ETIMEDOUT), errors.Is(err, unix.EAGAIN):
		return Timeout
	case errors.Is(err, unix.ECONNREFUSED):
		return Refused
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return Reset
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return NoRoute
	case errors.Is(err, io.EOF):
		return EOF
	}
	return Other
}
