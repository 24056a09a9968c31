package link

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of datagrams, and of connections, are made without telling the Go scheduler. They never block (MSG_DONTWAIT), and each announced one would wake up the
// runtime's monitor thread when the process was asleep before: for a member that wakes up some hundred times a second for microseconds of work,
// that was half of its processor time.

// rawAddr is an address as sendto(2) takes it.
type rawAddr struct {
	buf [unix.SizeofSockaddrInet6]byte
	len uintptr
}

// rawSockaddr is to in the form that sendto(2) on s takes. Source of the layout: ip(7), ipv6(7).
func (s *socket) rawSockaddr(to netip.AddrPort) rawAddr {
	var r rawAddr
	ip := to.Addr().Unmap()
	binary.BigEndian.PutUint16(r.buf[2:], to.Port())
	if ip.Is4() && !s.v6 {
		binary.NativeEndian.PutUint16(r.buf[:], unix.AF_INET)
		a := ip.As4()
		copy(r.buf[4:], a[:])
		r.len = unix.SizeofSockaddrInet4
		return r
	}
	binary.NativeEndian.PutUint16(r.buf[:], unix.AF_INET6)
	a := ip.As16()
	copy(r.buf[8:], a[:])
	binary.NativeEndian.PutUint32(r.buf[24:], zoneID(ip.Zone()))
	r.len = unix.SizeofSockaddrInet6
	return r
}

// sendRaw sends one datagram, or says why the kernel did not take it at once.
func sendRaw(fd uintptr, b []byte, to *rawAddr) error {
	if len(b) == 0 {
		return unix.EINVAL
	}
	_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL,
		uintptr(unsafe.Pointer(&to.buf)), to.len)
	if e != 0 {
		return e
	}
	return nil
}

// receiveRaw takes one datagram, or returns EAGAIN.
func receiveRaw(fd uintptr, b []byte, from *rawAddr) (int, error) {
	from.len = uintptr(len(from.buf))
	size := uint32(len(from.buf))
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT,
			uintptr(unsafe.Pointer(&from.buf)), uintptr(unsafe.Pointer(&size)))
		switch e {
		case 0:
			from.len = uintptr(size)
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, e
	}
}

// addrPort is where a datagram came from; the zero value for an address of another family.
func (r *rawAddr) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(r.buf[2:])
	switch {
	case r.len >= unix.SizeofSockaddrInet4 && binary.NativeEndian.Uint16(r.buf[:]) == unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(r.buf[4:8])), port)
	case r.len >= unix.SizeofSockaddrInet6 && binary.NativeEndian.Uint16(r.buf[:]) == unix.AF_INET6:
		a := netip.AddrFrom16([16]byte(r.buf[8:24])).Unmap()
		if zone := binary.NativeEndian.Uint32(r.buf[24:]); zone != 0 && a.Is6() {
			a = a.WithZone(strconv.FormatUint(uint64(zone), 10))
		}
		return netip.AddrPortFrom(a, port)
	}
	return netip.AddrPort{}
}

// quietConn is a TCP connection whose system calls are not announced either: those of Raft's heartbeats come as often as the datagrams. Deadlines
// and Close are those of the connection. Reads and writes may not be made by several goroutines at the same time, which TLS does not do.
type quietConn struct {
	*net.TCPConn
	raw syscall.RawConn

	in, out   []byte
	n, m      int
	rerr      unix.Errno
	werr      unix.Errno
	take, put func(fd uintptr) bool
}

// quiet returns c itself where its descriptor cannot be had, and under the race detector.
func quiet(c *net.TCPConn) net.Conn {
	raw, err := c.SyscallConn()
	if err != nil || announced {
		return c
	}
	q := &quietConn{TCPConn: c, raw: raw}
	q.take = func(fd uintptr) bool {
		for {
			n, _, e := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(q.in))), uintptr(len(q.in)))
			if q.n, q.rerr = int(n), e; e != unix.EINTR {
				return e != unix.EAGAIN
			}
		}
	}
	q.put = func(fd uintptr) bool {
		for q.m < len(q.out) {
			n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(q.out[q.m:]))), uintptr(len(q.out)-q.m), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, 0, 0)
			switch q.werr = e; e {
			case 0:
				q.m += int(n)
			case unix.EINTR:
			case unix.EAGAIN:
				return false
			default:
				return true
			}
		}
		return true
	}
	return q
}

// Read is that of net.Conn.
func (q *quietConn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	q.in = b
	err := q.raw.Read(q.take)
	q.in = nil
	switch {
	case err != nil:
		return 0, err
	case q.rerr != 0:
		return 0, &net.OpError{Op: "read", Net: "tcp", Source: q.LocalAddr(), Addr: q.RemoteAddr(), Err: os.NewSyscallError("read", q.rerr)}
	case q.n == 0:
		return 0, io.EOF
	}
	return q.n, nil
}

// Write is that of net.Conn.
func (q *quietConn) Write(b []byte) (int, error) {
	q.out, q.m, q.werr = b, 0, 0
	err := q.raw.Write(q.put)
	q.out = nil
	if err == nil && q.werr != 0 {
		err = &net.OpError{Op: "write", Net: "tcp", Source: q.LocalAddr(), Addr: q.RemoteAddr(), Err: os.NewSyscallError("write", q.werr)}
	}
	return q.m, err
}
