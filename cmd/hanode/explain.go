package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/ui"
)

// readTimeout is for commands that change nothing.
const readTimeout = 10 * time.Second

func explainCmd(e *env) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "explain [SERVICE | DECISION | ALARM]",
		Short: "say why something happened, or why nothing did",
		Long: `Says why something happened: time line, what was known, what was lost, and why not otherwise. With a service's
name it is about its newest decision, or about why nothing happened; with an alarm's code about that alarm.`,
		Example:           "  hanode explain db\n  hanode explain D-231",
		Args:              atMostOne("SERVICE, DECISION or ALARM"),
		ValidArgsFunction: e.completeServices,
		RunE: cli.Run(func(ctx context.Context, args []string) error {
			return runExplain(ctx, e, optional(args), timeout)
		}),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", readTimeout, "give up after this time")
	return cmd
}

func runExplain(ctx context.Context, e *env, target string, timeout time.Duration) error {
	b, hangUp := e.daemon()
	defer hangUp()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	x, err := b.Explain(ctx, target)
	if err != nil {
		return err
	}
	return e.Print(x, func(w io.Writer) { ui.Explain(w, x, e.Screen()) })
}
