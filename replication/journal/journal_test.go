package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal/disk"
	"github.com/hanode/hanode/replication/journal/faultfs"
)

func newScene(t *testing.T, fs FS) *scene {
	t.Helper()
	j, rec, err := Open("j", fs, small)
	if err != nil || !rec.New {
		t.Fatal(rec, err)
	}
	return &scene{j: j, rnd: rand.New(rand.NewPCG(1, 2)), epoch: 1, is: content{applied: []uint64{0}}}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// filled is a journal of several segments that was closed in good order.
func filled(t *testing.T) (*faultfs.FS, *scene) {
	fs := faultfs.New(1)
	s := newScene(t, fs)
	for range 12 {
		must(t, s.append(3, 1200))
	}
	must(t, s.sync(), s.checkpoint(2), s.append(3, 700), s.sync())
	must(t, s.j.Close())
	s.is.floor = s.is.last()
	return fs, s
}

func TestEveryFlippedBitIsRefusedOrDoesNoHarm(t *testing.T) {
	fs, s := filled(t)
	names, _ := fs.List("j")
	refused, harmless := 0, 0
	for _, name := range names {
		path := "j/" + name
		for off := range int64(len(fs.Content(path))) {
			if off > headUsed+8 && off < headSize-8 && off%512 != 0 {
				continue // unused
			}
			mask := byte(1) << (off % 8)
			fs.Flip(path, off, mask)
			clone := fs.Clone()
			fs.Flip(path, off, mask)
			j, rec, err := Open("j", clone, small)
			var d *Damage
			switch {
			case errors.As(err, &d):
				if refused++; d.File == "" || !strings.Contains(err.Error(), "hanode volume replace") {
					t.Fatalf("%s byte %d: %v", name, off, err)
				}
			case err != nil && off >= 8 && off < 12 || errors.As(err, new(*Foreign)):
				t.Fatalf("%s byte %d: the checksum comes first: %v", name, off, err)
			case err != nil:
				t.Fatalf("%s byte %d: %v", name, off, err)
			default:
				if err := holds(j, rec, s.is); err != nil && !errors.As(err, &d) { // what is older than the checkpoint is read later
					t.Fatalf("%s byte %d: opened as %+v: %v", name, off, rec, err)
				}
				harmless++
				j.Close()
			}
		}
	}
	t.Logf("%d refused, %d harmless", refused, harmless)
	if refused < 1000 {
		t.Errorf("only %d flips were refused", refused)
	}
}

func TestALostBlockInTheMiddleIsRefused(t *testing.T) {
	fs, s := filled(t)
	names, _ := fs.List("j")
	for _, name := range names {
		path := "j/" + name
		for off := int64(0); off < int64(len(fs.Content(path))); off += 512 {
			clone := fs.Clone()
			clone.Zero(path, off, 512)
			j, rec, err := Open("j", clone, small)
			if err == nil {
				err = holds(j, rec, s.is)
				j.Close()
			}
			if d := new(Damage); err != nil && !errors.As(err, &d) {
				t.Fatalf("%s block %d: %v", name, off/512, err)
			}
		}
	}
}

func TestATailThatWasNotSyncedIsCutAtTheLastWholeRecord(t *testing.T) {
	fs := faultfs.New(1)
	s := newScene(t, fs)
	must(t, s.append(2, 500), s.sync())
	seg := s.j.segs[0]
	tail := seg.end
	must(t, s.append(3, 800))
	killed := fs.Kill()
	for off := tail; off < seg.end; off += 13 {
		clone := killed.Clone()
		clone.Zero(seg.path, off, seg.end-off)
		j, rec, err := Open("j", clone, small)
		if err != nil {
			t.Fatal(off, err)
		}
		if j.Last().Seq >= s.is.last() || rec.Torn == nil && off >= tail+frameSize {
			t.Fatalf("zero from %d: ends at %v, %+v", off, j.Last(), rec.Torn)
		}
		must(t, holds(j, rec, s.is), j.Close())
	}
}

func TestWhatAUserWritesIsNoRecord(t *testing.T) {
	fs := faultfs.New(1)
	s := newScene(t, fs)
	must(t, s.append(1, 100))
	seg := s.j.segs[0]
	// A user who knows everything but the salt writes a frame and a record into a volume; then the power goes with the record's beginning.
	f := frame{kind: records, len: 200, first: 3, last: s.pos(3), durable: 1 << 40, based: true}
	forged := make([]byte, 4096)
	fake := *seg
	fake.salt++
	for off := range int64(3000) {
		f.encode(forged[off:], &fake, seg.end+frameSize+off+replication.HeaderSize)
	}
	b, _ := replication.AppendRecord(nil, s.pos(2), &replication.Op{Kind: replication.Write, Volume: 1, ID: 1, Data: append(forged, record(s.pos(3), 50, 0)...)})
	end := seg.end
	must(t, s.j.Append(s.pos(2), b))
	killed := fs.Kill()
	killed.Zero(seg.path, end, 512)
	j, rec, err := Open("j", killed, small)
	must(t, err)
	if j.Last().Seq != 1 {
		t.Errorf("ends at %v, %+v", j.Last(), rec)
	}
}

func TestOneDamagedBlockOfTheAppliedPositionDoesNoHarm(t *testing.T) {
	fs := faultfs.New(1)
	s := newScene(t, fs)
	for n := range uint64(40) {
		must(t, s.append(2, 1500), s.checkpoint(2*n+1), s.release(1000))
	}
	must(t, s.j.Close())
	if s.j.First() < 20 {
		t.Fatalf("nothing was released: it begins at %d", s.j.First())
	}
	for slot := range int64(2) {
		fs := fs.Clone()
		fs.Flip("j/applied", slot*slotStep+33, 1)
		j, _, err := Open("j", fs, small)
		must(t, err)
		if a := j.Applied(); a != 79 && a != 77 || j.First() > a+1 || j.Last().Seq != 80 {
			t.Errorf("block %d damaged: applied %d, %d to %v", slot, a, j.First(), j.Last())
		}
	}
	fs.Flip("j/applied", 33, 1)
	fs.Flip("j/applied", slotStep+33, 1)
	if _, _, err := Open("j", fs, small); !errors.As(err, new(*Damage)) {
		t.Errorf("both damaged: %v", err)
	}
}

func TestAFrameInAnotherPlaceIsNone(t *testing.T) {
	fs := faultfs.New(1)
	s := newScene(t, fs)
	must(t, s.append(1, 100), s.append(1, 100))
	seg := s.j.segs[0]
	first := fs.Content(seg.path)[headSize+frameSize:]
	h, _, err := (&cursor{s: seg, stop: seg.size}).frame(headSize + frameSize)
	must(t, err)
	// A disk that misdirects a write: the second frame is overwritten by a copy of the first, and one lies behind the end.
	two := int64(headSize+2*frameSize) + int64(h.len)
	f, err := fs.Open(seg.path)
	must(t, err, f.WriteVec([][]byte{first[:frameSize+h.len]}, two), f.WriteVec([][]byte{first[:frameSize+h.len]}, seg.end+512))
	j, _, err := Open("j", fs.Kill(), small)
	must(t, err)
	if j.Last().Seq != 1 {
		t.Errorf("ends at %v", j.Last())
	}
	seg.salt++
	if _, ok := decodeFrame(first, seg, headSize+frameSize); ok {
		t.Error("a frame of another salt was believed")
	}
	seg.salt--
	if _, ok := decodeFrame(first, seg, headSize+frameSize+512); ok {
		t.Error("a frame was believed at another offset")
	}
	if _, ok := decodeFrame(first, seg, headSize+frameSize); !ok {
		t.Error("a frame was not believed at its own place")
	}
}

func TestAnothersJournalIsRefused(t *testing.T) {
	fs, _ := filled(t)
	for _, l := range []Limits{{Cluster: "c2", Service: "db"}, {Cluster: "c1", Service: "web"}} {
		l.Segment, l.Size = small.Segment, small.Size
		_, _, err := Open("j", fs, l)
		if f := new(Foreign); !errors.As(err, &f) || !strings.Contains(err.Error(), "belongs to") {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

func TestAnotherFormatIsRefused(t *testing.T) {
	for _, version := range []byte{0, 2} {
		fs, _ := filled(t)
		names, _ := fs.List("j")
		path := "j/" + names[0]
		h := fs.Content(path)[:headUsed]
		h[8] = version
		f, err := fs.Open(path)
		must(t, err, f.WriteVec([][]byte{sum(h)}, 0), f.Sync())
		if _, _, err = Open("j", fs, small); err == nil || !strings.Contains(err.Error(), fmt.Sprint("format ", version)) {
			t.Errorf("format %d: %v", version, err)
		}
	}
}

func TestAMissingSegmentIsRefused(t *testing.T) {
	fs, s := filled(t)
	names, _ := fs.List("j")
	for _, name := range names {
		clone := fs.Clone()
		must(t, clone.Remove("j/"+name))
		j, rec, err := Open("j", clone, small)
		if err == nil {
			err = holds(j, rec, s.is)
		}
		if d := new(Damage); err != nil && !errors.As(err, &d) {
			t.Errorf("without %s: %v", name, err)
		} else if err == nil && name != names[len(names)-1] {
			t.Errorf("without %s: opened as %+v", name, rec)
		}
	}
}

func TestAfterAFailedSyncTheJournalIsBrokenForGood(t *testing.T) {
	fs := faultfs.New(1)
	s := newScene(t, fs)
	must(t, s.append(1, 100))
	fs.FailAt(1, 0, syscall.EIO)
	for _, err := range []error{s.j.Sync(), s.j.Sync(), s.j.Append(s.pos(2), record(s.pos(2), 10, 0)), s.j.Checkpoint(1), s.j.Cut(0), s.j.Reset(s.pos(9)), s.j.Release(1), s.j.Close()} {
		if !errors.Is(err, ErrBroken) || !errors.Is(err, syscall.EIO) {
			t.Errorf("after the failed sync: %v", err)
		}
	}
	if s.j.Durable() != 0 {
		t.Errorf("durable up to %d", s.j.Durable())
	}
	if _, _, err := Open("j", fs.Kill(), small); !errors.Is(err, ErrBroken) {
		t.Errorf("opened again: %v", err)
	}
	again := fs.Kill()
	must(t, Discard("j", again))
	if _, rec, err := Open("j", again, small); err != nil || !rec.New {
		t.Errorf("discarded, then %+v, %v", rec, err)
	}
}

func TestWhatIsAcknowledgedHasItsRoom(t *testing.T) {
	fs := faultfs.New(1)
	s := newScene(t, fs)
	fs.Room(small.Segment + 100) // one more segment
	var err error
	taken := 0
	for err == nil {
		before := s.j.Last()
		if err = s.append(1, 900); err == nil {
			taken++
		} else if s.j.Last() != before {
			t.Error("an append that failed moved the end")
		}
	}
	if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrBroken) || taken < 10 {
		t.Fatalf("after %d records: %v", taken, err)
	}
	must(t, s.sync()) // what was taken is kept
	fs.Room(10 * small.Segment)
	must(t, s.append(1, 900), s.sync()) // and it goes on when there is room
	s.is.applied = []uint64{0}
	j, rec, err := Open("j", fs.Reboot(), small)
	must(t, err, holds(j, rec, s.is))
}

func TestAFullJournalHoldsItsWritersBack(t *testing.T) {
	s := newScene(t, faultfs.New(1))
	var err error
	for n := 0; err == nil && n < 1000; n++ {
		err = s.append(1, 3000)
	}
	if !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	must(t, s.checkpoint(s.is.last()-1), s.checkpoint(s.is.last()))
	must(t, s.release(s.is.last()), s.append(1, 3000))
	if held := int64(len(s.j.segs)) * small.Segment; held > small.Size+small.Segment {
		t.Errorf("%d bytes are kept, the size is %d", held, small.Size)
	}
	if s.j.First() < 2 || s.j.First() > s.is.last()-10 {
		t.Errorf("begins at %d of %d: it should keep what fits", s.j.First(), s.is.last())
	}
}

func TestGapsAndOldEpochsAreRefused(t *testing.T) {
	s := newScene(t, faultfs.New(1))
	must(t, s.append(2, 100))
	r3, r4 := record(s.pos(3), 9, 0), record(s.pos(4), 9, 0)
	old := cluster.Position{Epoch: 0, Gen: 1, Seq: 3}
	for what, err := range map[string]error{
		"a gap":                s.j.Append(s.pos(4), r4),
		"a gap inside":         s.j.Append(s.pos(3), append(bytes.Clone(r3), r3...)),
		"a repetition":         s.j.Append(s.pos(2), record(s.pos(2), 9, 0)),
		"an old epoch":         s.j.Append(old, record(old, 9, 0)),
		"a half record":        s.j.Append(s.pos(3), r3[:len(r3)-1]),
		"half a header":        s.j.Append(s.pos(3), append(bytes.Clone(r3), r4[:20]...)),
		"no record":            s.j.Append(s.pos(3), make([]byte, 300)),
		"more than fits":       s.j.Append(s.pos(3), make([]byte, small.Segment)),
		"another first":        s.j.Append(s.pos(2), r3),
		"a cut before its beg": s.j.Checkpoint(3),
	} {
		if err == nil {
			t.Errorf("%s was taken", what)
		}
	}
	must(t, s.j.Append(s.pos(3), append(bytes.Clone(r3), r4...)))
}

func TestAReaderFollows(t *testing.T) {
	s := newScene(t, faultfs.New(1))
	r, err := s.j.Read(1)
	must(t, err)
	if _, err := r.Next(nil); err != io.EOF {
		t.Fatal(err)
	}
	seen := 0
	buf := make([]byte, 2500)
	for range 30 { // through many segments
		must(t, s.append(2, 1500))
		for {
			b, err := r.Next(buf)
			if err == io.EOF {
				break
			}
			must(t, err)
			for len(b) > 0 {
				n := len(s.is.recs[seen])
				if !bytes.Equal(b[:n], s.is.recs[seen]) {
					t.Fatalf("record %d differs", seen+1)
				}
				b, seen = b[n:], seen+1
			}
		}
		if seen != len(s.is.recs) {
			t.Fatalf("read %d of %d", seen, len(s.is.recs))
		}
	}
	r2, err := s.j.Read(17)
	must(t, err)
	if b, err := r2.Next(nil); err != nil || !bytes.Equal(b, s.is.recs[16]) {
		t.Fatalf("from 17: %v", err)
	}
	if _, err := s.j.Read(s.is.last() + 2); !errors.Is(err, ErrGone) {
		t.Errorf("beyond the end: %v", err)
	}
	must(t, s.cut(20))
	for _, r := range []*Reader{r, r2} {
		if _, err := r.Next(nil); !errors.Is(err, ErrGone) {
			t.Errorf("after a cut: %v", err)
		}
		r.Close()
	}
}

func TestAReaderOfReleasedRecordsIsToldSo(t *testing.T) {
	s := newScene(t, faultfs.New(1))
	for range 40 {
		must(t, s.append(2, 1500))
	}
	r, err := s.j.Read(1)
	must(t, err)
	_, err = r.Next(nil)
	must(t, err, s.checkpoint(70), s.checkpoint(71), s.release(70))
	for n := 0; ; n++ {
		b, err := r.Next(nil)
		if errors.Is(err, ErrGone) && n > 0 {
			break
		}
		must(t, err)
		if !bytes.Equal(b, s.is.recs[n+1]) {
			t.Fatalf("record %d differs", n+2)
		}
		must(t, s.append(1, 3000), s.checkpoint(s.is.last()), s.release(s.is.last())) // its file would be used again, if it could
	}
	r.Close()
}

// slow counts syncs and makes each take as long as the test says.
type slow struct {
	*faultfs.FS
	gate  chan struct{}
	began chan struct{}
	syncs atomic.Int32
}

type slowFile struct {
	disk.File
	s *slow
}

func (s *slow) Create(name string) (disk.File, error) {
	f, err := s.FS.Create(name)
	return &slowFile{f, s}, err
}

func (f *slowFile) Sync() error {
	if f.s.gate != nil {
		if f.s.syncs.Add(1) == 1 {
			close(f.s.began)
		}
		<-f.s.gate
	}
	return f.File.Sync()
}

func TestManyWaitersShareOneSync(t *testing.T) {
	fs := &slow{FS: faultfs.New(1)}
	s := newScene(t, fs)
	fs.gate, fs.began = make(chan struct{}), make(chan struct{})
	must(t, s.append(1, 10))
	var wg sync.WaitGroup
	wg.Go(func() { must(t, s.j.Sync()) })
	<-fs.began
	must(t, s.append(5, 10)) // an append does not wait for a sync
	for range 50 {
		wg.Go(func() {
			if must(t, s.j.Sync()); s.j.Durable() < 6 {
				t.Error("a sync returned early")
			}
		})
	}
	close(fs.gate)
	wg.Wait()
	if n := fs.syncs.Load(); n > 2 {
		t.Errorf("%d syncs for 51 waiters", n)
	}
}

func TestOnARealDiskFromManyGoroutines(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "j")
	lim := Limits{Cluster: "c1", Service: "db", Size: 64 << 20, Segment: 8 << 20}
	j, _, err := Open(dir, disk.OS{}, lim)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var run, wg sync.WaitGroup
	run.Go(func() { must(t, j.Run(ctx)) })
	const n = 3000
	var mu sync.Mutex
	seq := uint64(0)
	pos := func(seq uint64) cluster.Position { return cluster.Position{Epoch: 1, Gen: 1, Seq: seq} }
	for range 4 {
		wg.Go(func() {
			for {
				mu.Lock()
				if seq == n {
					mu.Unlock()
					return
				}
				seq++
				err := j.Append(pos(seq), record(pos(seq), 10000, 7))
				mu.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
				if seq%50 == 0 {
					if err := j.Sync(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Go(func() {
		r, err := j.Read(1)
		must(t, err)
		defer r.Close()
		buf, at := make([]byte, 1<<20), uint64(1)
		for at <= n {
			b, err := r.Next(buf)
			if err == io.EOF {
				runtime.Gosched()
				continue
			} else if err != nil {
				t.Error(err)
				return
			}
			for len(b) > 0 {
				h, err := replication.Check(b)
				if err != nil || h.Pos.Seq != at {
					t.Errorf("%v at %d: %v", h.Pos, at, err)
					return
				}
				b, at = b[h.Len:], at+1
			}
			if at > 100 && at%100 == 0 {
				if err := errors.Join(j.Checkpoint(at-50), j.Release(at-50)); err != nil {
					t.Error(err)
				}
			}
		}
	})
	wg.Wait()
	cancel()
	run.Wait()
	must(t, j.Close())
	j, rec, err := Open(dir, disk.OS{}, lim)
	must(t, err)
	if j.Last() != pos(n) || rec.Torn != nil {
		t.Errorf("ends at %v, %+v", j.Last(), rec)
	}
	must(t, j.Close())
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

func TestTheIndexIsBounded(t *testing.T) {
	s := &segment{}
	for off := int64(0); off < 64<<20; off += 100 {
		s.mark(uint64(off), off)
	}
	if len(s.marks) > 64<<20/markEvery {
		t.Errorf("%d marks for a segment of 64 MiB", len(s.marks))
	}
}

func TestSizesThatCannotBeAreRefused(t *testing.T) {
	for _, l := range []Limits{{Size: 1}, {Size: 1 << 30, Segment: 5000}, {Size: 1 << 30, Max: 1 << 20}, {Size: 1 << 30, Cluster: strings.Repeat("x", 101)}} {
		if _, _, err := Open("j", faultfs.New(1), l); err == nil {
			t.Errorf("%+v was taken", l)
		}
	}
}
