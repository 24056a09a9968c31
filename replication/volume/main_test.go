package volume_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication/tree"
	"github.com/hanode/hanode/replication/volume"
	"github.com/hanode/hanode/replication/volume/voltest"
)

// clients are what tests do on a mount. Each runs in a process of its own, because a process that uses the file system that it serves can
// deadlock. An error that it returns fails the test.
var clients = map[string]func(dir string, args []string) error{}

const clientEnv = "HANODE_VOLUME_CLIENT"

func TestMain(m *testing.M) {
	if name := os.Getenv(clientEnv); name != "" {
		syscall.Umask(0o022)
		if err := clients[name](os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	syscall.Umask(0)
	os.Exit(m.Run())
}

// output is what a client has said so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// client prepares a client's process; its output is kept.
func client(name, dir string, args ...string) (*exec.Cmd, *output) {
	cmd := exec.Command("/proc/self/exe", append([]string{dir}, args...)...)
	cmd.Env = append(os.Environ(), clientEnv+"="+name)
	out := new(output)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

// run runs a client to its end and fails the test if it fails.
func run(t *testing.T, name, dir string, args ...string) string {
	t.Helper()
	cmd, out := client(name, dir, args...)
	if err := cmd.Run(); err != nil {
		t.Fatalf("client %s: %v\n%s", name, err, out)
	}
	return out.String()
}

// mounted is a volume that is served by the test's process.
type mounted struct {
	*volume.FS
	dir  string // the mount
	back string // the backing directory
	tree *tree.Tree
	shut atomic.Bool // the gate
}

// mount makes a volume on the test's directory, active unless told otherwise, and takes everything away at the end.
func mount(t *testing.T, log volume.Log, role volume.Role, change ...func(*volume.Config)) *mounted {
	t.Helper()
	return mountOn(t, t.TempDir(), log, role, change...)
}

func needFuse(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs /dev/fuse: %v", err)
	}
	f.Close()
}

func mountOn(t *testing.T, base string, log volume.Log, role volume.Role, change ...func(*volume.Config)) *mounted {
	t.Helper()
	return mountWith(t, base, 0, log, role, change...)
}

// openTree opens a backing directory, made if it is not there, which the test closes at its end.
func openTree(t *testing.T, dir string) *tree.Tree {
	t.Helper()
	tr := settled(t, dir, tree.Options{})
	t.Cleanup(func() { tr.Close() })
	return tr
}

func settled(t *testing.T, dir string, opt tree.Options) *tree.Tree {
	t.Helper()
	if err := tree.Make(dir); err != nil {
		t.Fatal(err)
	}
	tr, err := tree.Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Settle(); err != nil {
		t.Fatal(err)
	}
	return tr
}

func mountWith(t *testing.T, base string, maxOpen int, log volume.Log, role volume.Role, change ...func(*volume.Config)) *mounted {
	t.Helper()
	needFuse(t)
	m := &mounted{dir: filepath.Join(base, "mnt"), back: filepath.Join(base, "back")}
	tr := settled(t, m.back, tree.Options{Mount: m.dir, MaxOpen: maxOpen})
	m.tree = tr
	cfg := volume.Config{Service: "svc", Volume: "data", Index: 1, Mount: m.dir, Tree: tr, Log: log, Logger: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Gate: func() error {
			if m.shut.Load() {
				return errors.New("the gate is shut")
			}
			return nil
		}}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if m.FS, err = volume.New(cfg); err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); m.Serve() }()
	t.Cleanup(func() {
		if _, err := m.Abort(true); err != nil {
			t.Error(err)
		}
		<-served
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
		mutable(m.dir)
	})
	if role == volume.Active {
		if err := m.SetRole(volume.Active, 1); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// mutable takes the immutable flag off a mount point, so that it can be removed.
func mutable(dir string) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS); err == nil {
		unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags&^0x10))
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// listing describes a tree as a client sees it: one line for each name with type, mode, owner, size, link count and content.
func listing(t *testing.T, dir string) string {
	t.Helper()
	return run(t, "listing", dir)
}

func init() {
	clients["listing"] = func(dir string, _ []string) error {
		var lines []string
		err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
			if err != nil {
				return err
			}
			st := info.Sys().(*syscall.Stat_t)
			rel, _ := filepath.Rel(dir, path)
			line := fmt.Sprintf("%s %o %d:%d n%d", rel, st.Mode, st.Uid, st.Gid, st.Nlink)
			switch {
			case info.Mode().IsRegular():
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" %d %q", st.Size, clip(b))
			case info.Mode()&os.ModeSymlink != 0:
				s, err := os.Readlink(path)
				if err != nil {
					return err
				}
				line += " -> " + s
			}
			lines = append(lines, line)
			return nil
		})
		sort.Strings(lines)
		fmt.Println(strings.Join(lines, "\n"))
		return err
	}
}

func clip(b []byte) string {
	if len(b) > 64 {
		return string(b[:32]) + "…" + string(b[len(b)-32:])
	}
	return string(b)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func accept() volume.Log { return new(voltest.Accept) }
