package vip

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/nstest"
)

// host is a node of a test: a network namespace with a Keeper.
type host struct {
	*nstest.NS
	t testing.TB
	k *Keeper

	mu     sync.Mutex
	events []Event
}

const svc = cluster.ServiceNo(1)

func vip4() Address { return Address{Service: svc, Prefix: netip.MustParsePrefix("10.0.0.50/24")} }
func vip6() Address { return Address{Service: svc, Prefix: netip.MustParsePrefix("fd00::50/64")} }

// lan makes a switch with n hosts: 10.0.0.1/24 and fd00::1/64 at eth0 of the first, and so on.
func lan(t testing.TB, n int) (sw *nstest.NS, hosts []*nstest.NS) {
	t.Helper()
	for range n {
		hosts = append(hosts, nstest.New(t))
	}
	sw = nstest.Switch(t, hosts...)
	for i, h := range hosts {
		h.Addr("eth0", fmt.Sprintf("10.0.0.%d/24", i+1))
		h.Addr("eth0", fmt.Sprintf("fd00::%d/64", i+1))
	}
	return sw, hosts
}

// keep gives a namespace a Keeper that knows the VIPs.
func keep(t testing.TB, ns *nstest.NS, cfg Config, known ...Address) *host {
	t.Helper()
	h := &host{NS: ns, t: t}
	cfg.OnEvent = func(e Event) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.events = append(h.events, e)
	}
	if cfg.StateDir == "" {
		cfg.StateDir = t.TempDir()
	}
	cfg.Log = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	ns.MustDo(func() (err error) { h.k, err = New(cfg); return err })
	t.Cleanup(func() { h.k.Close() })
	if err := h.k.SetKnown(known); err != nil {
		t.Fatal(err)
	}
	return h
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// run runs the Keeper until the test ends.
func (h *host) run() *host {
	h.t.Cleanup(h.start())
	return h
}

// start runs the Keeper and returns what ends it and waits for it.
func (h *host) start() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.k.Run(ctx) }()
	return func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				h.t.Errorf("Run: %v", err)
			}
		case <-time.After(5 * time.Second):
			h.t.Error("Run did not end")
		}
	}
}

func (h *host) claim() time.Duration {
	h.t.Helper()
	began := time.Now()
	on, err := h.k.Claim(svc)
	took := time.Since(began)
	if err != nil || len(on) == 0 {
		h.t.Fatalf("Claim: %v, %v", on, err)
	}
	return took
}

func (h *host) drop() {
	h.t.Helper()
	if err := h.k.Drop(svc); err != nil {
		h.t.Fatalf("Drop: %v", err)
	}
}

// find returns the address as the kernel has it, or nil.
func find(t testing.TB, ns *nstest.NS, iface, prefix string) *netlink.Addr {
	t.Helper()
	l, err := ns.Netlink().LinkByName(iface)
	if err != nil {
		return nil
	}
	addrs, err := nstest.Retry(func() ([]netlink.Addr, error) { return ns.Netlink().AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == prefix })
	if i < 0 {
		return nil
	}
	return &addrs[i]
}

func has(t testing.TB, ns *nstest.NS, iface, prefix string) bool {
	t.Helper()
	return find(t, ns, iface, prefix) != nil
}

// until waits for a condition, looking often, for at most five seconds, and returns how long it took.
func until(t testing.TB, what string, cond func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !cond() {
		if time.Since(began) > 5*time.Second {
			t.Fatalf("waited 5 s in vain: %s", what)
		}
		time.Sleep(50 * time.Microsecond)
	}
	return time.Since(began)
}

func (h *host) saw(kind Kind) (Event, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e.Kind == kind {
			return e, true
		}
	}
	return Event{}, false
}

func (h *host) await(kind Kind) Event {
	h.t.Helper()
	until(h.t, string(kind)+" event", func() bool { _, ok := h.saw(kind); return ok })
	e, _ := h.saw(kind)
	return e
}

// neighbour is the MAC that a host has for an address in its neighbour table; "" for none.
func neighbour(t testing.TB, ns *nstest.NS, ip string) string {
	t.Helper()
	want := net.ParseIP(ip)
	neighs, err := nstest.Retry(func() ([]netlink.Neigh, error) {
		return ns.Netlink().NeighList(ns.LinkByName("eth0").Attrs().Index, netlink.FAMILY_ALL)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range neighs {
		if n.IP.Equal(want) && len(n.HardwareAddr) == 6 {
			return n.HardwareAddr.String()
		}
	}
	return ""
}

// serve answers TCP connections in a namespace on all its addresses, present and to come.
func serve(t testing.TB, ns *nstest.NS, name string) {
	t.Helper()
	var l net.Listener
	ns.MustDo(func() (err error) { l, err = net.Listen("tcp", ":7"); return err })
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte(name))
			c.Close()
		}
	}()
}

// ask connects from a namespace and returns who answered; "" for nobody.
func ask(ns *nstest.NS, ip string) (who string) {
	_ = ns.Do(func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(ip, "7"), 500*time.Millisecond)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(500 * time.Millisecond))
		b := make([]byte, 16)
		n, _ := c.Read(b)
		who = string(b[:n])
		return nil
	})
	return who
}
