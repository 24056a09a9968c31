package member

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/pki"
)

// dirVersion is the format of a state directory. It is checked before anything in it is opened.
const dirVersion = "hanode state 1\n"

// Identity is what a state directory says of its member; it never changes after init or join.
type Identity struct {
	ClusterID string   `json:"cluster_id"`
	Cluster   string   `json:"cluster"`
	Name      string   `json:"name"`
	Role      string   `json:"role"`
	Site      string   `json:"site"`
	NodeID    string   `json:"node_id"`
	Advertise []string `json:"advertise"` // host:port, one for each link
	First     bool     `json:"first,omitempty"`
}

// ID is the member's NodeID.
func (i *Identity) ID() (cluster.NodeID, error) { return cluster.ParseNodeID(i.NodeID) }

// Addrs are the advertised addresses.
func (i *Identity) Addrs() ([]netip.AddrPort, error) { return parseAddrs(i.Advertise) }

func parseAddrs(in []string) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for _, s := range in {
		a, err := netip.ParseAddrPort(s)
		if err != nil {
			return nil, fmt.Errorf("address %q: want IP:PORT: %w", s, err)
		}
		out = append(out, a)
	}
	return out, nil
}

// Peer is how another member was last known to be reachable, for the time before the log says so.
type Peer struct {
	ID    string   `json:"id"`
	Name  string   `json:"name"`
	Role  string   `json:"role"`
	Addrs []string `json:"addrs"`
}

// Dir is an opened state directory, locked against a second daemon.
type Dir struct {
	Path     string
	Identity Identity
	PKI      *pki.Identity
	CA       *pki.Authority // nil on a member that cannot sign
	Inc      cluster.Incarnation
	Boot     cluster.BootID
	lock     *os.File
}

// CreateDir makes a new state directory. It refuses one that holds anything of a cluster already.
func CreateDir(path string, ident Identity, id *pki.Identity, ca *pki.Authority, peers []Peer) error {
	if err := CheckFresh(path); err != nil {
		return err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if ca != nil {
		if err := ca.Save(path); err != nil {
			return err
		}
	}
	if err := id.Save(path); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(path, "peers.json"), peers); err != nil {
		return err
	}
	if err := writeIncarnation(path, 0); err != nil {
		return err
	}
	if err := pki.WriteSecret(filepath.Join(path, "VERSION"), []byte(dirVersion)); err != nil {
		return err
	}
	return writeJSON(filepath.Join(path, "identity.json"), ident) // last: it is what makes the directory one
}

// CheckFresh says whether a directory can become a new state directory.
func CheckFresh(path string) error {
	if b, err := os.ReadFile(filepath.Join(path, "identity.json")); err == nil {
		var have Identity
		if json.Unmarshal(b, &have) == nil && have.Name != "" {
			return fmt.Errorf("%s is the state directory of %s in cluster %q already: choose another one with --data, or put it aside", path, have.Name, have.Cluster)
		}
		return fmt.Errorf("%s holds an identity already: choose another directory with --data, or put it aside", path)
	}
	if _, err := os.Stat(filepath.Join(path, "raft", "raft.db")); err == nil {
		return fmt.Errorf("%s holds a Raft log without an identity: put it aside, or choose another directory with --data", path)
	}
	return nil
}

