package vip

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// sysctl is one kernel setting of an interface under /proc/sys/net, and the values that will do.
type sysctl struct {
	key  string // with %s for the interface
	want string
	ok   func(have int) bool
}

func exactly(n int) func(int) bool { return func(have int) bool { return have == n } }

// carrierSysctls are set on each interface that carries VIPs. Stricter settings of the operator stay.
var carrierSysctls = [...]sysctl{
	// Answer ARP only for addresses of the interface that is asked, else eth0 answers for a virtual MAC's VIP (ARP flux).
	{"ipv4/conf/%s/arp_ignore", "1", func(n int) bool { return n != 0 }},
	// Ask with the interface's own address, else each of the host's requests claims a VIP for the wrong MAC.
	{"ipv4/conf/%s/arp_announce", "2", exactly(2)},
	// Taking a VIP away must not take other addresses of its network with it.
	{"ipv4/conf/%s/promote_secondaries", "1", exactly(1)},
}

// vmacSysctls are set on the interfaces that we make for virtual MACs.
var vmacSysctls = [...]sysctl{
	// Answers leave by the parent, where the network's route is: a strict reverse path check would drop the questions.
	{"ipv4/conf/%s/rp_filter", "2", exactly(2)},
	// No address of its own: it would be the same on both nodes.
	{"ipv6/conf/%s/addr_gen_mode", "1", exactly(1)},
	{"ipv6/conf/%s/accept_ra", "0", exactly(0)},
}

// setSysctls brings settings to the wanted values. IPv6 settings are left out where there is no IPv6.
func setSysctls(iface string, settings []sysctl) error {
	var errs []error
	for _, s := range settings {
		path := "/proc/sys/net/" + fmt.Sprintf(s.key, iface)
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(s.key, "ipv6/") {
			continue
		}
		if err == nil {
			have, aerr := strconv.Atoi(strings.TrimSpace(string(b)))
			if aerr == nil && s.ok(have) {
				continue
			}
			err = os.WriteFile(path, []byte(s.want), 0)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set %s to %s: %w; set it by hand (sysctl.d)", path, s.want, err))
		}
	}
	return errors.Join(errs...)
}

// forwards says that the kernel is an IPv6 router on the interface, and says so in its own advertisements.
func forwards(iface string) bool {
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + iface + "/forwarding")
	return err == nil && strings.TrimSpace(string(b)) != "0"
}
