package tree

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

func apply(t failer, tr *Tree, op replication.Op) Applied {
	t.Helper()
	a, err := tr.Apply(&op)
	if err != nil {
		t.Fatalf("%v %+v: %v", op.Kind, op, err)
	}
	return a
}

func file(id, parent FileID, name string) replication.Op {
	return replication.Op{Kind: replication.Create, ID: id, Parent: parent, Name: name, Mode: unix.S_IFREG | 0o644, Time: 1e9 * int64(id)}
}

func TestAVolumeIsAnOrdinaryDirectory(t *testing.T) {
	onEach(t, func(t *testing.T, disk string) {
		tr := newTree(t, filepath.Join(disk, "v"))
		if err := tr.Settle(); err != nil {
			t.Fatal(err)
		}
		apply(t, tr, replication.Op{Kind: replication.Create, ID: 2, Parent: 1, Name: "d", Mode: unix.S_IFDIR | 0o2775, UID: 7, GID: 8, Time: 5e9})
		apply(t, tr, file(3, 2, "f"))
		apply(t, tr, replication.Op{Kind: replication.Create, ID: 4, Parent: 2, Name: "l", Mode: unix.S_IFLNK | 0o777, Data: []byte("/etc/passwd"), Time: 6e9})
		apply(t, tr, replication.Op{Kind: replication.Create, ID: 5, Parent: 2, Name: "p", Mode: unix.S_IFIFO | 0o600, Time: 7e9})
		apply(t, tr, replication.Op{Kind: replication.Write, ID: 3, Off: 10, Data: []byte("hello"), Time: 8e9})
		apply(t, tr, replication.Op{Kind: replication.Link, ID: 3, Parent: 1, Name: "g", Time: 9e9})
		id, s, err := tr.Lookup(1, "g")
		if err != nil || id != 3 || s.Size != 15 || s.Nlink != 2 || s.Mtime != 8e9 || s.Mode != unix.S_IFREG|0o644 || s.GID != 0 {
			t.Errorf("g: id %d, %+v, %v", id, s, err)
		}
		if id, s, err := tr.Lookup(1, "d"); err != nil || id != 2 || s.Mode != unix.S_IFDIR|0o2775 || s.UID != 7 || s.GID != 8 || s.Mtime != 7e9 {
			t.Errorf("d: id %d, %+v, %v", id, s, err)
		}
		if to, err := tr.Readlink(4); err != nil || to != "/etc/passwd" {
			t.Errorf("link to %q, %v", to, err)
		}
		f, err := tr.OpenFile(3, unix.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := make([]byte, 5)
		if _, err := f.ReadAt(b, 10); err != nil || string(b) != "hello" {
			t.Errorf("read %q, %v", b, err)
		}
		es, err := tr.ReadDir(2, 0, 100)
		if err != nil || len(es) != 3 {
			t.Errorf("%v, %v", es, err)
		}
		apply(t, tr, replication.Op{Kind: replication.Rename, ID: 3, Parent: 2, Name: "f", NewParent: 1, NewName: "h", Time: 10e9})
		apply(t, tr, replication.Op{Kind: replication.Unlink, ID: 3, Parent: 1, Name: "g", Time: 11e9})
		apply(t, tr, replication.Op{Kind: replication.Unlink, ID: 3, Parent: 1, Name: "h", Flags: replication.FlagOpen, Time: 12e9})
		if s, err := tr.Stat(3); err != nil || s.Nlink != 0 {
			t.Errorf("open without a name: %+v, %v", s, err)
		}
		if _, err := f.ReadAt(b, 10); err != nil || string(b) != "hello" {
			t.Errorf("read %q, %v", b, err)
		}
		apply(t, tr, replication.Op{Kind: replication.Forget, ID: 3, Time: 13e9})
		if _, err := tr.Stat(3); !errors.Is(err, syscall.ESTALE) {
			t.Errorf("a forgotten file: %v", err)
		}
		if _, err := tr.Apply(&replication.Op{Kind: replication.Unlink, ID: 3, Parent: 1, Name: "h"}); !errors.Is(err, ErrDiverged) {
			t.Errorf("an operation that does not fit: %v", err)
		}
		if err := tr.Sync(); err != nil {
			t.Error(err)
		}
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
		again := openTree(t, filepath.Join(disk, "v"), Options{})
		if again.MaxID() != 5 || again.Scanned().Inodes != 4 {
			t.Errorf("after a restart: highest id %d, %+v", again.MaxID(), again.Scanned())
		}
		if _, s, err := again.Lookup(1, "d"); err != nil || s.Mtime != 10e9 {
			t.Errorf("after a restart: %+v, %v", s, err)
		}
		again.Close()
	})
}
