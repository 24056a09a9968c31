package volume_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
	"github.com/hanode/hanode/replication/volume"
	"github.com/hanode/hanode/replication/volume/voltest"
)

func init() {
	// writer FILE: opens for writing, and for each line on stdin writes one byte at the end and says how that ended.
	clients["writer"] = func(dir string, a []string) error {
		f, err := os.OpenFile(filepath.Join(dir, a[0]), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		fmt.Println("open")
		var one [1]byte
		for {
			if n, _ := os.Stdin.Read(one[:]); n == 0 {
				return nil
			}
			_, err := f.Write(one[:])
			posix{}.say("write", err)
		}
	}
	// handle NAME…: prints the file handle and the inode number of each.
	clients["handle"] = func(dir string, names []string) error {
		for _, n := range names {
			h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, filepath.Join(dir, n), 0)
			if err != nil {
				return fmt.Errorf("name_to_handle_at %s: %w", n, err)
			}
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(dir, n), &st); err != nil {
				return err
			}
			fmt.Printf("%d:%x:%d\n", h.Type(), h.Bytes(), st.Ino)
		}
		return nil
	}
	// byhandle HANDLE…: opens each file by its handle and prints its content, or its entries' number.
	clients["byhandle"] = func(dir string, handles []string) error {
		root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		for _, s := range handles {
			var typ int32
			var hex string
			f := strings.Split(s, ":")
			fmt.Sscan(f[0], &typ)
			hex = f[1]
			b := make([]byte, len(hex)/2)
			for i := range b {
				fmt.Sscanf(hex[2*i:2*i+2], "%x", &b[i])
			}
			fd, err := unix.OpenByHandleAt(root, unix.NewFileHandle(typ, b), unix.O_RDONLY)
			if err != nil {
				posix{}.say("open by handle", err)
				continue
			}
			buf := make([]byte, 64)
			if n, err := unix.Read(fd, buf); err == nil {
				fmt.Printf("%s\n", buf[:n])
				continue
			}
			up, err := unix.Openat(fd, "..", unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err != nil {
				return fmt.Errorf("the parent: %w", err)
			}
			var st unix.Stat_t
			unix.Fstat(up, &st)
			fmt.Println("directory below", st.Ino)
		}
		return nil
	}
}

// apply takes an operation into a tree behind the mount's back, as the stream does on a standby.
func apply(t *testing.T, tr *tree.Tree, op replication.Op) {
	t.Helper()
	op.Volume = 1
	if _, err := tr.Apply(&op); err != nil {
		t.Fatal(err)
	}
}

func TestAStandbyShowsWhatTheStreamBringsAndRefusesWriters(t *testing.T) {
	m := mount(t, voltest.NewWithhold(), volume.Standby)
	apply(t, m.tree, replication.Op{Kind: replication.Create, ID: 2, Parent: 1, Name: "f", Mode: syscall.S_IFREG | 0o644, Time: 1e18})
	apply(t, m.tree, replication.Op{Kind: replication.Write, ID: 2, Data: []byte("first"), Time: 1e18})
	if got := sh(t, m.dir, "cat $D/f; ls $D; test -e $D/g || echo none"); got != "firstf\nnone\n" {
		t.Errorf("at first: %q", got)
	}
	apply(t, m.tree, replication.Op{Kind: replication.Create, ID: 9, Parent: 1, Name: "looked-at", Mode: syscall.S_IFREG | 0o644, Time: 1e18})
	if got := sh(t, m.dir, "stat -c %s $D/looked-at; test -e $D/late || echo none"); got != "0\nnone\n" {
		t.Errorf("before: %q", got)
	}
	apply(t, m.tree, replication.Op{Kind: replication.Write, ID: 9, Data: []byte("1234567"), Time: 1e18})
	apply(t, m.tree, replication.Op{Kind: replication.Create, ID: 10, Parent: 1, Name: "late", Mode: syscall.S_IFREG | 0o644, Time: 1e18})
	if got := sh(t, m.dir, "test -e $D/late && echo there; stat -c %s $D/looked-at"); got != "there\n7\n" {
		t.Errorf("a size or an absence that the kernel was told before the stream went on: %q", got)
	}
	apply(t, m.tree, replication.Op{Kind: replication.Unlink, ID: 9, Parent: 1, Name: "looked-at", Time: 1e18})
	apply(t, m.tree, replication.Op{Kind: replication.Unlink, ID: 10, Parent: 1, Name: "late", Time: 1e18})
	reader, out := client("reader", m.dir, "f")
	in, err := reader.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	lines := 0
	read := func() string {
		in.Write([]byte{'\n'})
		lines++
		eventually(t, "the reader answers", func() bool { return strings.Count(out.String(), "\n") == lines })
		return strings.Split(out.String(), "\n")[lines-1]
	}
	if got := read(); got != "first/first" {
		t.Errorf("the reader sees %q", got)
	}
	// What the kernel was told must not outlive the next operation of the stream: absence, size, content, names.
	apply(t, m.tree, replication.Op{Kind: replication.Create, ID: 3, Parent: 1, Name: "g", Mode: syscall.S_IFREG | 0o600, Time: 1e18})
	apply(t, m.tree, replication.Op{Kind: replication.Write, ID: 2, Data: []byte("second, longer"), Time: 1e18})
	if got := sh(t, m.dir, "cat $D/f; ls $D; stat -c %s $D/f"); got != "second, longerf\ng\n14\n" {
		t.Errorf("after the stream went on: %q", got)
	}
	if got := read(); !strings.HasPrefix(got, "second, longer/") {
		t.Errorf("a descriptor that was open before reads %q", got)
	}
	for _, script := range []string{"echo x >>$D/f", "echo x >$D/new", "rm $D/f", "mv $D/f $D/h", "mkdir $D/d", "chmod 600 $D/f", "ln $D/f $D/l", "truncate -s 0 $D/f"} {
		got := sh(t, m.dir, script+" 2>&1 || true")
		if !strings.Contains(got, "Read-only file system") {
			t.Errorf("%s on the standby: %q", script, got)
		}
	}

	// Promotion, without a remount; the reader's mapping must not stay behind.
	if err := m.SetRole(volume.Active, 7); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "second, longer/second, longer" {
		t.Errorf("after the promotion the reader sees %q", got)
	}
	if got := sh(t, m.dir, "printf third >$D/f; cat $D/f; echo more >$D/new; ls $D"); got != "thirdf\ng\nnew\n" {
		t.Errorf("after the promotion: %q", got)
	}
	if got := read(); got != "third/third" {
		t.Errorf("the reader of before the promotion sees %q", got)
	}
	in.Close()
	if err := reader.Wait(); err != nil {
		t.Errorf("%v %s", err, out)
	}
	if err := m.SetRole(volume.Standby, 8); err == nil {
		t.Error("an active became a standby without a new mount")
	}
}

