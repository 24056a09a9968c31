package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

type tokenOptions struct {
	role    string
	ttl     time.Duration
	replace string
	reason  string
	yes     bool
	timeout time.Duration
}

func tokenCmd(e *env) *cobra.Command {
	return cli.Group("token", "let a machine join", tokenCreateCmd(e))
}

func tokenCreateCmd(e *env) *cobra.Command {
	var o tokenOptions
	cmd := &cobra.Command{
		Use:   "create",
		Short: "make a token that lets one machine join, once",
		Long: `Makes a token that lets one machine join, once and not for long. It carries the fingerprint of the cluster's CA,
so that the newcomer knows whom it joins. The token alone stands on stdout; it is shown this once and kept as a hash.`,
		Args: cli.Args(),
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return runTokenCreate(ctx, e, o) }),
	}
	cmd.Flags().StringVar(&o.role, "role", "node", "node or witness")
	cmd.Flags().DurationVar(&o.ttl, "ttl", 10*time.Minute, "how long it can be used")
	cmd.Flags().StringVar(&o.replace, "replace", "", "the member whose place the newcomer takes")
	cmd.Flags().StringVar(&o.reason, "reason", "", "why; it stands in the log")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 30*time.Second, "give up after this time")
	cmd.Flags().BoolVar(&o.yes, "yes", false, "do not ask (it never does)")
	return cmd
}

func runTokenCreate(ctx context.Context, e *env, o tokenOptions) error {
	if o.role != "node" && o.role != "witness" {
		return api.Errorf(api.CodeUsage, "--role %s: choose node or witness", o.role)
	}
	if o.ttl < time.Second || o.ttl > 24*time.Hour {
		return api.Errorf(api.CodeUsage, "--ttl %v: choose 1s to 24h", o.ttl)
	}
	b, hangUp := e.daemon()
	defer hangUp()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	tok, err := b.TokenCreate(ctx, api.TokenRequest{Order: api.Order{Reason: o.reason}, Role: o.role, TTLMs: api.Ms(o.ttl), Replace: o.replace})
	if err != nil {
		return err
	}
	if len(tok.Next) == 0 {
		tok.Next = []string{joinLine(tok)}
	}
	return e.Print(tok, func(w io.Writer) {
		fmt.Fprintln(w, tok.Token)
		e.Say("for one %s, until %s (%s)", tok.Role, e.Screen().Clock(tok.Expires.Time), tok.Decision)
		e.Next(tok.Next...)
	})
}

func joinLine(t *api.Token) string {
	if t.Role == "witness" {
		return "hanode-witness join --token " + t.Token + " --name w --advertise IP     on the witness"
	}
	return "hanode join --token " + t.Token + " --name b --advertise IP     on the new node"
}
