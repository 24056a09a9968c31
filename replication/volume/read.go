package volume

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

// timeout is how long the kernel may keep what it is told.
func (v *FS) timeout() time.Duration {
	if v.role.Load().Role == Active {
		return longTime
	}
	return 0
}

func setAttr(a *fuse.Attr, id replication.FileID, st *tree.Stat) {
	*a = fuse.Attr{Ino: uint64(id), Size: uint64(st.Size), Blocks: uint64(st.Blocks), Mode: st.Mode, Nlink: st.Nlink, Rdev: st.Rdev, Blksize: 4096,
		Owner: fuse.Owner{Uid: st.UID, Gid: st.GID}}
	a.Atime, a.Atimensec = unixTime(st.Atime)
	a.Mtime, a.Mtimensec = unixTime(st.Mtime)
	a.Ctime, a.Ctimensec = unixTime(st.Ctime)
}

func unixTime(ns int64) (sec uint64, nsec uint32) {
	s, n := ns/1e9, ns%1e9
	if n < 0 {
		s, n = s-1, n+1e9
	}
	return uint64(s), uint32(n)
}

// entry fills the answer to a request that names an inode. Ids are never used again, so one generation is enough.
func (v *FS) entry(id replication.FileID, st *tree.Stat, out *fuse.EntryOut) {
	t := v.timeout()
	out.NodeId, out.Generation = uint64(id), 1
	out.SetEntryTimeout(t)
	out.SetAttrTimeout(t)
	setAttr(&out.Attr, id, st)
}

