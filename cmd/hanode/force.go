package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/ui"
)

type forceOptions struct {
	orderFlags
	to          string
	acceptLoss  bool
	verifiedOff []string
}

func forceCmd(e *env) *cobra.Command {
	var o forceOptions
	cmd := &cobra.Command{
		Use:   "force SERVICE --to NODE --accept-loss",
		Short: "make a node active that is not in sync: acknowledged writes may be lost",
		Long: `Makes a node active although it does not hold everything that was acknowledged. The age of its copy and the
bytes and operations at risk are shown first; a person types the service's name, a script says --yes. What the old active
holds beyond is put aside when it returns, never merged by itself.
If the old active cannot be asked, you must have verified that it is switched off: if it still runs, two members serve.`,
		Example:           "  hanode force db --to b --plan\n  hanode force db --to b --accept-loss --i-have-verified-off a",
		Args:              cli.Args("SERVICE"),
		ValidArgsFunction: e.completeServices,
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return runForce(ctx, e, args[0], o) }),
	}
	o.register(cmd, moveTimeout)
	o.registerBase(cmd)
	toFlag(cmd, e, &o.to)
	cmd.Flags().BoolVar(&o.acceptLoss, "accept-loss", false, "what --plan shows may be lost")
	cmd.Flags().StringSliceVar(&o.verifiedOff, "i-have-verified-off", nil, "members that you have seen to be switched off")
	_ = cmd.MarkFlagRequired("to") // the flag was defined above
	return cmd
}

func runForce(ctx context.Context, e *env, service string, o forceOptions) error {
	b, hangUp := e.daemon()
	defer hangUp()
	req := api.ForceRequest{Service: service, To: o.to, AcceptLoss: o.acceptLoss, VerifiedOff: o.verifiedOff}
	command := "hanode force " + service + " --to " + o.to + " --accept-loss"
	ord := order{flags: o.orderFlags, asking: askTheWords, what: "let " + o.to + " be active for " + service + " although it is not in sync",
		command: command, next: []string{"hanode explain " + service},
		do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			req.Order = ord
			return b.Force(ctx, req, p)
		},
		accept: func(p *api.Plan) { req.Loses = p.Risk },
		words: func(p *api.Plan) []string {
			words := []string{service}
			for _, m := range p.VerifiedOff {
				if !slices.Contains(o.verifiedOff, m) {
					words = append(words, m+" is off")
					req.VerifiedOff = append(req.VerifiedOff, m)
				}
			}
			return words
		}}
	if o.plan || o.acceptLoss && !o.yes {
		return e.carryOut(ctx, ord)
	}
	// Without a person to see it, or without the word for it, the plan is shown and decides what is accepted.
	pctx, cancel := context.WithTimeout(ctx, o.timeout)
	p, err := e.plan(pctx, ord)
	cancel()
	if err != nil {
		return err
	}
	if !e.JSON {
		ui.Plan(e.Stderr, p, "", e.Side())
	}
	if !o.acceptLoss {
		return api.Refusal("force refused", "it may lose: "+strings.TrimSuffix(ui.RiskText(p.Risk), "."), command+"   if that is worth it")
	}
	req.Loses = p.Risk
	return e.carryOut(ctx, ord)
}
