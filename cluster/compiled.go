package cluster

import (
	"encoding/json"
	"net/netip"
	"time"
)

// Spec is the compiled form of the cluster's spec: what cluster/spec makes of the file that operators write, with all
// defaults filled in. It is what the replicated state machine keeps and what every member decides by; its JSON keys are
// only ever added to.
type Spec struct {
	Profile         string              `json:"profile"`         // auto, fastest, fast, normal, wan
	Lease           time.Duration       `json:"lease,omitempty"` // overrides the profile's TTL; 0: the profile's
	MaxFailovers    int                 `json:"max_failovers"`
	FailoversWithin time.Duration       `json:"failovers_within"`
	Nodes           map[string]NodeSpec `json:"nodes,omitempty"`
	Witnesses       map[string]NodeSpec `json:"witnesses,omitempty"`
	Services        []ServiceSpec       `json:"services"`
	Alerts          []AlertSpec         `json:"alerts,omitempty"` // for alarms of the cluster and of every service
}

// NodeSpec is a node or witness block.
type NodeSpec struct {
	Site     string `json:"site"`
	Capacity int    `json:"capacity"` // % units of load
	Vote     bool   `json:"vote"`
}

// ServiceSpec is a service block. Durations are nanoseconds in JSON.
type ServiceSpec struct {
	Name          string        `json:"name"`
	Nodes         []string      `json:"nodes"` // order of preference
	Run           string        `json:"run"`   // active, everywhere
	Failover      string        `json:"failover"`
	Failback      string        `json:"failback"`
	SiteFailover  string        `json:"site_failover"`
	FailbackAfter time.Duration `json:"failback_after"`
	MaxLoss       time.Duration `json:"max_loss"`
	Approvers     []string      `json:"approvers,omitempty"`
	Requires      []string      `json:"requires,omitempty"`
	Apart         []string      `json:"apart,omitempty"`
	SameFiles     []string      `json:"same_files,omitempty"`
	Priority      int           `json:"priority"`
	Load          int           `json:"load"`
	Healthy       string        `json:"healthy"` // all, any, N
	ColdStartWait time.Duration `json:"cold_start_wait"`
	AloneAck      string        `json:"alone_ack"`
	WitnessLost   string        `json:"witness_lost"` // protect, hold
	Fence         string        `json:"fence"`
	VIPs          []VIPSpec     `json:"vips,omitempty"`
	Volumes       []VolumeSpec  `json:"volumes,omitempty"`
	Remotes       []RemoteSpec  `json:"remotes,omitempty"`
	Memories      []MemorySpec  `json:"memories,omitempty"`
	Processes     []ProcessSpec `json:"processes,omitempty"`
	Checks        []CheckSpec   `json:"checks,omitempty"`
	OnFailure     OnFailure     `json:"on_failure"`
	Hooks         []HookSpec    `json:"hooks,omitempty"`
	Alerts        []AlertSpec   `json:"alerts,omitempty"`
}

// HasData says that the service has a volume or a synchronous region, so that only an in-sync member may be granted it.
func (s *ServiceSpec) HasData() bool {
	if len(s.Volumes) > 0 {
		return true
	}
	for i := range s.Memories {
		if s.Memories[i].Checkpoint == "sync" {
			return true
		}
	}
	return false
}

// Hot says that the service's processes run on the standby too and are promoted in place.
func (s *ServiceSpec) Hot() bool {
	for i := range s.Processes {
		if s.Processes[i].Standby == "hot" {
			return true
		}
	}
	return false
}

// VIPSpec is a vip block.
type VIPSpec struct {
	Prefix    netip.Prefix `json:"prefix"` // the address itself with its network's length
	Interface string       `json:"interface,omitempty"`
	MAC       string       `json:"mac"`      // own, virtual
	Announce  string       `json:"announce"` // start, ready
	Sites     []string     `json:"sites,omitempty"`
}

// VolumeSpec is a volume block.
type VolumeSpec struct {
	Name        string        `json:"name"`
	Path        string        `json:"path"`
	Backing     string        `json:"backing"`
	Mode        string        `json:"mode"`
	MaxLag      time.Duration `json:"max_lag"`
	JournalSize int64         `json:"journal_size"`
	ResyncRate  int64         `json:"resync_rate"`
}

