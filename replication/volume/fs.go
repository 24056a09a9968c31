package volume

import (
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

// Role is what the volume server of this member is for its service.
type Role uint8

const (
	Standby Role = iota // readable; EROFS to writers
	Active              // writable
	fenced              // EIO to everybody: Abort was called
)

// Config of a file system.
type Config struct {
	Service string
	Volume  string
	Index   uint8      // of the volume in its service, from 1
	Mount   string     // the mount point: an empty directory
	Tree    *tree.Tree // settled before the volume becomes active
	Log     Log
	// Gate returns nil while this member may act in its epoch. It is asked before and after each request on the active.
	Gate func() error
	// Suid and Dev leave out nosuid and nodev.
	Suid, Dev bool
	// NoPassthrough serves every read through the server or the kernel's cache of this mount.
	NoPassthrough bool
	Logger        *slog.Logger
}

// check returns all that is wrong with the configuration.
func (c *Config) check() error {
	var errs []error
	if c.Tree == nil || c.Log == nil || c.Gate == nil {
		errs = append(errs, errors.New("a volume needs a tree, a log and a gate"))
	}
	if c.Index == 0 {
		errs = append(errs, errors.New("volume index 0: volumes of a service are counted from 1"))
	}
	if !strings.HasPrefix(c.Mount, "/") {
		errs = append(errs, fmt.Errorf("mount point %q: give an absolute path", c.Mount))
	}
	return errors.Join(errs...)
}

// role is what SetRole said last.
type role struct {
	Role
	epoch cluster.Epoch // now
	since cluster.Epoch // of the promotion: handles of earlier epochs may not write
}

// FS is a mounted volume. Its exported methods may be called at any time by any goroutine.
type FS struct {
	fuse.RawFileSystem // answers ENOSYS to what is not implemented here
	cfg                Config
	tree               *tree.Tree
	log                Log
	logger             *slog.Logger
	role               atomic.Pointer[role]
	roleMu             sync.Mutex
	nodes              nodes
	handles            handles
	seen               seenOnStandby
	hot                hot
	stores             stores
	stats              Stats
	passthrough        atomic.Bool
	server             *fuse.Server
	aborted            chan struct{}
	serveOnce          sync.Once
	served             chan struct{}
}

// Kernel time-outs for attributes, entries and their absence on the active, where every change goes through this mount.
const longTime = 24 * time.Hour

// New mounts the volume; it is answered by Serve, as a standby until SetRole says otherwise.
func New(cfg Config) (*FS, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := preparePoint(cfg.Mount); err != nil {
		return nil, err
	}
	v := &FS{RawFileSystem: fuse.NewDefaultRawFileSystem(), cfg: cfg, tree: cfg.Tree, log: cfg.Log, logger: cfg.Logger.With("volume", cfg.Volume),
		aborted: make(chan struct{}), served: make(chan struct{})}
	v.role.Store(&role{Role: Standby})
	var err error
	if v.server, err = fuse.NewServer(v, cfg.Mount, v.options()); err != nil {
		return nil, fmt.Errorf("mount %s on %s: %w", cfg.Volume, cfg.Mount, err)
	}
	v.passthrough.Store(!cfg.NoPassthrough && v.server.KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH != 0)
	return v, nil
}

func (v *FS) options() *fuse.MountOptions {
	flags := uintptr(syscall.MS_NOSUID | syscall.MS_NODEV)
	if v.cfg.Suid {
		flags &^= syscall.MS_NOSUID
	}
	if v.cfg.Dev {
		flags &^= syscall.MS_NODEV
	}
	if flags == 0 {
		flags = syscall.MS_MGC_VAL
	}
	return &fuse.MountOptions{
		AllowOther:               true,
		Options:                  []string{"default_permissions"},
		DirectMountStrict:        true,
		DirectMountFlags:         flags,
		FsName:                   "hanode:" + v.cfg.Service + "/" + v.cfg.Volume,
		Name:                     "hanode",
		MaxWrite:                 replication.MaxData,
		MaxReadAhead:             replication.MaxData,
		MaxBackground:            64,
		EnableAcl:                true,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		DisableSplice:            true,
		Logger:                   log.New(lines{v.logger}, "", 0),
		PanicHandler:             v.panicked,
		ExtraCapabilities: fuse.CAP_EXPORT_SUPPORT | fuse.CAP_DONT_MASK | fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_ASYNC_DIO | fuse.CAP_READDIRPLUS_AUTO |
			fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_SETXATTR_EXT | fuse.CAP_DIRECT_IO_ALLOW_MMAP,
	}
}

// lines gives what the library has to say to our log.
type lines struct{ *slog.Logger }

func (l lines) Write(b []byte) (int, error) {
	l.Debug("fuse", "says", strings.TrimSpace(string(b)))
	return len(b), nil
}

// panicked makes a panic in the handling of a request end the process: a volume server that is in doubt of its state must not go on.
func (v *FS) panicked(what any) fuse.Status {
	panic(what)
}

// String names the file system in the list of mounts.
func (v *FS) String() string { return "hanode" }

// Serve answers requests until the volume is unmounted or aborted.
func (v *FS) Serve() {
	v.serveOnce.Do(func() {
		v.server.Serve()
		close(v.served)
		v.stores.wg.Wait()
	})
	<-v.served
}

// Close unmounts an idle volume. It fails while somebody uses it; see Abort.
func (v *FS) Close() error {
	if err := v.server.Unmount(); err != nil {
		return fmt.Errorf("unmount %s: %w", v.cfg.Mount, err)
	}
	return nil
}

// SetRole turns a standby into the active of an epoch, or tells the active of a new epoch of the same tenure (a Bump), after which handles that
// are open stay good. The epoch must be durable (D10). There is no way back to standby but Abort and a new mount (D11).
func (v *FS) SetRole(r Role, epoch cluster.Epoch) error {
	v.roleMu.Lock()
	defer v.roleMu.Unlock()
	old := v.role.Load()
	switch {
	case old.Role == fenced:
		return fmt.Errorf("volume %s was aborted: start a new server", v.cfg.Volume)
	case r == Standby && old.Role == Active:
		return fmt.Errorf("volume %s is active: it becomes a standby only by a new mount", v.cfg.Volume)
	case r == Standby:
		return nil
	case epoch <= old.epoch && old.Role == Active:
		return fmt.Errorf("volume %s is active in epoch %d: epoch %d is not a later one", v.cfg.Volume, old.epoch, epoch)
	}
	next := &role{Role: Active, epoch: epoch, since: epoch}
	if old.Role == Active {
		next.since = old.since
		v.role.Store(next)
		return nil
	}
	// What the kernel cached of files that were read on the standby may be older than the tree. Names and attributes were given no time-out.
	v.role.Store(next)
	for _, id := range v.seen.take() {
		v.server.InodeNotify(uint64(id), 0, 0)
	}
	return nil
}

// errno is the errno in err, EIO if there is none.
func errno(err error) syscall.Errno {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return syscall.EIO
}

func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	return fuse.Status(errno(err))
}

