package api

import (
	"fmt"
	"time"
)

// Protection of a service, and of the cluster: the worst of its services.
const (
	Protected = "protected" // survives the next failure by itself
	Degraded  = "degraded"  // serving, but would not
	Down      = "down"      // not serving
)

// Reasons of Degraded.
const (
	ReasonNoStandby      = "no-standby"
	ReasonStandbyBehind  = "standby-behind"
	ReasonWitnessLost    = "witness-lost"
	ReasonApprovalNeeded = "approval-needed"
	ReasonPaused         = "paused"
	ReasonHeld           = "held"
	ReasonOneVote        = "one-vote" // the votes have not gone from 1 to 3 yet: any loss stops all
)

// States of a service.
const (
	StateStopped   = "stopped"
	StateStarting  = "starting"
	StateActive    = "active"
	StateMoving    = "moving"
	StateStopping  = "stopping"
	StateSuspended = "suspended"
	StateHeld      = "held"
	StateFailed    = "failed"
)

// States of a member.
const (
	MemberUp       = "up"
	MemberSilent   = "silent"   // not heard; it may live
	MemberDown     = "down"     // known to be gone (it left, its daemon ended, or it was fenced)
	MemberJoining  = "joining"  // catching up, no vote yet
	MemberDraining = "draining" // its services are moving away
	MemberDrained  = "drained"  // carries no service until undrain
)

// Where a Status comes from.
const (
	SourceLive      = "live"       // the daemon, with a quorum behind it
	SourceLocal     = "local"      // the daemon, from what it knows by itself (--local, or no quorum)
	SourceLastKnown = "last-known" // the file that the daemon left; see LoadLastStatus
)

// Status is what `hanode status --json` prints. Keys are only ever added.
type Status struct {
	At       Time          `json:"at"`     // when it was true
	Node     string        `json:"node"`   // who answers
	Source   string        `json:"source"` // live, local, last-known
	AgeMs    Millis        `json:"age_ms"` // 0 unless last-known
	Cluster  Cluster       `json:"cluster"`
	Members  List[Member]  `json:"members"`
	Services List[Service] `json:"services"`
	Alarms   List[Alarm]   `json:"alarms"`
	Next     List[string]  `json:"next"` // commands that an operator would want now; may be empty
}

// Cluster is the group as a whole.
type Cluster struct {
	Name         string `json:"name"`
	ID           string `json:"id"`
	Protection   string `json:"protection"`
	Quorum       bool   `json:"quorum"`
	Votes        Votes  `json:"votes"`
	Leader       string `json:"leader"` // "" when there is none
	Profile      string `json:"profile"`
	LeaseMs      Millis `json:"lease_ms"`
	SpecVersion  uint64 `json:"spec_version"`
	FeatureLevel uint64 `json:"feature_level"`
	Awaiting     string `json:"awaiting"` // without quorum: "w or b: 2 of 3 needed"; else ""
}

// Votes counts the voters.
type Votes struct {
	Heard  int `json:"heard"`
	Total  int `json:"total"`
	Needed int `json:"needed"`
}

// Member is a node or a witness.
type Member struct {
	Name          string         `json:"name"`
	Role          string         `json:"role"` // node, witness
	Site          string         `json:"site"`
	State         string         `json:"state"`
	Vote          bool           `json:"vote"`
	Leader        bool           `json:"leader"`
	HeardMs       Millis         `json:"heard_ms"` // since it was last heard; -1: never; 0 for the member that answers
	Version       string         `json:"version"`
	ClockOffsetMs Millis         `json:"clock_offset_ms"`
	Links         List[Link]     `json:"links"`
	Operator      *OperatorState `json:"operator_state"` // drained, by whom and when; null when none
	NodeID        string         `json:"node_id"`
	Advertise     string         `json:"advertise"`
}

// Link is one path to a member.
type Link struct {
	Address string `json:"address"`
	RTTMs   Millis `json:"rtt_ms"`
	State   string `json:"state"` // up, down
}

// OperatorState is a state that a person ordered. It survives reboots.
type OperatorState struct {
	State  string `json:"state"` // stopped, paused, drained, held
	By     string `json:"by"`
	Since  Time   `json:"since"`
	Until  Time   `json:"until"` // null: until undone
	Reason string `json:"reason"`
}

// Service is one service.
type Service struct {
	Name              string           `json:"name"`
	State             string           `json:"state"`
	Run               string           `json:"run"` // active, everywhere
	Protection        string           `json:"protection"`
	ProtectionReasons List[string]     `json:"protection_reasons"`
	IfActiveFails     string           `json:"if_active_fails"` // see TakesOver and its like
	Active            string           `json:"active"`          // "" when nobody
	Standby           string           `json:"standby"`         // "" when none
	StandbyState      string           `json:"standby_state"`   // in-sync, resync, behind, down, ""
	Nodes             List[string]     `json:"nodes"`
	Epoch             uint64           `json:"epoch"`
	Since             Time             `json:"since"` // of the state
	PausedUntil       Time             `json:"paused_until"`
	LeaseRemainingMs  Millis           `json:"lease_remaining_ms"`
	InSync            List[string]     `json:"in_sync"`
	Position          Position         `json:"position"`
	LagBytes          int64            `json:"lag_bytes"`
	LastMove          *LastMove        `json:"last_move"`
	Identity          List[Identity]   `json:"identity"`
	Volumes           List[Volume]     `json:"volumes"`
	Regions           List[Region]     `json:"regions"`
	Processes         List[Process]    `json:"processes"`
	Checks            List[Check]      `json:"checks"`
	Operator          *OperatorState   `json:"operator_state"`
	Note              string           `json:"note"` // one sentence: why it is in this state; may be ""
	Suspensions       SuspensionCounts `json:"suspensions"`
}

