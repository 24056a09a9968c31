package api

import (
	"context"
	"encoding/json"
	"net/http"
)

// Volumes is what an operator does with the data of a service.
type Volumes interface {
	// Volume looks at a service's volumes, or orders something about them.
	Volume(ctx context.Context, r VolumeRequest, p Progress) (*VolumeAnswer, error)
}

// Actions of a VolumeRequest.
const (
	VolumeStatus     = "status"
	VolumeResync     = "resync"
	VolumeReplace    = "replace"
	VolumeDisconnect = "disconnect"
	VolumeConnect    = "connect"
	VolumeAdopt      = "adopt"
	VolumeRelease    = "release"

	// What was set aside from a copy, because nobody else had it.
	VolumeDivergent = "divergent" // list
	VolumeDiff      = "divergent-diff"
	VolumeRestore   = "divergent-restore"
	VolumeDiscard   = "divergent-discard"
)

// VolumeRequest is about the volumes of one service, on one node or on all.
type VolumeRequest struct {
	Order
	Action  string `json:"action"`
	Service string `json:"service"`
	Volume  string `json:"volume"` // "": all of them
	Node    string `json:"node"`   // "": the one that is asked; status: every one
	Dir     string `json:"dir"`    // adopt: what becomes the volume; release: where it goes
	Set     string `json:"set"`    // divergent: which set
	File    string `json:"file"`   // divergent-restore: which file of it
	Local   bool   `json:"local"`  // of the asked node only
}

// VolumeAnswer is what came of it.
type VolumeAnswer struct {
	Action  string           `json:"action"`
	Service string           `json:"service"`
	InSync  List[string]     `json:"in_sync"`
	Active  string           `json:"active"`
	Nodes   List[VolumeNode] `json:"nodes"`
	Text    List[string]     `json:"text"` // what was done, or would be
	Plan    bool             `json:"plan"` // nothing was done
	Report  json.RawMessage  `json:"report"`
	Next    List[string]     `json:"next"`
}

// VolumeNode is one node's copy.
type VolumeNode struct {
	Node          string          `json:"node"`
	Role          string          `json:"role"`  // active, standby, fenced, ""
	State         string          `json:"state"` // all, resync, behind, away, unknown
	Why           string          `json:"why"`   // it is not served, or not trusted
	Position      Position        `json:"position"`
	Durable       uint64          `json:"durable"` // sequence
	Applied       uint64          `json:"applied"`
	LagOperations int64           `json:"lag_operations"`
	LagBytes      int64           `json:"lag_bytes"`
	WaitingMs     Millis          `json:"waiting_ms"`
	Suspended     uint64          `json:"suspended"` // operations held near the end of a lease
	Alone         bool            `json:"alone"`
	Copy          Copy            `json:"copy"`
	Volumes       List[VolumeOne] `json:"volumes"`
}

// VolumeOne is one volume on one node.
type VolumeOne struct {
	Name       string  `json:"name"`
	Path       string  `json:"path"`
	Backing    string  `json:"backing"`
	Mode       string  `json:"mode"`
	Mounted    bool    `json:"mounted"`
	Files      int64   `json:"files"`
	FreeBytes  int64   `json:"free_bytes"`
	Operations uint64  `json:"operations"`
	WriteBytes uint64  `json:"write_bytes"`
	AckP50Us   float64 `json:"ack_p50_us"`
	AckP99Us   float64 `json:"ack_p99_us"`
	SetAside   int     `json:"set_aside"`
}

const pathVolume = "/v1/volume"

func (s *Server) routeVolumes(mux *http.ServeMux) { order(mux, pathVolume, s.cfg.Backend.Volume) }

func (c *Client) Volume(ctx context.Context, r VolumeRequest, p Progress) (*VolumeAnswer, error) {
	return send[VolumeAnswer](ctx, c, pathVolume, r, p)
}
