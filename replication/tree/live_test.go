package tree

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

func descriptors(t *testing.T) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(es)
}

// What a client or an NFS server holds on to, the id, stays good through renames of the file and of what it lies in, and after its last name is gone.
func TestAnIDIsGoodWhateverBecomesOfTheNames(t *testing.T) {
	onEach(t, func(t *testing.T, disk string) {
		dir := filepath.Join(disk, "v")
		tr := newTree(t, dir)
		must(t, tr.Settle())
		apply(t, tr, newDir(2, 1, "d"))
		apply(t, tr, newDir(3, 2, "e"))
		apply(t, tr, newFile(4, 3, "f"))
		apply(t, tr, writeOp(4, "data"))
		f, err := tr.OpenFile(4, unix.O_RDONLY)
		must(t, err)
		defer f.Close()
		check := func(what string) {
			t.Helper()
			b := make([]byte, 4)
			if _, err := f.ReadAt(b, 0); err != nil || string(b) != "data" {
				t.Errorf("%s: %q, %v", what, b, err)
			}
			if s, err := tr.Stat(4); err != nil || s.Size != 4 {
				t.Errorf("%s: %+v, %v", what, s, err)
			}
		}
		first, _ := tr.index.get(4)
		apply(t, tr, renameOp(4, 3, "f", 1, "g", 0))
		apply(t, tr, renameOp(2, 1, "d", 1, "h", 0))
		apply(t, tr, renameOp(4, 1, "g", 3, "f", 0))
		if now, _ := tr.index.get(4); now != first {
			t.Error("the file handle has changed")
		}
		must(t, tr.FlushTimes())
		tr.cache.closeAll()
		check("moved, and closed meanwhile")
		if p, err := tr.Parent(3); err != nil || p != 2 {
			t.Errorf("parent %d, %v", p, err)
		}
		apply(t, tr, replication.Op{Kind: replication.Unlink, ID: 4, Parent: 3, Name: "f", Flags: replication.FlagOpen})
		must(t, tr.FlushTimes())
		tr.cache.closeAll()
		check("without a name, and closed meanwhile")
		must(t, tr.Close())
		tr = openTree(t, dir, Options{})
		if ids := tr.InLimbo(); len(ids) != 1 || ids[0] != 4 {
			t.Errorf("in limbo after a restart: %v", ids)
		}
		f.t = tr
		check("without a name, after a restart")
		must(t, tr.PurgeLimbo())
		if _, err := tr.Stat(4); !errors.Is(err, unix.ESTALE) {
			t.Errorf("after promotion: %v", err)
		}
		must(t, tr.Close())
	})
}

func TestManyOpenFilesCostFewDescriptors(t *testing.T) {
	onEach(t, func(t *testing.T, disk string) {
		dir := filepath.Join(disk, "v")
		must(t, Make(dir))
		tr := openTree(t, dir, Options{MaxOpen: 64})
		defer tr.Close()
		must(t, tr.Settle())
		before := descriptors(t)
		var open []*File
		for id := FileID(2); id < 2000; id++ {
			apply(t, tr, newFile(id, 1, fmt.Sprint(id)))
			apply(t, tr, writeOp(id, fmt.Sprint(id)))
			f, err := tr.OpenFile(id, unix.O_RDONLY)
			must(t, err)
			open = append(open, f)
		}
		for _, f := range open {
			b := make([]byte, len(fmt.Sprint(f.ID())))
			if _, err := f.ReadAt(b, 0); err != nil || string(b) != fmt.Sprint(f.ID()) {
				t.Fatalf("file %d: %q, %v", f.ID(), b, err)
			}
		}
		if now := descriptors(t); now > before+64+16 {
			t.Errorf("%d descriptors for %d open files", now-before, len(open))
		}
		if n := int(tr.cache.open.Load()); n > descriptors(t) || n < 1 {
			t.Errorf("%d descriptors are counted", n)
		}
		// Those that were asked for a descriptor keep it.
		fd, err := open[0].Fd()
		must(t, err)
		for _, f := range open[1:] {
			f.ReadAt(make([]byte, 1), 0)
		}
		b := make([]byte, 1)
		if _, err := unix.Pread(fd, b, 0); err != nil || b[0] != '2' {
			t.Errorf("a pinned descriptor: %q, %v", b, err)
		}
		for _, f := range open {
			f.Close()
		}
	})
}

