package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hanode/hanode/internal/demoapp/postgres"
	"github.com/hanode/hanode/internal/lab/probe"
	"github.com/hanode/hanode/internal/lab/world"
)

// The service with data of the demonstration is PostgreSQL where it is installed, else the ledger. Its clients write through its own address while
// things break, and afterwards every entry that was acknowledged must be there.

// DataMeasurement is one fault, as the clients of the service with data had it.
type DataMeasurement struct {
	Name        string `json:"name"`
	Title       string `json:"title"`
	Moved       bool   `json:"moved"`
	EpochBefore uint64 `json:"epoch_before"`
	EpochAfter  uint64 `json:"epoch_after"`
	Explanation string `json:"explanation"`
	postgres.Account
	Verdict  string   `json:"verdict"`
	Problems []string `json:"problems,omitempty"`
}

// dataFaults are those that concern data; by name from Faults.
var dataFaults = []string{"node-dead", "daemon-killed", "node-isolated", "standby-dead", "switchover"}

// dataSpec is the service block for PostgreSQL, whose programs lie in bin.
func (p *product) dataSpec(bin, mode string) string {
	var argv []string
	for _, a := range append(append([]string(nil), p.bed.self...), postgres.ServerCommand, "--bin", bin, "--data", ledgerPath+"/pg", "--port", fmt.Sprint(ledgerPort)) {
		argv = append(argv, fmt.Sprintf("%q", a))
	}
	return fmt.Sprintf(`
service %q {
  nodes = [%q, %q]

  vip "%s/24" {}

  volume "data" {
    path = %q
    mode = %q
  }

  process "postgres" {
    start         = [%s]
    stop_signal   = "INT"
    stop_timeout  = "20s"
    start_timeout = "2m"
  }

  check "port" {
    tcp = "127.0.0.1:%d"
  }
}
`, ledgerName, nodeA, nodeB, ledgerVIP, ledgerPath, mode, strings.Join(argv, ", "), ledgerPort)
}

// keeper is the service with data and its clients: PostgreSQL with its programs in bin, or the ledger where that is "".
type keeper struct {
	*product
	bin string
}

// during lets clients write for d while f happens, waits until the service answers again, and says what became of what was acknowledged.
func (k *keeper) during(ctx context.Context, run string, d time.Duration, f func() error) (postgres.Account, error) {
	if k.bin == "" {
		return k.clerks(ctx, run, d, f)
	}
	type result struct {
		a   postgres.Account
		err error
	}
	done := make(chan result, 1)
	go func() {
		a, err := k.pgbench(ctx, run, d)
		done <- result{a, err}
	}()
	err := f()
	got := <-done
	return got.a, errors.Join(err, got.err)
}

func (k *keeper) pgbench(ctx context.Context, run string, d time.Duration) (a postgres.Account, err error) {
	args := []string{postgres.ClientCommand, "-bin", k.bin, "-host", ledgerVIP, "-port", fmt.Sprint(ledgerPort), "-run", run, "-for", d.String()}
	ctx, cancel := context.WithTimeout(ctx, d+5*time.Minute)
	defer cancel()
	res, err := k.bed.world.Host(client).Exec(ctx, world.Cmd{Argv: append(append([]string(nil), k.bed.self...), args...), Env: []string{"PATH=/usr/bin:/bin", "TMPDIR=/run"}})
	switch {
	case err != nil:
		return a, err
	case res.Exit != 0:
		return a, fmt.Errorf("the clients of %s: status %d: %s", ledgerName, res.Exit, firstLines(string(res.Stderr), 6))
	}
	return a, json.Unmarshal(res.Stdout, &a)
}

func (k *keeper) clerks(ctx context.Context, run string, d time.Duration, f func() error) (a postgres.Account, err error) {
	begin := probe.Now()
	c, err := k.startClerk(ctx, run, 4)
	if err != nil {
		return a, err
	}
	err = errors.Join(f(), sleep(ctx, begin.Add(d).Sub(probe.Now())))
	if err := errors.Join(err, c.stop(ctx), k.await(ctx, ledgerName, "active", time.Minute)); err != nil {
		return a, err
	}
	es, err := c.acked()
	if err != nil || len(es) == 0 {
		return a, err
	}
	st, err := k.status(ctx)
	if err != nil {
		return a, err
	}
	have, err := k.entries(st.service(ledgerName).Active)
	if err != nil {
		return a, err
	}
	longest, _ := gap(es, es[0].acked)
	return postgres.Account{Acked: len(es), Missing: missing(es, have), GapMS: ms(longest)}, nil
}

