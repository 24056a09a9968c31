// Package faultfs is a file system in memory that fails as disks do, for tests: the n-th operation ends with an error, or the power is
// cut in it. After a cut, Reboot returns what a disk may hold then:
//
//   - what was synced, always;
//   - of each file's writes since its last Sync any set of 512-byte sectors, the newest bytes or the ones before, by seed: every order
//     in which a kernel may write back is among them, and so are torn writes. A sector itself is whole;
//   - of each directory's changes since its last SyncDir the first so many, by seed.
//
// A file whose Sync failed is broken for good: later Syncs fail too, and what it had not synced may or may not be there. Reads never count as
// operations that can fail by number; flipped bits are made with Flip.
package faultfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"sync"
	"syscall"

	"github.com/hanode/hanode/replication/journal/disk"
)

// ErrPower is what every operation returns once the power is off.
var ErrPower = errors.New("the power is off")

const sector = 512

type inode struct {
	now     []byte
	durable []byte
	pending []write
	broken  error
	lost    bool // a Sync writes only what was written since the failed one
}

type write struct {
	off  int64
	data []byte
	grow bool // only the size: off
}

type change struct {
	from, to string // from "": made; to "": removed
	node     *inode
}

// FS is the file system. The zero value is not usable: New.
type FS struct {
	mu      sync.Mutex
	rnd     *rand.Rand
	seed    uint64
	now     map[string]*inode
	durable map[string]*inode
	changes map[string][]change // by directory
	dirs    map[string]bool
	ops     int
	failAt  int
	failTo  int
	err     error
	cutAt   int
	off     bool
	fired   bool
	left    int64 // bytes that the disk has still room for
	limited bool
}

// New is an empty file system.
func New(seed uint64) *FS {
	return &FS{rnd: rand.New(rand.NewPCG(seed, 1)), seed: seed, now: map[string]*inode{}, durable: map[string]*inode{}, changes: map[string][]change{}, dirs: map[string]bool{}}
}

// FailAt makes the n-th operation from now on (from 1) and the more that follow it end with err.
func (f *FS) FailAt(n, more int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failAt, f.failTo, f.err = f.ops+n, f.ops+n+more, err
}

// CutAt cuts the power in the n-th operation from now on (from 1).
func (f *FS) CutAt(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cutAt = f.ops + n
}

// Room bounds what can still be allocated.
func (f *FS) Room(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left, f.limited = bytes, true
}

// Fired says whether a planned failure has taken place.
func (f *FS) Fired() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

// Ops counts the operations so far.
func (f *FS) Ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ops
}

// Off cuts the power now.
func (f *FS) Off() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.off = true
}

// Reboot cuts the power, if it is on, and returns what the disk holds.
func (f *FS) Reboot() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.off = true
	g := New(f.seed + 1)
	g.dirs = maps.Clone(f.dirs)
	names := maps.Clone(f.durable)
	for _, dir := range slices.Sorted(maps.Keys(f.changes)) {
		cs := f.changes[dir]
		for _, c := range cs[:f.rnd.IntN(len(cs)+1)] {
			apply(names, c)
		}
	}
	seen := map[*inode]*inode{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		n := names[name]
		if seen[n] == nil {
			b := f.survivors(n)
			seen[n] = &inode{now: b, durable: slices.Clone(b)}
		}
		g.now[name], g.durable[name] = seen[n], seen[n]
	}
	return g
}

// Kill is what a process finds that was killed: everything, but nothing more durable than it was. What a failed Sync left behind is still read, and a Sync
// succeeds, and it never reaches the disk: so it is with Linux, whose pages are clean after the error.
func (f *FS) Kill() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.off = true
	for _, n := range f.now {
		if n.broken != nil {
			n.broken, n.pending = nil, nil
			n.lost = true
		}
	}
	g := New(f.seed + 1)
	g.dirs, g.now, g.durable, g.changes = f.dirs, f.now, f.durable, f.changes
	g.left, g.limited = f.left, f.limited
	return g
}

