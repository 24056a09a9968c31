package api

// Decision is one entry of the log that changed who serves, with what was known when it was taken.
type Decision struct {
	ID        string          `json:"id"` // "D-231"
	At        Time            `json:"at"`
	Service   string          `json:"service"`
	Kind      string          `json:"kind"` // failover, switchover, failback, force, start, stop, restart, pause, ...
	From      string          `json:"from"`
	To        string          `json:"to"`
	EpochFrom uint64          `json:"epoch_from"`
	EpochTo   uint64          `json:"epoch_to"`
	OrderedBy string          `json:"ordered_by"` // "policy", or a user's name
	Reason    string          `json:"reason"`     // the user's --reason
	Sentence  string          `json:"sentence"`   // why, for a tired person
	Zero      string          `json:"zero"`       // what the time line counts from: "after a was last heard"
	TimeLine  List[Moment]    `json:"time_line"`
	Known     Known           `json:"known"`
	Lost      string          `json:"lost"`      // "nothing acknowledged"
	SetAside  string          `json:"set_aside"` // "on a: 3 operations never acknowledged"; "" when nothing
	WhyNot    List[WhyNot]    `json:"why_not"`
	Steps     List[Step]      `json:"steps"`   // of an order that was carried out step by step
	Failed    string          `json:"failed"`  // "" or how it ended instead
	Log       uint64          `json:"log"`     // its place in the log
	Related   List[string]    `json:"related"` // other decisions
	Extra     List[NamedText] `json:"extra"`
}

// Moment is one line of a time line.
type Moment struct {
	OffsetMs Millis       `json:"offset_ms"`
	What     string       `json:"what"`
	Who      List[string] `json:"who"`
	Note     string       `json:"note"`
}

// Known is the table of observations that a decision rests on: a column for each member.
type Known struct {
	Members List[string]   `json:"members"`
	Rows    List[KnownRow] `json:"rows"`
}

// KnownRow is one row; Values stand in the order of Known.Members.
type KnownRow struct {
	What   string       `json:"what"`
	Values List[string] `json:"values"`
}

// WhyNot answers a question that an operator will ask: "Why not later or sooner?", "Why not c?".
type WhyNot struct {
	Question string `json:"question"`
	Answer   string `json:"answer"`
}

// NamedText is a further line.
type NamedText struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// Explanation answers `hanode explain`. Exactly one of Decision, Service and Alarm may be set beside the Sentence; all
// are null when nothing has happened yet.
type Explanation struct {
	Target   string       `json:"target"`
	Kind     string       `json:"kind"` // decision, service, alarm, cluster
	Sentence string       `json:"sentence"`
	Decision *Decision    `json:"decision"` // the newest one of a service
	Service  *Service     `json:"service"`
	Alarm    *Alarm       `json:"alarm"`
	Known    Known        `json:"known"` // what is known now
	WhyNot   List[WhyNot] `json:"why_not"`
	Next     List[string] `json:"next"`
}

// Event is one line of the journal of what happened.
type Event struct {
	Seq      uint64 `json:"seq"`
	At       Time   `json:"at"`
	Severity string `json:"severity"` // info, warn, crit
	Kind     string `json:"kind"`
	Service  string `json:"service"`
	Node     string `json:"node"`
	Epoch    uint64 `json:"epoch"`
	Decision string `json:"decision"`
	Who      string `json:"who"`
	Text     string `json:"text"`
}

// Plan is what an order would do.
type Plan struct {
	Order       string           `json:"order"` // "switchover of db, a to b"
	Base        uint64           `json:"base"`  // the state that it rests on; give it with the order, which is refused if it moved
	SpecVersion uint64           `json:"spec_version"`
	Steps       List[Step]       `json:"steps"` // TookMs is the expected time
	ExpectedMs  Millis           `json:"expected_ms"`
	OutageMs    Millis           `json:"outage_ms"` // expected wait of clients
	Risk        Risk             `json:"risk"`
	Changes     List[SpecDelta]  `json:"changes"`   // of apply
	Unchanged   List[string]     `json:"unchanged"` // services that are not touched
	Warnings    List[string]     `json:"warnings"`
	VerifiedOff List[string]     `json:"verified_off"` // members that the operator must have verified off (force)
	Problems    List[Diagnostic] `json:"problems"`
}

// Risk is what an order may lose.
type Risk struct {
	Bytes      int64  `json:"bytes"`
	Operations int64  `json:"operations"`
	AgeMs      Millis `json:"age_ms"`  // of the newest thing that the target holds
	Unknown    bool   `json:"unknown"` // the numbers are only what this side knows: there may be more
	Text       string `json:"text"`
}

// None says that nothing is at risk.
func (r Risk) None() bool { return r.Bytes == 0 && r.Operations == 0 && !r.Unknown }

// Classes of a change of the spec: when it takes effect.
const (
	ClassLive      = "live"
	ClassNextGrant = "next grant"
	ClassNeedsStop = "needs stop"
	ClassRefused   = "refused"
)

// SpecDelta is one changed key of the spec.
type SpecDelta struct {
	Object string `json:"object"` // "service db, check sql"
	Key    string `json:"key"`
	From   string `json:"from"`
	To     string `json:"to"`
	Class  string `json:"class"`
}

// Diagnostic is a fault in a spec, with its place.
type Diagnostic struct {
	File     string `json:"file"`
	Line     int    `json:"line"` // from 1; 0: the whole file
	Column   int    `json:"column"`
	Severity string `json:"severity"` // error, warning
	Node     string `json:"node"`     // the member that said so; "" for the file itself
	Text     string `json:"text"`
	Do       string `json:"do"`
}

// Step is one step of an order, as it is planned, or as it is done and streamed.
type Step struct {
	N      int          `json:"n"`
	Of     int          `json:"of"` // 0: not known
	Text   string       `json:"text"`
	Who    List[string] `json:"who"`
	AtMs   Millis       `json:"at_ms"`   // since the order was taken
	TookMs Millis       `json:"took_ms"` // expected, in a plan
	State  string       `json:"state"`   // "", done, waiting, failed, undone
}

// Progress is told every step of an order while it runs. It may be called from one goroutine at a time.
type Progress func(Step)

// Outcome is the end of a changing request.
type Outcome struct {
	Decision  string           `json:"decision"` // its id; "" for a plan
	Decisions List[string]     `json:"decisions"`
	Text      string           `json:"text"` // one line: what is true now
	Service   string           `json:"service"`
	From      string           `json:"from"`
	To        string           `json:"to"`
	Epoch     uint64           `json:"epoch"`
	OutageMs  Millis           `json:"outage_ms"` // -1: not measured
	ReadyMs   Millis           `json:"ready_ms"`
	TookMs    Millis           `json:"took_ms"`
	Plan      *Plan            `json:"plan"`
	Token     *Token           `json:"token"`
	Spec      uint64           `json:"spec_version"`
	Problems  List[Diagnostic] `json:"problems"` // warnings of apply
	Next      List[string]     `json:"next"`
}
