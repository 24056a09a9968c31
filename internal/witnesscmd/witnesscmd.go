// Package witnesscmd is the witness as operators see it: join, run, status, list, leave. The same commands are
// `hanode witness ...` and, as a lean binary of their own, `hanode-witness ...`.
//
// It only understands the command line and prints; what a command does is given to it as functions (Funcs), so that this
// package imports neither the spec's language nor netlink nor eBPF and the witness's binary stays small.
package witnesscmd

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/ui"
)

// Defaults of the witness.
const (
	DataDir = "/var/lib/hanode-witness"
	Socket  = "/run/hanode-witness/hanode.sock"
)

// Funcs is what the commands do. A nil one is refused with a plain word.
type Funcs struct {
	// Join makes this witness a member of one more cluster. A running witness takes it up by itself.
	Join func(context.Context, api.JoinOptions, api.Progress) (*api.JoinResult, error)
	// Run serves all clusters in the data directory until the context ends.
	Run func(context.Context, api.RunOptions) error
	// Status says what is served. Without a running witness it answers from the data directory, with Running false.
	Status func(ctx context.Context, socket, dataDir string) (*api.WitnessStatus, error)
	// Leave takes this witness out of one cluster.
	Leave func(context.Context, api.WitnessLeave, api.Progress) (*api.Outcome, error)
}

// Commands returns the commands; name is what stands before them on the command line ("hanode witness").
func Commands(e *cli.Env, f Funcs, name string) []*cobra.Command {
	return []*cobra.Command{joinCmd(e, f, name), runCmd(e, f), statusCmd(e, f, name), listCmd(e, f), leaveCmd(e, f, name)}
}

func unwired(what string) error {
	return api.Errorf(api.CodeFailed, "this build cannot %s", what)
}

func socketFlag(cmd *cobra.Command, e *cli.Env, socket *string) {
	def := Socket
	if s := e.Getenv("HANODE_SOCKET"); s != "" {
		def = s
	}
	cmd.Flags().StringVar(socket, "socket", def, "socket of the witness ($HANODE_SOCKET)")
}

type joinOptions struct {
	api.JoinOptions
	unit    bool
	timeout time.Duration
}

func joinCmd(e *cli.Env, f Funcs, name string) *cobra.Command {
	o := joinOptions{}
	cmd := &cobra.Command{
		Use:   "join --token TOKEN --name NAME --advertise IP[:PORT]",
		Short: "make this machine the witness of a cluster",
		Long: `Makes this machine the witness of a cluster, beside others that it may serve already. The token comes from
"hanode token create --role witness" on a node, carries the fingerprint of the cluster's CA, and works once.
The witness votes and carries no data. Port 7400, tcp and udp, must answer in both directions.`,
		Args: cli.Args(),
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return runJoin(ctx, e, f, name, o) }),
	}
	JoinFlags(cmd, &o.JoinOptions, DataDir)
	cmd.Flags().BoolVar(&o.unit, "unit", false, "write and name the systemd unit")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 2*time.Minute, "give up after this time")
	return cmd
}

// JoinFlags are the flags of join, of a witness and of a node alike.
func JoinFlags(cmd *cobra.Command, o *api.JoinOptions, dataDir string) {
	fl := cmd.Flags()
	fl.StringVar(&o.Token, "token", "", `the token; "-" reads it from stdin, where no process list shows it`)
	fl.StringVar(&o.Name, "name", "", "name of this member")
	fl.StringVar(&o.Advertise, "advertise", "", "address where the others reach it, IP or IP:PORT (port 7400)")
	fl.StringArrayVar(&o.Links, "link", nil, "a further address of this member, for one more path; may be repeated")
	fl.StringVar(&o.Site, "site", "", "label of its place; members of one site share its fate")
	fl.StringVar(&o.DataDir, "data", dataDir, "state directory")
	for _, n := range []string{"token", "name", "advertise"} {
		_ = cmd.MarkFlagRequired(n) // the flag was defined above
	}
}

// ReadToken reads the token from stdin if the flag says so.
func ReadToken(e *cli.Env, o *api.JoinOptions) error {
	if o.Token != "-" {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(e.Stdin, 4096))
	if err != nil {
		return fmt.Errorf("read the token from stdin: %w", err)
	}
	if o.Token = strings.TrimSpace(string(b)); o.Token == "" {
		return api.Errorf(api.CodeUsage, "no token on stdin")
	}
	return nil
}

func runJoin(ctx context.Context, e *cli.Env, f Funcs, name string, o joinOptions) error {
	if f.Join == nil {
		return unwired("join as a witness")
	}
	if err := ReadToken(e, &o.JoinOptions); err != nil {
		return err
	}
	o.Role = "witness"
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	res, err := f.Join(ctx, o.JoinOptions, e.Progress())
	if err != nil {
		return err
	}
	unit := cli.Unit{Name: "hanode-witness", Description: "hanode witness", Runtime: "hanode-witness",
		Exec: append(append([]string{binary(name)}, strings.Fields(name)[1:]...), "run", "--data", o.DataDir)}
	start := name + " run --data " + o.DataDir
	if o.unit {
		if res.Unit, err = unit.Install(""); err != nil {
			return err
		}
		start = "systemctl enable --now hanode-witness"
	}
	if len(res.Next) == 0 {
		res.Next = []string{start, name + " status"}
	}
	return e.Print(res, func(w io.Writer) {
		fmt.Fprintf(w, "%s is a witness of the cluster %s (%s)\n", res.Name, res.Cluster, res.DataDir)
		e.Next(res.Next...)
	})
}

