package resync

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/journal/disk"
)

// diverged is a tree and its journal; the operations from 4 on are nobody else's.
func diverged(t *testing.T) (opt AsideOptions, tr *Tree, j *journal.Journal) {
	dir := scratch(t)
	tr = newTree(t, dir+"/a")
	must(t, tr.Settle())
	j, _, err := journal.Open(dir+"/a/journal", disk.OS{}, journal.Limits{Cluster: "c", Service: "s", Size: 16 << 20})
	must(t, err)
	t.Cleanup(func() { j.Close() })
	c := replication.Create
	seq := uint64(0)
	for _, op := range []replication.Op{
		{Kind: c, ID: 2, Parent: 1, Name: "d", Mode: dirMode},
		{Kind: c, ID: 3, Parent: 2, Name: "ledger", Mode: unix.S_IFREG | 0o640, UID: 11, GID: 12},
		{Kind: replication.Write, ID: 3, Data: []byte("before the fork\n")},
		{Kind: replication.Write, ID: 3, Off: 16, Data: []byte("after it\n")},
		{Kind: c, ID: 4, Parent: 1, Name: "new", Mode: fileMode},
		{Kind: replication.Write, ID: 4, Off: 1 << 30, Data: []byte("far away")},
		{Kind: replication.Rename, ID: 4, Parent: 1, Name: "new", NewParent: 2, NewName: "renamed"},
		{Kind: c, ID: 5, Parent: 1, Name: "short-lived", Mode: fileMode},
		{Kind: replication.Unlink, ID: 5, Parent: 1, Name: "short-lived"},
		{Kind: c, ID: 6, Parent: 1, Name: "link", Mode: unix.S_IFLNK | 0o777, Data: []byte("d")},
	} {
		seq++
		op.Volume, op.Time = 1, 1e18+int64(seq)
		pos := cluster.Position{Epoch: 7, Gen: 9, Seq: seq}
		b, err := replication.AppendRecord(nil, pos, &op)
		must(t, err, j.Append(pos, b))
		do(t, tr, op)
	}
	opt = AsideOptions{Dir: dir + "/a/divergent", Journal: j, From: 4, To: 10, Trees: []*Tree{tr}, Names: []string{"data"}, Now: time.Unix(1e9, 0), Why: "a came back"}
	return opt, tr, j
}

