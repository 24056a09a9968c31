package tree

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

// What the files of a volume carry beside what their users gave them; hidden from users.
const (
	ownPrefix  = "trusted.hanode."
	idXattr    = "trusted.hanode.id"    // the file id, 8 bytes, little endian: set last, so that what has it is complete
	placeXattr = "trusted.hanode.place" // of a directory in limbo: where it belongs (parent, name)
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// xattrArgs is struct xattr_args of linux/xattr.h.
type xattrArgs struct {
	value uint64
	size  uint32
	flags uint32
}

// haveXattrAt says whether the kernel has setxattrat(2) and getxattrat(2) (6.13); else the same goes by /proc/self/fd.
var haveXattrAt = sync.OnceValue(func() bool {
	_, _, e := unix.Syscall6(unix.SYS_GETXATTRAT, ^uintptr(0), 0, 0, 0, 0, 0)
	return e != unix.ENOSYS && e != unix.EPERM
})

// cname is a path of one component, or an attribute's name, as the kernel wants it, without allocation.
type cname [256]byte

func (c *cname) set(s string) bool {
	if len(s) >= len(c) {
		return false
	}
	c[copy(c[:], s)] = 0
	return true
}

// getxattrAt reads an attribute of the entry name of dirfd itself, never of what a link points to.
func getxattrAt(dirfd int, name, attr string, buf []byte) (int, error) {
	if !haveXattrAt() {
		return unix.Lgetxattr(procPath(dirfd)+"/"+name, attr, buf)
	}
	var n, a cname
	if !n.set(name) || !a.set(attr) {
		return 0, unix.ENAMETOOLONG
	}
	args := xattrArgs{size: uint32(len(buf))}
	if len(buf) > 0 {
		args.value = uint64(uintptr(unsafe.Pointer(&buf[0])))
	}
	r, _, e := unix.Syscall6(unix.SYS_GETXATTRAT, uintptr(dirfd), uintptr(unsafe.Pointer(&n)), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(&a)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	runtime.KeepAlive(buf)
	if e != 0 {
		return 0, e
	}
	return int(r), nil
}

// setxattrAt sets an attribute of the entry name of dirfd itself.
func setxattrAt(dirfd int, name, attr string, value []byte) error {
	return unix.Lsetxattr(procPath(dirfd)+"/"+name, attr, value, 0)
}

func removexattrAt(dirfd int, name, attr string) error {
	return unix.Lremovexattr(procPath(dirfd)+"/"+name, attr)
}

// procPath names what fd is open on, also when it is an O_PATH descriptor of a symbolic link: the kernel goes to that very inode.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// noID is the id of an entry that has none: a create that a crash cut short, or a file that somebody laid there by hand.
const noID = ^replication.FileID(0)

// idAt is the id of the entry name of dirfd; 0: there is none; noID: it has none.
func idAt(dirfd int, name string) (replication.FileID, error) {
	var b [8]byte
	n, err := getxattrAt(dirfd, name, idXattr, b[:])
	switch {
	case err == unix.ENOENT:
		return 0, nil
	case err == unix.ENODATA || err == unix.ERANGE || err == nil && n != len(b):
		return noID, nil
	case err != nil:
		return 0, err
	}
	return idOf(b), nil
}

// idOfFd is the id of an open file, which may be an O_PATH descriptor.
func idOfFd(fd int) (replication.FileID, error) {
	var b [8]byte
	n, err := unix.Getxattr(procPath(fd), idXattr, b[:])
	if err == unix.ENODATA || err == nil && n != len(b) {
		return noID, nil
	}
	if err != nil {
		return 0, err
	}
	return idOf(b), nil
}

func idOf(b [8]byte) replication.FileID {
	v := uint64(0)
	for i := range b {
		v |= uint64(b[i]) << (8 * i)
	}
	return replication.FileID(v)
}

func idBytes(id replication.FileID) []byte {
	b := make([]byte, 8)
	for i := range b {
		b[i] = byte(id >> (8 * i))
	}
	return b
}

// handle is a file handle of name_to_handle_at(2), with room for every file system that keeps extended attributes on a disk of its own: ext4 and tmpfs use
// 8 and 12 bytes, xfs 8 or 12, btrfs 20. A longer one (overlayfs) is refused at Open.
type handle struct {
	typ, n uint8
	b      [22]byte
}

var errLongHandle = errors.New("its file handles are longer than 22 bytes")

type rawHandle struct {
	n   uint32
	typ int32
	b   [128]byte
}

// handleAt is the handle of the entry name of dirfd, or with the name "" of dirfd itself; mnt is the id of the mount it lies in.
func handleAt(dirfd int, name string) (h handle, mnt int32, err error) {
	var n cname
	if !n.set(name) {
		return h, 0, unix.ENAMETOOLONG
	}
	raw := rawHandle{n: 128}
	_, _, e := unix.Syscall6(unix.SYS_NAME_TO_HANDLE_AT, uintptr(dirfd), uintptr(unsafe.Pointer(&n)), uintptr(unsafe.Pointer(&raw)),
		uintptr(unsafe.Pointer(&mnt)), unix.AT_EMPTY_PATH, 0)
	if e != 0 {
		return h, 0, e
	}
	if raw.n > uint32(len(h.b)) || raw.typ < 0 || raw.typ > 255 {
		return h, mnt, errLongHandle
	}
	h.typ, h.n = uint8(raw.typ), uint8(raw.n)
	copy(h.b[:], raw.b[:raw.n])
	return h, mnt, nil
}

// open opens what a handle stands for, on the file system that mountfd lies in.
func (h *handle) open(mountfd, flags int) (int, error) {
	raw := rawHandle{n: uint32(h.n), typ: int32(h.typ)}
	copy(raw.b[:], h.b[:h.n])
	for {
		fd, _, e := unix.Syscall(unix.SYS_OPEN_BY_HANDLE_AT, uintptr(mountfd), uintptr(unsafe.Pointer(&raw)), uintptr(flags|unix.O_CLOEXEC|unix.O_NOFOLLOW))
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return -1, e
		}
		return int(fd), nil
	}
}

// fsetxattr and its like work on every kind of descriptor.
func setxattrFd(fd int, attr string, value []byte) error {
	return unix.Setxattr(procPath(fd), attr, value, 0)
}

func fstat(fd int) (st unix.Stat_t, err error) {
	err = unix.Fstat(fd, &st)
	return st, err
}

func fstatat(dirfd int, name string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	return st, err
}

// setTimes sets the times of what fd is open on; omit leaves one as it is.
func setTimes(fd int, atime, mtime int64) error {
	ts := []unix.Timespec{timespec(atime), timespec(mtime)}
	return unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH)
}

// omit is a time that is not set or not known.
const omit = -1 << 63

func timespec(ns int64) unix.Timespec {
	if ns == omit {
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	sec, rest := ns/1e9, ns%1e9
	if rest < 0 {
		sec, rest = sec-1, rest+1e9
	}
	return unix.Timespec{Sec: sec, Nsec: rest}
}

func nanos(t unix.Timespec) int64 { return t.Sec*1e9 + t.Nsec }

func fail(what string, id replication.FileID, err error) error {
	return fmt.Errorf("%s of file id %x: %w", what, uint64(id), err)
}
