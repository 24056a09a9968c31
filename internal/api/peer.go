package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peer is who is at the other end of a connection, and what it may do. It is found once per connection.
type peer struct {
	who    string // recorded with each order
	member string // the member that passes requests on; "" on the Unix socket
	role   role   // on the Unix socket
	denied *Error // not nil: nothing may be asked
}

type peerKey struct{}

func peerOf(ctx context.Context) peer {
	p, ok := ctx.Value(peerKey{}).(peer)
	if !ok {
		return peer{denied: &Error{Code: CodeDenied, What: "request refused", Why: "nobody said who is at the other end"}}
	}
	return p
}

// unixPeer asks the kernel who is at the other end of a Unix socket: the credentials of the time of its connect(2)
// (SO_PEERCRED and, for the supplementary groups, SO_PEERGROUPS, Linux 4.13; see unix(7)). Only root and the members of
// group may ask anything.
func unixPeer(c net.Conn, group string) peer {
	cred, groups, err := peerCredentials(c)
	if err != nil {
		return peer{denied: &Error{Code: CodeDenied, What: "request refused",
			Why: "the kernel does not say who is at the other end: " + err.Error()}}
	}
	name := userName(cred.Uid)
	if cred.Uid != 0 && !inGroup(cred, groups, group) {
		return peer{who: name, denied: notOperator(name, group)}
	}
	return peer{who: withLogin(name, cred), role: roleOf(cred.Uid, func(g string) bool { return inGroup(cred, groups, g) })}
}

func notOperator(name, group string) *Error {
	return Denied(fmt.Sprintf("%s is neither root nor in the group %s", name, group),
		fmt.Sprintf("usermod -aG %s %s, then log in again; or use sudo", group, name))
}

// Denied is the answer to somebody who may not operate the cluster.
func Denied(why, do string) *Error {
	return &Error{Code: CodeDenied, What: "permission denied", Why: why, Do: do}
}

func peerCredentials(c net.Conn) (*unix.Ucred, []uint32, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("%T is not a Unix socket", c)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var cred *unix.Ucred
	var groups []uint32
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		groups = peerGroups(int(fd))
	}); err != nil {
		return nil, nil, err
	}
	return cred, groups, credErr
}

// peerGroups returns the supplementary groups, or nil where the kernel cannot tell (before 4.13): the group must then
// be the peer's own, or one that the password database gives to it.
func peerGroups(fd int) []uint32 {
	const most = 65536 // NGROUPS_MAX, setgroups(2)
	for n := 64; n <= most; n = n * 2 {
		buf := make([]uint32, n)
		size := uint32(4 * n)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return buf[:size/4]
		case !errors.Is(errno, unix.ERANGE):
			return nil
		}
	}
	return nil
}

func inGroup(cred *unix.Ucred, groups []uint32, name string) bool {
	g, err := user.LookupGroup(name)
	if err != nil {
		return false
	}
	gid, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		return false
	}
	if uint32(gid) == cred.Gid || slices.Contains(groups, uint32(gid)) {
		return true
	}
	if groups != nil {
		return false
	}
	u, err := user.LookupId(strconv.Itoa(int(cred.Uid)))
	if err != nil {
		return false
	}
	ids, err := u.GroupIds()
	return err == nil && slices.Contains(ids, g.Gid)
}

func userName(uid uint32) string {
	if u, err := user.LookupId(strconv.Itoa(int(uid))); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", uid)
}

// withLogin adds who logged in when that is somebody else than who asks: "root (alice)" after sudo. It is a help for
// whoever reads the log, not a proof: the process may be gone and its number used again.
func withLogin(name string, cred *unix.Ucred) string {
	const unset = 1<<32 - 1
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/loginuid", cred.Pid))
	if err != nil {
		return name
	}
	uid, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil || uid == unset || uint32(uid) == cred.Uid {
		return name
	}
	return fmt.Sprintf("%s (%s)", name, userName(uint32(uid)))
}
