package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/ui"
)

func specCmd(e *env) *cobra.Command {
	return cli.Group("spec", "show, check, format, compare and describe the spec", specShowCmd(e), specCheckCmd(e), specFmtCmd(e), specLogCmd(e), specDiffCmd(e), specSchemaCmd(e), specHelpCmd(e))
}

func specShowCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "show [VERSION]",
		Short: "print the spec as it was applied",
		Args:  atMostOne("VERSION"),
		RunE:  cli.Run(func(ctx context.Context, args []string) error { return runSpecShow(ctx, e, optional(args)) }),
	}
}

func runSpecShow(ctx context.Context, e *env, arg string) error {
	s, err := e.spec(ctx, arg)
	if err != nil {
		return err
	}
	return e.Print(s, func(w io.Writer) {
		io.WriteString(w, s.Text)
		e.Say("version %d, applied by %s", s.Version, s.By)
		e.Next("hanode spec show > ha.hcl, edit it, then hanode apply --plan --base " + strconv.FormatUint(s.Version, 10) + " ha.hcl")
	})
}

// spec fetches a version; "" is the newest.
func (e *env) spec(ctx context.Context, arg string) (*api.SpecText, error) {
	var n uint64
	if arg != "" {
		var err error
		if n, err = strconv.ParseUint(arg, 10, 64); err != nil || n == 0 {
			return nil, api.Errorf(api.CodeUsage, "version %s: want a number, as hanode spec log prints it", arg)
		}
	}
	b, hangUp := e.daemon()
	defer hangUp()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	return b.Spec(ctx, n)
}

func specCheckCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "check a file without any daemon: syntax, keys, values",
		Long: `Checks a file without any daemon: syntax, keys, values. What only the nodes can know (commands, users, interfaces,
paths) is checked by "hanode apply --plan FILE". Exit status 2: it is not valid.`,
		Args: cli.Args("FILE"),
		RunE: cli.Run(func(_ context.Context, args []string) error { return runSpecCheck(e, args[0]) }),
	}
}

func runSpecCheck(e *env, file string) error {
	if e.checkSpec == nil {
		return unwired("check a spec")
	}
	text, err := e.readFile(file)
	if err != nil {
		return err
	}
	ds := e.checkSpec(file, text)
	if invalid(ds) {
		return &api.Error{Code: api.CodeInvalid, What: file + " is not valid", Problems: ds}
	}
	return e.Print(map[string]any{"file": file, "valid": true, "problems": api.List[api.Diagnostic](ds)}, func(w io.Writer) {
		ui.Problems(e.Stderr, ds, e.Side())
		fmt.Fprintln(w, file+" is valid")
		e.Next("hanode apply --plan " + file)
	})
}

func invalid(ds []api.Diagnostic) bool {
	for _, d := range ds {
		if d.Severity != "warning" {
			return true
		}
	}
	return false
}

func specFmtCmd(e *env) *cobra.Command {
	var write bool
	cmd := &cobra.Command{
		Use:   "fmt FILE",
		Short: "print a file as it should look, or rewrite it",
		Args:  cli.Args("FILE"),
		RunE:  cli.Run(func(_ context.Context, args []string) error { return runSpecFmt(e, args[0], write) }),
	}
	cmd.Flags().BoolVarP(&write, "write", "w", false, "rewrite the file instead of printing it")
	return cmd
}

func runSpecFmt(e *env, file string, write bool) error {
	if e.formatSpec == nil {
		return unwired("format a spec")
	}
	text, err := e.readFile(file)
	if err != nil {
		return err
	}
	out, ds := e.formatSpec(file, text)
	if invalid(ds) {
		return &api.Error{Code: api.CodeInvalid, What: file + " cannot be formatted", Problems: ds}
	}
	if !write || file == "-" {
		return e.Print(map[string]any{"file": file, "changed": !bytes.Equal(out, text), "text": string(out)}, func(w io.Writer) { _, _ = w.Write(out) })
	}
	changed := !bytes.Equal(out, text)
	if changed {
		if err := replaceFile(file, out); err != nil {
			return err
		}
	}
	return e.Print(map[string]any{"file": file, "changed": changed}, func(w io.Writer) {
		if changed {
			fmt.Fprintln(w, file)
		}
		e.Next("hanode spec check " + file)
	})
}

