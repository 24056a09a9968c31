package core

import (
	"errors"
	"fmt"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/pbwire"
)

// Kind is the first byte that tells the frames of the lease channel apart.
type Kind byte

// The frames. Each is sent on every link; the channel drops what arrives twice.
const (
	KindBeat       Kind = 1
	KindRenew      Kind = 2
	KindAck        Kind = 3
	KindPromiseReq Kind = 4
	KindPromise    Kind = 5
	KindRelease    Kind = 6
	KindGranted    Kind = 7
	KindBundle     Kind = 8 // several frames, see Bundle
)

// Frame is a message of the lease channel.
type Frame interface{ Kind() Kind }

// Beat says that a member lives, whom it hears, and how its services are.
type Beat struct {
	Inc     cluster.Incarnation `pb:"1"`
	Heard   []Heard             `pb:"2"`
	Leader  cluster.MemberNo    `pb:"3"`
	Reports []Report            `pb:"4"`
}

// Heard is how long ago the sender heard a member.
type Heard struct {
	No cluster.MemberNo `pb:"1"`
	Ms uint32           `pb:"2"`
}

// Report is the sender's word on one service.
type Report struct {
	Service   cluster.ServiceNo `pb:"1"`
	Epoch     cluster.Epoch     `pb:"2"`
	Ready     bool              `pb:"3"`
	Unhealthy bool              `pb:"4"`
	Serving   bool              `pb:"5"` // it holds Epoch and has not ended its tenure

	// What the sender has found durable of the service's data, said only after a power loss of all that held them.
	Durable  bool               `pb:"6"`
	DurEpoch cluster.Epoch      `pb:"7"`
	DurGen   cluster.Generation `pb:"8"`
	DurSeq   uint64             `pb:"9"`
}

// Renew asks voters to extend the sender's leases. Sent is by the sender's clock and comes back in the Ack.
type Renew struct {
	Inc    cluster.Incarnation `pb:"1"`
	Sent   cluster.Instant     `pb:"2"`
	Leases []Lease             `pb:"3"`
}

// Lease is one service's part of a Renew or Ack.
type Lease struct {
	Service cluster.ServiceNo `pb:"1"`
	Epoch   cluster.Epoch     `pb:"2"`
	TTL     time.Duration     `pb:"3"`
	Refused bool              `pb:"4"`
	Highest cluster.Epoch     `pb:"5"` // with a refusal
}

// Ack answers a Renew.
type Ack struct {
	Inc       cluster.Incarnation `pb:"1"` // of the holder that asked
	Sent      cluster.Instant     `pb:"2"`
	VoterInc  cluster.Incarnation `pb:"3"`
	Leases    []Lease             `pb:"4"`
	VoterSets uint64              `pb:"5"`
}

// PromiseReq asks a voter never again to extend an epoch.
type PromiseReq struct {
	Service cluster.ServiceNo `pb:"1"`
	Epoch   cluster.Epoch     `pb:"2"`
}

// Promise answers it.
type Promise struct {
	Service cluster.ServiceNo   `pb:"1"`
	Epoch   cluster.Epoch       `pb:"2"`
	Inc     cluster.Incarnation `pb:"3"` // of the voter
	Yes     bool                `pb:"4"`
	In      time.Duration       `pb:"5"` // otherwise: ask again in so long
	Highest cluster.Epoch       `pb:"6"`
}

// Release says that the holder has ended its tenure: all is shut and nothing is in flight.
type Release struct {
	Service cluster.ServiceNo   `pb:"1"`
	Epoch   cluster.Epoch       `pb:"2"`
	Inc     cluster.Incarnation `pb:"3"`
	To      cluster.MemberNo    `pb:"4"` // to whom it should go; 0: to whom the leader chooses
	Why     string              `pb:"5"`
	What    string              `pb:"6"` // switchover, failover, failback, drain, stop; empty: fenced
	By      string              `pb:"7"`
	Reason  string              `pb:"8"` // the operator's
	Since   time.Duration       `pb:"9"` // since the order, or since the last sign of life: the zero of the time line
}

// Granted tells at once what the log will tell a little later.
type Granted struct {
	Service cluster.ServiceNo `pb:"1"`
	Epoch   cluster.Epoch     `pb:"2"`
	To      lock.Holder       `pb:"3"`
	TTL     time.Duration     `pb:"4"`
	Index   uint64            `pb:"5"`
	Since   time.Duration     `pb:"6"` // since the zero of the time line
	// VoterSets is the number of the newest voter set that the log held then: who counts acknowledgements under older ones only must
	// not begin before its own log has come so far.
	VoterSets uint64             `pb:"7"`
	Gen       cluster.Generation `pb:"8"` // of the service's data, from this Grant on
}

func (*Beat) Kind() Kind       { return KindBeat }
func (*Renew) Kind() Kind      { return KindRenew }
func (*Ack) Kind() Kind        { return KindAck }
func (*PromiseReq) Kind() Kind { return KindPromiseReq }
func (*Promise) Kind() Kind    { return KindPromise }
func (*Release) Kind() Kind    { return KindRelease }
func (*Granted) Kind() Kind    { return KindGranted }

// EncodeFrame is the frame's payload.
func EncodeFrame(f Frame) []byte { return pbwire.Marshal(f) }

