package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/witnesscmd"
)

type runOptions struct {
	api.RunOptions
	level string
}

func runCmd(e *env) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "run the node's daemon",
		Long: `Runs the node's daemon until it is told to stop (SIGTERM): it hands its services over first. The log goes to
stderr.`,
		Args: cli.Args(),
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return runRun(ctx, e, o) }),
	}
	cmd.Flags().StringVar(&o.DataDir, "data", dataDir, "state directory")
	cmd.Flags().StringVar(&o.Group, "group", api.DefaultGroup, "group of the operators")
	cmd.Flags().StringVar(&o.Metrics, "metrics", "", "loopback address, as 127.0.0.1:9743, on which HTTP serves /metrics for Prometheus; the socket always does")
	cmd.Flags().StringVar(&o.Health, "health", "", "address, as 127.0.0.1:9744, on which HTTP answers read-only: /service/NAME/active and /standby (200 or 503), /status, /metrics")
	cmd.Flags().StringVar(&o.level, "log", "info", "debug, info, warn or error")
	return cmd
}

func runRun(ctx context.Context, e *env, o runOptions) error {
	if e.runNode == nil {
		return unwired("run a node")
	}
	log, err := witnesscmd.Logger(e.Stderr, o.level)
	if err != nil {
		return err
	}
	o.Log, o.Socket, o.Version = log, e.socket, e.Version
	return e.runNode(ctx, o.RunOptions)
}
