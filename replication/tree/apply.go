package tree

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

// Applied is what came of an operation.
type Applied struct {
	Missing bool   // unsettled only: an inode that the operation needs is not here; a resync has missed it, or a later operation removed it
	Lacks   FileID // which
	Stat    Stat   // of op.ID after Create, Link and SetAttr
}

// Apply carries an operation out. It is the one way in which anything of the volume changes, and it may be repeated as the package comment says.
//
// Errors are wrapped system errors (ENOSPC, EDQUOT, EIO …: this disk could not do what every copy must do), or ErrDiverged. After a system error the
// operation may be half done, and the tree is unsettled: it, and operations before it, may be applied again.
func (t *Tree) Apply(op *replication.Op) (Applied, error) {
	var a Applied
	var err error
	switch op.Kind {
	case replication.Write:
		err = t.write(op)
	case replication.Create:
		a.Stat, err = t.create(op)
	case replication.Link:
		a.Stat, err = t.link(op)
	case replication.Unlink, replication.Rmdir:
		err = t.unlink(op)
	case replication.Rename:
		if op.Flags&unix.RENAME_EXCHANGE != 0 {
			err = t.exchange(op)
		} else {
			err = t.rename(op)
		}
	case replication.SetAttr:
		a.Stat, err = t.setAttr(op)
	case replication.Fallocate:
		err = t.fallocate(op)
	case replication.SetXattr, replication.DelXattr:
		err = t.setXattr(op)
	case replication.Forget:
		err = t.forget(op)
	case replication.Mark:
	default:
		return a, fmt.Errorf("an operation of kind %v cannot be applied by this version", op.Kind)
	}
	var lack lacks
	settled := t.settled.Load()
	if errors.As(err, &lack) {
		if settled {
			return a, fmt.Errorf("%v: file id %x is not here: %w", op.Kind, uint64(lack), ErrDiverged)
		}
		a.Missing, a.Lacks, err = true, FileID(lack), nil
	}
	if err != nil && settled && !errors.Is(err, ErrDiverged) {
		t.Unsettle() // it may be half done
	}
	return a, err
}

// lacks is the error of an operation on an inode that is not here.
type lacks FileID

func (l lacks) Error() string { return fmt.Sprintf("file id %x is not here", uint64(l)) }

// need acquires an inode that an operation works on.
func (t *Tree) need(id FileID) (*inode, error) {
	n, err := t.acquire(id)
	if errors.Is(err, errMissing) {
		return nil, lacks(id)
	}
	return n, err
}

// write is the live path: with the file open already, one look into a map and one pwrite.
func (t *Tree) write(op *replication.Op) error {
	n, err := t.need(op.ID)
	if err != nil {
		return err
	}
	defer t.release(n)
	fd, err := t.dataFd(n)
	if err != nil {
		return err
	}
	for b, off := op.Data, op.Off; len(b) > 0; {
		k, err := unix.Pwrite(fd, b, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fail("write", op.ID, err)
		}
		b, off = b[k:], off+int64(k)
	}
	t.touch(n, op.Time)
	return nil
}

// dataFd gives the descriptor by which a regular file is changed.
func (t *Tree) dataFd(n *inode) (int, error) {
	if n.typ != unix.S_IFREG {
		return -1, fmt.Errorf("file id %x is no regular file: %w", uint64(n.id), ErrDiverged)
	}
	fd, err := t.fd(n, writeFd)
	if errors.Is(err, errMissing) {
		return -1, lacks(n.id)
	}
	return fd, err
}

