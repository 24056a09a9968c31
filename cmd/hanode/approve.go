package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

func approveCmd(e *env) *cobra.Command {
	return wordCmd(e, "approve", true, "agree to the failover of a service whose active is lost",
		`Agrees to the failover of a service whose active is lost or unwell, where the spec names approvers (or says
failover = "manual"). The word counts for this loss only. It makes nobody active who may not be: only a member in sync
takes over.`)
}

func declineCmd(e *env) *cobra.Command {
	return wordCmd(e, "decline", false, "refuse the failover of a service: it waits for its active",
		`Refuses the failover of a service whose active is lost or unwell: it stays down until that returns, or until an
approver changes his mind ("hanode approve").`)
}

func wordCmd(e *env, verb string, yes bool, short, long string) *cobra.Command {
	var o orderFlags
	cmd := &cobra.Command{
		Use:               verb + " SERVICE",
		Short:             short,
		Long:              long,
		Args:              cli.Args("SERVICE"),
		ValidArgsFunction: e.completeServices,
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return runWord(ctx, e, verb, yes, args[0], o) }),
	}
	o.register(cmd, moveTimeout)
	o.registerBase(cmd)
	return cmd
}

func runWord(ctx context.Context, e *env, verb string, yes bool, service string, o orderFlags) error {
	b, hangUp := e.daemon()
	defer hangUp()
	return e.carryOut(ctx, order{flags: o, asking: askIfThere, what: verb + " the failover of " + service, command: "hanode " + verb + " " + service, next: []string{"hanode explain " + service},
		do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			return b.Approve(ctx, api.ApproveRequest{Order: ord, Service: service, Yes: yes}, p)
		}})
}
