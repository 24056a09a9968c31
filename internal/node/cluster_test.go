package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/supervise"
	"github.com/hanode/hanode/failover/supervise/launch"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/guard"
	"github.com/hanode/hanode/internal/member"
)

// inNamespace marks the test process that has a network of its own.
const inNamespace = "HANODE_NODE_TEST"

// The test binary is the daemons' guard and exec step too. As root, the tests run again in a process with a network namespace of its own: nodes
// gate every interface, and use real-time scheduling.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case guard.Subcommand:
			if err := guard.Main(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		case launch.Subcommand:
			fmt.Fprintln(os.Stderr, supervise.ExecChild(os.Args[2:]))
			os.Exit(127)
		}
	}
	if os.Geteuid() != 0 || os.Getenv(inNamespace) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	var exit *exec.ExitError
	switch err := cmd.Run(); {
	case errors.As(err, &exit):
		os.Exit(max(exit.ExitCode(), 1))
	case errors.Is(err, os.ErrPermission):
		os.Exit(m.Run()) // the tests say what they need
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func needNamespace(t *testing.T) {
	t.Helper()
	if os.Getenv(inNamespace) == "" {
		t.Skip("needs root: runs nodes in a network namespace of their own")
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// trio is two nodes and a witness in this process.
type trio struct {
	t    *testing.T
	dir  string
	a, b *Node
	w    *member.Member
}

func testLog(name string) *slog.Logger {
	if os.Getenv("HANODE_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("member", name)
}

func (tr *trio) data(name string) string { return filepath.Join(tr.dir, name) }

// start runs a node until the test ends.
func (tr *trio) start(name string) *Node {
	tr.t.Helper()
	n, err := New(Config{DataDir: tr.data(name), Socket: filepath.Join(tr.dir, name+".sock"), Version: "test", Log: testLog(name)})
	if err != nil {
		tr.t.Fatal(err)
	}
	tr.run(name, n.Run)
	return n
}

func (tr *trio) run(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	tr.t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				tr.t.Errorf("%s ended: %v", name, err)
			}
		case <-time.After(30 * time.Second):
			tr.t.Errorf("%s does not end", name)
		}
	})
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("within 20 s: not %s", what)
		}
	}
}

func (tr *trio) token(ctx context.Context, role string) string {
	tr.t.Helper()
	tok, err := backend{tr.a}.TokenCreate(ctx, api.TokenRequest{Role: role})
	if err != nil {
		tr.t.Fatal(err)
	}
	return tok.Token
}

// newTrio makes a cluster from nothing; its node names are a and b, its witness is w.
func newTrio(t *testing.T) *trio {
	t.Helper()
	needNamespace(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tr := &trio{t: t, dir: t.TempDir()}
	l, err := net.Listen("tcp", "127.0.9.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := func(i int) string { return fmt.Sprintf("127.0.9.%d:%d", i, l.Addr().(*net.TCPAddr).Port) }
	l.Close()
	if _, err := Init(ctx, api.InitOptions{DataDir: tr.data("a"), Name: "a", Cluster: "test", Advertise: addr(1)}, nil); err != nil {
		t.Fatal(err)
	}
	tr.a = tr.start("a")
	if _, err := Join(ctx, api.JoinOptions{DataDir: tr.data("b"), Token: tr.token(ctx, "node"), Name: "b", Advertise: addr(2)}, nil); err != nil {
		t.Fatal(err)
	}
	tr.b = tr.start("b")
	if _, err := member.Join(ctx, member.JoinOptions{Dir: tr.data("w"), Token: tr.token(ctx, "witness"), Name: "w", Role: cluster.RoleWitness, Advertise: addr(3)}); err != nil {
		t.Fatal(err)
	}
	d, err := member.OpenDir(tr.data("w"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	if tr.w, err = member.New(member.Config{Dir: d, Local: member.Nothing{}, Version: "test", Log: testLog("w"), Ballast: -1}); err != nil {
		t.Fatal(err)
	}
	tr.w.SetLocal(member.Nothing{Step: tr.w.StepNow})
	tr.run("w", tr.w.Run)
	eventually(t, "three votes, on both nodes", func() bool { return votes(tr.a) == 3 && votes(tr.b) == 3 })
	t.Cleanup(func() { // with nothing active, no daemon waits for another one to take over
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, _ = backend{tr.a}.Service(ctx, api.ServiceRequest{Service: "db", Action: api.ActionStop}, nil)
	})
	return tr
}

func votes(n *Node) (total int) {
	_ = n.m.On(func(c *core.Core) {
		if len(c.State().Group.Sets) == 1 {
			_, total, _, _ = c.Quorum()
		}
	})
	return total
}

// hot is a service that runs on both nodes and needs no address.
const hot = `cluster {
  profile = "normal"
}

service "db" {
  nodes = ["a", "b"]

  process "sleep" {
    start   = ["/bin/sleep", "1000"]
    standby = "hot"
  }
}
`

// protected puts hot in force and waits until b could take over.
func (tr *trio) protected(ctx context.Context) {
	tr.t.Helper()
	if _, err := (backend{tr.a}).Apply(ctx, api.ApplyRequest{Order: api.Order{Who: "test"}, File: "hot.hcl", Text: hot}, nil); err != nil {
		tr.t.Fatal(err)
	}
	tr.settled(ctx)
}

func (tr *trio) settled(ctx context.Context) {
	tr.t.Helper()
	for _, n := range []*Node{tr.a, tr.b} {
		if _, err := (backend{n}).Wait(ctx, api.WaitRequest{Service: "db", For: api.WaitProtected}, nil); err != nil {
			tr.t.Fatal(err)
		}
	}
}
