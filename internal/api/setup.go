package api

import "log/slog"

// The options of the commands that work without a daemon. They stand here so that the commands and the rooms that carry
// them out agree on them without knowing each other.

// InitOptions makes the first member of a new cluster.
type InitOptions struct {
	Name      string
	Advertise string // IP or IP:PORT; the port is 7400 if it is not given
	Links     []string
	Cluster   string
	Site      string
	DataDir   string
}

// InitResult is what init made.
type InitResult struct {
	Name        string       `json:"name"`
	NodeID      string       `json:"node_id"`
	Cluster     string       `json:"cluster"`
	ClusterID   string       `json:"cluster_id"`
	Fingerprint string       `json:"ca_fingerprint"`
	Advertise   string       `json:"advertise"`
	DataDir     string       `json:"data_dir"`
	Unit        string       `json:"unit"` // the unit file that was written; ""
	Next        List[string] `json:"next"`
}

// JoinOptions makes this machine a member of a cluster.
type JoinOptions struct {
	Token     string
	Name      string
	Advertise string
	Links     []string
	Site      string
	DataDir   string
	Role      string // node, witness
}

// JoinResult is what join made.
type JoinResult struct {
	Name      string       `json:"name"`
	Role      string       `json:"role"`
	NodeID    string       `json:"node_id"`
	Cluster   string       `json:"cluster"`
	ClusterID string       `json:"cluster_id"`
	Advertise string       `json:"advertise"`
	DataDir   string       `json:"data_dir"`
	Vote      bool         `json:"vote"`
	Votes     Votes        `json:"votes"`
	Decision  string       `json:"decision"`
	Unit      string       `json:"unit"`
	Next      List[string] `json:"next"`
}

// RunOptions starts a daemon.
type RunOptions struct {
	DataDir string
	Socket  string
	Group   string // of the operators
	Health  string // address for read-only HTTP; "": none
	Metrics string // loopback address for HTTP GET /metrics; "": none
	Log     *slog.Logger
	Version Version
}

// WitnessStatus is what one witness process serves.
type WitnessStatus struct {
	At       Time                 `json:"at"`
	Running  bool                 `json:"running"`
	Version  string               `json:"version"`
	DataDir  string               `json:"data_dir"`
	Listen   string               `json:"listen"`
	Clusters List[WitnessCluster] `json:"clusters"`
	Next     List[string]         `json:"next"`
}

// WitnessCluster is one cluster that a witness votes in.
type WitnessCluster struct {
	Name    string       `json:"name"`
	ID      string       `json:"id"`
	Member  string       `json:"member"` // the witness's name there
	State   string       `json:"state"`  // up, joining, silent, stopped, failed
	Vote    bool         `json:"vote"`
	Leader  string       `json:"leader"`
	Quorum  bool         `json:"quorum"`
	Votes   Votes        `json:"votes"`
	Members List[Member] `json:"members"`
	Since   Time         `json:"since"`
	Note    string       `json:"note"`
}

// WitnessLeave takes a witness out of one cluster.
type WitnessLeave struct {
	Cluster string
	DataDir string
	Wipe    bool
	Reason  string
	Who     string
}

// RestoreOptions makes a cluster anew from a backup, with this machine as its first member.
type RestoreOptions struct {
	InitOptions
	File string
}

// RestoreResult is what restore made.
type RestoreResult struct {
	InitResult
	From        string       `json:"from_cluster_id"`
	BackupAt    Time         `json:"backup_at"` // the newest entry of the log that the backup holds
	SpecVersion uint64       `json:"spec_version"`
	Stopped     List[string] `json:"stopped"` // services that wait for service start
}
