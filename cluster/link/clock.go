package link

import (
	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// boottime reads CLOCK_BOOTTIME (clock_gettime(2)), which goes on in suspend and which no operator can set.
func boottime() cluster.Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("CLOCK_BOOTTIME: " + err.Error()) // Linux 2.6.39 and later have it
	}
	return cluster.Instant(ts.Nano())
}
