package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/ui"
)

// dataDir is the default state directory of a node.
const dataDir = "/var/lib/hanode"

type statusOptions struct {
	watch   bool
	local   bool
	every   time.Duration
	nagios  bool
	timeout time.Duration
	data    string
}

func statusCmd(e *env) *cobra.Command {
	var o statusOptions
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show members, services, and what happens if the active dies",
		Long: `Shows members, services, and what happens if one more thing is lost. It works without quorum and without the
daemon too: then it shows the last known state with its age, and what is awaited, with exit status 4.`,
		Args: cli.Args(),
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return runStatus(ctx, e, o) }),
	}
	cmd.Flags().BoolVar(&o.watch, "watch", false, "again and again, until interrupted")
	cmd.Flags().BoolVar(&o.local, "local", false, "only what this node knows by itself")
	cmd.Flags().BoolVar(&o.nagios, "nagios", false, "one line and the exit status for monitoring plug-ins: 0 OK, 1 WARNING, 2 CRITICAL")
	cmd.Flags().DurationVar(&o.every, "every", time.Second, "with --watch: how often")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 5*time.Second, "take the daemon for dead after this time")
	cmd.Flags().StringVar(&o.data, "data", dataDir, "state directory, for the last known state")
	return cmd
}

func runStatus(ctx context.Context, e *env, o statusOptions) error {
	b, hangUp := e.daemon()
	defer hangUp()
	if o.nagios && o.watch {
		return api.Errorf(api.CodeUsage, "--nagios and --watch: choose one")
	}
	if o.nagios {
		return nagios(ctx, e, b, o)
	}
	if !o.watch {
		return statusOnce(ctx, e, b, o)
	}
	if o.every < 100*time.Millisecond {
		return api.Errorf(api.CodeUsage, "--every %v: choose at least 100ms", o.every)
	}
	for {
		if e.Colour && !e.JSON {
			io.WriteString(e.Stdout, "\x1b[H\x1b[2J")
		}
		var quiet *cli.Quiet
		if err := statusOnce(ctx, e, b, o); err != nil && !errors.As(err, &quiet) {
			if ctx.Err() != nil {
				return nil
			}
			e.Fail(err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(o.every):
		}
		if !e.Colour && !e.JSON {
			fmt.Fprintln(e.Stdout)
		}
	}
}

func statusOnce(ctx context.Context, e *env, b api.Backend, o statusOptions) error {
	ask, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	s, err := b.Status(ask, api.StatusQuery{Local: o.local})
	if err != nil {
		return lastKnown(ctx, e, o, err)
	}
	if len(s.Next) == 0 {
		s.Next = ui.NextFor(s)
	}
	if err := e.Print(s, func(w io.Writer) { ui.Status(w, s, e.Screen()) }); err != nil {
		return err
	}
	if !s.Cluster.Quorum && !o.local {
		return &cli.Quiet{Status: api.ExitUnreachable}
	}
	return nil
}

// lastKnown shows what the daemon left, when it does not answer.
func lastKnown(ctx context.Context, e *env, o statusOptions, cause error) error {
	if ctx.Err() != nil {
		return cause
	}
	code := api.AsError(cause).Code
	if code != api.CodeUnreachable && code != api.CodeTimeout {
		return cause
	}
	s, err := api.LoadLastStatus(o.data, e.Now())
	if err != nil {
		return whyNoState(cause, err, o)
	}
	said := api.AsError(cause)
	if code == api.CodeTimeout {
		said = &api.Error{Code: api.CodeUnreachable, What: "hanode did not answer within " + o.timeout.String(), Why: "it hangs, or is very busy"}
	}
	s.Next = ui.NextFor(s)
	if !e.JSON {
		ui.Error(e.Stderr, &api.Error{What: said.What, Why: said.Why}, e.Side())
	}
	if err := e.Print(s, func(w io.Writer) { ui.Status(w, s, e.Screen()) }); err != nil {
		return err
	}
	return &cli.Quiet{Status: api.ExitUnreachable}
}

func whyNoState(cause, err error, o statusOptions) error {
	e := *api.AsError(cause)
	e.Code = api.CodeUnreachable
	if errors.Is(err, os.ErrNotExist) {
		e.Why += fmt.Sprintf("; there is no last known state in %s", o.data)
		if _, statErr := os.Stat(o.data); errors.Is(statErr, os.ErrNotExist) {
			e.Do = "hanode init or hanode join, if this machine is no member yet; else systemctl start hanode"
		}
		return &e
	}
	e.Why += "; " + err.Error()
	return &e
}

// nagios prints one line whatever happens: a plug-in that says nothing is taken for well by some.
func nagios(ctx context.Context, e *env, b api.Backend, o statusOptions) error {
	ask, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	s, err := b.Status(ask, api.StatusQuery{Local: o.local})
	if err != nil {
		cause := api.AsError(err)
		if s, err = api.LoadLastStatus(o.data, e.Now()); err != nil {
			fmt.Fprintf(e.Stdout, "HANODE CRITICAL - %s\n", cause.What)
			return &cli.Quiet{Status: 2}
		}
	}
	line, code := ui.Nagios(s)
	fmt.Fprintln(e.Stdout, line)
	if code == 0 {
		return nil
	}
	return &cli.Quiet{Status: code}
}
