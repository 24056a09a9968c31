// Package witnesswire joins the witness's commands (internal/witnesscmd) with the witness itself (internal/witness), for both programs
// that offer them. It holds nothing but the translation between the two.
package witnesswire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/member"
	"github.com/hanode/hanode/internal/witness"
	"github.com/hanode/hanode/internal/witnesscmd"
)

// Funcs is what the witness's commands do.
func Funcs() witnesscmd.Funcs {
	return witnesscmd.Funcs{Join: join, Run: run, Status: status, Leave: leave}
}

func join(ctx context.Context, o api.JoinOptions, _ api.Progress) (*api.JoinResult, error) {
	id, err := witness.Join(ctx, o.DataDir, member.JoinOptions{Token: o.Token, Name: o.Name, Role: cluster.RoleWitness, Site: o.Site, Advertise: o.Advertise, Links: o.Links})
	if err != nil {
		return nil, api.Errorf(api.CodeRefused, "%v", err)
	}
	return &api.JoinResult{Name: id.Name, Role: id.Role, NodeID: id.NodeID, Cluster: id.Cluster, ClusterID: id.ClusterID, Advertise: id.Advertise[0], DataDir: o.DataDir,
		Next: []string{"witness run --data " + o.DataDir}}, nil
}

func run(ctx context.Context, o api.RunOptions) error {
	w, err := witness.New(o.DataDir, o.Version.Version, o.Log)
	if err != nil {
		return api.Errorf(api.CodeFailed, "%v", err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.Run(gctx) })
	g.Go(func() error { return serve(gctx, w, o) })
	return g.Wait()
}

// serve answers each connection to the witness's socket with its status, one JSON object.
func serve(ctx context.Context, w *witness.Witness, o api.RunOptions) error {
	if o.Socket == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(o.Socket), 0o755); err != nil {
		return fmt.Errorf("the directory of the socket: %w", err)
	}
	_ = os.Remove(o.Socket)
	l, err := net.Listen("unix", o.Socket)
	if err != nil {
		return fmt.Errorf("the witness's socket: %w", err)
	}
	defer os.Remove(o.Socket)
	if err := os.Chmod(o.Socket, 0o600); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_ = json.NewEncoder(c).Encode(live(w, o))
		c.Close()
	}
}

func live(w *witness.Witness, o api.RunOptions) *api.WitnessStatus {
	out := &api.WitnessStatus{At: api.At(time.Now()), Running: true, Version: o.Version.Version, DataDir: o.DataDir}
	for _, s := range w.List() {
		c := api.WitnessCluster{Name: s.Identity.Cluster, ID: s.Identity.ClusterID, Member: s.Identity.Name, State: s.State, Note: s.Note, Since: api.At(s.Since)}
		if len(s.Identity.Advertise) > 0 {
			out.Listen = s.Identity.Advertise[0]
		}
		if s.Member != nil {
			_ = s.Member.On(func(k *core.Core) { describe(&c, k) })
		}
		out.Clusters = append(out.Clusters, c)
	}
	return out
}

func describe(c *api.WitnessCluster, k *core.Core) {
	st := k.State()
	c.Votes.Heard, c.Votes.Total, c.Votes.Needed, c.Quorum = k.Quorum()
	c.Vote = st.Group.IsVoter(k.Self())
	if n := k.Leader(); n != 0 {
		c.Leader = st.MemberName(n)
	}
	if !k.Joined() {
		c.State = "joining"
	}
	for i := range st.Members {
		m := &st.Members[i]
		if m.Removed {
			continue
		}
		state := api.MemberUp
		if m.No != k.Self() && !k.Alive(m.No) {
			state = api.MemberSilent
		}
		c.Members = append(c.Members, api.Member{Name: m.Name, Role: m.Role.String(), Site: m.Site, State: state, Vote: st.Group.IsVoter(m.No), Leader: k.Leader() == m.No, Version: m.Version})
	}
}

func status(ctx context.Context, socket, dataDir string) (*api.WitnessStatus, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err == nil {
		defer c.Close()
		out := new(api.WitnessStatus)
		if err := json.NewDecoder(io.LimitReader(c, api.MaxReply)).Decode(out); err == nil {
			return out, nil
		}
	}
	dirs, err := witness.Dirs(dataDir)
	if err != nil {
		return nil, api.Errorf(api.CodeFailed, "%v", err)
	}
	out := &api.WitnessStatus{At: api.At(time.Now()), DataDir: dataDir}
	for _, d := range dirs {
		var id member.Identity
		if err := member.ReadIdentity(d, &id); err != nil {
			out.Clusters = append(out.Clusters, api.WitnessCluster{ID: filepath.Base(d), State: "failed", Note: err.Error()})
			continue
		}
		out.Clusters = append(out.Clusters, api.WitnessCluster{Name: id.Cluster, ID: id.ClusterID, Member: id.Name, State: "stopped"})
	}
	return out, nil
}

// leave takes the witness's directory of one cluster away. The cluster is told by hanode member remove on a node, which needs no witness.
func leave(ctx context.Context, o api.WitnessLeave, _ api.Progress) (*api.Outcome, error) {
	dirs, err := witness.Dirs(o.DataDir)
	if err != nil {
		return nil, api.Errorf(api.CodeFailed, "%v", err)
	}
	for _, d := range dirs {
		var id member.Identity
		if err := member.ReadIdentity(d, &id); err != nil || (id.Cluster != o.Cluster && id.ClusterID != o.Cluster) {
			continue
		}
		open, err := member.OpenDir(d)
		if err != nil {
			return nil, api.Refusal("leave refused", err.Error(), "stop the witness first; then: witness leave "+o.Cluster)
		}
		open.Close()
		to := d + ".left-" + time.Now().UTC().Format("20060102T150405")
		if o.Wipe {
			err = os.RemoveAll(d)
		} else {
			err = errors.Join(os.Remove(filepath.Join(d, "lock")), os.Rename(d, to))
		}
		if err != nil {
			return nil, api.Errorf(api.CodeFailed, "%v", err)
		}
		return &api.Outcome{Text: fmt.Sprintf("%s no longer votes in %s; tell the cluster: hanode member remove %s", id.Name, id.Cluster, id.Name), Next: []string{"hanode member remove " + id.Name}}, nil
	}
	return nil, api.Errorf(api.CodeUsage, "this witness does not vote in a cluster %q: witness list", o.Cluster)
}
