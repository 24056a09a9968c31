package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/ui"
)

func checkCmd(e *env) *cobra.Command {
	return cli.Group("check", "list, run and pause the checks of services", checkListCmd(e),
		checkOrderCmd(e, api.CheckRun, askNever, "run a check now, where its service is active",
			"Runs a check once, now, where its service is active. The run counts for nothing. Exit status 1: it failed."),
		checkOrderCmd(e, api.CheckPause, askIfThere, "do not run a check for a while; it condemns nothing",
			"Pauses one check; the others go on. It is not run anywhere and condemns nothing until \"hanode check resume\" or the time of --for is over."),
		checkOrderCmd(e, api.CheckResume, askNever, "run a paused check again", "Ends the pause of a check: it starts anew."))
}

func checkListCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:               "list [SERVICE]",
		Short:             "list the checks with what they say on each node",
		Args:              atMostOne("SERVICE"),
		ValidArgsFunction: e.completeServices,
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return runCheckList(ctx, e, optional(args)) }),
	}
}

func runCheckList(ctx context.Context, e *env, service string) error {
	b, hangUp := e.daemon()
	defer hangUp()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	l, err := b.Checks(ctx)
	if err != nil {
		return err
	}
	if service != "" {
		l = slices.DeleteFunc(l, func(c api.CheckLine) bool { return c.Service != service })
	}
	return e.Print(map[string]any{"checks": api.List[api.CheckLine](l)}, func(w io.Writer) { ui.Checks(w, l, e.Screen()) })
}

type checkOptions struct {
	orderFlags
	lasts time.Duration
}

func checkOrderCmd(e *env, action string, ask asking, short, long string) *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:               action + " SERVICE/CHECK",
		Short:             short,
		Long:              long,
		Example:           "  hanode check " + action + " db/sql",
		Args:              cli.Args("SERVICE/CHECK"),
		ValidArgsFunction: e.completeChecks,
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return runCheck(ctx, e, action, args[0], ask, o) }),
	}
	o.register(cmd, time.Minute)
	o.registerBase(cmd)
	if action == api.CheckPause {
		cmd.Flags().DurationVar(&o.lasts, "for", time.Hour, "when the pause ends by itself")
	}
	return cmd
}

func runCheck(ctx context.Context, e *env, action, name string, ask asking, o checkOptions) error {
	service, check, ok := strings.Cut(name, "/")
	if !ok || service == "" || check == "" {
		return &api.Error{Code: api.CodeUsage, What: fmt.Sprintf("%q names no check", name), Why: "want SERVICE/CHECK, such as db/sql", Do: "hanode check list"}
	}
	b, hangUp := e.daemon()
	defer hangUp()
	return e.carryOut(ctx, order{flags: o.orderFlags, asking: ask, what: action + " check " + name, command: "hanode check " + action + " " + name, next: []string{"hanode check list " + service},
		do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			return b.Check(ctx, api.CheckRequest{Order: ord, Service: service, Check: check, Action: action, ForMs: api.Ms(o.lasts)}, p)
		}})
}

// completeChecks asks the daemon for the names of checks, quickly or not at all.
func (e *env) completeChecks(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return e.names(func(s *api.Status) (out []string) {
		for _, v := range s.Services {
			for _, c := range v.Checks {
				out = append(out, v.Name+"/"+c.Name)
			}
		}
		return out
	})
}
