package stream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/resync"
	"github.com/hanode/hanode/replication/stream/replica"
	"github.com/hanode/hanode/replication/tree"
)

// realTree gives a node a backing directory instead of one in memory.
func realTree(t *testing.T, n *node) *tree.Tree {
	t.Helper()
	dir, err := os.MkdirTemp("", "hanode-stream-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := tree.Make(dir); err != nil {
		t.Skipf("no real tree here: %v", err)
	}
	tr, err := tree.Open(dir, tree.Options{})
	if err != nil {
		t.Skipf("no real tree here: %v", err)
	}
	t.Cleanup(func() { tr.Close() })
	r := &resync.Volumes{Trees: []*tree.Tree{tr}}
	n.tweak = func(c *Config) {
		c.Volumes = []Volume{{"v1", replica.Sync, tr}}
		c.Resync = r
		c.SetAside = func(from, to uint64) error {
			_, err := resync.SetAside(context.Background(), resync.AsideOptions{Dir: filepath.Join(dir, "divergent"), Journal: c.Journal, From: from, To: to,
				Trees: r.Trees, Names: []string{"v1"}, Now: time.Now(), Why: "the other node was granted the service"})
			return err
		}
	}
	return tr
}

// carry does with an operation what the file system does.
func carry(n *node, tr *tree.Tree, op replication.Op) error {
	l := n.s.Log(1)
	op.Time = time.Now().UnixNano()
	seq, err := l.Submit(&op)
	if err != nil {
		return err
	}
	if err := l.Wait(seq); err != nil {
		return err
	}
	_, err = tr.Apply(&op)
	l.Done(seq, err)
	return err
}

// look is everything of a tree that must be equal.
func look(t *testing.T, tr *tree.Tree) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := tr.Walk(context.Background(), func(d tree.Dir) error {
		for _, e := range d.Entries {
			s, err := tr.Stat(e.ID)
			if err != nil {
				return err
			}
			text := fmt.Sprintf("%x %o %d:%d %d %d", uint64(e.ID), s.Mode, s.UID, s.GID, s.Nlink, s.Mtime)
			if e.Type == unix.S_IFREG {
				f, err := tr.OpenFile(e.ID, unix.O_RDONLY)
				if err != nil {
					return err
				}
				b := make([]byte, s.Size)
				if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
					return err
				}
				f.Close()
				text += fmt.Sprintf(" %x", bytes.TrimRight(b, "\x00"))
			}
			out[d.Path+"/"+e.Name] = text
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestARealTreeIsMadeAnewWhileFilesMove: journal, stream, tree and resync together, with renames across directories during the walk.
func TestARealTreeIsMadeAnewWhileFilesMove(t *testing.T) {
	g := newGroup(t, 2)
	var trees []*tree.Tree
	for _, n := range g.nodes {
		n.stop()
		trees = append(trees, realTree(t, n))
	}
	a, b := g.nodes[0], g.nodes[1]
	a.start()
	g.lead(1)
	do := func(op replication.Op) {
		t.Helper()
		if err := carry(a, trees[0], op); err != nil {
			t.Fatalf("%+v: %v", op, err)
		}
	}
	const dirs, files = 8, 200
	for d := range dirs {
		do(replication.Op{Kind: replication.Create, ID: replication.FileID(10 + d), Parent: 1, Name: fmt.Sprint("d", d), Mode: unix.S_IFDIR | 0o755})
	}
	at := make([]int, files)
	for f := range files {
		at[f] = f % dirs
		do(replication.Op{Kind: replication.Create, ID: replication.FileID(100 + f), Parent: replication.FileID(10 + at[f]), Name: fmt.Sprint("f", f), Mode: unix.S_IFREG | 0o600})
		do(replication.Op{Kind: replication.Write, ID: replication.FileID(100 + f), Data: []byte(strings.Repeat(fmt.Sprint(f, ";"), 1000))})
	}
	big := bytes.Repeat([]byte("big"), 300_000)
	for i := range 90 { // the journal keeps 32 MiB
		do(replication.Op{Kind: replication.Write, ID: replication.FileID(100 + i%3), Off: 10000, Data: big})
	}
	eventually(t, "the journal lets go of its beginning", func() bool { return a.j.First() > 1 })
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(1, 2))
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			f, to := rnd.IntN(files), rnd.IntN(dirs)
			op := replication.Op{Kind: replication.Write, ID: replication.FileID(100 + f), Off: int64(rnd.IntN(5000)), Data: []byte(fmt.Sprint("written later ", n))}
			if to != at[f] && n%2 == 0 {
				op = replication.Op{Kind: replication.Rename, ID: replication.FileID(100 + f), Parent: replication.FileID(10 + at[f]), Name: fmt.Sprint("f", f), NewParent: replication.FileID(10 + to), NewName: fmt.Sprint("f", f)}
				at[f] = to
			}
			if err := carry(a, trees[0], op); err != nil {
				t.Error(err)
				return
			}
		}
	})
	b.start()
	g.awaitInSync(1, 2)
	close(stop)
	wg.Wait()
	want := look(t, trees[0])
	eventually(t, "the trees are equal", func() bool { return maps.Equal(want, look(t, trees[1])) })
	if b.s.Status().Inconsistent {
		t.Error("still marked inconsistent")
	}
	g.lead(2)
	if err := carry(b, trees[1], replication.Op{Kind: replication.Create, ID: 5000, Parent: 1, Name: "after the takeover", Mode: unix.S_IFREG | 0o600}); err != nil {
		t.Error(err)
	}
}
