package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/ui"
)

type waitOptions struct {
	goal    string
	timeout time.Duration
}

func waitCmd(e *env) *cobra.Command {
	var o waitOptions
	cmd := &cobra.Command{
		Use:               "wait SERVICE --for active|in-sync|protected",
		Short:             "wait until a service is active, in sync or protected",
		Long:              "Waits until a service is active, in sync or protected. Exit status 5: not within --timeout.",
		Example:           "  hanode wait db --for in-sync --timeout 10m && hanode failback db --yes",
		Args:              cli.Args("SERVICE"),
		ValidArgsFunction: e.completeServices,
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return runWait(ctx, e, args[0], o) }),
	}
	goals := []string{api.WaitActive, api.WaitInSync, api.WaitProtected}
	cmd.Flags().StringVar(&o.goal, "for", api.WaitActive, "active, in-sync or protected")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 10*time.Minute, "give up after this time")
	_ = cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions(goals, cobra.ShellCompDirectiveNoFileComp)) // defined above
	return cmd
}

func runWait(ctx context.Context, e *env, service string, o waitOptions) error {
	switch o.goal {
	case api.WaitActive, api.WaitInSync, api.WaitProtected:
	default:
		return api.Errorf(api.CodeUsage, "--for %s: choose active, in-sync or protected", o.goal)
	}
	b, hangUp := e.daemon()
	defer hangUp()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	out, err := b.Wait(ctx, api.WaitRequest{Service: service, For: o.goal}, e.Progress())
	if errors.Is(err, context.DeadlineExceeded) {
		return &api.Error{Code: api.CodeTimeout, What: service + " is not " + o.goal + " after " + o.timeout.String(), Do: "hanode explain " + service}
	}
	if err != nil {
		return err
	}
	if len(out.Next) == 0 {
		out.Next = []string{"hanode status"}
	}
	return e.Print(out, func(w io.Writer) {
		ui.Outcome(w, out, e.Screen())
		e.Next(out.Next...)
	})
}
