package tree

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// holder is a process that uses an inode.
type holder struct {
	pid  int
	name string
	how  string
}

// holders are the inodes of a device that processes other than this one use, by descriptor, mapping, working or root directory; loop devices and swap too.
// Paths are not compared: a process may see the files by another mount, or in another root.
func holders(dev uint64) (map[uint64]holder, error) {
	held := map[uint64]holder{}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for processes that use files: %w", err)
	}
	self := os.Getpid()
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == self {
			continue
		}
		dir := filepath.Join("/proc", p.Name())
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		add := func(path, how string) {
			var stx unix.Statx_t
			// Not synced with a server: a network file system that hangs must not hang this.
			if unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO, &stx) == nil && unix.Mkdev(stx.Dev_major, stx.Dev_minor) == dev {
				held[stx.Ino] = holder{pid, strings.TrimSpace(string(comm)), how}
			}
		}
		add(filepath.Join(dir, "cwd"), "working directory")
		add(filepath.Join(dir, "root"), "root directory")
		add(filepath.Join(dir, "exe"), "program")
		fds, _ := os.ReadDir(filepath.Join(dir, "fd"))
		for _, fd := range fds {
			path := filepath.Join(dir, "fd", fd.Name())
			if to, err := os.Readlink(path); err == nil && strings.HasPrefix(to, "/") {
				add(path, "descriptor "+fd.Name())
			}
		}
		mapped(dir, dev, func(ino uint64) { held[ino] = holder{pid, strings.TrimSpace(string(comm)), "mapping"} })
	}
	for _, path := range kernelHeld() {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && uint64(st.Dev) == dev {
			held[st.Ino] = holder{0, "kernel", "loop device or swap"}
		}
	}
	return held, nil
}

// mapped calls fn for each inode of the device that a process has mapped.
func mapped(dir string, dev uint64, fn func(ino uint64)) {
	f, err := os.Open(filepath.Join(dir, "maps"))
	if err != nil {
		return
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		w := strings.Fields(s.Text())
		if len(w) < 6 {
			continue
		}
		major, minor, _ := strings.Cut(w[3], ":")
		a, err1 := strconv.ParseUint(major, 16, 32)
		b, err2 := strconv.ParseUint(minor, 16, 32)
		ino, err3 := strconv.ParseUint(w[4], 10, 64)
		if errors.Join(err1, err2, err3) == nil && ino != 0 && unix.Mkdev(uint32(a), uint32(b)) == dev {
			fn(ino)
		}
	}
}

// kernelHeld are files that the kernel itself uses.
func kernelHeld() (paths []string) {
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, err := os.ReadFile(l); err == nil {
			paths = append(paths, strings.TrimSpace(string(b)))
		}
	}
	if b, err := os.ReadFile("/proc/swaps"); err == nil {
		for _, l := range strings.Split(string(b), "\n") {
			if strings.HasPrefix(l, "/") {
				paths = append(paths, strings.Fields(l)[0])
			}
		}
	}
	return paths
}

// mountsBelow are the mount points at or in a directory, as this process sees them.
func mountsBelow(dir string) (out []string) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for s := bufio.NewScanner(f); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) > 4 {
			if p := unescape.Replace(w[4]); within(p, dir) {
				out = append(out, p)
			}
		}
	}
	return out
}

func statx(dirfd int, name string, stx *unix.Statx_t) error {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return unix.Statx(dirfd, name, flags, unix.STATX_BASIC_STATS, stx)
}

// eachBelow calls fn for everything below an open directory, a directory before what is in it. It keeps a descriptor for each level.
func eachBelow(dirfd int, path string, fn func(fd int, name, path string, stx *unix.Statx_t) error) error {
	names, err := namesIn(dirfd)
	if err != nil {
		return fmt.Errorf("list %s: %w", path, err)
	}
	for _, name := range names {
		var stx unix.Statx_t
		p := path + "/" + name
		if err := statx(dirfd, name, &stx); err != nil {
			return fmt.Errorf("stat %s: %w", p, err)
		}
		if err := fn(dirfd, name, p, &stx); err != nil {
			return err
		}
		if uint32(stx.Mode)&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", p, err)
		}
		err = eachBelow(sub, p, fn)
		unix.Close(sub)
		if err != nil {
			return err
		}
	}
	return nil
}

// syncAll fsyncs files and directories.
func syncAll(paths ...string) error {
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return fmt.Errorf("fsync %s: %w", p, err)
		}
	}
	return nil
}

// mutable takes the immutable flag, which a mount point of ours has, from an empty directory.
func mutable(dir string) error {
	d, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	const immutable = 0x10
	flags, err := unix.IoctlGetInt(int(d.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutable == 0 {
		return nil // no such flag on this file system, or not set
	}
	if err := unix.IoctlSetPointerInt(int(d.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable); err != nil {
		return fmt.Errorf("take the immutable flag from %s: %w", dir, err)
	}
	return nil
}
