// Package rt makes a process of ours punctual, says how punctual it is, and takes all of that back for the processes
// that it starts.
//
// The daemon and the witness live from being on time: a renewal that is 100 ms late ends a lease. Measured on a busy
// machine, a plain process was up to 382 ms late, one with nice -20 up to 509 ms, one under SCHED_RR less than 1 ms. So
// Enter puts every thread of the process under SCHED_RR, locks its memory, collects garbage less often and tells the
// OOM killer to look elsewhere. Each of these may be refused by the machine; the Report says which and why, and the group
// chooses a slower profile then. Enter never fails as a whole.
//
// It is never for bulk work, and it never touches the threads of another process.
//
// Why per thread: Linux schedules threads. New threads inherit from the one that makes them, so Enter sets each existing
// thread and repeats until it finds none left; SCHED_RESET_ON_FORK is not used, because it would take the class away
// from the threads that the Go runtime makes later. What inherits it as well are child processes: every child must start
// through Reset (see failover/supervise/launch), else a database would run real-time.
package rt

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// Priority is the SCHED_RR priority of the daemon and the witness. The guard runs one above. Kernel threads such as the
// watchdog's are far above it.
const Priority = 10

// Now reads CLOCK_BOOTTIME, the only clock of hanode.
func Now() cluster.Instant {
	var ts unix.Timespec
	// It never blocks, so the Go scheduler need not be told, which would wake up its monitor thread.
	if _, _, e := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ts)), 0); e != 0 {
		panic("clock_gettime(CLOCK_BOOTTIME): " + e.Error()) // cannot happen since Linux 2.6.39
	}
	return cluster.Instant(ts.Nano())
}

// Report says what Enter got. An error names what was refused and what to do about it.
type Report struct {
	Sched  error // nil: every thread runs under SCHED_RR
	Memory error // nil: memory is locked
	OOM    error // nil: the OOM killer spares the process
}

// Realtime says whether profiles faster than "normal" may be used as far as scheduling goes.
func (r Report) Realtime() bool { return r.Sched == nil }

// Err joins what was refused; nil if nothing was.
func (r Report) Err() error { return errors.Join(r.Sched, r.Memory, r.OOM) }

// Options choose what Enter asks for.
type Options struct {
	Priority  int   // SCHED_RR priority, 1 to 99
	GCPercent int   // as GOGC; -1: off; 0: leave as it is
	GCLimit   int64 // soft memory limit in bytes at which garbage is collected all the same; 0: leave as it is
	OOMScore  int   // -1000 to 1000
}

// Daemon are the options of daemon and witness: garbage collection four times rarer than usual.
func Daemon() Options { return Options{Priority: Priority, GCPercent: 400, OOMScore: -1000} }

// Guard are the options of the guard: it allocates nothing after its start, so the collector runs only if it did all the
// same and reached 64 MiB.
func Guard() Options {
	return Options{Priority: Priority + 1, GCPercent: -1, GCLimit: 64 << 20, OOMScore: -1000}
}

// Enter makes the calling process punctual with the daemon's options at the given priority.
func Enter(prio int) Report {
	o := Daemon()
	o.Priority = prio
	return EnterWith(o)
}

// EnterWith is Enter with other options.
func EnterWith(o Options) Report {
	if o.GCPercent != 0 {
		debug.SetGCPercent(o.GCPercent)
	}
	if o.GCLimit != 0 {
		debug.SetMemoryLimit(o.GCLimit)
	}
	return Report{Sched: schedAll(o.Priority), Memory: lockMemory(), OOM: setOOM(o.OOMScore)}
}

// schedAll sets every thread of the process, until a pass over them finds nothing left to set.
func schedAll(prio int) error {
	for range 20 {
		tids, err := threads()
		if err != nil {
			return err
		}
		changed := 0
		for _, tid := range tids {
			policy, p, err := Policy(tid)
			if errors.Is(err, unix.ESRCH) || err == nil && policy == unix.SCHED_RR && p == prio {
				continue
			}
			if err := setScheduler(tid, unix.SCHED_RR, prio); err != nil && !errors.Is(err, unix.ESRCH) {
				return explainSched(prio, err)
			}
			changed++
		}
		if changed == 0 {
			return nil
		}
	}
	return errors.New("real-time scheduling: the process makes threads faster than they can be set")
}

