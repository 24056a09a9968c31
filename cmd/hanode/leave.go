package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

type leaveOptions struct {
	orderFlags
	wipe  bool
	force bool
	data  string
}

func leaveCmd(e *env) *cobra.Command {
	var o leaveOptions
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "take this node out of the cluster",
		Long: `Takes this node out of the cluster: its services move away without loss, its vote ends, its daemon stops. Refused
(exit status 3) if a service would stop, unless --force. Volumes and their data are never removed; --wipe empties the
state directory, so that the machine can join again as a new member.`,
		Args: cli.Args(),
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return runLeave(ctx, e, o) }),
	}
	o.register(cmd, 10*time.Minute)
	cmd.Flags().BoolVar(&o.wipe, "wipe", false, "empty the state directory afterwards")
	cmd.Flags().BoolVar(&o.force, "force", false, "although services stop or protection ends")
	cmd.Flags().StringVar(&o.data, "data", dataDir, "state directory, for --wipe")
	return cmd
}

func runLeave(ctx context.Context, e *env, o leaveOptions) error {
	if o.wipe && e.wipe == nil {
		return unwired("wipe a state directory")
	}
	b, hangUp := e.daemon()
	defer hangUp()
	err := e.carryOut(ctx, order{flags: o.orderFlags, asking: askAlways, what: "take this node out of the cluster", command: "hanode leave",
		next: []string{"systemctl disable --now hanode"},
		do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			out, err := b.Leave(ctx, api.LeaveRequest{Order: ord, Wipe: o.wipe, Force: o.force}, p)
			if err != nil || ord.Plan || !o.wipe {
				return out, err
			}
			if err := e.wipe(ctx, o.data); err != nil {
				return nil, &api.Error{Code: api.CodeFailed, What: "the node has left (" + out.Decision + "), but " + o.data + " was not emptied", Why: err.Error(),
					Do: "stop hanode, look at the directory, and remove it"}
			}
			out.Text += "; " + o.data + " is empty"
			return out, nil
		}})
	return err
}
