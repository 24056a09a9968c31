package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/member"
	"github.com/hanode/hanode/internal/rt"
)

// Init makes the first member of a new cluster, for the command of that name.
func Init(_ context.Context, o api.InitOptions, _ api.Progress) (*api.InitResult, error) {
	id, err := member.Init(member.InitOptions{Dir: o.DataDir, Name: o.Name, Cluster: orDefault(o.Cluster, "hanode"), Site: orDefault(o.Site, "default"), Advertise: o.Advertise, Links: o.Links})
	if err != nil {
		return nil, api.Errorf(api.CodeRefused, "%v", err)
	}
	fp, err := member.Fingerprint(o.DataDir)
	if err != nil {
		return nil, api.Errorf(api.CodeFailed, "%v", err)
	}
	return &api.InitResult{Name: id.Name, NodeID: id.NodeID, Cluster: id.Cluster, ClusterID: id.ClusterID, Fingerprint: fp, Advertise: id.Advertise[0], DataDir: o.DataDir,
		Next: []string{"hanode run --data " + o.DataDir, "hanode token create --role node", "hanode token create --role witness"}}, nil
}

// Join makes this machine a node of an existing cluster.
func Join(ctx context.Context, o api.JoinOptions, _ api.Progress) (*api.JoinResult, error) {
	id, err := member.Join(ctx, member.JoinOptions{Dir: o.DataDir, Token: o.Token, Name: o.Name, Role: cluster.RoleNode, Site: o.Site, Advertise: o.Advertise, Links: o.Links})
	if err != nil {
		return nil, api.Errorf(api.CodeRefused, "%v", err)
	}
	return &api.JoinResult{Name: id.Name, Role: id.Role, NodeID: id.NodeID, Cluster: id.Cluster, ClusterID: id.ClusterID, Advertise: id.Advertise[0], DataDir: o.DataDir,
		Next: []string{"hanode run --data " + o.DataDir, "hanode status"}}, nil
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// Run is the daemon, for the command of that name.
func Run(ctx context.Context, o api.RunOptions) error {
	if err := checkMetrics(o.Metrics); err != nil {
		return api.Errorf(api.CodeUsage, "%v", err)
	}
	if err := checkHealth(o.Health); err != nil {
		return api.Errorf(api.CodeUsage, "%v", err)
	}
	switch forked, err := member.FinishRecover(o.DataDir); {
	case err != nil:
		return api.Errorf(api.CodeFailed, "%v", err)
	case forked && o.Log != nil:
		o.Log.Warn("the cluster was forked: this node is the only member of a new one")
	}
	n, err := New(Config{Health: o.Health, DataDir: o.DataDir, Socket: o.Socket, Group: o.Group, Version: o.Version.Version, Log: o.Log, Metrics: o.Metrics})
	if err != nil {
		return api.Errorf(api.CodeFailed, "%v", err)
	}
	if err := n.Run(ctx); err != nil || !n.again.Load() {
		return err
	}
	return startAgain()
}

// Wipe waits until the daemon of a data directory has ended, and empties it.
func Wipe(ctx context.Context, dataDir string) error {
	for {
		d, err := member.OpenDir(dataDir)
		if err == nil {
			d.Close()
			break
		}
		if _, e := os.Stat(filepath.Join(dataDir, "identity.json")); errors.Is(e, os.ErrNotExist) {
			return fmt.Errorf("%s is not a state directory; nothing was removed", dataDir)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the daemon of %s has not ended: %w", dataDir, err)
		}
	}
	return os.RemoveAll(dataDir)
}

// saveStatus leaves the last known state for the time when this daemon does not run, and looks whether the witness is there.
func (n *Node) saveStatus(ctx context.Context) error {
	t := rt.NewTicker(2 * time.Second)
	defer t.Stop()
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			t.Next()
		}
		n.watchHeld()
		n.watchMembers()
		if time.Since(began) >= witnessGone {
			n.watchWitness()
		}
		st, err := backend{n}.Status(ctx, api.StatusQuery{Local: true})
		if err == nil {
			err = api.SaveLastStatus(n.dir.Path, st)
		}
		if err != nil && ctx.Err() == nil {
			n.log.Debug("the last known state is not kept", "err", err)
		}
	}
}

// Restore makes a cluster anew from a backup, for the command of that name.
func Restore(_ context.Context, o api.RestoreOptions, _ api.Progress) (*api.RestoreResult, error) {
	id, from, err := member.Restore(member.RestoreOptions{File: o.File, InitOptions: member.InitOptions{Dir: o.DataDir, Name: o.Name, Site: orDefault(o.Site, "default"), Advertise: o.Advertise, Links: o.Links}})
	if err != nil {
		return nil, api.Errorf(api.CodeRefused, "%v", err)
	}
	fp, err := member.Fingerprint(o.DataDir)
	if err != nil {
		return nil, api.Errorf(api.CodeFailed, "%v", err)
	}
	out := &api.RestoreResult{InitResult: api.InitResult{Name: id.Name, NodeID: id.NodeID, Cluster: id.Cluster, ClusterID: id.ClusterID, Fingerprint: fp, Advertise: id.Advertise[0], DataDir: o.DataDir},
		From: from.From, SpecVersion: from.Spec.N, BackupAt: stamp(from.LogTime)}
	for _, s := range from.Services {
		out.Stopped = append(out.Stopped, s.Name)
	}
	return out, nil
}
