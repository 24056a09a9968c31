package vip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// routeSocket is a NETLINK_ROUTE socket for requests. It stays in the network namespace in which it was opened. Not safe
// for concurrent use.
type routeSocket struct {
	fd  int
	seq uint32
	out []byte
	in  []byte
}

// errInterrupted says that the list changed while the kernel was writing it (NLM_F_DUMP_INTR).
var errInterrupted = errors.New("the kernel's list changed while it was read, again and again")

func openRoute() (*routeSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	// The kernel answers within the send; the time-out is for a kernel that does not keep its word.
	tv := unix.Timeval{Sec: 2}
	if err := errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
	); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("prepare a netlink socket: %w", err)
	}
	// Short answers, and the kernel's own words for a refusal; older kernels do without.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	return &routeSocket{fd: fd, in: make([]byte, 64<<10)}, nil
}

func (s *routeSocket) close() { unix.Close(s.fd) }

// batchMax bounds one send: its answers must fit into the receive buffer.
const batchMax = 64

// do sends requests that each ask for an acknowledgement and returns the kernel's answer to each, in order. It writes
// the sequence numbers into the requests.
func (s *routeSocket) do(reqs ...[]byte) []error {
	errs := make([]error, 0, len(reqs))
	for len(reqs) > 0 {
		n := min(len(reqs), batchMax)
		errs = append(errs, s.batch(reqs[:n])...)
		reqs = reqs[n:]
	}
	return errs
}

func (s *routeSocket) batch(reqs [][]byte) []error {
	errs := make([]error, len(reqs))
	first := s.seq + 1
	s.out = s.out[:0]
	for _, r := range reqs {
		s.seq++
		binary.NativeEndian.PutUint32(r[8:], s.seq)
		s.out = append(s.out, r...)
	}
	fail := func(err error) []error {
		for i := range errs {
			if errs[i] == nil {
				errs[i] = err
			}
		}
		return errs
	}
	if err := s.send(s.out); err != nil {
		return fail(err)
	}
	for left := len(reqs); left > 0; {
		err := s.receive(func(typ, flags uint16, seq uint32, body []byte) {
			i := seq - first
			if typ != unix.NLMSG_ERROR || i >= uint32(len(errs)) {
				return // an answer to an earlier batch that timed out
			}
			errs[i] = ackError(flags, body)
			left--
		})
		if err != nil {
			return fail(fmt.Errorf("no answer from the kernel: %w", err))
		}
	}
	return errs
}

// dump sends a list request and calls fn with the body of each entry of the type; from the beginning again, after reset,
// when the list changed meanwhile.
func (s *routeSocket) dump(req []byte, want uint16, reset func(), fn func(body []byte)) error {
	for range 50 {
		reset()
		s.seq++
		binary.NativeEndian.PutUint32(req[8:], s.seq)
		if err := s.send(req); err != nil {
			return err
		}
		interrupted, err := s.dumped(want, fn)
		if err != nil || !interrupted {
			return err
		}
	}
	return errInterrupted
}

func (s *routeSocket) dumped(want uint16, fn func(body []byte)) (interrupted bool, err error) {
	for done := false; !done; {
		var answer error
		rerr := s.receive(func(typ, flags uint16, seq uint32, body []byte) {
			if seq != s.seq {
				return
			}
			interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
			switch typ {
			case want:
				fn(body)
			case unix.NLMSG_DONE:
				done = true
			case unix.NLMSG_ERROR:
				done, answer = true, ackError(flags, body)
			}
		})
		if err := errors.Join(rerr, answer); err != nil {
			return false, err
		}
	}
	return interrupted, nil
}

func (s *routeSocket) send(b []byte) error {
	for {
		err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return err
		}
	}
}

// receive reads one datagram and calls fn for each message in it.
func (s *routeSocket) receive(fn func(typ, flags uint16, seq uint32, body []byte)) error {
	for {
		n, from, err := unix.Recvfrom(s.fd, s.in, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 {
			continue // not from the kernel
		}
		messages(s.in[:n], fn)
		return nil
	}
}

func messages(b []byte, fn func(typ, flags uint16, seq uint32, body []byte)) {
	for len(b) >= headerLen {
		n := int(binary.NativeEndian.Uint32(b))
		if n < headerLen || n > len(b) {
			return
		}
		fn(binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:]), b[headerLen:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// ackError is what an NLMSG_ERROR says; nil for an acknowledgement.
func ackError(flags uint16, body []byte) error {
	if len(body) < 4 {
		return errors.New("the kernel's answer is cut off")
	}
	code := int32(binary.NativeEndian.Uint32(body))
	if code == 0 {
		return nil
	}
	err := error(unix.Errno(-code))
	const ackTLVs, attrMsg = 0x200, 1 // NLM_F_ACK_TLVS, NLMSGERR_ATTR_MSG
	if flags&ackTLVs != 0 && flags&0x100 != 0 && len(body) >= 4+headerLen {
		attrs(body[4+headerLen:], func(typ uint16, data []byte) {
			if typ == attrMsg && len(data) > 1 {
				err = fmt.Errorf("%w: %s", err, data[:len(data)-1])
			}
		})
	}
	return err
}

// routeType is the type of the route that a routeMessage asks for: unix.RTN_LOCAL once the kernel takes packets to it.
func (s *routeSocket) routeType(req []byte) (typ uint8, err error) {
	s.seq++
	binary.NativeEndian.PutUint32(req[8:], s.seq)
	if err := s.send(req); err != nil {
		return 0, err
	}
	for done := false; !done; {
		rerr := s.receive(func(t, flags uint16, seq uint32, body []byte) {
			switch {
			case seq != s.seq:
			case t == unix.NLMSG_ERROR:
				done, err = true, ackError(flags, body)
			case t == unix.RTM_NEWROUTE && len(body) >= unix.SizeofRtMsg:
				done, typ = true, body[7]
			}
		})
		if rerr != nil {
			return 0, rerr
		}
	}
	return typ, err
}

// list reads all interfaces and addresses of the namespace.
func (s *routeSocket) list() (snapshot, error) {
	var snap snapshot
	err := s.dump(dumpMessage(unix.RTM_GETLINK), unix.RTM_NEWLINK, func() { snap.links = nil }, func(b []byte) {
		if l, ok := parseLink(b); ok {
			snap.links = append(snap.links, l)
		}
	})
	if err != nil {
		return snap, fmt.Errorf("list the interfaces: %w", err)
	}
	slices.SortFunc(snap.links, func(a, b link) int { return a.index - b.index })
	return snap, s.listAddrs(&snap)
}

func (s *routeSocket) listAddrs(snap *snapshot) error {
	err := s.dump(dumpMessage(unix.RTM_GETADDR), unix.RTM_NEWADDR, func() { snap.addrs = nil }, func(b []byte) {
		if a, ok := parseAddr(b); ok {
			snap.addrs = append(snap.addrs, a)
		}
	})
	if err != nil {
		return fmt.Errorf("list the addresses: %w", err)
	}
	return nil
}

// openEvents opens a socket that becomes readable when interfaces or addresses change. Reading is by the file, so that
// closing it or its deadline ends a read.
func openEvents() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket for events: %w", err)
	}
	const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to changes of interfaces and addresses: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink events"), nil
}
