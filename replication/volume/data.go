package volume

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

// Write answers write(2), and what the kernel writes back from shared mappings.
func (v *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := v.handles.get(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	if h.epoch < v.role.Load().since {
		return 0, fuse.EIO
	}
	n := h.node
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if st := v.killPriv(n); st != fuse.OK {
			return 0, st
		}
	}
	op := ops.Get().(*replication.Op)
	defer ops.Put(op)
	*op = replication.Op{Kind: replication.Write, ID: n.id, Off: int64(in.Offset), Data: data}
	_, err := v.commitData(n, op)
	op.Data = nil
	if err != nil {
		return 0, gone(err)
	}
	v.stats.Writes.Add(1)
	v.stats.WriteBytes.Add(uint64(len(data)))
	if in.Flags&syscall.O_DSYNC != 0 {
		if st := v.sync(); st != fuse.OK {
			return 0, st
		}
	}
	return uint32(len(data)), fuse.OK
}

// commitData takes an operation on the content of n through gate, log and tree. Several wait at once; they are applied in the order of Submit.
func (v *FS) commitData(n *node, op *replication.Op) (tree.Applied, error) {
	n.use.RLock()
	defer n.use.RUnlock()
	if st := v.mayChange(); st != fuse.OK {
		return tree.Applied{}, syscall.Errno(st)
	}
	op.Volume, op.Time = v.cfg.Index, now()
	if err := v.tree.Reserve(op); err != nil {
		return tree.Applied{}, err
	}
	start := time.Now()
	n.mu.Lock()
	t, err := v.log.Submit(op)
	if err != nil {
		n.mu.Unlock()
		return tree.Applied{}, err
	}
	mine := n.given
	n.given++
	n.mu.Unlock()
	err = v.log.Wait(t)
	n.mu.Lock()
	for n.applied != mine {
		n.turn.Wait()
	}
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		n.applied++
		if n.applied != n.given {
			n.turn.Broadcast()
		}
		n.mu.Unlock()
	}()
	if err != nil {
		return tree.Applied{}, syscall.EIO
	}
	v.stats.Ack.since(start)
	return v.apply(op, t)
}

// killed is the mode that is left when an unprivileged writer has changed a file or its owner.
func killed(mode uint32) uint32 {
	if isDir(mode) {
		return mode
	}
	mode &^= syscall.S_ISUID
	if mode&0o010 != 0 {
		mode &^= syscall.S_ISGID
	}
	return mode
}

func (v *FS) killPriv(n *node) fuse.Status {
	st, err := v.tree.Stat(n.id)
	if err != nil {
		return gone(err)
	}
	if killed(st.Mode) == st.Mode {
		return fuse.OK
	}
	n.use.Lock()
	defer n.use.Unlock()
	if st, err = v.tree.Stat(n.id); err != nil {
		return gone(err)
	}
	return v.chmod(n.id, st.Mode&^killed(st.Mode))
}

// Fallocate answers fallocate(2).
func (v *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := v.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	if h.epoch < v.role.Load().since {
		return fuse.EIO
	}
	const keepSize, punchHole, zeroRange = 1, 2, 16
	switch in.Mode {
	case 0, keepSize, punchHole | keepSize, zeroRange, zeroRange | keepSize:
	default:
		return fuse.ENOTSUP
	}
	if int64(in.Offset) < 0 || int64(in.Length) <= 0 {
		return fuse.EINVAL
	}
	op := &replication.Op{Kind: replication.Fallocate, ID: h.node.id, Flags: in.Mode, Off: int64(in.Offset), Len: int64(in.Length)}
	if _, err := v.commitData(h.node, op); err != nil {
		return gone(err)
	}
	v.stats.Changes.Add(1)
	return fuse.OK
}

