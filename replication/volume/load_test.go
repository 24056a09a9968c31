package volume_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/volume"
	"github.com/hanode/hanode/replication/volume/voltest"
)

func init() {
	clients["fsx"] = fsx
	// parallel FILE WRITERS BLOCKS: many descriptors write blocks of their own and common ones at once.
	clients["parallel"] = func(dir string, a []string) error {
		writers, _ := strconv.Atoi(a[1])
		blocks, _ := strconv.Atoi(a[2])
		f, err := os.OpenFile(filepath.Join(dir, a[0]), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		if err := f.Truncate(int64(blocks) * 4096); err != nil {
			return err
		}
		var wg sync.WaitGroup
		errs := make(chan error, writers)
		for w := range writers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				r := rand.New(rand.NewPCG(uint64(w), 1))
				for i := range 150 {
					b := bytes.Repeat([]byte{byte('a' + w)}, 4096)
					copy(b, fmt.Sprint(w, i))
					if _, err := f.WriteAt(b, int64(r.IntN(blocks))*4096); err != nil {
						errs <- err
						return
					}
				}
			}()
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			return err
		}
		return nil
	}
	// opens PREFIX N: holds N files and N descriptors of one of them open until stdin ends.
	clients["opens"] = func(dir string, a []string) error {
		n, _ := strconv.Atoi(a[1])
		for i := range 2 * n {
			name, flags := filepath.Join(dir, fmt.Sprint(a[0], min(i, n-1))), unix.O_RDWR|unix.O_CREAT
			if i >= n {
				flags = i % 3
			}
			fd, err := unix.Open(name, flags, 0o644)
			if err != nil {
				return fmt.Errorf("open %d: %w", i, err)
			}
			if i < n {
				if _, err := unix.Pwrite(fd, []byte("x"), 0); err != nil {
					return fmt.Errorf("write %d: %w", i, err)
				}
			}
		}
		fmt.Println("ready")
		os.Stdin.Read(make([]byte, 1))
		return nil
	}
}

// fsx does random things to one file through descriptors and mappings of every kind and compares each read with a model: fsx SEED STEPS.
func fsx(dir string, a []string) error {
	seed, _ := strconv.ParseUint(a[0], 10, 64)
	steps, _ := strconv.Atoi(a[1])
	r := rand.New(rand.NewPCG(seed, 0))
	const most = 256 << 10
	path := filepath.Join(dir, "fsx")
	model := []byte{}
	var fds []int // [0] is always read-write
	open := func(flags int) error {
		fd, err := unix.Open(path, flags, 0o644)
		if err == nil {
			fds = append(fds, fd)
		}
		return err
	}
	if err := open(unix.O_RDWR | unix.O_CREAT); err != nil {
		return err
	}
	grow := func(n int) {
		for len(model) < n {
			model = append(model, make([]byte, n-len(model))...)
		}
	}
	where := func() (off, n int) { off = r.IntN(most); return off, 1 + r.IntN(min(most-off, 20000)) }
	check := func(what string, got []byte, off int) error {
		want := model[min(off, len(model)):min(off+len(got), len(model))]
		if !bytes.Equal(got, want) {
			i := 0
			for i < min(len(got), len(want)) && got[i] == want[i] {
				i++
			}
			return fmt.Errorf("%s at %d: %d bytes, want %d; they differ from byte %d on", what, off, len(got), len(want), off+i)
		}
		return nil
	}
	for step := range steps {
		err := func() error {
			off, n := where()
			switch op := r.IntN(100); {
			case op < 22:
				b := make([]byte, n)
				for i := range b {
					b[i] = byte(step + i*i>>4)
				}
				if _, err := unix.Pwrite(fds[0], b, int64(off)); err != nil {
					return err
				}
				grow(off + n)
				copy(model[off:], b)
			case op < 50: // by any descriptor that can read
				fd := fds[r.IntN(len(fds))]
				b := make([]byte, n)
				k, err := unix.Pread(fd, b, int64(off))
				if err != nil {
					return err
				}
				return check("read", b[:k], off)
			case op < 60: // store through a mapping
				if len(model) == 0 {
					return nil
				}
				off %= len(model)
				n = min(n, len(model)-off)
				m, err := unix.Mmap(fds[0], 0, len(model), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				if err != nil {
					return err
				}
				for i := range n {
					m[off+i] = byte(step * 3)
					model[off+i] = byte(step * 3)
				}
				err = unix.Msync(m, unix.MS_SYNC)
				unix.Munmap(m)
				return err
			case op < 68: // read through a mapping of any descriptor
				if len(model) == 0 {
					return nil
				}
				m, err := unix.Mmap(fds[r.IntN(len(fds))], 0, len(model), unix.PROT_READ, unix.MAP_SHARED)
				if err != nil {
					return err
				}
				defer unix.Munmap(m)
				return check("mapping", m, 0)
			case op < 74:
				if err := unix.Ftruncate(fds[0], int64(off)); err != nil {
					return err
				}
				grow(off)
				model = model[:off]
			case op < 82:
				if err := unix.Fallocate(fds[0], unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)); err != nil {
					return err
				}
				if off < len(model) {
					clear(model[off:min(off+n, len(model))])
				}
			case op < 86:
				if err := unix.Fallocate(fds[0], unix.FALLOC_FL_ZERO_RANGE, int64(off), int64(n)); err != nil {
					return err
				}
				grow(off + n)
				clear(model[off : off+n])
			case op < 90:
				return open([]int{unix.O_RDONLY, unix.O_RDWR}[r.IntN(2)])
			case op < 94:
				if len(fds) > 1 {
					i := 1 + r.IntN(len(fds)-1)
					unix.Close(fds[i])
					fds = append(fds[:i], fds[i+1:]...)
				}
			case op < 96:
				return unix.Fsync(fds[0])
			default:
				var st unix.Stat_t
				if err := unix.Stat(path, &st); err != nil {
					return err
				}
				if int(st.Size) != len(model) {
					return fmt.Errorf("the size is %d, want %d", st.Size, len(model))
				}
			}
			return nil
		}()
		if err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return check("the file at the end", b, 0)
}

// Random operations by descriptors and mappings of every kind agree with a model, and a standby that applies the records has the same bytes.
func TestRandomOperationsAgreeWithAModelAndWithTheRecords(t *testing.T) {
	for seed := range 6 {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			log := voltest.NewWithhold()
			m := mount(t, log, volume.Active, func(c *volume.Config) { c.NoPassthrough = seed%3 == 2 })
			run(t, "fsx", m.dir, fmt.Sprint(seed), "400")
			sameOnAStandby(t, m, log)
		})
	}
}

