package gate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// batches sends the two transactions that a refresh needs, without building them anew: set a slot's timeout, and shut a
// slot. Each works in both tables at once and whatever state the element is in: it is added first, so that the delete
// always finds it, and added again with its time-out. (Adding an element that exists does not restart its time-out, and
// deleting one that has expired fails the whole transaction.)
type batches struct {
	fd    int
	seq   uint32
	open  batch
	shut  batch
	reply [1 << 14]byte
}

// batch is one transaction, with the places where the slot, the time-out and the sequence numbers go.
type batch struct {
	msg      []byte
	slots    []int
	timeouts []int // of the elements that stay
	headers  []int
}

const (
	opAdd    = unix.NFT_MSG_NEWSETELEM
	opDelete = unix.NFT_MSG_DELSETELEM
)

func openBatches(table, set string) (*batches, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a socket to nftables: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind a socket to nftables: %w", err)
	}
	wait := unix.NsecToTimeval(int64(time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("limit the wait for answers of nftables: %w", err)
	}
	return &batches{
		fd:   fd,
		open: newBatch(table, set, opAdd, opDelete, opAdd),
		shut: newBatch(table, set, opAdd, opDelete),
	}, nil
}

func newBatch(table, set string, ops ...int) batch {
	var b batch
	b.begin(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	for _, family := range []uint8{unix.NFPROTO_INET, unix.NFPROTO_ARP} {
		for i, op := range ops {
			flags := uint16(unix.NLM_F_REQUEST)
			if op == opAdd {
				flags |= unix.NLM_F_CREATE
			}
			if family == unix.NFPROTO_ARP && i == len(ops)-1 {
				flags |= unix.NLM_F_ACK
			}
			at := b.begin(unix.NFNL_SUBSYS_NFTABLES<<8|uint16(op), flags, family, 0)
			b.attr(unix.NFTA_SET_ELEM_LIST_TABLE, append([]byte(table), 0))
			b.attr(unix.NFTA_SET_ELEM_LIST_SET, append([]byte(set), 0))
			b.element(op == opAdd, i == 2)
			b.end(at)
		}
	}
	b.begin(unix.NFNL_MSG_BATCH_END, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	return b
}

// begin appends a netlink header and a struct nfgenmsg; a message without attributes needs no end.
func (b *batch) begin(typ, flags uint16, family uint8, resource uint16) int {
	at := len(b.msg)
	b.headers = append(b.headers, at)
	b.msg = binary.NativeEndian.AppendUint32(b.msg, unix.SizeofNlMsghdr+4)
	b.msg = binary.NativeEndian.AppendUint16(b.msg, typ)
	b.msg = binary.NativeEndian.AppendUint16(b.msg, flags)
	b.msg = append(b.msg, make([]byte, 8)...) // sequence number, port
	b.msg = append(b.msg, family, 0)
	b.msg = binary.BigEndian.AppendUint16(b.msg, resource)
	return at
}

func (b *batch) end(at int) { binary.NativeEndian.PutUint32(b.msg[at:], uint32(len(b.msg)-at)) }

// attr appends an attribute; its value starts at the returned place.
func (b *batch) attr(typ uint16, value []byte) int {
	b.msg = binary.NativeEndian.AppendUint16(b.msg, uint16(4+len(value)))
	b.msg = binary.NativeEndian.AppendUint16(b.msg, typ)
	at := len(b.msg)
	b.msg = append(b.msg, value...)
	for len(b.msg)%4 != 0 {
		b.msg = append(b.msg, 0)
	}
	return at
}

// nest appends an attribute that contains what inside appends.
func (b *batch) nest(typ uint16, inside func()) {
	at := len(b.msg)
	b.attr(typ|unix.NLA_F_NESTED, nil)
	inside()
	binary.NativeEndian.PutUint16(b.msg[at:], uint16(len(b.msg)-at))
}

// element appends the list of the one element. One that is deleted again gets a time-out too, of a minute.
func (b *batch) element(timeout, stays bool) {
	b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		b.nest(unix.NFTA_LIST_ELEM, func() {
			b.nest(unix.NFTA_SET_ELEM_KEY, func() {
				b.slots = append(b.slots, b.attr(unix.NFTA_DATA_VALUE, make([]byte, 4)))
			})
			if !timeout {
				return
			}
			at := b.attr(unix.NFTA_SET_ELEM_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(time.Minute.Milliseconds())))
			if stays {
				b.timeouts = append(b.timeouts, at)
			}
		})
	})
}

// setTimeout opens a slot for whole milliseconds from now.
func (s *batches) setTimeout(slot uint32, timeout time.Duration) error {
	for _, at := range s.open.timeouts {
		binary.BigEndian.PutUint64(s.open.msg[at:], uint64(timeout.Milliseconds()))
	}
	return s.send(&s.open, slot)
}

// close shuts a slot.
func (s *batches) close(slot uint32) error { return s.send(&s.shut, slot) }

// send carries a transaction out. One that an expiry came in between is sent again.
func (s *batches) send(b *batch, slot uint32) error {
	for _, at := range b.slots {
		binary.BigEndian.PutUint32(b.msg[at:], slot)
	}
	var err error
	for range 3 {
		if err = s.transact(b); err == nil || !errors.Is(err, errNoElement) {
			break
		}
	}
	return err
}

var (
	errNoElement = errors.New("nftables: no such table, or an element expired during the transaction (ENOENT)")
	errAnswer    = errors.New("nftables: an answer that is none")
)

func (s *batches) transact(b *batch) error {
	first := s.seq + 1
	for _, at := range b.headers {
		s.seq++
		binary.NativeEndian.PutUint32(b.msg[at+8:], s.seq)
	}
	last := s.seq - 1 // the one before BATCH_END asks for the acknowledgement
	if _, err := unix.Write(s.fd, b.msg); err != nil {
		return err
	}
	// The kernel has worked before write returns. An error of an earlier message comes before the answer to the last.
	var failed error
	for {
		n, err := unix.Read(s.fd, s.reply[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return errors.Join(failed, err)
		}
		done, err := s.answers(s.reply[:n], first, last)
		if failed == nil {
			failed = err
		}
		if done {
			return failed
		}
	}
}

// answers reads NLMSG_ERROR messages (netlink(7)). done: the last message was answered, or the transaction as a whole.
func (s *batches) answers(b []byte, first, last uint32) (done bool, failed error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr+4 || size > len(b) {
			return true, errAnswer
		}
		typ, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])
		code := int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:]))
		b = b[min(len(b), (size+3)&^3):]
		if typ != unix.NLMSG_ERROR || seq-first > last-first {
			continue // of an earlier transaction
		}
		if code != 0 && failed == nil {
			failed = unix.Errno(-code)
			if failed == unix.ENOENT {
				failed = errNoElement
			}
		}
		if seq == last || seq == first {
			done = true
		}
	}
	return done, failed
}

func (s *batches) shutSocket() { unix.Close(s.fd) }