// SetAttr answers chmod, chown, truncate and utimensat.
func (v *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if st := v.mayChange(); st != fuse.OK {
		return st
	}
	if fh, ok := in.GetFh(); ok && in.Valid&fuse.FATTR_SIZE != 0 {
		if h := v.handles.get(fh); h != nil && h.epoch < v.role.Load().since {
			return fuse.EIO
		}
	}
	id := replication.FileID(in.NodeId)
	held := v.nodes.hold(id)
	defer held.free()
	st, err := v.tree.Stat(id)
	if err != nil {
		return gone(err)
	}
	op := ops.Get().(*replication.Op)
	defer ops.Put(op)
	*op = replication.Op{Kind: replication.SetAttr, ID: id, Time: now()}
	if code := attrOp(in, &st, op); code != fuse.OK {
		return code
	}
	a, err := v.commit(op)
	if err != nil {
		return gone(err)
	}
	v.stats.Changes.Add(1)
	setAttr(&out.Attr, id, &a.Stat)
	out.SetTimeout(v.timeout())
	return fuse.OK
}

// attrOp fills the operation from the request and what the inode is now.
func attrOp(in *fuse.SetAttrIn, st *tree.Stat, op *replication.Op) fuse.Status {
	mode, set := st.Mode&0o7777, false
	if m, ok := in.GetMode(); ok {
		mode, set = m, true
	}
	if u, ok := in.GetUID(); ok {
		op.UID, op.Valid = u, op.Valid|replication.ValidUID
	}
	if g, ok := in.GetGID(); ok {
		op.GID, op.Valid = g, op.Valid|replication.ValidGID
	}
	// chown(2) takes set-user-id and set-group-id off, as writing by the unprivileged does (HANDLE_KILLPRIV_V2). chown to -1 arrives with no bit.
	asked := in.Valid &^ (fuse.FATTR_FH | fuse.FATTR_LOCKOWNER)
	if owners := uint32(replication.ValidUID | replication.ValidGID); op.Valid&owners != 0 || in.Valid&fuse.FATTR_KILL_SUIDGID != 0 || asked == 0 {
		if k := killed(st.Mode&syscall.S_IFMT | mode); k&0o7777 != mode {
			mode, set = k&0o7777, true
		}
	}
	if size, ok := in.GetSize(); ok {
		op.Len, op.Valid = int64(size), op.Valid|replication.ValidSize
	}
	if in.Valid&fuse.FATTR_ATIME != 0 {
		op.Valid |= replication.ValidAtime
		if op.Atime = op.Time; in.Valid&fuse.FATTR_ATIME_NOW == 0 {
			op.Atime = nanos(in.Atime, in.Atimensec)
		}
	}
	if in.Valid&fuse.FATTR_MTIME != 0 {
		op.Valid |= replication.ValidMtime
		if in.Valid&fuse.FATTR_MTIME_NOW == 0 {
			op.Time = nanos(in.Mtime, in.Mtimensec)
		}
	}
	if set || op.Valid == 0 { // with nothing else to do, the same mode again: the change time moves
		op.Mode, op.Valid = mode, op.Valid|replication.ValidMode
	}
	return fuse.OK
}

func nanos(sec uint64, nsec uint32) int64 { return int64(sec)*1e9 + int64(nsec) }

// Fsync makes a file durable, with everything before it: there is one stream.
func (v *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if h := v.handles.get(in.Fh); h == nil || h.write && h.epoch < v.role.Load().since {
		return fuse.EIO
	}
	return v.sync()
}

// FsyncDir makes a directory durable.
func (v *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return v.sync() }

func (v *FS) sync() fuse.Status {
	if v.role.Load().Role == Standby {
		return fuse.OK // nothing was written here
	}
	if st := v.mayRead(); st != fuse.OK {
		return st
	}
	start := time.Now()
	if err := v.log.Sync(); err != nil {
		return fuse.EIO
	}
	v.stats.Sync.since(start)
	v.stats.Syncs.Add(1)
	return v.mayRead()
}