func TestWhenDescriptorsRunOutSomeAreClosed(t *testing.T) {
	disk := mountTmpfs(t)
	dir := filepath.Join(disk, "v")
	must(t, Make(dir))
	tr := openTree(t, dir, Options{MaxOpen: 1 << 16})
	defer tr.Close()
	must(t, tr.Settle())
	var lim unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &lim))
	low := lim
	low.Cur = uint64(descriptors(t) + 30)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
	for id := FileID(2); id < 300; id++ {
		if _, err := tr.Apply(&replication.Op{Kind: replication.Create, ID: id, Parent: 1, Name: fmt.Sprint(id), Mode: unix.S_IFREG | 0o600}); err != nil {
			t.Fatalf("create: %v", err)
		}
	}
	for id := FileID(2); id < 300; id++ {
		if _, err := tr.Stat(id); err != nil {
			t.Fatalf("stat: %v", err)
		}
		if es, err := tr.ReadDir(1, 0, 3); err != nil || len(es) != 3 {
			t.Fatalf("list: %v, %v", es, err)
		}
	}
}

// shrunk is a small disk: 100 MiB when the volume is made, size later.
func shrunk(t *testing.T, size string) *Tree {
	t.Helper()
	disk := mounted(t, "tmpfs", func(dir string) error { return unix.Mount("hanode-test", dir, "tmpfs", 0, "size=100m,mode=0700") })
	dir := filepath.Join(disk, "v")
	must(t, Make(dir))
	must(t, unix.Mount("", disk, "", unix.MS_REMOUNT, "size="+size))
	tr := openTree(t, dir, Options{Low: 4 << 20, Floor: 1 << 20})
	t.Cleanup(func() { tr.Close() })
	must(t, tr.Settle())
	return tr
}

// Whatever Reserve agrees to can be applied; what does not fit is refused before it is applied; and a full disk can be emptied.
func TestAFullDiskRefusesBeforeAnythingIsReplicated(t *testing.T) {
	tr := shrunk(t, "12m")
	next, refused := FileID(1), 0
	block := bytes.Repeat([]byte("x"), 64<<10)
	for refused < 50 {
		next++
		if next > 10000 {
			t.Fatal("the disk does not fill up")
		}
		op := newFile(next, 1, fmt.Sprint(next))
		if err := tr.Reserve(&op); err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			refused++
			continue
		}
		apply(t, tr, op)
		for off := range 4 {
			w := replication.Op{Kind: replication.Write, ID: next, Off: int64(off) << 16, Data: block}
			if err := tr.Reserve(&w); err != nil {
				if !errors.Is(err, unix.ENOSPC) {
					t.Fatal(err)
				}
				refused++
				break
			}
			apply(t, tr, w)
		}
	}
	over := replication.Op{Kind: replication.Write, ID: 2, Data: block}
	if err := tr.Reserve(&over); err != nil {
		t.Errorf("to write over what is there: %v", err)
	}
	apply(t, tr, over)
	var fs unix.Statfs_t
	must(t, unix.Fstatfs(tr.rootfd, &fs))
	if free := int64(fs.Bavail) * fs.Bsize; free > 4<<20 {
		t.Errorf("refused with %d bytes free", free)
	}
	es, err := tr.ReadDir(1, 0, 1<<20)
	must(t, err)
	for _, e := range es {
		op := unlinkOp(e.ID, 1, e.Name)
		must(t, tr.Reserve(&op))
		apply(t, tr, op)
	}
	op := newFile(20000, 1, "again")
	must(t, tr.Reserve(&op))
	apply(t, tr, op)
}

// An operation that failed on the disk may be given again together with those before it.
func TestAfterAFailureOperationsMayBeRepeated(t *testing.T) {
	tr := shrunk(t, "3m")
	ops := []replication.Op{newFile(2, 1, "a"), renameOp(2, 1, "a", 1, "b", 0), newFile(3, 1, "c")}
	for _, op := range ops {
		apply(t, tr, op)
	}
	big := replication.Op{Kind: replication.Write, ID: 3, Data: make([]byte, 1<<20)}
	var err error
	for i := 0; err == nil && i < 10; i++ {
		big.Off = int64(i) << 20
		_, err = tr.Apply(&big)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("a full disk: %v", err)
	}
	for _, op := range ops {
		apply(t, tr, op)
	}
	must(t, tr.Settle())
	if id, _, err := tr.Lookup(1, "b"); err != nil || id != 2 {
		t.Errorf("b: %d, %v", id, err)
	}
}

