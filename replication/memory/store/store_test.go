package store

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hanode/hanode/replication/memory/image"
)

const most = 64 * image.Block

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, "c/db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func made(t *testing.T, s *Store, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := s.Make(n, most, most, 1); err != nil {
			t.Fatal(err)
		}
	}
}

// change fills a buffer with blocks of one byte each.
func change(t *testing.T, s *Store, b *Buffer, region string, number uint64, full bool, blocks map[uint32]byte) Change {
	t.Helper()
	r := s.Region(region)
	c := Change{Region: r, Full: full, Buffer: b.Name, DataOff: TableRoom(len(blocks)), Head: r.Head()}
	for i, v := range blocks {
		data := bytes.Repeat([]byte{v}, image.Block)
		copy(b.Mem[c.DataOff+uint64(len(c.Data)):], data)
		c.Data = append(c.Data, data...)
		c.Entries = append(c.Entries, Entry{i, image.BlockSum(data)})
	}
	copy(b.Mem, entryBytes(c.Entries))
	c.Head.Epoch, c.Head.Number, c.Head.Sum = 3, number, r.SumAfter(full, c.Entries)
	return c
}

func buffer(t *testing.T, s *Store, name string) *Buffer {
	t.Helper()
	b, err := s.NewBuffer(name, BufferSize(most))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// copyDir copies all but the message logs.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	files, err := filepath.Glob(from + "/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, ".log") {
			continue
		}
		b, err := os.ReadFile(f)
		if err == nil {
			err = os.WriteFile(filepath.Join(to, filepath.Base(f)), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func TestAnImageIsFoundAgainByTheNextProcess(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	made(t, s, "calls")
	b := buffer(t, s, "calls.stage")
	for n := uint64(1); n <= 5; n++ {
		if err := s.Commit([]Change{change(t, s, b, "calls", n, n == 4, map[uint32]byte{1: byte(n), uint32(n) + 1: 9})}, nil); err != nil {
			t.Fatal(err)
		}
	}
	s.SetEpoch(3)
	want := s.Region("calls").Head()
	s.Close()
	s = open(t, dir)
	if len(s.Damaged()) > 0 {
		t.Fatal(s.Damaged())
	}
	r := s.Region("calls")
	if r.Head() != want || s.Epoch() != 3 || s.Number() != 5 {
		t.Fatalf("head %+v, want %+v; epoch %d, number %d", r.Head(), want, s.Epoch(), s.Number())
	}
	for block, v := range map[int]byte{1: 5, 2: 0, 3: 0, 4: 0, 5: 9, 6: 9} { // 4 was whole: what it did not have is zero
		if got := r.Data()[block*image.Block+7]; got != v {
			t.Errorf("block %d has %d, want %d", block, got, v)
		}
	}
	if _, err := Open(dir, "c/other"); err == nil {
		t.Error("a second process, and of another service, was let in")
	}
	s.Close()
	if _, err := Open(dir, "c/other"); err == nil || !strings.Contains(err.Error(), "another service") {
		t.Errorf("another service: %v", err)
	}
}

// The process ends at every point of a commit of two regions: each time both have the image before or both the new one.
func TestAProcessThatEndsWithinACommitLeavesNoTornImage(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 40 {
		dir := t.TempDir()
		s := open(t, dir)
		made(t, s, "a", "b")
		ba, bb := buffer(t, s, "a.stage"), buffer(t, s, "b.stage")
		if err := s.Commit([]Change{change(t, s, ba, "a", 1, false, map[uint32]byte{1: 1, 2: 1}), change(t, s, bb, "b", 1, false, map[uint32]byte{1: 1, 5: 1})}, nil); err != nil {
			t.Fatal(err)
		}
		var before, within string
		ca, cb := change(t, s, ba, "a", 2, round%2 == 0, map[uint32]byte{2: 2, 3: 2}), change(t, s, bb, "b", 2, false, map[uint32]byte{5: 2, 6: 2})
		before = copyDir(t, dir)
		if err := s.Commit([]Change{ca, cb}, func() { within = copyDir(t, dir) }); err != nil {
			t.Fatal(err)
		}
		// A part of the copying was done: any bytes of the blocks of the new image, and of its tables and heads.
		tearFile := func(name string) {
			done, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(filepath.Join(within, name), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for range rng.IntN(40) {
				at := rng.IntN(len(done)-64) &^ 7
				if _, err := f.WriteAt(done[at:at+8], int64(at)); err != nil {
					t.Fatal(err)
				}
			}
		}
		tearFile("a.image")
		tearFile("b.image")
		for where, want := range map[string]uint64{before: 1, within: 2} {
			c := open(t, where)
			if len(c.Damaged()) > 0 {
				t.Fatalf("round %d: %v", round, c.Damaged())
			}
			for _, name := range []string{"a", "b"} {
				if got := c.Region(name).Head().Number; got != want {
					t.Errorf("round %d: region %s has image %d, want %d", round, name, got, want)
				}
			}
			if got := c.Region("a").Data()[2*image.Block]; got != byte(want) {
				t.Errorf("round %d: block 2 of image %d has %d", round, want, got)
			}
			c.Close()
		}
		// The buffer was scribbled on meanwhile: what cannot be finished is not used.
		os.WriteFile(filepath.Join(within, "a.stage"), make([]byte, BufferSize(most)), 0o600)
		s.Close()
	}
}

func TestADamagedImageIsNotUsed(t *testing.T) {
	for what, at := range map[string]int64{"a block": page + page + 3*image.Block + 5, "the table": page + 4*3, "the head": slotOff + slotSize + 17, "a block that was never written": page + page + 40*image.Block} {
		dir := t.TempDir()
		s := open(t, dir)
		made(t, s, "a", "b")
		b := buffer(t, s, "a.stage")
		if err := s.Commit([]Change{change(t, s, b, "a", 1, false, map[uint32]byte{3: 1})}, nil); err != nil {
			t.Fatal(err)
		}
		if what == "the head" { // the first slot that counts is that of the second head
			if n := le.Uint64(s.Region("a").mem[counterOff:]); n&1 == 0 {
				at -= slotSize
			}
		}
		s.Close()
		f, err := os.OpenFile(filepath.Join(dir, "a.image"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt([]byte{0x5a}, at)
		f.Close()
		s = open(t, dir)
		if len(s.Damaged()) != 1 || !errors.Is(s.Damaged()[0], ErrDamaged) || s.Region("a") != nil || s.Region("b") == nil {
			t.Errorf("%s: %v", what, s.Damaged())
		}
	}
}

func TestAMessageLogIsReadBackFromWhereTheImageEnds(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	made(t, s, "a")
	l := s.Region("a").Log()
	for seq := uint64(1); seq <= 10; seq++ {
		if err := l.Append(seq, []byte{byte(seq)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Append(12, nil); err == nil {
		t.Error("a gap was accepted")
	}
	b := buffer(t, s, "a.stage")
	c := change(t, s, b, "a", 1, false, map[uint32]byte{1: 1})
	c.Head.LogSeq = 7
	if err := s.Commit([]Change{c}, nil); err != nil {
		t.Fatal(err)
	}
	read := func() (got []byte) {
		r := s.Region("a")
		if err := r.Log().Each(r.Head().LogSeq, func(_ uint64, d []byte) error { got = append(got, d...); return nil }); err != nil {
			t.Fatal(err)
		}
		return got
	}
	s.Close()
	s = open(t, dir)
	if got := read(); string(got) != "\x08\x09\x0a" || s.Region("a").Log().Last() != 10 {
		t.Fatalf("read %v, last %d", got, s.Region("a").Log().Last())
	}
	c = change(t, s, buffer(t, s, "a.stage2"), "a", 2, false, map[uint32]byte{1: 2})
	c.Head.LogSeq = 10
	if err := s.Commit([]Change{c}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Region("a").Log().Append(11, []byte("x")); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, dir)
	if got := read(); string(got) != "x" {
		t.Fatalf("read %q", got)
	}
	// Full: what the image has makes room.
	l = s.Region("a").Log()
	big := make([]byte, MaxRecord)
	seq := l.Last()
	for {
		if err := l.Append(seq+1, big); errors.Is(err, ErrLogFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seq++
	}
	l.covered(seq - 1)
	if err := l.Append(seq+1, []byte("after")); err != nil {
		t.Fatalf("after a checkpoint: %v", err)
	}
	n := 0
	if err := l.Each(seq-1, func(uint64, []byte) error { n++; return nil }); err != nil || n != 2 {
		t.Fatalf("%d records, %v", n, err)
	}
}
