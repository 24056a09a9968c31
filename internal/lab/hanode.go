package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hanode/hanode/internal/demoapp"
	"github.com/hanode/hanode/internal/lab/world"
)

// Everything that the lab orders from and asks of the product is in this file, as an operator would type it.

const (
	serviceName = "echo"
	clusterName = "lab"
	memberPort  = 7400
	pidFile     = "hanode-demo-echo.pid" // in the node's /run
)

// product is a cluster under test on a bed.
type product struct {
	bed             *bed
	hanode, witness string // binaries
	profile         string
	daemons         map[string]int             // pid of the daemon within its host
	slowDisks       bool                       // the Raft logs' disks can be made slow, by the file slowDisk(host)
	maxFailovers    int                        // of the spec; 0: so many that nothing is ever held
	around          func(host string) []string // words before the daemon's own argv, and nil: none
	ledger          *ledger                    // the service with data, beside the one without; nil: none
	more            string                     // further blocks of the spec
}

func (p *product) dataDir(host string) string {
	return filepath.Join(p.bed.world.Host(host).Dir(), "data")
}

// slowDisk is the file that holds up each write of a host's Raft log, while it exists, by the duration that it contains.
func (p *product) slowDisk(host string) string {
	return filepath.Join(p.bed.world.Host(host).Dir(), "slow-disk")
}

func (p *product) binary(host string) string {
	if host == witnessHost {
		return p.witness
	}
	return p.hanode
}

// env is all that a command or daemon on a host gets from the lab.
func (p *product) env(host string) []string {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + p.bed.world.Host(host).Dir(),
		"HANODE_SOCKET=" + filepath.Join(p.dataDir(host), "hanode.sock"),
	}
	if g := p.bed.world.Host(host).Cgroup(); g != "" {
		env = append(env, "HANODE_CGROUP="+g)
	}
	if p.slowDisks {
		env = append(env, "HANODE_FAULT_DISK="+p.slowDisk(host))
	}
	for _, pass := range []string{"GOTRACEBACK", "GOCOVERDIR", "HANODE_LOG"} {
		if v, ok := os.LookupEnv(pass); ok {
			env = append(env, pass+"="+v)
		}
	}
	return env
}

// command runs one command of the product on a host to its end. A status other than 0 is an error with what it said.
func (p *product) command(ctx context.Context, host string, args ...string) ([]byte, error) {
	argv := append([]string{p.binary(host)}, args...)
	res, err := p.bed.world.Host(host).Exec(ctx, world.Cmd{Argv: argv, Env: p.env(host)})
	if err != nil {
		return nil, err
	}
	if res.Exit != 0 {
		said := strings.TrimSpace(string(res.Stderr) + "\n" + string(res.Stdout))
		if res.TimedOut {
			said += " (killed by the lab after " + res.Took.Round(time.Millisecond).String() + ")"
		}
		return res.Stdout, &commandError{host: host, args: args, exit: res.Exit, said: said}
	}
	return res.Stdout, nil
}

// commandError is a command that ended with a status other than 0.
type commandError struct {
	host string
	args []string
	exit int
	said string
}

func (e *commandError) Error() string {
	return fmt.Sprintf("on %s, hanode %s: status %d: %s", e.host, strings.Join(e.args, " "), e.exit, firstLines(e.said, 6))
}

func firstLines(s string, n int) string {
	lines := strings.SplitN(s, "\n", n+1)
	if len(lines) > n {
		lines = lines[:n]
	}
	return strings.Join(lines, "; ")
}

func advertise(host string) []string {
	return []string{"--advertise", fmt.Sprintf("%s:%d", address(host, 0), memberPort), "--link", address(host, 1)}
}

// setup makes the cluster from nothing and waits until the service is protected.
func (p *product) setup(ctx context.Context) error {
	p.daemons = map[string]int{}
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	args := append([]string{"init", "--name", nodeA, "--cluster", clusterName, "--data", p.dataDir(nodeA)}, advertise(nodeA)...)
	if _, err := p.command(ctx, nodeA, args...); err != nil {
		return err
	}
	if err := p.startDaemon(ctx, nodeA); err != nil {
		return err
	}
	for _, m := range []struct{ host, role string }{{nodeB, "node"}, {witnessHost, "witness"}} {
		token, err := p.token(ctx, m.role)
		if err != nil {
			return err
		}
		args := append([]string{"join", "--token", token, "--name", m.host, "--data", p.dataDir(m.host)}, advertise(m.host)...)
		if _, err := p.command(ctx, m.host, args...); err != nil {
			return err
		}
		if err := p.startDaemon(ctx, m.host); err != nil {
			return err
		}
	}
	return p.apply(ctx)
}