// DecodeFrame reads a payload.
func DecodeFrame(k Kind, b []byte) (Frame, error) {
	var f Frame
	switch k {
	case KindBeat:
		f = new(Beat)
	case KindRenew:
		f = new(Renew)
	case KindAck:
		f = new(Ack)
	case KindPromiseReq:
		f = new(PromiseReq)
	case KindPromise:
		f = new(Promise)
	case KindRelease:
		f = new(Release)
	case KindGranted:
		f = new(Granted)
	default:
		return nil, fmt.Errorf("a frame of kind %d is not known", k)
	}
	if len(b) > 1200 {
		return nil, errors.New("a frame of more than 1200 bytes")
	}
	return f, pbwire.Unmarshal(b, f)
}

// Action is something that the shell does, in the order given.
type Action interface{ action() }

// Send sends a frame to a member, on every link.
type Send struct {
	To    cluster.MemberNo
	Frame Frame
}

// Propose hands a command to the group; the shell answers with Proposed.
type Propose struct {
	ID      uint64
	Command *state.Command
}

// Prepare asks the node to make a service ready to be given up: to stop what is cold, in good order. Answer: Drained.
type Prepare struct {
	Service cluster.ServiceNo
	Epoch   cluster.Epoch
	To      cluster.MemberNo
	Stop    bool // it will not go anywhere: processes are stopped, hot ones too
}

// Begin tells the node that it was granted a service; serving waits for the first Extend.
type Begin struct {
	Service cluster.ServiceNo
	Epoch   cluster.Epoch
	TTL     time.Duration
	Since   time.Duration // since the zero of the time line, as far as it is known
}

// Extend moves the deadline of the gates. The first one of an epoch opens them.
type Extend struct {
	Service  cluster.ServiceNo
	Epoch    cluster.Epoch
	Deadline cluster.Instant
	TTL      time.Duration
	First    bool
}

// Bumped changes the epoch of a running tenure.
type Bumped struct {
	Service cluster.ServiceNo
	Epoch   cluster.Epoch
}

// Close shuts the gates at once, and then everything else. Answer: Shut, when nothing is in flight any more.
type Close struct {
	Service cluster.ServiceNo
	Epoch   cluster.Epoch
	Why     string
	Planned bool // the processes were prepared; a hot one may live on as standby
}

// Restart orders the node to restart the service's processes in place.
type Restart struct {
	Service cluster.ServiceNo
	Why     string
}

// Standby orders the node to run what a standby runs, or to stop it, because an operator has started or stopped the service.
type Standby struct{ Service cluster.ServiceNo }

// Kick makes this member a candidate for the leadership at once.
type Kick struct{ Why string }

// Transfer hands the leadership to another member.
type Transfer struct {
	To  cluster.MemberNo
	Why string
}

// Announce makes the node announce its addresses again: members came back.
type Announce struct{}

// Joined says that the log has admitted this run.
type Joined struct{}

// SpecChanged says that the spec or the members changed.
type SpecChanged struct{}

// Alarm raises or clears an alarm of this member.
type Alarm struct {
	Code, Object, Text, Remedy, Severity string
	Clear                                bool
}

// OrderDone answers an Order.
type OrderDone struct {
	Service cluster.ServiceNo
	ID      uint64
	Err     error // nil: released, and granted to the target
	Epoch   cluster.Epoch
	Holder  cluster.MemberNo
}

// Restore orders the node to bring a service back that was prepared for a move which does not take place.
type Restore struct {
	Service cluster.ServiceNo
	Epoch   cluster.Epoch
	Why     string
}

func (Send) action()        {}
func (Propose) action()     {}
func (Prepare) action()     {}
func (Begin) action()       {}
func (Extend) action()      {}
func (Bumped) action()      {}
func (Close) action()       {}
func (Restart) action()     {}
func (Standby) action()     {}
func (Kick) action()        {}
func (Transfer) action()    {}
func (Announce) action()    {}
func (Joined) action()      {}
func (SpecChanged) action() {}
func (Alarm) action()       {}
func (OrderDone) action()   {}
func (Restore) action()     {}

// Event is something that happened to this member.
type Event interface{ event() }

// Tick lets time pass; see Next.
type Tick struct{}

// Received is a frame from an authenticated member.
type Received struct {
	From  cluster.MemberNo
	Frame Frame
}

// Leadership says who leads the group, as far as Raft knows here, and whether it is this member with everything applied that
// was committed before its election.
type Leadership struct {
	Leader   cluster.MemberNo
	ServerID string // instead of Leader, where the member may not be known here yet
	Mine     bool
}

// Proposed answers Propose. An error means that the outcome is not known.
type Proposed struct {
	ID      uint64
	Outcome state.Outcome
	Err     error
}

// Drained answers Prepare.
type Drained struct {
	Service cluster.ServiceNo
	Epoch   cluster.Epoch
	Err     error
}

// Shut answers Close. An error means that it could not be made sure that nothing is in flight: no Release then.
type Shut struct {
	Service cluster.ServiceNo
	Epoch   cluster.Epoch
	Err     error
}

// Health is the node's word on a service's processes and checks here.
type Health struct {
	Service   cluster.ServiceNo
	Ready     bool
	Unhealthy bool
	GaveUp    string // not empty: restarts are used up, or a check has failed for good, and how
	Then      string // what on_failure says is to follow: failover, stop, ignore
}

// Order is an operator's order to move a service that this member holds.
type Order struct {
	ID      uint64
	Service cluster.ServiceNo
	To      string // empty: the best other node
	What    string // switchover, failover, failback
	By      string
	Reason  string
	at      cluster.Instant
	to      cluster.MemberNo
}

func (Tick) event()       {}
func (Received) event()   {}
func (Leadership) event() {}
func (Proposed) event()   {}
func (Drained) event()    {}
func (Shut) event()       {}
func (Health) event()     {}
func (*Order) event()     {}
