package vip

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/internal/nstest"
	"github.com/hanode/hanode/netid/arp"
	"github.com/hanode/hanode/netid/ndp"
)

func TestAVirtualMACMovesWithItsVIPAndTheNeighbourKeepsItsEntry(t *testing.T) {
	for _, v := range []struct {
		name, ip, mac string
		vip           Address
	}{{"IPv4", "10.0.0.50", "00:00:5e:00:01:33", vip4()}, {"IPv6", "fd00::50", "00:00:5e:00:02:33", vip6()}} {
		t.Run(v.name, func(t *testing.T) {
			v.vip.VirtualMAC, v.vip.VMACID = true, 0x33
			sw, ns := lan(t, 3)
			client := ns[2]
			a, b := keep(t, ns[0], Config{}, v.vip), keep(t, ns[1], Config{}, v.vip)
			a.run()
			b.run()
			serve(t, ns[0], "a")
			serve(t, ns[1], "b")
			if learned(t, sw, v.mac) != "" {
				t.Fatal("the switch knows the virtual MAC before any takeover")
			}
			for i := range 6 {
				from, to, who, port := b, a, "a", "p0"
				if i%2 == 1 {
					from, to, who, port = a, b, "b", "p1"
				}
				began := time.Now()
				from.drop()
				name := vmacName(from.LinkByName("eth0").Attrs().Index, 0x33, v.vip.Prefix.Addr().Is4())
				if from.LinkByName(name).Attrs().Flags&net.FlagUp != 0 {
					t.Fatalf("move %d: %s is up after Drop and may send with the virtual MAC", i, name)
				}
				took := to.claim()
				until(t, "the switch learns the new port", func() bool { return learned(t, sw, v.mac) == port })
				switched := time.Since(began)
				if got := ask(client, v.ip); got != who {
					t.Fatalf("move %d: %q answered on the VIP, want %s", i, got, who)
				}
				if got := neighbour(t, client, v.ip); got != v.mac {
					t.Fatalf("move %d: the neighbour has %q, want the virtual MAC", i, got)
				}
				t.Logf("move %d: Claim %v, switch followed %v after Drop", i, took, switched)
			}
		})
	}
}

