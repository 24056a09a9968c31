// Package link is how members reach each other: one TCP and one UDP port, mutual TLS with one ALPN name per channel, and
// small authenticated datagrams, over every configured network path at once.
//
// An Endpoint is the port of a process. It serves any number of clusters, each a Mesh with its own certificate and
// authority: the cluster id is the TLS server name, the channel is the ALPN name. Nothing is global.
//
// Datagrams carry beats and leases. Send puts one frame on every path to a member, through UDP sockets that nothing else
// uses and that never wait: a full queue or a dead path costs that path's copy and nothing more. Their keys are taken from a
// TLS session of the channel "lease" (exporter, RFC 8446 section 7.5), one per pair and direction. What makes that right:
//
//   - A key lives on when its session breaks, up to Limits.KeyLife, so that a broken TCP connection ends no lease. It is
//     replaced in the background; while it is, both generations are accepted. A side sends under a key only when it knows
//     that the other has it: the server installs its receiving key before it answers, the client before it confirms.
//   - The nonce is the path and a 64-bit sequence number that a run never uses twice. Each path has its own replay window, so a
//     replayed copy neither reaches the handler nor keeps a dead path looking alive; a second window passes the first
//     copy of each frame and drops the others.
//   - Keys belong to one run of one incarnation. When a newer run of a member is admitted, all keys and connections of the old
//     one end. While the old run is still heard, or if the new one's incarnation is not greater, the new one is refused: its
//     state directory is a copy or was rolled back.
//
// A path is up when both directions work: frames arrive on it, and they say that ours arrived. A connection on a path that
// went down is closed as soon as another path is up, so that its user redials at once over that one. A path that came back
// is used for new connections last until it was stable for ten seconds (doubling to five minutes).
//
// The package never decides who is alive: it moves frames and counts. Everything from the network is bounded before it is
// read, and whoever sends something malformed, oversized or slow is disconnected and counted (Endpoint.Counters).
//
// Callers must: give each run a greater incarnation, made durable before AddCluster; call Send at least each beat (the mesh
// fills gaps with empty frames, so link state works without, but a failure detector must count its own kinds of
// frames only); return quickly from handlers, which run on the goroutine that reads the socket; and never let the
// wall clock decide anything on the word of this package.
package link

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/hanode/hanode/cluster"
)

// Channel is what a connection is for; it is the ALPN name (RFC 7301) as well.
type Channel string

const (
	Raft   Channel = "raft"
	Stream Channel = "stream" // replication of volumes
	Memory Channel = "memory" // replication of regions
	API    Channel = "api"
	Gossip Channel = "gossip"
	Relay  Channel = "relay" // commands on their way to the leader
	Join   Channel = "join"  // server-authenticated only; see Mesh.ServeJoin
	Lease  Channel = "lease" // keys the datagrams; used by this package alone
)

var memberProtos = []string{string(Raft), string(Stream), string(Memory), string(API), string(Gossip), string(Relay), string(Lease)}

// Peer is a member as the cluster knows it.
type Peer struct {
	ID    cluster.NodeID
	Name  string
	Role  cluster.Role
	Addrs []netip.AddrPort // one per link path, at most 8
}

// RunID tells one run of a daemon from another run with the same state directory.
type RunID [16]byte

func (r RunID) String() string { return hex.EncodeToString(r[:]) }

// MarshalText and UnmarshalText make it hexadecimal in messages.
func (r RunID) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r *RunID) UnmarshalText(b []byte) error {
	if len(b) != 2*len(r) {
		return fmt.Errorf("run id of %d characters, want %d", len(b), 2*len(r))
	}
	_, err := hex.Decode(r[:], b)
	return err
}

// ClusterIdentity is what a member is within one cluster.
type ClusterIdentity struct {
	ClusterID   string // also the TLS server name: letters, digits and '-', at most 63
	Self        Peer   // Addrs: own advertised addresses; empty: the endpoint's
	Incarnation cluster.Incarnation
	Run         RunID           // zero: made at random
	Certificate tls.Certificate // the member's, then its authority's
	// Verify tells whom a chain, leaf first, speaks for, or why it is refused (authority, cluster, validity, revocation).
	// Only ID, Name and Role of the Peer are used. It is called for each handshake, concurrently.
	Verify func(chain []*x509.Certificate) (Peer, error)
	// OnSecondRun, if set, is called when a member refuses this run because another run of the same identity is alive or
	// was newer: this state directory is a copy. The process should stop.
	OnSecondRun func(error)
}

