package member

import (
	"archive/tar"
	"compress/gzip"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/raft"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/pki"
)

// restoredFile holds what a new cluster takes over from a backup, until its first entry is in the log.
const restoredFile = "restored.pb"

// Bounds of what is read from a backup.
const (
	maxBackupFile = 64 << 20
	backupFormat  = 1
)

// backup is what Restore needs of one.
type backup struct {
	Format    int    `json:"format"`
	Cluster   string `json:"cluster"`
	ClusterID string `json:"cluster_id"`
	At        string `json:"at"`
	state     *state.State
	caKey     []byte
	ca        *x509.Certificate
}

func readBackup(file string) (*backup, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	bad := func(err error) error {
		return fmt.Errorf("%s is no whole backup: %w; take another one (hanode backup writes them)", file, err)
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, bad(err)
	}
	files := map[string][]byte{}
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, bad(err)
		}
		b, err := io.ReadAll(io.LimitReader(t, maxBackupFile+1))
		if err != nil {
			return nil, bad(err)
		}
		if len(b) > maxBackupFile || len(files) > 64 {
			return nil, bad(fmt.Errorf("%s is larger than %d bytes", h.Name, maxBackupFile))
		}
		files[path.Base(h.Name)] = b
	}
	out := new(backup)
	for _, need := range []string{"backup.json", "state.pb", pki.CAKeyFile, pki.CAFile} {
		if files[need] == nil {
			return nil, bad(fmt.Errorf("it has no %s", need))
		}
	}
	if err := json.Unmarshal(files["backup.json"], out); err != nil {
		return nil, bad(err)
	}
	if out.Format != backupFormat {
		return nil, fmt.Errorf("%s has the format %d and this version reads %d: use the version that wrote it", file, out.Format, backupFormat)
	}
	if out.state, err = state.Restore(files["state.pb"]); err != nil {
		return nil, bad(err)
	}
	cas, err := pki.DecodeCerts(files[pki.CAFile])
	if err != nil {
		return nil, bad(err)
	}
	out.caKey, out.ca = files[pki.CAKeyFile], cas[0]
	return out, nil
}

// RestoreOptions make a cluster anew from a backup, with this machine as its first member.
type RestoreOptions struct {
	InitOptions
	File string
}

// Restore makes a state directory for the first member of a cluster that takes over from a backup: its name, authority, spec, and everything that
// only grows. It is another cluster with an id of its own, so that no old member can have part in it. It starts nothing.
func Restore(o RestoreOptions) (*Identity, *state.Restored, error) {
	addrs, err := Addresses(o.Advertise, o.Links)
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(pki.CheckName(o.Name), CheckFresh(o.Dir)); err != nil {
		return nil, nil, err
	}
	b, err := readBackup(o.File)
	if err != nil {
		return nil, nil, err
	}
	clusterID, node, key := pki.NewClusterID(), pki.NewNodeID(), pki.NewKey()
	ca, err := pki.ParseAuthority(clusterID, b.caKey, b.ca)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", o.File, err)
	}
	sub := pki.Subject{ClusterID: clusterID, Role: cluster.RoleNode, Name: o.Name, ID: node}
	csr, err := pki.NewRequest(key, sub)
	if err != nil {
		return nil, nil, err
	}
	cert, err := ca.Sign(csr, sub, time.Now())
	if err != nil {
		return nil, nil, err
	}
	id, err := pki.NewIdentity(cert, key, []*x509.Certificate{ca.Cert})
	if err != nil {
		return nil, nil, err
	}
	r := b.state.Restore()
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the state directory: %w", err)
	}
	if err := pki.WriteSecret(filepath.Join(o.Dir, restoredFile), r.Encode()); err != nil {
		return nil, nil, err
	}
	ident := Identity{ClusterID: clusterID, Cluster: b.Cluster, Name: o.Name, Role: pki.RoleWord(cluster.RoleNode), Site: o.Site, NodeID: node.String(), Advertise: addrStrings(addrs), First: true}
	if err := CreateDir(o.Dir, ident, id, ca, nil); err != nil {
		return nil, nil, err
	}
	return &ident, r, raft.Bootstrap(filepath.Join(o.Dir, "raft"), clusterID, cluster.ServerID(o.Name, node))
}

// restored reads what Restore left for the first entry of the log; nil: this cluster is not made from a backup.
func (m *Member) restored() (*state.Restored, error) {
	b, err := os.ReadFile(filepath.Join(m.cfg.Dir.Path, restoredFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return state.DecodeRestored(b)
}

// founded forgets it.
func (m *Member) founded() {
	if err := os.Remove(filepath.Join(m.cfg.Dir.Path, restoredFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		m.log.Warn("what was taken over from a backup stays in the state directory", "err", err)
	}
}