func TestWhatNobodyElseHasIsKeptListedComparedRestoredAndDiscarded(t *testing.T) {
	opt, tr, j := diverged(t)
	s, err := SetAside(context.Background(), opt)
	must(t, err)
	if s.Name != "7-9-20010909T014640.000Z" || s.Operations != 7 || s.From.Seq != 4 || s.To.Seq != 10 || len(s.Files) != 4 || s.Omitted != 0 {
		t.Errorf("%+v", s)
	}
	if fi, err := os.Stat(filepath.Join(opt.Dir, s.Name)); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	sets, err := Sets(opt.Dir)
	if err != nil || len(sets) != 1 || sets[0].Why != "a came back" {
		t.Errorf("%+v, %v", sets, err)
	}
	again, err := SetAside(context.Background(), opt) // as after a crash behind it
	if err != nil || again.Name != s.Name {
		t.Errorf("again: %+v, %v", again, err)
	}
	must(t, j.Cut(3))
	b, err := os.ReadFile(filepath.Join(opt.Dir, s.Name, "journal"))
	must(t, err)
	n := 0
	for ; len(b) > 0; n++ {
		var op replication.Op
		h, err := replication.Parse(b, &op)
		must(t, err)
		b = b[h.Len:]
	}
	if n != 7 {
		t.Errorf("%d records", n)
	}
	// The tree is rolled back.
	do(t, tr, replication.Op{Kind: replication.SetAttr, ID: 3, Valid: replication.ValidSize, Len: 16}, replication.Op{Kind: replication.Unlink, ID: 4, Parent: 2, Name: "renamed"})
	cs, err := Diff(context.Background(), opt.Dir, s.Name, opt.Trees)
	must(t, err)
	for _, c := range cs {
		want := map[FileID]string{3: "content differs: 25 bytes then, 16 now", 4: "gone", 5: "gone, as it was", 6: "equal"}[c.ID]
		if c.Now != want || c.ID == 3 && c.First != 16 {
			t.Errorf("%x %v: %q (%d), want %q", uint64(c.ID), c.Paths, c.Now, c.First, want)
		}
	}
	to := opt.Dir + "-restored"
	for which, content := range map[string]string{"d/ledger": "before the fork\nafter it\n", "data:d/ledger": "before the fork\nafter it\n", "3": "before the fork\nafter it\n"} {
		_, err := Restore(context.Background(), opt.Dir, s.Name, which, to)
		must(t, err)
		got, err := os.ReadFile(to)
		must(t, err)
		fi, err := os.Stat(to)
		must(t, err)
		if st := fi.Sys().(*syscall.Stat_t); string(got) != content || fi.Mode().Perm() != 0o640 || st.Uid != 11 || fi.ModTime().UnixNano() != 1e18+4 {
			t.Errorf("%s: %q, %v, %v", which, got, fi.Mode(), fi.ModTime())
		}
		if _, err := Restore(context.Background(), opt.Dir, s.Name, which, to); err == nil || !strings.Contains(err.Error(), "not overwritten") {
			t.Errorf("over a file that is there: %v", err)
		}
		must(t, os.Remove(to))
	}
	_, err = Restore(context.Background(), opt.Dir, s.Name, "d/renamed", to)
	must(t, err)
	fi, err := os.Stat(to)
	must(t, err)
	if st := fi.Sys().(*syscall.Stat_t); fi.Size() != 1<<30+8 || st.Blocks*512 > 1<<20 {
		t.Errorf("a hole was filled: %d bytes, %d blocks", fi.Size(), st.Blocks)
	}
	for _, which := range []string{"link", "nothing"} {
		if _, err := Restore(context.Background(), opt.Dir, s.Name, which, to+"2"); err == nil {
			t.Errorf("%s was restored", which)
		}
	}
	for _, name := range []string{"..", "", "../a", "x", ".making"} {
		if err := Discard(opt.Dir, name); err == nil {
			t.Errorf("%q was discarded", name)
		}
	}
	must(t, Discard(opt.Dir, s.Name))
	if sets, err := Sets(opt.Dir); err != nil || len(sets) != 0 {
		t.Errorf("%+v, %v", sets, err)
	}
}

func TestContentBeyondTheBoundIsListedAsOmitted(t *testing.T) {
	opt, _, _ := diverged(t)
	opt.Most = 30
	s, err := SetAside(context.Background(), opt)
	must(t, err)
	if s.Omitted != 1 || s.Records == 0 {
		t.Errorf("%+v", s)
	}
	if _, err := Restore(context.Background(), opt.Dir, s.Name, "d/renamed", opt.Dir+"-x"); err == nil || !strings.Contains(err.Error(), "more than 30") {
		t.Error(err)
	}
}

func TestADamagedListingIsNotLeftOut(t *testing.T) {
	opt, _, _ := diverged(t)
	s, err := SetAside(context.Background(), opt)
	must(t, err)
	file := filepath.Join(opt.Dir, s.Name, "listing")
	b, err := os.ReadFile(file)
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(file, b, 0o600))
	if _, err := Sets(opt.Dir); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Error(err)
	}
}

func TestASetThatCannotBeCompletedIsNone(t *testing.T) {
	opt, tr, j := diverged(t)
	small := t.TempDir()
	must(t, unix.Mount("hanode-test", small, "tmpfs", 0, "size=64k,mode=0700"))
	t.Cleanup(func() { unix.Unmount(small, 0) })
	pos := cluster.Position{Epoch: 7, Gen: 9, Seq: 11}
	op := replication.Op{Kind: replication.Write, Volume: 1, ID: 3, Data: bytes.Repeat([]byte("x"), 100000)}
	b, err := replication.AppendRecord(nil, pos, &op)
	must(t, err, j.Append(pos, b))
	do(t, tr, op)
	opt.To, opt.Dir = 11, small+"/divergent"
	if _, err := SetAside(context.Background(), opt); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "They stay where they are") {
		t.Error(err)
	}
	if sets, err := Sets(opt.Dir); err != nil || len(sets) != 0 {
		t.Errorf("%+v, %v", sets, err)
	}
	must(t, unix.Mount("", small, "", unix.MS_REMOUNT, "size=4m"))
	s, err := SetAside(context.Background(), opt)
	if err != nil || s.Operations != 8 {
		t.Errorf("with room: %+v, %v", s, err)
	}
}
