package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

// manCmd writes the manual pages; it is for packaging, and hidden.
func manCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "write the manual pages of all commands into a directory",
		Hidden: true,
		Args:   cli.Args("DIR"),
		RunE: cli.Run(func(_ context.Context, args []string) error {
			files, err := cli.ManPages(commands(e), args[0], e.Version.Version)
			if err != nil {
				return err
			}
			return e.Print(map[string]any{"files": api.List[string](files)}, func(w io.Writer) { fmt.Fprintf(w, "%d pages in %s\n", len(files), args[0]) })
		}),
	}
}