// OpenDir opens and locks a state directory and counts one more incarnation, durably, before anything can be said to
// anybody.
func OpenDir(path string) (*Dir, error) {
	d := &Dir{Path: path}
	v, err := os.ReadFile(filepath.Join(path, "VERSION"))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%s is not a state directory: make one with hanode init, or join a cluster with hanode join", path)
	case err != nil:
		return nil, fmt.Errorf("state directory: %w", err)
	case string(v) != dirVersion:
		return nil, fmt.Errorf("%s has the format %q and this version knows %q: run the version that wrote it", path, strings.TrimSpace(string(v)), strings.TrimSpace(dirVersion))
	}
	if err := d.takeLock(); err != nil {
		return nil, err
	}
	if err := d.load(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Dir) takeLock() error {
	f, err := os.OpenFile(filepath.Join(d.Path, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("lock the state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("%s is in use by a running daemon: stop that one first, or choose another directory with --data", d.Path)
		}
		return fmt.Errorf("lock the state directory %s: %w", d.Path, err)
	}
	d.lock = f
	return nil
}

// Close gives the lock back.
func (d *Dir) Close() {
	if d.lock != nil {
		d.lock.Close()
	}
}

func (d *Dir) load() error {
	if err := ReadIdentity(d.Path, &d.Identity); err != nil {
		return err
	}
	id, err := pki.LoadIdentity(d.Path)
	if err != nil {
		return err
	}
	d.PKI = id
	if want, err := d.Identity.ID(); err != nil || id.Subject.ID != want || id.Subject.ClusterID != d.Identity.ClusterID {
		return fmt.Errorf("%s: the certificate and identity.json name different members: the directory was put together from two; restore it whole, or join anew", d.Path)
	}
	switch ca, err := pki.LoadAuthority(d.Path, d.Identity.ClusterID); {
	case err == nil:
		d.CA = ca
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	if d.Boot, err = bootID(); err != nil {
		return err
	}
	return d.nextIncarnation()
}

// ReadIdentity reads identity.json of a state directory that need not be opened.
func ReadIdentity(path string, into *Identity) error {
	b, err := os.ReadFile(filepath.Join(path, "identity.json"))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is not a state directory: make one with hanode init, or join a cluster with hanode join", path)
	}
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if err := json.Unmarshal(b, into); err != nil || into.ClusterID == "" || into.NodeID == "" {
		return fmt.Errorf("%s/identity.json is damaged (%v): restore it from a backup, or join this machine anew under a new token", path, err)
	}
	return nil
}

// nextIncarnation makes this start durable.
func (d *Dir) nextIncarnation() error {
	file := filepath.Join(d.Path, "incarnation")
	n := uint64(0)
	b, err := os.ReadFile(file)
	if err == nil {
		text, sum, ok := strings.Cut(strings.TrimSpace(string(b)), " ")
		n, err = strconv.ParseUint(text, 10, 64)
		if err != nil || !ok || sum != checkDigits(text) {
			return fmt.Errorf("%s is damaged: this member cannot know which of its promises were its last; take it out and join it anew (hanode member replace)", file)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read the incarnation: %w", err)
	} else {
		return fmt.Errorf("%s is missing although this member has run before: restore it, or join this member anew (hanode member replace)", file)
	}
	n++
	d.Inc = cluster.Incarnation(n)
	return writeIncarnation(d.Path, n)
}

func writeIncarnation(dir string, n uint64) error {
	text := strconv.FormatUint(n, 10)
	if err := pki.WriteSecret(filepath.Join(dir, "incarnation"), []byte(text+" "+checkDigits(text)+"\n")); err != nil {
		return fmt.Errorf("make this start durable: %w", err)
	}
	return nil
}

// begunFile says that this member has a Raft log, from before it first spoke to anybody.
const begunFile = "raft-begun"

// checkLog refuses a member whose Raft log is gone: with an empty one it would vote again where it has voted, and for anybody.
func (d *Dir) checkLog() error {
	if _, err := os.Stat(filepath.Join(d.Path, begunFile)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	file := filepath.Join(d.Path, "raft", "raft.db")
	if st, err := os.Stat(file); err == nil && st.Size() > 0 {
		return nil
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look at the Raft log: %w", err)
	}
	return fmt.Errorf("%s is missing or empty although this member has run before: it cannot know how it voted; put %s aside and let this machine join as a new member (hanode member replace %s)",
		file, d.Path, d.Identity.Name)
}

// logBegun remembers that there is a log.
func (d *Dir) logBegun() error {
	file := filepath.Join(d.Path, begunFile)
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	return pki.WriteSecret(file, []byte("raft/raft.db was made\n"))
}

// checkDigits is a small checksum (FNV-1a, 32 bits) against torn or flipped digits.
func checkDigits(s string) string {
	h := uint32(2166136261)
	for i := 0; i < len(s); i++ {
		h = (h ^ uint32(s[i])) * 16777619
	}
	return fmt.Sprintf("%08x", h)
}

func bootID() (cluster.BootID, error) {
	var out cluster.BootID
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return out, fmt.Errorf("read the boot id: %w", err)
	}
	id, err := cluster.ParseNodeID(strings.ReplaceAll(strings.TrimSpace(string(b)), "-", ""))
	if err != nil {
		return out, fmt.Errorf("read the boot id: %w", err)
	}
	return cluster.BootID(id), nil
}

// Peers are the members that the directory remembers.
func (d *Dir) Peers() []Peer {
	var out []Peer
	if b, err := os.ReadFile(filepath.Join(d.Path, "peers.json")); err == nil {
		_ = json.Unmarshal(b, &out) // only a hint where to begin
	}
	return out
}

// SavePeers remembers the members for the next start.
func (d *Dir) SavePeers(peers []Peer) error {
	return writeJSON(filepath.Join(d.Path, "peers.json"), peers)
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return pki.WriteSecret(path, append(b, '\n'))
}
