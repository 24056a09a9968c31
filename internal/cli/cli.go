// Package cli is what all commands of hanode and hanode-witness have in common: where they print, how they ask a person,
// which exit status they end with, and how an error looks.
//
// Results go to stdout; progress, questions, hints and errors go to stderr. With --json a result is one object on stdout,
// and progress and errors are objects on stderr, one a line. A command never exits by itself: Execute returns the status.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/ui"
)

// Env is the world of a command.
type Env struct {
	Stdin       io.Reader
	Stdout      io.Writer
	Stderr      io.Writer
	Interactive bool // somebody can be asked: stdin and stderr are terminals
	Colour      bool // stdout is a terminal that shows colours
	Getenv      func(string) string
	Now         func() time.Time
	Zone        *time.Location
	Version     api.Version
	JSON        bool // --json
}

// System is the real world. version is what the linker set; "" if nothing.
func System(version string) *Env {
	tty := func(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
	return &Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Interactive: tty(os.Stdin) && tty(os.Stderr),
		Colour:      tty(os.Stdout) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
		Getenv:      os.Getenv, Now: time.Now, Zone: time.Local, Version: build(version),
	}
}

func build(version string) api.Version {
	v := api.Version{Version: version, Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if v.Version == "" {
		v.Version = strings.Trim(info.Main.Version, "()")
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Commit = s.Value
		}
	}
	return v
}

// Screen is how to draw on stdout.
func (e *Env) Screen() ui.Options {
	return ui.Options{Colour: e.Colour, Zone: e.Zone, Now: e.Now()}
}

// Side is how to draw on stderr.
func (e *Env) Side() ui.Options { return ui.Options{Zone: e.Zone, Now: e.Now()} }

// Print prints a result: v as one object with --json, else what draw draws.
func (e *Env) Print(v any, draw func(io.Writer)) error {
	if !e.JSON {
		draw(e.Stdout)
		return nil
	}
	return e.Object(v)
}

// Object prints one object on one line.
func (e *Env) Object(v any) error {
	enc := json.NewEncoder(e.Stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// Progress tells steps on stderr.
func (e *Env) Progress() api.Progress {
	return func(s api.Step) {
		if e.JSON {
			e.aside(map[string]any{"step": s})
			return
		}
		fmt.Fprintln(e.Stderr, ui.Step(s, e.Side()))
	}
}

func (e *Env) aside(v any) {
	enc := json.NewEncoder(e.Stderr)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // stderr is gone: nobody could be told
}

// Say tells something on stderr that is no result. With --json it says nothing.
func (e *Env) Say(format string, args ...any) {
	if !e.JSON {
		fmt.Fprintf(e.Stderr, format+"\n", args...)
	}
}

// Next tells the next commands on stderr. With --json they are in the object.
func (e *Env) Next(commands ...string) {
	for i, c := range commands {
		head := "next:  "
		if i > 0 {
			head = "       "
		}
		e.Say("%s%s", head, c)
	}
}

// Ask asks a question that is answered by yes or no.
func (e *Env) Ask(question string) (bool, error) {
	fmt.Fprintf(e.Stderr, "%s [y/N] ", question)
	answer, err := e.line()
	answer = strings.ToLower(answer)
	return answer == "y" || answer == "yes", err
}

// AskToType asks for exactly these words.
func (e *Env) AskToType(words string) (bool, error) {
	fmt.Fprintf(e.Stderr, "Type %q to go on: ", words)
	answer, err := e.line()
	return answer == words, err
}

// line reads one short line, a byte at a time: what follows is not ours.
func (e *Env) line() (string, error) {
	const most = 256
	var line []byte
	for b := make([]byte, 1); len(line) < most; {
		n, err := e.Stdin.Read(b)
		if n == 1 && b[0] != '\n' {
			line = append(line, b[0])
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read the answer: %w", err)
		}
		if n == 1 || err != nil {
			break
		}
	}
	return strings.TrimSpace(string(line)), nil
}

// Quiet ends a command with a status after everything has been said.
type Quiet struct{ Status int }

func (q *Quiet) Error() string { return fmt.Sprintf("exit status %d", q.Status) }

// ran marks errors of a command that was understood; all others are wrong usage.
type ran struct{ error }

func (r ran) Unwrap() error { return r.error }

// Run makes a command's RunE.
func Run(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := f(cmd.Context(), args); err != nil {
			return ran{err}
		}
		return nil
	}
}

// Group makes a command that only has further commands.
func Group(use, short string, sub ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: func(cmd *cobra.Command, args []string) error {
		var names []string
		for _, s := range cmd.Commands() {
			if s.IsAvailableCommand() {
				names = append(names, s.Name())
			}
		}
		if len(args) > 0 {
			return fmt.Errorf("%s %s is no command: choose one of %s", cmd.CommandPath(), args[0], strings.Join(names, ", "))
		}
		cmd.SetOut(cmd.ErrOrStderr())
		_ = cmd.Help() // stderr is gone: nobody could be told
		return ran{&Quiet{Status: api.ExitUsage}}
	}}
	cmd.AddCommand(sub...)
	return cmd
}

// Args wants so many arguments, called as in names.
func Args(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return fmt.Errorf("want %s, got %d arguments", strings.Join(names, " "), len(args))
		}
		return nil
	}
}

// Execute runs a command and returns its exit status; errors have been said then.
func Execute(ctx context.Context, e *Env, root *cobra.Command, args []string) int {
	root.SetArgs(args)
	root.SetIn(e.Stdin)
	root.SetOut(e.Stdout)
	root.SetErr(e.Stderr)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.PersistentFlags().BoolVar(&e.JSON, "json", false, "print one JSON object (contract of hanode: keys are only ever added)")
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return api.ExitDone
	}
	var quiet *Quiet
	var r ran
	switch {
	case errors.As(err, &quiet):
		return quiet.Status
	case !errors.As(err, &r):
		err = &api.Error{Code: api.CodeUsage, What: err.Error(), Do: cmd.CommandPath() + " --help"}
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		err = &api.Error{Code: api.CodeFailed, What: "interrupted", Do: "an order that had been given may still be carried out: hanode events"}
	}
	e.Fail(err)
	return api.ExitStatus(err)
}

// Fail says an error.
func (e *Env) Fail(err error) {
	a := *api.AsError(err)
	a.Exit = api.ExitStatus(err)
	if e.JSON {
		e.aside(map[string]any{"error": a})
		return
	}
	ui.Error(e.Stderr, &a, e.Side())
}

// PrintVersion prints the version of this command alone.
func (e *Env) PrintVersion(name string) error {
	return e.Print(e.Version, func(w io.Writer) { fmt.Fprintln(w, VersionLine(name, e.Version)) })
}

// VersionLine says a version in one line.
func VersionLine(name string, v api.Version) string {
	line := name + " " + v.Version
	if v.Commit != "" {
		line += " (" + v.Commit[:min(12, len(v.Commit))] + ")"
	}
	if v.FeatureLevel > 0 {
		line += fmt.Sprintf(", feature level %d", v.FeatureLevel)
	}
	return line + ", " + v.Go
}
