package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/hanode/hanode/internal/lab/probe"
	"github.com/hanode/hanode/internal/lab/world"
)

// SoakReport is what a long load did to a cluster.
type SoakReport struct {
	Verdict     string   `json:"verdict"`
	Kind        string   `json:"kind"` // cpu, fsync
	Profile     string   `json:"profile"`
	Load        string   `json:"load"` // what made it
	Seconds     float64  `json:"seconds"`
	Failovers   uint64   `json:"failovers"` // epochs that began
	EpochBefore uint64   `json:"epoch_before"`
	EpochAfter  uint64   `json:"epoch_after"`
	GapMS       float64  `json:"gap_ms"` // of the client: its own want of processor time is in it
	Problems    []string `json:"problems"`
}

// Soak loads the machine for d, by processes of no privilege on every processor, and demands that nothing moves: kind cpu keeps all processors busy, kind fsync has files written
// and synced without a pause on the file system that holds the Raft logs.
func Soak(ctx context.Context, cfg Config, kind string, d time.Duration, out io.Writer) (r SoakReport, err error) {
	if cfg.Profile == "" {
		cfg.Profile = "normal"
	}
	if cfg, _, err = cfg.prepare(); err != nil {
		return r, err
	}
	r = SoakReport{Verdict: "pass", Kind: kind, Profile: cfg.Profile, Problems: []string{}}
	if kind == "fsync" && cfg.Dir == "" {
		// A disk, where there is one: in memory nobody waits for a sync.
		if cfg.Dir, err = os.MkdirTemp("/var/tmp", fmt.Sprintf("hanode-lab-%d-", os.Getpid())); err != nil {
			return r, err
		}
		if err = os.Chmod(cfg.Dir, 0o755); err != nil {
			return r, err
		}
	}
	s := &session{cfg: cfg}
	defer func() { err = errors.Join(err, s.close()) }()
	fmt.Fprintf(out, "Building two nodes, a witness and three clients, profile %s.\n", cfg.Profile)
	if err := s.open(ctx); err != nil {
		return r, err
	}
	if err := s.prod.waitProtected(ctx, protectedWithin); err != nil {
		return r, err
	}
	before, err := s.prod.status(ctx)
	if err != nil {
		return r, err
	}
	r.EpochBefore = before.epoch()
	stop, err := s.load(ctx, kind, &r)
	if err != nil {
		return r, err
	}
	fmt.Fprintf(out, "%s for %v; the service is active on %s in epoch %d.\n", r.Load, d, before.active(), r.EpochBefore)
	begin := probe.Now()
	err = s.watch(ctx, begin.Add(d).Sub(probe.Now()), &r, out)
	r.Seconds = probe.Now().Sub(begin).Seconds()
	stop()
	if err != nil {
		return r, err
	}
	after, err := s.prod.status(ctx)
	if err != nil {
		return r, err
	}
	r.EpochAfter = max(r.EpochAfter, after.epoch())
	r.Failovers = r.EpochAfter - r.EpochBefore
	if r.Failovers > 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("%d failovers: epoch %d, then %d", r.Failovers, r.EpochBefore, r.EpochAfter))
	}
	if len(r.Problems) > 0 {
		r.Verdict = "fail"
	}
	fmt.Fprintf(out, "%s: %.0f s, failovers %d, longest gap of the client %s ms\n", r.Verdict, r.Seconds, r.Failovers, num(r.GapMS))
	for _, p := range r.Problems {
		fmt.Fprintln(out, "  -", p)
	}
	return r, nil
}

