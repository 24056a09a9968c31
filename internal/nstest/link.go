package nstest

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// Link lays a cable between two namespaces (which may be one and the same): a veth pair, both ends up. A MAC of "" leaves
// the choice to the kernel.
func Link(t testing.TB, a *NS, aName, aMAC string, b *NS, bName, bMAC string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = aName, mac(t, aMAC)
	veth := &netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         bName,
		PeerHardwareAddr: mac(t, bMAC),
		PeerNamespace:    netlink.NsFd(int(b.file.Fd())),
	}
	if err := a.nl.LinkAdd(veth); err != nil {
		t.Fatalf("cable %s - %s: %v", aName, bName, err)
	}
	a.Up(aName)
	b.Up(bName)
}

// Switch makes a switch and plugs eth0 of each host into it: host i has the MAC of HostMAC(i) and the switch's port p<i>.
// The switch learns and forwards at once: no spanning tree, no multicast snooping.
func Switch(t testing.TB, hosts ...*NS) *NS {
	t.Helper()
	sw := New(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	snoop := false
	if err := sw.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}); err != nil {
		t.Fatalf("make a bridge: %v", err)
	}
	sw.Up("br0")
	for i, h := range hosts {
		Plug(t, sw, fmt.Sprintf("p%d", i), h, "eth0", HostMAC(i))
	}
	return sw
}

// Plug lays a cable from a new port of the switch to a new interface of a host.
func Plug(t testing.TB, sw *NS, port string, host *NS, name, hostMAC string) {
	t.Helper()
	Link(t, sw, port, "", host, name, hostMAC)
	// A port that joins the switch before the kernel calls it up forwards only some time later.
	sw.awaitUp(port)
	host.awaitUp(name)
	if err := sw.nl.LinkSetMaster(sw.LinkByName(port), sw.LinkByName("br0")); err != nil {
		t.Fatalf("add %s to the switch: %v", port, err)
	}
}

// awaitUp waits until the interface's operational state is up: until then the kernel may drop what is sent.
func (ns *NS) awaitUp(name string) {
	ns.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if ns.LinkByName(name).Attrs().OperState == netlink.OperUp {
			return
		}
		if time.Now().After(deadline) {
			ns.t.Fatalf("%s did not come up within 5 s", name)
		}
	}
}

// HostMAC is the MAC that Switch gives to eth0 of host i.
func HostMAC(i int) string { return fmt.Sprintf("02:00:00:00:00:%02x", i+1) }

func mac(t testing.TB, s string) net.HardwareAddr {
	t.Helper()
	if s == "" {
		return nil
	}
	hw, err := net.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return hw
}