// setAttr sets what Valid names and nothing else: the kernel's own taking away of setuid bits by chown and truncate is undone, because the
// active records it when it is wanted.
func (t *Tree) setAttr(op *replication.Op) (Stat, error) {
	n, err := t.need(op.ID)
	if err != nil {
		return Stat{}, err
	}
	defer t.release(n)
	fd, err := t.anyFd(n)
	if err != nil {
		return Stat{}, err
	}
	was, err := fstat(fd)
	if err != nil {
		return Stat{}, fail("stat", op.ID, err)
	}
	mode := was.Mode
	if op.Valid&replication.ValidMode != 0 {
		mode = mode&unix.S_IFMT | op.Mode&0o7777
		n.inherit.Store(inheritUnknown)
	}
	if op.Valid&replication.ValidSize != 0 {
		dfd, err := t.dataFd(n)
		if err != nil {
			return Stat{}, err
		}
		if err := unix.Ftruncate(dfd, op.Len); err != nil {
			return Stat{}, fail("truncate", op.ID, err)
		}
	}
	if op.Valid&(replication.ValidUID|replication.ValidGID) != 0 {
		uid, gid := -1, -1
		if op.Valid&replication.ValidUID != 0 {
			uid = int(op.UID)
		}
		if op.Valid&replication.ValidGID != 0 {
			gid = int(op.GID)
		}
		if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return Stat{}, fail("chown", op.ID, err)
		}
	}
	if n.typ != unix.S_IFLNK {
		// A mode that was named is set even if it is the old one: with an access list it sets the list's mask.
		now := was.Mode
		if op.Valid&(replication.ValidUID|replication.ValidGID|replication.ValidSize) != 0 {
			st, err := fstat(fd)
			if err != nil {
				return Stat{}, fail("stat", op.ID, err)
			}
			now = st.Mode
		}
		if op.Valid&replication.ValidMode != 0 || now != mode {
			if err := unix.Chmod(procPath(fd), mode&0o7777); err != nil {
				return Stat{}, fail("chmod", op.ID, err)
			}
		}
	}
	if op.Valid&replication.ValidAtime != 0 {
		if err := setTimes(fd, op.Atime, omit); err != nil {
			return Stat{}, fail("set the times", op.ID, err)
		}
	}
	if op.Valid&(replication.ValidMtime|replication.ValidSize) != 0 {
		t.touch(n, op.Time)
	} else {
		n.ctime.Store(op.Time)
	}
	if op.Valid&replication.ValidMtime != 0 {
		n.ctime.Store(time.Now().UnixNano()) // op.Time is what somebody wanted as the mtime
	}
	return t.stat(n)
}

// allocateModes are the modes of fallocate(2) that an operation may carry. To take a range out or to shift one in is not among them: done twice it is not what it
// is once, so that it cannot be repeated after a crash; FUSE never asks for it (fuse_file_fallocate of the kernel refuses it).
const allocateModes = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE

func (t *Tree) fallocate(op *replication.Op) error {
	mode := op.Flags & 0xffff
	if mode&^allocateModes != 0 {
		return fail(fmt.Sprintf("fallocate with mode %#x", mode), op.ID, unix.EOPNOTSUPP)
	}
	n, err := t.need(op.ID)
	if err != nil {
		return err
	}
	defer t.release(n)
	fd, err := t.dataFd(n)
	if err != nil {
		return err
	}
	err = fallocate(fd, mode, op.Off, op.Len)
	if err == unix.EOPNOTSUPP {
		err = t.imitate(fd, mode, op.Off, op.Len)
	}
	if err != nil {
		return fail("fallocate", op.ID, err)
	}
	t.touch(n, op.Time)
	return nil
}

func fallocate(fd int, mode uint32, off, length int64) error {
	for {
		if err := unix.Fallocate(fd, mode, off, length); err != unix.EINTR {
			return err
		}
	}
}

// imitate gives the content and size that fallocate would have given, on a file system that lacks the mode: a copy may lie on another one than the active's.
func (t *Tree) imitate(fd int, mode uint32, off, length int64) error {
	st, err := fstat(fd)
	if err != nil {
		return err
	}
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		at, end := off, min(off+length, st.Size)
		if at < end && fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, end-at) == nil {
			at = end
		}
		for zero := make([]byte, 1<<16); at < end; {
			k, err := unix.Pwrite(fd, zero[:min(int64(len(zero)), end-at)], at)
			if err != nil {
				return err
			}
			at += int64(k)
		}
	}
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 && off+length > st.Size {
		return unix.Ftruncate(fd, off+length)
	}
	return nil
}

func (t *Tree) setXattr(op *replication.Op) error {
	if strings.HasPrefix(op.Name, ownPrefix) {
		return fail("set the attribute "+op.Name, op.ID, unix.EPERM)
	}
	n, err := t.need(op.ID)
	if err != nil {
		return err
	}
	defer t.release(n)
	fd, err := t.fd(n, pathFd)
	if err != nil {
		return err
	}
	if op.Kind == replication.DelXattr {
		err = unix.Removexattr(procPath(fd), op.Name)
		if err == unix.ENODATA {
			err = nil
		}
	} else {
		err = setxattrFd(fd, op.Name, op.Data)
	}
	if err != nil {
		return fail(op.Kind.String()+" "+op.Name, op.ID, err)
	}
	n.inherit.Store(inheritUnknown)
	n.ctime.Store(op.Time)
	return nil
}

func (t *Tree) forget(op *replication.Op) error {
	unlock := t.lockDirs(op.ID, op.ID)
	defer unlock()
	return t.dropLimbo(op.ID)
}

// entryName says whether a directory entry can have this name.
func entryName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= replication.MaxName && !strings.ContainsAny(s, "/\x00")
}