// watch looks from time to time at what the clients see, so that their records do not pile up.
func (s *session) watch(ctx context.Context, d time.Duration, r *SoakReport, out io.Writer) error {
	const every = 5 * time.Second
	for end := probe.Now().Add(d); probe.Now() < end; {
		from := probe.Now()
		if err := sleep(ctx, min(every, end.Sub(from))); err != nil {
			return err
		}
		if err := s.bed.settled(ctx, probe.Now()); err != nil {
			return err
		}
		f := s.bed.judge(probe.Window{Fault: from, End: probe.Now()})
		r.GapMS = max(r.GapMS, ms(f.Gap))
		r.EpochAfter = max(r.EpochAfter, f.EpochAfter)
		if f.Dual > 0 || f.Stale > 0 {
			r.Problems = append(r.Problems, fmt.Sprintf("two nodes answered for %v, %d answers of an old epoch", f.Dual, f.Stale))
		}
		if f.EpochAfter > r.EpochBefore && len(r.Problems) == 0 {
			r.Problems = append(r.Problems, fmt.Sprintf("after %v the service is in epoch %d", d-end.Sub(probe.Now()), f.EpochAfter))
			fmt.Fprintln(out, r.Problems[0])
		}
		s.bed.coll.Forget(from)
	}
	return nil
}

// load starts the load on both nodes, and returns what ends it.
func (s *session) load(ctx context.Context, kind string, r *SoakReport) (func(), error) {
	var argv []string
	stress, err := exec.LookPath("stress-ng")
	cpus := strconv.Itoa(runtime.NumCPU())
	switch {
	case kind == "cpu" && err == nil:
		argv, r.Load = []string{stress, "--cpu", cpus, "--cpu-method", "all"}, "stress-ng --cpu "+cpus+" on each node"
	case kind == "cpu":
		r.Load = "busy loops on each node"
	case kind == "fsync" && err == nil:
		argv, r.Load = []string{stress, "--hdd", "2", "--hdd-opts", "fsync", "--hdd-bytes", "64m"}, "stress-ng --hdd 2 --hdd-opts fsync on each node"
	case kind == "fsync":
		r.Load = "two writers that sync without a pause on each node"
	default:
		return nil, fmt.Errorf("no load %q: choose cpu or fsync", kind)
	}
	type job struct {
		host string
		pid  int
	}
	var jobs []job
	for _, h := range []string{nodeA, nodeB} {
		host := s.bed.world.Host(h)
		cmd := world.Cmd{Argv: argv, Log: host.Log("load"), Dir: host.Dir()}
		if argv == nil {
			cmd = world.Cmd{Argv: append(append([]string(nil), s.bed.self...), loadCommand, kind, filepath.Join(host.Dir(), "load")), Log: host.Log("load")}
		}
		pid, err := host.Spawn(ctx, cmd)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, job{h, pid})
	}
	return func() {
		for _, j := range jobs {
			_ = s.bed.signal(context.WithoutCancel(ctx), j.host, -j.pid, syscall.SIGKILL) // those that have ended need it not
		}
	}, nil
}

// loadCommand is our own load, for machines without stress-ng: "load cpu DIR" or "load fsync DIR".
const loadCommand = "load"

// makeLoad never returns.
func makeLoad(kind, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	failed := make(chan error)
	workers := 2
	if kind == "cpu" {
		workers = runtime.NumCPU()
	}
	for n := range workers {
		go func() {
			for x := uint64(n); kind == "cpu"; x = x*6364136223846793005 + 1442695040888963407 {
				_ = x
			}
			failed <- syncForEver(filepath.Join(dir, strconv.Itoa(n)))
		}()
	}
	return <-failed
}

func syncForEver(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for n := int64(0); ; n++ {
		if _, err := f.WriteAt(block, n%1024*int64(len(block))); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
}

func runSoak(ctx context.Context, cfg Config, kind string, d time.Duration, file string, asJSON bool, stdout, stderr, progress io.Writer) int {
	r, err := Soak(ctx, cfg, kind, d, progress)
	if err == nil && file != "" {
		var b []byte
		if b, err = json.MarshalIndent(r, "", "  "); err == nil {
			err = os.WriteFile(file, append(b, '\n'), 0o644)
		}
	}
	if err != nil {
		fmt.Fprintln(stderr, "demo soak:", err)
		return 1
	}
	if asJSON {
		_ = json.NewEncoder(stdout).Encode(r) // a closed stdout changes nothing of the verdict
	}
	if r.Verdict != "pass" {
		return 1
	}
	return 0
}
