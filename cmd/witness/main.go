// Command hanode-witness is the witness of hanode clusters, without anything that a witness does not need.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/witnesscmd"
)

var version string // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	status := run(ctx, cli.System(version), funcs(), os.Args[1:])
	stop()
	os.Exit(status)
}

func run(ctx context.Context, e *cli.Env, f witnesscmd.Funcs, args []string) int {
	const name = "hanode-witness"
	root := cli.Group(name, "the witness of hanode clusters: it votes and carries no data", witnesscmd.Commands(e, f, name)...)
	root.AddCommand(&cobra.Command{Use: "version", Short: "print the version", Args: cli.Args(), RunE: cli.Run(func(context.Context, []string) error {
		return e.PrintVersion(name)
	})})
	return cli.Execute(ctx, e, root, args)
}
