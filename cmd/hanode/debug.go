package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
)

type bundleOptions struct {
	out     string
	data    string
	timeout time.Duration
}

func debugCmd(e *env) *cobra.Command {
	return cli.Group("debug", "collect what those need who look for a fault", bundleCmd(e))
}

func bundleCmd(e *env) *cobra.Command {
	var o bundleOptions
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "write state, decisions, events, logs and stacks into one file",
		Long: `Writes state, decisions, events, logs and stacks into one gzipped tar. It holds no key and no token, but names and
addresses. If the daemon does not answer it holds what is known without it.`,
		Args: cli.Args(),
		RunE: cli.Run(func(ctx context.Context, _ []string) error { return runBundle(ctx, e, o) }),
	}
	cmd.Flags().StringVarP(&o.out, "output", "o", "", "the file; - is stdout (default hanode-debug-TIME.tar.gz)")
	cmd.Flags().StringVar(&o.data, "data", dataDir, "state directory, if the daemon does not answer")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Minute, "give up after this time")
	return cmd
}

func runBundle(ctx context.Context, e *env, o bundleOptions) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	name := "hanode-debug-" + e.Now().UTC().Format("20060102-150405")
	if o.out == "-" {
		return e.writeBundle(ctx, e.Stdout, name, o)
	}
	if o.out == "" {
		o.out = name + ".tar.gz"
	}
	f, err := os.OpenFile(o.out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return &api.Error{Code: api.CodeUsage, What: err.Error(), Do: "choose another file with --output"}
	}
	if err := errors.Join(e.writeBundle(ctx, f, name, o), f.Close()); err != nil {
		return errors.Join(err, os.Remove(o.out))
	}
	st, err := os.Stat(o.out)
	if err != nil {
		return err
	}
	path, err := filepath.Abs(o.out)
	if err != nil {
		return err
	}
	return e.Print(map[string]any{"file": path, "size_bytes": st.Size()}, func(w io.Writer) {
		fmt.Fprintln(w, path)
		e.Next("tar -tzf " + o.out + "     to see what is in it before you give it away")
	})
}

// writeBundle lets the daemon write it, or writes what is known without the daemon.
func (e *env) writeBundle(ctx context.Context, w io.Writer, name string, o bundleOptions) error {
	b, hangUp := e.daemon()
	defer hangUp()
	err := b.DebugBundle(ctx, w)
	if err == nil || api.ExitStatus(err) != api.ExitUnreachable {
		return err
	}
	e.Say("hanode does not answer (%v): the bundle holds what is known without it", err)
	out := api.NewBundle(w, name, e.Now())
	parts := []error{out.AddJSON("version.json", e.Version), out.AddJSON("why.json", api.AsError(err))}
	if s, serr := api.LoadLastStatus(o.data, e.Now()); serr == nil {
		parts = append(parts, out.AddJSON(api.LastStatusFile, s))
	} else {
		parts = append(parts, out.Add("no-last-status.txt", []byte(serr.Error()+"\n")))
	}
	return errors.Join(append(parts, out.Close())...)
}