func TestReserveKnowsWhatTheDiskRefuses(t *testing.T) {
	onEach(t, func(t *testing.T, disk string) {
		tr := newTree(t, filepath.Join(disk, "v"))
		defer tr.Close()
		must(t, tr.Settle())
		apply(t, tr, newFile(2, 1, "f"))
		apply(t, tr, replication.Op{Kind: replication.Create, ID: 3, Parent: 1, Name: "l", Mode: unix.S_IFLNK | 0o777, Data: []byte("x")})
		for _, c := range []struct {
			op   replication.Op
			want []error // nil: it fits
		}{
			{replication.Op{Kind: replication.Write, ID: 2, Off: 1 << 62, Data: []byte("x")}, []error{unix.EFBIG, nil}},
			{replication.Op{Kind: replication.SetAttr, ID: 2, Valid: replication.ValidSize, Len: 1<<63 - 1}, []error{unix.EFBIG, nil}},
			{replication.Op{Kind: replication.Fallocate, ID: 2, Flags: unix.FALLOC_FL_COLLAPSE_RANGE, Len: 4096}, []error{unix.EOPNOTSUPP}},
			{replication.Op{Kind: replication.Fallocate, ID: 2, Flags: unix.FALLOC_FL_INSERT_RANGE, Len: 4096}, []error{unix.EOPNOTSUPP}},
			{replication.Op{Kind: replication.Fallocate, ID: 2, Len: 1 << 40}, []error{unix.ENOSPC}},
			{replication.Op{Kind: replication.Fallocate, ID: 2, Len: 1 << 20}, nil},
			{replication.Op{Kind: replication.SetXattr, ID: 2, Name: "user.k", Data: []byte("v")}, nil},
			{replication.Op{Kind: replication.SetXattr, ID: 2, Name: "user.k", Data: make([]byte, 1<<16)}, []error{unix.ENOSPC, unix.E2BIG, nil}},
			{replication.Op{Kind: replication.SetXattr, ID: 2, Name: "nonsense.k", Data: []byte("v")}, []error{unix.EOPNOTSUPP}},
			{replication.Op{Kind: replication.SetXattr, ID: 2, Name: "trusted.hanode.id", Data: []byte("12345678")}, []error{unix.EPERM}},
			{replication.Op{Kind: replication.SetXattr, ID: 3, Name: "user.k", Data: []byte("v")}, []error{unix.EPERM}},
			{replication.Op{Kind: replication.SetXattr, ID: 3, Name: "trusted.k", Data: []byte("v")}, nil},
			{replication.Op{Kind: replication.SetXattr, ID: 2, Name: aclDefault, Data: acl([3]uint32{aclUserObj, 7, noOne})}, []error{unix.EACCES}},
		} {
			err := tr.Reserve(&c.op)
			ok := err == nil && c.want == nil
			for _, w := range c.want {
				ok = ok || errors.Is(err, w)
			}
			if !ok {
				t.Errorf("%s %s: %v, want one of %v", opText(&c.op), c.op.Name, err, c.want)
			}
			_, applied := tr.Apply(&c.op)
			if (err == nil) != (applied == nil) {
				t.Errorf("%s %s: Reserve says %v, Apply %v", opText(&c.op), c.op.Name, err, applied)
			}
			must(t, tr.Settle())
		}
		if names, err := tr.Listxattr(2); err != nil || len(names) == 0 {
			t.Errorf("attributes %v, %v", names, err)
		}
		if _, err := tr.Getxattr(2, idXattr, nil); !errors.Is(err, unix.ENODATA) {
			t.Errorf("the file id is shown: %v", err)
		}
		if es, err := namesIn(tr.limbofd); err != nil || len(es) != 0 {
			t.Errorf("left in limbo: %v, %v", es, err)
		}
	})
}

