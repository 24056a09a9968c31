package main

import (
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	_ "net/http/pprof"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication/tree"
	"github.com/hanode/hanode/replication/volume"
	"github.com/hanode/hanode/replication/volume/voltest"
)

// serve serves a loopback volume: every operation is accepted at once.
func serve(args []string) error {
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	back := fs.String("backing", "", "the backing directory; made if it is not there")
	mount := fs.String("mount", "", "the mount point")
	plain := fs.Bool("no-passthrough", false, "serve every read through the mount")
	pprof := fs.String("pprof", "", "address for net/http/pprof")
	if err := fs.Parse(args); err != nil {
		return err
	}
	syscall.Umask(0)
	raiseFiles()
	if *pprof != "" {
		go http.ListenAndServe(*pprof, nil)
	}
	if err := tree.Make(*back); err != nil {
		return err
	}
	t, err := tree.Open(*back, tree.Options{Mount: *mount})
	if err != nil {
		return err
	}
	if err := t.Settle(); err != nil {
		return err
	}
	dir, err := os.Open(*back)
	if err != nil {
		return err
	}
	log := &voltest.Accept{SyncFn: func() error { return unix.Syncfs(int(dir.Fd())) }}
	v, err := volume.New(volume.Config{Service: "bench", Volume: "data", Index: 1, Mount: *mount, Tree: t, Log: log, Gate: func() error { return nil },
		NoPassthrough: *plain, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	if err := v.SetRole(volume.Active, 1); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		v.Abort(false)
	}()
	fmt.Println("ready")
	v.Serve()
	return t.Close()
}

// raiseFiles raises the limit of open files as far as it goes.
func raiseFiles() {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
		lim.Cur = lim.Max
		unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
	}
}
