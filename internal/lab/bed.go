package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/lab/probe"
	"github.com/hanode/hanode/internal/lab/world"
)

// The lab's hosts: two nodes, a witness, and the clients. c resolves the service's address by ARP like any client; c1
// and c2 have it pinned to the MAC of a and of b.
const (
	nodeA, nodeB, witnessHost    = "a", "b", "w"
	client, clientOfA, clientOfB = "c", "c1", "c2"

	// VIP is the service's address, Port its port.
	VIP  = "10.77.0.100"
	Port = 8080
)

// address gives a host's place on a network: 0 is the clients', 1 joins only the members.
var hostNumbers = map[string]int{nodeA: 1, nodeB: 2, witnessHost: 3, client: 10, clientOfA: 11, clientOfB: 12}

func address(host string, link int) string {
	return fmt.Sprintf("10.%d.0.%d", 77+link, hostNumbers[host])
}

func mac(host string, link int) string {
	return fmt.Sprintf("02:%d:00:00:00:%02d", 77+link, hostNumbers[host])
}

func isMember(host string) bool { return hostNumbers[host] < 10 }

// pinnedOf is the client that always reaches a node.
func pinnedOf(node string) string {
	if node == nodeA {
		return clientOfA
	}
	return clientOfB
}

func otherNode(node string) string {
	if node == nodeA {
		return nodeB
	}
	return nodeA
}

// bed is the lab without anything that is to be tested: hosts, networks, running probes.
type bed struct {
	world *world.World
	coll  *probe.Collector
	self  []string

	sink   string
	end    context.CancelFunc
	served chan error
}

// newBed makes it. dir must not exist; "" chooses one, in memory if possible, because a disk that other work keeps
// busy stalls whoever fsyncs, and the same goes for the peers.
func newBed(ctx context.Context, self []string, dir string, keep bool, log *slog.Logger) (_ *bed, err error) {
	if dir == "" {
		if dir, err = chooseDir(); err != nil {
			return nil, err
		}
	}
	w, err := world.Up(ctx, world.Config{Self: self, Dir: dir, Links: 2, Keep: keep, Log: log})
	if err != nil {
		return nil, err
	}
	b := &bed{world: w, self: self, sink: filepath.Join(dir, "probes.sock")}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.coll, err = probe.Listen(b.sink); err != nil {
		return nil, err
	}
	collecting, end := context.WithCancel(context.WithoutCancel(ctx))
	b.end, b.served = end, make(chan error, 1)
	go func() { b.served <- b.coll.Run(collecting) }()
	for _, h := range []string{nodeA, nodeB, witnessHost, client, clientOfA, clientOfB} {
		spec := world.Spec{Name: h, Client: !isMember(h)}
		for link := range 2 {
			if link == 0 || isMember(h) {
				spec.Nics = append(spec.Nics, world.Nic{Link: link, Prefix: address(h, link) + "/24", MAC: mac(h, link)})
			}
		}
		if _, err = w.Add(ctx, spec); err != nil {
			return nil, err
		}
	}
	for _, n := range []string{nodeA, nodeB} {
		if err = w.Host(pinnedOf(n)).Pin(ctx, "eth0", VIP, mac(n, 0)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func chooseDir() (string, error) {
	for _, base := range []string{"/dev/shm", os.TempDir()} {
		if base == "/dev/shm" {
			var st unix.Statfs_t
			if unix.Statfs(base, &st) != nil || st.Type != unix.TMPFS_MAGIC || st.Bavail*uint64(st.Bsize) < 1<<30 {
				continue
			}
		}
		if strings.HasPrefix(base, "/run") {
			continue // hosts have their own /run and would not see it
		}
		old, _ := filepath.Glob(filepath.Join(base, "hanode-lab-*"))
		for _, d := range old {
			if world.Orphaned(filepath.Base(d)) {
				_ = world.RemoveAll(d) // a lab that was killed could not
			}
		}
		if dir, err := os.MkdirTemp(base, fmt.Sprintf("hanode-lab-%d-", os.Getpid())); err == nil {
			return dir, os.Chmod(dir, 0o755)
		} else if base != "/dev/shm" {
			return "", err
		}
	}
	return "", errors.New("no directory for the lab: set TMPDIR to one outside /run")
}

// startProbes starts the measuring clients and the plain one.
func (b *bed) startProbes(ctx context.Context) error {
	target := fmt.Sprintf("%s:%d", VIP, Port)
	for _, c := range []string{client, clientOfA, clientOfB} {
		if err := b.startSelf(ctx, c, "probe", probe.Command, "-name", c, "-target", target, "-sink", b.sink); err != nil {
			return err
		}
	}
	return b.startSelf(ctx, client, "plain", probe.Command, "-plain", "-target", target, "-sink", b.sink)
}

// startSelf starts one of the lab's own commands in a host.
func (b *bed) startSelf(ctx context.Context, host, log string, args ...string) error {
	h := b.world.Host(host)
	_, err := h.Spawn(ctx, world.Cmd{Argv: append(append([]string(nil), b.self...), args...), Log: h.Log(log)})
	return err
}

// judge analyses a window from all measuring clients.
func (b *bed) judge(w probe.Window) probe.Finding {
	from := w.Fault.Add(-1200 * time.Millisecond)
	return probe.Analyse(w, b.coll.Since(client, from), b.coll.Since(clientOfA, from), b.coll.Since(clientOfB, from))
}

// settled waits until all attempts that started before t have ended and their records are here.
func (b *bed) settled(ctx context.Context, t cluster.Instant) error {
	return sleep(ctx, t.Add(300*time.Millisecond).Sub(probe.Now()))
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pidOf reads a pid file that lies in a host's /run.
func (b *bed) pidOf(host, name string) (int, error) {
	raw, err := os.ReadFile(filepath.Join(b.world.Host(host).Dir(), "run", name))
	if err != nil {
		return 0, err
	}
	var pid int
	if _, err := fmt.Sscan(string(raw), &pid); err != nil {
		return 0, fmt.Errorf("pid file %s of host %s: %w", name, host, err)
	}
	return pid, nil
}

func (b *bed) signal(ctx context.Context, host string, pid int, sig syscall.Signal) error {
	return b.world.Host(host).Signal(ctx, pid, sig)
}

func (b *bed) close() error {
	err := b.world.Close()
	if b.end != nil {
		b.end()
		err = errors.Join(err, <-b.served)
	}
	return err
}
