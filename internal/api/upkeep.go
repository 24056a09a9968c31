package api

import (
	"context"
	"io"
	"net/http"
)

// Upkeep is what an operator does beside moving services: checks, alerts, keys, upgrades, approvals, backups.
type Upkeep interface {
	// Checks lists every check of every service with its state on each node that answers.
	Checks(ctx context.Context) ([]CheckLine, error)
	// Check runs one check now, pauses it or ends that.
	Check(ctx context.Context, r CheckRequest, p Progress) (*Outcome, error)
	// AlertTest tells a trial alarm to one alert, or to all.
	AlertTest(ctx context.Context, r AlertRequest, p Progress) (*Outcome, error)
	// KeyRotate gives gossip a new key.
	KeyRotate(ctx context.Context, r KeyRequest, p Progress) (*Outcome, error)
	UpgradeStatus(ctx context.Context) (*UpgradeStatus, error)
	// UpgradeFinish raises the feature level to what every member knows.
	UpgradeFinish(ctx context.Context, r UpgradeRequest, p Progress) (*Outcome, error)
	// Approve is an approver's word on a failover: yes or no.
	Approve(ctx context.Context, r ApproveRequest, p Progress) (*Outcome, error)
	// Backup writes a gzipped tar of what a cluster is made anew from. It holds the key of the authority.
	Backup(ctx context.Context, w io.Writer) error
}

// Actions of a CheckRequest.
const (
	CheckRun    = "run"
	CheckPause  = "pause"
	CheckResume = "resume"
)

// CheckRequest is about one check of a service.
type CheckRequest struct {
	Order
	Service string `json:"service"`
	Check   string `json:"check"`
	Action  string `json:"action"`
	ForMs   Millis `json:"for_ms"` // pause: when it ends by itself; 0: the daemon's default
	Local   bool   `json:"local"`  // run: on the asked member only
}

// CheckLine is one check on one node.
type CheckLine struct {
	Service     string       `json:"service"`
	Name        string       `json:"name"`
	Kind        string       `json:"kind"`
	EveryMs     Millis       `json:"every_ms"`
	From        List[string] `json:"from"` // active, standby
	Node        string       `json:"node"`
	State       string       `json:"state"` // ok, failing, failed, unknown, paused
	Output      string       `json:"output"`
	TookMs      Millis       `json:"took_ms"`
	PausedUntil Time         `json:"paused_until"`
	PausedBy    string       `json:"paused_by"`
}

// AlertRequest is about one alert, or all.
type AlertRequest struct {
	Order
	Name string `json:"name"` // as the spec names it, or service/name; "": all
}

// KeyRequest asks for a new gossip key.
type KeyRequest struct{ Order }

// UpgradeRequest raises the feature level.
type UpgradeRequest struct{ Order }

// UpgradeStatus says what the members run, and what the cluster makes use of.
type UpgradeStatus struct {
	Level   uint64              `json:"feature_level"` // in force
	Known   uint64              `json:"known_level"`   // the newest one that every member knows
	Members List[UpgradeMember] `json:"members"`
	Order   List[string]        `json:"order"` // in which to upgrade those that run another version than the asked one
	Text    string              `json:"text"`
	Next    List[string]        `json:"next"`
}

// UpgradeMember is one member of an UpgradeStatus.
type UpgradeMember struct {
	Name    string `json:"name"`
	Role    string `json:"role"`
	State   string `json:"state"`
	Version string `json:"version"`
	Level   uint64 `json:"known_level"`
}

// ApproveRequest is an approver's word.
type ApproveRequest struct {
	Order
	Service string `json:"service"`
	Yes     bool   `json:"yes"`
}

const (
	pathChecks        = "/v1/checks"
	pathCheck         = "/v1/checks/order"
	pathAlertTest     = "/v1/alerts/test"
	pathKeyRotate     = "/v1/keys/rotate"
	pathUpgrade       = "/v1/upgrade"
	pathUpgradeFinish = "/v1/upgrade/finish"
	pathApprove       = "/v1/approve"
	pathBackup        = "/v1/backup"
)

func (s *Server) routeUpkeep(mux *http.ServeMux) {
	b := s.cfg.Backend
	get(mux, pathChecks, func(ctx context.Context, _ *http.Request) (any, error) {
		l, err := b.Checks(ctx)
		return List[CheckLine](l), err
	})
	get(mux, pathUpgrade, func(ctx context.Context, _ *http.Request) (any, error) { return b.UpgradeStatus(ctx) })
	order(mux, pathCheck, b.Check)
	order(mux, pathAlertTest, b.AlertTest)
	order(mux, pathKeyRotate, b.KeyRotate)
	order(mux, pathUpgradeFinish, b.UpgradeFinish)
	order(mux, pathApprove, b.Approve)
	mux.HandleFunc("GET "+pathBackup, func(w http.ResponseWriter, r *http.Request) { s.archive(w, r, "backup", b.Backup) })
}

func (c *Client) Checks(ctx context.Context) ([]CheckLine, error) {
	l, err := getOne[[]CheckLine](ctx, c, pathChecks)
	return deref(l), err
}

func (c *Client) Check(ctx context.Context, r CheckRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathCheck, r, p)
}

func (c *Client) AlertTest(ctx context.Context, r AlertRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathAlertTest, r, p)
}

func (c *Client) KeyRotate(ctx context.Context, r KeyRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathKeyRotate, r, p)
}

func (c *Client) UpgradeStatus(ctx context.Context) (*UpgradeStatus, error) {
	return getOne[UpgradeStatus](ctx, c, pathUpgrade)
}

func (c *Client) UpgradeFinish(ctx context.Context, r UpgradeRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathUpgradeFinish, r, p)
}

func (c *Client) Approve(ctx context.Context, r ApproveRequest, p Progress) (*Outcome, error) {
	return send[Outcome](ctx, c, pathApprove, r, p)
}

func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	return c.download(ctx, pathBackup, w)
}
