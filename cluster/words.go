// Package cluster holds the vocabulary that every other room of hanode uses: who the members are, how time, epochs and
// positions are counted, which timings a profile sets, and the compiled form of the spec that operators write.
//
// It is pure: no I/O, no goroutine, no clock. It imports nothing of this module. Everything that decides (cluster/lock,
// cluster/lease, cluster/detect, failover/plan) is written in these words and can therefore be simulated and replayed.
package cluster

import (
	"encoding/hex"
	"fmt"
	"math/bits"
	"strings"
	"time"
)

// Instant is a point of CLOCK_BOOTTIME in nanoseconds. Only differences of instants of one host mean anything; no
// time.Time enters a deciding core, so that a jump of the wall clock changes nothing.
type Instant int64

// Add returns i moved by d.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Sub returns the time from j to i.
func (i Instant) Sub(j Instant) time.Duration { return time.Duration(i - j) }

// NodeID is the random 128-bit identity of a member. It is made together with its data store: an emptied disk is a new
// member, because what the old one had promised is lost.
type NodeID [16]byte

func (n NodeID) String() string { return hex.EncodeToString(n[:]) }

// IsZero says that no identity was set.
func (n NodeID) IsZero() bool { return n == NodeID{} }

// ParseNodeID reads the 32 hexadecimal digits that String writes.
func ParseNodeID(s string) (NodeID, error) {
	var n NodeID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(n) {
		return n, fmt.Errorf("node id %q: want 32 hexadecimal digits", s)
	}
	copy(n[:], b)
	return n, nil
}

// ServerID is the member's name in the Raft configuration: "<name>-<first 8 hex digits of its id>".
func ServerID(name string, id NodeID) string { return name + "-" + id.String()[:8] }

// ServerName is the name within a ServerID.
func ServerName(serverID string) string {
	if i := strings.LastIndexByte(serverID, '-'); i > 0 {
		return serverID[:i]
	}
	return serverID
}

// MemberNo is the small number that the replicated state machine gives to a member when it first joins: 1 to 63, never
// used again for another one. 0 is nobody.
type MemberNo uint8

// MaxMembers bounds MemberNo, so that a set of members fits into one word.
const MaxMembers = 63

// MemberSet is a set of members, one bit per MemberNo.
type MemberSet uint64

// SetOf builds a set.
func SetOf(nos ...MemberNo) MemberSet {
	var s MemberSet
	for _, n := range nos {
		s = s.With(n)
	}
	return s
}

func (s MemberSet) Has(n MemberNo) bool          { return n != 0 && s&(1<<n) != 0 }
func (s MemberSet) With(n MemberNo) MemberSet    { return s | 1<<n&^1 }
func (s MemberSet) Without(n MemberNo) MemberSet { return s &^ (1 << n) }
func (s MemberSet) Len() int                     { return bits.OnesCount64(uint64(s)) }

// Majority is the number of members that makes a majority of s.
func (s MemberSet) Majority() int { return s.Len()/2 + 1 }

// List returns the members in rising order.
func (s MemberSet) List() []MemberNo {
	var out []MemberNo
	for ; s != 0; s &= s - 1 {
		out = append(out, MemberNo(bits.TrailingZeros64(uint64(s))))
	}
	return out
}

// Epoch is the fencing token of a service: it grows by one with every Grant or Bump.
type Epoch uint64

// Generation grows whenever the in-sync set of a service shrinks or a Grant is made.
type Generation uint64

// Incarnation counts the starts of a member's daemon; it is made durable before the daemon talks to anybody.
type Incarnation uint64

// BootID is /proc/sys/kernel/random/boot_id: what was not fsynced is lost when it changes.
type BootID [16]byte

// ServiceNo is the number that the replicated state machine gives to a service; lease frames carry it, never the name.
type ServiceNo uint32

// Position is a place in a service's operation stream.
type Position struct {
	Epoch Epoch
	Gen   Generation
	Seq   uint64
}

// Compare orders positions by epoch, then generation, then sequence: -1, 0 or 1.
func (p Position) Compare(q Position) int {
	switch {
	case p.Epoch != q.Epoch:
		return cmp(uint64(p.Epoch), uint64(q.Epoch))
	case p.Gen != q.Gen:
		return cmp(uint64(p.Gen), uint64(q.Gen))
	default:
		return cmp(p.Seq, q.Seq)
	}
}

func cmp(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Role says what a member is for.
type Role uint8

const (
	RoleNode    Role = 1 // carries services and, by default, has a vote
	RoleWitness Role = 2 // votes, carries no data
)

func (r Role) String() string {
	switch r {
	case RoleNode:
		return "node"
	case RoleWitness:
		return "witness"
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}
