package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"text/tabwriter"
)

// Row is one fault of one product over all its runs.
type Row struct {
	Fault   string `json:"fault"`
	Peer    string `json:"peer"` // hanode, keepalived, pacemaker
	Profile string `json:"profile"`
	Runs    int    `json:"runs"` // that were measured

	Outage    Stats `json:"outage_ms"`
	Gap       Stats `json:"gap_ms"`
	Dual      Stats `json:"dual_active_ms"`
	AfterHeal Stats `json:"after_heal_gap_ms"`

	PlainGap  Stats    `json:"plain_gap_ms"` // a client with the kernel's own time-outs
	KeptGap   Stats    `json:"kept_gap_ms"`  // a client that keeps one connection
	Noise     Stats    `json:"noise_ms"`     // the quiet second before
	Stale     int      `json:"stale_answers"`
	Unserved  int      `json:"not_recovered"` // runs in which nobody served before the healing
	Missed    int      `json:"failed_runs"`   // runs that could not be measured, or after which the cluster was not protected again
	WrongMove int      `json:"wrong_moves"`   // runs that moved without need, or did not though they had to
	Problems  []string `json:"problems,omitempty"`
}

// Stats of one figure over all runs, in milliseconds. P99 of few runs is the largest.
type Stats struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
	Max    float64 `json:"max"`
}

func statsOf(v []float64) Stats {
	if len(v) == 0 {
		return Stats{}
	}
	v = append([]float64(nil), v...)
	sort.Float64s(v)
	median := v[len(v)/2]
	if len(v)%2 == 0 {
		median = (v[len(v)/2-1] + v[len(v)/2]) / 2
	}
	return Stats{Min: v[0], Median: median, P99: v[(len(v)*99+99)/100-1], Max: v[len(v)-1]}
}

// sample is one run in a form that the peers have too.
type sample struct {
	outage, gap, dual, afterHeal float64
	recovered                    bool
}

// tally collects the runs of one row.
type tally struct {
	row                                           Row
	outage, gap, dual, heal, plain, kept, noiseMS []float64
}

func (t *tally) add(s sample) {
	t.row.Runs++
	t.outage = append(t.outage, s.outage)
	t.gap = append(t.gap, s.gap)
	t.dual = append(t.dual, s.dual)
	t.heal = append(t.heal, s.afterHeal)
	if !s.recovered {
		t.row.Unserved++
	}
}

func (t *tally) done() Row {
	r := t.row
	r.Outage, r.Gap, r.Dual, r.AfterHeal = statsOf(t.outage), statsOf(t.gap), statsOf(t.dual), statsOf(t.heal)
	r.PlainGap, r.KeptGap, r.Noise = statsOf(t.plain), statsOf(t.kept), statsOf(t.noiseMS)
	return r
}

const maxProblems = 20 // per row: enough to see what is wrong

func (t *tally) problem(format string, args ...any) {
	if len(t.row.Problems) < maxProblems {
		t.row.Problems = append(t.row.Problems, fmt.Sprintf(format, args...))
	}
}

// Bench measures each fault Runs times, for hanode and then for the peers, and writes progress and a table to out. With
// an error it returns the rows that were complete.
func Bench(ctx context.Context, cfg Config, out io.Writer) ([]Row, error) {
	cfg, _, err := cfg.prepare()
	if err != nil {
		return nil, err
	}
	faults, err := cfg.faults(benchFaults)
	if err != nil {
		return nil, err
	}
	peers, err := parsePeers(cfg)
	if err != nil {
		return nil, err
	}
	rows, err := benchHanode(ctx, cfg, faults, out)
	for _, p := range peers {
		if err != nil {
			break
		}
		var more []Row
		more, err = p.bench(ctx, cfg, faults, out)
		rows = append(rows, more...)
	}
	printRows(rows, out)
	return rows, err
}

// benchHanode goes through all faults in turn, then again, so that what drifts on the machine hits all alike.
func benchHanode(ctx context.Context, cfg Config, faults []Fault, out io.Writer) (rows []Row, err error) {
	s := &session{cfg: cfg}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	tallies := make([]*tally, len(faults))
	for i, f := range faults {
		tallies[i] = &tally{row: Row{Fault: f.Name, Peer: "hanode", Profile: cfg.Profile}}
	}
	usable := true
	for run := range cfg.Runs {
		for i, f := range faults {
			if !usable {
				if err := s.renew(ctx); err != nil {
					return nil, err
				}
			}
			m, err := s.prod.measure(ctx, f, limitsOf(cfg.Profile))
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			usable = err == nil
			tallies[i].measured(f, m, err, run)
			fmt.Fprintf(out, "run %d/%d  %-14s outage %6s  gap %6s  dual %5s  after heal %6s  %s\n", run+1, cfg.Runs, f.Name,
				num(m.OutageMS), num(m.GapMS), num(m.DualActiveMS), num(m.AfterHealGapMS), m.Verdict)
		}
	}
	for _, t := range tallies {
		rows = append(rows, t.done())
	}
	return rows, nil
}

func (t *tally) measured(f Fault, m Measurement, err error, run int) {
	if err != nil {
		t.row.Missed++
		t.problem("run %d: %v", run+1, err)
	}
	if m.Verdict == "" {
		return // nothing was seen
	}
	t.add(sample{outage: m.OutageMS, gap: m.GapMS, dual: m.DualActiveMS, afterHeal: m.AfterHealGapMS, recovered: m.Recovered})
	t.plain = append(t.plain, m.PlainGapMS)
	t.kept = append(t.kept, m.KeptGapMS)
	t.noiseMS = append(t.noiseMS, m.NoiseMS)
	t.row.Stale += m.StaleAnswers
	if m.Moved != f.Moves {
		t.row.WrongMove++
	}
	for _, p := range m.Problems {
		t.problem("run %d: %s", run+1, p)
	}
}

func printRows(rows []Row, out io.Writer) {
	fmt.Fprintln(out, "\nMilliseconds, median [min-max] over all runs; a new TCP connection every 5 ms.")
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "FAULT\tPRODUCT\tPROFILE\tRUNS\tOUTAGE\tGAP\tTWO ACTIVES, MAX\tAFTER HEALING, MAX\tPLAIN CLIENT\tFAILED RUNS")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%d\n", r.Fault, r.Peer, r.Profile, r.Runs, r.Outage, r.Gap,
			num(r.Dual.Max), num(r.AfterHeal.Max), num(r.PlainGap.Median), r.Missed)
	}
	_ = w.Flush() // out's errors are the caller's to find
	for _, r := range rows {
		for _, p := range r.Problems {
			fmt.Fprintf(out, "%s, %s: %s\n", r.Peer, r.Fault, p)
		}
	}
}

func (s Stats) String() string {
	return fmt.Sprintf("%s [%s-%s]", num(s.Median), num(s.Min), num(s.Max))
}

// WriteRows stores rows as JSON.
func WriteRows(path string, rows []Row) error {
	if rows == nil {
		rows = []Row{}
	}
	b, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
