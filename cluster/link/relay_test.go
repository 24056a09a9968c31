package link_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/hanode/hanode/cluster/link"
)

// relay stands between two members, in one direction: what is sent to it goes on to its target. It can be cut (everything is
// swallowed, connections stall), and it keeps the datagrams that it saw.
type relay struct {
	t      testing.TB
	addr   netip.AddrPort
	target netip.AddrPort
	tcp    net.Listener
	udp    *net.UDPConn
	out    *net.UDPConn
	wg     sync.WaitGroup

	mu    sync.Mutex
	heal  *sync.Cond
	isCut bool
	noTCP bool
	noUDP bool
	conns map[net.Conn]bool
	seen  [][]byte
	last  netip.AddrPort
	over  bool
}

func newRelay(t testing.TB, target netip.AddrPort) *relay {
	t.Helper()
	r := &relay{t: t, target: target, conns: map[net.Conn]bool{}}
	r.heal = sync.NewCond(&r.mu)
	for r.udp == nil {
		l, err := net.Listen("tcp4", target.Addr().String()+":0")
		if err != nil {
			t.Fatal(err)
		}
		r.addr = netip.AddrPortFrom(target.Addr(), l.Addr().(*net.TCPAddr).AddrPort().Port())
		r.tcp = l
		if r.udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(r.addr)); err != nil {
			l.Close()
		}
	}
	var err error
	if r.out, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(target)); err != nil {
		t.Fatal(err)
	}
	r.wg.Go(r.datagrams)
	r.wg.Go(r.replies)
	r.wg.Go(r.accept)
	t.Cleanup(r.close)
	return r
}

func (r *relay) close() {
	r.mu.Lock()
	r.over, r.isCut = true, false
	r.heal.Broadcast()
	r.mu.Unlock()
	r.tcp.Close()
	r.udp.Close()
	r.out.Close()
	r.breakTCP()
	r.wg.Wait()
}

func (r *relay) datagrams() {
	b := make([]byte, 2048)
	for {
		n, from, err := r.udp.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		r.mu.Lock()
		r.last = from
		if len(r.seen) < 10000 {
			r.seen = append(r.seen, append([]byte(nil), b[:n]...))
		}
		drop := r.isCut || r.noUDP
		r.mu.Unlock()
		if !drop {
			r.out.Write(b[:n])
		}
	}
}

// replies takes back what the target answers to the relay itself.
func (r *relay) replies() {
	b := make([]byte, 2048)
	for {
		n, err := r.out.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		r.mu.Lock()
		to, drop := r.last, r.isCut || r.noUDP || err != nil
		r.mu.Unlock()
		if !drop {
			r.udp.WriteToUDPAddrPort(b[:n], to)
		}
	}
}

func (r *relay) accept() {
	for {
		c, err := r.tcp.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		refuse := r.noTCP
		r.mu.Unlock()
		if refuse {
			c.Close()
			continue
		}
		r.wg.Go(func() {
			r.track(c)
			r.wait()
			d, err := net.Dial("tcp4", r.target.String())
			if err != nil {
				c.Close()
				return
			}
			r.track(d)
			r.wg.Go(func() { r.copy(d, c) })
			r.copy(c, d)
		})
	}
}

func (r *relay) track(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c] = true
	if r.over {
		c.Close()
	}
}

// wait waits while the relay is cut.
func (r *relay) wait() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.isCut {
		r.heal.Wait()
	}
}

type stalling struct {
	net.Conn
	r *relay
}

func (s stalling) Write(b []byte) (int, error) { s.r.wait(); return s.Conn.Write(b) }

func (r *relay) copy(to, from net.Conn) {
	io.Copy(stalling{to, r}, struct{ io.Reader }{from})
	r.wait() // ends are not seen through a cut either
	to.Close()
	from.Close()
}

func (r *relay) cut(v bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.isCut = v
	r.heal.Broadcast()
}

// breakTCP closes all connections with a reset.
func (r *relay) breakTCP() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		delete(r.conns, c)
	}
}

func (r *relay) refuse(tcp, udp bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noTCP, r.noUDP = tcp, udp
}

func (r *relay) inject(b []byte) { r.out.Write(b) }

func (r *relay) recorded() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([][]byte(nil), r.seen...)
}

// through introduces two hosts to each other with a relay on every link and direction. It returns, for each link, the
// relay towards a and the one towards b.
func through(a, b *host) [][2]*relay {
	var out [][2]*relay
	pa, pb := a.Self(), b.Self()
	pa.Addrs, pb.Addrs = nil, nil
	for i := range a.Self().Addrs {
		ra, rb := newRelay(a.t, a.Self().Addrs[i]), newRelay(a.t, b.Self().Addrs[i])
		pa.Addrs, pb.Addrs = append(pa.Addrs, ra.addr), append(pb.Addrs, rb.addr)
		out = append(out, [2]*relay{ra, rb})
	}
	a.SetPeers([]link.Peer{pb})
	b.SetPeers([]link.Peer{pa})
	return out
}
