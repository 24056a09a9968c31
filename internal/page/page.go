// Package page is the one way by which the right to act reaches other processes of a host: a page of memory per service
// with its epoch, the end of its lease and its state. The daemon writes it; volume server, guard and applications map it
// read-only and look at it before each operation (gate G1 of the protocol, docs/protocol.md section 5).
//
// It never asks, waits or calls anybody: a reader whose writer was killed, stopped or is slow reads the last deadline
// and finds by its own clock that it has passed.
//
// # Why it is correct
//
// The page is a memfd sealed with F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_FUTURE_WRITE and F_SEAL_SEAL after the one writable
// mapping was made: whoever receives the descriptor can neither write to it, nor map it writable, nor truncate it under
// a reader (which would end in SIGBUS). There is one Writer, and its methods must be called by one goroutine at a time.
//
// The facts lie in two slots. A counter says which one is valid: slot counter&1. A Set fills the other slot and then
// adds one to the counter, all with atomic stores in this order. A reader loads the counter, reads the slot, and loads
// the counter again; the slot that it read is written again only after the counter has moved, so an unchanged counter
// means an untorn snapshot. In contrast to a plain sequence lock, a writer that dies or is stopped half-way leaves the
// valid slot untouched: readers never wait for it. A reader repeats only if the writer finished a Set meanwhile, at most
// 100 times; then MayAct says no.
//
// # Layout (native byte order, all fields naturally aligned; stable, only added to)
//
//	offset size
//	     0    8  magic "HANODEP1"
//	     8    4  layout version, 1
//	    12    4  size of the page in bytes, 4096
//	    16    8  counter: slot (counter & 1) is valid; 0 = nothing published yet
//	    24    8  boot clock check: CLOCK_BOOTTIME in ns when the page was made
//	    64   64  slot 0
//	   128   64  slot 1
//	   256   64  name of the service, padded with zero bytes
//
//	a slot:
//	     0    8  epoch (u64)
//	     8    8  deadline (i64): CLOCK_BOOTTIME in ns until which the active may act; 0 = it may not
//	    16    8  incarnation of the daemon (u64)
//	    24    8  TTL of the lease in ns (i64)
//	    32    4  state (u32): 0 idle, 1 standby, 2 active, 3 draining, 4 fenced
//	    36    4  zero
//
// A C program maps 4096 bytes of the descriptor in HANODE_PAGE_FD with PROT_READ and MAP_SHARED, reads counter, slot and
// counter with __atomic_load_n(.., __ATOMIC_SEQ_CST), repeats if the counter differs, and may act while state == 2 and
// clock_gettime(CLOCK_BOOTTIME) < deadline.
//
// Callers must read the clock for each operation and after, not before, whatever may have delayed them.
package page

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// Size is the length of a page in bytes.
const Size = 4096

const (
	magic   = "HANODEP1"
	version = 1
	nameMax = 64
)

// State is what the service is on this host.
type State uint32

const (
	Idle     State = 0 // nothing runs here
	Standby  State = 1 // may run, must not act
	Active   State = 2 // may act until the deadline
	Draining State = 3 // is being released: must not act any more; the guard kills at the last deadline that it saw
	Fenced   State = 4 // must not act any more in this epoch and is killed at once
)

func (s State) String() string {
	switch s {
	case Idle:
		return "idle"
	case Standby:
		return "standby"
	case Active:
		return "active"
	case Draining:
		return "draining"
	case Fenced:
		return "fenced"
	}
	return fmt.Sprintf("state(%d)", uint32(s))
}

// Snapshot is what a page says at one moment.
type Snapshot struct {
	Epoch       cluster.Epoch
	Deadline    cluster.Instant // 0: may not act
	Incarnation cluster.Incarnation
	TTL         time.Duration
	State       State
}

// MayAct says whether the active may act at now: state Active and now before the deadline.
func (s Snapshot) MayAct(now cluster.Instant) bool { return s.State == Active && now < s.Deadline }

// slot and layout are the documented bytes; their offsets are asserted by a test.
type slot struct {
	epoch    uint64
	deadline int64
	inc      uint64
	ttl      int64
	state    uint32
	_        [28]byte
}

type layout struct {
	magic   [8]byte
	version uint32
	size    uint32
	counter uint64
	made    int64
	_       [32]byte
	slots   [2]slot
	_       [64]byte
	name    [nameMax]byte
}

// Writer is the one writer of a page. Its methods must be called by one goroutine at a time.
type Writer struct {
	file *os.File
	mem  []byte
	p    *layout
	next Snapshot
}

// Create makes the page of a service in state Idle. The name is for people who look at the page or at
// /proc/PID/fd; at most 64 bytes of it are kept. The kernel must know memfd_create with F_SEAL_FUTURE_WRITE (5.1 and
// newer); older ones are refused, because without this seal every reader could write.
func Create(name string) (*Writer, error) {
	fd, err := unix.MemfdCreate("hanode-"+clip(name), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make the deadline page of %s: memfd_create: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), "page-"+name)
	w, err := create(f, name)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("make the deadline page of %s: %w", name, err)
	}
	return w, nil
}

func create(f *os.File, name string) (*Writer, error) {
	fd := int(f.Fd())
	if err := unix.Ftruncate(fd, Size); err != nil {
		return nil, fmt.Errorf("ftruncate: %w", err)
	}
	mem, err := unix.Mmap(fd, 0, Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		unix.Munmap(mem)
		return nil, fmt.Errorf("seal it (needs Linux 5.1 or newer): %w", err)
	}
	p := (*layout)(unsafe.Pointer(&mem[0]))
	copy(p.magic[:], magic)
	copy(p.name[:], name)
	p.version, p.size = version, Size
	p.made = int64(boottime())
	return &Writer{file: f, mem: mem, p: p}, nil
}

