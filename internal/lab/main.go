package lab

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

const usage = `Shows and measures on this machine what hanode promises, in hosts made of namespaces.

  demo [--faults a,b] [--profile P] [--report FILE] [--json]
  demo bench [--runs N] [--faults a,b] [--profile P] [--out FILE] [--peer keepalived,pacemaker] [--peers-dir DIR] [--json]
  demo idle [--for D] [--profile P] [--out FILE] [--json]      what each process takes of a CPU while nothing happens
  demo soak cpu|fsync [--for D] [--profile P] [--out FILE] [--json]      a long load, under which nothing may move
  demo faults

`

// dataWord stands among the names of faults for the service with data.
const dataWord = "data"

// Main is the command `demo`: args are the words behind it. Progress goes to stderr with --json, else to stdout; the
// result to stdout. It returns the exit status: 0 pass, 1 fail, 2 wrong usage.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if status, ok := Child(args, stderr); ok {
		return status
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	bench := len(args) > 0 && args[0] == "bench"
	idle := len(args) > 0 && args[0] == "idle"
	if len(args) > 0 && args[0] == "faults" {
		for _, f := range Faults() {
			fmt.Fprintf(stdout, "%-15s %s\n", f.Name, f.Title)
		}
		return 0
	}
	soak := ""
	if len(args) > 1 && args[0] == "soak" {
		soak, args = args[1], args[1:]
	}
	if bench || idle || soak != "" {
		args = args[1:]
	}
	var idleFor time.Duration
	var cfg Config
	var file, faults, peers string
	var asJSON bool
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprint(stderr, usage); fs.PrintDefaults() }
	fs.StringVar(&faults, "faults", "", "which, by name, separated by commas (demo faults lists them); data: the service with data")
	fs.StringVar(&cfg.Profile, "profile", "", "fastest, fast, normal, wan or auto; fast for root, else normal")
	fs.StringVar(&cfg.Hanode, "hanode", "", "the binary under test; this one")
	fs.StringVar(&cfg.Witness, "witness", "", "the witness's binary; the file witness beside it")
	fs.StringVar(&cfg.Dir, "dir", "", "directory for the hosts' state, which must not exist; a temporary one")
	fs.BoolVar(&cfg.Keep, "keep", false, "leave that directory, to read the logs")
	fs.BoolVar(&asJSON, "json", false, "the result as JSON on stdout, progress on stderr")
	switch {
	case idle:
		fs.DurationVar(&idleFor, "for", 20*time.Second, "how long")
		fs.StringVar(&file, "out", "", "file for the rows")
	case soak != "":
		fs.DurationVar(&idleFor, "for", 10*time.Minute, "how long")
		fs.StringVar(&file, "out", "", "file for the report")
	case bench:
		fs.IntVar(&cfg.Runs, "runs", 5, "of each fault")
		fs.StringVar(&file, "out", "", "file for the rows")
		fs.StringVar(&peers, "peer", "", "others to measure on the same faults: keepalived, pacemaker, with a mode after a colon")
		fs.StringVar(&cfg.PeersDir, "peers-dir", "../shared/peers", "their scripts")
	default:
		fs.StringVar(&file, "report", "", "file for the report")
	}
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "demo: %q is not understood\n", fs.Arg(0))
		fs.Usage()
		return 2
	}
	cfg.Faults, cfg.Peers = words(faults), words(peers)
	if cfg.Data = len(cfg.Faults) == 0; !bench && slices.Contains(cfg.Faults, dataWord) {
		cfg.Data, cfg.Faults = true, slices.DeleteFunc(cfg.Faults, func(f string) bool { return f == dataWord })
	}
	if _, err := cfg.faults(1); err != nil {
		fmt.Fprintln(stderr, "demo:", err)
		return 2
	}
	status, entered, err := Enter(ctx, cfg, os.Args)
	if err != nil {
		fmt.Fprintln(stderr, "demo:", err)
		return 1
	}
	if entered {
		return status
	}
	progress := stdout
	if asJSON {
		progress = stderr
	}
	if idle {
		return runIdle(ctx, cfg, idleFor, file, asJSON, stdout, stderr, progress)
	}
	if soak != "" {
		return runSoak(ctx, cfg, soak, idleFor, file, asJSON, stdout, stderr, progress)
	}
	if bench {
		return runBench(ctx, cfg, file, asJSON, stdout, stderr, progress)
	}
	return runDemo(ctx, cfg, file, asJSON, stdout, stderr, progress)
}

func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func runDemo(ctx context.Context, cfg Config, file string, asJSON bool, stdout, stderr, progress io.Writer) int {
	r, err := Demo(ctx, cfg, progress)
	if err != nil {
		fmt.Fprintln(stderr, "demo:", err)
		r.Verdict = "fail"
		r.Problems = append(r.Problems, err.Error())
	}
	if file != "" {
		if err := r.Write(file); err != nil {
			fmt.Fprintln(stderr, "demo:", err)
			return 1
		}
	}
	if asJSON {
		_ = json.NewEncoder(stdout).Encode(r) // a closed stdout changes nothing of the verdict
	}
	if r.Verdict != "pass" {
		return 1
	}
	return 0
}

func runBench(ctx context.Context, cfg Config, file string, asJSON bool, stdout, stderr, progress io.Writer) int {
	rows, err := Bench(ctx, cfg, progress)
	if file != "" {
		if werr := WriteRows(file, rows); werr != nil {
			fmt.Fprintln(stderr, "demo bench:", werr)
			return 1
		}
	}
	if asJSON {
		_ = json.NewEncoder(stdout).Encode(rows)
	}
	if err != nil {
		fmt.Fprintln(stderr, "demo bench:", err)
		return 1
	}
	return 0
}
