package api

// Order is the part that all changing requests have in common.
type Order struct {
	Reason string `json:"reason"`
	Plan   bool   `json:"plan"` // only say what would be done
	Base   uint64 `json:"base"` // Plan.Base: refuse (CodeMoved) if that state is not the present one; 0: do not care
	Who    string `json:"who"`  // who ordered it; set by the server on the Unix socket, whatever the client says
	Via    string `json:"via"`  // the member that passed it on; set by the server. Not "": it must not be passed on again
}

func (o *Order) order() *Order { return o }

// StatusQuery asks for the status.
type StatusQuery struct {
	Local bool `json:"local"` // only what the asked member knows by itself
}

// EventQuery asks for events. Zero times mean: no bound.
type EventQuery struct {
	Since   Time   `json:"since"`
	Until   Time   `json:"until"`
	Follow  bool   `json:"follow"` // go on until Until or the end of the context
	Limit   int    `json:"limit"`  // the newest so many; 0: all that is kept
	Service string `json:"service"`
}

// AckRequest acknowledges an alarm: it stays until its cause is gone, but nags nobody.
type AckRequest struct {
	Order
	Code   string `json:"code"`
	Object string `json:"object"` // "": all alarms with this code
}

// SpecText is a spec as it was written.
type SpecText struct {
	Version uint64 `json:"version"`
	At      Time   `json:"at"`
	By      string `json:"by"`
	Reason  string `json:"reason"`
	Text    string `json:"text"`
}

// SpecChange is one line of the spec's history.
type SpecChange struct {
	Version  uint64 `json:"version"`
	At       Time   `json:"at"`
	By       string `json:"by"`
	Reason   string `json:"reason"`
	Decision string `json:"decision"`
	Summary  string `json:"summary"` // "db: check sql every 1s to 2s"
}

// ApplyRequest replaces the spec.
type ApplyRequest struct {
	Order
	File        string       `json:"file"` // its name, for the diagnostics
	Text        string       `json:"text"`
	SpecVersion uint64       `json:"spec_version"` // compare-and-set: the version that Text was made from; 0: the present one
	Remove      List[string] `json:"remove"`       // services that may disappear
}

// MoveRequest orders a switchover, failover or failback.
type MoveRequest struct {
	Order
	Service  string `json:"service"`
	All      bool   `json:"all"`       // failback only
	To       string `json:"to"`        // "": the standby, or the preferred node
	WaitSync bool   `json:"wait_sync"` // failback: wait until the target is in sync instead of refusing
}

// ForceRequest promotes a member that is not in sync.
type ForceRequest struct {
	Order
	Service     string       `json:"service"`
	To          string       `json:"to"`
	AcceptLoss  bool         `json:"accept_loss"`
	Loses       Risk         `json:"loses"`        // what the operator was shown and accepted; refused (CodeMoved) if it has grown
	VerifiedOff List[string] `json:"verified_off"` // members that the operator says are switched off
}

// RecoverRequest forks the cluster to one member, after the majority was lost for good.
type RecoverRequest struct {
	Order
	Keep        string       `json:"keep"`         // the asked member itself
	VerifiedOff List[string] `json:"verified_off"` // all others: the operator says that they are switched off
}

// Actions of a ServiceRequest.
const (
	ActionStart   = "start"
	ActionStop    = "stop"
	ActionRestart = "restart"
	ActionClear   = "clear" // forget failures: held and failed end
)

// ServiceRequest orders a service.
type ServiceRequest struct {
	Order
	Service string `json:"service"`
	Action  string `json:"action"`
}

// PauseRequest pauses or resumes the automatic actions.
type PauseRequest struct {
	Order
	Service string `json:"service"`
	All     bool   `json:"all"`
	ForMs   Millis `json:"for_ms"` // pause: when it ends by itself; 0: the daemon's default
}

// Goals of a WaitRequest.
const (
	WaitActive    = "active"
	WaitInSync    = "in-sync"
	WaitProtected = "protected"
)

// WaitRequest waits until a service has reached a state.
type WaitRequest struct {
	Service string `json:"service"`
	For     string `json:"for"`
}

// TokenRequest asks for a token that lets one member join once.
type TokenRequest struct {
	Order
	Role    string `json:"role"` // node, witness
	TTLMs   Millis `json:"ttl_ms"`
	Replace string `json:"replace"` // the member whose place the new one takes
}

// Token is a token. It is shown once and kept only as a hash.
type Token struct {
	Token    string       `json:"token"`
	Role     string       `json:"role"`
	Expires  Time         `json:"expires"`
	Replace  string       `json:"replace"`
	Decision string       `json:"decision"`
	Next     List[string] `json:"next"`
}

// MemberRequest changes one member.
type MemberRequest struct {
	Order
	Name      string       `json:"name"`
	Advertise string       `json:"advertise"`  // set: IP[:PORT]; "": unchanged
	Links     List[string] `json:"links"`      // set: all its links
	SetLinks  bool         `json:"set_links"`  // set: Links is meant, even when it is empty
	By        string       `json:"by"`         // replace: the member that takes its place; "": make a token for it
	Force     bool         `json:"force"`      // remove, replace: although it cannot be asked; what it alone holds is lost
	AllowDown bool         `json:"allow_down"` // drain: services that can go nowhere else are stopped
}

// Leadership says who leads the group and since when.
type Leadership struct {
	Leader    string       `json:"leader"`
	Since     Time         `json:"since"`
	Term      uint64       `json:"term"`
	Preferred string       `json:"preferred"`
	Why       string       `json:"why"`
	Next      List[string] `json:"next"`
}

// LeaderRequest hands the leadership over. It moves no service.
type LeaderRequest struct {
	Order
	To string `json:"to"`
}

// LeaveRequest takes the asked member out of the cluster.
type LeaveRequest struct {
	Order
	Wipe  bool `json:"wipe"`  // the caller will empty the data directory afterwards
	Force bool `json:"force"` // although services stop or protection ends
}

// Version says what runs.
type Version struct {
	Version      string `json:"version"`
	Commit       string `json:"commit"`
	Go           string `json:"go"`
	FeatureLevel uint64 `json:"feature_level"`
	Node         string `json:"node"` // "" for the command itself
}

// Bounds that both sides keep.
const (
	MaxRequest    = 1 << 20  // bytes of a request's body
	MaxReply      = 16 << 20 // bytes of an answer that is one object
	MaxLine       = 1 << 20  // bytes of one line of a stream
	DefaultSocket = "/run/hanode/hanode.sock"
	DefaultGroup  = "hanode"
)
