package main

import (
	"context"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/ui"
)

func memberCmd(e *env) *cobra.Command {
	return cli.Group("member", "list and change the members",
		memberListCmd(e), memberSetCmd(e), memberReplaceCmd(e), memberRemoveCmd(e), drainCmd(e), undrainCmd(e))
}

func memberListCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "list the members with their votes, addresses and links",
		Args:  cli.Args(),
		RunE:  cli.Run(func(ctx context.Context, _ []string) error { return runMemberList(ctx, e) }),
	}
}

func runMemberList(ctx context.Context, e *env) error {
	b, hangUp := e.daemon()
	defer hangUp()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	l, err := b.Members(ctx)
	if err != nil {
		return err
	}
	self := ""
	if v, err := b.Version(ctx); err == nil {
		self = v.Node
	}
	return e.Print(map[string]any{"members": api.List[api.Member](l)}, func(w io.Writer) { ui.Members(w, l, self, e.Screen()) })
}

// memberOrder is one order about one member.
type memberOrder struct {
	orderFlags
	req     api.MemberRequest
	asking  asking
	verb    string // of the command
	what    string // completes "Really ...?"
	timeout time.Duration
	which   func(api.Backend) func(context.Context, api.MemberRequest, api.Progress) (*api.Outcome, error)
	next    string
}

func (o *memberOrder) cmd(e *env, short, long string) *cobra.Command {
	cmd := &cobra.Command{
		Use:               o.verb + " NAME",
		Short:             short,
		Long:              long,
		Args:              cli.Args("NAME"),
		ValidArgsFunction: e.completeMembers,
		RunE: cli.Run(func(ctx context.Context, args []string) error {
			o.req.Name = args[0]
			return runMember(ctx, e, *o)
		}),
	}
	o.register(cmd, o.timeout)
	o.registerBase(cmd)
	return cmd
}

func runMember(ctx context.Context, e *env, o memberOrder) error {
	b, hangUp := e.daemon()
	defer hangUp()
	req := o.req
	return e.carryOut(ctx, order{flags: o.orderFlags, asking: o.asking, what: o.what + " " + req.Name,
		command: "hanode member " + o.verb + " " + req.Name, next: []string{firstOf(o.next, "hanode member list")},
		do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			req.Order = ord
			return o.which(b)(ctx, req, p)
		}})
}

func memberSetCmd(e *env) *cobra.Command {
	o := &memberOrder{verb: "set", what: "change", timeout: time.Minute,
		which: func(b api.Backend) func(context.Context, api.MemberRequest, api.Progress) (*api.Outcome, error) {
			return b.MemberSet
		}}
	cmd := o.cmd(e, "change a member's address and links", "Changes where the others reach a member. Each new address is proved in both directions before it is taken.")
	cmd.Flags().StringVar(&o.req.Advertise, "advertise", "", "address where the others reach it, IP or IP:PORT")
	cmd.Flags().StringArrayVar((*[]string)(&o.req.Links), "link", nil, "all its further addresses; may be repeated; an empty one means none")
	cmd.MarkFlagsOneRequired("advertise", "link")
	cmd.PreRun = func(cmd *cobra.Command, _ []string) {
		o.req.SetLinks = cmd.Flags().Changed("link")
		o.req.Links = slices.DeleteFunc(o.req.Links, func(l string) bool { return l == "" })
	}
	return cmd
}

func memberReplaceCmd(e *env) *cobra.Command {
	o := &memberOrder{verb: "replace", what: "replace", timeout: 10 * time.Minute, asking: askAlways,
		which: func(b api.Backend) func(context.Context, api.MemberRequest, api.Progress) (*api.Outcome, error) {
			return b.MemberReplace
		}}
	cmd := o.cmd(e, "let a new member take the place of a lost one", `Lets a new member take the place of one whose disk is gone. With --by it is a member that has joined already;
without, a token for the newcomer is printed, and the exchange happens when it has joined and caught up.`)
	cmd.Flags().StringVar(&o.req.By, "by", "", "the member that takes its place")
	cmd.Flags().BoolVar(&o.req.Force, "force", false, "although it cannot be asked; what it alone holds is lost")
	return cmd
}

func memberRemoveCmd(e *env) *cobra.Command {
	o := &memberOrder{verb: "remove", what: "remove", timeout: 10 * time.Minute, asking: askAlways,
		which: func(b api.Backend) func(context.Context, api.MemberRequest, api.Progress) (*api.Outcome, error) {
			return b.MemberRemove
		}}
	cmd := o.cmd(e, "remove a member for good", `Removes a member for good: its certificate is revoked. Refused (exit status 3) while it is active for a service, or
while it alone holds what was acknowledged.`)
	cmd.Flags().BoolVar(&o.req.Force, "force", false, "although it cannot be asked; what it alone holds is lost")
	return cmd
}

func drainCmd(e *env) *cobra.Command {
	o := &memberOrder{verb: "drain", what: "move all services off", timeout: moveTimeout, asking: askIfThere, next: "hanode status",
		which: func(b api.Backend) func(context.Context, api.MemberRequest, api.Progress) (*api.Outcome, error) {
			return b.Drain
		}}
	cmd := o.cmd(e, "move all services off a node and keep it free, over reboots", `Moves all services off a node without loss, and lets none come back until "hanode member undrain". It survives reboots.`)
	cmd.Flags().BoolVar(&o.req.AllowDown, "allow-down", false, "stop the services that can go nowhere else")
	return cmd
}

func undrainCmd(e *env) *cobra.Command {
	o := &memberOrder{verb: "undrain", what: "let services return to", timeout: time.Minute, next: "hanode failback --all",
		which: func(b api.Backend) func(context.Context, api.MemberRequest, api.Progress) (*api.Outcome, error) {
			return b.Undrain
		}}
	return o.cmd(e, "let a drained node carry services again", "Lets a drained node carry services again. Nothing is moved to it by that alone.")
}
