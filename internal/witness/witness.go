// Package witness runs witnesses: members that vote and carry no data. One process, one listener, many clusters.
//
// Its data directory has one state directory per cluster, named by the cluster's id. Nothing is shared between the clusters but the
// port, and nothing of one can keep another from running: a member that fails is reported and left out until the next start.
package witness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/member"
	"github.com/hanode/hanode/internal/pki"
	"github.com/hanode/hanode/internal/rt"
)

// ballast is what each cluster's log keeps free on a witness, which may be a small machine.
const ballast = 4 << 20

// Join makes this machine the witness of one more cluster. A running witness takes it up by itself.
func Join(ctx context.Context, dataDir string, o member.JoinOptions) (*member.Identity, error) {
	t, err := pki.ParseToken(o.Token)
	if err != nil {
		return nil, err
	}
	o.Role, o.Dir = cluster.RoleWitness, filepath.Join(dataDir, t.ClusterID)
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	return member.Join(ctx, o)
}

// Served is one cluster that this witness votes in.
type Served struct {
	Identity member.Identity
	Dir      string
	State    string // up, joining, failed
	Note     string
	Since    time.Time
	Member   *member.Member // nil unless it runs
}

// Witness is the process.
type Witness struct {
	dataDir string
	version string
	log     *slog.Logger
	ep      *link.Endpoint
	rt      rt.Report
	late    *rt.Histogram // one for the whole process: it is the machine that is late

	mu     sync.Mutex
	served map[string]*Served
}

// New makes the process punctual and opens the port for all clusters in the data directory.
func New(dataDir, version string, log *slog.Logger) (*Witness, error) {
	w := &Witness{dataDir: dataDir, version: version, log: log, served: map[string]*Served{}, late: rt.NewHistogram(lateWindow)}
	// One thread at a time is plenty for a voter, and spares the machine the waking up of others that would find nothing to do. A write to the disk
	// does not hold it: the runtime hands the work on within some 40 µs.
	runtime.GOMAXPROCS(1)
	o := rt.Daemon()
	o.GCPercent = 50 // small before quick: a witness has next to no garbage
	if w.rt = rt.EnterWith(o); w.rt.Err() != nil {
		log.Warn("this process is not as punctual as it should be", "err", w.rt.Err())
	}
	dirs, err := Dirs(dataDir)
	if err != nil {
		return nil, err
	}
	if len(dirs) == 0 {
		return nil, fmt.Errorf("%s serves no cluster yet: join one with witness join --token TOKEN", dataDir)
	}
	var addrs []netip.AddrPort
	for _, d := range dirs {
		var id member.Identity
		if err := member.ReadIdentity(d, &id); err != nil {
			log.Error("a cluster is left out", "dir", d, "err", err)
			continue
		}
		a, err := id.Addrs()
		if err != nil {
			log.Error("a cluster is left out", "dir", d, "err", err)
			continue
		}
		for _, ap := range a {
			if !slices.Contains(addrs, ap) {
				addrs = append(addrs, ap)
			}
		}
	}
	w.ep, err = link.Listen(link.Config{Listen: addrs, Log: log})
	return w, err
}

// lateWindow is over what time the lateness is counted.
const lateWindow = 5 * time.Minute

// Dirs lists the state directories in a witness's data directory.
func Dirs(dataDir string) ([]string, error) {
	ents, err := os.ReadDir(dataDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the witness's data directory: %w", err)
	}
	var out []string
	for _, e := range ents {
		if _, err := os.Stat(filepath.Join(dataDir, e.Name(), "identity.json")); err == nil && e.IsDir() {
			out = append(out, filepath.Join(dataDir, e.Name()))
		}
	}
	return out, nil
}

// lookEvery is how often the data directory is looked through for clusters that were joined meanwhile.
const lookEvery = time.Second

// Run votes in all clusters until ctx ends.
func (w *Witness) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.ep.Run(gctx) })
	g.Go(func() error { return member.NotifyOf(gctx, w.members) })
	g.Go(func() error {
		t := rt.NewTicker(lookEvery)
		defer t.Stop()
		for {
			dirs, err := Dirs(w.dataDir)
			if err != nil {
				w.log.Error("witness", "err", err)
			}
			for _, d := range dirs {
				w.take(g, gctx, d)
			}
			select {
			case <-gctx.Done():
				return nil
			case <-t.C:
				t.Next()
			}
		}
	})
	return g.Wait()
}

// members are those that run now.
func (w *Witness) members() []*member.Member {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*member.Member
	for _, s := range w.served {
		if s.Member != nil {
			out = append(out, s.Member)
		}
	}
	return out
}

// take starts voting in the cluster of a directory, if it does not run yet.
func (w *Witness) take(g *errgroup.Group, ctx context.Context, dir string) {
	w.mu.Lock()
	s := w.served[dir]
	if s != nil {
		w.mu.Unlock()
		return
	}
	s = &Served{Dir: dir, State: "joining", Since: time.Now()}
	w.served[dir] = s
	w.mu.Unlock()
	g.Go(func() error {
		err := w.serve(ctx, s)
		if err != nil && ctx.Err() == nil {
			w.log.Error("this witness no longer votes in a cluster", "cluster", s.Identity.Cluster, "dir", dir, "err", err)
		}
		w.mu.Lock()
		s.Member, s.State = nil, "failed"
		if err != nil {
			s.Note = err.Error()
		}
		w.mu.Unlock()
		return nil // the others go on
	})
}

func (w *Witness) serve(ctx context.Context, s *Served) error {
	d, err := member.OpenDir(s.Dir)
	if err != nil {
		return err
	}
	defer d.Close()
	log := w.log.With("cluster", d.Identity.Cluster)
	m, err := member.New(member.Config{Dir: d, Local: member.Nothing{}, Endpoint: w.ep, Version: w.version, Log: log, Ballast: ballast, Slow: member.FaultDisk(log),
		Lateness: w.late, Realtime: w.rt.Realtime()})
	if err != nil {
		return err
	}
	m.SetLocal(member.Nothing{Step: m.StepNow})
	w.mu.Lock()
	s.Identity, s.Member, s.State = d.Identity, m, "up"
	w.mu.Unlock()
	return m.Run(ctx)
}

// List says what is served.
func (w *Witness) List() []Served {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Served
	for _, s := range w.served {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b Served) int { return slices.Compare([]byte(a.Dir), []byte(b.Dir)) })
	return out
}

// Joined says whether the log has admitted this witness's present run.
func (s *Served) Joined() bool {
	ok := false
	if s.Member != nil {
		_ = s.Member.On(func(c *core.Core) { ok = c.Joined() })
	}
	return ok
}
