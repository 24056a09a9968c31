package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

type backupOptions struct {
	out     string
	timeout time.Duration
}

func backupCmd(e *env) *cobra.Command {
	var o backupOptions
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "write the cluster's state, spec and authority into one file",
		Long: `Writes what a cluster is made anew from into one gzipped tar: the agreed state, the spec as it was written, and the
key of the cluster's authority. Whoever has that key can join: keep the file as you keep root's password. It holds no
data of services. One from any node is as good as another.`,
		Example: "  hanode backup -o /root/shop.hanode-backup",
		Args:    cli.Args(),
		RunE:    cli.Run(func(ctx context.Context, _ []string) error { return runBackup(ctx, e, o) }),
	}
	cmd.Flags().StringVarP(&o.out, "output", "o", "", "the file; - is stdout (default hanode-backup-TIME.tar.gz)")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Minute, "give up after this time")
	return cmd
}

func runBackup(ctx context.Context, e *env, o backupOptions) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	b, hangUp := e.daemon()
	defer hangUp()
	if o.out == "-" {
		return b.Backup(ctx, e.Stdout)
	}
	if o.out == "" {
		o.out = "hanode-backup-" + e.Now().UTC().Format("20060102-150405") + ".tar.gz"
	}
	f, err := os.OpenFile(o.out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return &api.Error{Code: api.CodeUsage, What: err.Error(), Do: "choose another file with --output"}
	}
	if err := errors.Join(b.Backup(ctx, f), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(o.out))
	}
	st, err := os.Stat(o.out)
	if err != nil {
		return err
	}
	path, err := filepath.Abs(o.out)
	if err != nil {
		return err
	}
	return e.Print(map[string]any{"file": path, "size_bytes": st.Size()}, func(w io.Writer) {
		fmt.Fprintln(w, path)
		e.Say("it holds the key of the cluster's authority: keep it secret, and away from the cluster's machines")
		e.Next("hanode restore --help     says what it is good for")
	})
}

type restoreOptions struct {
	api.RestoreOptions
	unit    bool
	yes     bool
	timeout time.Duration
}

func restoreCmd(e *env) *cobra.Command {
	var o restoreOptions
	cmd := &cobra.Command{
		Use:   "restore --name NAME --advertise IP[:PORT] FILE",
		Short: "make the cluster anew from a backup, with this machine as its first node",
		Long: `Makes the cluster anew from a backup, with this machine as its first node, into an empty state directory. It is for
the case that every member is gone for good; while one lives, join it, or use "hanode recover".

The new cluster has the old name, authority and spec, and an id of its own, so that no old member can have part in it.
Nothing goes back: epochs go on far above those of the backup, decisions and spec versions count on. Members are joined
anew. Services are stopped until "hanode service start": first make sure that the old members are off, and that the
data that a service needs are on this node.`,
		Example: "  hanode restore --name a --advertise 10.0.0.11 --unit /root/shop.hanode-backup",
		Args:    cli.Args("FILE"),
		RunE:    cli.Run(func(ctx context.Context, args []string) error { return runRestore(ctx, e, args[0], o) }),
	}
	fl := cmd.Flags()
	fl.StringVar(&o.Name, "name", "", "name of this member")
	fl.StringVar(&o.Advertise, "advertise", "", "address where the others reach it, IP or IP:PORT (port 7400)")
	fl.StringArrayVar(&o.Links, "link", nil, "a further address of this member, for one more path; may be repeated")
	fl.StringVar(&o.Site, "site", "", "label of its place; members of one site share its fate")
	fl.StringVar(&o.DataDir, "data", dataDir, "state directory; it must be empty")
	fl.BoolVar(&o.unit, "unit", false, "write and name the systemd unit")
	fl.BoolVar(&o.yes, "yes", false, "do not ask: all old members are off")
	fl.DurationVar(&o.timeout, "timeout", time.Minute, "give up after this time")
	for _, n := range []string{"name", "advertise"} {
		_ = cmd.MarkFlagRequired(n) // the flag was defined above
	}
	return cmd
}

func runRestore(ctx context.Context, e *env, file string, o restoreOptions) error {
	if e.restoreNode == nil {
		return unwired("restore a cluster")
	}
	if err := e.MustAgree(o.yes, "make the cluster anew: every old member is off, and stays off"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	o.File = file
	res, err := e.restoreNode(ctx, o.RestoreOptions, e.Progress())
	if err != nil {
		return err
	}
	start, unit, err := nodeUnit(o.unit, o.DataDir)
	if err != nil {
		return err
	}
	res.Unit = unit
	res.Next = []string{start, "hanode token create", "hanode join --token TOKEN --name b --advertise IP     on the second node, with an empty state directory"}
	if len(res.Stopped) > 0 {
		res.Next = append(res.Next, "hanode service start "+res.Stopped[0]+"     when its old active is off for certain")
	}
	return e.Print(res, func(w io.Writer) {
		fmt.Fprintf(w, "cluster %s made anew (%s) with spec version %d; this machine is its node %s\n", res.Cluster, res.ClusterID, res.SpecVersion, res.Name)
		if len(res.Stopped) > 0 {
			e.Say("stopped until you start them: %s", strings.Join(res.Stopped, ", "))
		}
		e.Next(res.Next...)
	})
}