// dataTour adds the service with data to the running cluster, and lets things happen to it.
func (s *session) dataTour(ctx context.Context, r *Report, out io.Writer) error {
	bin := postgres.Find()
	if !thisMachine().Root {
		bin = ""
	}
	what := "a ledger (PostgreSQL is not installed)"
	if bin != "" {
		what = "PostgreSQL " + filepath.Base(filepath.Dir(bin)) + " under pgbench"
	}
	fmt.Fprintf(out, "\nNow with data: %s on a replicated volume, address %s.\n", what, ledgerVIP)
	r.DataService = what
	p := &keeper{s.prod, bin}
	if bin == "" {
		p.ledger = &ledger{mode: "sync-on-fsync", fsync: true}
	} else {
		p.more = p.dataSpec(bin, "sync-on-fsync")
	}
	if err := p.apply(ctx); err != nil {
		return fmt.Errorf("the service with data: %w", err)
	}
	if err := p.await(ctx, ledgerName, "protected", 2*time.Minute); err != nil {
		return err
	}
	// A database is made at its first start: nothing breaks before it takes entries.
	if _, err := p.during(ctx, "first", 2*time.Second, func() error { return nil }); err != nil {
		return fmt.Errorf("before anything breaks: %w", err)
	}
	faults, err := selectFaults(dataFaults, 0)
	if err != nil {
		return err
	}
	for i, f := range faults {
		fmt.Fprintf(out, "[%d/%d] %s\n", i+1, len(faults), f.Title)
		m, err := p.measureData(ctx, f, fmt.Sprintf("r%d", i))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			m.Problems, m.Verdict = append(m.Problems, err.Error()), "fail"
		}
		r.Data = append(r.Data, m)
		for _, text := range m.Problems {
			r.Problems = append(r.Problems, "with data, "+f.Name+": "+text)
		}
		fmt.Fprintf(out, "      %d acknowledged, %d missing, longest wait %s ms, epoch %d to %d\n", m.Acked, len(m.Missing), num(m.GapMS), m.EpochBefore, m.EpochAfter)
		if m.Explanation != "" {
			fmt.Fprintf(out, "      %s\n", m.Explanation)
		}
		for _, text := range m.Problems {
			fmt.Fprintf(out, "      FAIL %s\n", text)
		}
		if err != nil {
			return nil // the cluster is of no more use; the report says so
		}
	}
	return nil
}

// measureData lets one fault happen while clients write.
func (k *keeper) measureData(ctx context.Context, f Fault, run string) (m DataMeasurement, err error) {
	m = DataMeasurement{Name: f.Name, Title: f.Title, Verdict: "pass"}
	if err := errors.Join(k.await(ctx, ledgerName, "protected", protectedWithin), k.waitProtected(ctx, protectedWithin)); err != nil {
		return m, err
	}
	st, err := k.status(ctx)
	if err != nil {
		return m, err
	}
	before := st.service(ledgerName)
	m.EpochBefore = before.Epoch
	s := &scene{product: k.product, active: before.Active, standby: otherNode(before.Active), service: ledgerName}
	if f.prepare != nil {
		if err := f.prepare(ctx, s); err != nil {
			return m, err
		}
	}
	m.Account, err = k.during(ctx, run, 2*time.Second+f.Watch+3*time.Second, func() error {
		err := sleep(ctx, 2*time.Second)
		if err == nil && f.inject != nil {
			err = f.inject(ctx, s)
		}
		err = errors.Join(err, sleep(ctx, f.Watch))
		if f.heal != nil {
			err = errors.Join(err, f.heal(ctx, s)) // whatever went wrong
		}
		return err
	})
	if err != nil {
		return m, err
	}
	if st, err = k.status(ctx); err != nil {
		return m, err
	}
	after := st.service(ledgerName)
	m.EpochAfter, m.Moved = after.Epoch, after.Active != before.Active
	if m.Moved && after.LastMove.Decision != "" {
		_, m.Explanation, err = k.explainOf(ctx, after.LastMove.Decision, after.Active, before.Active)
	}
	m.judge(f)
	return m, err
}

func (m *DataMeasurement) judge(f Fault) {
	fail := func(format string, args ...any) {
		m.Problems, m.Verdict = append(m.Problems, fmt.Sprintf(format, args...)), "fail"
	}
	if n := len(m.Missing); n > 0 {
		fail("%d acknowledged entries are missing, the first is %s", n, m.Missing[0])
	}
	if m.Acked == 0 {
		fail("nothing was acknowledged: this run shows nothing")
	}
	if f.Moves && !m.Moved {
		fail("the service did not move")
	}
	if !f.Moves && m.Moved {
		fail("the service moved, and there was no need to")
	}
}

// printData writes the table of the service with data.
func (r Report) printData(out io.Writer) {
	if len(r.Data) == 0 {
		return
	}
	fmt.Fprintf(out, "\nWith data, %s: entries that clients were told are durable, and what became of them.\n\n", r.DataService)
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "FAULT\tACKNOWLEDGED\tMISSING\tLONGEST WAIT\tEPOCH\tVERDICT\tWHAT HANODE SAYS")
	for _, m := range r.Data {
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%d to %d\t%s\t%s\n", m.Title, m.Acked, len(m.Missing), num(m.GapMS), m.EpochBefore, m.EpochAfter, m.Verdict, clip(m.Explanation, 100))
	}
	_ = w.Flush() // out's errors are the caller's to find
}
