package main

import (
	"context"
	"io"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/witnesscmd"
)

// seams is what the commands call that is not on the daemon's socket. wire fills it: the one place where the commands
// meet the rooms that carry them out. A nil function says that this build cannot do it.
type seams struct {
	initNode func(context.Context, api.InitOptions, api.Progress) (*api.InitResult, error)
	joinNode func(context.Context, api.JoinOptions, api.Progress) (*api.JoinResult, error)
	runNode  func(context.Context, api.RunOptions) error
	// wipe waits until the daemon of this data directory has ended, and empties it.
	wipe func(ctx context.Context, dataDir string) error

	// checkSpec finds what is wrong with a spec without asking any member; formatSpec writes it as it should look.
	checkSpec  func(file string, text []byte) []api.Diagnostic
	formatSpec func(file string, text []byte) ([]byte, []api.Diagnostic)

	// demo takes the arguments after "demo"; results on stdout, progress on stderr.
	demo func(ctx context.Context, args []string, stdout, stderr io.Writer) error

	// execChild and guard are the hidden commands by which the daemon starts its children. They get the arguments after
	// their name, run before anything of the command line is built, and return the exit status.
	execChild func(args []string) int
	guard     func(args []string) int

	witness witnesscmd.Funcs
}

func wire() seams {
	return seams{}
}
