package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/ui"
)

// orderFlags are the flags of every command that changes something.
type orderFlags struct {
	yes     bool
	plan    bool
	base    uint64
	timeout time.Duration
	reason  string
}

func (f *orderFlags) register(cmd *cobra.Command, timeout time.Duration) {
	fl := cmd.Flags()
	fl.BoolVar(&f.yes, "yes", false, "do not ask")
	fl.BoolVar(&f.plan, "plan", false, "only show what would be done, how long it takes and what is at risk")
	fl.DurationVar(&f.timeout, "timeout", timeout, "give up after this time; the order may still be carried out then")
	fl.StringVar(&f.reason, "reason", "", "why; it stands in the log")
}

// registerBase is for orders whose plan names the state that it rests on.
func (f *orderFlags) registerBase(cmd *cobra.Command) {
	cmd.Flags().Uint64Var(&f.base, "base", 0, "refuse if the state is not the one that --plan showed under this number")
}

func (f *orderFlags) order() api.Order { return api.Order{Reason: f.reason, Base: f.base} }

// How an order is agreed to.
type asking int

const (
	askNever    asking = iota // harmless, or undone by its opposite
	askIfThere                // a person at a terminal sees the plan and is asked; a script is not
	askAlways                 // something stops or is lost: a script must say --yes
	askTheWords               // as askAlways, and the person types what is at stake
)

// order is one changing request.
type order struct {
	flags   orderFlags
	asking  asking
	what    string // completes "Really ...?"
	command string // that carries the plan out; without --base
	words   func(*api.Plan) []string
	do      func(context.Context, api.Order, api.Progress) (*api.Outcome, error)
	accept  func(*api.Plan) // told which plan was agreed to
	next    []string        // where the daemon says nothing
}

// carryOut plans, asks, carries out, and prints.
func (e *env) carryOut(ctx context.Context, o order) error {
	ctx, cancel := context.WithTimeout(ctx, o.flags.timeout)
	defer cancel()
	if o.flags.plan {
		return e.showPlan(ctx, o)
	}
	req := o.flags.order()
	if o.asking != askNever && !o.flags.yes {
		base, err := e.agree(ctx, o)
		if err != nil {
			return err
		}
		if req.Base == 0 {
			req.Base = base
		}
	}
	out, err := o.do(ctx, req, e.Progress())
	if err != nil {
		return timedOut(err, o)
	}
	if len(out.Next) == 0 {
		out.Next = o.next
		if out.Token != nil {
			out.Next = []string{joinLine(out.Token)}
		}
	}
	return e.Print(out, func(w io.Writer) {
		ui.Outcome(w, out, e.Screen())
		if out.Token != nil {
			fmt.Fprintln(w, out.Token.Token)
		}
		ui.Problems(e.Stderr, out.Problems, e.Side())
		e.Next(out.Next...)
	})
}

func (e *env) showPlan(ctx context.Context, o order) error {
	p, err := e.plan(ctx, o)
	if err != nil {
		return err
	}
	return e.Print(p, func(w io.Writer) { ui.Plan(w, p, o.command, e.Screen()) })
}

func (e *env) plan(ctx context.Context, o order) (*api.Plan, error) {
	req := o.flags.order()
	req.Plan = true
	out, err := o.do(ctx, req, func(api.Step) {})
	if err != nil {
		return nil, err
	}
	if out.Plan == nil {
		return nil, api.Errorf(api.CodeFailed, "the daemon made no plan for it; compare the versions: hanode version")
	}
	return out.Plan, nil
}

// agree lets a person see the plan and agree to it, and returns the state that it rests on.
func (e *env) agree(ctx context.Context, o order) (uint64, error) {
	if !e.Interactive {
		if o.asking == askIfThere {
			return 0, nil
		}
		return 0, e.MustAgree(false, o.what)
	}
	p, err := e.plan(ctx, o)
	if err != nil {
		return 0, err
	}
	ui.Plan(e.Stderr, p, "", e.Side())
	if o.accept != nil {
		o.accept(p)
	}
	if o.asking != askTheWords {
		return p.Base, e.MustAgree(false, o.what)
	}
	for _, words := range o.words(p) {
		ok, err := e.AskToType(words)
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, cli.NotDone()
		}
	}
	return p.Base, nil
}

// timedOut adds to a time-out that the order may go on.
func timedOut(err error, o order) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &api.Error{Code: api.CodeTimeout, What: "not done within " + o.flags.timeout.String(),
		Why: "the order was given, and may still be carried out", Do: "hanode events -f, or hanode status"}
}
