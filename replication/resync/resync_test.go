package resync

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

func TestAnEmptyFollowerGetsEverything(t *testing.T) {
	disk := scratch(t)
	from, to := newTree(t, disk+"/a"), newTree(t, disk+"/b")
	everything(t, from)
	r, err := resync(t, from, to, SourceOptions{}, TargetOptions{Full: true})
	must(t, err, to.Settle())
	equal(t, from, to)
	t.Logf("%+v", r)
	a, err := from.Stat(6)
	must(t, err)
	if b, err := to.Stat(6); err != nil || b.Blocks > a.Blocks {
		t.Errorf("the sparse file has %d blocks, %d on the source (%v)", b.Blocks, a.Blocks, err)
	}
	again, err := resync(t, from, to, SourceOptions{}, TargetOptions{})
	must(t, err, to.Settle())
	if again.Created+again.Placed+again.Taken+again.Changed+again.Files != 0 {
		t.Errorf("nothing has changed: %+v", again)
	}
	full, err := resync(t, from, to, SourceOptions{}, TargetOptions{Full: true})
	must(t, err, to.Settle())
	if full.Written != 0 || full.Created+full.Placed+full.Taken+full.Changed != 0 || full.Files == 0 {
		t.Errorf("nothing has changed: %+v", full)
	}
	equal(t, from, to)
}

// both is a source with everything and an equal follower.
func both(t *testing.T) (from, to *Tree) {
	disk := scratch(t)
	from, to = newTree(t, disk+"/a"), newTree(t, disk+"/b")
	everything(t, from)
	_, err := resync(t, from, to, SourceOptions{}, TargetOptions{})
	must(t, err, to.Settle())
	return from, to
}

func verify(t *testing.T, from, to *Tree, so SourceOptions, vo VerifyOptions) Report {
	t.Helper()
	a, b := pipe()
	so.Volume, vo.Volume = 1, 1
	src := make(chan error, 1)
	go func() { src <- Source(context.Background(), a, from, so) }()
	r, err := Verify(context.Background(), b, to, vo)
	must(t, err, <-src)
	return r
}

func TestVerifyFindsEveryKindOfDifference(t *testing.T) {
	from, to := both(t)
	if r := verify(t, from, to, SourceOptions{}, VerifyOptions{}); len(r.Differences)+r.More+r.Undecided != 0 || r.Inodes < 700 {
		t.Fatalf("equal trees: %+v", r)
	}
	op := func(k replication.Kind, id FileID, o replication.Op) replication.Op { o.Kind, o.ID = k, id; return o }
	for _, c := range []struct {
		what, path, says string
		ops              []replication.Op
	}{
		{"one byte", "large", "content", []replication.Op{{Kind: replication.Write, ID: 5, Off: 1234567, Data: []byte{255}}}},
		{"a byte in a hole", "sparse", "content", []replication.Op{{Kind: replication.Write, ID: 6, Off: 1 << 39, Data: []byte{255}}}},
		{"mode", "dir/pipe", "mode", []replication.Op{op(replication.SetAttr, 8, replication.Op{Valid: replication.ValidMode, Mode: 0o777})}},
		{"owner of a link", "dir/link", "owner", []replication.Op{op(replication.SetAttr, 7, replication.Op{Valid: replication.ValidUID, UID: 9})}},
		{"mtime", "dir/empty", "mtime", []replication.Op{op(replication.SetAttr, 3, replication.Op{Valid: replication.ValidMtime, Time: 5})}},
		{"an attribute of a directory", "dir", "extended attributes", []replication.Op{op(replication.SetXattr, 2, replication.Op{Name: "user.dir", Data: []byte("x")})}},
		{"size", "deep/deeper/leaf", "size", []replication.Op{op(replication.SetAttr, 13, replication.Op{Valid: replication.ValidSize, Len: 3})}},
		{"a name more", "dir/more", "only here", []replication.Op{op(replication.Create, 5000, replication.Op{Parent: 2, Name: "more", Mode: fileMode})}},
		{"a name less", "dir/sock", "missing here", []replication.Op{op(replication.Unlink, 10, replication.Op{Parent: 2, Name: "sock"})}},
		{"another file under the name", "dir/null", "file id", []replication.Op{op(replication.Unlink, 9, replication.Op{Parent: 2, Name: "null"}),
			op(replication.Create, 5001, replication.Op{Parent: 2, Name: "null", Mode: unix.S_IFCHR | 0o666, Rdev: uint32(unix.Mkdev(1, 3))})}},
		{"a link more", "hard", "link count", []replication.Op{op(replication.Link, 4, replication.Op{Parent: 1, Name: "hard2"})}},
	} {
		t.Run(c.what, func(t *testing.T) {
			do(t, to, c.ops...)
			r := verify(t, from, to, SourceOptions{}, VerifyOptions{})
			found := false
			for _, d := range r.Differences {
				found = found || d.Path == c.path && strings.Contains(d.What, c.says)
			}
			if !found || r.Undecided > 0 {
				t.Errorf("%s of %s: %+v", c.says, c.path, r)
			}
			_, err := resync(t, from, to, SourceOptions{}, TargetOptions{Full: true})
			must(t, err, to.Settle())
			if r := verify(t, from, to, SourceOptions{}, VerifyOptions{}); len(r.Differences) != 0 {
				t.Errorf("after a resync: %+v", r.Differences)
			}
			equal(t, from, to)
		})
	}
}

