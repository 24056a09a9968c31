package volserver

import (
	"encoding/json"
	"time"

	"github.com/hanode/hanode/cluster"
)

// Run is one run of a member.
type Run struct {
	Member cluster.MemberNo    `json:"member"`
	Inc    cluster.Incarnation `json:"inc"`
}

// Peer is a node of the service.
type Peer struct {
	Run
	ID   cluster.NodeID `json:"id"`
	Name string         `json:"name"`
}

// Start is what a volume server is for. It is told once.
type Start struct {
	Cluster   string               `json:"cluster"`
	Data      string               `json:"data"` // the cluster id that the copies carry: the first one, where the cluster was forked by recover
	Service   string               `json:"service"`
	No        cluster.ServiceNo    `json:"no"`
	Self      Run                  `json:"self"`
	Name      string               `json:"name"` // of the node
	PKI       string               `json:"pki"`  // directory of the member's certificate and key
	Boot      string               `json:"boot"`
	AloneDisk bool                 `json:"alone_disk"`
	Make      bool                 `json:"make"` // backing directories that are not there are made; otherwise they are refused
	Volumes   []cluster.VolumeSpec `json:"volumes"`
	Facts     Facts                `json:"facts"`
}

// Ready is the state in which a volume server has found its copy.
type Ready struct {
	Pos          cluster.Position `json:"pos"`
	Inconsistent string           `json:"inconsistent,omitempty"` // why
	Warnings     []string         `json:"warnings,omitempty"`
	Made         bool             `json:"made"` // the backing directories are new
	TookMs       int64            `json:"took_ms"`
	Fuse         []uint32         `json:"fuse,omitempty"` // numbers of the FUSE connections
}

// Facts is what the log says of the service's data.
type Facts struct {
	Epoch    cluster.Epoch      `json:"epoch"`
	Grant    cluster.Epoch      `json:"grant"`
	Closed   cluster.Epoch      `json:"closed,omitempty"`
	Gen      cluster.Generation `json:"gen"`
	Holder   Run                `json:"holder"`
	InSync   cluster.MemberSet  `json:"in_sync"`
	Sticky   bool               `json:"sticky,omitempty"`
	Alone    cluster.Generation `json:"alone,omitempty"`
	Rebooted bool               `json:"rebooted,omitempty"`
	Forced   cluster.Epoch      `json:"forced,omitempty"`
	Peers    []Peer             `json:"peers"`
	LogTime  int64              `json:"log_time"` // wall clock of the newest entry, ms: certificates are not judged by an earlier one
}

// Led is the answer to Lead.
type Led struct {
	Pos     cluster.Position `json:"pos"`
	Applied uint64           `json:"applied"` // operations of the journal's tail
	TookUs  int64            `json:"took_us"`
}

// Conn announces a TCP connection of the channel stream, whose descriptor comes along.
type Conn struct {
	ID       uint64           `json:"id"`
	Incoming bool             `json:"incoming"`
	Peer     cluster.MemberNo `json:"peer,omitempty"` // of a dialled one
	First    []byte           `json:"first,omitempty"`
}

// Replica is what is seen of a copy.
type Replica struct {
	Member    cluster.MemberNo `json:"member"`
	Pos       cluster.Position `json:"pos"`
	Durable   uint64           `json:"durable"`
	Good      bool             `json:"good"`
	Connected bool             `json:"connected"`
	State     string           `json:"state"` // all, catching-up, resync, away, ...
	WaitingMs int64            `json:"waiting_ms"`
	LagBytes  int64            `json:"lag_bytes"`
	LagOps    int64            `json:"lag_ops"`
	Failed    string           `json:"failed,omitempty"`
	Resync    *Resync          `json:"resync,omitempty"`
}

// Resync is how far a comparison of trees has come.
type Resync struct {
	DoneBytes  int64         `json:"done_bytes"`
	TotalBytes int64         `json:"total_bytes"`
	Rate       int64         `json:"rate"` // bytes/s
	Left       time.Duration `json:"left"`
	Files      int64         `json:"files"`
}

// CaughtUp asks for InSync.
type CaughtUp struct {
	Run
	Epoch cluster.Epoch      `json:"epoch"`
	Gen   cluster.Generation `json:"gen"`
}

// Volume is one volume of the status.
type Volume struct {
	Name        string  `json:"name"`
	Path        string  `json:"path"`
	Backing     string  `json:"backing"`
	Mode        string  `json:"mode"`
	Mounted     bool    `json:"mounted"`
	Files       int64   `json:"files"`
	UsedBytes   int64   `json:"used_bytes"`
	FreeBytes   int64   `json:"free_bytes"`
	Ops         uint64  `json:"ops"` // since the server started
	WriteBytes  uint64  `json:"write_bytes"`
	AckP50Us    float64 `json:"ack_p50_us"`
	AckP99Us    float64 `json:"ack_p99_us"`
	AckCount    uint64  `json:"ack_count"`
	AckSumUs    float64 `json:"ack_sum_us"`
	GateRefused uint64  `json:"gate_refused"`
	Divergent   int     `json:"divergent"` // sets of operations that were set aside
}

// Status is everything that a volume server shows.
type Status struct {
	Role         string           `json:"role"` // standby, active, fenced
	Epoch        cluster.Epoch    `json:"epoch"`
	Pos          cluster.Position `json:"pos"`
	Durable      uint64           `json:"durable"`
	Applied      uint64           `json:"applied"`
	Inconsistent string           `json:"inconsistent,omitempty"`
	Failed       string           `json:"failed,omitempty"`
	Alone        bool             `json:"alone,omitempty"`
	JournalBytes int64            `json:"journal_bytes"`
	Suspended    uint64           `json:"suspended"` // operations that were held because the lease was near its end
	Replicas     []Replica        `json:"replicas"`
	Own          Replica          `json:"own"` // this copy
	Volumes      []Volume         `json:"volumes"`
	Conns        int              `json:"conns"`
	Handshakes   uint64           `json:"handshakes"`
	Refused      uint64           `json:"refused"` // connections
}

// Order is an operator's order on a volume.
type Order struct {
	What   string          `json:"what"`
	Volume string          `json:"volume"`
	Args   json.RawMessage `json:"args,omitempty"`
}
