package volume

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

// Open answers open(2) of a file that exists.
func (v *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	write := in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY
	trunc := in.Flags&syscall.O_TRUNC != 0
	check := v.mayRead
	if write || trunc {
		check = v.mayChange
	}
	if st := check(); st != fuse.OK {
		return st
	}
	n := v.nodes.get(replication.FileID(in.NodeId))
	if trunc {
		if st := v.truncate(n, in.Mode&fuse.OPEN_KILL_SUIDGID != 0); st != fuse.OK {
			v.nodes.put(n)
			return st
		}
	}
	n.use.RLock()
	defer n.use.RUnlock()
	st := v.newHandle(n, in.Flags, out)
	if st != fuse.OK {
		v.nodes.put(n)
		return st
	}
	if st := check(); st != fuse.OK {
		v.drop(out.Fh)
		return st
	}
	return fuse.OK
}

func (v *FS) truncate(n *node, kill bool) fuse.Status {
	n.use.Lock()
	defer n.use.Unlock()
	op := ops.Get().(*replication.Op)
	defer ops.Put(op)
	*op = replication.Op{Kind: replication.SetAttr, ID: n.id, Valid: replication.ValidSize}
	if kill {
		st, err := v.tree.Stat(n.id)
		if err != nil {
			return gone(err)
		}
		if m := killed(st.Mode); m != st.Mode {
			op.Mode, op.Valid = m&0o7777, op.Valid|replication.ValidMode
		}
	}
	_, err := v.commit(op)
	return gone0(err)
}

// newHandle opens a handle on n, whose reference it takes over if it succeeds. n.use is held.
func (v *FS) newHandle(n *node, flags uint32, out *fuse.OpenOut) fuse.Status {
	role := v.role.Load()
	file, err := v.tree.OpenFile(n.id, syscall.O_RDONLY)
	if err != nil {
		return gone(err)
	}
	h := &handle{node: n, file: file, epoch: role.epoch, write: flags&syscall.O_ACCMODE != syscall.O_RDONLY}
	if role.Role == Standby {
		v.seen.add(n.id)
	}
	n.mu.Lock()
	open, kind, wait := v.choose(n, flags, role.Role == Active, false)
	if wait {
		v.awaitReaders(n)
		open, kind, _ = v.choose(n, flags, true, true)
	}
	if open&fuse.FOPEN_PASSTHROUGH != 0 {
		id, err := v.backing(n, file)
		switch {
		case err == nil:
			out.BackingID = id
			v.stats.Passed.Add(1)
		case n.modes.passing+n.modes.unsafe > 0:
			n.mu.Unlock()
			file.Close()
			return fuse.Status(errno(err))
		default: // the kernel or the backing file system does not offer it
			open, kind = fuse.FOPEN_KEEP_CACHE, mapping
		}
	}
	if kind == unsafely {
		v.stats.Unsafe.Add(1)
		v.stores.watch(v, n.id, file)
	}
	h.reader = kind
	n.modes.count(kind, 1)
	n.opens++
	if h.write && flags&syscall.O_ACCMODE == syscall.O_RDWR {
		v.hot.add(n.id)
	}
	n.mu.Unlock()
	v.stats.Opens.Add(1)
	out.Fh, out.OpenFlags = v.handles.add(h), open
	return fuse.OK
}

// awaitReaders waits, with n.mu held, until no passthrough handle is open or mixedWait has passed.
func (v *FS) awaitReaders(n *node) {
	late := false
	timer := time.AfterFunc(mixedWait, func() {
		n.mu.Lock()
		late = true
		n.turn.Broadcast()
		n.mu.Unlock()
	})
	defer timer.Stop()
	for n.modes.passing+n.modes.unsafe > 0 && !late {
		n.turn.Wait()
	}
}

// backing registers the backing file with the kernel at the first passthrough open. n.mu is held.
func (v *FS) backing(n *node, file *tree.File) (int32, error) {
	if n.modes.passing+n.modes.unsafe > 0 {
		return n.modes.backing, nil
	}
	fd, err := file.Fd()
	if err != nil {
		return 0, err
	}
	id, e := v.server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(fd)})
	file.Close() // the kernel has it now; whoever reads by the file again opens it again
	if e != 0 {
		v.passthrough.Store(false)
		v.logger.Warn("the kernel refuses passthrough for the backing file: reads go through the kernel's cache of the mount", "error", e)
		return 0, e
	}
	n.modes.backing = id
	return id, nil
}

// Release is told that a handle was closed for good.
func (v *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { v.drop(in.Fh) }

func (v *FS) drop(fh uint64) {
	h := v.handles.remove(fh)
	if h == nil {
		return
	}
	h.file.Close()
	n := h.node
	n.mu.Lock()
	n.modes.count(h.reader, -1)
	n.opens--
	last := n.opens == 0
	if passed := h.reader == passing || h.reader == unsafely; passed && n.modes.passing+n.modes.unsafe == 0 {
		v.server.UnregisterBackingFd(n.modes.backing)
		n.turn.Broadcast()
	}
	n.mu.Unlock()
	if last {
		v.lastClosed(n)
	}
	v.nodes.put(n)
}

// lastClosed forgets an inode without a name when nobody has it open any more.
func (v *FS) lastClosed(n *node) {
	n.use.Lock()
	defer n.use.Unlock()
	n.mu.Lock()
	open, limbo := n.opens > 0, n.limbo
	n.mu.Unlock()
	if open {
		return
	}
	if !limbo || v.mayChange() != fuse.OK {
		return // what is left in limbo is purged at the next promotion
	}
	if _, err := v.commit(&replication.Op{Kind: replication.Forget, ID: n.id}); err != nil {
		v.logger.Debug("an unlinked file stays in limbo until the next promotion", "id", n.id, "error", err)
		return
	}
	n.mu.Lock()
	n.limbo = false
	n.mu.Unlock()
}

// Create answers open(2) with O_CREAT of a name that is not there.
func (v *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return v.createOpen(replication.FileID(in.NodeId), name, in, out)
}

// Tmpfile answers open(2) with O_TMPFILE.
func (v *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return v.createOpen(replication.FileID(in.NodeId), "", in, out)
}

func (v *FS) createOpen(dir replication.FileID, name string, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	c := creation{dir: dir, name: name, mode: syscall.S_IFREG | in.Mode&0o7777, umask: in.Umask, caller: in.Caller}
	id, st, code := v.create(&c)
	if code != fuse.OK {
		return code
	}
	n := v.nodes.get(id)
	n.use.RLock()
	defer n.use.RUnlock()
	if name == "" {
		n.mu.Lock()
		n.limbo = true
		n.mu.Unlock()
	}
	if code := v.newHandle(n, in.Flags, &out.OpenOut); code != fuse.OK {
		v.nodes.put(n)
		return code
	}
	v.entry(id, &st, &out.EntryOut)
	return fuse.OK
}