func TestAHandleStaysGoodAcrossABump(t *testing.T) {
	m := mount(t, accept(), volume.Active)
	sh(t, m.dir, ": >$D/f")
	w, out := client("writer", m.dir, "f")
	in, err := w.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	expect := func(want string) {
		t.Helper()
		eventually(t, "the writer says "+want, func() bool { return out.String() == want })
	}
	expect("open\n")
	in.Write([]byte("a"))
	expect("open\nwrite ok\n")
	if err := m.SetRole(volume.Active, 2); err != nil {
		t.Fatal(err)
	}
	in.Write([]byte("b"))
	expect("open\nwrite ok\nwrite ok\n")
	m.shut.Store(true)
	in.Write([]byte("c"))
	expect("open\nwrite ok\nwrite ok\nwrite EIO\n")
	m.shut.Store(false)
	in.Write([]byte("d"))
	expect("open\nwrite ok\nwrite ok\nwrite EIO\nwrite ok\n")
	in.Close()
	w.Wait()
	if got := sh(t, m.dir, "cat $D/f"); got != "abd" {
		t.Errorf("the file holds %q", got)
	}
}

// The same file has the same inode number and the same handle on every mount of its volume (D12): here on a second mount, in a second process'
// life, of the same backing directory.
func TestInodeNumbersAndHandlesOutliveTheMount(t *testing.T) {
	base := t.TempDir()
	var handles string
	t.Run("first", func(t *testing.T) {
		m := mountOn(t, base, accept(), volume.Active)
		sh(t, m.dir, "mkdir -p $D/a/b; echo deep >$D/a/b/f; echo top >$D/top; echo gone >$D/gone")
		handles = run(t, "handle", m.dir, "a", "a/b", "a/b/f", "top", "gone")
	})
	t.Run("second", func(t *testing.T) {
		m := mountOn(t, base, accept(), volume.Active)
		h := strings.Fields(handles)
		// By handle first, while the kernel knows no name of this mount.
		got := run(t, "byhandle", m.dir, h[2], h[3], h[1])
		want := fmt.Sprintf("deep\n\ntop\n\ndirectory below %s\n", strings.Split(h[0], ":")[2])
		if got != want {
			t.Errorf("opened by handle: %q, want %q", got, want)
		}
		if again := run(t, "handle", m.dir, "a", "a/b", "a/b/f", "top", "gone"); again != handles {
			t.Errorf("handles and numbers were\n%s, are\n%s", handles, again)
		}
		sh(t, m.dir, "rm $D/gone")
		if got := run(t, "byhandle", m.dir, h[4]); got != "open by handle ESTALE\n" {
			t.Errorf("the handle of a file that is gone: %q", got)
		}
	})
}

func TestWhatCannotBeMountedIsRefusedWithTheRemedy(t *testing.T) {
	m := mount(t, accept(), volume.Active)
	dir := t.TempDir()
	full := filepath.Join(dir, "full")
	os.MkdirAll(filepath.Join(full, "x"), 0o755)
	for _, c := range []struct{ mount, want string }{
		{m.dir, "unmount it first"},
		{full, "not empty"},
		{"relative", "absolute path"},
	} {
		_, err := volume.New(volume.Config{Service: "s", Volume: "v", Index: 1, Mount: c.mount, Tree: m.tree, Log: accept(), Gate: func() error { return nil }})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.mount, err)
		}
	}
	if got := sh(t, m.dir, "echo fine >$D/f; cat $D/f"); got != "fine\n" {
		t.Errorf("the volume that was there: %q", got)
	}
}

// fsync of a file and of a directory, msync and O_DSYNC reach the log; syncfs does not, because the kernel does not pass it on (docs/replication.md).
func TestWhatMakesThingsDurableReachesTheLog(t *testing.T) {
	m := mount(t, accept(), volume.Active)
	sh(t, m.dir, "echo x >$D/f")
	for _, c := range []struct {
		script string
		reach  bool
	}{{"sync $D/f", true}, {"sync $D", true}, {"sync -d $D/f", true}, {"dd if=/dev/zero of=$D/f oflag=dsync bs=4k count=1 2>/dev/null", true}, {"sync -f $D/f", false}} {
		before := m.Stats().Syncs.Load()
		sh(t, m.dir, c.script)
		if got := m.Stats().Syncs.Load() > before; got != c.reach {
			t.Errorf("%s reaches Log.Sync: %v", c.script, got)
		}
	}
}