// Lookup answers for a name; "." and ".." are asked for by the kernel's NFS server and by open_by_handle_at.
func (v *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir := replication.FileID(h.NodeId)
	var id replication.FileID
	var st tree.Stat
	var err error
	if len(name) > replication.MaxName {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	switch name {
	case ".", "..":
		if id = dir; name == ".." {
			id, err = v.tree.Parent(dir)
		}
		if err == nil {
			st, err = v.tree.Stat(id)
		}
		if err != nil {
			return fuse.Status(syscall.ESTALE)
		}
	default:
		id, st, err = v.tree.Lookup(dir, name)
	}
	if s := v.mayRead(); s != fuse.OK {
		return s
	}
	if errors.Is(err, syscall.ENOENT) {
		if t := v.timeout(); t > 0 { // the name's absence may be kept as well
			out.NodeId = 0
			out.SetEntryTimeout(t)
			return fuse.OK
		}
	}
	if err != nil {
		return status(err)
	}
	v.entry(id, &st, out)
	return fuse.OK
}

// Forget has nothing to forget: node ids are file ids.
func (v *FS) Forget(uint64, uint64) {}

// GetAttr answers stat(2).
func (v *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	id := replication.FileID(in.NodeId)
	st, err := v.tree.Stat(id)
	if s := v.mayRead(); s != fuse.OK {
		return s
	}
	if err != nil {
		return gone(err)
	}
	setAttr(&out.Attr, id, &st)
	out.SetTimeout(v.timeout())
	return fuse.OK
}

// gone turns "no such inode" into ESTALE, upon which the kernel looks the path up again.
func gone(err error) fuse.Status {
	if errors.Is(err, syscall.ENOENT) {
		return fuse.Status(syscall.ESTALE)
	}
	return status(err)
}

// Readlink answers with the target of a symbolic link.
func (v *FS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	s, err := v.tree.Readlink(replication.FileID(h.NodeId))
	if st := v.mayRead(); st != fuse.OK {
		return nil, st
	}
	if err != nil {
		return nil, gone(err)
	}
	return []byte(s), fuse.OK
}

// GetXAttr answers getxattr(2).
func (v *FS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if hidden(name) {
		return 0, fuse.ENODATA
	}
	n, err := v.tree.Getxattr(replication.FileID(h.NodeId), name, dest)
	if st := v.mayRead(); st != fuse.OK {
		return 0, st
	}
	if err != nil {
		return 0, gone(err)
	}
	return uint32(n), fuse.OK
}

// ListXAttr answers listxattr(2).
func (v *FS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	names, err := v.tree.Listxattr(replication.FileID(h.NodeId))
	if st := v.mayRead(); st != fuse.OK {
		return 0, st
	}
	if err != nil {
		return 0, gone(err)
	}
	n := 0
	for _, s := range names {
		if len(dest) >= n+len(s)+1 {
			copy(dest[n:], s)
			dest[n+len(s)] = 0
		}
		n += len(s) + 1
	}
	if n > len(dest) {
		return uint32(n), fuse.ERANGE
	}
	return uint32(n), fuse.OK
}

// StatFs answers statfs(2) with the state of the backing file system.
func (v *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	s, err := v.tree.Statfs()
	if st := v.mayRead(); st != fuse.OK {
		return st
	}
	if err != nil {
		return status(err)
	}
	*out = fuse.StatfsOut{Blocks: s.Blocks, Bfree: s.Bfree, Bavail: s.Bavail, Files: s.Files, Ffree: s.Ffree, Bsize: uint32(s.Bsize), Frsize: uint32(s.Bsize), NameLen: replication.MaxName}
	return fuse.OK
}

// OpenDir gives no handle: reading a directory needs none.
func (v *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return v.mayRead()
}

// ReleaseDir has nothing to release.
func (v *FS) ReleaseDir(*fuse.ReleaseIn) {}

// Places in a directory as the kernel is told them: 1 is behind ".", 2 behind "..", then the tree's cookies, moved up by two; the end stays what it is.
const endOfDir = 1<<63 - 1

func toCookie(off uint64) uint64 {
	if off == endOfDir {
		return off
	}
	return off - 2
}

func fromCookie(c uint64) uint64 { return min(c+2, endOfDir) }

// ReadDir gives names, ids and types.
func (v *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return v.readDir(in, func(e *tree.Entry, off uint64) bool {
		return out.AddDirEntry(fuse.DirEntry{Name: e.Name, Ino: uint64(e.ID), Mode: e.Type, Off: off})
	})
}

// ReadDirPlus gives attributes too.
func (v *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return v.readDir(in, func(e *tree.Entry, off uint64) bool {
		o := out.AddDirLookupEntry(fuse.DirEntry{Name: e.Name, Ino: uint64(e.ID), Mode: e.Type, Off: off})
		if o == nil {
			return false
		}
		if e.Name != "." && e.Name != ".." {
			// An entry that has gone meanwhile keeps node id 0: the kernel takes its name and no more.
			if st, err := v.tree.Stat(e.ID); err == nil {
				v.entry(e.ID, &st, o)
			}
		}
		return true
	})
}

// readDir gives the entries from in.Offset on to add, until it has room for no more.
func (v *FS) readDir(in *fuse.ReadIn, add func(e *tree.Entry, off uint64) bool) fuse.Status {
	dir, off := replication.FileID(in.NodeId), in.Offset
	for ; off < 2; off++ {
		e := tree.Entry{Name: [...]string{".", ".."}[off], ID: dir, Type: syscall.S_IFDIR}
		if off == 1 {
			if up, err := v.tree.Parent(dir); err == nil {
				e.ID = up
			}
		}
		if !add(&e, off+1) {
			return v.mayRead()
		}
	}
	// An entry takes at least 32 bytes of the answer.
	list, err := v.tree.ReadDir(dir, toCookie(off), int(in.Size/32)+1)
	if err != nil {
		return gone(err)
	}
	for i := range list {
		if !add(&list[i], fromCookie(list[i].Cookie)) {
			break
		}
	}
	return v.mayRead()
}

func gone0(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	return gone(err)
}

// Read answers what is read through the server: by handles that could write, and on the standby.
func (v *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := v.handles.get(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	n, err := h.file.ReadAt(buf, int64(in.Offset))
	if st := v.mayRead(); st != fuse.OK {
		return nil, st
	}
	if err != nil && err != io.EOF {
		return nil, status(err)
	}
	v.stats.Reads.Add(1)
	v.stats.ReadBytes.Add(uint64(n))
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Lseek finds data and holes.
func (v *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := v.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	off, err := h.file.Seek(int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	if st := v.mayRead(); st != fuse.OK {
		return st
	}
	return status(err)
}

// seenOnStandby keeps which files were opened before the promotion: the kernel may have cached older content of them than it will have then.
type seenOnStandby struct {
	mu sync.Mutex
	m  map[replication.FileID]struct{}
}

func (s *seenOnStandby) add(id replication.FileID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[replication.FileID]struct{}{}
	}
	s.m[id] = struct{}{}
}

func (s *seenOnStandby) take() (ids []replication.FileID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.m {
		ids = append(ids, id)
	}
	s.m = nil
	return ids
}
