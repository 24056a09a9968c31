package gate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// batches are the two transactions that a refresh of one service needs, built when its addresses change: open every
// address until a time-out, and shut them. Each works in both tables at once and whatever state the elements are in: they
// are added first, so that the delete always finds them, and added again with their time-out. (Adding an element that
// exists does not restart its time-out, and deleting one that has expired fails the whole transaction.)
type batches struct{ open, shut batch }

// batch is one transaction, with the places where the time-out and the sequence numbers go.
type batch struct {
	msg      []byte
	timeouts []int // of the elements that stay
	headers  []int
}

const (
	opAdd    = unix.NFT_MSG_NEWSETELEM
	opDelete = unix.NFT_MSG_DELSETELEM
)

func newBatches(table string, addrs []netip.Addr) *batches {
	return &batches{open: newBatch(table, addrs, opAdd, opDelete, opAdd), shut: newBatch(table, addrs, opAdd, opDelete)}
}

func newBatch(table string, addrs []netip.Addr, ops ...int) batch {
	var v4, v6 []netip.Addr
	for _, a := range addrs {
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	var b batch
	b.begin(unix.NFNL_MSG_BATCH_BEGIN, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	last := -1
	for _, part := range []struct {
		family uint8
		set    string
		addrs  []netip.Addr
	}{
		{unix.NFPROTO_INET, nftOpen4, v4}, {unix.NFPROTO_INET, nftOpen6, v6}, {unix.NFPROTO_ARP, nftOpen4, v4},
	} {
		for i, op := range ops {
			if len(part.addrs) > 0 {
				last = b.elements(table, part.family, part.set, op, part.addrs, i == 2)
			}
		}
	}
	if last >= 0 {
		flags := binary.NativeEndian.Uint16(b.msg[last+6:])
		binary.NativeEndian.PutUint16(b.msg[last+6:], flags|unix.NLM_F_ACK)
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

// elements appends a message that adds or deletes the addresses. Those that are deleted again get a time-out too, of a
// minute.
func (b *batch) elements(table string, family uint8, set string, op int, addrs []netip.Addr, stay bool) int {
	flags := uint16(unix.NLM_F_REQUEST)
	if op == opAdd {
		flags |= unix.NLM_F_CREATE
	}
	at := b.begin(unix.NFNL_SUBSYS_NFTABLES<<8|uint16(op), flags, family, 0)
	b.attr(unix.NFTA_SET_ELEM_LIST_TABLE, append([]byte(table), 0))
	b.attr(unix.NFTA_SET_ELEM_LIST_SET, append([]byte(set), 0))
	b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		for _, a := range addrs {
			b.nest(unix.NFTA_LIST_ELEM, func() { b.element(a, op == opAdd, stay) })
		}
	})
	b.end(at)
	return at
}

func (b *batch) element(a netip.Addr, timeout, stays bool) {
	b.nest(unix.NFTA_SET_ELEM_KEY, func() { b.attr(unix.NFTA_DATA_VALUE, a.AsSlice()) })
	if !timeout {
		return
	}
	at := b.attr(unix.NFTA_SET_ELEM_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(time.Minute.Milliseconds())))
	if stays {
		b.timeouts = append(b.timeouts, at)
	}
}

// setTimeout sets how long from now the addresses are open, in whole milliseconds.
func (b *batch) setTimeout(timeout time.Duration) {
	for _, at := range b.timeouts {
		binary.BigEndian.PutUint64(b.msg[at:], uint64(timeout.Milliseconds()))
	}
}

// nftSocket carries batches to the kernel.
type nftSocket struct {
	fd    int
	seq   uint32
	reply [1 << 14]byte
}

func openNFTSocket() (*nftSocket, error) {
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
	return &nftSocket{fd: fd}, nil
}

// send carries a transaction out. One that an expiry came in between is sent again.
func (s *nftSocket) send(b *batch) error {
	if len(b.headers) == 2 {
		return nil // a service without addresses
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

func (s *nftSocket) transact(b *batch) error {
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
func (s *nftSocket) answers(b []byte, first, last uint32) (done bool, failed error) {
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

func (s *nftSocket) close() { unix.Close(s.fd) }
