package ndp

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
	ip  = netip.MustParseAddr("fd00::50")
)

func TestTheAnnouncementIsAnUnsolicitedAdvertisementThatOverrides(t *testing.T) {
	for _, router := range []bool{false, true} {
		f, err := Announce(mac, ip, router)
		if err != nil {
			t.Fatal(err)
		}
		flags := byte(0x20) // override, not solicited
		if router {
			flags |= 0x80
		}
		all := netip.IPv6LinkLocalAllNodes().As16()
		switch {
		case !bytes.Equal(f[:14], []byte{0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd}):
			t.Errorf("Ethernet header % x", f[:14])
		case f[14] != 0x60 || f[20] != 58 || f[21] != 255 || !bytes.Equal(f[22:38], ip.AsSlice()) || !bytes.Equal(f[38:54], all[:]):
			t.Errorf("IPv6 header % x", f[14:54])
		case f[54] != 136 || f[58] != flags || !bytes.Equal(f[62:78], ip.AsSlice()):
			t.Errorf("advertisement % x", f[54:])
		case !bytes.Equal(f[78:], append([]byte{2, 1}, mac...)):
			t.Errorf("options % x", f[78:])
		case checksum(f) != 0xffff:
			t.Errorf("checksum %#x", checksum(f))
		}
		got, hw, ok := Claim(f)
		if !ok || got != ip || !bytes.Equal(hw, mac) {
			t.Errorf("it claims %v for %v (%v)", got, hw, ok)
		}
	}
}

func TestAProbeComesFromNowhereAndClaimsNothing(t *testing.T) {
	f, err := Probe(mac, ip)
	if err != nil {
		t.Fatal(err)
	}
	if a, _, ok := Claim(f); ok {
		t.Errorf("the probe claims %v", a)
	}
	group := netip.MustParseAddr("ff02::1:ff00:50")
	if !bytes.Equal(f[:6], []byte{0x33, 0x33, 0xff, 0, 0, 0x50}) || !bytes.Equal(f[22:38], make([]byte, 16)) ||
		!bytes.Equal(f[38:54], group.AsSlice()) || f[54] != 135 || len(f) != 78 || checksum(f) != 0xffff {
		t.Errorf("probe % x", f)
	}
}

// checksum is that of RFC 4443 section 2.3 over a whole frame; 0xffff when the frame's own is right.
func checksum(f []byte) uint16 {
	sum := uint32(58 + len(f) - 54)
	for b := f[22:]; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func TestAClaimFromBeyondARouterIsNotBelieved(t *testing.T) {
	f, _ := Announce(mac, ip, false)
	f[21] = 254
	if _, _, ok := Claim(f); ok {
		t.Error("hop limit 254 was taken")
	}
}

func TestTheFilterPassesOnlyClaimsOfItsAddresses(t *testing.T) {
	vm, err := bpf.NewVM(Filter([]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::49"), ip}))
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{"fd00::50": true, "fd00::49": true, "fd00::51": false} {
		f, err := Announce(mac, netip.MustParseAddr(addr), false)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := vm.Run(f); (n > 0) != want || err != nil {
			t.Errorf("%s passes: %v, %v", addr, n > 0, err)
		}
	}
	if f, _ := Probe(mac, ip); f != nil {
		if n, _ := vm.Run(f); n != 0 {
			t.Error("a probe passes")
		}
	}
}

func TestBadAddressesAreRefused(t *testing.T) {
	for _, bad := range []string{"10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0"} {
		if _, err := Announce(mac, netip.MustParseAddr(bad), false); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
	if _, err := Announce(mac[:4], ip, false); err == nil {
		t.Error("a MAC of four bytes was taken")
	}
}

func TestNoFrameMakesClaimPanic(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f, _ := Announce(mac, ip, false)
		b := f[:rapid.IntRange(0, len(f)).Draw(rt, "length")]
		for range rapid.IntRange(0, 3).Draw(rt, "changes") {
			if len(b) > 0 {
				b[rapid.IntRange(0, len(b)-1).Draw(rt, "at")] = rapid.Byte().Draw(rt, "byte")
			}
		}
		Claim(b)
		Claim(rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(rt, "noise"))
	})
}
