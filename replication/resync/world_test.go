package resync

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

// scratch is a directory on a file system that has what a volume needs; memory, if root may mount it.
func scratch(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("file ids and file handles need root")
	}
	dir, err := os.MkdirTemp("", "hanode-resync-")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("hanode-test", dir, "tmpfs", 0, "size=6g,mode=0700"); err != nil {
		os.Remove(dir)
		t.Skipf("tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
		os.Remove(dir)
	})
	return dir
}

func newTree(t testing.TB, dir string) *Tree {
	t.Helper()
	if err := tree.Make(dir); err != nil {
		t.Fatal(err)
	}
	tr, err := tree.Open(dir, tree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

func do(t testing.TB, tr *Tree, ops ...replication.Op) {
	t.Helper()
	for _, op := range ops {
		op.Volume = 1
		if op.Time == 0 {
			op.Time = 1e18 + int64(op.ID)
		}
		if _, err := tr.Apply(&op); err != nil {
			t.Fatalf("%+v: %v", op, err)
		}
	}
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// pipe is two channels that are connected.
func pipe() (Channel, Channel) {
	a, b := net.Pipe()
	return Conn(a), Conn(b)
}

// resync runs both sides.
func resync(t testing.TB, from, to *Tree, so SourceOptions, opt TargetOptions) (Result, error) {
	t.Helper()
	a, b := pipe()
	so.Volume, opt.Volume = 1, 1
	src := make(chan error, 1)
	go func() { src <- Source(context.Background(), a, from, so) }()
	r, err := Run(context.Background(), b, to, opt)
	if serr := <-src; err == nil && serr != nil {
		t.Errorf("the source: %v", serr)
	}
	return r, err
}

// snapshot is everything of a tree that must be equal, by path.
func snapshot(t testing.TB, tr *Tree) map[string]string {
	t.Helper()
	out := map[string]string{}
	var walk func(id FileID, path string)
	walk = func(id FileID, path string) {
		i, err := tr.Inode(id)
		must(t, err)
		out[path+"/"] = show(t, tr, &i)
		items := []tree.Item{}
		for cookie := uint64(0); ; {
			part, err := tr.List(id, cookie, 100)
			must(t, err)
			if len(part) == 0 {
				break
			}
			items, cookie = append(items, part...), part[len(part)-1].Cookie
		}
		for i := range items {
			p := path + "/" + items[i].Name
			if items[i].Type == unix.S_IFDIR {
				walk(items[i].ID, p)
			} else {
				out[p] = show(t, tr, &items[i])
			}
		}
	}
	walk(replication.RootID, "")
	for _, id := range tr.InLimbo() {
		i, err := tr.Inode(id)
		must(t, err)
		out[fmt.Sprintf("open %x", uint64(id))] = show(t, tr, &i)
	}
	out["inodes"] = fmt.Sprint(tr.Count())
	return out
}

func show(t testing.TB, tr *Tree, i *tree.Item) string {
	s := i.Stat
	nlink := s.Nlink
	if i.Type == unix.S_IFDIR {
		nlink = 0 // tmpfs and ext4 count alike, but it says nothing more
	}
	text := fmt.Sprintf("id %x mode %o nlink %d owner %d:%d rdev %x mtime %d size %d target %q xattrs %v", uint64(i.ID), s.Mode, nlink, s.UID, s.GID, s.Rdev, s.Mtime,
		map[bool]int64{true: s.Size}[i.Type == unix.S_IFREG], i.Target, row(i.Xattrs))
	if i.Type == unix.S_IFREG {
		text += fmt.Sprintf(" content %x", digest(t, tr, i.ID))
	}
	return text
}

func sum(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// digest is a sum over the blocks of a file that are not all zeros.
func digest(t testing.TB, tr *Tree, id FileID) (h uint64) {
	t.Helper()
	f, err := tr.OpenFile(id, unix.O_RDONLY)
	must(t, err)
	defer f.Close()
	b := make([]byte, blockSize)
	for off := int64(0); ; off += blockSize {
		data, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return h
		}
		must(t, err)
		off = max(off, data/blockSize*blockSize)
		n, err := f.ReadAt(b, off)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(b[:n], zeroBlock[:n]) {
			h = h*31 + sum(b[:n]) ^ uint64(off)
		}
	}
}

// differ compares two snapshots.
func differ(a, b map[string]string) (out []string) {
	for _, k := range slices.Sorted(maps.Keys(a)) {
		if a[k] != b[k] {
			out = append(out, fmt.Sprintf("%s\n   source:   %s\n   follower: %s", k, a[k], b[k]))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(b)) {
		if _, ok := a[k]; !ok {
			out = append(out, fmt.Sprintf("%s is on the follower only: %s", k, b[k]))
		}
	}
	return out
}

func equal(t testing.TB, from, to *Tree) {
	t.Helper()
	if d := differ(snapshot(t, from), snapshot(t, to)); len(d) > 0 {
		t.Fatalf("%d differences, the first: %s", len(d), d[0])
	}
}

const dirMode, fileMode = unix.S_IFDIR | 0o755, unix.S_IFREG | 0o644

func pattern(n int, salt byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>8) ^ byte(i*7) ^ salt
	}
	return b
}

// everything is a tree with one of each kind.
func everything(t testing.TB, tr *Tree) {
	acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, 2, 0, 4, 0, 7, 0, 0, 0, 4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, 0x10, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, 0x20, 0, 4, 0, 0xff, 0xff, 0xff, 0xff}
	must(t, tr.Settle())
	c := replication.Create
	do(t, tr,
		replication.Op{Kind: c, ID: 2, Parent: 1, Name: "dir", Mode: unix.S_IFDIR | 0o2775, UID: 7, GID: 8},
		replication.Op{Kind: c, ID: 3, Parent: 2, Name: "empty", Mode: fileMode},
		replication.Op{Kind: c, ID: 4, Parent: 2, Name: "small", Mode: unix.S_IFREG | 0o4755, UID: 1, GID: 2},
		replication.Op{Kind: replication.Write, ID: 4, Data: pattern(100, 1)},
		replication.Op{Kind: c, ID: 5, Parent: 1, Name: "large", Mode: fileMode},
		replication.Op{Kind: replication.Write, ID: 5, Data: pattern(1<<20, 2)},
		replication.Op{Kind: replication.Write, ID: 5, Off: 1 << 20, Data: pattern(700000, 3)},
		replication.Op{Kind: c, ID: 6, Parent: 1, Name: "sparse", Mode: fileMode},
		replication.Op{Kind: replication.Write, ID: 6, Off: 1 << 40, Data: pattern(5000, 4)},
		replication.Op{Kind: replication.Write, ID: 6, Off: 3 << 30, Data: pattern(9000, 5)},
		replication.Op{Kind: replication.SetAttr, ID: 6, Valid: replication.ValidSize, Len: 2 << 40},
		replication.Op{Kind: c, ID: 7, Parent: 2, Name: "link", Mode: unix.S_IFLNK | 0o777, Data: []byte("../large")},
		replication.Op{Kind: c, ID: 8, Parent: 2, Name: "pipe", Mode: unix.S_IFIFO | 0o600, UID: 5},
		replication.Op{Kind: c, ID: 9, Parent: 2, Name: "null", Mode: unix.S_IFCHR | 0o666, Rdev: uint32(unix.Mkdev(1, 3))},
		replication.Op{Kind: c, ID: 10, Parent: 2, Name: "sock", Mode: unix.S_IFSOCK | 0o600},
		replication.Op{Kind: replication.Link, ID: 4, Parent: 1, Name: "hard"},
		replication.Op{Kind: replication.SetXattr, ID: 4, Name: "user.a", Data: []byte("1")},
		replication.Op{Kind: replication.SetXattr, ID: 2, Name: "user.dir", Data: pattern(300, 9)},
		replication.Op{Kind: replication.SetXattr, ID: 5, Name: "system.posix_acl_access", Data: acl},
		replication.Op{Kind: replication.SetXattr, ID: 4, Name: "security.capability", Data: []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")},
		replication.Op{Kind: c, ID: 11, Parent: 1, Name: "deep", Mode: dirMode},
		replication.Op{Kind: c, ID: 12, Parent: 11, Name: "deeper", Mode: dirMode},
		replication.Op{Kind: c, ID: 13, Parent: 12, Name: "leaf", Mode: fileMode},
		replication.Op{Kind: replication.Write, ID: 13, Data: []byte("leaf")},
		replication.Op{Kind: c, ID: 14, Parent: 1, Name: "gone", Mode: fileMode},
		replication.Op{Kind: replication.Write, ID: 14, Data: []byte("open without a name")},
		replication.Op{Kind: replication.Unlink, ID: 14, Parent: 1, Name: "gone", Flags: replication.FlagOpen},
		replication.Op{Kind: c, ID: 15, Mode: fileMode},
	)
	var big []replication.Op
	for i := range 700 { // more than one part
		big = append(big, replication.Op{Kind: c, ID: FileID(100 + i), Parent: 12, Name: fmt.Sprintf("f%d-%s", i, bytes.Repeat([]byte("n"), 200)), Mode: fileMode, UID: uint32(i)})
	}
	do(t, tr, big...)
}
