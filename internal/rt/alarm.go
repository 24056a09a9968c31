package rt

import (
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// Alarm is a clock that one goroutine waits for and others set, on CLOCK_BOOTTIME. The runtime's own timers wait in whole milliseconds and so wake
// the process up twice for each; this one rings once, and on time.
type Alarm struct {
	file *os.File
	raw  syscall.RawConn
}

// NewAlarm makes one that is not set.
func NewAlarm() (*Alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make a clock: timerfd_create: %w", err)
	}
	a := &Alarm{file: os.NewFile(uintptr(fd), "clock")}
	if a.raw, err = a.file.SyscallConn(); err != nil {
		a.file.Close()
		return nil, fmt.Errorf("make a clock: %w", err)
	}
	return a, nil
}

// Set makes it ring at an instant, or at once if that has passed, and not when it was set to before. It does not wait.
func (a *Alarm) Set(at cluster.Instant) {
	spec := itimerspec{value: unix.NsecToTimespec(max(int64(at), 1))}
	_ = a.raw.Control(func(fd uintptr) { // of a clock that is closed nobody waits
		unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, fd, unix.TFD_TIMER_ABSTIME, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
	})
}

type itimerspec struct{ interval, value unix.Timespec }

// Wait returns true when it has rung, and false when it is closed.
func (a *Alarm) Wait() bool {
	var n int
	var e unix.Errno
	err := a.raw.Read(func(fd uintptr) bool {
		var b [8]byte
		var r uintptr
		r, _, e = unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&b)), uintptr(len(b)))
		n = int(r)
		return e != unix.EAGAIN && e != unix.EINTR && (e != 0 || binary.NativeEndian.Uint64(b[:]) > 0)
	})
	return err == nil && e == 0 && n == 8
}

// Close ends Wait.
func (a *Alarm) Close() { a.file.Close() }
