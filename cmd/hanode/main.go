// Command hanode is the daemon of a node and all commands of operators. Each command stands in a file of its own and
// takes its world as an argument; what runs a node is wired in seams.go.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/witnesscmd"
)

var version string // set by the linker

func main() {
	e := &env{Env: cli.System(version), dial: dialSocket, seams: wire()}
	if child, ok := e.child(os.Args[1:]); ok {
		os.Exit(child())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	status := run(ctx, e, os.Args[1:])
	stop()
	os.Exit(status)
}

// env is the world of the commands.
type env struct {
	*cli.Env
	seams
	socket string
	dial   func(socket string) (backend api.Backend, hangUp func())
}

func dialSocket(socket string) (api.Backend, func()) {
	c := api.Dial(socket)
	return c, c.Close
}

// daemon returns the daemon that --socket or HANODE_SOCKET chooses; call hangUp at the end.
func (e *env) daemon() (b api.Backend, hangUp func()) { return e.dial(e.socket) }

// run is the whole program but its exit.
func run(ctx context.Context, e *env, args []string) int {
	return cli.Execute(ctx, e.Env, commands(e), args)
}

func commands(e *env) *cobra.Command {
	root := cli.Group("hanode", "keeps services running on two nodes and a witness: never two actives, nothing acknowledged lost")
	root.PersistentFlags().StringVar(&e.socket, "socket", firstOf(e.Getenv("HANODE_SOCKET"), api.DefaultSocket), "socket of the daemon ($HANODE_SOCKET)")
	for _, g := range []struct {
		id, title string
		cmds      []*cobra.Command
	}{
		{"look", "See what is:", []*cobra.Command{statusCmd(e), explainCmd(e), eventsCmd(e), alarmCmd(e), checkCmd(e), waitCmd(e), leaderCmd(e)}},
		{"move", "Move services:", []*cobra.Command{switchoverCmd(e), failoverCmd(e), failbackCmd(e), approveCmd(e), declineCmd(e), forceCmd(e), recoverCmd(e)}},
		{"services", "Order services:", []*cobra.Command{serviceCmd(e), pauseCmd(e), resumeCmd(e), specCmd(e), applyCmd(e), volumeCmd(e)}},
		{"members", "Members:", []*cobra.Command{initCmd(e), tokenCmd(e), joinCmd(e), memberCmd(e), leaveCmd(e), witnessCmd(e)}},
		{"rest", "The rest:", []*cobra.Command{runCmd(e), upgradeCmd(e), backupCmd(e), restoreCmd(e), keyCmd(e), alertCmd(e), demoCmd(e), debugCmd(e), versionCmd(e), manCmd(e)}},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, c := range g.cmds {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	root.SetHelpCommandGroupID("rest")
	root.SetCompletionCommandGroupID("rest")
	return root
}

func witnessCmd(e *env) *cobra.Command {
	return cli.Group("witness", "the witness: it votes and carries no data", witnesscmd.Commands(e.Env, e.witness, "hanode witness")...)
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
