package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/ui"
)

type leaderOptions struct {
	orderFlags
	to string
}

func leaderCmd(e *env) *cobra.Command {
	var o leaderOptions
	cmd := &cobra.Command{
		Use:   "leader",
		Short: "show who leads the group, or hand the leadership over",
		Long:  "Shows who leads the group; with --to it hands the leadership over. No service is moved or disturbed by that.",
		Args:  cli.Args(),
		RunE:  cli.Run(func(ctx context.Context, _ []string) error { return runLeader(ctx, e, o) }),
	}
	o.register(cmd, 30*time.Second)
	cmd.Flags().StringVar(&o.to, "to", "", "the member that shall lead")
	_ = cmd.RegisterFlagCompletionFunc("to", e.completeMembers) // the flag was defined above
	return cmd
}

func runLeader(ctx context.Context, e *env, o leaderOptions) error {
	b, hangUp := e.daemon()
	defer hangUp()
	if o.to != "" {
		return e.carryOut(ctx, order{flags: o.orderFlags, command: "hanode leader --to " + o.to, next: []string{"hanode leader"},
			do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
				return b.TransferLeader(ctx, api.LeaderRequest{Order: ord, To: o.to}, p)
			}})
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	l, err := b.Leader(ctx)
	if err != nil {
		return err
	}
	if len(l.Next) == 0 {
		l.Next = []string{"hanode status"}
	}
	return e.Print(l, func(w io.Writer) { ui.Leader(w, l, e.Screen()) })
}
