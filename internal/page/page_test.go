package page

import (
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

func pair(t *testing.T) (*Writer, *Reader) {
	t.Helper()
	w, err := Create("db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	r, err := OpenFD(int(w.File().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return w, r
}

func TestTheLayoutIsTheDocumentedOne(t *testing.T) {
	var l layout
	for _, f := range []struct {
		name      string
		got, want uintptr
	}{
		{"version", unsafe.Offsetof(l.version), 8}, {"size", unsafe.Offsetof(l.size), 12},
		{"counter", unsafe.Offsetof(l.counter), 16}, {"made", unsafe.Offsetof(l.made), 24},
		{"slots", unsafe.Offsetof(l.slots), 64}, {"slot size", unsafe.Sizeof(l.slots[0]), 64},
		{"name", unsafe.Offsetof(l.name), 256},
		{"epoch", unsafe.Offsetof(l.slots[0].epoch), 0}, {"deadline", unsafe.Offsetof(l.slots[0].deadline), 8},
		{"inc", unsafe.Offsetof(l.slots[0].inc), 16}, {"ttl", unsafe.Offsetof(l.slots[0].ttl), 24},
		{"state", unsafe.Offsetof(l.slots[0].state), 32},
	} {
		if f.got != f.want {
			t.Errorf("%s is at %d, documented at %d", f.name, f.got, f.want)
		}
	}
}

func TestAReaderSeesWhatWasSet(t *testing.T) {
	w, r := pair(t)
	if r.Name() != "db" {
		t.Errorf("name %q", r.Name())
	}
	if r.MayAct(1) || r.Load() != (Snapshot{}) {
		t.Error("a new page lets its reader act")
	}
	w.SetTTL(250 * time.Millisecond)
	w.SetIncarnation(9)
	w.Set(7, 1000, Active)
	want := Snapshot{Epoch: 7, Deadline: 1000, Incarnation: 9, TTL: 250 * time.Millisecond, State: Active}
	if got := r.Load(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if !r.MayAct(999) || r.MayAct(1000) {
		t.Error("the deadline is the first instant at which one may not act")
	}
	for _, s := range []State{Idle, Standby, Draining, Fenced} {
		w.Set(7, 1000, s)
		if r.MayAct(1) {
			t.Errorf("%v may act", s)
		}
	}
	w.Set(8, 0, Active)
	if r.MayAct(1) {
		t.Error("deadline 0 may act")
	}
}

func TestNobodyButTheWriterCanWrite(t *testing.T) {
	w, r := pair(t)
	fd := int(w.File().Fd())
	if _, err := unix.Mmap(fd, 0, Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		t.Error("a second writable mapping was allowed")
	}
	if _, err := unix.Pwrite(fd, []byte{1}, 0); err == nil {
		t.Error("write(2) was allowed")
	}
	if err := unix.Ftruncate(fd, 0); err == nil {
		t.Error("ftruncate was allowed")
	}
	if err := unix.Mprotect(r.mem, unix.PROT_READ|unix.PROT_WRITE); err == nil {
		t.Error("a reader could make its mapping writable")
	}
	w.Set(1, 5, Active) // the writer still can
	if !r.MayAct(4) {
		t.Error("the writer's own mapping no longer works after sealing")
	}
}

func TestForeignDescriptorsAreRefused(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Truncate(Size)
	if _, err := OpenFD(int(f.Fd())); err == nil {
		t.Error("a plain file was taken for a page")
	}
	fd, err := unix.MemfdCreate("x", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	unix.Ftruncate(fd, Size)
	if _, err := OpenFD(fd); err == nil || !strings.Contains(err.Error(), "seals") {
		t.Errorf("an unsealed memfd: %v", err)
	}
	unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_FUTURE_WRITE)
	if _, err := OpenFD(fd); err == nil {
		t.Error("a page without magic was accepted")
	}
}

// Each Set writes facts that belong together; a torn snapshot would mix two of them.
func TestSnapshotsAreNeverTorn(t *testing.T) {
	w, r := pair(t)
	check := func(s Snapshot) {
		if s == (Snapshot{}) {
			return
		}
		if s.Deadline != cluster.Instant(s.Epoch)*3 || s.TTL != time.Duration(s.Epoch) || s.Incarnation != cluster.Incarnation(s.Epoch) {
			t.Errorf("torn snapshot: %+v", s)
		}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					check(r.Load())
				}
			}
		})
	}
	for i := 1; i < 300000; i++ {
		w.SetTTL(time.Duration(i))
		w.SetIncarnation(cluster.Incarnation(i))
		w.Set(cluster.Epoch(i), cluster.Instant(i*3), Active)
	}
	close(stop)
	wg.Wait()
}

func TestAWriterStoppedHalfWayBlocksNobody(t *testing.T) {
	w, r := pair(t)
	w.Set(3, 100, Active)
	s := &w.p.slots[(w.p.counter+1)&1] // what Set does before it moves the counter
	s.epoch, s.deadline, s.state = 4, 200, uint32(Fenced)
	if got := r.Load(); got.Epoch != 3 || got.Deadline != 100 || !r.MayAct(99) {
		t.Errorf("the half-written slot was read: %+v", got)
	}
}

func TestAnotherProcessReadsThePage(t *testing.T) {
	w, _ := pair(t)
	w.Set(5, 42, Active)
	cmd := exec.Command("od", "-A", "n", "-t", "d8", "-j", "136", "-N", "8", "/dev/fd/3") // slot 1, deadline
	cmd.ExtraFiles = []*os.File{w.File()}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "42" {
		t.Errorf("od: %q, %v", out, err)
	}
}

func TestMayActIsQuickAndAllocatesNothing(t *testing.T) {
	w, r := pair(t)
	w.Set(1, 1<<62, Active)
	if n := testing.AllocsPerRun(100, func() { r.MayAct(1); w.Set(1, 1<<62, Active) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	best := time.Hour
	for range 20 { // the best of several, because the machine may be busy
		const n = 2000
		began := time.Now()
		for range n {
			r.MayAct(1)
		}
		best = min(best, time.Since(began)/n)
	}
	if best > 250*time.Nanosecond {
		t.Errorf("MayAct takes %v, 250 ns allowed", best)
	}
	t.Logf("MayAct: at most %v", best+1)
}

// With the reading of the clock, as each operation does it.
func BenchmarkMayAct(b *testing.B) {
	w, err := Create("bench")
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	r, err := OpenFD(int(w.File().Fd()))
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	w.Set(1, 1<<62, Active)
	for b.Loop() {
		if !r.MayAct(boottime()) {
			b.Fatal("may not act")
		}
	}
}
