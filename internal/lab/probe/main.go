package probe

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/signal"
	"syscall"
	"time"
)

// Command is the word behind which Main is reached in the program that embeds the lab.
const Command = "probe"

// Main is the probe as a process of its own: what the lab starts in its client hosts. It returns the exit status.
func Main(args []string, stderr io.Writer) int {
	fs := flag.NewFlagSet(Command, flag.ContinueOnError)
	fs.SetOutput(stderr)
	target := fs.String("target", "10.77.0.100:8080", "address and port of the service")
	name := fs.String("name", "c", "name of this client in the records")
	sinkPath := fs.String("sink", "", "unix socket of the collector")
	every := fs.Duration("every", 0, "time between two connections")
	timeout := fs.Duration("timeout", 200*time.Millisecond, "patience with one connection")
	plain := fs.Bool("plain", false, "an ordinary client instead: the kernel's own time-outs")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	to, err := netip.ParseAddrPort(*target)
	if err != nil {
		fmt.Fprintf(stderr, "probe: -target: %v\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	dial := func() (io.WriteCloser, error) { return net.Dial("unix", *sinkPath) }
	if *plain {
		err = Plain{Target: to, Every: *every}.Run(ctx, dial)
	} else {
		var w io.WriteCloser
		if w, err = dial(); err == nil {
			err = Fast{Target: to, Every: *every, Timeout: *timeout}.Run(ctx, *name, w)
		}
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(stderr, "probe:", err)
		return 1
	}
	return 0
}
