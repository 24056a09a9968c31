package link

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// reader takes the datagrams of all sockets on one goroutine: the copies of a frame come on all links within microseconds, and each
// wake-up costs more than reading them. The sockets are watched by a poll set of their own, and that one by the runtime; the runtime never
// sees the sockets, and so wakes up once for all of them.
type reader struct {
	socks  []*socket
	set    *os.File
	raw    syscall.RawConn
	closed atomic.Bool
}

func newReader(socks []*socket) (*reader, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch the udp sockets: epoll_create1: %w", err)
	}
	for _, s := range socks {
		err = errors.Join(err, s.control(func(sock uintptr) error {
			return unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, int(sock), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(sock)})
		}))
	}
	if err == nil {
		err = unix.SetNonblock(fd, true) // so that the runtime waits for it
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch the udp sockets: %w", err)
	}
	r := &reader{socks: socks, set: os.NewFile(uintptr(fd), "udp sockets")}
	if r.raw, err = r.set.SyscallConn(); err != nil {
		r.set.Close()
		return nil, fmt.Errorf("watch the udp sockets: %w", err)
	}
	return r, nil
}

// close ends run.
func (r *reader) close() {
	r.closed.Store(true)
	r.set.Close()
}

// complaints is how many errors of a socket in a row are taken for what it has to say (of ICMP errors, for example); more of them, and it is looked at again
// only when something arrives.
const complaints = 16

// run hands every datagram to f until close. It reads the sockets in turn, so that a flood on one does not hide the others, and waits when all are
// empty.
func (r *reader) run(ctx context.Context, f func(s *socket, b []byte, from *rawAddr), failed func(s *socket, err error)) error {
	buf := make([]byte, 2048)
	var source rawAddr
	var n int
	var got error
	take := func(fd uintptr) { n, got = receiveRaw(fd, buf, &source) }
	bad := make([]int, len(r.socks))
	err := r.raw.Read(func(uintptr) bool {
		clear(bad)
		for again := true; again; {
			again = false
			for i, s := range r.socks {
				if r.closed.Load() || ctx.Err() != nil {
					return true
				}
				err := s.raw.Control(take)
				if err == nil {
					err = got
				}
				switch {
				case err == nil:
					bad[i], again = 0, true
					f(s, buf[:n], &source)
				case err != unix.EAGAIN && bad[i] < complaints:
					bad[i]++
					again = true
					failed(s, err)
				}
			}
		}
		return false // wait until there is something
	})
	if r.closed.Load() || ctx.Err() != nil {
		return nil
	}
	return err
}
