package world

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Nic is one network interface of a host, named eth<Link> within it.
type Nic struct {
	Link   int    `json:"link"`   // which of the lab's networks: 0 ... Config.Links-1
	Prefix string `json:"prefix"` // address and length, "10.77.0.1/24"
	MAC    string `json:"mac"`
}

func (n Nic) name() string { return fmt.Sprintf("eth%d", n.Link) }

// netSetup brings a host's network up.
type netSetup struct {
	Nics []Nic `json:"nics"`
}

// netUp configures lo and the host's interfaces, which the switch has put there already.
func netUp(s netSetup) error {
	// No host of the lab routes, and none speaks IPv6 unasked: neither is needed and both add noise. Where /proc/sys is
	// read-only the defaults stay.
	for _, kv := range [][2]string{
		{"net/ipv4/ip_forward", "0"},
		{"net/ipv6/conf/all/disable_ipv6", "1"},
		{"net/ipv6/conf/default/disable_ipv6", "1"},
		{"net/ipv4/ip_local_port_range", "10000 65000"},
	} {
		_ = sysctl(kv[0], kv[1])
	}
	if err := linkUp("lo"); err != nil {
		return err
	}
	for _, n := range s.Nics {
		if err := addrAdd(addrReq{Dev: n.name(), Prefix: n.Prefix}); err != nil {
			return err
		}
		if err := linkUp(n.name()); err != nil {
			return err
		}
	}
	return nil
}

func linkUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// addrReq names an address of an interface.
type addrReq struct {
	Dev    string `json:"dev"`
	Prefix string `json:"prefix"`
}

func (a addrReq) resolve() (netlink.Link, *netlink.Addr, error) {
	l, err := netlink.LinkByName(a.Dev)
	if err != nil {
		return nil, nil, fmt.Errorf("interface %s: %w", a.Dev, err)
	}
	addr, err := netlink.ParseAddr(a.Prefix)
	if err != nil {
		return nil, nil, err
	}
	return l, addr, nil
}

func addrAdd(a addrReq) error {
	l, addr, err := a.resolve()
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, addr); err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("add %s to %s: %w", a.Prefix, a.Dev, err)
	}
	return nil
}

func addrDel(a addrReq) error {
	l, addr, err := a.resolve()
	if err != nil {
		return err
	}
	if err := netlink.AddrDel(l, addr); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
		return fmt.Errorf("remove %s from %s: %w", a.Prefix, a.Dev, err)
	}
	return nil
}

// announce sends one gratuitous ARP request (RFC 5227, section 3) for the address from the interface's own MAC.
func announce(a addrReq) error {
	l, addr, err := a.resolve()
	if err != nil {
		return err
	}
	mac, ip := l.Attrs().HardwareAddr, addr.IP.To4()
	if len(mac) != 6 || ip == nil {
		return fmt.Errorf("announce %s on %s: only IPv4 over Ethernet", a.Prefix, a.Dev)
	}
	var f bytes.Buffer
	f.Write([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Write(mac)
	f.Write([]byte{0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1})
	f.Write(mac)
	f.Write(ip)
	f.Write(make([]byte, 6))
	f.Write(ip)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Halen: 6, Protocol: binary.BigEndian.Uint16([]byte{0x06, 0x08})}
	return unix.Sendto(fd, f.Bytes(), 0, to)
}

// neighReq pins an address to a MAC for ever.
type neighReq struct {
	Dev string `json:"dev"`
	IP  string `json:"ip"`
	MAC string `json:"mac"`
}

func pinNeighbour(n neighReq) error {
	l, err := netlink.LinkByName(n.Dev)
	if err != nil {
		return fmt.Errorf("interface %s: %w", n.Dev, err)
	}
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return err
	}
	ip, err := netip.ParseAddr(n.IP)
	if err != nil {
		return err
	}
	return netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_INET,
		State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac})
}

// retry repeats f while the kernel says that something is still going away (an interface of a namespace that was left
// a moment ago), for at most two seconds.
func retry(f func() error, busy ...error) error {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := f()
		if err == nil || time.Now().After(end) {
			return err
		}
		again := false
		for _, b := range busy {
			again = again || errors.Is(err, b)
		}
		if !again {
			return err
		}
	}
}

// Here does to the network of the calling process what the methods of the same names do to a Host's from outside.
type Here struct{}

func (Here) AddAddr(dev, prefix string) error { return addrAdd(addrReq{dev, prefix}) }

func (Here) DelAddr(dev, prefix string) error { return addrDel(addrReq{dev, prefix}) }

func (Here) Announce(dev, prefix string) error { return announce(addrReq{dev, prefix}) }
