package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

func alertCmd(e *env) *cobra.Command {
	return cli.Group("alert", "try the alerts", alertTestCmd(e))
}

func alertTestCmd(e *env) *cobra.Command {
	var o orderFlags
	cmd := &cobra.Command{
		Use:   "test [ALERT]",
		Short: "tell a trial alarm to an alert of the spec, or to all, from this node",
		Long: `Tells a trial alarm (code "test", severity info), and that it is over, to one alert of the spec or to all, whatever
their severity, and waits for what comes of it. A service's own alert is named SERVICE/ALERT. Every node tells what it
sees itself: test on each. Exit status 1: an alert told nobody.`,
		Args: atMostOne("ALERT"),
		RunE: cli.Run(func(ctx context.Context, args []string) error { return runAlertTest(ctx, e, optional(args), o) }),
	}
	o.register(cmd, 2*time.Minute)
	return cmd
}

func runAlertTest(ctx context.Context, e *env, name string, o orderFlags) error {
	b, hangUp := e.daemon()
	defer hangUp()
	return e.carryOut(ctx, order{flags: o, command: "hanode alert test " + name, next: []string{"hanode alarm list"},
		do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			return b.AlertTest(ctx, api.AlertRequest{Order: ord, Name: name}, p)
		}})
}