func explainSched(prio int, err error) error {
	if !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("real-time scheduling (SCHED_RR %d): %w", prio, err)
	}
	if hasCap(unix.CAP_SYS_NICE) {
		return fmt.Errorf("real-time scheduling (SCHED_RR %d) refused although the process has CAP_SYS_NICE: its cpu cgroup has no real-time budget (CONFIG_RT_GROUP_SCHED); "+
			"move it to the root of the cpu controller or give its group cpu.rt_runtime_us: %w", prio, err)
	}
	return fmt.Errorf("real-time scheduling (SCHED_RR %d) refused: run as root, or set LimitRTPRIO=%d or AmbientCapabilities=CAP_SYS_NICE in the unit: %w", prio, prio, err)
}

// lockMemory keeps what is mapped and touched in memory. MCL_ONFAULT spares the gigabytes that the Go runtime reserves
// and never touches; the program's own text is read in first, so that no page of it waits for a disk that hangs.
func lockMemory() error {
	if !hasCap(unix.CAP_IPC_LOCK) {
		var lim unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim); err != nil || lim.Cur != unix.RLIM_INFINITY {
			// With MCL_FUTURE and a finite limit a later mmap of the runtime would fail and end the process.
			return errors.New("memory lock refused: run as root, or set LimitMEMLOCK=infinity in the unit")
		}
	}
	const onFault = 4 // MCL_ONFAULT, Linux 4.4
	err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | onFault)
	if err != nil {
		return fmt.Errorf("memory lock: mlockall: %w", err)
	}
	populateText()
	return nil
}

// populateText reads in the file-backed mappings of the process. Best effort: before Linux 5.14 there is no
// MADV_POPULATE_READ and pages come in as they are used.
func populateText() {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if len(f) < 6 || !strings.HasPrefix(f[1], "r") || !strings.HasPrefix(f[5], "/") || strings.HasPrefix(f[5], "/memfd:") {
			continue
		}
		lo, hi, ok := strings.Cut(f[0], "-")
		from, err1 := strconv.ParseUint(lo, 16, 64)
		to, err2 := strconv.ParseUint(hi, 16, 64)
		if !ok || err1 != nil || err2 != nil || to <= from {
			continue
		}
		unix.RawSyscall(unix.SYS_MADVISE, uintptr(from), uintptr(to-from), unix.MADV_POPULATE_READ)
	}
}

// Reset takes back, for the calling thread and process, what a child inherited from a real-time daemon: SCHED_OTHER,
// nice 0, OOM score 0. Memory locks do not outlive an exec (mlock(2)). The caller must have locked its goroutine to its
// thread and exec from there: the new program gets the attributes of the thread that called exec.
func Reset() error {
	var errs []error
	if policy, _, err := Policy(0); err != nil || policy != unix.SCHED_NORMAL {
		if err := setScheduler(0, unix.SCHED_NORMAL, 0); err != nil {
			errs = append(errs, fmt.Errorf("back to SCHED_OTHER: %w", err))
		}
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 0); err != nil && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
		errs = append(errs, fmt.Errorf("back to nice 0: %w", err))
	}
	if err := setOOM(0); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Policy returns the scheduling policy and priority of a thread (0: the calling one).
func Policy(tid int) (policy, prio int, err error) {
	r, _, e := unix.RawSyscall(unix.SYS_SCHED_GETSCHEDULER, uintptr(tid), 0, 0)
	if e != 0 {
		return 0, 0, e
	}
	var p int32
	if _, _, e := unix.RawSyscall(unix.SYS_SCHED_GETPARAM, uintptr(tid), uintptr(unsafe.Pointer(&p)), 0); e != 0 {
		return 0, 0, e
	}
	return int(r), int(p), nil
}

func setScheduler(tid, policy, prio int) error {
	p := int32(prio)
	if _, _, e := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, uintptr(tid), uintptr(policy), uintptr(unsafe.Pointer(&p))); e != 0 {
		return e
	}
	return nil
}

func setOOM(score int) error {
	const file = "/proc/self/oom_score_adj"
	want := strconv.Itoa(score)
	if b, err := os.ReadFile(file); err == nil && string(bytes.TrimSpace(b)) == want {
		return nil
	}
	if err := os.WriteFile(file, []byte(want), 0); err != nil {
		if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) {
			return fmt.Errorf("OOM score %d refused: needs CAP_SYS_RESOURCE, or OOMScoreAdjust=%d in the unit: %w", score, score, err)
		}
		return fmt.Errorf("set the OOM score to %d: %w", score, err)
	}
	return nil
}

func threads() ([]int, error) {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return nil, fmt.Errorf("list the threads of the process: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list the threads of the process: %w", err)
	}
	tids := make([]int, 0, len(names))
	for _, n := range names {
		if tid, err := strconv.Atoi(n); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids, nil
}

// hasCap says whether a capability is in the effective set.
func hasCap(c int) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}
