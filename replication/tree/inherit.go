package tree

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

// Born is what a new inode gets besides its place, for the fields Mode, GID and Data of a Create.
type Born struct {
	Mode, GID uint32
	Data      []byte // attributes (replication.AppendXattr)
}

// Inherit is what the kernel would give to a new inode in the directory parent: the active calls it and records the outcome, and Apply has
// nothing to decide. mode has the type; umask is the caller's (FUSE with DONT_MASK), which a default access list overrides; uid and gid are the caller's.
// A setgid program keeps that bit only if the caller is root or gid is the directory's group: supplementary groups are not known here, and without the
// bit nobody gets a right.
func (t *Tree) Inherit(parent FileID, mode, umask, uid, gid uint32) (Born, error) {
	p, err := t.acquireDir(parent)
	if err != nil {
		return Born{}, err
	}
	defer t.release(p)
	fd, err := t.fd(p, pathFd)
	if err != nil {
		return Born{}, err
	}
	st, err := fstat(fd)
	if err != nil {
		return Born{}, fail("stat", parent, err)
	}
	b := Born{Mode: mode, GID: gid}
	typ := mode & unix.S_IFMT
	if st.Mode&unix.S_ISGID != 0 {
		b.GID = st.Gid
		if typ == unix.S_IFDIR {
			b.Mode |= unix.S_ISGID
		} else if b.Mode&(unix.S_ISGID|unix.S_IXGRP) == unix.S_ISGID|unix.S_IXGRP && uid != 0 && gid != st.Gid {
			b.Mode &^= unix.S_ISGID
		}
	}
	if typ == unix.S_IFLNK {
		b.Mode = unix.S_IFLNK | 0o777
		return b, nil
	}
	inherits, err := t.inherits(p, fd)
	if err != nil {
		return Born{}, err
	}
	if !inherits {
		b.Mode &^= umask & 0o777
		return b, nil
	}
	acl := make([]byte, 1<<16)
	n, err := t.getxattr(p, aclDefault, acl)
	if errors.Is(err, unix.ENODATA) {
		b.Mode &^= umask & 0o777
		return b, nil
	}
	if err != nil {
		return Born{}, fail("read the default access list", parent, err)
	}
	acl = acl[:n:n]
	access, perm, extended := maskACL(acl, b.Mode)
	b.Mode = b.Mode&^0o777 | perm
	if extended {
		b.Data = replication.AppendXattr(b.Data, aclAccess, access)
	}
	if typ == unix.S_IFDIR {
		b.Data = replication.AppendXattr(b.Data, aclDefault, acl)
	}
	return b, nil
}

// Tags of an access list's entries (linux/posix_acl.h); an entry is tag, permissions and id, after a version of 4 bytes.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// maskACL makes the access list of a new inode from its directory's default list and the mode it was made with, as posix_acl_create of
// the kernel: extended says whether the list says more than the mode.
func maskACL(def []byte, mode uint32) (access []byte, perm uint32, extended bool) {
	access = append(access, def...)
	le := binary.LittleEndian
	perm = mode & 0o777
	group := -1
	and := func(i int, shift uint) {
		p := uint32(le.Uint16(access[i+2:])) & (perm >> shift) & 7
		le.PutUint16(access[i+2:], uint16(p))
		perm = perm&^(7<<shift) | p<<shift
	}
	for i := 4; i+8 <= len(access); i += 8 {
		switch le.Uint16(access[i:]) {
		case aclUserObj:
			and(i, 6)
		case aclOther:
			and(i, 0)
		case aclUser, aclGroup:
			extended = true
		case aclGroupObj:
			if group < 0 {
				group = i
			}
		case aclMask:
			extended = true
			group = i // the mask, not the owning group, is what the group bits show
		}
	}
	if group >= 0 {
		and(group, 3)
	}
	return access, perm, extended
}
