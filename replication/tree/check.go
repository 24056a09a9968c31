package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// check refuses a backing directory that cannot be one. Each refusal says what to do.
func check(dir, mount string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("the backing directory %s can be used by root only: file ids are trusted attributes; run hanode as root", dir)
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("backing directory %s: %w: name an existing directory with `backing =`, or make the volume with `hanode volume adopt`", dir, err)
	}
	if !st.IsDir() {
		return fmt.Errorf("the backing directory %s is no directory but %v: name a directory with `backing =`", dir, st.Mode().Type())
	}
	var sys unix.Stat_t
	if err := unix.Stat(dir, &sys); err != nil {
		return fmt.Errorf("stat %s: %w", dir, err)
	}
	if sys.Uid != 0 || sys.Mode&0o077 != 0 {
		return fmt.Errorf("the backing directory %s has mode %04o and owner %d, so that others than root could write past the volume: chown root %s && chmod 700 %s",
			dir, sys.Mode&0o7777, sys.Uid, dir, dir)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("statfs of %s: %w", dir, err)
	}
	if fs.Flags&unix.ST_RDONLY != 0 {
		return fmt.Errorf("the file system of the backing directory %s is read-only: mount -o remount,rw, after looking into why it is (dmesg)", dir)
	}
	for name, what := range map[string]string{adoptingName: "an adoption", releasingName: "a release"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%s of %s (%s) was cut short: order it again, and it goes on", what, dir, b)
		}
	}
	if err := notInside(dir); err != nil {
		return err
	}
	return notRound(dir, mount)
}

// notInside refuses a backing directory inside the tree of another volume, or inside a mounted one.
func notInside(dir string) error {
	for up := filepath.Dir(dir); ; up = filepath.Dir(up) {
		var b [8]byte
		if _, err := unix.Lgetxattr(up, idXattr, b[:]); err == nil {
			return fmt.Errorf("the backing directory %s lies inside another volume (%s has a file id): name a directory outside every volume with `backing =`", dir, up)
		}
		if up == filepath.Dir(up) {
			return nil
		}
	}
}

// notRound refuses a mount point and a backing directory one of which contains the other.
func notRound(dir, mount string) error {
	if mount == "" {
		return nil
	}
	mount, err := filepath.Abs(mount)
	if err != nil {
		return err
	}
	in := func(a, b string) bool { return a == b || strings.HasPrefix(a, strings.TrimSuffix(b, "/")+"/") }
	if in(mount, dir) {
		return fmt.Errorf("the mount point %s lies inside the backing directory %s: choose one outside it", mount, dir)
	}
	if in(dir, mount) {
		return fmt.Errorf("the backing directory %s lies inside the mount point %s and would be hidden by it: name another with `backing =`", dir, mount)
	}
	return nil
}

// checkSpace refuses a disk that is nearly full, for a new volume.
func checkSpace(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("statfs of %s: %w", dir, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < fewBytes {
		return fmt.Errorf("the file system of %s has %d MiB free, and a volume needs %d MiB for its journal and names: make room, or name another directory with `backing =`",
			dir, free>>20, fewBytes>>20)
	}
	if fs.Files > 0 && fs.Ffree < fewInodes {
		return fmt.Errorf("the file system of %s has %d inodes free: make room, or name another directory with `backing =`", dir, fs.Ffree)
	}
	return nil
}

const (
	fewBytes  = 64 << 20
	fewInodes = 64
)

func xattrRefusal(dir string, err error) error {
	return fmt.Errorf("the file system of %s does not keep the attribute %s (%w), and without it no file has an identity: use ext4, xfs, btrfs, or tmpfs of kernel 6.6 or later", dir, idXattr, err)
}

func handleRefusal(dir string, err error) error {
	return fmt.Errorf("the file system of %s gives no usable file handles (%w): use ext4, xfs, btrfs or tmpfs, not a network, FUSE or overlay file system", dir, err)
}

// probe tries on a file in limbo what the volume needs of the file system, and finds out what it offers.
func (t *Tree) probe() error {
	const name = ".probe"
	_ = unix.Unlinkat(t.limbofd, name, 0)
	fd, err := unix.Openat(t.limbofd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		// A full volume can be read, and files can be removed from it.
		t.warnings = append(t.warnings, fmt.Sprintf("the file system of %s is full (%v): only reading and removing work until there is room", t.dir, err))
		return nil
	case err != nil:
		return fmt.Errorf("make a file in %s: %w", filepath.Join(t.dir, limboName), err)
	}
	defer unix.Close(fd)
	defer func() { _ = unix.Unlinkat(t.limbofd, name, 0) }()
	if err := setxattrAt(t.limbofd, name, idXattr, idBytes(noID)); err != nil && !errors.Is(err, unix.ENOSPC) {
		return xattrRefusal(t.dir, err)
	}
	h, _, err := handleAt(fd, "")
	if err != nil {
		return handleRefusal(t.dir, err)
	}
	again, err := h.open(t.rootfd, unix.O_PATH)
	if err != nil {
		return handleRefusal(t.dir, err)
	}
	defer unix.Close(again)
	if err := setTimes(again, omit, 1); err != nil {
		return fmt.Errorf("set a time by descriptor in %s: %w: the kernel must be 5.8 or later", t.dir, err)
	}
	if _, err := unix.Getxattr(procPath(again), idXattr, make([]byte, 8)); err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("read an attribute by /proc/self/fd: %w: /proc must be mounted", err)
	}
	t.room.probe(fd)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(t.rootfd, &fs); err == nil && int64(fs.Bavail)*fs.Bsize < t.opt.Low {
		t.warnings = append(t.warnings, fmt.Sprintf("the file system of %s has %d MiB free: writes are refused with ENOSPC when it is full", t.dir, int64(fs.Bavail)*fs.Bsize>>20))
	}
	return nil
}

// Ability is something that a file system may lack. A standby that lacks what the active has cannot follow it in that.
type Ability uint32

const (
	UserXattrs Ability = 1 << iota
	AccessLists
	SecurityXattrs
	PunchHole
	ZeroRange
	Allocate
)

// Abilities are what the file system of the tree offers.
func (t *Tree) Abilities() Ability { return t.room.able }

// probe finds out on an open file.
func (r *room) probe(fd int) {
	for a, name := range map[Ability]string{UserXattrs: "user.hanode", SecurityXattrs: "security.hanode"} {
		if unix.Fsetxattr(fd, name, []byte("x"), 0) == nil {
			r.able |= a
		}
	}
	if _, err := unix.Fgetxattr(fd, aclAccess, nil); err == unix.ENODATA {
		r.able |= AccessLists
	}
	for a, mode := range map[Ability]uint32{PunchHole: unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, ZeroRange: unix.FALLOC_FL_ZERO_RANGE, Allocate: 0} {
		if fallocate(fd, mode, 0, 4096) == nil {
			r.able |= a
		}
	}
	// The largest size of a file, by halving.
	low, high := int64(1<<30), int64(1<<63-1)
	for low < high {
		mid := low + (high-low+1)/2
		if unix.Ftruncate(fd, mid) == nil {
			low = mid
		} else {
			high = mid - 1
		}
	}
	r.largest = low
	_ = unix.Ftruncate(fd, 0)
}