// SuspensionCounts says how often writes or the application were held near the end of a lease.
type SuspensionCounts struct {
	Count   int    `json:"count"`
	TotalMs Millis `json:"total_ms"`
}

// Position is a place in the service's operation stream.
type Position struct {
	Epoch      uint64 `json:"epoch"`
	Generation uint64 `json:"generation"`
	Sequence   uint64 `json:"sequence"`
}

// LastMove is the newest move of a service. OutageMs ends when the VIP answered, ReadyMs when the application was ready;
// -1 means not yet.
type LastMove struct {
	Decision string `json:"decision"`
	Kind     string `json:"kind"` // failover, switchover, failback, force, start
	From     string `json:"from"`
	To       string `json:"to"`
	At       Time   `json:"at"`
	OutageMs Millis `json:"outage_ms"`
	ReadyMs  Millis `json:"ready_ms"`
	ReadyBy  string `json:"ready_by"` // the process or check whose success was awaited
	Reason   string `json:"reason"`   // "a stopped answering on all links"
}

// Identity is an address that the service answers on.
type Identity struct {
	Address   string `json:"address"`
	Interface string `json:"interface"`
	State     string `json:"state"` // announced, held back, absent
}

// Volume is a replicated tree.
type Volume struct {
	Name     string         `json:"name"`
	Path     string         `json:"path"`
	Mode     string         `json:"mode"`
	Copies   List[Copy]     `json:"copies"`
	SetAside List[SetAside] `json:"set_aside"`
}

// Copy is one member's copy of a volume.
type Copy struct {
	Member     string `json:"member"`
	State      string `json:"state"` // all, resync, behind, unknown
	DoneBytes  int64  `json:"done_bytes"`
	TotalBytes int64  `json:"total_bytes"`
	RateBytes  int64  `json:"rate_bytes"` // per second
	EtaMs      Millis `json:"eta_ms"`     // -1: not known
}

// SetAside is what a member held beyond the fork: kept, never merged by itself.
type SetAside struct {
	Member       string `json:"member"`
	Operations   int64  `json:"operations"`
	Bytes        int64  `json:"bytes"`
	Acknowledged bool   `json:"acknowledged"`
	Do           string `json:"do"` // the command that shows it; "" when there is none
}

// Region is a named piece of application memory.
type Region struct {
	Name      string `json:"name"`
	SizeBytes int64  `json:"size_bytes"`
	AgeMs     Millis `json:"age_ms"` // of the newest complete checkpoint on the standby
	State     string `json:"state"`
}

// Process is a process of a service.
type Process struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	PID      int    `json:"pid"`
	Restarts int    `json:"restarts"`
}

// Check is a check of a service.
type Check struct {
	Name   string `json:"name"`
	State  string `json:"state"` // ok, failing, unknown, paused
	Output string `json:"output"`
	TookMs Millis `json:"took_ms"`
	From   string `json:"from"` // the member that ran it
}

// Alarm is a condition that a person should know of.
type Alarm struct {
	Code     string `json:"code"`
	Severity string `json:"severity"` // info, warn, crit
	Object   string `json:"object"`   // the service, member, link or volume
	Since    Time   `json:"since"`
	Text     string `json:"text"`
	Remedy   string `json:"remedy"`
	Decision string `json:"decision"`
	AckedBy  string `json:"acked_by"`
}

// What happens if the active dies: the values of if_active_fails.
func TakesOver(node string) string     { return node + " takes over by itself" }
func AfterApproval(node string) string { return node + ", after approval" }
func ByYourOrder(node string) string   { return node + ", by your order" }
func DownUntil(node string) string     { return "DOWN until " + node + " returns" }

// OthersGoOn is the value of a service that runs everywhere.
const OthersGoOn = "the others go on"

// HeldAfter is the value of a service that moved too often.
func HeldAfter(failovers int, within time.Duration) string {
	return fmt.Sprintf("held: %d in %s", failovers, shortDuration(within))
}

func shortDuration(d time.Duration) string {
	switch {
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%d h", d/time.Hour)
	case d >= time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%d min", d/time.Minute)
	default:
		return fmt.Sprintf("%d s", d/time.Second)
	}
}

// Service returns the named service, or nil.
func (s *Status) Service(name string) *Service {
	for i := range s.Services {
		if s.Services[i].Name == name {
			return &s.Services[i]
		}
	}
	return nil
}

// Member returns the named member, or nil.
func (s *Status) Member(name string) *Member {
	for i := range s.Members {
		if s.Members[i].Name == name {
			return &s.Members[i]
		}
	}
	return nil
}
