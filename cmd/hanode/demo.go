package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/cli"
)

func demoCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:                "demo [ARGUMENTS]",
		Short:              "show a failover on this machine alone: two nodes and a witness in network namespaces",
		DisableFlagParsing: true,
		RunE: cli.Run(func(ctx context.Context, args []string) error {
			if e.demo == nil {
				return unwired("run the demo")
			}
			return e.demo(ctx, args, e.Stdout, e.Stderr)
		}),
	}
}
