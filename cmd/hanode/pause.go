package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

type pauseOptions struct {
	orderFlags
	all  bool
	time time.Duration
}

func pauseCmd(e *env) *cobra.Command {
	var o pauseOptions
	cmd := &cobra.Command{
		Use:   "pause SERVICE | --all",
		Short: "stop all automatic actions for a service, for a time",
		Long: `Stops all automatic actions for a service: it is neither restarted nor moved. The service goes on, the gate still
works, and the pause ends by itself; until then status and alarms remind of it.`,
		Example:           "  hanode pause db --for 30m --reason 'vacuum full'",
		Args:              serviceOrAll(&o.all),
		ValidArgsFunction: e.completeServices,
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return runPause(ctx, e, optional(args), o) }),
	}
	o.register(cmd, time.Minute)
	cmd.Flags().BoolVar(&o.all, "all", false, "all services")
	cmd.Flags().DurationVar(&o.time, "for", time.Hour, "how long")
	return cmd
}

func runPause(ctx context.Context, e *env, service string, o pauseOptions) error {
	if o.time < time.Second || o.time > 7*24*time.Hour {
		return api.Errorf(api.CodeUsage, "--for %v: choose 1s to 168h; a pause must not be forgotten", o.time)
	}
	b, hangUp := e.daemon()
	defer hangUp()
	name := orAll(service, o.all)
	return e.carryOut(ctx, order{flags: o.orderFlags, command: "hanode pause " + name + " --for " + o.time.String(), next: []string{"hanode resume " + name},
		do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			return b.Pause(ctx, api.PauseRequest{Order: ord, Service: service, All: o.all, ForMs: api.Ms(o.time)}, p)
		}})
}

func resumeCmd(e *env) *cobra.Command {
	var o pauseOptions
	cmd := &cobra.Command{
		Use:               "resume SERVICE | --all",
		Short:             "end a pause",
		Args:              serviceOrAll(&o.all),
		ValidArgsFunction: e.completeServices,
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return runResume(ctx, e, optional(args), o) }),
	}
	o.register(cmd, time.Minute)
	cmd.Flags().BoolVar(&o.all, "all", false, "all services")
	return cmd
}

func runResume(ctx context.Context, e *env, service string, o pauseOptions) error {
	b, hangUp := e.daemon()
	defer hangUp()
	return e.carryOut(ctx, order{flags: o.orderFlags, command: "hanode resume " + orAll(service, o.all), next: []string{"hanode status"},
		do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			return b.Resume(ctx, api.PauseRequest{Order: ord, Service: service, All: o.all}, p)
		}})
}

func orAll(service string, all bool) string {
	if all {
		return "--all"
	}
	return service
}
