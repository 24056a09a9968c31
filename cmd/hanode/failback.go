package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

func failbackCmd(e *env) *cobra.Command {
	var o moveOptions
	cmd := &cobra.Command{
		Use:               "failback SERVICE | --all",
		Short:             "move services back to their preferred node, without loss",
		Long:              "Moves a service, or all, back to the first node of its list that can take it, as a switchover does.",
		ValidArgsFunction: e.completeServices,
		Args:              serviceOrAll(&o.all),
		RunE: cli.Run(func(ctx context.Context, args []string) error {
			return runMove(ctx, e, "failback", optional(args), o, func(b api.Backend) mover { return b.Failback })
		}),
	}
	moveFlags(cmd, &o)
	cmd.Flags().BoolVar(&o.all, "all", false, "all services")
	cmd.Flags().BoolVar(&o.waitSync, "wait-sync", false, "wait until the preferred node is in sync, instead of refusing")
	return cmd
}
