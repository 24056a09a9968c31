package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/internal/lab/world"
)

// Report is what Demo found: demo-report.json.
type Report struct {
	Verdict     string            `json:"verdict"` // pass, fail
	Profile     string            `json:"profile"`
	At          time.Time         `json:"at"`
	TookMS      float64           `json:"took_ms"`
	Machine     Machine           `json:"machine"`
	Faults      []Measurement     `json:"faults"`
	Data        []DataMeasurement `json:"data,omitempty"` // the service with data
	DataService string            `json:"data_service,omitempty"`
	NotShown    []string          `json:"not_shown"` // what this machine or user does not allow
	Problems    []string          `json:"problems"`
}

// Machine is where it ran.
type Machine struct {
	Kernel string `json:"kernel"`
	CPUs   int    `json:"cpus"`
	Root   bool   `json:"root"`
}

func thisMachine() Machine {
	var u unix.Utsname
	_ = unix.Uname(&u) // it has no way to fail but a bad pointer
	return Machine{Kernel: unix.ByteSliceToString(u.Release[:]), CPUs: runtime.NumCPU(), Root: os.Getuid() == 0}
}

// Enter makes sure that this process may build hosts. Without root it runs argv (os.Args) again as root of a user
// namespace: then entered is true, and the caller exits with the status. To be called before Demo or Bench.
func Enter(ctx context.Context, cfg Config, argv []string) (status int, entered bool, err error) {
	cfg, err = cfg.complete()
	if err != nil {
		return 0, false, err
	}
	if world.Privileged(cfg.Self) != world.Nothing {
		return 0, false, nil
	}
	exe, err := os.Executable()
	if err != nil {
		return 0, false, err
	}
	status, err = world.EnterUserNamespace(ctx, append([]string{exe}, argv[1:]...))
	return status, err == nil, err
}

// complete fills the defaults in and checks.
func (c Config) complete() (Config, error) {
	exe, err := os.Executable()
	if err != nil {
		return c, err
	}
	if c.Hanode == "" {
		c.Hanode = exe
	}
	if c.Witness == "" {
		c.Witness = filepath.Join(filepath.Dir(c.Hanode), "witness")
	}
	if c.Self == nil {
		c.Self = []string{exe, "demo"}
	}
	for _, b := range []*string{&c.Hanode, &c.Witness, &c.Self[0]} {
		if *b, err = filepath.Abs(*b); err != nil {
			return c, err
		}
		if _, err := os.Stat(*b); err != nil {
			return c, fmt.Errorf("the lab needs the built programs, hanode and witness beside each other (make build): %w", err)
		}
	}
	if c.Runs <= 0 {
		c.Runs = 5
	}
	return c, nil
}

// prepare is what Demo and Bench have in common: rights, profile, what cannot be shown.
func (c Config) prepare() (Config, []string, error) {
	c, err := c.complete()
	if err != nil {
		return c, nil, err
	}
	var not []string
	switch world.Privileged(c.Self) {
	case world.Nothing:
		return c, nil, errors.New("no namespaces may be made here: run it as root")
	case world.InUser:
		if err := world.SettleIn(); err != nil {
			return c, nil, err
		}
		not = append(not, "not root: no real-time scheduling, so the profiles fast and fastest are not shown",
			"not root: no eBPF gate, the nftables one is shown instead")
		if c.Profile == "" {
			c.Profile = "normal"
		}
	}
	if c.Profile == "" {
		c.Profile = "fast"
	}
	return c, not, nil
}

// Demo builds a cluster, lets every fault of the tour happen to it, and judges. It writes progress and the table to
// out. The error says that the tour could not be made at all; what went wrong on it stands in the report.
func Demo(ctx context.Context, cfg Config, out io.Writer) (Report, error) {
	begin := time.Now()
	cfg, not, err := cfg.prepare()
	if err != nil {
		return Report{}, err
	}
	var faults []Fault
	if cfg.Faults == nil || len(cfg.Faults) > 0 {
		if faults, err = cfg.faults(demoFaults); err != nil {
			return Report{}, err
		}
	}
	r := Report{Verdict: "pass", Profile: cfg.Profile, At: begin.UTC(), Machine: thisMachine(), NotShown: not,
		Faults: []Measurement{}, Problems: []string{}}
	s := &session{cfg: cfg}
	fmt.Fprintf(out, "Building two nodes, a witness and three clients; service %s on %s, profile %s.\n", serviceName, VIP, cfg.Profile)
	if err := s.open(ctx); err != nil {
		return r, errors.Join(err, s.close())
	}
	r.NotShown = append(r.NotShown, s.bed.world.Notes()...)
	fmt.Fprintf(out, "The service is protected after %.1f s. Now things break, one by one.\n\n", time.Since(begin).Seconds())
	err = s.tour(ctx, faults, &r, out)
	if err == nil && cfg.Data {
		if e := s.dataTour(ctx, &r, out); e != nil {
			r.Problems = append(r.Problems, e.Error())
		}
	}
	err = errors.Join(err, s.close())
	if len(r.Problems) > 0 {
		r.Verdict = "fail"
	}
	r.TookMS = ms(time.Since(begin))
	if ctx.Err() == nil {
		r.print(out)
	}
	return r, err
}

// tour lets the faults happen. A cluster that one of them has left unusable is replaced for the next.
func (s *session) tour(ctx context.Context, faults []Fault, r *Report, out io.Writer) error {
	usable := true
	for i, f := range faults {
		if !usable {
			fmt.Fprintln(out, "The cluster is of no more use; building a new one.")
			if err := s.renew(ctx); err != nil {
				r.Problems = append(r.Problems, fmt.Sprintf("a new cluster before %s: %v", f.Name, err))
				return ctx.Err()
			}
		}
		fmt.Fprintf(out, "[%d/%d] %s\n", i+1, len(faults), f.Title)
		m, err := s.prod.measure(ctx, f, limitsOf(s.cfg.Profile))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		usable = err == nil
		if err != nil && m.Verdict == "" {
			m.fail("not measured: %v", err)
		}
		r.Faults = append(r.Faults, m)
		for _, p := range m.Problems {
			r.Problems = append(r.Problems, f.Name+": "+p)
		}
		m.printShort(out)
	}
	return nil
}

// Write stores the report as JSON.
func (r Report) Write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