// Many goroutines change and read a tree that may keep few descriptors; the outcome is that of their operations.
func TestConcurrentChangesAndReads(t *testing.T) {
	onEach(t, func(t *testing.T, disk string) {
		dir := filepath.Join(disk, "v")
		must(t, Make(dir))
		tr := openTree(t, dir, Options{MaxOpen: 16})
		defer tr.Close()
		must(t, tr.Settle())
		m := newModel()
		const workers, rounds = 6, 150
		models := make([]*model, workers)
		for i := range workers {
			op := newDir(FileID(i+2), 1, fmt.Sprint(i))
			op.Time = int64(i+1) * 1e9
			apply(t, tr, op)
			m.do(&op)
		}
		must(t, tr.FlushTimes())
		stop := make(chan struct{})
		var readers, writers sync.WaitGroup
		readers.Add(1)
		go func() {
			defer readers.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				for i := range workers {
					es, err := tr.ReadDir(FileID(i+2), 0, 100)
					if err != nil {
						t.Errorf("list: %v", err)
						return
					}
					for _, e := range es {
						if id, s, err := tr.Lookup(FileID(i+2), e.Name); err == nil && (id == 0 || s.Nlink == 0) {
							t.Errorf("look up %s: %d, %+v", e.Name, id, s)
						}
						if f, err := tr.OpenFile(e.ID, unix.O_RDONLY); err == nil {
							f.ReadAt(make([]byte, 4), 0)
							f.Close()
						}
					}
				}
				if err := tr.FlushTimes(); err != nil {
					t.Errorf("flush: %v", err)
				}
			}
		}()
		for i := range workers {
			// Each has a directory of its own, as the volume applies operations on one directory in order.
			models[i] = &model{in: map[FileID]*mnode{}, ent: map[FileID]map[string]FileID{}}
			home := FileID(i + 2)
			models[i].in[home], models[i].ent[home] = m.in[home], map[string]FileID{}
			writers.Add(1)
			go func() {
				defer writers.Done()
				rnd := rand.New(rand.NewPCG(uint64(i), 5))
				next := FileID(1000 * (i + 1))
				for k := range rounds {
					all := models[i].candidates(next, int64(100+k)*1e9)
					op := all[rnd.IntN(len(all))]
					if op.Kind == replication.Create {
						next++
					}
					if _, err := tr.Apply(&op); err != nil {
						t.Errorf("apply %s: %v", opText(&op), err)
						return
					}
					models[i].do(&op)
				}
			}()
		}
		writers.Wait()
		close(stop)
		readers.Wait()
		for i := range workers {
			for id, n := range models[i].in {
				m.in[id] = n
			}
			for id, es := range models[i].ent {
				m.ent[id] = es
			}
		}
		if got, want := treeText(t, tr), m.text(); got != want {
			t.Errorf("the tree differs:\n%s", difference(got, want))
		}
	})
}

// A listing that goes on by cookies shows once whatever is there all the time, while other names come and go.
func TestCookiesStayGoodWhileNamesComeAndGo(t *testing.T) {
	onEach(t, func(t *testing.T, disk string) {
		tr := newTree(t, filepath.Join(disk, "v"))
		defer tr.Close()
		must(t, tr.Settle())
		next := FileID(1)
		add := func(name string) {
			next++
			apply(t, tr, newFile(next, 1, name))
		}
		for i := range 3000 {
			add(fmt.Sprintf("stay%04d", i))
			add(fmt.Sprintf("go%04d", i))
		}
		seen := map[string]int{}
		cookie, k := uint64(0), 0
		for {
			es, err := tr.ReadDir(1, cookie, 37)
			must(t, err)
			if len(es) == 0 {
				break
			}
			for _, e := range es {
				seen[e.Name]++
				cookie = e.Cookie
			}
			for range 10 {
				if k < 3000 {
					name := fmt.Sprintf("go%04d", k)
					id, _, err := tr.Lookup(1, name)
					must(t, err)
					apply(t, tr, unlinkOp(id, 1, name))
					add(fmt.Sprintf("new%04d", k))
					k++
				}
			}
		}
		for i := range 3000 {
			if n := seen[fmt.Sprintf("stay%04d", i)]; n != 1 {
				t.Fatalf("stay%04d was listed %d times", i, n)
			}
		}
		for name, n := range seen {
			if n > 1 {
				t.Errorf("%s was listed %d times", name, n)
			}
		}
	})
}