// File is the descriptor to hand to readers. It belongs to the Writer.
func (w *Writer) File() *os.File { return w.file }

// SetIncarnation and SetTTL say what the next Set publishes besides. The guard reckons the moment of freezing from the
// TTL: set it before the first deadline.
func (w *Writer) SetIncarnation(inc cluster.Incarnation) { w.next.Incarnation = inc }

// SetTTL see SetIncarnation.
func (w *Writer) SetTTL(ttl time.Duration) { w.next.TTL = ttl }

// Set publishes epoch, deadline and state together. It neither blocks nor allocates. A deadline of 0 ends the right to
// act at once, whatever the state.
func (w *Writer) Set(epoch cluster.Epoch, deadline cluster.Instant, state State) {
	w.next.Epoch, w.next.Deadline, w.next.State = epoch, deadline, state
	n := atomic.LoadUint64(&w.p.counter) + 1
	s := &w.p.slots[n&1]
	atomic.StoreUint64(&s.epoch, uint64(epoch))
	atomic.StoreInt64(&s.deadline, int64(deadline))
	atomic.StoreUint64(&s.inc, uint64(w.next.Incarnation))
	atomic.StoreInt64(&s.ttl, int64(w.next.TTL))
	atomic.StoreUint32(&s.state, uint32(state))
	atomic.StoreUint64(&w.p.counter, n)
}

// Last is what the last Set published.
func (w *Writer) Last() Snapshot { return w.next }

// Close takes back the right to act, then unmaps the page and closes the descriptor. Readers keep their mappings.
func (w *Writer) Close() error {
	if w.p == nil {
		return nil
	}
	w.Set(w.next.Epoch, 0, Idle)
	w.p = nil
	return errors.Join(unix.Munmap(w.mem), w.file.Close())
}

// Reader is a read-only mapping of a page. It may be used by many goroutines at once.
type Reader struct {
	mem []byte
	p   *layout
}

// OpenFD maps the page behind fd read-only. The caller keeps fd and may close it afterwards. A descriptor that is not a
// sealed page of this layout is refused.
func OpenFD(fd int) (*Reader, error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is not a deadline page: %w", fd, err)
	}
	if want := unix.F_SEAL_SHRINK | unix.F_SEAL_FUTURE_WRITE; seals&want != want {
		return nil, fmt.Errorf("descriptor %d is not a deadline page: its seals are %#x, at least %#x are needed", fd, seals, want)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("descriptor %d: fstat: %w", fd, err)
	}
	if st.Size < Size {
		return nil, fmt.Errorf("descriptor %d is not a deadline page: %d bytes, want %d", fd, st.Size, Size)
	}
	mem, err := unix.Mmap(fd, 0, Size, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map the deadline page behind descriptor %d: %w", fd, err)
	}
	p := (*layout)(unsafe.Pointer(&mem[0]))
	if string(p.magic[:]) != magic || p.version != version {
		unix.Munmap(mem)
		return nil, fmt.Errorf("descriptor %d is not a deadline page of layout %d: use the same version of hanode on both sides", fd, version)
	}
	return &Reader{mem: mem, p: p}, nil
}

// tries bounds the repetitions of a reader that the writer overtakes again and again.
const tries = 100

// Load returns what the page says. If the writer overtook the reader too often it returns a zero Snapshot, which may not
// act.
func (r *Reader) Load() Snapshot {
	for range tries {
		n := atomic.LoadUint64(&r.p.counter)
		s := &r.p.slots[n&1]
		snap := Snapshot{
			Epoch:       cluster.Epoch(atomic.LoadUint64(&s.epoch)),
			Deadline:    cluster.Instant(atomic.LoadInt64(&s.deadline)),
			Incarnation: cluster.Incarnation(atomic.LoadUint64(&s.inc)),
			TTL:         time.Duration(atomic.LoadInt64(&s.ttl)),
			State:       State(atomic.LoadUint32(&s.state)),
		}
		if atomic.LoadUint64(&r.p.counter) == n {
			return snap
		}
	}
	return Snapshot{}
}

// MayAct says whether the active may act at now, which must be CLOCK_BOOTTIME read just before.
func (r *Reader) MayAct(now cluster.Instant) bool {
	for range tries {
		n := atomic.LoadUint64(&r.p.counter)
		s := &r.p.slots[n&1]
		ok := State(atomic.LoadUint32(&s.state)) == Active && int64(now) < atomic.LoadInt64(&s.deadline)
		if atomic.LoadUint64(&r.p.counter) == n {
			return ok
		}
	}
	return false
}

// Name is the service's name as given to Create.
func (r *Reader) Name() string {
	b := r.p.name[:]
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// Close unmaps the page. No other method may be called during or after it.
func (r *Reader) Close() error {
	if r.p == nil {
		return nil
	}
	r.p = nil
	return unix.Munmap(r.mem)
}

func clip(s string) string {
	if len(s) > nameMax {
		return s[:nameMax]
	}
	return s
}

func boottime() cluster.Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock_gettime(CLOCK_BOOTTIME): " + err.Error()) // cannot happen since Linux 2.6.39
	}
	return cluster.Instant(ts.Nano())
}
