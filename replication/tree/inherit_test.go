package tree

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

func acl(entries ...[3]uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

const noOne = 0xffffffff

// What Inherit computes and Apply makes is what the kernel makes by itself in a directory beside the volume.
func TestInheritIsWhatTheKernelDoes(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	onEach(t, func(t *testing.T, disk string) {
		tr := newTree(t, filepath.Join(disk, "v"))
		defer tr.Close()
		if err := tr.Settle(); err != nil {
			t.Fatal(err)
		}
		if tr.Abilities()&AccessLists == 0 {
			t.Skip("this file system has no access lists")
		}
		rnd := rand.New(rand.NewPCG(1, 2))
		id := FileID(1)
		for round := range 60 {
			dirMode := uint32(0o755)
			if round%3 == 0 {
				dirMode |= unix.S_ISGID
			}
			id++
			p := id
			apply(t, tr, replication.Op{Kind: replication.Create, ID: p, Parent: 1, Name: name(p), Mode: unix.S_IFDIR | dirMode, GID: 55, Time: 1e9})
			native := filepath.Join(disk, "n"+name(p))
			must(t, os.Mkdir(native, 0o755))
			must(t, os.Chown(native, 0, 55))
			must(t, unix.Chmod(native, dirMode))
			if round%4 != 0 {
				list := [][3]uint32{{aclUserObj, rnd.Uint32N(8), noOne}}
				if round%4 != 1 {
					list = append(list, [3]uint32{aclUser, rnd.Uint32N(8), 1000})
				}
				list = append(list, [3]uint32{aclGroupObj, rnd.Uint32N(8), noOne})
				if round%4 != 1 {
					list = append(list, [3]uint32{aclMask, rnd.Uint32N(8), noOne})
				}
				l := acl(append(list, [3]uint32{aclOther, rnd.Uint32N(8), noOne})...)
				must(t, unix.Setxattr(native, aclDefault, l, 0))
				apply(t, tr, replication.Op{Kind: replication.SetXattr, ID: p, Name: aclDefault, Data: l, Time: 2e9})
			}
			for k, typ := range []uint32{unix.S_IFREG, unix.S_IFDIR, unix.S_IFIFO} {
				mode, umask := typ|rnd.Uint32N(0o2000), []uint32{0, 0o22, 0o77}[rnd.IntN(3)]
				path := filepath.Join(native, name(FileID(k)))
				unix.Umask(int(umask))
				var err error
				if typ == unix.S_IFDIR {
					err = unix.Mkdir(path, mode&0o7777)
				} else {
					err = unix.Mknod(path, mode, 0)
				}
				unix.Umask(0)
				must(t, err)
				born, err := tr.Inherit(p, mode, umask, 0, 0)
				must(t, err)
				if typ == unix.S_IFDIR {
					born.Mode &^= 0o1000 &^ mode
				}
				id++
				s := apply(t, tr, replication.Op{Kind: replication.Create, ID: id, Parent: p, Name: name(id), Mode: born.Mode, GID: born.GID, Data: born.Data, Time: 3e9}).Stat
				var want unix.Stat_t
				must(t, unix.Lstat(path, &want))
				if s.Mode != want.Mode || s.GID != want.Gid {
					t.Errorf("round %d, mode %o, umask %o: mode %o and group %d, the kernel makes %o and %d", round, mode, umask, s.Mode, s.GID, want.Mode, want.Gid)
				}
				have, err := tr.Xattrs(id)
				must(t, err)
				for _, a := range []string{aclAccess, aclDefault} {
					b := make([]byte, 1024)
					n, err := unix.Lgetxattr(path, a, b)
					if err != nil {
						n = 0
					}
					if !bytes.Equal(b[:n], have[a]) {
						t.Errorf("round %d, mode %o: %s is %x, the kernel makes %x", round, mode, a, have[a], b[:n])
					}
				}
			}
		}
	})
}

func must(t failer, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func name(id FileID) string { return limboEntry('n', id)[10:] }

// A create gives what it says although its directory has, by now, something to inherit: a redo meets the directory in a later state.
func TestACreateInheritsNothingByItself(t *testing.T) {
	onEach(t, func(t *testing.T, disk string) {
		tr := newTree(t, filepath.Join(disk, "v"))
		defer tr.Close()
		if tr.Abilities()&AccessLists == 0 {
			t.Skip("this file system has no access lists")
		}
		apply(t, tr, replication.Op{Kind: replication.Create, ID: 2, Parent: 1, Name: "d", Mode: unix.S_IFDIR | 0o2755, GID: 55})
		list := acl([3]uint32{aclUserObj, 7, noOne}, [3]uint32{aclUser, 7, 1000}, [3]uint32{aclGroupObj, 5, noOne}, [3]uint32{aclMask, 7, noOne}, [3]uint32{aclOther, 0, noOne})
		apply(t, tr, replication.Op{Kind: replication.SetXattr, ID: 2, Name: aclDefault, Data: list})
		for i, typ := range []uint32{unix.S_IFREG, unix.S_IFDIR, unix.S_IFIFO, unix.S_IFLNK} {
			id, mode := FileID(i+3), typ|0o646
			if typ == unix.S_IFLNK {
				mode = typ | 0o777
			}
			s := apply(t, tr, replication.Op{Kind: replication.Create, ID: id, Parent: 2, Name: name(id), Mode: mode, GID: 3, Data: map[bool][]byte{true: []byte("x")}[typ == unix.S_IFLNK]}).Stat
			real, err := tr.Stat(id)
			must(t, err)
			if s.Mode != mode || s.GID != 3 || real.Mode != mode || real.GID != 3 {
				t.Errorf("mode %o: got %o and group %d, on the disk %o and %d", mode, s.Mode, s.GID, real.Mode, real.GID)
			}
			if have, err := tr.Xattrs(id); err != nil || len(have) > 0 {
				t.Errorf("mode %o: attributes %v, %v", mode, have, err)
			}
		}
	})
}
