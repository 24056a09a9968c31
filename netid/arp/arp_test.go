package arp

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
	"pgregory.net/rapid"
)

var (
	mac = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	ip  = netip.MustParseAddr("10.0.0.50")
)

func TestAnnouncementsAreAGratuitousRequestAndAReplyToOurselves(t *testing.T) {
	frames, err := Announce(mac, ip)
	if err != nil || len(frames) != 2 {
		t.Fatal(frames, err)
	}
	head := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0}
	request := append(bytes.Clone(head), 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 50, 0, 0, 0, 0, 0, 0, 10, 0, 0, 50)
	reply := append(bytes.Clone(head), 2, 2, 0, 0, 0, 0, 1, 10, 0, 0, 50, 2, 0, 0, 0, 0, 1, 10, 0, 0, 50)
	for i, want := range [][]byte{request, reply} {
		if !bytes.HasPrefix(frames[i], want) {
			t.Errorf("frame %d:\n% x\nwant\n% x", i, frames[i], want)
		}
		got, hw, ok := Claim(frames[i])
		if !ok || got != ip || !bytes.Equal(hw, mac) {
			t.Errorf("frame %d claims %v for %v (%v)", i, got, hw, ok)
		}
	}
}

func TestAProbeClaimsNothing(t *testing.T) {
	f, err := Probe(mac, ip)
	if err != nil {
		t.Fatal(err)
	}
	if a, _, ok := Claim(f); ok {
		t.Errorf("the probe claims %v", a)
	}
	if !bytes.Equal(f[28:32], []byte{0, 0, 0, 0}) || !bytes.Equal(f[38:42], []byte{10, 0, 0, 50}) {
		t.Errorf("probe % x", f)
	}
}

func TestTheFilterPassesOnlyClaimsOfItsAddresses(t *testing.T) {
	vm, err := bpf.NewVM(Filter([]netip.Addr{netip.MustParseAddr("10.0.0.49"), netip.MustParseAddr("fd00::1"), ip}))
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{"10.0.0.50": true, "10.0.0.49": true, "10.0.0.51": false, "0.0.0.1": false} {
		frames, err := Announce(mac, netip.MustParseAddr(addr))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := vm.Run(frames[0]); (n > 0) != want || err != nil {
			t.Errorf("%s passes: %v, %v", addr, n > 0, err)
		}
	}
}

func TestBadAddressesAreRefused(t *testing.T) {
	if _, err := Announce(mac, netip.MustParseAddr("fd00::1")); err == nil {
		t.Error("an IPv6 address was taken")
	}
	if _, err := Announce(mac[:4], ip); err == nil {
		t.Error("a MAC of four bytes was taken")
	}
}

func TestNoFrameMakesClaimPanic(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		frames, _ := Announce(mac, ip)
		b := frames[0][:rapid.IntRange(0, len(frames[0])).Draw(rt, "length")]
		for range rapid.IntRange(0, 3).Draw(rt, "changes") {
			if len(b) > 0 {
				b[rapid.IntRange(0, len(b)-1).Draw(rt, "at")] = rapid.Byte().Draw(rt, "byte")
			}
		}
		Claim(b)
		Claim(rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(rt, "noise"))
	})
}
