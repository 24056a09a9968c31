package vip

import (
	"testing"
	"time"

	"github.com/hanode/hanode/internal/nstest"
)

func TestAVIPMovesBetweenTwoHostsAndTheNeighbourFollowsWithinMilliseconds(t *testing.T) {
	for _, v := range []struct {
		name, ip string
		vip      Address
	}{{"IPv4", "10.0.0.50", vip4()}, {"IPv6", "fd00::50", vip6()}} {
		t.Run(v.name, func(t *testing.T) {
			_, ns := lan(t, 3)
			ns[0].Sysctl("ipv6/conf/eth0/accept_dad", "1")
			ns[1].Sysctl("ipv6/conf/eth0/accept_dad", "1")
			client := ns[2]
			a, b := keep(t, ns[0], Config{}, v.vip).run(), keep(t, ns[1], Config{}, v.vip).run()
			serve(t, ns[0], "a")
			serve(t, ns[1], "b")
			took := a.claim()
			if who := ask(client, v.ip); who != "a" {
				t.Fatalf("%q answered on the VIP, want a", who)
			}
			t.Logf("first claim took %v", took)
			for i := range 10 {
				from, to, who, mac := a, b, "b", nstest.HostMAC(1)
				if i%2 == 1 {
					from, to, who, mac = b, a, "a", nstest.HostMAC(0)
				}
				from.drop()
				claim := to.claim()
				switched := until(t, "the neighbour's table follows", func() bool { return neighbour(t, client, v.ip) == mac })
				if got := ask(client, v.ip); got != who {
					t.Fatalf("%q answered on the VIP, want %s", got, who)
				}
				t.Logf("move %d: Claim %v, neighbour %v later", i, claim, switched)
				if switched > 200*time.Millisecond {
					t.Errorf("the neighbour took %v to follow", switched)
				}
			}
		})
	}
}