func binary(name string) string { return "/usr/bin/" + strings.Fields(name)[0] }

func runCmd(e *cli.Env, f Funcs) *cobra.Command {
	var o api.RunOptions
	var level string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "run the witness",
		Long:  "Runs the witness of all clusters in its state directory: one process, one port, until it is told to stop.",
		Args:  cli.Args(),
		RunE: cli.Run(func(ctx context.Context, _ []string) error {
			if f.Run == nil {
				return unwired("run a witness")
			}
			log, err := Logger(e.Stderr, level)
			if err != nil {
				return err
			}
			o.Log, o.Version = log, e.Version
			return f.Run(ctx, o)
		}),
	}
	cmd.Flags().StringVar(&o.DataDir, "data", DataDir, "state directory")
	cmd.Flags().StringVar(&o.Group, "group", api.DefaultGroup, "group of the operators")
	cmd.Flags().StringVar(&level, "log", "info", "debug, info, warn or error")
	socketFlag(cmd, e, &o.Socket)
	return cmd
}

// Logger writes to w what is at least of a level.
func Logger(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, api.Errorf(api.CodeUsage, "--log %s: choose debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}

type where struct{ socket, data string }

func (o *where) flags(cmd *cobra.Command, e *cli.Env) {
	socketFlag(cmd, e, &o.socket)
	cmd.Flags().StringVar(&o.data, "data", DataDir, "state directory")
}

func statusCmd(e *cli.Env, f Funcs, name string) *cobra.Command {
	var o where
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show the witness and the clusters that it serves",
		Long:  "Shows the witness and the clusters that it serves. Exit status 4: it does not run, or a cluster has no quorum.",
		Args:  cli.Args(),
		RunE: cli.Run(func(ctx context.Context, _ []string) error {
			s, err := status(ctx, f, o)
			if err != nil {
				return err
			}
			if len(s.Next) == 0 {
				s.Next = nextFor(s, name)
			}
			if err := e.Print(s, func(w io.Writer) { ui.Witness(w, s, e.Screen()) }); err != nil {
				return err
			}
			for _, c := range s.Clusters {
				if !c.Quorum {
					return &cli.Quiet{Status: api.ExitUnreachable}
				}
			}
			if !s.Running {
				return &cli.Quiet{Status: api.ExitUnreachable}
			}
			return nil
		}),
	}
	o.flags(cmd, e)
	return cmd
}

func status(ctx context.Context, f Funcs, o where) (*api.WitnessStatus, error) {
	if f.Status == nil {
		return nil, unwired("ask a witness")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return f.Status(ctx, o.socket, o.data)
}

func nextFor(s *api.WitnessStatus, name string) []string {
	switch {
	case len(s.Clusters) == 0:
		return []string{"hanode token create --role witness     on a node, then here:", name + " join --token TOKEN --name w --advertise IP"}
	case !s.Running:
		return []string{"systemctl start hanode-witness", "journalctl -u hanode-witness -n 50"}
	}
	return []string{"hanode status     on a node"}
}

func listCmd(e *cli.Env, f Funcs) *cobra.Command {
	var o where
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list the clusters that the witness serves",
		Args:  cli.Args(),
		RunE: cli.Run(func(ctx context.Context, _ []string) error {
			s, err := status(ctx, f, o)
			if err != nil {
				return err
			}
			return e.Print(map[string]any{"clusters": s.Clusters}, func(w io.Writer) {
				ui.WitnessClusters(w, s.Clusters, e.Screen())
			})
		}),
	}
	o.flags(cmd, e)
	return cmd
}

func leaveCmd(e *cli.Env, f Funcs, name string) *cobra.Command {
	var o api.WitnessLeave
	var yes bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "leave CLUSTER",
		Short: "take the witness out of a cluster",
		Long: `Takes the witness out of a cluster. Without a witness the cluster goes on, but survives no further failure by
itself: give it another witness first ("hanode member replace").`,
		Args: cli.Args("CLUSTER"),
		RunE: cli.Run(func(ctx context.Context, args []string) error {
			o.Cluster = args[0]
			return runLeave(ctx, e, f, name, o, yes, timeout)
		}),
	}
	cmd.Flags().StringVar(&o.DataDir, "data", DataDir, "state directory")
	cmd.Flags().BoolVar(&o.Wipe, "wipe", false, "remove its state of that cluster afterwards")
	cmd.Flags().StringVar(&o.Reason, "reason", "", "why; it stands in the log")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "give up after this time")
	return cmd
}

func runLeave(ctx context.Context, e *cli.Env, f Funcs, name string, o api.WitnessLeave, yes bool, timeout time.Duration) error {
	if f.Leave == nil {
		return unwired("leave a cluster")
	}
	if err := e.MustAgree(yes, "take this witness out of "+o.Cluster); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, err := f.Leave(ctx, o, e.Progress())
	if err != nil {
		return err
	}
	if len(out.Next) == 0 {
		out.Next = []string{name + " list"}
	}
	return e.Print(out, func(w io.Writer) {
		ui.Outcome(w, out, e.Screen())
		e.Next(out.Next...)
	})
}