// startDaemon starts `run` on a host; on nodes it waits until the daemon answers on its socket.
func (p *product) startDaemon(ctx context.Context, host string) error {
	h := p.bed.world.Host(host)
	argv := []string{p.binary(host), "run", "--data", p.dataDir(host)}
	if p.around != nil {
		argv = append(p.around(host), argv...)
	}
	pid, err := h.Spawn(ctx, world.Cmd{Argv: argv, Env: p.env(host), Log: h.Log("daemon")})
	if err != nil {
		return err
	}
	p.daemons[host] = pid
	if host == witnessHost {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		_, err := p.command(ctx, host, "status", "--local", "--json")
		if err == nil {
			return nil
		}
		if gone := h.Signal(ctx, pid, 0); gone != nil && ctx.Err() == nil {
			return fmt.Errorf("the daemon of %s has ended; its log ends with: %s", host, h.Tail("daemon", 3000))
		}
		if sleep(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("the daemon of %s does not answer: %w; its log ends with: %s", host, err, h.Tail("daemon", 3000))
		}
	}
}

func (p *product) token(ctx context.Context, role string) (string, error) {
	out, err := p.command(ctx, nodeA, "token", "create", "--role", role, "--json")
	if err != nil {
		return "", err
	}
	var any any
	if err := json.Unmarshal(out, &any); err != nil {
		return "", fmt.Errorf("token create --json: %w", err)
	}
	if t := findText(any, "token"); t != "" {
		return t, nil
	}
	return "", fmt.Errorf("token create --json printed no token: %.200s", out)
}

// findText looks for a non-empty text under a key, the outermost first.
func findText(v any, key string) string {
	m, ok := v.(map[string]any)
	if !ok {
		return ""
	}
	if s, ok := m[key].(string); ok && s != "" {
		return s
	}
	for _, inner := range m {
		if s := findText(inner, key); s != "" {
			return s
		}
	}
	return ""
}

// spec is the whole file that the cluster runs by. The service is hot; a killed process is not restarted in place,
// because the failover is what is to be shown.
func (p *product) spec() string {
	argv := []string{}
	for _, a := range append(append([]string(nil), p.bed.self...), demoapp.Command, "--listen", fmt.Sprintf(":%d", Port), "--pidfile", "/run/"+pidFile) {
		argv = append(argv, fmt.Sprintf("%q", a))
	}
	max := p.maxFailovers
	if max == 0 {
		max = 1000
	}
	return p.ledger.spec(p.bed.self) + fmt.Sprintf(`cluster {
  profile       = %q
  max_failovers = %d
}

service %q {
  nodes = [%q, %q]

  vip "%s/24" {}

  process "echo" {
    start   = [%s]
    standby = "hot"
  }

  check "port" {
    tcp = "127.0.0.1:%d"
  }

  on_failure {
    restarts = 0
  }
}
`, p.profile, max, serviceName, nodeA, nodeB, VIP, strings.Join(argv, ", "), Port) + p.more
}

func (p *product) apply(ctx context.Context) error {
	file := filepath.Join(p.bed.world.Host(nodeA).Dir(), "spec.hcl")
	if err := os.WriteFile(file, []byte(p.spec()), 0o644); err != nil {
		return err
	}
	if _, err := p.command(ctx, nodeA, "apply", file, "--yes"); err != nil {
		return err
	}
	if p.ledger != nil {
		if err := p.await(ctx, ledgerName, "protected", 60*time.Second); err != nil {
			return err
		}
	}
	return p.waitProtected(ctx, 60*time.Second)
}

// waitProtected waits until the service would survive the next failure.
func (p *product) waitProtected(ctx context.Context, d time.Duration) error {
	return p.await(ctx, serviceName, "protected", d)
}

// await waits until a service is in a state, as `hanode wait` knows them.
func (p *product) await(ctx context.Context, service, what string, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d+2*time.Second)
	defer cancel()
	var errs error
	for _, host := range p.askable() {
		_, err := p.command(ctx, host, "wait", service, "--for", what, "--timeout", fmt.Sprintf("%dms", d.Milliseconds()))
		if err == nil {
			return nil
		}
		errs = errors.Join(errs, err)
		var ce *commandError
		if errors.As(err, &ce) && ce.exit == 5 {
			break // timed out: the others would say the same
		}
	}
	st, _ := p.status(ctx)
	return fmt.Errorf("service %s is not %s after %v (%s): %w", service, what, d, st.describe(), errs)
}

// askable lists the nodes that run, b first: most faults hit the service's first node.
func (p *product) askable() []string {
	var out []string
	for _, n := range []string{nodeB, nodeA} {
		if p.bed.world.Host(n).Alive() {
			out = append(out, n)
		}
	}
	return out
}

// status is the part of `status --json` that the lab reads.
type status struct {
	Cluster struct {
		Profile string `json:"profile"`
		Leader  string `json:"leader"`
		Quorum  bool   `json:"quorum"`
		Votes   struct {
			Heard int `json:"heard"`
			Total int `json:"total"`
		} `json:"votes"`
	} `json:"cluster"`
	Members []struct {
		Name   string `json:"name"`
		State  string `json:"state"`
		NodeID string `json:"node_id"`
	} `json:"members"`
	Services []serviceStatus `json:"services"`
	Alarms   []struct {
		Code string `json:"code"`
		Text string `json:"text"`
	} `json:"alarms"`
}