// TestVerifyReportsNothingWhileTheCopyOnlyLagsBehind: the source changes all the time, and the follower applies behind.
func TestVerifyReportsNothingWhileTheCopyOnlyLagsBehind(t *testing.T) {
	disk := scratch(t)
	h := &history{author: newAuthor(5), from: newTree(t, disk+"/a"), to: newTree(t, disk+"/b"), most: 1500}
	must(t, h.from.Settle(), h.to.Settle())
	for range 600 {
		op := h.author.write()
		do(t, h.from, op)
		do(t, h.to, op)
	}
	done := len(h.author.log)
	a, b := pipe()
	src := make(chan error, 1)
	position := func() uint64 {
		h.mu.Lock()
		defer h.mu.Unlock()
		return uint64(len(h.author.log))
	}
	go func() {
		src <- Source(context.Background(), &restless{a, h.happen}, h.from, SourceOptions{Volume: 1, Position: position})
	}()
	applied := func(_ context.Context, seq uint64) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		for ; done < int(seq); done++ {
			if _, err := h.to.Apply(&h.author.log[done]); err != nil {
				return err
			}
		}
		return nil
	}
	r, err := Verify(context.Background(), b, h.to, VerifyOptions{Volume: 1, Applied: applied})
	must(t, err, <-src, h.err)
	if len(r.Differences)+r.More != 0 {
		t.Errorf("%+v", r)
	}
	t.Logf("%+v; %d operations meanwhile", r, len(h.author.log)-600)
}

func TestFilesOfEqualIDSizeAndTimeAreTrustedOnlyInQuickMode(t *testing.T) {
	from, to := both(t)
	do(t, to, replication.Op{Kind: replication.Write, ID: 5, Off: 99, Data: []byte("zzz"), Time: 1e18 + 5})
	r, err := resync(t, from, to, SourceOptions{}, TargetOptions{})
	must(t, err)
	if r.Files != 0 {
		t.Errorf("quick: %+v", r)
	}
	r, err = resync(t, from, to, SourceOptions{}, TargetOptions{Full: true})
	must(t, err, to.Settle())
	if r.Written != blockSize {
		t.Errorf("full: %+v", r)
	}
	equal(t, from, to)
}

