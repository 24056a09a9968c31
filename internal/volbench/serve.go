package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	_ "net/http/pprof"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
	"github.com/hanode/hanode/replication/volume"
)

// loopback is a log without a standby and without a journal: everything is accepted at once, and Sync makes durable what was changed since the
// last one, file by file, as a loopback file system does.
type loopback struct {
	tree  *tree.Tree
	seq   atomic.Uint64
	mu    sync.Mutex
	dirty map[replication.FileID]bool // true: a directory
}

func (l *loopback) Submit(op *replication.Op) (volume.Ticket, error) {
	l.mu.Lock()
	switch op.Kind {
	case replication.Write, replication.SetAttr, replication.Fallocate:
		l.dirty[op.ID] = false
	case replication.Create:
		l.dirty[op.ID] = op.Mode&syscall.S_IFMT != syscall.S_IFREG
		l.dirty[op.Parent] = true
	case replication.Forget:
		delete(l.dirty, op.ID)
	default:
		l.dirty[op.Parent] = true
	}
	l.mu.Unlock()
	return volume.Ticket(l.seq.Add(1)), nil
}

func (l *loopback) Wait(volume.Ticket) error  { return nil }
func (l *loopback) Done(volume.Ticket, error) {}

func (l *loopback) Sync() error {
	l.mu.Lock()
	dirty := l.dirty
	l.dirty = map[replication.FileID]bool{}
	l.mu.Unlock()
	whole := false
	for id, dir := range dirty {
		if dir {
			whole = true
			continue
		}
		f, err := l.tree.OpenFile(id, syscall.O_RDWR)
		if errors.Is(err, syscall.ESTALE) || errors.Is(err, syscall.EINVAL) {
			continue
		}
		if err != nil {
			return err
		}
		fd, err := f.Fd()
		if err == nil {
			err = unix.Fdatasync(fd)
		}
		f.Close()
		if err != nil {
			return err
		}
	}
	if whole {
		return l.tree.Sync()
	}
	return nil
}

// serve serves a loopback volume.
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
	t, err := openTree(*back, *mount)
	if err != nil {
		return err
	}
	v, err := volume.New(volume.Config{Service: "bench", Volume: "data", Index: 1, Mount: *mount, Tree: t, Log: &loopback{tree: t, dirty: map[replication.FileID]bool{}},
		Gate: func() error { return nil }, NoPassthrough: *plain, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	if err := t.Settle(); err != nil {
		return err
	}
	if err := v.SetRole(volume.Active, 1); err != nil {
		return err
	}
	fmt.Println("ready")
	return untilTerm(v, t)
}

func openTree(back, mount string) (*tree.Tree, error) {
	if err := tree.Make(back); err != nil {
		return nil, err
	}
	return tree.Open(back, tree.Options{Mount: mount})
}

// untilTerm serves until SIGTERM.
func untilTerm(v *volume.FS, t *tree.Tree) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		v.Abort(false)
	}()
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
