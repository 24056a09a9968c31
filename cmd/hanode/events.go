package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/ui"
)

type eventsOptions struct {
	follow       bool
	since, until string
	limit        int
	service      string
}

func eventsCmd(e *env) *cobra.Command {
	var o eventsOptions
	cmd := &cobra.Command{
		Use:   "events",
		Short: "print what happened, and with -f what happens",
		Long: `Prints what happened, and with -f what happens. --since takes a duration before now or a time; --until takes a
duration from now (it follows until then) or a time. With --json each event is one object on its own line.`,
		Example: "  hanode events --since 24h\n  hanode events -f --until 30s",
		Args:    cli.Args(),
		RunE:    cli.Run(func(ctx context.Context, _ []string) error { return runEvents(ctx, e, o) }),
	}
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on with what happens")
	cmd.Flags().StringVar(&o.since, "since", "", "duration before now, or RFC 3339 time")
	cmd.Flags().StringVar(&o.until, "until", "", "duration from now, or RFC 3339 time")
	cmd.Flags().IntVarP(&o.limit, "lines", "n", 0, "only the newest so many of the past")
	cmd.Flags().StringVar(&o.service, "service", "", "only of this service")
	_ = cmd.RegisterFlagCompletionFunc("service", e.completeServices) // the flag was defined above
	return cmd
}

func runEvents(ctx context.Context, e *env, o eventsOptions) error {
	q := api.EventQuery{Follow: o.follow, Limit: o.limit, Service: o.service}
	if o.limit < 0 {
		return api.Errorf(api.CodeUsage, "--lines %d: choose 0 for all, or more", o.limit)
	}
	now := e.Now()
	var err error
	if q.Since, err = moment(o.since, now, -1); err != nil {
		return api.Errorf(api.CodeUsage, "--since: %w", err)
	}
	if q.Until, err = moment(o.until, now, 1); err != nil {
		return api.Errorf(api.CodeUsage, "--until: %w", err)
	}
	if q.Until.After(now) {
		q.Follow = true
	}
	b, hangUp := e.daemon()
	defer hangUp()
	lines := ui.NewEventLines(e.Stdout, e.Screen())
	err = b.Events(ctx, q, func(ev api.Event) error {
		if e.JSON {
			return e.Object(ev)
		}
		lines.Write(ev)
		return nil
	})
	if q.Follow && errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil // the person has seen enough
	}
	if err == nil && !q.Follow {
		e.Next("hanode explain DECISION")
	}
	return err
}

// moment reads a time, or a duration to or from now.
func moment(s string, now time.Time, sign time.Duration) (api.Time, error) {
	if s == "" {
		return api.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return api.At(now.Add(sign * d)), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return api.Time{}, errors.New(s + ` is neither a duration ("90s", "24h") nor a time ("2026-03-01T03:07:00Z")`)
	}
	return api.At(t), nil
}