func TestACopyOfAnotherHistoryIsReplaced(t *testing.T) {
	disk := scratch(t)
	from, to := newTree(t, disk+"/a"), newTree(t, disk+"/b")
	everything(t, from)
	must(t, to.Settle())
	c := replication.Create
	do(t, to, // the same ids are other things
		replication.Op{Kind: c, ID: 5, Parent: 1, Name: "dir", Mode: dirMode},
		replication.Op{Kind: c, ID: 2, Parent: 5, Name: "a", Mode: fileMode},
		replication.Op{Kind: c, ID: 7, Parent: 5, Name: "link", Mode: unix.S_IFLNK | 0o777, Data: []byte("elsewhere")},
		replication.Op{Kind: c, ID: 9, Parent: 5, Name: "null", Mode: unix.S_IFCHR | 0o666, Rdev: uint32(unix.Mkdev(1, 5))},
		replication.Op{Kind: c, ID: 4, Parent: 5, Name: "small", Mode: fileMode},
		replication.Op{Kind: replication.Link, ID: 4, Parent: 1, Name: "other"},
		replication.Op{Kind: c, ID: 11, Parent: 5, Name: "x", Mode: fileMode},
		replication.Op{Kind: replication.Link, ID: 11, Parent: 5, Name: "y"},
	)
	_, err := resync(t, from, to, SourceOptions{}, TargetOptions{Full: true})
	must(t, err, to.Settle())
	equal(t, from, to)
}

func TestTheRateIsKept(t *testing.T) {
	from, to := both(t)
	start := time.Now()
	_, err := resync(t, from, to, SourceOptions{Rate: 8 << 20, Workers: 1}, TargetOptions{Full: true})
	must(t, err)
	if took := time.Since(start); took < 150*time.Millisecond { // 1.7 MiB in one file, and listings
		t.Errorf("1.7 MiB at 8 MiB/s took %v", took)
	}
}

func TestProgressIsTold(t *testing.T) {
	from, to := both(t)
	var last Progress
	_, err := resync(t, from, to, SourceOptions{}, TargetOptions{Full: true, Progress: func(p Progress) { last = p }})
	must(t, err)
	if !last.Walked || last.Bytes != last.BytesAll || last.BytesAll < 2<<40 || last.Percent() != 100 || last.Left() != 0 {
		t.Errorf("%+v, %d %%", last, last.Percent())
	}
	if p := (Progress{Inodes: 10, InodesAll: 20, Took: time.Second}); p.Percent() != 50 || p.Left().Round(time.Millisecond) != time.Second {
		t.Errorf("half: %d %%, %v left", p.Percent(), p.Left())
	}
}

// TestWhateverCutsTheChannelBothSidesEnd: an error, and no goroutine that stays.
func TestWhateverCutsTheChannelBothSidesEnd(t *testing.T) {
	disk := scratch(t)
	from := newTree(t, disk+"/a")
	everything(t, from)
	for n := 1; n < 60; n += 3 {
		to := newTree(t, fmt.Sprintf("%s/b%d", disk, n))
		a, b := pipe()
		left := n
		cut := &restless{a, func() {
			if left--; left == 0 {
				a.Close()
			}
		}}
		src := make(chan error, 1)
		go func() { src <- Source(context.Background(), cut, from, SourceOptions{Volume: 1}) }()
		_, err := Run(context.Background(), b, to, TargetOptions{Volume: 1})
		serr := <-src
		if left > 0 {
			must(t, err, serr)
			break
		}
		if err == nil || serr == nil {
			t.Fatalf("cut at frame %d: follower %v, source %v", n, err, serr)
		}
		_, err = resync(t, from, to, SourceOptions{}, TargetOptions{Full: true})
		must(t, err, to.Settle())
		equal(t, from, to)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a, b := pipe()
	go cancel()
	done := make(chan error, 1)
	go func() { done <- Source(ctx, a, from, SourceOptions{Volume: 1, Rate: 1 << 20}) }()
	if _, err := Run(context.Background(), b, newTree(t, disk+"/c"), TargetOptions{Volume: 1, Full: true}); err == nil {
		t.Error("the source was cancelled, and the follower is content")
	}
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	goleak.VerifyNone(t)
}

func TestFramesThatAreNoneAreRefused(t *testing.T) {
	hello := message{kind: mHello, id: 1, data: make([]byte, hashSize)}
	list := message{kind: mList, id: 1}
	good := seal(nil, list.append(nil))
	from := newTree(t, scratch(t)+"/a")
	for what, frames := range map[string][][]byte{
		"no greeting":        {good},
		"two greetings":      {seal(nil, hello.append(hello.append(nil)))},
		"another volume":     {seal(nil, (&message{kind: mHello, id: 2, data: make([]byte, hashSize)}).append(nil))},
		"a bit flipped":      {append(good[:len(good)-1:len(good)-1], good[len(good)-1]^1)},
		"cut short":          {good[:5]},
		"another version":    {append([]byte{good[0], good[1], good[2], good[3], 'H', 'R', 's', 9}, good[8:]...)},
		"too long a message": {seal(nil, []byte{byte(mList), 255, 255, 255, 255})},
		"half a message":     {seal(nil, hello.append(nil)[:10])},
		"a stranger":         {seal(nil, []byte{99, 0, 0, 0, 0})},
		"an answer":          {seal(nil, (&message{kind: mData, data: []byte("x")}).append(hello.append(nil)))},
		"blocks of no size":  {seal(nil, (&message{kind: mBlocks, id: 5, len: 0}).append(hello.append(nil)))},
		"too many blocks":    {seal(nil, (&message{kind: mBlocks, id: 5, len: 1 << 40, flags: fZero}).append(hello.append(nil)))},
		"hashes missing":     {seal(nil, (&message{kind: mBlocks, id: 5, len: 8192, data: make([]byte, 16)}).append(hello.append(nil)))},
		"a negative offset":  {seal(nil, (&message{kind: mBlocks, id: 5, len: 4096, off: -4096, flags: fZero}).append(hello.append(nil)))},
	} {
		a, b := net.Pipe()
		src := make(chan error, 1)
		go func() { src <- Source(context.Background(), Conn(a), from, SourceOptions{Volume: 1}) }()
		go io.Copy(io.Discard, b)
		for _, f := range frames {
			b.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(f))), f...))
		}
		if err := <-src; !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", what, err)
		}
		b.Close()
	}
}

