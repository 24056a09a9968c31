package world

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// RemoveAll removes a lab's directory with everything in it. Mount points of volumes lie in the hosts' srv/ and are immutable.
func RemoveAll(dir string) error {
	points, err := filepath.Glob(filepath.Join(dir, "*", "srv", "*"))
	if err != nil {
		return err
	}
	for _, p := range points {
		mutable(p)
	}
	return os.RemoveAll(dir)
}

// mutable takes the flag off; where it was not there nothing happens.
func mutable(path string) {
	f, err := os.Open(path)
	if err != nil {
		return // RemoveAll says what is wrong with it
	}
	defer f.Close()
	const immutable = 0x10 // FS_IMMUTABLE_FL, ioctl_iflags(2)
	if flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil && flags&immutable != 0 {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags&^immutable))
	}
}
