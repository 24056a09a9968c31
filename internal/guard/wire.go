package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// Messages between daemon and guard: datagrams of one SOCK_SEQPACKET pair, native byte order, both ends the same binary.
//
//	request: kind u32, seq u32, service u32, count u32, then per netlink message: length u32, bytes; descriptors by SCM_RIGHTS
//	answer:  kind u32, seq u32, service u32, errno u32, epoch u64, at i64, late i64, then a text
const (
	kindAdd     = 1 // descriptors: page and the four cgroup.Handles, and perhaps a FUSE connection's abort file
	kindUpdate  = 2 // new netlink messages
	kindRemove  = 3
	kindQuiesce = 4 // freeze and answer when frozen or empty
	kindResume  = 5 // end of quiesce
	kindHello   = 6 // the guard's first words: what the machine refused it
	kindDone    = 7 // answer to a request
	kindEvent   = 8 // something was done
	kindLook    = 9 // a page has changed its state; there is no answer
)

const (
	headerLen   = 16
	answerLen   = 40
	maxMessage  = 8192
	maxServices = 64
	maxNetlink  = 16  // messages per service
	maxNetlinkN = 256 // bytes per message
	maxFDs      = 6
)

var order = binary.NativeEndian

// Done says what the guard did.
type Done int

const (
	Froze Done = iota + 1
	Thawed
	Killed
	Dropped // the addresses
	Aborted // the FUSE connection
)

func (d Done) String() string {
	switch d {
	case Froze:
		return "froze"
	case Thawed:
		return "thawed"
	case Killed:
		return "killed"
	case Dropped:
		return "dropped the addresses of"
	case Aborted:
		return "aborted the volume of"
	}
	return fmt.Sprintf("did(%d)", int(d))
}

// Event is something that the guard did to a service.
type Event struct {
	Service cluster.ServiceNo
	What    Done
	Epoch   cluster.Epoch
	At      cluster.Instant
	Late    time.Duration // how long after its time
	Errno   unix.Errno    // 0: it worked
}

func encodeRequest(kind, seq uint32, no cluster.ServiceNo, netlink [][]byte) ([]byte, error) {
	if len(netlink) > maxNetlink {
		return nil, fmt.Errorf("%d addresses of one service: the guard takes at most %d", len(netlink), maxNetlink)
	}
	b := make([]byte, headerLen, 256)
	order.PutUint32(b[0:], kind)
	order.PutUint32(b[4:], seq)
	order.PutUint32(b[8:], uint32(no))
	order.PutUint32(b[12:], uint32(len(netlink)))
	for _, m := range netlink {
		if len(m) < unix.NLMSG_HDRLEN || len(m) > maxNetlinkN {
			return nil, fmt.Errorf("a netlink message of %d bytes: the guard takes %d to %d", len(m), unix.NLMSG_HDRLEN, maxNetlinkN)
		}
		b = order.AppendUint32(b, uint32(len(m)))
		b = append(b, m...)
	}
	return b, nil
}

// request is a decoded request; the netlink messages still lie in the buffer of the receiver.
type request struct {
	kind, seq, no, count uint32
	rest                 []byte
}

func decodeRequest(b []byte) (request, bool) {
	if len(b) < headerLen {
		return request{}, false
	}
	r := request{kind: order.Uint32(b[0:]), seq: order.Uint32(b[4:]), no: order.Uint32(b[8:]), count: order.Uint32(b[12:]), rest: b[headerLen:]}
	return r, r.count <= maxNetlink
}

// next cuts the next netlink message off.
func (r *request) next() ([]byte, bool) {
	if len(r.rest) < 4 {
		return nil, false
	}
	n := order.Uint32(r.rest)
	if n < unix.NLMSG_HDRLEN || n > maxNetlinkN || int(n) > len(r.rest)-4 {
		return nil, false
	}
	m := r.rest[4 : 4+n]
	r.rest = r.rest[4+n:]
	return m, true
}

type answer struct {
	kind, seq, no, errno uint32
	epoch                uint64
	at, late             int64
	text                 string
}

// putAnswer writes into b, which must hold answerLen and the text, and allocates nothing.
func putAnswer(b []byte, a answer) []byte {
	order.PutUint32(b[0:], a.kind)
	order.PutUint32(b[4:], a.seq)
	order.PutUint32(b[8:], a.no)
	order.PutUint32(b[12:], a.errno)
	order.PutUint64(b[16:], a.epoch)
	order.PutUint64(b[24:], uint64(a.at))
	order.PutUint64(b[32:], uint64(a.late))
	n := copy(b[answerLen:], a.text)
	return b[:answerLen+n]
}

func decodeAnswer(b []byte) (answer, error) {
	if len(b) < answerLen {
		return answer{}, errors.New("a short answer of the guard")
	}
	return answer{
		kind: order.Uint32(b[0:]), seq: order.Uint32(b[4:]), no: order.Uint32(b[8:]), errno: order.Uint32(b[12:]),
		epoch: order.Uint64(b[16:]), at: int64(order.Uint64(b[24:])), late: int64(order.Uint64(b[32:])),
		text: string(b[answerLen:]),
	}, nil
}

// DeleteAddress builds the netlink message by which the guard removes an address from an interface (rtnetlink(7),
// RTM_DELADDR).
func DeleteAddress(ifindex int, address netip.Prefix) []byte {
	ip := address.Addr().AsSlice()
	family := byte(unix.AF_INET)
	if len(ip) == 16 {
		family = unix.AF_INET6
	}
	attr := func(b []byte, kind uint16) []byte {
		b = order.AppendUint16(b, uint16(4+len(ip)))
		b = order.AppendUint16(b, kind)
		return append(b, ip...) // 4 or 16 bytes: aligned
	}
	b := make([]byte, unix.NLMSG_HDRLEN, 64)
	b = append(b, family, byte(address.Bits()), 0, 0)
	b = order.AppendUint32(b, uint32(ifindex))
	b = attr(b, unix.IFA_ADDRESS)
	if family == unix.AF_INET {
		b = attr(b, unix.IFA_LOCAL)
	}
	order.PutUint32(b[0:], uint32(len(b)))
	order.PutUint16(b[4:], unix.RTM_DELADDR)
	order.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	return b
}
