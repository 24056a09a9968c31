package api

import (
	"context"
	"io"
)

// Backend is what the daemon implements and what Client offers: one and the same, so that a node can answer a request
// itself or pass it on. All methods may be called at the same time. Errors that an operator can act on are *Error.
//
// The context ends when the client goes away or its --timeout is over. An order whose point of no return is passed goes
// on nevertheless; the daemon says so in its events.
type Backend interface {
	Reader
	Specs
	Moves
	Services
	Membership
	Upkeep
	Volumes
	Internal
}

// Reader changes nothing.
type Reader interface {
	Version(ctx context.Context) (*Version, error)
	// Status answers without quorum and without leader too.
	Status(ctx context.Context, q StatusQuery) (*Status, error)
	// Explain takes a service's name, a decision's id, an alarm's code, or "" for the newest decision of all.
	Explain(ctx context.Context, target string) (*Explanation, error)
	// Events calls yield for each event in order and ends with yield's error, if it has one.
	Events(ctx context.Context, q EventQuery, yield func(Event) error) error
	Alarms(ctx context.Context) ([]Alarm, error)
	// Wait returns when the service has reached the state.
	Wait(ctx context.Context, r WaitRequest, p Progress) (*Outcome, error)
	Leader(ctx context.Context) (*Leadership, error)
	// DebugBundle writes a gzipped tar (see Bundle): state, decisions, events, logs, stacks; never a key or a token.
	DebugBundle(ctx context.Context, w io.Writer) error
}

// Specs is the spec and its history.
type Specs interface {
	// Spec returns a version; 0 is the newest.
	Spec(ctx context.Context, version uint64) (*SpecText, error)
	SpecLog(ctx context.Context) ([]SpecChange, error)
	// Apply validates on every node concerned, then commits. With Plan it only says what would change.
	Apply(ctx context.Context, r ApplyRequest, p Progress) (*Outcome, error)
}

// Moves are the orders that move a service. With Order.Plan the outcome holds a Plan and nothing was done.
type Moves interface {
	Switchover(ctx context.Context, r MoveRequest, p Progress) (*Outcome, error)
	Failover(ctx context.Context, r MoveRequest, p Progress) (*Outcome, error)
	Failback(ctx context.Context, r MoveRequest, p Progress) (*Outcome, error)
	Force(ctx context.Context, r ForceRequest, p Progress) (*Outcome, error)
	// Recover forks the cluster to the asked member; the daemon starts anew as the new cluster's only member afterwards.
	Recover(ctx context.Context, r RecoverRequest, p Progress) (*Outcome, error)
}

// Services are the orders that leave a service where it is.
type Services interface {
	Service(ctx context.Context, r ServiceRequest, p Progress) (*Outcome, error)
	Pause(ctx context.Context, r PauseRequest, p Progress) (*Outcome, error)
	Resume(ctx context.Context, r PauseRequest, p Progress) (*Outcome, error)
	AckAlarm(ctx context.Context, r AckRequest, p Progress) (*Outcome, error)
}

// Membership are the orders about members.
type Membership interface {
	TokenCreate(ctx context.Context, r TokenRequest) (*Token, error)
	Members(ctx context.Context) ([]Member, error)
	MemberSet(ctx context.Context, r MemberRequest, p Progress) (*Outcome, error)
	MemberReplace(ctx context.Context, r MemberRequest, p Progress) (*Outcome, error)
	MemberRemove(ctx context.Context, r MemberRequest, p Progress) (*Outcome, error)
	Drain(ctx context.Context, r MemberRequest, p Progress) (*Outcome, error)
	Undrain(ctx context.Context, r MemberRequest, p Progress) (*Outcome, error)
	TransferLeader(ctx context.Context, r LeaderRequest, p Progress) (*Outcome, error)
	// Leave takes the asked member out; the daemon ends afterwards.
	Leave(ctx context.Context, r LeaveRequest, p Progress) (*Outcome, error)
}
