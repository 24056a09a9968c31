package gate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/sock_diag.h and inet_diag.h; see sock_diag(7).
const (
	sockDiagByFamily = 20
	sockDestroy      = 21
	diagReqBytecode  = 1 // INET_DIAG_REQ_BYTECODE
	diagBCJump       = 1 // INET_DIAG_BC_JMP
	diagBCSourceCond = 7 // INET_DIAG_BC_S_COND
	diagReqSize      = 56
	diagMsgSize      = 72
	diagIDOffset     = 4 // of struct inet_diag_sockid in struct inet_diag_msg
	diagIDReqOffset  = 8 // and in struct inet_diag_req_v2
	diagIDSize       = 48
)

// tcpListen and tcpClose are states of net/tcp_states.h; tcpEstablished is also that of a connected UDP socket.
const (
	tcpEstablished = 1
	tcpClose       = 7
	tcpListen      = 10
)

// DestroySockets ends every connection of this network namespace whose local address is one of vips: TCP in any state
// from SYN on and connected UDP, IPv4, IPv6, and IPv4 in IPv6 sockets (SOCK_DESTROY of sock_diag(7), as `ss -K`). Their
// owners get ECONNABORTED. The peers hear a reset only if the gate lets it pass.
//
// Listening TCP sockets and unconnected UDP sockets are left: they hold nothing of an old tenure, and a hot standby needs
// them when the gate opens. It returns how many sockets were destroyed. An error that is unix.EOPNOTSUPP says that the
// kernel lacks CONFIG_INET_DIAG_DESTROY: kill the processes instead.
func DestroySockets(vips []netip.Addr) (int, error) {
	d, err := openDiag()
	if err != nil {
		return 0, err
	}
	defer unix.Close(d.fd)
	destroyed := 0
	for piece := range slices.Chunk(vips, diagAddresses) {
		for _, q := range queriesFor(piece) {
			found, err := d.list(q)
			if err != nil {
				return destroyed, fmt.Errorf("list the sockets on %v: %w", piece, err)
			}
			n, err := d.destroy(q, found)
			destroyed += n
			if err != nil {
				return destroyed, fmt.Errorf("destroy the sockets on %v: %w", piece, err)
			}
		}
	}
	return destroyed, nil
}

// diagAddresses is how many addresses one query asks for; its program stays far below the 64 KiB of an attribute.
const diagAddresses = 256

// diagQuery asks for the sockets of one family and protocol on some local addresses.
type diagQuery struct {
	family, protocol uint8
	states           uint32
	locals           []netip.Addr
}

// queriesFor: an IPv4 address may be that of an IPv6 socket too, as ::ffff:a.
func queriesFor(vips []netip.Addr) []diagQuery {
	var v4, both []netip.Addr
	for _, a := range vips {
		a = a.Unmap().WithZone("")
		both = append(both, a)
		if a.Is4() {
			v4 = append(v4, a)
		}
	}
	var out []diagQuery
	for family, locals := range map[uint8][]netip.Addr{unix.AF_INET: v4, unix.AF_INET6: both} {
		if len(locals) > 0 {
			out = append(out,
				diagQuery{family, unix.IPPROTO_TCP, ^uint32(1<<tcpListen | 1<<tcpClose), locals},
				diagQuery{family, unix.IPPROTO_UDP, 1 << tcpEstablished, locals})
		}
	}
	return out
}

// condition is a program for the kernel's filter, which accepts a socket whose source is one of the addresses. For each
// it has a struct inet_diag_bc_op with a struct inet_diag_hostcond; where that holds, a jump to the end follows (the end
// accepts), and where not, the next one. After the last, "not" goes 4 beyond the end, which refuses. The kernel compares
// an IPv4 condition with the ::ffff:a of an IPv6 socket as well.
func (q diagQuery) condition() []byte {
	const jump = 4
	var b []byte
	var jumps []int
	for i, a := range q.locals {
		addr := a.AsSlice()
		family := byte(unix.AF_INET6)
		if a.Is4() {
			family = unix.AF_INET
		}
		size := 4 + 8 + len(addr)
		b = append(b, diagBCSourceCond, byte(size))
		b = binary.NativeEndian.AppendUint16(b, uint16(size+jump))
		b = append(b, family, byte(8*len(addr)), 0, 0)
		b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // any port
		b = append(b, addr...)
		if i < len(q.locals)-1 {
			jumps = append(jumps, len(b))
			b = append(b, diagBCJump, jump, 0, 0)
		}
	}
	for _, at := range jumps {
		binary.NativeEndian.PutUint16(b[at+2:], uint16(len(b)-at))
	}
	return b
}

