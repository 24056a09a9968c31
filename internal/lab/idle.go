package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hanode/hanode/internal/lab/probe"
)

// IdleRow is what one process of an idle cluster took.
type IdleRow struct {
	Host     string  `json:"host"`
	Process  string  `json:"process"` // hanode, guard, witness, or the service's
	Role     string  `json:"role"`    // active, standby, witness; and whether it led
	Profile  string  `json:"profile"`
	Seconds  float64 `json:"seconds"`
	CPU      float64 `json:"cpu_percent"` // of one core
	Wakeups  float64 `json:"wakeups_per_s"`
	RSSBytes int64   `json:"rss_bytes"`
}

// idleLimit is what an idle node may take of one core, in percent.
const idleLimit = 2.0

// settle is how long the cluster is left alone before it is measured: links, logs and caches come to rest.
const settle = 10 * time.Second

// Idle builds a cluster with one service, leaves it alone without any client, and measures what its processes take for d.
func Idle(ctx context.Context, cfg Config, d time.Duration, out io.Writer) (rows []IdleRow, err error) {
	cfg, _, err = cfg.prepare()
	if err != nil {
		return nil, err
	}
	s := &session{cfg: cfg}
	defer func() { err = errors.Join(err, s.close()) }()
	fmt.Fprintf(out, "Building two nodes and a witness, service %s, profile %s; no client asks it anything.\n", serviceName, cfg.Profile)
	if err := s.openQuiet(ctx); err != nil {
		return nil, err
	}
	if err := sleep(ctx, settle); err != nil {
		return nil, err
	}
	before := s.bed.taken()
	begin := probe.Now()
	if err := sleep(ctx, d); err != nil {
		return nil, err
	}
	after := s.bed.taken()
	took := probe.Now().Sub(begin).Seconds()
	st, err := s.prod.status(ctx)
	if err != nil {
		return nil, err
	}
	for i, a := range after {
		for _, b := range before {
			if a.host == b.host && a.pid == b.pid {
				rows = append(rows, IdleRow{Host: a.host, Process: a.name, Role: st.roleOf(a.host), Profile: cfg.Profile, Seconds: took,
					CPU: 100 * (a.cpu - b.cpu) / took, Wakeups: (a.switches - b.switches) / took, RSSBytes: after[i].rss})
			}
		}
	}
	printIdle(rows, out)
	return rows, nil
}

// roleOf says what a host is to the cluster.
func (s status) roleOf(host string) string {
	role := "standby"
	switch host {
	case s.active():
		role = "active"
	case witnessHost:
		role = "witness"
	}
	if host == s.Cluster.Leader {
		role += ", leads"
	}
	return role
}

// overIdle lists the nodes and witnesses whose processes, the service's aside, take more than they may.
func overIdle(rows []IdleRow) []string {
	var out []string
	sums := map[string]float64{}
	for _, r := range rows {
		if r.Process != serviceName {
			sums[r.Host] += r.CPU
		}
	}
	for _, h := range []string{nodeA, nodeB, witnessHost} {
		if sums[h] > idleLimit {
			out = append(out, fmt.Sprintf("%s takes %.2f %% of one core, more than %.0f %%", h, sums[h], idleLimit))
		}
	}
	return out
}

func printIdle(rows []IdleRow, out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "\nHOST\tROLE\tPROCESS\tCPU, % OF ONE CORE\tWAKE-UPS/S\tRESIDENT")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%.2f\t%.0f\t%.0f MiB\n", r.Host, r.Role, r.Process, r.CPU, r.Wakeups, float64(r.RSSBytes)/(1<<20))
	}
	_ = w.Flush() // out's errors are the caller's to find
}

// usageOf is what a process has taken so far.
type usageOf struct {
	host, name string
	pid        int     // as the lab sees it
	cpu        float64 // seconds
	switches   float64 // how often one of its threads went to sleep
	rss        int64
}

// taken reads it for all processes of the members but the hosts' own first ones.
func (b *bed) taken() []usageOf {
	var out []usageOf
	for _, name := range []string{nodeA, nodeB, witnessHost} {
		first := b.world.Host(name).PID()
		home, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", first))
		if err != nil {
			continue // the host is off
		}
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, d := range dirs {
			pid, err := strconv.Atoi(filepath.Base(d))
			if err != nil || pid == first {
				continue
			}
			if ns, err := os.Readlink(d + "/ns/pid"); err != nil || ns != home {
				continue
			}
			if u, err := takenBy(d); err == nil {
				u.host, u.pid = name, pid
				out = append(out, u)
			}
		}
	}
	return out
}

// takenBy reads one process.
func takenBy(dir string) (u usageOf, err error) {
	raw, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return u, err
	}
	const tick = 100 // USER_HZ, the same on all machines that Go runs on
	f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(f) < 22 {
		return u, fmt.Errorf("%s/stat has %d fields", dir, len(f))
	}
	number := func(i int) float64 { v, _ := strconv.ParseFloat(f[i], 64); return v }
	u.cpu = (number(11) + number(12)) / tick
	u.rss = int64(number(21)) * int64(os.Getpagesize())
	argv, err := os.ReadFile(dir + "/cmdline")
	if err != nil {
		return u, err
	}
	u.name = processName(strings.Split(strings.TrimRight(string(argv), "\x00"), "\x00"))
	tasks, _ := filepath.Glob(dir + "/task/[0-9]*/status")
	for _, t := range tasks {
		b, _ := os.ReadFile(t) // a thread may have ended meanwhile
		for _, line := range strings.Split(string(b), "\n") {
			if rest, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
				v, _ := strconv.ParseFloat(strings.TrimSpace(rest), 64)
				u.switches += v
			}
		}
	}
	return u, nil
}

func processName(argv []string) string {
	for _, word := range argv[min(1, len(argv)):] {
		switch word {
		case "guard":
			return "guard"
		case "demo":
			return serviceName
		}
	}
	return filepath.Base(argv[0])
}

// openQuiet makes a cluster and starts no clients.
func (s *session) openQuiet(ctx context.Context) (err error) {
	if s.bed, err = newBed(ctx, s.cfg.Self, s.cfg.Dir, s.cfg.Keep, nil); err != nil {
		return err
	}
	s.prod = &product{bed: s.bed, hanode: s.cfg.Hanode, witness: s.cfg.Witness, profile: s.cfg.Profile}
	if err := s.prod.setup(ctx); err != nil {
		return fmt.Errorf("the cluster did not come up: %w", err)
	}
	return nil
}

func runIdle(ctx context.Context, cfg Config, d time.Duration, file string, asJSON bool, stdout, stderr, progress io.Writer) int {
	rows, err := Idle(ctx, cfg, d, progress)
	if err == nil && file != "" {
		var b []byte
		if b, err = json.MarshalIndent(rows, "", "  "); err == nil {
			err = os.WriteFile(file, append(b, '\n'), 0o644)
		}
	}
	if err != nil {
		fmt.Fprintln(stderr, "demo idle:", err)
		return 1
	}
	if asJSON {
		_ = json.NewEncoder(stdout).Encode(rows) // a closed stdout changes nothing of the verdict
	}
	over := overIdle(rows)
	for _, o := range over {
		fmt.Fprintln(stderr, "demo idle:", o)
	}
	if len(over) > 0 {
		return 1
	}
	return 0
}
