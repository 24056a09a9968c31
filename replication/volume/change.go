package volume

import (
	"slices"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

// creation is a new inode to be.
type creation struct {
	dir    replication.FileID
	name   string // "": without a name (O_TMPFILE)
	mode   uint32 // with its type, before umask and default ACL
	umask  uint32
	rdev   uint32
	target string // of a symbolic link
	caller fuse.Caller
}

// create makes an inode.
func (v *FS) create(c *creation) (replication.FileID, tree.Stat, fuse.Status) {
	if len(c.name) > replication.MaxName {
		return 0, tree.Stat{}, fuse.Status(syscall.ENAMETOOLONG)
	}
	if st := v.mayChange(); st != fuse.OK {
		return 0, tree.Stat{}, st
	}
	h := v.nodes.hold(c.dir)
	defer h.free()
	if c.name != "" {
		switch _, _, err := v.tree.Lookup(c.dir, c.name); {
		case err == nil:
			return 0, tree.Stat{}, fuse.Status(syscall.EEXIST)
		case errno(err) != syscall.ENOENT:
			return 0, tree.Stat{}, gone(err)
		}
	}
	// As root: the kernel has taken set-group-id off already where the caller may not give it, and it knows the caller's groups.
	born, err := v.tree.Inherit(c.dir, c.mode, c.umask, 0, c.caller.Gid)
	if err != nil {
		return 0, tree.Stat{}, gone(err)
	}
	op := ops.Get().(*replication.Op)
	defer ops.Put(op)
	*op = replication.Op{Kind: replication.Create, ID: v.tree.NextID(), Parent: c.dir, Name: c.name, Mode: born.Mode, UID: c.caller.Uid, GID: born.GID, Rdev: c.rdev, Data: born.Data}
	if c.target != "" {
		op.Data = []byte(c.target)
	}
	if c.name == "" {
		op.Parent = 0
	}
	a, err := v.commit(op)
	if err != nil {
		return 0, tree.Stat{}, status(err)
	}
	v.stats.Changes.Add(1)
	return op.ID, a.Stat, fuse.OK
}

func isDir(mode uint32) bool { return mode&syscall.S_IFMT == syscall.S_IFDIR }

func (v *FS) createEntry(c *creation, out *fuse.EntryOut) fuse.Status {
	id, st, code := v.create(c)
	if code == fuse.OK {
		v.entry(id, &st, out)
	}
	return code
}

// Mknod makes a file of any type.
func (v *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return v.createEntry(&creation{dir: replication.FileID(in.NodeId), name: name, mode: in.Mode, umask: in.Umask, rdev: in.Rdev, caller: in.Caller}, out)
}

// Mkdir makes a directory.
func (v *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return v.createEntry(&creation{dir: replication.FileID(in.NodeId), name: name, mode: syscall.S_IFDIR | in.Mode&0o7777, umask: in.Umask, caller: in.Caller}, out)
}

// Symlink makes a symbolic link.
func (v *FS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if target == "" {
		return fuse.ENOENT
	}
	if len(target) >= 4096 {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	return v.createEntry(&creation{dir: replication.FileID(h.NodeId), name: name, mode: syscall.S_IFLNK | 0o777, target: target, caller: h.Caller}, out)
}

// Link gives an inode another name.
func (v *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if len(name) > replication.MaxName {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	dir, id := replication.FileID(in.NodeId), replication.FileID(in.Oldnodeid)
	h := v.nodes.hold(dir)
	defer h.free()
	n := h.add(id)
	st, err := v.tree.Stat(id)
	switch {
	case err != nil:
		return gone(err)
	case isDir(st.Mode):
		return fuse.EPERM
	}
	switch _, _, err := v.tree.Lookup(dir, name); {
	case err == nil:
		return fuse.Status(syscall.EEXIST)
	case errno(err) != syscall.ENOENT:
		return status(err)
	}
	op := &replication.Op{Kind: replication.Link, ID: id, Parent: dir, Name: name}
	n.mu.Lock()
	limbo := n.limbo
	n.mu.Unlock()
	if limbo {
		op.Flags = replication.FlagLimbo
	}
	a, err := v.commit(op)
	if err != nil {
		return status(err)
	}
	n.mu.Lock()
	n.limbo = false
	n.mu.Unlock()
	v.stats.Changes.Add(1)
	v.entry(id, &a.Stat, out)
	return fuse.OK
}

// orphan says whether an inode that is about to lose a name loses its last one while it is open.
func orphan(n *node, st *tree.Stat) bool {
	if !isDir(st.Mode) && st.Nlink > 1 {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.opens > 0
}

func (n *node) setLimbo() {
	n.mu.Lock()
	n.limbo = true
	n.mu.Unlock()
}

// Unlink takes a name away.
func (v *FS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return v.remove(replication.FileID(h.NodeId), name, replication.Unlink)
}

// Rmdir takes an empty directory away.
func (v *FS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return v.remove(replication.FileID(h.NodeId), name, replication.Rmdir)
}

func (v *FS) remove(dir replication.FileID, name string, kind replication.Kind) fuse.Status {
	if st := v.mayChange(); st != fuse.OK {
		return st
	}
	held := v.nodes.hold(dir)
	defer held.free()
	id, st, err := v.tree.Lookup(dir, name)
	if err != nil {
		return status(err)
	}
	n := held.add(id)
	op := ops.Get().(*replication.Op)
	defer ops.Put(op)
	*op = replication.Op{Kind: kind, ID: id, Parent: dir, Name: name}
	switch {
	case kind == replication.Unlink && isDir(st.Mode):
		return fuse.EISDIR
	case kind == replication.Rmdir && !isDir(st.Mode):
		return fuse.ENOTDIR
	case kind == replication.Rmdir:
		if code := v.mustBeEmpty(id); code != fuse.OK {
			return code
		}
	case orphan(n, &st):
		op.Flags = replication.FlagOpen
	}
	if _, err := v.commit(op); err != nil {
		return status(err)
	}
	if op.Flags&replication.FlagOpen != 0 {
		n.setLimbo()
	}
	if kind == replication.Rmdir {
	}
	v.stats.Changes.Add(1)
	return fuse.OK
}

func (v *FS) mustBeEmpty(id replication.FileID) fuse.Status {
	list, err := v.tree.ReadDir(id, 0, 1)
	if err != nil {
		return status(err)
	}
	if len(list) > 0 {
		return fuse.Status(syscall.ENOTEMPTY)
	}
	return fuse.OK
}

// Flags of renameat2(2).
const (
	renameNoReplace = 1
	renameExchange  = 2
)

// Rename moves a name, or exchanges two.
func (v *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if len(newName) > replication.MaxName {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	if in.Flags&^(renameNoReplace|renameExchange) != 0 {
		return fuse.EINVAL
	}
	if st := v.mayChange(); st != fuse.OK {
		return st
	}
	from, to := replication.FileID(in.NodeId), replication.FileID(in.Newdir)
	held := v.nodes.hold(min(from, to), max(from, to))
	defer held.free()
	id, st, err := v.tree.Lookup(from, oldName)
	if err != nil {
		return status(err)
	}
	before, bst, err := v.tree.Lookup(to, newName)
	if err != nil && errno(err) != syscall.ENOENT {
		return status(err)
	}
	exchange := in.Flags&renameExchange != 0
	switch {
	case err != nil:
		before = 0
		if exchange {
			return fuse.ENOENT
		}
	case in.Flags&renameNoReplace != 0:
		return fuse.Status(syscall.EEXIST)
	case before == id:
		return fuse.OK
	case exchange:
	case isDir(bst.Mode) && !isDir(st.Mode):
		return fuse.EISDIR
	case !isDir(bst.Mode) && isDir(st.Mode):
		return fuse.ENOTDIR
	case isDir(bst.Mode):
		if code := v.mustBeEmpty(before); code != fuse.OK {
			return code
		}
	}
	held.add(min(id, max(before, 1)))
	held.add(max(id, before))
	op := &replication.Op{Kind: replication.Rename, ID: id, Parent: from, Name: oldName, NewParent: to, NewName: newName, Before: before, Flags: in.Flags & renameExchange}
	var gone *node
	if before != 0 && !exchange {
		gone = held.add(before)
		if !isDir(bst.Mode) && orphan(gone, &bst) {
			op.Flags |= replication.FlagOpen
		}
	}
	if _, err := v.commit(op); err != nil {
		return status(err)
	}
	if op.Flags&replication.FlagOpen != 0 {
		gone.setLimbo()
	}
	v.stats.Changes.Add(1)
	return fuse.OK
}

// hidden says whether an extended attribute is ours.
func hidden(name string) bool { return strings.HasPrefix(name, "trusted.hanode.") }

// SetXAttr answers setxattr(2).
func (v *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	if hidden(name) {
		return fuse.EPERM
	}
	if len(name) > replication.MaxName {
		return fuse.ERANGE
	}
	id := replication.FileID(in.NodeId)
	held := v.nodes.hold(id)
	defer held.free()
	st, err := v.tree.Stat(id)
	if err != nil {
		return gone(err)
	}
	_, err = v.tree.Getxattr(id, name, nil)
	switch e := errno(err); {
	case err == nil && in.Flags&1 != 0: // XATTR_CREATE
		return fuse.Status(syscall.EEXIST)
	case err != nil && e == syscall.ENODATA && in.Flags&2 != 0: // XATTR_REPLACE
		return fuse.ENODATA
	case err != nil && e != syscall.ENODATA:
		return status(err)
	}
	data = data[:min(len(data), int(in.Size))]
	if _, err := v.commit(&replication.Op{Kind: replication.SetXattr, ID: id, Name: name, Data: data}); err != nil {
		return status(err)
	}
	if name == "system.posix_acl_access" && in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 && st.Mode&syscall.S_ISGID != 0 {
		return v.chmod(id, syscall.S_ISGID)
	}
	v.stats.Changes.Add(1)
	return fuse.OK
}

// chmod takes bits off the mode of an inode that is held.
func (v *FS) chmod(id replication.FileID, off uint32) fuse.Status {
	st, err := v.tree.Stat(id)
	if err != nil {
		return gone(err)
	}
	_, err = v.commit(&replication.Op{Kind: replication.SetAttr, ID: id, Valid: replication.ValidMode, Mode: st.Mode & 0o7777 &^ off})
	return gone0(err)
}

// RemoveXAttr answers removexattr(2).
func (v *FS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if hidden(name) {
		return fuse.EPERM
	}
	id := replication.FileID(h.NodeId)
	held := v.nodes.hold(id)
	defer held.free()
	names, err := v.tree.Listxattr(id)
	switch {
	case err != nil:
		return gone(err)
	case !slices.Contains(names, name):
		return fuse.ENODATA
	}
	if _, err := v.commit(&replication.Op{Kind: replication.DelXattr, ID: id, Name: name}); err != nil {
		return status(err)
	}
	v.stats.Changes.Add(1)
	return fuse.OK
}
