package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

func keyCmd(e *env) *cobra.Command {
	return cli.Group("key", "change the key of gossip", keyRotateCmd(e))
}

func keyRotateCmd(e *env) *cobra.Command {
	var o orderFlags
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "give gossip a new key, in three steps that every member follows",
		Long: `Gives gossip a new key: all members learn it, all use it, all forget the old one; it takes some ten seconds and
disturbs nothing. A member that is away learns the new key from the log when it is back. One that was left half-way is
taken up again. Certificates are another matter: hanode cert.`,
		Args: cli.Args(),
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return runKeyRotate(ctx, e, o) }),
	}
	o.register(cmd, 2*time.Minute)
	o.registerBase(cmd)
	return cmd
}

func runKeyRotate(ctx context.Context, e *env, o orderFlags) error {
	b, hangUp := e.daemon()
	defer hangUp()
	return e.carryOut(ctx, order{flags: o, asking: askIfThere, what: "give gossip a new key", command: "hanode key rotate", next: []string{"hanode status"},
		do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			return b.KeyRotate(ctx, api.KeyRequest{Order: ord}, p)
		}})
}
