package gate

import (
	"encoding/binary"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// How long to wait for an answer: one that comes is there in well under a millisecond unless the machine is loaded, one
// that does not is what most calls wait for.
const answerWait = 40 * time.Millisecond

func (s space) icmp(t testing.TB, to netip.Addr) net.PacketConn {
	t.Helper()
	network, any := "ip4:icmp", "0.0.0.0"
	if to.Is6() {
		network, any = "ip6:ipv6-icmp", "::"
	}
	var conn net.PacketConn
	s.must(t, "open an ICMP socket", func() (err error) {
		conn, err = net.ListenPacket(network, any)
		return err
	})
	return conn
}

func echoRequest(to netip.Addr, id, seq uint16) []byte {
	b := []byte{8, 0, 0, 0}
	if to.Is6() {
		b[0] = 128 // and the kernel sets the checksum
	}
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, seq)
	if to.Is4() {
		var sum uint32
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum+sum>>16))
	}
	return b
}

// isEcho says that b is an answer with that id, and its sequence number.
func isEcho(to netip.Addr, b []byte, id uint16) (uint16, bool) {
	typ := byte(0)
	if to.Is6() {
		typ = 129
	}
	if len(b) < 8 || b[0] != typ || binary.BigEndian.Uint16(b[4:]) != id {
		return 0, false
	}
	return binary.BigEndian.Uint16(b[6:]), true
}

// ping says whether to answers an echo request.
func (s space) ping(t testing.TB, to netip.Addr) bool {
	t.Helper()
	conn := s.icmp(t, to)
	defer conn.Close()
	id := uint16(boottime() >> 10)
	if _, err := conn.WriteTo(echoRequest(to, id, 1), &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return false // the gate's drop is an error of the sender on its own host
	}
	_ = conn.SetReadDeadline(time.Now().Add(answerWait))
	buf := make([]byte, 256)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return false
		}
		if _, ok := isEcho(to, buf[:n], id); ok {
			return true
		}
	}
}

// retry gives a busy machine more time.
func retry(try func() bool) bool {
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		if try() {
			return true
		}
	}
	return false
}

// reaches is ping for when an answer is expected.
func (s space) reaches(t testing.TB, to netip.Addr) bool {
	t.Helper()
	return retry(func() bool { return s.ping(t, to) })
}

// stream pings every millisecond and keeps when each answered request was sent.
type stream struct {
	mu   sync.Mutex
	sent map[uint16]cluster.Instant
	last cluster.Instant // sending time of the latest request that was answered
	got  int
	yes  []uint16 // those that were answered
	stop chan struct{}
	wg   sync.WaitGroup
}

func (s space) stream(t testing.TB, to netip.Addr) *stream {
	t.Helper()
	st := &stream{sent: make(map[uint16]cluster.Instant), stop: make(chan struct{})}
	conn := s.icmp(t, to)
	id := uint16(boottime() >> 10)
	st.wg.Add(2)
	go func() {
		defer st.wg.Done()
		defer func() { _ = conn.SetReadDeadline(time.Now().Add(answerWait)) }()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for seq := uint16(0); ; seq++ {
			select {
			case <-st.stop:
				return
			case <-tick.C:
			}
			st.mu.Lock()
			st.sent[seq] = boottime()
			st.mu.Unlock()
			_, _ = conn.WriteTo(echoRequest(to, id, seq), &net.IPAddr{IP: to.AsSlice()})
		}
	}()
	go func() {
		defer st.wg.Done()
		defer conn.Close()
		buf := make([]byte, 256)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if seq, ok := isEcho(to, buf[:n], id); ok {
				st.mu.Lock()
				st.last, st.got, st.yes = max(st.last, st.sent[seq]), st.got+1, append(st.yes, seq)
				st.mu.Unlock()
			}
		}
	}()
	t.Cleanup(st.end)
	return st
}