// learned is the port at which the switch has seen a MAC; "" for none.
func learned(t *testing.T, sw *nstest.NS, mac string) string {
	t.Helper()
	entries, err := nstest.Retry(func() ([]netlink.Neigh, error) { return sw.Netlink().NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.HardwareAddr.String() == mac {
			l, err := sw.Netlink().LinkByIndex(e.LinkIndex)
			if err != nil {
				t.Fatal(err)
			}
			return l.Attrs().Name
		}
	}
	return ""
}

func TestCleanRemovesWhatACrashLeftBehindAndNothingElse(t *testing.T) {
	_, ns := lan(t, 1)
	dir := t.TempDir()
	vmac := Address{Service: 2, Prefix: netip.MustParsePrefix("10.0.0.51/24"), VirtualMAC: true}
	crashed := keep(t, ns[0], Config{StateDir: dir}, vip4(), vip6(), vmac)
	crashed.claim()
	if _, err := crashed.k.Claim(2); err != nil {
		t.Fatal(err)
	}
	crashed.k.Close() // nothing is dropped
	ns[0].Addr("eth0", "10.0.0.52/24")
	ns[0].DelAddr("eth0", "10.0.0.50/24")
	ns[0].Addr("eth0", "10.0.0.50/24") // as a kernel without marks would have it

	next := &host{NS: ns[0], t: t}
	cfg := Config{StateDir: dir, OnEvent: func(e Event) { next.events = append(next.events, e) }}
	ns[0].MustDo(func() (err error) { next.k, err = New(cfg); return err })
	t.Cleanup(func() { next.k.Close() })
	if err := next.k.Clean(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"10.0.0.50/24", "fd00::50/64"} {
		if has(t, ns[0], "eth0", p) {
			t.Errorf("%s is still there", p)
		}
	}
	for _, p := range []string{"10.0.0.1/24", "10.0.0.52/24", "fd00::1/64"} {
		if !has(t, ns[0], "eth0", p) {
			t.Errorf("%s is gone although it is not ours", p)
		}
	}
	name := vmacName(ns[0].LinkByName("eth0").Attrs().Index, vmac.vmacID(), true)
	if has(t, ns[0], name, "10.0.0.51/24") || ns[0].LinkByName(name).Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("%s is up or has its address still", name)
	}
	if len(next.events) != 3 || next.events[0].Kind != Removed {
		t.Errorf("events: %v, want three removals", next.events)
	}
	if err := next.k.SetKnown(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := ns[0].Netlink().LinkByName(name); err == nil {
		t.Errorf("%s is still there although no VIP needs it", name)
	}
}

func TestCleanGoesByTheMarkWhenItsListIsDamaged(t *testing.T) {
	_, ns := lan(t, 1)
	dir := t.TempDir()
	crashed := keep(t, ns[0], Config{StateDir: dir}, vip4())
	crashed.claim()
	crashed.k.Close()
	if err := os.WriteFile(filepath.Join(dir, listName), []byte("hanode-vips 1 00000000\n10.0.0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var k *Keeper
	ns[0].MustDo(func() (err error) { k, err = New(Config{StateDir: dir}); return err })
	t.Cleanup(func() { k.Close() })
	if err := k.Clean(context.Background()); err != nil {
		t.Fatal(err)
	}
	if has(t, ns[0], "eth0", "10.0.0.50/24") || !has(t, ns[0], "eth0", "10.0.0.1/24") {
		t.Error("the VIP is still there, or an address went that is not ours")
	}
}

func TestAVIPThatSomebodyDeletesIsRestoredAtOnce(t *testing.T) {
	_, ns := lan(t, 2)
	a := keep(t, ns[0], Config{Tick: time.Minute}, vip4(), vip6()).run()
	a.claim()
	for _, p := range []string{"10.0.0.50/24", "fd00::50/64"} {
		ns[0].DelAddr("eth0", p)
		took := until(t, p+" is back", func() bool { return has(t, ns[0], "eth0", p) })
		t.Logf("%s was back after %v", p, took)
	}
	if e := a.await(Restored); e.Interface != "eth0" || e.Service != svc {
		t.Errorf("event: %+v", e)
	}
}

func TestAVIPOutsideATenureIsRemoved(t *testing.T) {
	_, ns := lan(t, 2)
	a := keep(t, ns[0], Config{Tick: time.Minute}, vip4()).run()
	ns[0].Addr("eth0", "10.0.0.50/24")
	until(t, "the VIP that is not claimed is gone", func() bool { return !has(t, ns[0], "eth0", "10.0.0.50/24") })
	if e := a.await(Removed); e.Prefix.String() != "10.0.0.50/24" {
		t.Errorf("event: %+v", e)
	}
}

func TestADuplicateIsToldWithItsMACAndTheVIPStays(t *testing.T) {
	_, ns := lan(t, 3)
	a := keep(t, ns[0], Config{}, vip4(), vip6()).run()
	a.claim()
	thief := net.HardwareAddr{2, 0, 0, 0, 0, 0x66}
	var frames [][]byte
	f4, err := arp.Announce(thief, netip.MustParseAddr("10.0.0.50"))
	if err != nil {
		t.Fatal(err)
	}
	f6, err := ndp.Announce(thief, netip.MustParseAddr("fd00::50"), false)
	if err != nil {
		t.Fatal(err)
	}
	frames = append(f4, f6)
	eth0 := ns[2].LinkByName("eth0").Attrs()
	var w *wire
	ns[2].MustDo(func() (err error) {
		w, err = openWire(&link{index: eth0.Index, name: "eth0", mac: eth0.HardwareAddr}, false, nil)
		return err
	})
	t.Cleanup(w.close)
	seen := func(p string) bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return slices.ContainsFunc(a.events, func(e Event) bool {
			return e.Kind == Duplicate && e.Prefix.String() == p && e.MAC.String() == thief.String()
		})
	}
	until(t, "both duplicates are told", func() bool { // Run opens its ears a moment after its start
		for _, f := range frames {
			if err := w.send(f); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Millisecond)
		return seen("10.0.0.50/24") && seen("fd00::50/64")
	})
	for range 200 {
		w.send(frames[0])
	}
	a.mu.Lock()
	n := len(a.events)
	a.mu.Unlock()
	if n > 4 {
		t.Errorf("%d events of two duplicates: they flood the log", n)
	}
	if !has(t, ns[0], "eth0", "10.0.0.50/24") || !has(t, ns[0], "eth0", "fd00::50/64") {
		t.Error("the VIP was given up")
	}
}

func TestTheHostsOwnMACsAreNoDuplicates(t *testing.T) {
	_, ns := lan(t, 1)
	a := keep(t, ns[0], Config{}, vip4())
	a.claim()
	c := claim{ip: vip4().Prefix.Addr(), iface: "eth0"}
	for _, mac := range []string{nstest.HostMAC(0), "02:00:00:00:00:99"} {
		c.mac, _ = net.ParseMAC(mac)
		a.k.hear(c)
	}
	c.ip = netip.MustParseAddr("10.0.0.99")
	a.k.hear(c)
	a.drop()
	c.ip, c.mac = vip4().Prefix.Addr(), net.HardwareAddr{2, 0, 0, 0, 0, 0x98}
	a.k.hear(c) // the active's
	if len(a.events) != 1 || a.events[0].MAC.String() != "02:00:00:00:00:99" {
		t.Errorf("events: %v, want one duplicate", a.events)
	}
}

func TestASilentDuplicateIsFoundByTheProbeThatGoesWithTheAnnouncements(t *testing.T) {
	_, ns := lan(t, 2)
	ns[1].Addr("eth0", "10.0.0.50/24")
	ns[1].Addr("eth0", "fd00::50/64")
	a := keep(t, ns[0], Config{}, vip4(), vip6()).run()
	a.claim()
	a.k.Announce() // as after a healing
	for _, p := range []string{"10.0.0.50/24", "fd00::50/64"} {
		until(t, "the duplicate of "+p+" is told", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return slices.ContainsFunc(a.events, func(e Event) bool {
				return e.Kind == Duplicate && e.Prefix.String() == p && e.MAC.String() == nstest.HostMAC(1)
			})
		})
	}
}

func TestALinkThatComesUpAgainIsAnnouncedAgain(t *testing.T) {
	sw, ns := lan(t, 2)
	client := ns[1]
	a := keep(t, ns[0], Config{Announce: AnnounceConfig{Burst: []time.Duration{0}}}, vip4(), vip6()).run()
	a.claim()
	for _, ip := range []string{"10.0.0.50", "fd00::50"} {
		spoil(t, client, ip)
	}
	sw.Down("p0") // the cable
	a.await(LinkDown)
	sw.Up("p0")
	a.await(LinkUp)
	for _, ip := range []string{"10.0.0.50", "fd00::50"} {
		until(t, ip+" is announced", func() bool { return neighbour(t, client, ip) == nstest.HostMAC(0) })
	}

	ns[0].Down("eth0") // the interface: the kernel takes the IPv6 addresses from it
	until(t, "the IPv6 VIP is gone", func() bool { return !has(t, ns[0], "eth0", "fd00::50/64") })
	ns[0].Up("eth0")
	until(t, "the IPv6 VIP is back", func() bool { return has(t, ns[0], "eth0", "fd00::50/64") })
}

// spoil gives a host a wrong neighbour entry, which only an announcement corrects soon.
func spoil(t *testing.T, ns *nstest.NS, ip string) {
	t.Helper()
	err := ns.Netlink().NeighSet(&netlink.Neigh{
		LinkIndex: ns.LinkByName("eth0").Attrs().Index, State: netlink.NUD_STALE, IP: net.ParseIP(ip),
		HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 0x77},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAnnounceCorrectsANeighbourAndIsRepeated(t *testing.T) {
	_, ns := lan(t, 2)
	client := ns[1]
	a := keep(t, ns[0], Config{Announce: AnnounceConfig{Burst: []time.Duration{0, 300 * time.Millisecond}}}, vip4(), vip6()).run()
	a.claim()
	for _, round := range []string{"when told", "by itself"} {
		for _, ip := range []string{"10.0.0.50", "fd00::50"} {
			spoil(t, client, ip)
		}
		if round == "when told" {
			a.k.Announce(svc)
		}
		for _, ip := range []string{"10.0.0.50", "fd00::50"} {
			took := until(t, ip+" is announced "+round, func() bool { return neighbour(t, client, ip) == nstest.HostMAC(0) })
			t.Logf("%s: %s after %v", ip, round, took)
		}
	}
}

func TestRoutesStayAsTheyWere(t *testing.T) {
	_, ns := lan(t, 1)
	routes := func() string {
		t.Helper()
		v4, err4 := ns[0].Command("ip", "route").Output()
		v6, err6 := ns[0].Command("ip", "-6", "route").Output()
		if err4 != nil || err6 != nil {
			t.Fatal(err4, err6)
		}
		return string(v4) + string(v6)
	}
	before := routes()
	a := keep(t, ns[0], Config{}, vip4(), vip6()).run()
	a.claim()
	if got := routes(); got != before {
		t.Fatalf("routes with the VIP:\n%swithout:\n%s", got, before)
	}
	if !has(t, ns[0], "eth0", "10.0.0.50/24") {
		t.Error("the address has not the length that the operator wrote")
	}
	// The own address is taken away and comes back while the VIP stays: the network's route is the own address's again.
	ns[0].DelAddr("eth0", "10.0.0.1/24")
	ns[0].Addr("eth0", "10.0.0.1/24")
	until(t, "the routes are as before", func() bool { return routes() == before })
	a.drop()
	if got := routes(); got != before {
		t.Fatalf("routes after the VIP:\n%sbefore:\n%s", got, before)
	}
	if !has(t, ns[0], "eth0", "10.0.0.1/24") {
		t.Error("the VIP took the own address with it")
	}
}

func TestANetworkThatHasOnlyTheVIPGetsItsRoute(t *testing.T) {
	_, ns := lan(t, 1)
	alone := Address{Service: svc, Prefix: netip.MustParsePrefix("192.168.9.9/24"), Interface: "eth0"}
	a := keep(t, ns[0], Config{}, alone).run()
	a.claim()
	route := func() string {
		out, _ := ns[0].Command("ip", "route", "show", "192.168.9.0/24").Output()
		return string(out)
	}
	if !strings.Contains(route(), "src 192.168.9.9") {
		t.Fatalf("route: %q", route())
	}
	ns[0].Addr("eth0", "192.168.9.1/24")
	until(t, "the own address has the route", func() bool { return strings.Contains(route(), "src 192.168.9.1 ") })
	a.drop()
	if !has(t, ns[0], "eth0", "192.168.9.1/24") || !strings.Contains(route(), "src 192.168.9.1 ") {
		t.Errorf("after Drop the own address or its route is gone: %q", route())
	}
}

func TestTheGuardsMessageRemovesAVIPInOneSend(t *testing.T) {
	_, ns := lan(t, 1)
	a := keep(t, ns[0], Config{}, vip4(), vip6())
	a.claim()
	msgs := a.k.Deletions(svc)
	if len(msgs) != 2 {
		t.Fatalf("%d messages, want 2", len(msgs))
	}
	fd := -1
	ns[0].MustDo(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return err
	})
	defer unix.Close(fd)
	var to unix.Sockaddr = &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, m := range msgs {
		if err := unix.Sendto(fd, m, 0, to); err != nil {
			t.Fatal(err)
		}
	}
	if has(t, ns[0], "eth0", "10.0.0.50/24") || has(t, ns[0], "eth0", "fd00::50/64") {
		t.Fatal("a VIP is still there")
	}
	n := testing.AllocsPerRun(100, func() {
		if unix.Sendto(fd, msgs[0], 0, to) != nil {
			t.Error("send")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations per removal, want none", n)
	}
}

func TestHoldingIsWhatTheKernelHas(t *testing.T) {
	_, ns := lan(t, 1)
	a := keep(t, ns[0], Config{}, vip4(), vip6())
	a.claim()
	ns[0].DelAddr("eth0", "fd00::50/64")
	got, err := a.k.Holding()
	if err != nil {
		t.Fatal(err)
	}
	want := vip4()
	want.Interface = "eth0"
	if len(got) != 1 || got[0] != want {
		t.Errorf("Holding: %+v, want %+v", got, want)
	}
}

func TestAChangedSpecTakesEffectWhileTheServiceIsActive(t *testing.T) {
	_, ns := lan(t, 1)
	a := keep(t, ns[0], Config{}, vip4()).run()
	a.claim()
	if err := a.k.SetKnown([]Address{vip6()}); err != nil {
		t.Fatal(err)
	}
	if has(t, ns[0], "eth0", "10.0.0.50/24") {
		t.Error("a VIP that left the spec is still there")
	}
	until(t, "the new VIP is there", func() bool { return has(t, ns[0], "eth0", "fd00::50/64") })
}

func TestAnAddressWithALifetimeLivesAsLongAsRunDoes(t *testing.T) {
	t.Parallel()
	_, ns := lan(t, 1)
	h := keep(t, ns[0], Config{Lifetime: 2 * time.Second, Tick: 100 * time.Millisecond}, vip4(), vip6())
	stop := h.start()
	h.claim()
	for began := time.Now(); time.Since(began) < 2300*time.Millisecond; time.Sleep(20 * time.Millisecond) {
		if !has(t, ns[0], "eth0", "10.0.0.50/24") || !has(t, ns[0], "eth0", "fd00::50/64") {
			t.Fatalf("an address went after %v although Run was there", time.Since(began))
		}
	}
	stop()
	took := until(t, "the kernel takes the addresses away", func() bool {
		return !has(t, ns[0], "eth0", "10.0.0.50/24") && !has(t, ns[0], "eth0", "fd00::50/64")
	})
	t.Logf("gone %v after Run ended", took)
}

func TestRunLeavesNothingBehindAndCanRunAgain(t *testing.T) {
	before := goleak.IgnoreCurrent()
	_, ns := lan(t, 1)
	a := keep(t, ns[0], Config{}, vip4(), vip6())
	a.claim()
	for range 2 {
		stop := a.start()
		ns[0].DelAddr("eth0", "10.0.0.50/24")
		until(t, "the VIP is back", func() bool { return has(t, ns[0], "eth0", "10.0.0.50/24") })
		stop()
	}
	goleak.VerifyNone(t, before)
}

// How long a takeover's Claim takes, with one VIP and with ten of each family.
func BenchmarkClaim(b *testing.B) {
	for _, n := range []int{1, 10} {
		for _, v := range []struct{ name, vip string }{{"IPv4", "10.0.0.%d/24"}, {"IPv6", "fd00::%d/64"}} {
			b.Run(fmt.Sprintf("%s-%d", v.name, n), func(b *testing.B) {
				_, ns := lan(b, 1)
				var vips []Address
				for i := range n {
					vips = append(vips, Address{Service: svc, Prefix: netip.MustParsePrefix(fmt.Sprintf(v.vip, 50+i))})
				}
				h := keep(b, ns[0], Config{}, vips...)
				var all []time.Duration
				for b.Loop() {
					all = append(all, h.claim())
					h.drop()
				}
				slices.Sort(all)
				b.ReportMetric(float64(all[len(all)/2].Microseconds()), "µs-p50")
				b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "µs-p99")
			})
		}
	}
}
