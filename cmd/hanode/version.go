package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

func versionCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version of this command, and of the daemon if it answers",
		Args:  cli.Args(),
		RunE:  cli.Run(func(ctx context.Context, _ []string) error { return runVersion(ctx, e) }),
	}
}

func runVersion(ctx context.Context, e *env) error {
	b, hangUp := e.daemon()
	defer hangUp()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	daemon, err := b.Version(ctx)
	if err != nil {
		daemon = nil
	}
	both := struct {
		Command api.Version  `json:"command"`
		Daemon  *api.Version `json:"daemon"`
	}{e.Version, daemon}
	return e.Print(both, func(w io.Writer) {
		fmt.Fprintln(w, cli.VersionLine("hanode", e.Version))
		if daemon == nil {
			e.Say("the daemon does not answer: %v", err)
			return
		}
		fmt.Fprintln(w, cli.VersionLine("daemon", *daemon))
		if daemon.Version != e.Version.Version {
			e.Next("systemctl restart hanode     to run this version; on a degraded node that is an outage: hanode status first")
		}
	})
}
