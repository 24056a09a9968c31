package gate

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// The daemon of these tests is the test binary itself, started again with this variable.
const childEnv = "GATE_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := runChild(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("6") // these tests wait for deadlines and for the kernel, not for a processor
	}
	os.Exit(m.Run())
}

// order is a line to the child, answer a line from it.
type order struct {
	Do       string
	Config   childConfig
	Service  cluster.ServiceNo
	VIPs     []netip.Addr
	Deadline cluster.Instant
	Lease    time.Duration
	Every    time.Duration
}

type childConfig struct {
	Form Form
	Name string
}

type answer struct {
	Err      string
	Form     Form
	Now      cluster.Instant
	Deadline cluster.Instant // of a renewal that is about to be made
	Stats    map[string]uint64
	VIPs     []netip.Addr
}

// runChild obeys orders until its input ends.
func runChild(in io.Reader, out io.Writer) error {
	say := json.NewEncoder(out)
	hear := json.NewDecoder(bufio.NewReader(in))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ran := make(chan error, 1)
	var g *Gate
	for {
		var o order
		if err := hear.Decode(&o); err != nil {
			return nil
		}
		var a answer
		var err error
		switch o.Do {
		case "open":
			g, err = Open(Config{Form: o.Config.Form, Name: o.Config.Name, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))})
			if err == nil {
				a.Form = g.Form()
				go func() { ran <- g.Run(ctx) }()
			}
		case "vips":
			err = g.SetVIPs(o.Service, o.VIPs)
		case "refresh":
			err = g.Refresh(o.Service, o.Deadline)
		case "lease":
			err = g.Refresh(o.Service, boottime().Add(o.Lease))
		case "renew": // for ever; each deadline is told before it is set
			for {
				d := boottime().Add(o.Lease)
				if err := say.Encode(answer{Deadline: d}); err != nil {
					return err
				}
				if err := g.Refresh(o.Service, d); err != nil {
					return err
				}
				time.Sleep(o.Every)
			}
		case "strangers":
			a.VIPs, err = g.ForgetStrangers()
		case "stats":
			a.Stats = g.Stats()
		case "shutdown":
			err = g.Shutdown()
		case "remove":
			cancel()
			if err = <-ran; err == nil {
				err = g.Remove()
			}
		}
		if err != nil {
			a.Err = err.Error()
		}
		a.Now = boottime()
		if err := say.Encode(a); err != nil {
			return err
		}
	}
}

// child is a running daemon.
type child struct {
	t    testing.TB
	cmd  *exec.Cmd
	say  *json.Encoder
	hear *json.Decoder
	in   io.Closer
	dead bool
}

// startChild starts one in a namespace; before is put in front of the command.
func startChild(t testing.TB, s space, before ...string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	argv := append(before, self)
	c := &child{t: t, cmd: exec.Command(argv[0], argv[1:]...)}
	c.cmd.Env = append(os.Environ(), childEnv+"=1")
	c.cmd.Stderr = os.Stderr
	in, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.in, c.say, c.hear = in, json.NewEncoder(in), json.NewDecoder(bufio.NewReader(out))
	s.must(t, "start the daemon", c.cmd.Start)
	t.Cleanup(c.kill)
	return c
}

// kill is SIGKILL, also of one that is stopped.
func (c *child) kill() {
	if c.dead {
		return
	}
	c.dead = true
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

func (c *child) signal(sig unix.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil {
		c.t.Fatal(err)
	}
}

// try gives an order and returns the answer, whatever it is.
func (c *child) try(o order) answer {
	c.t.Helper()
	if err := c.say.Encode(o); err != nil {
		c.t.Fatalf("%s: %v", o.Do, err)
	}
	return c.next()
}

func (c *child) next() answer {
	c.t.Helper()
	var a answer
	if err := c.hear.Decode(&a); err != nil {
		c.t.Fatalf("the daemon does not answer: %v", err)
	}
	return a
}

func (c *child) do(o order) answer {
	c.t.Helper()
	a := c.try(o)
	if a.Err != "" {
		c.t.Fatalf("%s: %s", o.Do, a.Err)
	}
	return a
}

func (c *child) open(form Form) {
	c.t.Helper()
	if a := c.do(order{Do: "open", Config: childConfig{Form: form, Name: "test"}}); form != Auto && a.Form != form {
		c.t.Fatalf("form %s was asked for, %s was armed", form, a.Form)
	}
}

func (c *child) vips(svc cluster.ServiceNo, vips ...netip.Addr) {
	c.t.Helper()
	c.do(order{Do: "vips", Service: svc, VIPs: vips})
}

func (c *child) lease(svc cluster.ServiceNo, d time.Duration) cluster.Instant {
	c.t.Helper()
	return c.do(order{Do: "lease", Service: svc, Lease: d}).Now.Add(d)
}
