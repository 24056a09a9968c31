package vip

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/nstest"
)

func TestCheckSaysWhatIsWrongWithAVIPOnThisNode(t *testing.T) {
	_, ns := lan(t, 2)
	here := ns[0]
	here.Addr("lo", "192.168.7.1/24")
	nstest.Link(t, here, "eth1", "", here, "eth2", "")
	here.Addr("eth1", "172.16.0.1/16")
	here.Addr("eth2", "172.16.0.2/16")
	nstest.Link(t, here, "eth3", "", here, "eth4", "")
	here.Addr("eth3", "172.17.0.1/16")
	here.Down("eth3")
	ns[1].Addr("eth0", "10.0.0.77/24")
	ns[1].Addr("eth0", "fd00::77/64")
	a := func(prefix, iface string) Address {
		return Address{Service: svc, Prefix: netip.MustParsePrefix(prefix), Interface: iface}
	}
	vmacOnLo := a("192.168.7.9/24", "")
	vmacOnLo.VirtualMAC = true
	for _, c := range []struct {
		name string
		vip  Address
		want string // "" for no error
	}{
		{"a free IPv4 address", a("10.0.0.50/24", ""), ""},
		{"a free IPv6 address", a("fd00::50/64", ""), ""},
		{"another network on a named interface", a("10.77.0.1/24", "eth0"), ""},
		{"an address on the loopback", a("192.168.7.9/24", ""), ""},
		{"no network", a("10.9.9.9/24", ""), "VIP 10.9.9.9/24: no interface of this node has an address in 10.9.9.0/24; add one or name interface ="},
		{"no such interface", a("10.0.0.50/24", "eth9"), "no interface eth9"},
		{"two interfaces", a("172.16.0.9/16", ""), "fits to the interfaces eth1, eth2"},
		{"interface down", a("172.17.0.9/16", ""), "eth3 is down"},
		{"own address", a("10.0.0.1/24", ""), "own fixed address on eth0"},
		{"in use, IPv4", a("10.0.0.77/24", ""), "in use already: " + nstest.HostMAC(1) + " answered for it on eth0"},
		{"in use, IPv6", a("fd00::77/64", ""), "in use already: " + nstest.HostMAC(1) + " answered for it on eth0"},
		{"virtual MAC on the loopback", vmacOnLo, "cannot carry a virtual MAC"},
		{"the network itself", a("10.0.0.0/24", ""), "choose a host's address"},
		{"broadcast", a("10.0.15.255/20", ""), "choose a host's address"},
		{"multicast", a("ff02::5/64", ""), "cannot move"},
		{"link-local", a("fe80::5/64", ""), "cannot move"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var errs []error
			here.MustDo(func() error { errs = Check([]Address{c.vip}); return nil })
			got := errors.Join(errs...)
			if c.want == "" && got != nil || c.want != "" && (got == nil || !strings.Contains(got.Error(), c.want)) {
				t.Errorf("Check: %v, want %q", got, c.want)
			}
		})
	}
}

func TestAListThatContradictsItselfIsRefused(t *testing.T) {
	other := vip4()
	other.Service = 2
	one, two := vip4(), Address{Service: 2, Prefix: netip.MustParsePrefix("10.0.0.51/24"), VirtualMAC: true, VMACID: 7}
	one.VirtualMAC, one.VMACID = true, 7
	for want, addrs := range map[string][]Address{
		"twice":               {vip4(), other},
		"same virtual MAC id": {one, two},
	} {
		if err := validate(addrs); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("validate: %v, want %q", err, want)
		}
	}
}

func TestProbeFindsWhoHasAnAddress(t *testing.T) {
	_, ns := lan(t, 2)
	a := keep(t, ns[0], Config{}, vip4(), vip6())
	for _, ip := range []string{"10.0.0.50", "fd00::50"} {
		if mac, used, err := a.k.Probe(context.Background(), netip.MustParseAddr(ip)); used || err != nil {
			t.Errorf("Probe(%s): %v %v %v, want nobody", ip, mac, used, err)
		}
	}
	ns[1].Addr("eth0", "10.0.0.50/24")
	ns[1].Addr("eth0", "fd00::50/64")
	for _, ip := range []string{"10.0.0.50", "fd00::50", "10.0.0.2"} {
		began := time.Now()
		mac, used, err := a.k.Probe(context.Background(), netip.MustParseAddr(ip))
		if !used || mac.String() != nstest.HostMAC(1) || err != nil {
			t.Errorf("Probe(%s): %v %v %v", ip, mac, used, err)
		}
		t.Logf("%s: answered after %v", ip, time.Since(began))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, _, err := a.k.Probe(ctx, netip.MustParseAddr("10.0.0.60"))
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 200*time.Millisecond {
		t.Errorf("Probe ended %v after its context with %v", time.Since(began)-20*time.Millisecond, err)
	}
}

func TestAVIPWithoutANetworkIsSaidAndAddedWhenTheNetworkComes(t *testing.T) {
	ns := nstest.New(t)
	nstest.Link(t, ns, "eth0", "", ns, "peer", "")
	a := keep(t, ns, Config{}).run()
	want := "VIP 10.0.0.50/24: no interface of this node has an address in 10.0.0.0/24"
	if err := a.k.SetKnown([]Address{vip4()}); err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("SetKnown: %v", err)
	}
	if on, err := a.k.Claim(svc); err == nil || !strings.Contains(err.Error(), want) || len(on) != 0 {
		t.Fatalf("Claim: %v, %v", on, err)
	}
	ns.Addr("eth0", "10.0.0.1/24")
	until(t, "the VIP is there", func() bool { return has(t, ns, "eth0", "10.0.0.50/24") })
	if e := a.await(Added); e.Interface != "eth0" {
		t.Errorf("event: %+v", e)
	}
}

func TestNothingIsAddedToAnInterfaceThatIsDownBeforeItComesUp(t *testing.T) {
	_, ns := lan(t, 1)
	ns[0].Down("eth0")
	a := keep(t, ns[0], Config{}, vip4()).run()
	if _, err := a.k.Claim(svc); err == nil || !strings.Contains(err.Error(), "is down") {
		t.Fatalf("Claim: %v", err)
	}
	if has(t, ns[0], "eth0", "10.0.0.50/24") {
		t.Fatal("the VIP is on an interface that is down")
	}
	ns[0].Up("eth0")
	until(t, "the VIP is there", func() bool { return has(t, ns[0], "eth0", "10.0.0.50/24") })
}

func TestAnInterfaceThatIsReplacedGetsItsVIPAgain(t *testing.T) {
	ns, sw := nstest.New(t), nstest.New(t)
	nstest.Link(t, ns, "eth0", nstest.HostMAC(0), sw, "p0", "")
	vip := vip4()
	vip.Interface = "eth0"
	vmac := Address{Service: svc, Prefix: netip.MustParsePrefix("10.0.0.51/24"), Interface: "eth0", VirtualMAC: true}
	a := keep(t, ns, Config{}, vip, vmac).run()
	a.claim()
	if err := ns.Netlink().LinkDel(ns.LinkByName("eth0")); err != nil {
		t.Fatal(err)
	}
	until(t, "the Keeper knows that eth0 is gone", func() bool { return len(a.k.Deletions(svc)) == 0 })
	nstest.Link(t, ns, "eth0", nstest.HostMAC(1), sw, "p0", "")
	until(t, "the VIPs are back", func() bool {
		return has(t, ns, "eth0", "10.0.0.50/24") &&
			has(t, ns, vmacName(ns.LinkByName("eth0").Attrs().Index, vmac.vmacID(), true), "10.0.0.51/24")
	})
}
