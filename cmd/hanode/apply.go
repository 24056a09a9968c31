package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

type applyOptions struct {
	orderFlags
	remove []string
}

func applyCmd(e *env) *cobra.Command {
	var o applyOptions
	cmd := &cobra.Command{
		Use:   "apply FILE",
		Short: "replace the spec, after every node concerned has checked it",
		Long: `Replaces the spec. Every node concerned checks it first (commands, users, interfaces, networks, paths); a service
that does not change is not touched. A file without a service that exists is refused (exit status 3) unless --remove
names it. With --base N it is refused if the spec is not version N any more. Exit status 2: the file is not valid.`,
		Example: "  hanode spec show > ha.hcl\n  hanode apply --plan ha.hcl\n  hanode apply --base 14 --reason 'slower check' ha.hcl",
		Args:    cli.Args("FILE"),
		RunE:    cli.Run(func(ctx context.Context, args []string) error { return runApply(ctx, e, args[0], o) }),
	}
	o.register(cmd, 2*time.Minute)
	cmd.Flags().Uint64Var(&o.base, "base", 0, "the version of the spec that the file was made from")
	cmd.Flags().StringArrayVar(&o.remove, "remove", nil, "a service that shall disappear; may be repeated")
	return cmd
}

func runApply(ctx context.Context, e *env, file string, o applyOptions) error {
	text, err := e.readFile(file)
	if err != nil {
		return err
	}
	b, hangUp := e.daemon()
	defer hangUp()
	req := api.ApplyRequest{File: file, Text: string(text), SpecVersion: o.base, Remove: o.remove}
	o.base = 0 // the number counts versions of the spec here, not states
	command := "hanode apply"
	for _, r := range o.remove {
		command += " --remove " + r
	}
	asking := askIfThere
	if len(o.remove) > 0 {
		asking = askAlways
	}
	return e.carryOut(ctx, order{flags: o.orderFlags, asking: asking, what: "apply " + file, command: command + " " + file, next: []string{"hanode status"},
		do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			req.Order = ord
			req.Order.Base = 0
			if !ord.Plan && ord.Base != 0 && req.SpecVersion == 0 {
				req.SpecVersion = ord.Base
			}
			out, err := b.Apply(ctx, req, p)
			if err == nil && out.Plan != nil {
				out.Plan.Base = out.Plan.SpecVersion
			}
			return out, err
		}})
}
