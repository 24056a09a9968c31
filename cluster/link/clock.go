package link

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// boottime reads CLOCK_BOOTTIME (clock_gettime(2)), which goes on in suspend and which no operator can set.
func boottime() cluster.Instant {
	var ts unix.Timespec
	// Without telling the Go scheduler, see rawio.go: it never blocks.
	if _, _, e := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ts)), 0); e != 0 {
		panic("CLOCK_BOOTTIME: " + e.Error()) // Linux 2.6.39 and later have it
	}
	return cluster.Instant(ts.Nano())
}
