package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
)

// moveTimeout is above a service's longest usual start (start_timeout of a database, 10 min).
const moveTimeout = 15 * time.Minute

type moveOptions struct {
	orderFlags
	to       string
	all      bool
	waitSync bool
}

type mover func(context.Context, api.MoveRequest, api.Progress) (*api.Outcome, error)

// runMove is switchover, failover and failback alike; which says which method of the daemon it is.
func runMove(ctx context.Context, e *env, kind, service string, o moveOptions, which func(api.Backend) mover) error {
	b, hangUp := e.daemon()
	defer hangUp()
	req := api.MoveRequest{Service: service, To: o.to, All: o.all, WaitSync: o.waitSync}
	command, what := "hanode "+kind+" "+service, kind+" of "+service
	if o.all {
		command, what = "hanode "+kind+" --all", kind+" of all services"
	}
	if o.to != "" {
		command, what = command+" --to "+o.to, what+" to "+o.to
	}
	if o.waitSync {
		command += " --wait-sync"
	}
	next := "hanode status"
	if service != "" {
		next = "hanode explain " + service
	}
	return e.carryOut(ctx, order{flags: o.orderFlags, asking: askIfThere, what: "order the " + what, command: command, next: []string{next},
		do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			req.Order = ord
			return which(b)(ctx, req, p)
		}})
}

func moveFlags(cmd *cobra.Command, o *moveOptions) {
	o.register(cmd, moveTimeout)
	o.registerBase(cmd)
}

func toFlag(cmd *cobra.Command, e *env, to *string) {
	cmd.Flags().StringVar(to, "to", "", "the node that shall be active (default: the standby)")
	_ = cmd.RegisterFlagCompletionFunc("to", e.completeNodes) // the flag was defined above
}
