package api

import (
	"context"
	"net/http"
)

// Internal is what only members ask of each other; a client on the Unix socket is refused.
type Internal interface {
	// Validate says what stands in the way of running a spec on the member that is asked, and changes nothing.
	Validate(ctx context.Context, r ValidateRequest) (*Validation, error)
}

// ValidateRequest asks one member about a spec that is to be put in force.
type ValidateRequest struct {
	Compiled []byte       `json:"compiled"` // the spec, as the log would keep it
	Services List[string] `json:"services"` // which of its services are new or changed
}

// Validation is one member's answer.
type Validation struct {
	Node     string            `json:"node"`
	Problems List[Obstacle]    `json:"problems"`
	Users    map[string]string `json:"users"` // what must be the same everywhere: name: "uid:gid"
	Files    map[string]string `json:"files"` // path: digest
}

// Obstacle is one thing in the way.
type Obstacle struct {
	Service string `json:"service"` // "" for the cluster
	Where   string `json:"where"`
	What    string `json:"what"`
	Remedy  string `json:"remedy"`
}

const pathValidate = "/v1/members/validate"

// routeInternal registers what only members may ask.
func (s *Server) routeInternal(mux *http.ServeMux) {
	post(mux, pathValidate, func(ctx context.Context, r *ValidateRequest, _ *stream) (any, error) {
		if peerOf(ctx).member == "" {
			return nil, Denied("this is between the members of the cluster", "hanode apply --plan FILE")
		}
		return s.cfg.Backend.Validate(ctx, *r)
	})
}

// Validate asks the member; see Forward.
func (c *Client) Validate(ctx context.Context, r ValidateRequest) (*Validation, error) {
	return send[Validation](ctx, c, pathValidate, r, nil)
}
