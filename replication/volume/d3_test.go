package volume_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/volume"
	"github.com/hanode/hanode/replication/volume/voltest"
)

func init() {
	// write FILE TEXT OFFSET
	clients["write"] = func(dir string, a []string) error {
		f, err := os.OpenFile(filepath.Join(dir, a[0]), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		var off int64
		fmt.Sscan(a[2], &off)
		_, err = f.WriteAt([]byte(a[1]), off)
		return err
	}
	clients["create"] = func(dir string, a []string) error { return os.WriteFile(filepath.Join(dir, a[0]), nil, 0o644) }
	clients["rename"] = func(dir string, a []string) error {
		return os.Rename(filepath.Join(dir, a[0]), filepath.Join(dir, a[1]))
	}
	clients["exists"] = func(dir string, a []string) error { _, err := os.Lstat(filepath.Join(dir, a[0])); return err }
	// reader FILE: for each line on stdin it reads the file anew by a descriptor that it keeps, and by a mapping, and prints both.
	clients["reader"] = func(dir string, a []string) error {
		f, err := os.Open(filepath.Join(dir, a[0]))
		if err != nil {
			return err
		}
		m, err := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ, syscall.MAP_SHARED)
		if err != nil {
			return err
		}
		for {
			var one [1]byte
			if n, _ := os.Stdin.Read(one[:]); n == 0 {
				return nil
			}
			var b [16]byte
			n, err := f.ReadAt(b[:], 0)
			if n == 0 {
				return err
			}
			fmt.Printf("%s/%s\n", strings.TrimRight(string(b[:n]), "\x00"), strings.TrimRight(string(m[:16]), "\x00"))
		}
	}
}

