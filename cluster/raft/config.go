package raft

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	hraft "github.com/hashicorp/raft"
)

// FSM is what the replicated state machine offers. All methods are called from one goroutine at a time.
type FSM interface {
	// Apply carries out one committed command. It must be deterministic. What it returns goes to the proposer.
	Apply(index uint64, data []byte) any
	// Voters tells of a committed configuration, in log order with the commands.
	Voters(index uint64, servers []hraft.Server)
	// Snapshot returns the whole state, at most MaxSnapshot bytes. The slice is not changed afterwards.
	Snapshot() ([]byte, error)
	// Restore replaces the whole state by what Snapshot returned.
	Restore([]byte) error
}

// MaxSnapshot bounds a snapshot of the state machine, and so what a restoring member allocates.
const MaxSnapshot = 16 << 20

// MaxCommand bounds one command.
const MaxCommand = 1 << 20

// Config says how a Group runs. Zero durations and sizes take the defaults that Open fills in.
type Config struct {
	Dir       string // the group's own directory, mode 0700: raft.db, snapshots, ballast
	ClusterID string // a store of another cluster is refused
	ServerID  string // cluster.ServerID(name, node id): bound to this directory when it is first used
	FSM       FSM
	// Stream reaches members by ServerID (the address given to Dial is one). Run owns it and closes it at its end.
	Stream hraft.StreamLayer
	Log    *slog.Logger

	// HeartbeatTimeout is also the election time-out; the leader's own lease is half of it. 300 ms by default: it stood
	// every CPU load that was tried, and the caller's faster detector calls Kick long before it fires.
	HeartbeatTimeout time.Duration
	TransportTimeout time.Duration // of one RPC and of a dial; 200 ms
	CommitTimeout    time.Duration // until followers learn a commit without new entries; 5 ms

	StoreDeadline time.Duration // of one write; 500 ms
	StoreGiveUp   time.Duration // a stall of this length raises AlarmHopeless; 10 s
	Ballast       int64         // bytes kept free for ENOSPC; 64 MiB, less for a witness; negative: none

	SnapshotEvery     time.Duration // how often the size of the log is looked at; 30 s
	SnapshotThreshold uint64        // entries since the last snapshot that make a new one; 1024
	TrailingLogs      uint64        // entries kept behind a snapshot for followers that lag; 512

	// Beat is what heartbeats wait for, for beatWithin at most; nil: they leave when hashicorp/raft wants them to, ten times within HeartbeatTimeout.
	Beat *Beat

	// Probe encodes a command without effect. When set, the leader commits one per ProbeEvery (1 s); two misses in a row
	// are treated like a hung disk, because a leader that cannot commit must not keep the lead.
	Probe      func() []byte
	ProbeEvery time.Duration

	// Heir names the voter that should lead when this leader's disk hangs; "" or nil: any.
	Heir func() string

	// The callbacks must not block. OnState is called for every change of leader, term or stall. OnAlarm tells of
	// disk trouble. OnFatal is called once, when the store failed: the process must end, Run is about to return.
	OnState func(State)
	OnAlarm func(Alarm)
	OnFatal func(error)

	// Slow delays each write by what it returns, as a slow disk would. For tests.
	Slow func() time.Duration
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.HeartbeatTimeout, 300*time.Millisecond)
	def(&c.TransportTimeout, 200*time.Millisecond)
	def(&c.CommitTimeout, 5*time.Millisecond)
	def(&c.StoreDeadline, 500*time.Millisecond)
	def(&c.StoreGiveUp, 10*time.Second)
	def(&c.SnapshotEvery, 30*time.Second)
	def(&c.ProbeEvery, time.Second)
	if c.Ballast == 0 {
		c.Ballast = 64 << 20
	}
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = 1024
	}
	if c.TrailingLogs == 0 {
		c.TrailingLogs = 512
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.OnState == nil {
		c.OnState = func(State) {}
	}
	if c.OnAlarm == nil {
		c.OnAlarm = func(Alarm) {}
	}
	if c.OnFatal == nil {
		c.OnFatal = func(error) {}
	}
	return c
}

func (c Config) check() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(c.Dir != "", "raft directory: none given")
	need(c.ClusterID != "", "cluster id: none given")
	need(c.ServerID != "", "server id: none given")
	need(c.FSM != nil, "state machine: none given")
	need(c.Stream != nil, "stream: none given")
	need(c.HeartbeatTimeout >= 20*time.Millisecond && c.HeartbeatTimeout <= 10*time.Second,
		"heartbeat timeout %v: choose 20ms to 10s", c.HeartbeatTimeout)
	need(c.Beat == nil || c.HeartbeatTimeout >= 5*beatWithin, "heartbeat timeout %v: with heartbeats that wait for beats choose at least %v", c.HeartbeatTimeout, 5*beatWithin)
	need(c.CommitTimeout >= time.Millisecond && c.CommitTimeout <= c.HeartbeatTimeout,
		"commit timeout %v: choose 1ms to %v", c.CommitTimeout, c.HeartbeatTimeout)
	need(c.TransportTimeout > 0, "transport timeout %v: choose more than 0", c.TransportTimeout)
	need(c.StoreDeadline > 0 && c.StoreDeadline < c.StoreGiveUp,
		"store deadline %v: choose more than 0 and less than %v, after which the store is given up", c.StoreDeadline, c.StoreGiveUp)
	return errors.Join(errs...)
}

func (c Config) hashicorp() *hraft.Config {
	h := hraft.DefaultConfig()
	h.LocalID = hraft.ServerID(c.ServerID)
	h.HeartbeatTimeout = c.HeartbeatTimeout
	h.ElectionTimeout = c.HeartbeatTimeout
	// The leader looks at what is left of its lease since the oldest answer: with half of the time-out, and heartbeats that wait for beats, that would be
	// every few milliseconds. Nothing relies on a leader that has stepped down by itself.
	h.LeaderLeaseTimeout = c.HeartbeatTimeout
	h.CommitTimeout = c.CommitTimeout
	h.MaxAppendEntries = 64
	h.SnapshotInterval = c.SnapshotEvery
	h.SnapshotThreshold = c.SnapshotThreshold
	h.TrailingLogs = c.TrailingLogs
	h.ShutdownOnRemove = false // the caller closes what a removed voter must close
	h.NoLegacyTelemetry = true
	h.Logger = newHCLog(c.Log)
	return h
}

// beatWithin is the longest time between two heartbeats to a member, and at most a fifth of any HeartbeatTimeout that Beat is used with.
const beatWithin = 120 * time.Millisecond

// kickPause is between two kicks of one member.
const kickPause = 300 * time.Millisecond

// AlarmKind says what an Alarm is about.
type AlarmKind string

const (
	AlarmStalled   AlarmKind = "store-stalled"   // a write was late: no leadership, no votes, no log until it is over
	AlarmRecovered AlarmKind = "store-recovered" // the stall is over, the group takes part again
	AlarmHopeless  AlarmKind = "store-hopeless"  // stalled for StoreGiveUp: hand over what there is to hand over, then exit
	AlarmDiskFull  AlarmKind = "store-disk-full" // the ballast was given up so that the log can go on
	AlarmBallast   AlarmKind = "store-ballast"   // the ballast could not be made
)

// Alarm is one thing that an operator must hear of.
type Alarm struct {
	Kind AlarmKind
	Text string
	For  time.Duration // since the trouble began
}
