// Package state is the replicated state machine: everything that the group has agreed on. It is built by applying the commands of the
// Raft log in order, is the same on every member at the same index, and is kept in snapshots.
//
// It is pure and deterministic: no clock (times in it were written by whoever proposed the command, and are shown to people, never decided
// by), no I/O, no goroutine, no iteration over maps. The lock records inside it are those of cluster/lock.
//
// Callers apply every command exactly once and in order, on one goroutine, and take Clone or read under their own lock.
package state

import (
	"fmt"
	"sort"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/internal/pbwire"
)

// FeatureLevel is the newest level of commands that this version can apply.
const FeatureLevel = 2

// Bounds of what the state keeps for people to read.
const (
	maxDecisions = 300
	maxEvents    = 500
	maxSpecs     = 20
	maxTokens    = 64
	maxGone      = 64
)

// State is what the group has agreed on.
type State struct {
	ClusterID    string        `pb:"1"` // 32 hexadecimal digits
	Name         string        `pb:"2"`
	ForkCount    uint64        `pb:"3"`
	FeatureLevel uint64        `pb:"4"`
	Group        lock.Group    `pb:"5"`
	Members      []Member      `pb:"6"` // in order of MemberNo; removed ones stay, marked
	Services     []Service     `pb:"7"` // in order of ServiceNo
	LastService  uint64        `pb:"8"`
	Spec         SpecVersion   `pb:"9"`
	Specs        []SpecVersion `pb:"10"` // older ones, oldest first
	Pinned       string        `pb:"11"` // the profile in force while the spec says auto
	Decisions    []Decision    `pb:"12"`
	LastDecision uint64        `pb:"13"`
	Events       []Event       `pb:"14"`
	LastEvent    uint64        `pb:"15"`
	Tokens       []Token       `pb:"16"`
	GossipKeys   []GossipKey   `pb:"17"` // the first one encrypts, all decrypt
	LogTime      int64         `pb:"18"` // the newest wall-clock time (ms) that a command carried
	Acks         []AlarmAck    `pb:"19"`
	Unknown      []byte        `pb:"unknown"`
	Voters       []string      `pb:"20"` // server ids, as the Raft configuration last named them
	Gone         []Service     `pb:"21"` // services that were deleted: who makes one of that name again must wait for its last holder
	Was          []string      `pb:"24"` // ids of the clusters that this one was forked from, oldest first
	compiled     *cluster.Spec // decoded Spec.Compiled
}

// Member is one that joined.
type Member struct {
	No      cluster.MemberNo `pb:"1"`
	ID      cluster.NodeID   `pb:"2"`
	Name    string           `pb:"3"`
	Role    cluster.Role     `pb:"4"`
	Site    string           `pb:"5"`
	Addrs   []string         `pb:"6"` // host:port, one for each link
	Version string           `pb:"7"`
	Drained bool             `pb:"8"`
	Removed bool             `pb:"9"`
	Serial  string           `pb:"10"` // of its certificate
	NoVote  bool             `pb:"11"`
	Who     string           `pb:"12"` // who drained it
	Level   uint64           `pb:"20"` // the newest feature level that its present run can apply; 0: 1
	Unknown []byte           `pb:"unknown"`
}

// ServerID is the member's name in the Raft configuration.
func (m *Member) ServerID() string { return cluster.ServerID(m.Name, m.ID) }

// Service is one that the spec names.
type Service struct {
	No          cluster.ServiceNo `pb:"1"`
	Name        string            `pb:"2"`
	Lock        lock.Service      `pb:"3"`
	Stopped     bool              `pb:"4"`
	StoppedBy   string            `pb:"5"`
	PausedUntil int64             `pb:"6"` // wall clock, ms; 0: not paused
	PausedBy    string            `pb:"7"`
	HeldWhy     string            `pb:"8"`
	Moves       []int64           `pb:"9"`  // wall-clock times (ms) of the automatic failovers of late
	Restarts    uint64            `pb:"10"` // orders to restart so far
	Since       int64             `pb:"11"` // wall clock (ms) of the last Grant
	LastMove    uint64            `pb:"12"` // decision of the last move
	Approval    *Approval         `pb:"20"` // the last word of an approver; it counts for its epoch only
	Paused      []CheckPause      `pb:"21"` // checks that an operator has paused
	Unknown     []byte            `pb:"unknown"`
}

// SpecVersion is one version of the spec.
type SpecVersion struct {
	N        uint64 `pb:"1"`
	Source   []byte `pb:"2"`
	Compiled []byte `pb:"3"`
	Who      string `pb:"4"`
	Reason   string `pb:"5"`
	At       int64  `pb:"6"`
}

// Token is an invitation to join. Only its hash is kept.
type Token struct {
	Hash    []byte       `pb:"1"`
	Role    cluster.Role `pb:"2"`
	Name    string       `pb:"3"` // the only name that may join with it; empty: any
	Until   int64        `pb:"4"` // wall clock, ms
	Replace string       `pb:"5"` // the member whose place it takes
	Used    bool         `pb:"6"`
	Who     string       `pb:"7"`
}

// GossipKey is one key of the gossip keyring.
type GossipKey struct {
	Key []byte `pb:"1"`
}

// AlarmAck says that somebody has seen an alarm.
type AlarmAck struct {
	Code   string `pb:"1"`
	Object string `pb:"2"`
	Who    string `pb:"3"`
	At     int64  `pb:"4"`
}