// mayRead says whether a request that changes nothing may be answered now. It is asked after the answer is known.
func (v *FS) mayRead() fuse.Status {
	switch v.role.Load().Role {
	case Standby:
		return fuse.OK
	case Active:
		if err := v.cfg.Gate(); err != nil {
			v.stats.Gate.Add(1)
			return fuse.EIO
		}
		return fuse.OK
	}
	return fuse.EIO
}

// mayChange says whether a request that changes something may go ahead.
func (v *FS) mayChange() fuse.Status {
	if v.role.Load().Role == Standby {
		return fuse.EROFS
	}
	return v.mayRead()
}

var ops = sync.Pool{New: func() any { return new(replication.Op) }}

// commit takes op, whose inodes the caller holds exclusively, through gate, log and tree.
func (v *FS) commit(op *replication.Op) (a tree.Applied, err error) {
	if st := v.mayChange(); st != fuse.OK {
		return a, syscall.Errno(st)
	}
	op.Volume = v.cfg.Index
	if op.Time == 0 {
		op.Time = now()
	}
	if err := v.tree.Reserve(op); err != nil {
		return a, err
	}
	start := time.Now()
	t, err := v.log.Submit(op)
	if err != nil {
		return a, err
	}
	if err := v.log.Wait(t); err != nil {
		return a, syscall.EIO
	}
	v.stats.Ack.since(start)
	return v.apply(op, t)
}

// apply brings an operation that the log has let go into the tree.
func (v *FS) apply(op *replication.Op, t Ticket) (a tree.Applied, err error) {
	a, err = v.tree.Apply(op)
	v.log.Done(t, err)
	if err != nil {
		// The others have it and we do not: our disk has failed. The log's owner was told.
		v.stats.Failed.Add(1)
		v.logger.Error("an accepted operation could not be applied", "kind", op.Kind.String(), "id", op.ID, "error", err)
		return a, syscall.EIO
	}
	if v.mayRead() != fuse.OK {
		return a, syscall.EIO
	}
	return a, nil
}

func now() int64 { return time.Now().UnixNano() }

// Init is called by the library when the kernel has said what it can do.
func (v *FS) Init(*fuse.Server) {}

// OnUnmount is called by the library after the last request.
func (v *FS) OnUnmount() {}

var _ io.Writer = lines{}
