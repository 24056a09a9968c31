package world

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridgeUp makes the bridge of one of the lab's networks.
func bridgeUp(link int) error {
	no := false
	b := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName(link)}, MulticastSnooping: &no}
	if err := netlink.LinkAdd(b); err != nil {
		return fmt.Errorf("make the bridge of network %d (kernel module bridge): %w", link, err)
	}
	_ = sysctl("net/ipv6/conf/all/disable_ipv6", "1")
	_ = sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	return linkUp(b.Name)
}

func bridgeName(link int) string { return fmt.Sprintf("br%d", link) }

func portName(link int, host string) string { return fmt.Sprintf("p%d-%s", link, host) }

// port is one host's place on one bridge.
type port struct {
	Host string `json:"host"`
	Link int    `json:"link"`
	Pid  int    `json:"pid,omitempty"` // port-add: whose network namespace gets the other end
	MAC  string `json:"mac,omitempty"`
	Up   bool   `json:"up,omitempty"` // port-set
}

// portAdd makes a pair of interfaces, one end on the bridge, the other as eth<link> in the host.
func portAdd(p port) error {
	mac, err := net.ParseMAC(p.MAC)
	if err != nil {
		return err
	}
	if err := portDel(p); err != nil {
		return err
	}
	br, err := netlink.LinkByName(bridgeName(p.Link))
	if err != nil {
		return fmt.Errorf("no network %d: %w", p.Link, err)
	}
	v := netlink.NewVeth(netlink.LinkAttrs{Name: portName(p.Link, p.Host), MasterIndex: br.Attrs().Index})
	v.PeerName, v.PeerHardwareAddr, v.PeerNamespace = Nic{Link: p.Link}.name(), mac, netlink.NsPid(p.Pid)
	if err := retry(func() error { return netlink.LinkAdd(v) }, syscall.EEXIST); err != nil {
		return fmt.Errorf("make the cable of %s: %w", v.Name, err)
	}
	return linkUp(v.Name)
}

// portDel removes the pair, if it is there: a dead host's namespace goes away some time after its processes.
func portDel(p port) error {
	l, err := netlink.LinkByName(portName(p.Link, p.Host))
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	err = netlink.LinkDel(l)
	if errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}

// portSet takes the switch's end of a cable down or up: the host sees its carrier go and come. The cable of a host that
// dies at this moment may be gone already.
func portSet(p port) error {
	name := portName(p.Link, p.Host)
	if p.Up {
		return linkUp(name)
	}
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetDown(l)
	}
	if errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}

// Rule drops what one host sends to another. The zero Permille, Port and Above mean all of it.
type Rule struct {
	From     string `json:"from"`               // host, required
	To       string `json:"to"`                 // host, required
	Link     int    `json:"link"`               // AllLinks: on all networks
	Permille int    `json:"permille,omitempty"` // random loss of so many of 1000 frames
	Port     uint16 `json:"port,omitempty"`     // only this TCP or UDP destination port
	Above    int    `json:"above,omitempty"`    // only frames of more bytes than this
}

// AllLinks makes a rule hold on every network.
const AllLinks = -1

type ruleSet struct {
	Links int    `json:"links"`
	Rules []Rule `json:"rules"`
}

// setRules replaces all rules of the switch by these, in one transaction: no frame sees half of them.
func setRules(s ruleSet) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	// Deleting a table that is not there is an error, adding one that is there is not.
	t := &nftables.Table{Name: "lab", Family: nftables.TableFamilyBridge}
	c.AddTable(t)
	c.DelTable(t)
	if len(s.Rules) > 0 {
		c.AddTable(t)
		accept := nftables.ChainPolicyAccept
		ch := c.AddChain(&nftables.Chain{Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &accept})
		for _, r := range s.Rules {
			for link := range s.Links {
				if r.Link == AllLinks || r.Link == link {
					c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: r.exprs(link)})
				}
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables, family bridge (kernel modules nf_tables, nft_meta_bridge): %w", err)
	}
	return nil
}

func (r Rule) exprs(link int) []expr.Any {
	const reg = 1
	bigEndian := &expr.Byteorder{SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: 4, Size: 4} // Cmp compares bytes
	e := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}, eq(ifname(portName(link, r.From))),
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg}, eq(ifname(portName(link, r.To))),
	}
	if r.Above > 0 {
		e = append(e, &expr.Meta{Key: expr.MetaKeyLEN, Register: reg}, bigEndian,
			&expr.Cmp{Op: expr.CmpOpGt, Register: reg, Data: binaryutil.BigEndian.PutUint32(uint32(r.Above))})
	}
	if r.Port > 0 { // destination port stands at the same place in TCP and UDP
		e = append(e, &expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: reg}, eq(binaryutil.BigEndian.PutUint16(unix.ETH_P_IP)),
			&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, eq(binaryutil.BigEndian.PutUint16(r.Port)))
	}
	if r.Permille > 0 && r.Permille < 1000 {
		e = append(e, &expr.Numgen{Register: reg, Modulus: 1000, Type: unix.NFT_NG_RANDOM}, bigEndian,
			&expr.Cmp{Op: expr.CmpOpLt, Register: reg, Data: binaryutil.BigEndian.PutUint32(uint32(r.Permille))})
	}
	return append(e, &expr.Verdict{Kind: expr.VerdictDrop})
}

func eq(b []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b} }

func ifname(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}
