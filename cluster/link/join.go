package link

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/hanode/hanode/cluster"
)

// ErrBadToken is what JoinHandler.Authorize returns, wrapped or not, for a secret that permits nothing. It counts as a guess;
// the joiner is told no more than that.
var ErrBadToken = errors.New("the token is not accepted: make a new one with `hanode token create`")

// TryElsewhere is an error of JoinHandler by which this member sends the joiner to others, for instance to the leader.
type TryElsewhere struct{ Addrs []netip.AddrPort }

func (e *TryElsewhere) Error() string { return fmt.Sprintf("ask %v instead", e.Addrs) }

// JoinRequest is what a new member asks for.
type JoinRequest struct {
	Secret []byte // the token's
	Name   string
	Role   cluster.Role
	ID     cluster.NodeID
	Addrs  []netip.AddrPort // advertised, one per link; empty at the joiner: its endpoint's
	CSR    []byte           // certificate signing request, DER
	Clock  time.Time        // set by Join
	Data   json.RawMessage  // the caller's

	From netip.AddrPort // where it came from; set at the server
}

func (r *JoinRequest) check() error {
	var errs []error
	if len(r.Name) < 1 || len(r.Name) > 63 {
		errs = append(errs, fmt.Errorf("name of %d characters: want 1 to 63", len(r.Name)))
	}
	if r.ID.IsZero() {
		errs = append(errs, errors.New("node id is missing"))
	}
	if len(r.Addrs) < 1 || len(r.Addrs) > MaxLinks {
		errs = append(errs, fmt.Errorf("%d addresses: want 1 to %d", len(r.Addrs), MaxLinks))
	}
	for _, a := range r.Addrs {
		if !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
			errs = append(errs, fmt.Errorf("address %v: others need an IP and port of this machine: give --advertise", a))
		}
	}
	return errors.Join(errs...)
}

// JoinAnswer is what makes it one.
type JoinAnswer struct {
	Cert []byte          // its certificate, DER
	CAs  [][]byte        // the authority, and others to trust, DER
	Data json.RawMessage // the caller's: members, gossip keys, ...
}

// JoinTarget is what a token says of the cluster.
type JoinTarget struct {
	ClusterID string
	Addrs     []netip.AddrPort
	// VerifyServer refuses whoever is not a member of the cluster that made the token: it knows its authority's fingerprint.
	VerifyServer func(chain []*x509.Certificate) error
}

// The messages of a join, in this order: request, reply (refusal or probe), report, reply (refusal or admission).
type joinMessage struct {
	MinVersion int              `json:"min"`
	MaxVersion int              `json:"max"`
	Secret     []byte           `json:"secret"`
	Name       string           `json:"name"`
	Role       cluster.Role     `json:"role"`
	ID         string           `json:"id"`
	Addrs      []netip.AddrPort `json:"addrs"`
	CSR        []byte           `json:"csr"`
	Clock      time.Time        `json:"clock"`
	Nonce      []byte           `json:"nonce"` // by which the joiner knows the server's probes
	Data       json.RawMessage  `json:"data,omitempty"`
}

type joinReply struct {
	Code      string           `json:"code,omitempty"` // of a refusal
	Text      string           `json:"text,omitempty"`
	Elsewhere []netip.AddrPort `json:"elsewhere,omitempty"`

	Name  string           `json:"name,omitempty"`
	Nonce []byte           `json:"nonce,omitempty"` // by which the server knows the joiner's probes
	Addrs []netip.AddrPort `json:"addrs,omitempty"`

	Cert []byte          `json:"cert,omitempty"`
	CAs  [][]byte        `json:"cas,omitempty"`
	Data json.RawMessage `json:"data,omitempty"`
}

type joinReport struct {
	Failures []string `json:"failures"`
}

const (
	nonceLen    = 16
	maxSecret   = 64
	maxReports  = 4 * MaxLinks
	joinTimeout = 30 * time.Second // for the authorisation and the admission, each
	maxSkew     = 30 * time.Minute // certificates are backdated by an hour
)

// decode checks the bounds of a request from the wire.
func (w *joinMessage) decode(from netip.AddrPort) (JoinRequest, error) {
	if w.MinVersion > maxVersion || w.MaxVersion < minVersion {
		return JoinRequest{}, &RefusedError{codeVersion, fmt.Sprintf("the joining program speaks link protocol %d to %d, this cluster %d to %d: use the same release",
			w.MinVersion, w.MaxVersion, minVersion, maxVersion)}
	}
	if len(w.Nonce) != nonceLen || len(w.Secret) > maxSecret {
		return JoinRequest{}, errMalformed
	}
	id, err := cluster.ParseNodeID(w.ID)
	if err != nil {
		return JoinRequest{}, err
	}
	r := JoinRequest{Secret: w.Secret, Name: w.Name, Role: w.Role, ID: id, Addrs: w.Addrs, CSR: w.CSR, Clock: w.Clock, Data: w.Data, From: from}
	return r, r.check()
}
