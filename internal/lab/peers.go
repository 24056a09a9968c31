package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// peer is another product, run by the scripts of the peers' lab on the same kind of hosts with the same probes.
type peer struct {
	name   string // also the first word of its lines in raw.txt
	mode   string
	script string
	faults map[string]string // our names to theirs
}

// peerKinds: which script, which faults it has, and which of its modes is nearest to a profile of ours.
var peerKinds = []struct {
	peer
	modes map[string]string
}{
	{peer{name: "keepalived", script: "run_keepalived.sh", faults: map[string]string{
		"app-killed": "e_app", "daemon-killed": "b_kill9", "daemon-stopped": "c_stop", "node-dead": "a_node",
		"node-isolated": "d2_part", "nodes-cut": "d1_part", "host-frozen": "g_freeze", "switchover": "f_prio", "cpu-load": "h_cpu"}},
		map[string]string{"fastest": "fast10", "fast": "fast50", "normal": "default", "wan": "default", "auto": "fast50"}},
	{peer{name: "pacemaker", script: "run_pacemaker.sh", faults: map[string]string{
		"app-killed": "e_app", "daemon-killed": "b_all", "daemon-stopped": "c_all", "node-dead": "a_node",
		"node-isolated": "d2_part", "nodes-cut": "d1_part", "host-frozen": "g_freeze", "switchover": "f_standby", "cpu-load": "h_cpu"}},
		map[string]string{"fastest": "fast", "fast": "fast", "normal": "default", "wan": "default", "auto": "fast"}},
}

func parsePeers(cfg Config) ([]peer, error) {
	var out []peer
	for _, want := range cfg.Peers {
		name, mode, _ := strings.Cut(want, ":")
		found := false
		for _, k := range peerKinds {
			if k.name != name {
				continue
			}
			p := k.peer
			if p.mode = mode; mode == "" {
				p.mode = k.modes[cfg.Profile]
			}
			p.script = filepath.Join(cfg.PeersDir, p.script)
			if _, err := os.Stat(p.script); err != nil {
				return nil, fmt.Errorf("peer %s: its script is not there (set PEERS_DIR): %w", name, err)
			}
			out, found = append(out, p), true
		}
		if !found && name != "hanode" && name != "" {
			return nil, fmt.Errorf("no peer %q: choose keepalived or pacemaker, with a mode of its script after a colon if wanted", want)
		}
	}
	if len(out) > 0 && os.Getuid() != 0 {
		return nil, errors.New("the peers' scripts install packages and make namespaces: run it as root")
	}
	return out, nil
}

// bench runs the peer's script once for all faults that it has.
func (p peer) bench(ctx context.Context, cfg Config, faults []Fault, out io.Writer) ([]Row, error) {
	args := []string{p.script, p.mode, strconv.Itoa(cfg.Runs)}
	for _, f := range faults {
		if theirs := p.faults[f.Name]; theirs != "" {
			args = append(args, theirs)
		} else {
			fmt.Fprintf(out, "%s has no fault like %s\n", p.name, f.Name)
		}
	}
	if len(args) == 3 {
		return nil, nil
	}
	lab := os.Getenv("LAB_DIR")
	if lab == "" {
		lab = "/var/tmp/peer-lab"
	}
	if err := os.MkdirAll(lab, 0o755); err != nil {
		return nil, err
	}
	raw := filepath.Join(lab, "raw.txt")
	var old int64
	if fi, err := os.Stat(raw); err == nil {
		old = fi.Size()
	}
	state := filepath.Join(lab, "state") // the scripts mount a file system in memory there and leave it
	if !isMount(state) {
		defer func() { _ = syscall.Unmount(state, syscall.MNT_DETACH) }()
	}
	cmd := exec.CommandContext(ctx, "bash", args...)
	cmd.Env = append(os.Environ(), "LAB_DIR="+lab, fmt.Sprintf("PFX=hb%d", os.Getpid()%1000))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) } // its trap cleans up
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("peer %s, bash %s: %w", p.name, strings.Join(args, " "), err)
	}
	f, err := os.Open(raw)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(old, io.SeekStart); err != nil {
		return nil, err
	}
	return p.rows(f, faults)
}

func isMount(dir string) bool {
	var in, parent syscall.Stat_t
	return syscall.Stat(dir, &in) == nil && syscall.Stat(filepath.Dir(dir), &parent) == nil && in.Dev != parent.Dev
}

// rows reads what the script has written: one line per run, "peer mode fault run=N key=value ...", and for faults that
// are healed another with heal_ before the fault's name, whose figures begin at the healing.
func (p peer) rows(raw io.Reader, faults []Fault) ([]Row, error) {
	type line map[string]string
	seen := map[string]map[string]line{} // fault, run
	var order []string
	sc := bufio.NewScanner(raw)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 5 || f[0] != p.name || f[1] != p.mode || !strings.HasPrefix(f[3], "run=") {
			continue
		}
		l := line{}
		for _, kv := range f[4:] {
			if k, v, ok := strings.Cut(kv, "="); ok {
				l[k] = v
			} else if kv == "SETUP-FAILED" {
				l[kv] = "1"
			}
		}
		if seen[f[2]] == nil {
			seen[f[2]] = map[string]line{}
		}
		seen[f[2]][f[3]] = l
		order = append(order, f[2]+" "+f[3])
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	var rows []Row
	for _, f := range faults {
		theirs := p.faults[f.Name]
		if theirs == "" {
			continue
		}
		t := &tally{row: Row{Fault: f.Name, Peer: p.name, Profile: p.mode}}
		for _, o := range order {
			fault, run, _ := strings.Cut(o, " ")
			if fault != theirs {
				continue
			}
			l := seen[fault][run]
			if l["SETUP-FAILED"] != "" {
				t.row.Missed++
				t.problem("%s: the lab did not come up", run)
				continue
			}
			t.add(peerSample(l, seen["heal_"+fault][run]))
		}
		rows = append(rows, t.done())
	}
	return rows, nil
}

func peerSample(l, heal map[string]string) sample {
	num := func(l map[string]string, key string) (float64, bool) {
		v, err := strconv.ParseFloat(l[key], 64)
		return v, err == nil
	}
	var s sample
	gap, _ := num(l, "gap")
	silence, _ := num(l, "tail_silence")
	s.gap = max(gap, silence)
	s.recovered = silence <= 500
	first, moved := num(l, "first_new")
	switch {
	case moved:
		s.outage = first
	case s.gap > 50:
		s.outage = s.gap
	}
	s.dual, _ = num(l, "dual")
	if heal != nil {
		// That line was made from all records without an end, so its dual time contains the first one.
		dual, _ := num(heal, "dual")
		s.dual = max(s.dual, dual)
		gap, _ := num(heal, "gap")
		silence, _ := num(heal, "tail_silence")
		s.afterHeal = max(gap, silence)
	}
	return s
}