func (id *ClusterIdentity) check() error {
	var errs []error
	if n := len(id.ClusterID); n < 1 || n > 63 || !plainHost(id.ClusterID) {
		errs = append(errs, fmt.Errorf("cluster id %q: want 1 to 63 letters, digits and '-'", id.ClusterID))
	}
	if id.Self.ID.IsZero() || id.Self.Name == "" {
		errs = append(errs, errors.New("own identity is not set"))
	}
	if len(id.Self.Addrs) > MaxLinks {
		errs = append(errs, fmt.Errorf("%d own addresses: at most %d links are supported", len(id.Self.Addrs), MaxLinks))
	}
	if len(id.Certificate.Certificate) == 0 || id.Certificate.PrivateKey == nil || id.Verify == nil {
		errs = append(errs, errors.New("certificate, key or verifier is missing"))
	}
	return errors.Join(errs...)
}

func plainHost(s string) bool {
	for _, c := range s {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return s[0] != '-' && s[len(s)-1] != '-'
}

// Config is the process's port.
type Config struct {
	Listen []netip.AddrPort // one per link, or one unspecified address for all; port 0 takes a free one
	Log    *slog.Logger     // nil: none
	Limits Limits
	Now    func() cluster.Instant // nil: CLOCK_BOOTTIME
	Wall   func() time.Time       // nil: time.Now; only for the clock comparison at join
}

// Limits bound what others can make this process do. Zero fields get the values of DefaultLimits.
type Limits struct {
	Conns            int           // accepted connections per cluster and channel
	HandshakesPerIP  int           // at once
	Handshakes       int           // at once, from everybody
	HandshakeTimeout time.Duration // from the accepted connection to the answered hello
	KeyLife          time.Duration // how long a datagram key may be used; replaced at half of it
	JoinGuesses      int           // wrong tokens per minute and source before it is locked out
	ProbeTimeout     time.Duration // for each port tried at join
}

// DefaultLimits are those of the threat model.
func DefaultLimits() Limits {
	return Limits{
		Conns: 64, HandshakesPerIP: 8, Handshakes: 256, HandshakeTimeout: 3 * time.Second,
		KeyLife: 24 * time.Hour, JoinGuesses: 5, ProbeTimeout: 2 * time.Second,
	}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	for _, f := range []struct{ have, def *int }{
		{&l.Conns, &d.Conns}, {&l.HandshakesPerIP, &d.HandshakesPerIP}, {&l.Handshakes, &d.Handshakes}, {&l.JoinGuesses, &d.JoinGuesses},
	} {
		if *f.have <= 0 {
			*f.have = *f.def
		}
	}
	for _, f := range []struct{ have, def *time.Duration }{
		{&l.HandshakeTimeout, &d.HandshakeTimeout}, {&l.KeyLife, &d.KeyLife}, {&l.ProbeTimeout, &d.ProbeTimeout},
	} {
		if *f.have <= 0 {
			*f.have = *f.def
		}
	}
	return l
}

// MaxLinks is how many addresses a member may have.
const MaxLinks = 8

// Errors that callers branch on.
var (
	ErrUnknownPeer = errors.New("not a listed member")
	ErrNoKey       = errors.New("no datagram key with this member yet")
	ErrTooLong     = errors.New("payload is longer than a datagram carries")
	ErrReserved    = errors.New("this kind of datagram is reserved")
	ErrNoPath      = errors.New("no path took the datagram")
	ErrSecondRun   = errors.New("another run of this member is alive or was newer: its state directory was copied or rolled back; stop one of them and let the copy join as a new member")
	ErrClosed      = errors.New("the link is closed")
)

// RefusedError is the other side's answer to a connection that it does not take.
type RefusedError struct {
	Code string // second-run, certificate, not-member, not-allowed, busy, channel, version
	Text string
}

func (e *RefusedError) Error() string { return "refused: " + e.Text }

// Is makes a refusal for a second run an ErrSecondRun.
func (e *RefusedError) Is(target error) bool {
	return target == ErrSecondRun && e.Code == codeSecondRun
}

const (
	codeSecondRun   = "second-run"
	codeCertificate = "certificate"
	codeNotMember   = "not-member"
	codeNotAllowed  = "not-allowed"
	codeBusy        = "busy"
	codeChannel     = "channel"
	codeVersion     = "version"
	codeToken       = "token"
	codeElsewhere   = "elsewhere"
)

// Datagram is what a member sent with Send. Payload is valid only until the handler returns.
type Datagram struct {
	From    cluster.NodeID
	Link    int // index of the path on which the first copy came, as in Links; -1: a path not configured here
	Kind    byte
	Seq     uint64          // grows with each Send of the sender's run
	Sent    cluster.Instant // the sender's clock when it sent
	At      cluster.Instant // this host's clock when it arrived
	Payload []byte
}

// LinkState is one path to one member.
type LinkState struct {
	Peer       cluster.NodeID
	Name       string
	Link       int
	Local      netip.AddrPort
	Remote     netip.AddrPort
	Keyed      bool          // datagrams can be sent to the member
	Up         bool          // both directions work
	Damped     bool          // up, but not for long enough to be preferred
	Heard      time.Duration // since the last frame came on this path; negative: never
	RTT        time.Duration // smoothed; 0: not known
	Sent       uint64        // frames, internal ones included
	Received   uint64
	SendErrors uint64
}