// sameOnAStandby applies every record to a second tree and compares it with the backing of the first, byte for byte.
func sameOnAStandby(t *testing.T, m *mounted, log *voltest.Withhold) {
	t.Helper()
	ops, _ := log.Snapshot()
	other := filepath.Join(t.TempDir(), "standby")
	tr := openTree(t, other)
	for i := range ops {
		if _, err := tr.Apply(&ops[i]); err != nil {
			t.Fatalf("operation %d, %v: %v", i, ops[i].Kind, err)
		}
	}
	a, b := listing(t, filepath.Join(m.back, "tree")), listing(t, filepath.Join(other, "tree"))
	if a != b {
		t.Errorf("the active's tree\n%s\nthe standby's\n%s", a, b)
	}
	sh(t, m.back, "diff -r "+filepath.Join(m.back, "tree")+" "+filepath.Join(other, "tree"))
}

// Writes to one file that overlap in time are applied in the order of Submit, so that every copy ends with the same bytes.
func TestParallelWritesAreAppliedInTheOrderOfSubmit(t *testing.T) {
	log := voltest.NewWithhold()
	m := mount(t, log, volume.Active)
	done := make(chan struct{})
	go func() { // acceptances that come late and in bunches
		defer close(done)
		for i := range 40 {
			log.Hold()
			time.Sleep(time.Duration(i%7) * time.Millisecond)
			log.Let(-1)
			time.Sleep(time.Millisecond)
		}
	}()
	run(t, "parallel", m.dir, "f", "8", "12")
	<-done
	ops, applied := log.Snapshot()
	last := map[replication.FileID]volume.Ticket{}
	for _, a := range applied {
		op := &ops[a-1]
		if op.Kind != replication.Write {
			continue
		}
		if last[op.ID] > a {
			t.Fatalf("operation %d on inode %d was applied after operation %d", a, op.ID, last[op.ID])
		}
		last[op.ID] = a
	}
	sameOnAStandby(t, m, log)
}

// Clients that open very many files get their descriptors, and the volume goes on: 18,000 handles of 9,000 files here, while the server
// keeps a thousand descriptors; HANODE_OPENS=1000000 makes it two million handles of a million files.
func TestVeryManyOpenFilesDoNotBreakAVolume(t *testing.T) {
	const each = 9000 // a process may have 20,000 descriptors here
	n := each
	if s := os.Getenv("HANODE_OPENS"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	m := mountWith(t, t.TempDir(), 1000, accept(), volume.Active)
	var ins []interface{ Close() error }
	for i := 0; i*each < n; i++ {
		c, out := client("opens", m.dir, fmt.Sprintf("p%d-", i), fmt.Sprint(min(each, n-i*each)))
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ins = append(ins, in)
		defer c.Wait()
		for out.String() == "" {
			time.Sleep(5 * time.Millisecond)
		}
		if out.String() != "ready\n" {
			t.Fatalf("client %d: %s", i, out)
		}
	}
	if got := m.Handles(); got < 2*n {
		t.Errorf("%d handles, want %d", got, 2*n)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil || len(fds) > 2000 {
		t.Errorf("the server has %d descriptors open (%v)", len(fds), err)
	}
	if got := sh(t, m.dir, "cat $D/p0-0; ls $D | wc -l"); got != fmt.Sprintf("x%d\n", n) {
		t.Errorf("the volume says %q", got)
	}
	for _, in := range ins {
		in.Close()
	}
	eventually(t, "every handle is closed", func() bool { return m.Handles() == 0 })
}
