package state

import (
	"errors"
	"fmt"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/internal/pbwire"
)

// MaxCommand bounds an encoded command.
const MaxCommand = 1 << 20

// Command is one entry of the log. Exactly one of its commands is set; Decision may stand alone or beside another one, and is then recorded
// only if that one is accepted.
type Command struct {
	At     int64  `pb:"1"` // the proposer's wall clock, ms: for people
	Who    string `pb:"2"` // who ordered it: "policy" or an operator
	Reason string `pb:"3"`

	Init         *Init         `pb:"10"`
	MemberAdd    *MemberAdd    `pb:"11"`
	MemberSet    *MemberSet    `pb:"12"`
	MemberRemove *MemberRemove `pb:"13"`
	Join         *Join         `pb:"14"`
	TokenCreate  *Token        `pb:"15"`
	SpecApply    *SpecApply    `pb:"16"`
	Desired      *Desired      `pb:"17"`
	Pin          *Pin          `pb:"18"`
	AckAlarm     *AlarmAck     `pb:"19"`
	Grant        *Grant        `pb:"20"`
	Force        *ForceGrant   `pb:"21"`
	Bump         *Bump         `pb:"22"`
	Degrade      *Degrade      `pb:"23"`
	InSync       *InSync       `pb:"24"`
	Sticky       *Sticky       `pb:"25"`
	Confirm      *Confirm      `pb:"26"`
	Settle       *Settle       `pb:"27"`
	Level        *Level        `pb:"28"`
	Event        *Event        `pb:"29"`
	Nop          *Nop          `pb:"30"`

	// The commands of level 2: see contract.go.
	CheckPause *CheckPause `pb:"50"`
	Approval   *Approval   `pb:"51"`
	KeyChange  *KeyChange  `pb:"52"`

	Fork *Fork `pb:"60"` // never proposed: see fork.go

	Decision *Decision `pb:"40"`
	Unknown  []byte    `pb:"unknown"`
}

// Init is the first command of a cluster.
type Init struct {
	ClusterID string    `pb:"1"`
	Name      string    `pb:"2"`
	GossipKey []byte    `pb:"3"`
	Level     uint64    `pb:"4"` // the feature level that the cluster begins with; 0: 1
	Restored  *Restored `pb:"5"` // made anew from a backup
}

// MemberAdd admits a new member, in exchange for a token (except the first).
type MemberAdd struct {
	Member    Member `pb:"1"` // No is given by the log
	TokenHash []byte `pb:"2"`
}

// MemberSet changes a member's addresses or site, or drains it. Empty fields stay.
type MemberSet struct {
	Name    string   `pb:"1"`
	Addrs   []string `pb:"2"`
	Site    string   `pb:"3"`
	Drain   bool     `pb:"4"`
	Undrain bool     `pb:"5"`
}

// MemberRemove takes a member out for good.
type MemberRemove struct {
	Name string `pb:"1"`
}

// Join admits the present run of a member.
type Join struct {
	ID      cluster.NodeID      `pb:"1"`
	Inc     cluster.Incarnation `pb:"2"`
	Boot    cluster.BootID      `pb:"3"`
	Version string              `pb:"4"`
	Level   uint64              `pb:"20"` // the newest feature level that this run can apply; 0: 1
}

// SpecApply puts a new spec in force, if Base is the version in force.
type SpecApply struct {
	Base     uint64   `pb:"1"`
	Source   []byte   `pb:"2"`
	Compiled []byte   `pb:"3"`
	Remove   []string `pb:"4"`
}

// Desired is what an operator, or the damping, wants of a service.
type Desired struct {
	Service string `pb:"1"`
	Want    string `pb:"2"` // run, stop, restart, pause, resume, hold, clear
	Until   int64  `pb:"3"` // pause: wall clock, ms
}

// Pin fixes the profile that auto has chosen.
type Pin struct {
	Profile string `pb:"1"`
}

// Level raises the feature level.
type Level struct {
	Level uint64 `pb:"1"`
}

// Nop changes nothing: the leader's probe of its own disk.
type Nop struct {
	N uint64 `pb:"1"`
}

// Grant and the following are the commands of cluster/lock, each for one service.
type Grant struct {
	lock.Grant
	Service   cluster.ServiceNo `pb:"9"`
	Automatic bool              `pb:"10"` // an unplanned move by policy: it counts for the damping
}

// ForceGrant is lock.ForceGrant for one service.
type ForceGrant struct {
	lock.ForceGrant
	Service cluster.ServiceNo `pb:"9"`
	Loses   string            `pb:"10"` // what the operator was shown that it may lose
}

// Bump is lock.Bump for one service.
type Bump struct {
	lock.Bump
	Service cluster.ServiceNo `pb:"9"`
}

// Degrade is lock.Degrade for one service.
type Degrade struct {
	lock.Degrade
	Service cluster.ServiceNo `pb:"9"`
}

// InSync is lock.InSync for one service.
type InSync struct {
	lock.InSync
	Service cluster.ServiceNo `pb:"9"`
}

// Sticky is lock.Sticky for one service.
type Sticky struct {
	lock.Sticky
	Service cluster.ServiceNo `pb:"9"`
}

// Confirm is lock.Confirm for one service.
type Confirm struct {
	lock.Confirm
	Service cluster.ServiceNo `pb:"9"`
}

// Settle makes the voter set C the only one that counts.
type Settle struct {
	C      uint64   `pb:"1"`
	Closed []Closed `pb:"2"`
}

// Closed are the promises that closed the present epoch of a service.
type Closed struct {
	Service  cluster.ServiceNo `pb:"1"`
	Epoch    cluster.Epoch     `pb:"2"`
	Promises []lock.Promise    `pb:"3"`
}

// Outcome is what a command came to. Code zero is acceptance.
type Outcome struct {
	Result   lock.Result       `pb:"1"`
	Text     string            `pb:"2"` // with a refusal: what stood against it
	Epoch    cluster.Epoch     `pb:"3"`
	Member   cluster.MemberNo  `pb:"4"`
	Decision uint64            `pb:"5"`
	Version  uint64            `pb:"6"` // of the spec
	Service  cluster.ServiceNo `pb:"7"`
	Index    uint64            `pb:"8"`
}

// Err is nil for an accepted command.
func (o Outcome) Err() error {
	if o.Result == lock.Accepted {
		return nil
	}
	if o.Text != "" {
		return fmt.Errorf("%s (%w)", o.Text, o.Result)
	}
	return o.Result
}

// ErrUnknownCommand is a command that a newer version wrote: this member must not go on, because it would no longer
// know what the others know.
var ErrUnknownCommand = errors.New("the log holds a command that this version does not know: upgrade hanode on this member")

// Encode is the command as bytes of the log.
func (c *Command) Encode() []byte { return pbwire.Marshal(c) }

// Decode reads a command.
func Decode(b []byte) (*Command, error) {
	if len(b) > MaxCommand {
		return nil, fmt.Errorf("a command of %d bytes: at most %d are accepted", len(b), MaxCommand)
	}
	c := new(Command)
	if err := pbwire.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("read a command of the log: %w", err)
	}
	return c, nil
}

// EncodeOutcome and DecodeOutcome carry an outcome to a member that is not the leader.
func EncodeOutcome(o Outcome) []byte { return pbwire.Marshal(o) }

// DecodeOutcome reads what EncodeOutcome wrote.
func DecodeOutcome(b []byte) (Outcome, error) {
	var o Outcome
	err := pbwire.Unmarshal(b, &o)
	return o, err
}