// Clone is an independent copy, without plans for failures.
func (f *FS) Clone() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := New(f.seed + 1)
	g.dirs = maps.Clone(f.dirs)
	seen := map[*inode]*inode{}
	clone := func(n *inode) *inode {
		if n != nil && seen[n] == nil {
			seen[n] = &inode{now: slices.Clone(n.now), durable: slices.Clone(n.durable), pending: slices.Clone(n.pending), broken: n.broken, lost: n.lost}
		}
		return seen[n]
	}
	for name, n := range f.now {
		g.now[name] = clone(n)
	}
	for name, n := range f.durable {
		g.durable[name] = clone(n)
	}
	for dir, cs := range f.changes {
		for _, c := range cs {
			c.node = clone(c.node)
			g.changes[dir] = append(g.changes[dir], c)
		}
	}
	return g
}

func (f *FS) survivors(n *inode) []byte {
	b := slices.Clone(n.durable)
	some := f.rnd.IntN(3) // none, some, all of what was not synced
	for _, w := range n.pending {
		if w.grow {
			if f.rnd.IntN(2) == 0 && int64(len(b)) < w.off {
				b = append(b, make([]byte, w.off-int64(len(b)))...)
			}
			continue
		}
		for off := w.off; off < w.off+int64(len(w.data)); {
			end := min(off/sector*sector+sector, w.off+int64(len(w.data)))
			if some == 2 || some == 1 && f.rnd.IntN(2) == 0 {
				if int64(len(b)) < end {
					b = append(b, make([]byte, end-int64(len(b)))...)
				}
				copy(b[off:end], w.data[off-w.off:end-w.off])
			}
			off = end
		}
	}
	return b
}

func apply(names map[string]*inode, c change) {
	if c.from != "" {
		delete(names, c.from)
	}
	if c.to != "" {
		names[c.to] = c.node
	}
}

// op counts one operation: err is what it must end with, part says that it may be half done before that.
func (f *FS) op() (err error, part bool) {
	if f.off {
		return ErrPower, false
	}
	f.ops++
	switch {
	case f.cutAt == f.ops:
		f.off, f.fired = true, true
		return ErrPower, true
	case f.failAt > 0 && f.ops >= f.failAt && f.ops <= f.failTo:
		f.fired = true
		return f.err, true
	}
	return nil, false
}

// Flip changes the bits of mask at off of the named file, on the disk and in memory.
func (f *FS) Flip(name string, off int64, mask byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.now[name]
	n.now[off] ^= mask
	if off < int64(len(n.durable)) {
		n.durable[off] ^= mask
	}
}

// Zero clears n bytes at off of the named file, on the disk and in memory.
func (f *FS) Zero(name string, off, n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.now[name]
	clear(i.now[off:min(off+n, int64(len(i.now)))])
	if off < int64(len(i.durable)) {
		clear(i.durable[off:min(off+n, int64(len(i.durable)))])
	}
}

// Content is a copy of the named file; nil if there is none.
func (f *FS) Content(name string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now[name] == nil {
		return nil
	}
	return slices.Clone(f.now[name].now)
}

func notThere(op, name string) error { return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist} }

func (f *FS) MakeDir(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err, _ := f.op(); err != nil {
		return err
	}
	f.dirs[dir] = true
	return nil
}

func (f *FS) note(c change, name string) {
	apply(f.now, c)
	d := path.Dir(name)
	f.changes[d] = append(f.changes[d], c)
}

func (f *FS) Create(name string) (disk.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	err, part := f.op()
	if err == nil || part && f.rnd.IntN(2) == 0 {
		f.note(change{to: name, node: &inode{}}, name)
	}
	if err != nil {
		return nil, err
	}
	return &file{fs: f, n: f.now[name], name: name}, nil
}

func (f *FS) Open(name string) (disk.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.off {
		return nil, ErrPower
	}
	n := f.now[name]
	if n == nil {
		return nil, notThere("open", name)
	}
	return &file{fs: f, n: n, name: name}, nil
}

func (f *FS) Rename(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err, part := f.op()
	if f.now[from] == nil {
		return notThere("rename", from)
	}
	if err == nil || part && f.rnd.IntN(2) == 0 {
		f.note(change{from: from, to: to, node: f.now[from]}, to)
	}
	return err
}