func FuzzParse(f *testing.F) {
	i := tree.Item{Entry: tree.Entry{Name: "n", ID: 3}, Target: "t", Xattrs: replication.AppendXattr(nil, "user.a", []byte("v"))}
	for _, m := range []message{{kind: mListing, flags: fFirst, self: i, items: []tree.Item{i}}, {kind: mBlocks, len: 4096, data: make([]byte, 16)}, {kind: mOpens, ids: []FileID{1, 2}}} {
		f.Add(m.append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			m, rest, err := parse(b)
			if err != nil {
				return
			}
			if again := m.append(nil); m.kind != mFail && string(again) != string(b[:len(b)-len(rest)]) {
				t.Fatalf("%+v is written as %x, was %x", m, again, b[:len(b)-len(rest)])
			}
			b = rest
		}
	})
}

// half hides the Close of a connection, as a part of a multiplexed one.
type half struct{ io.ReadWriter }

func TestSeveralVolumesShareAChannelThatCannotBeClosed(t *testing.T) {
	disk := scratch(t)
	var from, to Volumes
	for _, n := range []string{"1", "2"} {
		f := newTree(t, disk+"/a"+n)
		everything(t, f)
		from.Trees, to.Trees = append(from.Trees, f), append(to.Trees, newTree(t, disk+"/b"+n))
	}
	ended := 0
	to.Ended = func(int, Result) { ended++ }
	a, b := net.Pipe()
	src := make(chan error, 1)
	for range 2 { // and again, as after a redo that lacked something
		go func() { src <- from.Serve(context.Background(), 1, half{a}) }()
		must(t, to.Fetch(context.Background(), 2, half{b}, true), <-src)
	}
	for i := range from.Trees {
		must(t, to.Trees[i].Settle())
		equal(t, from.Trees[i], to.Trees[i])
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { src <- from.Serve(ctx, 1, half{a}) }()
	cancel()
	if err := to.Fetch(ctx, 2, half{b}, true); err == nil || <-src == nil {
		t.Error("cancelled, and nobody says so")
	}
	if ended != 4 {
		t.Errorf("%d ends", ended)
	}
	b.Close()
	goleak.VerifyNone(t)
}
