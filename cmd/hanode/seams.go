package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/hanode/hanode/cluster/spec"
	"github.com/hanode/hanode/failover/supervise"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/guard"
	"github.com/hanode/hanode/internal/lab"
	"github.com/hanode/hanode/internal/node"
	"github.com/hanode/hanode/internal/volserver"
	"github.com/hanode/hanode/internal/witnesscmd"
	"github.com/hanode/hanode/internal/witnesswire"
)

// seams is what the commands call that is not on the daemon's socket. wire fills it: the one place where the commands
// meet the rooms that carry them out. A nil function says that this build cannot do it.
type seams struct {
	initNode    func(context.Context, api.InitOptions, api.Progress) (*api.InitResult, error)
	joinNode    func(context.Context, api.JoinOptions, api.Progress) (*api.JoinResult, error)
	runNode     func(context.Context, api.RunOptions) error
	restoreNode func(context.Context, api.RestoreOptions, api.Progress) (*api.RestoreResult, error)
	// wipe waits until the daemon of this data directory has ended, and empties it.
	wipe func(ctx context.Context, dataDir string) error

	// checkSpec finds what is wrong with a spec without asking any member; formatSpec writes it as it should look.
	checkSpec  func(file string, text []byte) []api.Diagnostic
	formatSpec func(file string, text []byte) ([]byte, []api.Diagnostic)
	// specSchema is the language of the spec as a JSON schema; specHelp describes it, or one block of it, for people.
	specSchema func() []byte
	specHelp   func(block string) string

	// demo takes the arguments after "demo"; results on stdout, progress on stderr.
	demo func(ctx context.Context, args []string, stdout, stderr io.Writer) error

	// execChild, guard and volumeServer are the hidden commands by which the daemon starts its children. They get the arguments after
	// their name, run before anything of the command line is built, and return the exit status.
	execChild func(args []string) int
	guard     func(args []string) int
	// volumeServer is the process that holds one service's volumes.
	volumeServer func(args []string) int
	// demoMain is the demo with everything behind it: its own children and exit statuses.
	demoMain func(args []string) int

	witness witnesscmd.Funcs
}

func wire() seams {
	return seams{
		initNode: node.Init, joinNode: node.Join, runNode: node.Run, restoreNode: node.Restore, wipe: node.Wipe, checkSpec: checkSpec, formatSpec: formatSpec, specSchema: spec.Schema, specHelp: spec.Help, demo: runDemo,
		execChild:    func(args []string) int { return status(supervise.ExecChild(args)) },
		guard:        func([]string) int { return status(guard.Main()) },
		volumeServer: volserver.Main,
		demoMain: func(args []string) int {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return lab.Main(ctx, args, os.Stdout, os.Stderr)
		},
		witness: witnesswire.Funcs(),
	}
}

// status is the exit status of a hidden command.
func status(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "hanode:", err)
	return 1
}

func checkSpec(file string, text []byte) []api.Diagnostic {
	_, ds := spec.Parse(file, text)
	var out []api.Diagnostic
	for _, d := range ds {
		out = append(out, api.Diagnostic{File: d.File, Line: d.Line, Column: d.Column, Severity: "error", Text: d.What, Do: d.Remedy})
	}
	return out
}

func formatSpec(file string, text []byte) ([]byte, []api.Diagnostic) {
	return spec.Format(text), checkSpec(file, text)
}

// runDemo is never reached with demoMain set; it keeps the command in the help.
func runDemo(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if code := lab.Main(ctx, args, stdout, stderr); code != 0 {
		return api.Errorf(api.CodeFailed, "the demo ended with status %d", code)
	}
	return nil
}