// diag is a sock_diag socket.
type diag struct {
	fd  int
	seq uint32
	buf []byte
}

func openDiag() (*diag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open a sock_diag socket, to destroy connections (needs CONFIG_INET_DIAG): %w", err)
	}
	wait := unix.NsecToTimeval(int64(time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("limit the wait for answers of sock_diag: %w", err)
	}
	return &diag{fd: fd, buf: make([]byte, 1<<16)}, nil
}

// request is a netlink header and a struct inet_diag_req_v2.
func (d *diag) request(typ, flags uint16, q diagQuery, id []byte, attr []byte) []byte {
	d.seq++
	size := unix.SizeofNlMsghdr + diagReqSize
	if attr != nil {
		size += 4 + len(attr)
	}
	b := make([]byte, 0, size)
	b = binary.NativeEndian.AppendUint32(b, uint32(size))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, d.seq)
	b = append(b, 0, 0, 0, 0)
	b = append(b, q.family, q.protocol, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, q.states)
	b = append(b, id...)
	if attr != nil {
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(attr)))
		b = binary.NativeEndian.AppendUint16(b, diagReqBytecode)
		b = append(b, attr...)
	}
	return b
}

// list returns the ids (struct inet_diag_sockid) of the sockets.
func (d *diag) list(q diagQuery) ([][diagIDSize]byte, error) {
	msg := d.request(sockDiagByFamily, unix.NLM_F_DUMP, q, make([]byte, diagIDSize), q.condition())
	if _, err := unix.Write(d.fd, msg); err != nil {
		return nil, err
	}
	var found [][diagIDSize]byte
	err := d.answers(func(typ uint16, body []byte) (done bool, err error) {
		switch typ {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			return true, errorOf(body)
		case sockDiagByFamily:
			if len(body) >= diagMsgSize {
				found = append(found, [diagIDSize]byte(body[diagIDOffset:]))
			}
		}
		return false, nil
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) && q.family == unix.AF_INET6 {
		return nil, nil // no such protocol or family in this kernel
	}
	return found, err
}

// destroy ends the sockets that are still there.
func (d *diag) destroy(q diagQuery, ids [][diagIDSize]byte) (int, error) {
	n := 0
	for _, id := range ids {
		msg := d.request(sockDestroy, unix.NLM_F_ACK, q, id[:], nil)
		if _, err := unix.Write(d.fd, msg); err != nil {
			return n, err
		}
		err := d.answers(func(typ uint16, body []byte) (bool, error) {
			return typ == unix.NLMSG_ERROR, errorOf(body)
		})
		switch {
		case err == nil:
			n++
		case errors.Is(err, unix.EOPNOTSUPP):
			return n, fmt.Errorf("the kernel cannot destroy sockets (CONFIG_INET_DIAG_DESTROY is not set); end the processes instead: %w", err)
		case errors.Is(err, unix.EPERM):
			return n, fmt.Errorf("destroying sockets needs CAP_NET_ADMIN: %w", err)
		case !errors.Is(err, unix.ENOENT): // closed by itself meanwhile
			return n, err
		}
	}
	return n, nil
}

// errorOf reads struct nlmsgerr.
func errorOf(body []byte) error {
	if len(body) < 4 {
		return unix.EBADMSG
	}
	if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// answers reads messages to the latest request until each says done.
func (d *diag) answers(each func(typ uint16, body []byte) (done bool, err error)) error {
	for {
		n, err := unix.Read(d.fd, d.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for b := d.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return unix.EBADMSG
			}
			typ, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])
			body := b[unix.SizeofNlMsghdr:size]
			b = b[min(len(b), (size+3)&^3):]
			if seq != d.seq {
				continue
			}
			if done, err := each(typ, body); done {
				return err
			}
		}
	}
}
