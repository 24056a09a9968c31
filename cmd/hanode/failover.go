package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

func failoverCmd(e *env) *cobra.Command {
	var o moveOptions
	cmd := &cobra.Command{
		Use:   "failover SERVICE",
		Short: "move a service off an active that is unwell, without loss",
		Long: `Moves a service off an active that is unwell. It never loses anything acknowledged: first it tries to reach and
repair the active, then to move cleanly, else a member that is in sync takes over once the active cannot serve any more.
If no member is in sync it is refused (exit status 3); "hanode force" is the way then.`,
		Args:              cli.Args("SERVICE"),
		ValidArgsFunction: e.completeServices,
		RunE: cli.Run(func(ctx context.Context, args []string) error {
			return runMove(ctx, e, "failover", args[0], o, func(b api.Backend) mover { return b.Failover })
		}),
	}
	moveFlags(cmd, &o)
	toFlag(cmd, e, &o.to)
	return cmd
}
