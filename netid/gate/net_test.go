package gate

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func needsRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces and attaches programs to their interfaces")
	}
}

// space is a throw-away network namespace.
type space struct{ ns netns.NsHandle }

func newSpace(t testing.TB) space {
	t.Helper()
	needsRoot(t)
	var s space
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		ns, err := netns.Get()
		s.ns = ns
		return err
	})
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { s.ns.Close() })
	return s
}

// onThread runs f on a thread of its own, which then ends.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// in runs f inside the namespace; what f opens stays there.
func (s space) in(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(s.ns); err != nil {
			return err
		}
		return f()
	})
}

func (s space) must(t testing.TB, what string, f func() error) {
	t.Helper()
	if err := s.in(f); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func (s space) handle(t testing.TB) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(s.ns)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (s space) up(t testing.TB, name string, addrs ...string) netlink.Link {
	t.Helper()
	h := s.handle(t)
	defer h.Close()
	l, err := h.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(l, addr); err != nil {
			t.Fatalf("add %s to %s: %v", a, name, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
	return l
}

// wire joins two namespaces by a veth pair.
func wire(t testing.TB, a space, nameA string, b space, nameB string) {
	t.Helper()
	h := a.handle(t)
	defer h.Close()
	err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(int(b.ns))})
	if err != nil {
		t.Fatalf("join %s and %s: %v", nameA, nameB, err)
	}
}

func (s space) route(t testing.TB, dst, via string) {
	t.Helper()
	h := s.handle(t)
	defer h.Close()
	_, n, err := net.ParseCIDR(dst)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.RouteAdd(&netlink.Route{Dst: n, Gw: net.ParseIP(via)}); err != nil {
		t.Fatalf("route %s via %s: %v", dst, via, err)
	}
}

// neighbour makes what s knows of addr permanent, so that packets go out without asking.
func (s space) neighbour(t testing.TB, dev, addr string, mac net.HardwareAddr) {
	t.Helper()
	h := s.handle(t)
	defer h.Close()
	l, err := h.LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	n := &netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP(addr), HardwareAddr: mac}
	if err := h.NeighSet(n); err != nil {
		t.Fatalf("neighbour %s: %v", addr, err)
	}
}

func (s space) mac(t testing.TB, dev string) (net.HardwareAddr, int) {
	t.Helper()
	h := s.handle(t)
	defer h.Close()
	l, err := h.LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().HardwareAddr, l.Attrs().Index
}

func (s space) sysctl(t testing.TB, key, value string) {
	t.Helper()
	s.must(t, "set "+key, func() error { return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0) })
}

// meet makes both ends of a wire know the other's addresses.
func meet(t testing.TB, a space, devA string, b space, devB string, addrsA, addrsB []string) {
	t.Helper()
	macA, _ := a.mac(t, devA)
	macB, _ := b.mac(t, devB)
	for _, addr := range addrsA {
		b.neighbour(t, devB, addr, macA)
	}
	for _, addr := range addrsB {
		a.neighbour(t, devA, addr, macB)
	}
}

// Addresses of the world below. vipF is served by a namespace behind the node.
var (
	vip4 = netip.MustParseAddr("10.9.0.100")
	vip6 = netip.MustParseAddr("fd09::100")
	vipF = netip.MustParseAddr("10.9.3.100")
	all  = []netip.Addr{vip4, vip6, vipF}
)

// world is a node with two interfaces to clients and one to a namespace that it forwards to. The VIPs are there from the
// start and every neighbour is known, so that only the gate stands between the clients and the VIP.
type world struct{ node, client, second, inner space }

func newWorld(t testing.TB) world {
	t.Helper()
	w := world{newSpace(t), newSpace(t), newSpace(t), newSpace(t)}
	wire(t, w.node, "n0", w.client, "c0")
	wire(t, w.node, "n1", w.second, "s0")
	wire(t, w.node, "n2", w.inner, "i0")
	w.node.up(t, "lo")
	w.node.up(t, "n0", "10.9.0.1/24", "fd09::1/64", vip4.String()+"/32", vip6.String()+"/128")
	w.node.up(t, "n1", "10.9.1.1/24")
	w.node.up(t, "n2", "10.9.2.1/24")
	w.client.up(t, "c0", "10.9.0.2/24", "fd09::2/64")
	w.second.up(t, "s0", "10.9.1.2/24")
	w.inner.up(t, "i0", "10.9.2.2/24", vipF.String()+"/32")
	w.second.route(t, "10.9.0.0/24", "10.9.1.1")
	w.inner.route(t, "10.9.0.0/24", "10.9.2.1")
	w.node.route(t, vipF.String()+"/32", "10.9.2.2")
	w.client.route(t, vipF.String()+"/32", "10.9.0.1")
	w.node.sysctl(t, "ipv4/ip_forward", "1")
	meet(t, w.node, "n0", w.client, "c0", []string{"10.9.0.1", vip4.String(), vip6.String()}, []string{"10.9.0.2", "fd09::2"})
	meet(t, w.node, "n1", w.second, "s0", []string{"10.9.1.1"}, []string{"10.9.1.2"})
	meet(t, w.node, "n2", w.inner, "i0", []string{"10.9.2.1"}, []string{"10.9.2.2"})
	for way, answers := range w.ways(t) {
		eventually(t, 5*time.Second, "without a gate: "+way, answers)
	}
	return w
}

// ways are all the ways on which somebody can reach a VIP of the world.
func (w world) ways(t testing.TB) map[string]func() bool {
	return map[string]func() bool{
		"IPv4 from outside":              func() bool { return w.client.ping(t, vip4) },
		"IPv6 from outside":              func() bool { return w.client.ping(t, vip6) },
		"ARP from outside":               func() bool { return w.client.asksARP(t, "c0", vip4) },
		"ND from outside":                func() bool { return w.client.asksND(t, "c0", vip6) },
		"IPv4 from the host itself":      func() bool { return w.node.ping(t, vip4) },
		"IPv6 from the host itself":      func() bool { return w.node.ping(t, vip6) },
		"IPv4 from another interface":    func() bool { return w.second.ping(t, vip4) },
		"IPv4 forwarded to a namespace":  func() bool { return w.client.ping(t, vipF) },
		"IPv4 from the namespace behind": func() bool { return w.inner.ping(t, vip4) },
	}
}

// mustAnswer fails for every way on which there is (no) answer.
func (w world) mustAnswer(t testing.TB, want bool, when string) {
	t.Helper()
	type result struct {
		way string
		got bool
	}
	ways := w.ways(t)
	results := make(chan result, len(ways))
	for way, try := range ways {
		go func() { results <- result{way, try() || want && retry(try)} }()
	}
	for range ways {
		if r := <-results; r.got != want {
			t.Errorf("%s: %s: answered %v, want %v", when, r.way, r.got, want)
		}
	}
}
