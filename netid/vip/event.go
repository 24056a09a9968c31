package vip

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/hanode/hanode/cluster"
)

// Kind is what an Event tells.
type Kind string

const (
	Duplicate Kind = "duplicate" // another MAC claims a VIP that this node holds: an alarm, not a release
	Added     Kind = "added"     // a VIP of a tenure that had begun was added: its interface was not there or down, or the spec is new
	Restored  Kind = "restored"  // a VIP that this node holds had vanished from the kernel and is back
	Removed   Kind = "removed"   // an address of ours was in the kernel outside a tenure and is gone
	LinkUp    Kind = "link-up"   // an interface with a VIP that this node holds came up; it was announced again
	LinkDown  Kind = "link-down" // such an interface went down
	Failing   Kind = "failing"   // the kernel refuses what is wanted; Err says why; it is tried again at each tick
)

// Event is something that the operator should see.
type Event struct {
	Kind      Kind
	Service   cluster.ServiceNo // 0: an address that is not in the spec any more
	Prefix    netip.Prefix
	Interface string
	MAC       net.HardwareAddr // Duplicate: who claims it
	Err       error            // Failing
}

// String is one sentence with what to do.
func (e Event) String() string {
	switch e.Kind {
	case Duplicate:
		return fmt.Sprintf("VIP %v is claimed by %v on %s too: find that machine and take the address from it; until then clients may reach either",
			e.Prefix.Addr(), e.MAC, e.Interface)
	case Added:
		return fmt.Sprintf("VIP %v added to %s and announced", e.Prefix, e.Interface)
	case Restored:
		return fmt.Sprintf("VIP %v had vanished from %s; it is back and announced", e.Prefix, e.Interface)
	case Removed:
		return fmt.Sprintf("%v was on %s outside a tenure of its service here; removed", e.Prefix, e.Interface)
	case LinkUp:
		return fmt.Sprintf("%s is up: VIP %v announced again", e.Interface, e.Prefix)
	case LinkDown:
		return fmt.Sprintf("%s is down: VIP %v cannot be reached through it", e.Interface, e.Prefix)
	case Failing:
		return fmt.Sprintf("VIP %v on %s: %v; tried again at each tick", e.Prefix, e.Interface, e.Err)
	}
	return string(e.Kind)
}

// often says that an event can come again and again while somebody works against us, and is told only once in a while.
func (e Event) often() bool { return e.Kind == Restored || e.Kind == Removed || e.Kind == Failing }

// seldom remembers when something was last said.
type seldom map[string]time.Time

// A host defends its address at most once in this time (RFC 5227 section 2.4, DEFEND_INTERVAL); we repeat an event at
// most as often.
const seldomEvery = 10 * time.Second

// within says that the key was allowed less than d ago.
func (s seldom) within(now time.Time, key string, d time.Duration) bool {
	last, ok := s[key]
	return ok && now.Sub(last) < d
}

// allow lets a key through once in seldomEvery.
func (s seldom) allow(now time.Time, key string) bool {
	if s.within(now, key, seldomEvery) {
		return false
	}
	s.note(now, key)
	return true
}

func (s seldom) note(now time.Time, key string) {
	if len(s) >= 1024 { // somebody makes up keys: forget, rather than grow
		clear(s)
	}
	s[key] = now
}
