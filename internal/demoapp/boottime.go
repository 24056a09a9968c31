package demoapp

import "golang.org/x/sys/unix"

// bootNow is CLOCK_BOOTTIME in ns.
func bootNow() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return t.Nano()
}