func (f *FS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err, part := f.op()
	if f.now[name] == nil {
		return notThere("remove", name)
	}
	if err == nil || part && f.rnd.IntN(2) == 0 {
		f.note(change{from: name}, name)
	}
	return err
}

func (f *FS) List(dir string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.off {
		return nil, ErrPower
	}
	if !f.dirs[dir] {
		return nil, notThere("list", dir)
	}
	var out []string
	for name := range f.now {
		if path.Dir(name) == dir {
			out = append(out, path.Base(name))
		}
	}
	slices.Sort(out)
	return out, nil
}

func (f *FS) SyncDir(dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err, part := f.op()
	cs := f.changes[dir]
	k := len(cs)
	if err != nil {
		if k = 0; part {
			k = f.rnd.IntN(len(cs) + 1)
		}
	}
	for _, c := range cs[:k] {
		apply(f.durable, c)
	}
	f.changes[dir] = cs[k:]
	return err
}

type file struct {
	fs   *FS
	n    *inode
	name string
}

func (h *file) ReadAt(b []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.fs.off {
		return 0, ErrPower
	}
	if off >= int64(len(h.n.now)) {
		return 0, io.EOF
	}
	k := copy(b, h.n.now[off:])
	if k < len(b) {
		return k, io.EOF
	}
	return k, nil
}

func (h *file) WriteVec(v [][]byte, off int64) error {
	b := slices.Concat(v...)
	f := h.fs
	f.mu.Lock()
	defer f.mu.Unlock()
	err, part := f.op()
	if err != nil {
		if !part {
			return err
		}
		if end := (off + int64(f.rnd.IntN(len(b)+1))) / sector * sector; end < off+int64(len(b)) { // up to the end of a sector, or all
			b = b[:max(end-off, 0)]
		}
	}
	end := off + int64(len(b))
	if end > int64(len(h.n.now)) {
		if grow := end - int64(len(h.n.now)); f.limited && err == nil {
			if grow > f.left {
				return &fs.PathError{Op: "write", Path: h.name, Err: syscall.ENOSPC}
			}
			f.left -= grow
		}
		h.n.now = append(h.n.now, make([]byte, end-int64(len(h.n.now)))...)
	}
	copy(h.n.now[off:], b)
	if len(b) > 0 {
		h.n.pending = append(h.n.pending, write{off: off, data: b})
	}
	return err
}

func (h *file) Allocate(size int64) error {
	f := h.fs
	f.mu.Lock()
	defer f.mu.Unlock()
	if err, _ := f.op(); err != nil {
		return err
	}
	grow := size - int64(len(h.n.now))
	if grow <= 0 {
		return nil
	}
	if f.limited {
		if grow > f.left {
			return &fs.PathError{Op: fmt.Sprintf("allocate %d bytes for", size), Path: h.name, Err: syscall.ENOSPC}
		}
		f.left -= grow
	}
	h.n.now = append(h.n.now, make([]byte, grow)...)
	h.n.pending = append(h.n.pending, write{off: size, grow: true})
	return nil
}

func (h *file) Sync() error {
	f := h.fs
	f.mu.Lock()
	defer f.mu.Unlock()
	err, part := f.op()
	switch {
	case err != nil && part && errors.Is(err, ErrPower):
		h.n.durable, h.n.pending = f.survivors(h.n), nil // and what did not survive is gone from memory too
		return err
	case err != nil:
		h.n.broken = &fs.PathError{Op: "fdatasync", Path: h.name, Err: err}
		return h.n.broken
	case h.n.broken != nil:
		return h.n.broken
	}
	if h.n.lost {
		for _, w := range h.n.pending {
			if end := w.off + int64(len(w.data)); int64(len(h.n.durable)) < end {
				h.n.durable = append(h.n.durable, make([]byte, end-int64(len(h.n.durable)))...)
			}
			copy(h.n.durable[w.off:], w.data)
		}
		h.n.pending = nil
		return nil
	}
	h.n.durable, h.n.pending = slices.Clone(h.n.now), nil
	return nil
}

func (h *file) Size() (int64, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.fs.off {
		return 0, ErrPower
	}
	return int64(len(h.n.now)), nil
}

func (h *file) Close() error { return nil }