// Decision is why something was done, or was not.
type Decision struct {
	ID        uint64            `pb:"1"`
	At        int64             `pb:"2"`
	Kind      string            `pb:"3"` // failover, switchover, failback, start, stop, hold, ...
	Service   string            `pb:"4"`
	From      string            `pb:"5"`
	To        string            `pb:"6"`
	EpochFrom cluster.Epoch     `pb:"7"`
	EpochTo   cluster.Epoch     `pb:"8"`
	OrderedBy string            `pb:"9"` // "policy", or the operator
	Sentence  string            `pb:"10"`
	WhyNot    []string          `pb:"11"` // the other candidates, and why not they
	Seen      []Seen            `pb:"12"`
	Steps     []Step            `pb:"13"`
	Lost      string            `pb:"14"`
	OutageMs  int64             `pb:"15"`
	ReadyMs   int64             `pb:"16"`
	Outcome   string            `pb:"17"` // empty while under way; done, refused, failed, restored
	Index     uint64            `pb:"18"` // of the command in the log
	Reason    string            `pb:"19"` // what the operator gave as the reason
	Policy    string            `pb:"20"` // the timings in force, in words
	Values    map[string]string `pb:"21"`
	Unknown   []byte            `pb:"unknown"`
}

// Seen is one line of "what was known": a question and each member's answer.
type Seen struct {
	What    string            `pb:"1"`
	Answers map[string]string `pb:"2"`
}

// Step is one line of a time line.
type Step struct {
	Us     int64  `pb:"1"` // microseconds after the decision's zero: when the old active was last heard, or the order
	What   string `pb:"2"`
	Who    string `pb:"3"`
	Detail string `pb:"4"`
}

// Event is one thing that happened to the cluster.
type Event struct {
	ID       uint64 `pb:"1"`
	At       int64  `pb:"2"`
	Kind     string `pb:"3"`
	Object   string `pb:"4"`
	Text     string `pb:"5"`
	Severity string `pb:"6"`
	Decision uint64 `pb:"7"`
	Index    uint64 `pb:"8"`
}

// Compiled is the spec in force, nil before the first.
func (s *State) Compiled() *cluster.Spec { return s.compiled }

// Timing is what new Grants are made with.
func (s *State) Timing() cluster.Timing {
	name := "normal"
	if c := s.compiled; c != nil && c.Profile != "auto" {
		name = c.Profile
	} else if s.Pinned != "" {
		name = s.Pinned
	}
	t, err := cluster.Profile(name)
	if err != nil {
		t, _ = cluster.Profile("normal")
	}
	if c := s.compiled; c != nil && c.Lease > 0 {
		if l, err := t.WithLease(c.Lease); err == nil {
			t = l
		}
	}
	return t
}

// Member returns the member with this number, nil if there is none.
func (s *State) Member(n cluster.MemberNo) *Member {
	if n >= 1 && int(n) <= len(s.Members) {
		return &s.Members[n-1]
	}
	return nil
}

// MemberName is its name, or "nobody".
func (s *State) MemberName(n cluster.MemberNo) string {
	if m := s.Member(n); m != nil {
		return m.Name
	}
	return "nobody"
}

// MemberByName returns the member that bears this name now.
func (s *State) MemberByName(name string) *Member {
	for i := range s.Members {
		if s.Members[i].Name == name && !s.Members[i].Removed {
			return &s.Members[i]
		}
	}
	return nil
}

// MemberByID returns the member with this identity, removed or not.
func (s *State) MemberByID(id cluster.NodeID) *Member {
	for i := range s.Members {
		if s.Members[i].ID == id {
			return &s.Members[i]
		}
	}
	return nil
}

// Service returns the service with this number.
func (s *State) Service(n cluster.ServiceNo) *Service {
	i := sort.Search(len(s.Services), func(i int) bool { return s.Services[i].No >= n })
	if i < len(s.Services) && s.Services[i].No == n {
		return &s.Services[i]
	}
	return nil
}

// ServiceByName returns the named service.
func (s *State) ServiceByName(name string) *Service {
	for i := range s.Services {
		if s.Services[i].Name == name {
			return &s.Services[i]
		}
	}
	return nil
}

// Decision returns the decision with this id.
func (s *State) Decision(id uint64) *Decision {
	for i := range s.Decisions {
		if s.Decisions[i].ID == id {
			return &s.Decisions[i]
		}
	}
	return nil
}

// Snapshot is the whole state as bytes.
func (s *State) Snapshot() []byte { return pbwire.Marshal(s) }

// Restore reads what Snapshot wrote.
func Restore(b []byte) (*State, error) {
	s := new(State)
	if err := pbwire.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("read the snapshot of the cluster's state: %w", err)
	}
	if s.FeatureLevel > FeatureLevel {
		return nil, fmt.Errorf("the snapshot is of feature level %d and this version knows %d: upgrade hanode on this member", s.FeatureLevel, FeatureLevel)
	}
	return s, s.decodeSpec()
}

// Clone returns a copy that shares nothing with s that either of them changes.
func (s *State) Clone() *State {
	c, err := Restore(s.Snapshot())
	if err != nil {
		panic(err) // what was encoded here is decoded here
	}
	return c
}

// Redacted is a copy without secrets.
func (s *State) Redacted() *State {
	c := s.Clone()
	c.GossipKeys, c.Tokens = nil, nil
	return c
}

func (s *State) decodeSpec() error {
	if len(s.Spec.Compiled) == 0 {
		return nil
	}
	c, err := cluster.DecodeSpec(s.Spec.Compiled)
	if err != nil {
		return fmt.Errorf("read the compiled spec, version %d: %w", s.Spec.N, err)
	}
	s.compiled = c
	return nil
}

// Millis is a wall-clock time as the log keeps it.
func Millis(t time.Time) int64 { return t.UnixMilli() }
