package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

func serviceCmd(e *env) *cobra.Command {
	return cli.Group("service", "start, stop, restart, clear a service",
		serviceActionCmd(e, api.ActionStart, askNever, "start a service that was stopped",
			"Starts a service that an operator had stopped, on the best node that is in sync."),
		serviceActionCmd(e, api.ActionStop, askAlways, "stop a service on all nodes, until service start",
			"Stops a service on all nodes. It stays stopped over reboots until \"hanode service start\"."),
		serviceActionCmd(e, api.ActionRestart, askAlways, "restart a service's processes where they are",
			"Restarts a service's processes on its active node; it is not moved, and no failover is counted."),
		serviceActionCmd(e, api.ActionClear, askNever, "forget a service's failures, so that it is held or failed no more",
			"Forgets a service's failures: the count of failovers and restarts begins anew, and a held or failed service is run again."))
}

func serviceActionCmd(e *env, action string, ask asking, short, long string) *cobra.Command {
	var o orderFlags
	cmd := &cobra.Command{
		Use:               action + " SERVICE",
		Short:             short,
		Long:              long,
		Args:              cli.Args("SERVICE"),
		ValidArgsFunction: e.completeServices,
		RunE: cli.Run(func(ctx context.Context, args []string) error {
			return runService(ctx, e, action, args[0], ask, o)
		}),
	}
	o.register(cmd, moveTimeout)
	o.registerBase(cmd)
	return cmd
}

func runService(ctx context.Context, e *env, action, service string, ask asking, o orderFlags) error {
	b, hangUp := e.daemon()
	defer hangUp()
	next := "hanode wait " + service + " --for active"
	if action == api.ActionStop {
		next = "hanode service start " + service
	}
	return e.carryOut(ctx, order{flags: o, asking: ask, what: action + " " + service, command: "hanode service " + action + " " + service,
		next: []string{next}, do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			return b.Service(ctx, api.ServiceRequest{Order: ord, Service: service, Action: action}, p)
		}})
}