// end stops sending and waits for the answers that are under way.
func (st *stream) end() {
	select {
	case <-st.stop:
	default:
		close(st.stop)
		st.wg.Wait()
	}
}

// answered is when the latest request was sent that was answered, and how many were.
func (st *stream) answered() (cluster.Instant, int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.last, st.got
}

// refused is when the first request was sent after which none was answered.
func (st *stream) refused() cluster.Instant {
	st.mu.Lock()
	defer st.mu.Unlock()
	first := cluster.Instant(math.MaxInt64)
	for _, at := range st.sent {
		if at > st.last {
			first = min(first, at)
		}
	}
	return first
}

// reopened says whether requests were answered after five in a row were not.
func (st *stream) reopened() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	slices.Sort(st.yes)
	for i := 1; i < len(st.yes); i++ {
		if st.yes[i]-st.yes[i-1] > 5 {
			return true
		}
	}
	return false
}

// waitFor waits until an instant has passed, and a little more for answers that are under way.
func waitFor(at cluster.Instant) {
	for end := at.Add(60 * time.Millisecond); boottime() < end; {
		time.Sleep(end.Sub(boottime()))
	}
}

func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, limit)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func swap16(v uint16) uint16 { return v>>8 | v<<8 }

// packets opens a packet socket on an interface.
func (s space) packets(t testing.TB, dev string, ethertype uint16) int {
	t.Helper()
	_, index := s.mac(t, dev)
	var fd int
	s.must(t, "open a packet socket", func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(swap16(ethertype)))
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swap16(ethertype), Ifindex: index})
	})
	return fd
}

// receives waits for a frame that ok accepts.
func receives(fd int, wait time.Duration, ok func([]byte) bool) bool {
	end := time.Now().Add(wait)
	buf := make([]byte, 2048)
	for {
		left := time.Until(end)
		if left <= 0 {
			return false
		}
		tv := unix.NsecToTimeval(int64(left))
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false
		}
		if ok(buf[:n]) {
			return true
		}
	}
}

// asksARP broadcasts a question and says whether the address itself answered.
func (s space) asksARP(t testing.TB, dev string, a netip.Addr) bool {
	t.Helper()
	fd := s.packets(t, dev, unix.ETH_P_ARP)
	defer unix.Close(fd)
	mac, _ := s.mac(t, dev)
	f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
	f = append(f, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(append(f, mac...), 10, 9, 0, 2)
	f = append(append(f, make([]byte, 6)...), a.AsSlice()...)
	if _, err := unix.Write(fd, f); err != nil {
		t.Error(err)
	}
	return receives(fd, answerWait, func(b []byte) bool {
		return len(b) >= 42 && b[21] == 2 && netip.AddrFrom4([4]byte(b[28:])) == a
	})
}

// asksND sends a neighbour solicitation and says whether an advertisement for the address came.
func (s space) asksND(t testing.TB, dev string, a netip.Addr) bool {
	t.Helper()
	fd := s.packets(t, dev, unix.ETH_P_IPV6)
	defer unix.Close(fd)
	mac, _ := s.mac(t, dev)
	to := a.As16()
	group := netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: to[13], 14: to[14], 15: to[15]})
	f := append([]byte{0x33, 0x33, 0xff, to[13], to[14], to[15]}, mac...)
	f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255)
	from := netip.MustParseAddr("fd09::2").As16()
	f = append(append(f, from[:]...), group.AsSlice()...)
	f = append(f, 135, 0, 0, 0, 0, 0, 0, 0)
	f = append(append(f, to[:]...), 1, 1)
	f = append(f, mac...)
	sum := uint32(32 + 58)
	for i := 22; i < len(f); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(f[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(f[56:], ^uint16(sum))
	if _, err := unix.Write(fd, f); err != nil {
		t.Error(err)
	}
	return receives(fd, answerWait, func(b []byte) bool {
		return len(b) >= 78 && b[20] == 58 && b[54] == 136 && netip.AddrFrom16([16]byte(b[62:])) == a
	})
}
