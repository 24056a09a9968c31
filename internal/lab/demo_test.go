package lab

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/lab/world"
)

func fakeConfig(t *testing.T, faults ...string) Config {
	t.Helper()
	self := testSelf(t)
	if world.Privileged(self) != world.Full {
		t.Skip("needs root: the kernel refuses new namespaces to this user")
	}
	dir := t.TempDir()
	for _, name := range []string{"fake-hanode", "fake-witness"} {
		must(t, os.Symlink(self[0], filepath.Join(dir, name)))
	}
	return Config{Hanode: filepath.Join(dir, "fake-hanode"), Witness: filepath.Join(dir, "fake-witness"), Self: self,
		Faults: faults, watch: 600 * time.Millisecond}
}

func TestTheTourFindsTwoActivesAndPassesWhatIsRight(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	r, err := Demo(t.Context(), fakeConfig(t, "app-killed", "daemon-stopped", "nodes-cut"), &out)
	t.Logf("\n%s", out.String())
	must(t, err)
	if r.Verdict != "fail" || len(r.Faults) != 3 {
		t.Fatalf("verdict %s, %d faults; want fail and 3", r.Verdict, len(r.Faults))
	}
	for i, want := range []string{"pass", "fail", "pass"} {
		if m := r.Faults[i]; m.Verdict != want {
			t.Errorf("%s: %s, want %s: %v", m.Name, m.Verdict, want, m.Problems)
		}
	}
	killed, stopped := r.Faults[0], r.Faults[1]
	if !killed.Moved || killed.OutageMS < 100 || killed.EpochAfter != killed.EpochBefore+1 || killed.Explanation != killed.To+" serves because the other was silent" || killed.Decision != "D-7" {
		t.Errorf("app-killed: %+v", killed)
	}
	if stopped.DualActiveMS < 100 || !strings.Contains(strings.Join(stopped.Problems, " "), "two nodes answered") {
		t.Errorf("a stopped daemon keeps its address, yet: %+v", stopped)
	}
	file := filepath.Join(t.TempDir(), "report.json")
	must(t, r.Write(file))
	b, err := os.ReadFile(file)
	must(t, err)
	var back map[string]any
	must(t, json.Unmarshal(b, &back))
	for _, key := range []string{"name", "outage_ms", "gap_ms", "dual_active_ms", "epoch_before", "epoch_after", "explanation"} {
		if _, ok := back["faults"].([]any)[0].(map[string]any)[key]; !ok {
			t.Errorf("the report's faults have no %s", key)
		}
	}
}

func TestTheBenchmarkMakesOneRowOfAllRunsOfAFault(t *testing.T) {
	t.Parallel()
	cfg := fakeConfig(t, "switchover")
	cfg.Runs = 2
	var out bytes.Buffer
	rows, err := Bench(t.Context(), cfg, &out)
	t.Logf("\n%s", out.String())
	must(t, err)
	if len(rows) != 1 || rows[0].Runs != 2 || rows[0].Missed != 0 || rows[0].Outage.Min < 30 || rows[0].Outage.Max > 1000 {
		t.Errorf("rows: %+v", rows)
	}
}

func TestTheRowsOfAPeerComeFromItsRawLines(t *testing.T) {
	raw := `
keepalived fast50 a_node run=1 first_new=150.2 gap=152.0 gap_at=-1.0 fails=30 switches=1 dual=0.0 dual_from=none dual_to=none n1_served_until=0.1 n2_served_from=150.0 main_last_old=-1.0 tail_silence=3.0 pre=180 why=map[timeout:30] pre:vip:_n1 during:vip:_n2 after:vip:_n2 inject_ms=4.1 cpu_busy=40%
keepalived fast50 a_node run=2 first_new=160.2 gap=162.0 dual=0.0 tail_silence=3.0
keepalived fast50 a_node run=3 SETUP-FAILED vip:_none
keepalived fast50 c_stop run=1 first_new=167.0 gap=26.0 dual=3300.0 tail_silence=2.0
keepalived fast50 heal_c_stop run=1 first_new=none gap=90.0 dual=3400.5 tail_silence=2.0
keepalived fast50 d1_part run=1 first_new=none gap=20.0 dual=0.0 tail_silence=2.0
keepalived default a_node run=1 first_new=3500.0 gap=3500.0 dual=0.0 tail_silence=2.0
pacemaker fast50 a_node run=1 first_new=1.0 gap=1.0 dual=0.0 tail_silence=2.0
`
	p := peerKinds[0].peer
	p.mode = "fast50"
	faults, err := selectFaults([]string{"node-dead", "daemon-stopped", "nodes-cut", "witness-dead"}, 0)
	must(t, err)
	rows, err := p.rows(strings.NewReader(raw), faults)
	must(t, err)
	if len(rows) != 3 {
		t.Fatalf("%d rows, want 3 (a keepalived has no witness): %+v", len(rows), rows)
	}
	if r := rows[0]; r.Fault != "node-dead" || r.Peer != "keepalived" || r.Profile != "fast50" || r.Runs != 2 || r.Missed != 1 || r.Outage.Median != 155.2 || r.Gap.Max != 162 {
		t.Errorf("node-dead: %+v", r)
	}
	if r := rows[1]; r.Dual.Max != 3400.5 || r.AfterHeal.Max != 90 || r.Outage.Max != 167 {
		t.Errorf("daemon-stopped: %+v", r)
	}
	if r := rows[2]; r.Outage.Max != 0 || r.Gap.Max != 20 {
		t.Errorf("nodes-cut: %+v", r)
	}
}

func TestStatistics(t *testing.T) {
	for _, tc := range []struct {
		in   []float64
		want Stats
	}{
		{nil, Stats{}},
		{[]float64{7}, Stats{7, 7, 7, 7}},
		{[]float64{4, 1, 3, 2}, Stats{1, 2.5, 4, 4}},
	} {
		if got := statsOf(tc.in); got != tc.want {
			t.Errorf("%v: %+v, want %+v", tc.in, got, tc.want)
		}
	}
	var many []float64
	for i := range 200 {
		many = append(many, float64(i+1))
	}
	if got := statsOf(many); got != (Stats{1, 100.5, 198, 200}) {
		t.Errorf("1 to 200: %+v", got)
	}
}

func TestAnUnknownFaultIsRefusedWithTheKnownOnes(t *testing.T) {
	_, err := selectFaults([]string{"node-dad"}, 0)
	if err == nil || !strings.Contains(err.Error(), "node-dead") {
		t.Errorf("got %v", err)
	}
}