type serviceStatus struct {
	Name       string   `json:"name"`
	State      string   `json:"state"`
	Protection string   `json:"protection"`
	Reasons    []string `json:"protection_reasons"`
	Active     string   `json:"active"`
	Standby    string   `json:"standby"`
	IfFails    string   `json:"if_active_fails"`
	Epoch      uint64   `json:"epoch"`
	LastMove   struct {
		Decision string `json:"decision"`
	} `json:"last_move"`
}

// service is the named one, or a zero one.
func (s status) service(name string) serviceStatus {
	for _, sv := range s.Services {
		if sv.Name == name {
			return sv
		}
	}
	return serviceStatus{}
}

func (s status) epoch() uint64 { return s.service(serviceName).Epoch }

func (s status) active() string { return s.service(serviceName).Active }

// outlook is what the status says of the next failure.
func (s status) outlook() string {
	for _, sv := range s.Services {
		if sv.Name == serviceName {
			return strings.Join(append([]string{sv.Protection}, sv.Reasons...), ", ")
		}
	}
	return "no such service"
}

// describe is for error messages.
func (s status) describe() string {
	var out []string
	for _, sv := range s.Services {
		out = append(out, fmt.Sprintf("%s is %s, %s %v, active %q, standby %q, epoch %d", sv.Name, sv.State, sv.Protection, sv.Reasons, sv.Active, sv.Standby, sv.Epoch))
	}
	for _, m := range s.Members {
		out = append(out, m.Name+" is "+m.State)
	}
	for _, a := range s.Alarms {
		out = append(out, "alarm "+a.Code+": "+a.Text)
	}
	return strings.Join(out, "; ")
}

// status asks the nodes in turn and takes the answer with the highest epoch: one that was cut off knows an older one.
func (p *product) status(ctx context.Context, hosts ...string) (status, error) {
	if len(hosts) == 0 {
		hosts = p.askable()
	}
	var best status
	var errs []error
	for _, host := range hosts {
		asking, cancel := context.WithTimeout(ctx, 3*time.Second)
		out, err := p.command(asking, host, "status", "--json")
		cancel()
		var st status
		var ce *commandError
		if err == nil || errors.As(err, &ce) && ce.exit == 4 { // without a quorum there is an answer all the same
			err = json.Unmarshal(out, &st)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if len(best.Services) == 0 || st.epoch() > best.epoch() {
			best = st
		}
	}
	if len(errs) == len(hosts) {
		return best, errors.Join(errs...)
	}
	return best, nil
}

// explain returns the newest decision about the service and its sentence.
func (p *product) explain(ctx context.Context, hosts ...string) (decision, sentence string, err error) {
	return p.explainOf(ctx, serviceName, hosts...)
}

// explainOf asks about a service or a decision.
func (p *product) explainOf(ctx context.Context, what string, hosts ...string) (decision, sentence string, err error) {
	var errs []error
	for _, host := range hosts {
		asking, cancel := context.WithTimeout(ctx, 3*time.Second)
		out, err := p.command(asking, host, "explain", what, "--json")
		cancel()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var e struct {
			Sentence string `json:"sentence"`
			Decision *struct {
				ID       string `json:"id"`
				Sentence string `json:"sentence"`
			} `json:"decision"`
		}
		if err := json.Unmarshal(out, &e); err != nil {
			errs = append(errs, fmt.Errorf("explain --json on %s: %w", host, err))
			continue
		}
		sentence = e.Sentence
		if e.Decision != nil {
			decision = e.Decision.ID
			if sentence == "" {
				sentence = e.Decision.Sentence
			}
		}
		return decision, strings.Join(strings.Fields(sentence), " "), nil
	}
	return "", "", errors.Join(errs...)
}

// switchover orders a planned move.
func (p *product) switchover(ctx context.Context, service, from, to string) error {
	_, err := p.command(ctx, from, "switchover", service, "--to", to, "--yes", "--timeout", "40s", "--reason", "shown in the lab")
	return err
}

// signalDaemon sends a signal to the daemon alone, not to its children.
func (p *product) signalDaemon(ctx context.Context, host string, sig syscall.Signal) error {
	return p.bed.signal(ctx, host, p.daemons[host], sig)
}

// appPID is the process of the service on a node.
func (p *product) appPID(host string) (int, error) { return p.bed.pidOf(host, pidFile) }

// revive starts a dead host and its daemon: a repaired machine that boots.
func (p *product) revive(ctx context.Context, host string) error {
	if err := p.bed.world.Host(host).Start(ctx); err != nil {
		return err
	}
	return p.startDaemon(ctx, host)
}