// In mode sync no reader may see bytes or names that the standby has not accepted (D3), however it reads: by passthrough, by a mapping of the
// backing file, through the kernel's cache or through the server.
func TestNothingIsSeenBeforeTheLogHasLetItGo(t *testing.T) {
	for _, how := range []string{"passthrough", "cache"} {
		t.Run(how, func(t *testing.T) {
			log := voltest.NewWithhold()
			m := mount(t, log, volume.Active, func(c *volume.Config) { c.NoPassthrough = how == "cache" })
			sh(t, m.dir, "printf 'old-old-old-old-' >$D/f")
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
				l := strings.Split(out.String(), "\n")
				return l[lines-1]
			}
			if got := read(); got != "old-old-old-old-/old-old-old-old-" {
				t.Fatalf("before anything was written: %s", got)
			}
			if passed := m.Stats().Passed.Load(); (passed > 0) != (how == "passthrough") {
				t.Fatalf("%d opens were passed through", passed)
			}

			log.Hold()
			w, wout := client("write", m.dir, "f", "new", "0")
			if err := w.Start(); err != nil {
				t.Fatal(err)
			}
			log.AwaitWaiting(1)
			if got := read(); got != "old-old-old-old-/old-old-old-old-" {
				t.Errorf("a reader sees what was not accepted: %s", got)
			}
			log.Let(1)
			if err := w.Wait(); err != nil {
				t.Fatalf("%v: %s", err, wout)
			}
			if got := read(); got != "new-old-old-old-/new-old-old-old-" {
				t.Errorf("after the write was acknowledged a reader sees %s", got)
			}
			c, cout := client("create", m.dir, "g")
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			log.AwaitWaiting(1)
			// The kernel holds the directory's lock until the answer, so looks at it wait. They must not show the name before.
			looks := []string{"ls -U $D | cat", "find $D -mindepth 1 -printf '%f\n'", "test -e $D/g && echo g || true"}
			seen := make(chan string, len(looks))
			for _, look := range looks {
				go func() { seen <- look + ": " + sh(t, m.dir, look) }()
			}
			select {
			case got := <-seen:
				if strings.Contains(got, "g\n") {
					t.Errorf("a name is seen that was not accepted: %q", got)
				}
				seen <- got
			case <-time.After(50 * time.Millisecond):
			}
			log.Let(1)
			if err := c.Wait(); err != nil {
				t.Fatalf("%v: %s", err, cout)
			}
			for range looks {
				<-seen
			}
			if got := sh(t, m.dir, "ls $D"); got != "f\ng\n" {
				t.Errorf("after the create was acknowledged: %q", got)
			}
			in.Close()
			log.Let(-1)
			if err := reader.Wait(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// INTERRUPT never cancels an operation that has a record (D13): a signal makes the caller wait for the answer all the same.
func TestASignalDoesNotCancelAnOperationInFlight(t *testing.T) {
	log := voltest.NewWithhold()
	m := mount(t, log, volume.Active)
	sh(t, m.dir, ": >$D/f")
	log.Hold()
	w, out := client("write", m.dir, "f", "text", "0")
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	log.AwaitWaiting(1)
	for range 50 {
		w.Process.Signal(syscall.SIGUSR1 + 13) // a signal that Go ignores when nobody asks for it: SIGURG's neighbour
		w.Process.Signal(syscall.SIGURG)
	}
	done := make(chan error, 1)
	go func() { done <- w.Wait() }()
	select {
	case err := <-done:
		t.Fatalf("the write ended before the log let it go: %v %s", err, out)
	case <-time.After(100 * time.Millisecond):
	}
	log.Let(-1)
	if err := <-done; err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := sh(t, m.dir, "cat $D/f"); got != "text" {
		t.Errorf("the file holds %q", got)
	}
}

// Deposition: what waits ends with EIO and is never applied; the mount goes; whoever holds a file is named, or killed.
func TestAbortEndsEverythingWithEIO(t *testing.T) {
	log := voltest.NewWithhold()
	m := mount(t, log, volume.Active)
	sh(t, m.dir, "printf old >$D/f; printf x >$D/g")
	hold, _ := client("reader", m.dir, "g")
	in, err := hold.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the reader has opened its file", func() bool { return m.Stats().Passed.Load() > 0 })
	log.Hold()
	w, out := client("write", m.dir, "f", "new", "0")
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	log.AwaitWaiting(1)
	m.shut.Store(true)
	log.Refuse()
	if err := w.Wait(); err == nil || !strings.Contains(out.String(), syscall.EIO.Error()) {
		t.Errorf("the write in flight ended with %v %q, not with EIO", err, out)
	}
	if _, applied := log.Snapshot(); len(applied) != len(must(log.Snapshot()))-1 {
		t.Errorf("%d operations were applied of %d submitted, one of which was refused", len(applied), len(must(log.Snapshot())))
	}
	c, cout := client("exists", m.dir, "f")
	c.Run()
	if !strings.Contains(cout.String(), syscall.EIO.Error()) {
		t.Logf("with the gate shut a look at a name that the kernel has cached gives %q", cout)
	}
	holders, err := m.Abort(true)
	if err != nil {
		t.Fatal(err)
	}
	if len(holders) != 1 || holders[0].PID != hold.Process.Pid || !holders[0].Gone {
		t.Errorf("holders: %+v; the reader is process %d", holders, hold.Process.Pid)
	}
	hold.Wait()
	if got := sh(t, m.dir, "ls $D"); got != "" {
		t.Errorf("the mount point shows %q after the abort", got)
	}
	if b, err := os.ReadFile(filepath.Join(m.back, "tree", "f")); err != nil || string(b) != "old" {
		t.Errorf("the backing file holds %q (%v), want what was there before the refused write", b, err)
	}
	if err := os.WriteFile(filepath.Join(m.dir, "stray"), nil, 0o644); !errors.Is(err, syscall.EPERM) {
		t.Errorf("something can be written to the mount point of a volume that is not mounted: %v", err)
	}
}

func must[T, U any](v T, _ U) T { return v }

func init() {
	// mapstore FILE: opens for reading and writing, stores through a shared mapping at each line on stdin, and says so.
	clients["mapstore"] = func(dir string, a []string) error {
		f, err := os.OpenFile(filepath.Join(dir, a[0]), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		m, err := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
		if err != nil {
			return err
		}
		f.Close()
		fmt.Println("mapped")
		for i := byte('1'); ; i++ {
			var one [1]byte
			if n, _ := os.Stdin.Read(one[:]); n == 0 {
				return nil
			}
			copy(m, bytes.Repeat([]byte{i}, 16))
			fmt.Println("stored", string(i))
		}
	}
}

// What is stored through a mapping reaches the standby in either order of opening: by the kernel's write-back when the writer was there first, and
// by stores.go when a reader was.
func TestStoresThroughAMappingAreRecordedInEitherOrderOfOpening(t *testing.T) {
	for _, first := range []string{"reader", "writer"} {
		t.Run(first+" first", func(t *testing.T) {
			log := voltest.NewWithhold()
			m := mount(t, log, volume.Active)
			sh(t, m.dir, "printf 'old-old-old-old-' >$D/f; head -c 300000 /dev/zero >>$D/f")
			start := func(name string) (*output, func(), func()) {
				c, out := client(name, m.dir, "f")
				in, err := c.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Start(); err != nil {
					t.Fatal(err)
				}
				return out, func() { in.Write([]byte{'\n'}) }, func() { in.Close(); c.Wait() }
			}
			begin := func(name string) (*output, func(), func()) {
				opens := m.Stats().Opens.Load()
				out, step, end := start(name)
				eventually(t, name+" has opened the file", func() bool { return m.Stats().Opens.Load() > opens })
				return out, step, end
			}
			var rout, wout *output
			var read, store, rend, wend func()
			if first == "reader" {
				rout, read, rend = begin("reader")
				wout, store, wend = begin("mapstore")
			} else {
				wout, store, wend = begin("mapstore")
				eventually(t, "the writer has mapped the file", func() bool { return wout.String() == "mapped\n" })
				rout, read, rend = begin("reader")
			}
			for i := byte('1'); i < '4'; i++ {
				store()
				want := strings.Repeat(string(i), 16)
				eventually(t, "the writer has stored", func() bool { return strings.Contains(wout.String(), "stored "+string(i)) })
				if first == "writer" {
					sh(t, m.dir, "sync $D/f") // fsync(2)
				}
				eventually(t, "a record has what was stored", func() bool {
					ops, _ := log.Snapshot()
					for _, op := range ops {
						if op.Kind == replication.Write && op.Off == 0 && strings.HasPrefix(string(op.Data), want) {
							return true
						}
					}
					return false
				})
				n := strings.Count(rout.String(), "\n")
				read()
				eventually(t, "the reader answers", func() bool { return strings.Count(rout.String(), "\n") > n })
				if got := strings.Split(rout.String(), "\n")[n]; got != want+"/"+want {
					t.Errorf("the reader sees %q, want %q", got, want)
				}
			}
			if got := m.Stats().Unsafe.Load() > 0; got != (first == "reader") {
				t.Errorf("opens that are looked after: %v", got)
			}
			wend()
			rend()
			eventually(t, "nothing is open", func() bool { return m.Handles() == 0 })
			sameOnAStandby(t, m, log)
		})
	}
}

// A mapping that came and went between two looks is found when the descriptor is closed.
func TestAShortMappingPastTheServerIsFoundAtTheEnd(t *testing.T) {
	log := voltest.NewWithhold()
	m := mount(t, log, volume.Active)
	sh(t, m.dir, "printf 'old-old-old-old-' >$D/f; head -c 300000 /dev/zero >>$D/f")
	reader, _ := client("reader", m.dir, "f")
	in, err := reader.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the reader has opened the file", func() bool { return m.Stats().Passed.Load() == 1 })
	w, out := client("mapstore", m.dir, "f")
	w.Stdin = strings.NewReader("\n")
	if err := w.Run(); err != nil || m.Stats().Unsafe.Load() != 1 {
		t.Fatalf("%v %s, %d opens are looked after", err, out, m.Stats().Unsafe.Load())
	}
	eventually(t, "what was stored is recorded", func() bool { return m.Stats().Stored.Load() > 0 })
	in.Close()
	reader.Wait()
	sameOnAStandby(t, m, log)
}
