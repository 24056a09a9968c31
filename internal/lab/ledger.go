package lab

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/demoapp"
	"github.com/hanode/hanode/internal/lab/world"
)

// The service with data of the lab: a ledger in a volume, and clerks that enter into it through its address.
const (
	ledgerName = "ledger"
	ledgerVIP  = "10.77.0.101"
	ledgerPort = 8081
	ledgerPath = "/srv/ledger"
)

// ledger says how it is kept.
type ledger struct {
	mode  string // of the volume
	fsync bool   // an entry is acknowledged when it is synced
	extra string // further words of the service block
}

func (l *ledger) spec(self []string) string {
	if l == nil {
		return ""
	}
	argv := []string{}
	for _, a := range append(append([]string(nil), self...), demoapp.LedgerCommand, "--listen", fmt.Sprintf(":%d", ledgerPort), "--dir", ledgerPath, fmt.Sprintf("--fsync=%v", l.fsync)) {
		argv = append(argv, fmt.Sprintf("%q", a))
	}
	return fmt.Sprintf(`service %q {
  nodes = [%q, %q]
%s
  vip "%s/24" {}

  volume "data" {
    path = %q
    mode = %q
  }

  process "ledger" {
    start = [%s]
    ready = "started"
  }

  on_failure {
    restarts = 0
  }
}

`, ledgerName, nodeA, nodeB, l.extra, ledgerVIP, ledgerPath, l.mode, strings.Join(argv, ", "))
}

// backing is where a host keeps the files of the ledger's volume.
func (p *product) backing(host string) string {
	return filepath.Join(p.bed.world.Host(host).Dir(), "srv", ".hanode-ledger")
}

// entries are what a host's copy of the ledger holds, in its order.
func (p *product) entries(host string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(p.backing(host), "tree", "ledger"))
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(b)), nil
}

// entry is what a clerk was told: acknowledged.
type entry struct {
	text        string
	sent, acked cluster.Instant
}

// clerk is a clerk at work on a client.
type clerk struct {
	h   *world.Host
	pid int
	out string
}

// startClerk lets clerks enter until stop.
func (p *product) startClerk(ctx context.Context, prefix string, workers int) (*clerk, error) {
	h := p.bed.world.Host(client)
	k := &clerk{h: h, out: filepath.Join(h.Dir(), "clerk-"+prefix)}
	argv := append(append([]string(nil), p.bed.self...), demoapp.ClerkCommand, "--target", fmt.Sprintf("%s:%d", ledgerVIP, ledgerPort), "--workers", fmt.Sprint(workers), "--prefix", prefix, "--every", "5ms", "--out", k.out)
	var err error
	k.pid, err = h.Spawn(ctx, world.Cmd{Argv: argv, Log: h.Log("clerk")})
	return k, err
}

// stop ends a clerk.
func (k *clerk) stop(ctx context.Context) error {
	if err := k.h.Signal(ctx, k.pid, syscall.SIGTERM); err != nil {
		return err
	}
	_, err := k.h.Wait(ctx, k.pid)
	return err
}

// acked reads what was acknowledged so far.
func (k *clerk) acked() ([]entry, error) {
	f, err := os.Open(k.out)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []entry
	for sc := bufio.NewScanner(f); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) != 3 {
			continue // being written
		}
		sent, err := strconv.ParseInt(f[1], 10, 64)
		acked, err2 := strconv.ParseInt(f[2], 10, 64)
		if err == nil && err2 == nil {
			out = append(out, entry{f[0], cluster.Instant(sent), cluster.Instant(acked)})
		}
	}
	return out, nil
}

// gap is the longest time without an acknowledgement after an instant, and when it ended; 0 if it has not.
func gap(es []entry, from cluster.Instant) (longest time.Duration, end cluster.Instant) {
	last := from
	for _, e := range es {
		if e.acked < from {
			continue
		}
		if d := e.acked.Sub(last); d > longest {
			longest, end = d, e.acked
		}
		last = max(last, e.acked)
	}
	return longest, end
}

// missing are the acknowledged entries that a copy does not hold.
func missing(es []entry, have []string) (out []string) {
	in := make(map[string]bool, len(have))
	for _, e := range have {
		in[e] = true
	}
	for _, e := range es {
		if !in[e.text] {
			out = append(out, e.text)
		}
	}
	return out
}
