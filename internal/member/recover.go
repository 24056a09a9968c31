package member

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/raft"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/pki"
)

// recoverFile holds the order to fork the cluster to this member until it is carried out; recoverDir the new cluster's identity until it is in force.
const (
	recoverFile = "recover.json"
	recoverDir  = "recover"
)

// RecoverOrder forks the cluster to one member whose quorum is lost for good. Whoever gives it has made sure of that, and that no other member runs.
type RecoverOrder struct {
	ClusterID string   `json:"cluster_id"` // of the new cluster
	Off       []string `json:"off"`
	Who       string   `json:"who"`
	Reason    string   `json:"reason"`
	At        int64    `json:"at"`
	GossipKey []byte   `json:"gossip_key"`
}

// OrderRecover makes the order durable; FinishRecover carries it out when no daemon runs on the directory. It returns the new cluster's id.
func (d *Dir) OrderRecover(off []string, who, reason string) (string, error) {
	o := RecoverOrder{ClusterID: pki.NewClusterID(), Off: off, Who: who, Reason: reason, At: time.Now().UnixMilli(), GossipKey: newGossipKey()}
	return o.ClusterID, writeJSON(filepath.Join(d.Path, recoverFile), o)
}

// FinishRecover carries out an order to fork, if there is one. It may be interrupted at any point and is then finished at the next start: the log first, then the
// identity, last the order is taken away.
func FinishRecover(path string) (done bool, err error) {
	var o RecoverOrder
	b, err := os.ReadFile(filepath.Join(path, recoverFile))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &o)
	}
	if err != nil || o.ClusterID == "" {
		return false, fmt.Errorf("%s/%s cannot be read (%v): the cluster was not forked; remove the file to leave things as they are, and order it again", path, recoverFile, err)
	}
	d := &Dir{Path: path}
	if err := d.takeLock(); err != nil {
		return false, err
	}
	defer d.Close()
	if err := d.recover(&o); err != nil {
		return false, fmt.Errorf("fork the cluster to this member: %w", err)
	}
	return true, nil
}

func (d *Dir) recover(o *RecoverOrder) error {
	var ident Identity
	if err := ReadIdentity(d.Path, &ident); err != nil {
		return err
	}
	id, err := ident.ID()
	if err != nil {
		return err
	}
	staged := filepath.Join(d.Path, recoverDir)
	if err := d.stage(o, &ident, id, staged); err != nil {
		return err
	}
	if ident.ClusterID != o.ClusterID {
		cmd := &state.Command{At: o.At, Who: o.Who, Reason: o.Reason, Fork: &state.Fork{ClusterID: o.ClusterID, Keep: id, Off: o.Off, GossipKey: o.GossipKey},
			Decision: &state.Decision{Kind: "recover", OrderedBy: o.Who, Reason: o.Reason, To: ident.Name, Outcome: "done", Lost: "what only the other members had",
				Sentence: fmt.Sprintf("the majority was lost for good: %s forked the cluster to %s", o.Who, ident.Name)}}
		m := &forkMachine{st: new(state.State)}
		if err := raft.Recover(raft.Fork{Dir: filepath.Join(d.Path, "raft"), ServerID: cluster.ServerID(ident.Name, id), OldClusterID: ident.ClusterID, NewClusterID: o.ClusterID,
			FSM: m, Command: cmd.Encode()}); err != nil {
			return err
		}
		if m.err != nil {
			return m.err
		}
	}
	for _, name := range []string{"ca.key", "ca.crt", "node.key", "node.crt"} {
		b, err := os.ReadFile(filepath.Join(staged, name))
		if err == nil {
			err = pki.WriteSecret(filepath.Join(d.Path, name), b)
		}
		if err != nil {
			return fmt.Errorf("put the new cluster's identity in force: %w", err)
		}
	}
	if err := d.SavePeers(nil); err != nil {
		return err
	}
	ident.ClusterID, ident.First = o.ClusterID, false
	if err := writeJSON(filepath.Join(d.Path, "identity.json"), ident); err != nil {
		return err
	}
	_ = os.RemoveAll(staged) // it holds nothing that is not in force now
	if err := os.Remove(filepath.Join(d.Path, recoverFile)); err != nil {
		return err
	}
	return nil
}

// stage makes the new cluster's authority, and this member's identity under it, once.
func (d *Dir) stage(o *RecoverOrder, ident *Identity, id cluster.NodeID, into string) error {
	if have, err := pki.LoadIdentity(into); err == nil && have.Subject.ClusterID == o.ClusterID {
		return nil
	}
	if err := os.MkdirAll(into, 0o700); err != nil {
		return err
	}
	now := time.Now()
	ca, err := pki.NewAuthority(o.ClusterID, now)
	if err != nil {
		return err
	}
	key := pki.NewKey()
	sub := pki.Subject{ClusterID: o.ClusterID, Role: cluster.RoleNode, Name: ident.Name, ID: id}
	csr, err := pki.NewRequest(key, sub)
	if err != nil {
		return err
	}
	cert, err := ca.Sign(csr, sub, now)
	if err != nil {
		return err
	}
	own, err := pki.NewIdentity(cert, key, []*x509.Certificate{ca.Cert})
	if err != nil {
		return err
	}
	return errors.Join(ca.Save(into), own.Save(into))
}

// forkMachine is the replicated state alone: what is decided upon it is for the daemon that starts afterwards.
type forkMachine struct {
	st  *state.State
	err error
}

func (f *forkMachine) Apply(index uint64, data []byte) any {
	cmd, err := state.Decode(data)
	if err != nil {
		f.err = errors.Join(f.err, fmt.Errorf("log index %d: %w", index, err))
		return nil
	}
	o, err := f.st.Apply(index, cmd)
	if cmd.Fork != nil {
		err = errors.Join(err, o.Err())
	}
	f.err = errors.Join(f.err, err)
	return o
}

func (f *forkMachine) Voters(_ uint64, servers []hraft.Server) {
	var voters []string
	for _, s := range servers {
		if s.Suffrage == hraft.Voter {
			voters = append(voters, string(s.ID))
		}
	}
	f.st.VotersChanged(voters)
}

func (f *forkMachine) Snapshot() ([]byte, error) {
	if f.err != nil {
		return nil, f.err // nothing is written then
	}
	return f.st.Snapshot(), nil
}

func (f *forkMachine) Restore(b []byte) error {
	st, err := state.Restore(b)
	if err == nil {
		f.st = st
	}
	return err
}
