package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

type initOptions struct {
	api.InitOptions
	unit    bool
	timeout time.Duration
}

func initCmd(e *env) *cobra.Command {
	var o initOptions
	cmd := &cobra.Command{
		Use:   "init --name NAME --advertise IP[:PORT]",
		Short: "make a new cluster with this machine as its first node",
		Long: `Makes a new cluster with this machine as its first node: the cluster's own CA, the node's identity and an empty
spec. Members talk over one port, 7400 tcp and udp; open it between them. Nothing runs yet afterwards.`,
		Example: "  hanode init --name a --advertise 10.0.0.11 --link 10.1.0.11 --cluster shop --unit",
		Args:    cli.Args(),
		RunE:    cli.Run(func(ctx context.Context, _ []string) error { return runInit(ctx, e, o) }),
	}
	fl := cmd.Flags()
	fl.StringVar(&o.Name, "name", "", "name of this member")
	fl.StringVar(&o.Advertise, "advertise", "", "address where the others reach it, IP or IP:PORT (port 7400)")
	fl.StringArrayVar(&o.Links, "link", nil, "a further address of this member, for one more path; may be repeated")
	fl.StringVar(&o.Cluster, "cluster", "hanode", "name of the cluster")
	fl.StringVar(&o.Site, "site", "", "label of its place; members of one site share its fate")
	fl.StringVar(&o.DataDir, "data", dataDir, "state directory")
	fl.BoolVar(&o.unit, "unit", false, "write and name the systemd unit")
	fl.DurationVar(&o.timeout, "timeout", time.Minute, "give up after this time")
	for _, n := range []string{"name", "advertise"} {
		_ = cmd.MarkFlagRequired(n) // the flag was defined above
	}
	return cmd
}

func runInit(ctx context.Context, e *env, o initOptions) error {
	if e.initNode == nil {
		return unwired("make a cluster")
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	res, err := e.initNode(ctx, o.InitOptions, e.Progress())
	if err != nil {
		return err
	}
	start, unit, err := nodeUnit(o.unit, o.DataDir)
	if err != nil {
		return err
	}
	res.Unit = unit
	if len(res.Next) == 0 {
		res.Next = []string{start, "hanode token create", "hanode join --token TOKEN --name b --advertise IP     on the second node",
			"hanode token create --role witness", "hanode-witness join --token TOKEN --name w --advertise IP     on the witness"}
	}
	return e.Print(res, func(w io.Writer) {
		fmt.Fprintf(w, "cluster %s (%s) made; this machine is its node %s\n", res.Cluster, res.ClusterID, res.Name)
		e.Say("state in %s; members reach it at %s, tcp and udp: open that port between them", res.DataDir, res.Advertise)
		e.Next(res.Next...)
	})
}

// nodeUnit writes the unit if asked to, and returns the command that starts the daemon.
func nodeUnit(write bool, data string) (start, path string, err error) {
	if !write {
		return "hanode run --data " + data + "     or add --unit for systemd", "", nil
	}
	u := cli.Unit{Name: "hanode", Description: "hanode node", Runtime: "hanode", Node: true, Exec: []string{"/usr/bin/hanode", "run", "--data", data}}
	path, err = u.Install("")
	return "systemctl enable --now hanode", path, err
}
