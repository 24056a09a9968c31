package link

import (
	"net/netip"
	"testing"
)

func TestARawAddressIsReadAsItWasWritten(t *testing.T) {
	for _, s := range []struct {
		v6   bool
		addr string
		want string
	}{
		{false, "10.77.0.2:7400", "10.77.0.2:7400"},
		{true, "[2001:db8::7]:7400", "[2001:db8::7]:7400"},
		{true, "10.77.0.2:7400", "10.77.0.2:7400"}, // mapped on the way
		{true, "[fe80::1%9]:7400", "[fe80::1%9]:7400"},
	} {
		r := (&socket{v6: s.v6}).rawSockaddr(netip.MustParseAddrPort(s.addr))
		if got := r.addrPort().String(); got != s.want {
			t.Errorf("%s (v6 socket: %v) is read as %s", s.addr, s.v6, got)
		}
	}
	if got := (&rawAddr{len: 2}).addrPort(); got.IsValid() {
		t.Errorf("a short address is read as %v", got)
	}
}