// replaceFile writes a file anew in one step and keeps its mode.
func replaceFile(path string, text []byte) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", text, st.Mode().Perm()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func specLogCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "log",
		Short: "list the versions of the spec: when, by whom, what",
		Args:  cli.Args(),
		RunE:  cli.Run(func(ctx context.Context, _ []string) error { return runSpecLog(ctx, e) }),
	}
}

func runSpecLog(ctx context.Context, e *env) error {
	b, hangUp := e.daemon()
	defer hangUp()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	log, err := b.SpecLog(ctx)
	if err != nil {
		return err
	}
	return e.Print(map[string]any{"versions": api.List[api.SpecChange](log)}, func(w io.Writer) { ui.SpecLog(w, log, e.Screen()) })
}

func specDiffCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "diff [VERSION | FILE]",
		Short: "compare the present spec with an older version or with a file",
		Long: `Compares the present spec with an older version (by default the one before it), or a file with the present spec.
Exit status 0 whether they differ or not.`,
		Args: atMostOne("VERSION or FILE"),
		RunE: cli.Run(func(ctx context.Context, args []string) error { return runSpecDiff(ctx, e, optional(args)) }),
	}
}

func runSpecDiff(ctx context.Context, e *env, arg string) error {
	now, err := e.spec(ctx, "")
	if err != nil {
		return err
	}
	from, to := &api.SpecText{}, now
	fromName, toName := "nothing", fmt.Sprintf("version %d", now.Version)
	_, notNumber := strconv.ParseUint(arg, 10, 64)
	switch {
	case arg != "" && notNumber != nil:
		text, err := e.readFile(arg)
		if err != nil {
			return err
		}
		from, fromName, to, toName = now, toName, &api.SpecText{Text: string(text)}, arg
	case arg != "" || now.Version > 1:
		if arg == "" {
			arg = strconv.FormatUint(now.Version-1, 10)
		}
		if from, err = e.spec(ctx, arg); err != nil {
			return err
		}
		fromName = "version " + arg
	}
	var buf bytes.Buffer
	o := e.Screen()
	o.Colour = o.Colour && !e.JSON
	differ := ui.Diff(&buf, fromName, from.Text, toName, to.Text, o)
	return e.Print(map[string]any{"from": fromName, "to": toName, "differ": differ, "diff": buf.String()}, func(w io.Writer) {
		if !differ {
			fmt.Fprintf(w, "%s and %s are the same\n", fromName, toName)
		}
		_, _ = w.Write(buf.Bytes())
		e.Next("hanode spec log")
	})
}

func specSchemaCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "print the language of the spec as a JSON schema, for editors",
		Args:  cli.Args(),
		RunE: cli.Run(func(context.Context, []string) error {
			if e.specSchema == nil {
				return unwired("print the schema")
			}
			_, err := e.Stdout.Write(e.specSchema())
			return err
		}),
	}
}

func specHelpCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "keys [BLOCK]",
		Short:   "describe every key of the spec, or those of one block",
		Example: "  hanode spec keys check",
		Args:    atMostOne("BLOCK"),
		RunE: cli.Run(func(_ context.Context, args []string) error {
			if e.specHelp == nil {
				return unwired("describe the spec")
			}
			text := e.specHelp(optional(args))
			if text == "" {
				return &api.Error{Code: api.CodeNotFound, What: "the spec has no block " + optional(args), Do: "hanode spec keys lists all"}
			}
			return e.Print(map[string]any{"text": text}, func(w io.Writer) { io.WriteString(w, text) })
		}),
	}
}

func unwired(what string) error {
	return api.Errorf(api.CodeFailed, "this build cannot %s", what)
}
