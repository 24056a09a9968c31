// Package replica decides who must hold which operation of a service before it counts as done: what the active may acknowledge, whom
// it may stop to wait for and when, and what a standby may accept. It is pure: events and time in, actions out.
//
// # Why no acknowledged operation is lost
//
// The active may apply and acknowledge an operation when every member that the group could make active without it has accepted it.
// Those are the in-sync set of the log as far as the active has applied it, and besides every member for which an InSync may be on its way: the
// active begins to wait for a member before it has InSync proposed (D6), and stops only when the log's generation has passed the one
// that the proposal named, which makes that proposal void, or before any was made. Whoever is in the set and silent is waited for until a Degrade is applied (D4). An
// acceptance counts only in the connection on which the two copies were compared, and in the present epoch: what a standby took in an earlier run, or before it was
// made anew, is not known to be in its copy any more (docs/protocol-findings.md, section 7).
//
// A tenure that has ended never acknowledges again (D7): Deposed is final, and what MayAck and MaySync said last stays.
//
// InSync is asked for only when the member has on its disk everything up to the operation at which the active began to wait for it, so that also what
// was acknowledged as fsynced is there.
//
// In mode sync-on-fsync an operation is done when it is in the own journal, and Sync waits as in mode sync; the in-sync set then means: holds everything up to
// the last Sync that was answered. In mode async neither waits, and a service of which every volume is async has nobody in sync.
//
// A standby accepts a frame of the epoch that its log says, from the run that holds it there, if its durable header does not name a later one, and only what follows the
// last that it has. The header is made durable before the first frame of an epoch or generation is accepted.
//
// Callers: stream, which has the clock, the connections and the disks; one goroutine at a time.
package replica

import (
	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
)

// Run is one incarnation of a member.
type Run struct {
	Member cluster.MemberNo    `json:"member"`
	Inc    cluster.Incarnation `json:"inc"`
}

// Facts are what the log says of the service, as the daemon of this member has applied it.
type Facts struct {
	Epoch    cluster.Epoch      `json:"epoch"`
	Grant    cluster.Epoch      `json:"grant"` // the epoch with which the present tenure began: a Bump raises Epoch and leaves Grant
	Gen      cluster.Generation `json:"gen"`
	Holder   Run                `json:"holder"`
	InSync   cluster.MemberSet  `json:"in_sync"`
	Sticky   bool               `json:"sticky"`
	Closed   cluster.Epoch      `json:"closed"`   // up to which this member has promised: it accepts nothing of these epochs any more
	Admitted []Run              `json:"admitted"` // the present run of each eligible member
}

// Inc is the admitted run of a member; 0: none.
func (f *Facts) Inc(m cluster.MemberNo) cluster.Incarnation {
	for _, r := range f.Admitted {
		if r.Member == m {
			return r.Inc
		}
	}
	return 0
}

// older says that f is of an earlier state of the log than g.
func (f *Facts) older(g *Facts) bool {
	return f.Epoch < g.Epoch || f.Epoch == g.Epoch && f.Gen < g.Gen
}

// Mode is how much of an operation is on the standby before it counts as done.
type Mode uint8

const (
	Sync        Mode = 1 // an operation waits for acceptance, a Sync for both disks
	SyncOnFsync Mode = 2 // only a Sync waits
	Async       Mode = 3 // nothing waits for the standby
)

var modeText = [...]string{Sync: "sync", SyncOnFsync: "sync-on-fsync", Async: "async"}

func (m Mode) String() string {
	if int(m) < len(modeText) && modeText[m] != "" {
		return modeText[m]
	}
	return "?"
}

// ParseMode reads the word of the spec; ok is false for any other.
func ParseMode(s string) (m Mode, ok bool) {
	for i, t := range modeText {
		if t == s && t != "" {
			return Mode(i), true
		}
	}
	return 0, false
}

// Phase is how far a member's copy is, seen from the active.
type Phase uint8

const (
	Absent    Phase = iota // no connection
	Comparing              // connected; the histories are being compared, or a Degrade must come before its copy may be changed
	CatchUp                // the records that it lacks are being sent
	Resync                 // its tree is being compared and copied
	AtTail                 // it has everything but what is in flight
	Waiting                // the active waits for it again; InSync is not committed yet
	InSync                 // the log says so
)

var phaseText = [...]string{"absent", "comparing", "catch-up", "resync", "at the tail", "waiting for in-sync", "in sync"}

func (p Phase) String() string { return phaseText[min(int(p), len(phaseText)-1)] }

// Plan is what follows from the comparison of two histories.
type Plan uint8

const (
	PlanTail   Plan = 1 // the follower's copy is a prefix and the journal reaches back: send what is missing
	PlanRewind Plan = 2 // as PlanTail, after the follower has set aside what it has beyond the fork
	PlanResync Plan = 3 // its tree must be compared
)

func (p Plan) String() string { return [...]string{"none", "tail", "rewind", "resync"}[min(int(p), 3)] }

// Action is what the caller has to do, in the order given.
type Action interface{ action() }

type (
	// Deposed: the tenure is over. Everything pending ends with an error and is never applied.
	Deposed struct{ Why string }
	// Turned: epoch or generation have changed; the next record and everything sent from now on carries them.
	Turned struct {
		Epoch cluster.Epoch
		Gen   cluster.Generation
	}
	// Settled: MayAck or MaySync may have grown.
	Settled struct{}
	// StoreAlone: make the flag durable, then give the event AloneStored. A zero flag is to be taken away.
	StoreAlone struct{ Flag Flag }
	// AskSync: the member is to make everything up to Seq durable.
	AskSync struct {
		Member cluster.MemberNo
		Seq    uint64
	}
	// CaughtUp: the daemon shall propose InSync.
	CaughtUp struct {
		Run
		Epoch cluster.Epoch
		Gen   cluster.Generation
	}
	// WantDegrade: the daemon shall propose Degrade of this member.
	WantDegrade struct {
		Member cluster.MemberNo
		Why    string
	}
	// Go: the session may go on with its plan.
	Go struct {
		Member  cluster.MemberNo
		Session uint64
	}
	// Drop: the session is to be closed.
	Drop struct {
		Member  cluster.MemberNo
		Session uint64
		Why     string
	}
)

func (Deposed) action()     {}
func (Turned) action()      {}
func (Settled) action()     {}
func (StoreAlone) action()  {}
func (AskSync) action()     {}
func (CaughtUp) action()    {}
func (WantDegrade) action() {}
func (Go) action()          {}
func (Drop) action()        {}

// Flag says that the active has gone on alone while sticky: the epoch and generation of the Sticky. It is durable before the first
// acknowledgement that relies on it.
type Flag struct {
	Epoch cluster.Epoch      `json:"epoch"`
	Gen   cluster.Generation `json:"gen"`
}

// History and Fork are those of the data path's words.
type History = replication.History

// Fork is the last record that two copies share.
func Fork(a History, aLast uint64, b History, bLast uint64) (uint64, bool) {
	return replication.Fork(a, aLast, b, bLast)
}
