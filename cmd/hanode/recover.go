package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

type recoverOptions struct {
	orderFlags
	keep        string
	verifiedOff []string
}

func recoverCmd(e *env) *cobra.Command {
	var o recoverOptions
	cmd := &cobra.Command{
		Use:   "recover --keep NODE --i-have-verified-off=a,w",
		Short: "the majority is lost for good: make a new cluster of this node alone",
		Long: `Makes a new cluster of this node alone, when the others are lost for good. It is refused while a majority is heard, for
60 seconds after it was lost, and while any other member is heard. What only the others had is not in the new cluster.
If one of them still runs, two clusters serve, and what one of them writes will be set aside: switch them off first.
A person types the node's name and that each other member is off; a script names them and says --yes.
The old members are refused from then on. They join anew, as new members; the command prints how.`,
		Example: "  hanode recover --keep b --i-have-verified-off=a,w --plan\n  hanode recover --keep b --i-have-verified-off=a,w",
		Args:    cli.Args(),
		RunE:    cli.Run(func(ctx context.Context, _ []string) error { return runRecover(ctx, e, o) }),
	}
	o.register(cmd, moveTimeout)
	cmd.Flags().StringVar(&o.keep, "keep", "", "this node")
	cmd.Flags().StringSliceVar(&o.verifiedOff, "i-have-verified-off", nil, "the other members, which you have seen to be switched off")
	_ = cmd.MarkFlagRequired("keep") // the flag was defined above
	return cmd
}

func runRecover(ctx context.Context, e *env, o recoverOptions) error {
	b, hangUp := e.daemon()
	defer hangUp()
	req := api.RecoverRequest{Keep: o.keep, VerifiedOff: o.verifiedOff}
	return e.carryOut(ctx, order{flags: o.orderFlags, asking: askTheWords, what: "make a new cluster of " + o.keep + " alone",
		command: "hanode recover --keep " + o.keep,
		do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			req.Order = ord
			return b.Recover(ctx, req, p)
		},
		words: func(p *api.Plan) []string {
			words := []string{o.keep}
			for _, m := range p.VerifiedOff {
				words = append(words, m+" is off")
				if !slices.Contains(req.VerifiedOff, m) {
					req.VerifiedOff = append(req.VerifiedOff, m)
				}
			}
			return words
		}})
}