// RemoteSpec is a remote block: how the service's stream goes to the members of another site.
type RemoteSpec struct {
	Site     string        `json:"site"`
	Mode     string        `json:"mode"` // sync, sync-on-fsync, async
	MaxLag   time.Duration `json:"max_lag"`
	MaxRate  int64         `json:"max_rate"` // bytes/s; 0: no limit
	Compress bool          `json:"compress"`
}

// MemorySpec is a memory block: a region that applications map and that the standby receives as checkpoints.
type MemorySpec struct {
	Name       string        `json:"name"`
	Size       int64         `json:"size"`
	Checkpoint string        `json:"checkpoint"`      // sync, timed, async
	Every      time.Duration `json:"every,omitempty"` // timed only
}

// ProcessSpec is a process block. Exactly one of Start, Systemd and OCF is set.
type ProcessSpec struct {
	Name         string            `json:"name"`
	Start        []string          `json:"start,omitempty"`
	Systemd      string            `json:"systemd,omitempty"`
	OCF          string            `json:"ocf,omitempty"`
	Params       map[string]string `json:"params,omitempty"`
	Stop         []string          `json:"stop,omitempty"`
	StopSignal   string            `json:"stop_signal"` // TERM, INT, ...
	StopTimeout  time.Duration     `json:"stop_timeout"`
	StartTimeout time.Duration     `json:"start_timeout"`
	Ready        string            `json:"ready"`   // checks, started, notify
	Standby      string            `json:"standby"` // cold, hot
	Promote      []string          `json:"promote,omitempty"`
	User         string            `json:"user,omitempty"`
	Group        string            `json:"group,omitempty"`
	Dir          string            `json:"dir"`
	Env          map[string]string `json:"env,omitempty"`
	MemoryMax    int64             `json:"memory_max"`
	FilesMax     int               `json:"files_max"`
}

// CheckSpec is a check block. Exactly one kind is set; Target or Argv goes with it.
type CheckSpec struct {
	Name      string        `json:"name"`
	Kind      string        `json:"kind"`             // tcp, http, postgres, mysql, dns, smtp, rpc, ping, exec, systemd, ocf, heartbeat
	Target    string        `json:"target,omitempty"` // tcp "host:port", http URL, ...
	Argv      []string      `json:"argv,omitempty"`   // exec
	Every     time.Duration `json:"every"`
	Timeout   time.Duration `json:"timeout"`
	Failures  int           `json:"failures"`
	For       time.Duration `json:"for,omitempty"`
	From      []string      `json:"from"`
	OnFailure *OnFailure    `json:"on_failure,omitempty"`
}

// OnFailure says what happens when a process exits or a check fails.
type OnFailure struct {
	Restarts   int           `json:"restarts"`
	Within     time.Duration `json:"within"`
	Backoff    time.Duration `json:"backoff"`
	BackoffMax time.Duration `json:"backoff_max"`
	Then       string        `json:"then"` // failover, stop, ignore
}

// HookSpec is a hook block.
type HookSpec struct {
	Name    string        `json:"name"`
	At      string        `json:"at"` // before-start, after-start, before-stop, ...
	Exec    []string      `json:"exec"`
	Timeout time.Duration `json:"timeout"`
}

// AlertSpec is an alert block.
type AlertSpec struct {
	Name     string        `json:"name"`
	Kind     string        `json:"kind"` // exec, mail, webhook, syslog
	Target   string        `json:"target,omitempty"`
	Argv     []string      `json:"argv,omitempty"`
	Severity string        `json:"severity"` // info, warn, crit
	Repeat   time.Duration `json:"repeat"`
}

// Service returns the named service, or nil.
func (s *Spec) Service(name string) *ServiceSpec {
	for i := range s.Services {
		if s.Services[i].Name == name {
			return &s.Services[i]
		}
	}
	return nil
}

// Encode is the form in which the log keeps the compiled spec.
func (s *Spec) Encode() ([]byte, error) { return json.Marshal(s) }

// DecodeSpec reads what Encode wrote.
func DecodeSpec(b []byte) (*Spec, error) {
	s := new(Spec)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, err
	}
	return s, nil
}
