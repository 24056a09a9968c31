package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/witnesscmd"
)

type joinOptions struct {
	api.JoinOptions
	unit    bool
	timeout time.Duration
}

func joinCmd(e *env) *cobra.Command {
	var o joinOptions
	cmd := &cobra.Command{
		Use:   "join --token TOKEN --name NAME --advertise IP[:PORT]",
		Short: "make this machine a node of a cluster",
		Long: `Makes this machine a node of a cluster. The token comes from "hanode token create" and works once. Votes go from 1
to 3 together when the third voter is there and has caught up; until then "hanode status" says that any loss stops all.
Refused (exit status 3): a wrong CA, a taken name, a used or expired token, a clock or version that cannot work, a port
that does not answer in both directions.`,
		Args: cli.Args(),
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return runJoin(ctx, e, o) }),
	}
	witnesscmd.JoinFlags(cmd, &o.JoinOptions, dataDir)
	cmd.Flags().BoolVar(&o.unit, "unit", false, "write and name the systemd unit")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 2*time.Minute, "give up after this time")
	return cmd
}

func runJoin(ctx context.Context, e *env, o joinOptions) error {
	if e.joinNode == nil {
		return unwired("join a cluster")
	}
	if err := witnesscmd.ReadToken(e.Env, &o.JoinOptions); err != nil {
		return err
	}
	o.Role = "node"
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	res, err := e.joinNode(ctx, o.JoinOptions, e.Progress())
	if err != nil {
		return err
	}
	start, unit, err := nodeUnit(o.unit, o.DataDir)
	if err != nil {
		return err
	}
	res.Unit = unit
	if len(res.Next) == 0 {
		res.Next = []string{start, "hanode status"}
	}
	return e.Print(res, func(w io.Writer) {
		fmt.Fprintf(w, "%s has joined the cluster %s", res.Name, res.Cluster)
		if res.Decision != "" {
			fmt.Fprintf(w, " (%s)", res.Decision)
		}
		fmt.Fprintln(w)
		if !res.Vote {
			e.Say("it has no vote yet: votes go from 1 to 3 together when the third voter has joined")
		}
		e.Next(res.Next...)
	})
}
