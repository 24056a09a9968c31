package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/ui"
)

func volumeCmd(e *env) *cobra.Command {
	return cli.Group("volume", "look at the data of services, and order something about a copy",
		volumeStatusCmd(e),
		volumeOrderCmd(e, api.VolumeResync, askIfThere, "compare a copy with the active's from end to end",
			"Compares every byte of a copy that is not in sync with the active's. Only what differs crosses the network."),
		volumeOrderCmd(e, api.VolumeReplace, askAlways, "make a lost copy anew",
			"After a lost disk: lets the backing directories that are missing on the node be made anew; they are filled from the active. Refused while the log calls this copy in sync."),
		volumeOrderCmd(e, api.VolumeDisconnect, askAlways, "keep a copy away from the active",
			"The copy on the node follows no more, until \"hanode volume connect\". The service goes on, degraded."),
		volumeOrderCmd(e, api.VolumeConnect, askNever, "let a copy follow again", "Ends \"hanode volume disconnect\"."),
		volumeOrderCmd(e, api.VolumeAdopt, askAlways, "make an existing directory a volume, in place",
			"Makes a directory with files the backing of a volume, by a rename: nothing is copied. Before the volume is in the spec, on the first node of its service, with nothing having a file of it open."),
		divergentCmd(e))
}

func divergentCmd(e *env) *cobra.Command {
	return cli.Group("divergent", "what was set aside from a copy, because nobody else had it",
		divergentOrderCmd(e, api.VolumeDivergent, "list SERVICE/VOLUME", askNever, 1, "list what was set aside on a node"),
		divergentOrderCmd(e, api.VolumeDiff, "diff SERVICE/VOLUME SET", askNever, 2, "compare a set with what the volume holds now"),
		divergentOrderCmd(e, api.VolumeRestore, "restore SERVICE/VOLUME SET FILE", askNever, 3, "write a file of a set to a directory outside the volume"),
		divergentOrderCmd(e, api.VolumeDiscard, "discard SERVICE/VOLUME SET", askAlways, 2, "remove a set for good"))
}

func divergentOrderCmd(e *env, action, use string, ask asking, words int, short string) *cobra.Command {
	var o volumeOptions
	cmd := &cobra.Command{
		Use:               use,
		Short:             short,
		Example:           "  hanode volume divergent list db/data --node a",
		Args:              cobra.ExactArgs(words),
		ValidArgsFunction: e.completeServices,
		RunE: cli.Run(func(ctx context.Context, args []string) error {
			o.set, o.file = strings.Join(args[1:min(2, len(args))], ""), strings.Join(args[min(2, len(args)):], "")
			return runVolume(ctx, e, action, args[0], ask, o)
		}),
	}
	o.register(cmd, 10*time.Minute)
	cmd.Flags().StringVar(&o.node, "node", "", "on which node; the one that is asked")
	if action == api.VolumeRestore {
		cmd.Flags().StringVar(&o.dir, "to", "", "where it is written")
	}
	return cmd
}

func volumeStatusCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:               "status SERVICE",
		Short:             "show every copy of a service's data, with position, lag and latency",
		Args:              cli.Args("SERVICE"),
		ValidArgsFunction: e.completeServices,
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return runVolumeStatus(ctx, e, args[0]) }),
	}
}

func runVolumeStatus(ctx context.Context, e *env, name string) error {
	b, hangUp := e.daemon()
	defer hangUp()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	service, volume, _ := strings.Cut(name, "/")
	a, err := b.Volume(ctx, api.VolumeRequest{Action: api.VolumeStatus, Service: service, Volume: volume}, nil)
	if err != nil {
		return err
	}
	return e.Print(a, func(w io.Writer) { ui.Volume(w, a, e.Screen()) })
}

type volumeOptions struct {
	orderFlags
	node, dir string
	set, file string
}

func volumeOrderCmd(e *env, action string, ask asking, short, long string) *cobra.Command {
	var o volumeOptions
	cmd := &cobra.Command{
		Use:               action + " SERVICE/VOLUME",
		Short:             short,
		Long:              long,
		Example:           "  hanode volume " + action + " db/data --node b",
		Args:              cli.Args("SERVICE/VOLUME"),
		ValidArgsFunction: e.completeServices,
		RunE:              cli.Run(func(ctx context.Context, args []string) error { return runVolume(ctx, e, action, args[0], ask, o) }),
	}
	o.register(cmd, 10*time.Minute)
	cmd.Flags().StringVar(&o.node, "node", "", "whose copy; the node that is asked")
	if action == api.VolumeAdopt {
		cmd.Example = "  hanode volume adopt db/data --from /var/lib/postgresql/15/main --plan"
		cmd.Flags().StringVar(&o.dir, "from", "", "the directory that becomes the volume and its mount point")
	}
	return cmd
}

func runVolume(ctx context.Context, e *env, action, name string, ask asking, o volumeOptions) error {
	service, volume, _ := strings.Cut(name, "/")
	b, hangUp := e.daemon()
	defer hangUp()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	r := api.VolumeRequest{Order: o.order(), Action: action, Service: service, Volume: volume, Node: o.node, Dir: o.dir, Set: o.set, File: o.file}
	r.Plan = true
	a, err := b.Volume(ctx, r, e.Progress()) // refused before anybody is asked
	if err != nil {
		return err
	}
	if !o.plan {
		if ask == askAlways && !o.yes {
			for _, t := range a.Text {
				fmt.Fprintln(e.Stderr, t)
			}
			if err := e.MustAgree(false, action+" "+name); err != nil {
				return err
			}
		}
		r.Plan = false
		if a, err = b.Volume(ctx, r, e.Progress()); err != nil {
			return err
		}
		if len(a.Next) == 0 {
			a.Next = append(a.Next, "hanode volume status "+service)
		}
	}
	return e.Print(a, func(w io.Writer) {
		ui.Volume(w, a, e.Screen())
		e.Next(a.Next...)
	})
}
