package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

func switchoverCmd(e *env) *cobra.Command {
	var o moveOptions
	cmd := &cobra.Command{
		Use:   "switchover SERVICE",
		Short: "move a service as planned, without loss",
		Long: `Moves a service to another node as planned, without loss: writes are held, everything is confirmed by the
target, then it serves. Refused (exit status 3) with the remedy if the target is not in sync, not reachable or unwell.
An error before the new epoch is granted puts everything back.`,
		Example:           "  hanode switchover db --plan\n  hanode switchover db --yes --reason 'kernel upgrade of a'",
		Args:              cli.Args("SERVICE"),
		ValidArgsFunction: e.completeServices,
		RunE: cli.Run(func(ctx context.Context, args []string) error {
			return runMove(ctx, e, "switchover", args[0], o, func(b api.Backend) mover { return b.Switchover })
		}),
	}
	moveFlags(cmd, &o)
	toFlag(cmd, e, &o.to)
	return cmd
}
