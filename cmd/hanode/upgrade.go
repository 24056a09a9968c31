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

func upgradeCmd(e *env) *cobra.Command {
	return cli.Group("upgrade", "what runs where, and the end of an upgrade", upgradeStatusCmd(e), upgradeFinishCmd(e))
}

func upgradeStatusCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "show what each member runs, and what to upgrade next",
		Args:  cli.Args(),
		RunE:  cli.Run(func(ctx context.Context, _ []string) error { return runUpgradeStatus(ctx, e) }),
	}
}

func runUpgradeStatus(ctx context.Context, e *env) error {
	b, hangUp := e.daemon()
	defer hangUp()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	st, err := b.UpgradeStatus(ctx)
	if err != nil {
		return err
	}
	return e.Print(st, func(w io.Writer) {
		ui.Upgrade(w, st, e.Screen())
		e.Next(st.Next...)
	})
}

func upgradeFinishCmd(e *env) *cobra.Command {
	var o orderFlags
	cmd := &cobra.Command{
		Use:   "finish",
		Short: "let the cluster make use of what all members know now; no way back",
		Long: `Raises the feature level to the newest one that every member knows. Until then the cluster does only what the old
version can do, and a member can go back to it. Afterwards none can.`,
		Args: cli.Args(),
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return runUpgradeFinish(ctx, e, o) }),
	}
	o.register(cmd, time.Minute)
	o.registerBase(cmd)
	return cmd
}

func runUpgradeFinish(ctx context.Context, e *env, o orderFlags) error {
	b, hangUp := e.daemon()
	defer hangUp()
	return e.carryOut(ctx, order{flags: o, asking: askAlways, what: "finish the upgrade, after which no member can go back", command: "hanode upgrade finish", next: []string{"hanode status"},
		do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			return b.UpgradeFinish(ctx, api.UpgradeRequest{Order: ord}, p)
		}})
}
