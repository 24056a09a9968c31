package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication/memory/image"
)

// The image file of a region:
//
//	   0  8  "HMemImg1"
//	   8  4  format version, 1
//	  16  8  hash of the identity
//	  24  8  most bytes that the region may have
//	1024  8  counter: the head in slot counter & 1 is valid
//	1088 128 slot 0: nine 64-bit words and their CRC-32C
//	1216 128 slot 1
//	4096     table: one 32-bit sum per block, then, on the next page, the blocks
const (
	imageMagic = "HMemImg1"
	counterOff = 1024
	slotOff    = 1088
	slotSize   = 128
	headBytes  = 72
)

// Region is the newest image of one region. The files are sparse: what was never written takes no memory.
type Region struct {
	Name  string
	max   uint64
	mem   []byte
	table []uint32
	data  []byte
	head  image.Head
	log   *Log
}

func tableBytes(max uint64) uint64 { return (image.Blocks(max)*4 + page - 1) / page * page }

// openRegion opens the file of a region, or makes it when most is not 0.
func (s *Store) openRegion(name string, most uint64) (*Region, error) {
	path := filepath.Join(s.dir, name+".image")
	if most == 0 {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		var h [32]byte
		_, err = f.ReadAt(h[:], 0)
		f.Close()
		if err != nil {
			return nil, err
		}
		if string(h[:8]) != imageMagic || le.Uint32(h[8:]) != version {
			return nil, fmt.Errorf("the file is not of format version %d", version)
		}
		if le.Uint64(h[16:]) != s.identity {
			return nil, errors.New("the file belongs to another service")
		}
		if most = le.Uint64(h[24:]); most == 0 || most > 1<<40 {
			return nil, fmt.Errorf("the file speaks of %d bytes", most)
		}
	}
	r := &Region{Name: name, max: most}
	off := page + tableBytes(most)
	if _, err := mapFile(path, off+image.Blocks(most)*image.Block, &r.mem); err != nil {
		return nil, err
	}
	if string(r.mem[:8]) != imageMagic {
		le.PutUint32(r.mem[8:], version)
		le.PutUint64(r.mem[16:], s.identity)
		le.PutUint64(r.mem[24:], most)
		copy(r.mem, imageMagic)
	}
	r.table = unsafe.Slice((*uint32)(unsafe.Pointer(&r.mem[page])), image.Blocks(most))
	r.data = r.mem[off:]
	h, err := r.readHead()
	if err != nil {
		r.close()
		return nil, err
	}
	r.head = h
	if r.log, err = openLog(filepath.Join(s.dir, name+".log")); err != nil {
		r.close()
		return nil, err
	}
	r.log.covered(h.LogSeq)
	return r, nil
}

func (r *Region) close() {
	if r.mem != nil {
		unix.Munmap(r.mem)
		r.mem = nil
	}
	if r.log != nil {
		r.log.close()
	}
}

// Region returns a region that is kept, or nil.
func (s *Store) Region(name string) *Region {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.regions[name]
}

// Names lists the regions that are kept.
func (s *Store) Names() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.regions {
		names = append(names, n)
	}
	return names
}

// Make makes an empty region of at most max bytes whose head says size and layout; one of this name that is there is replaced.
func (s *Store) Make(name string, size, most uint64, layout uint32) (*Region, error) {
	if err := image.CheckName(name); err != nil {
		return nil, err
	}
	if err := image.CheckSize(name, size, most); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.regions[name]; old != nil {
		old.close()
		delete(s.regions, name)
	}
	for _, ext := range []string{".image", ".log"} {
		if err := os.Remove(filepath.Join(s.dir, name+ext)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("region %s: %w", name, err)
		}
	}
	r, err := s.openRegion(name, most)
	if err != nil {
		return nil, fmt.Errorf("region %s: %w", name, err)
	}
	r.setHead(image.Head{Size: size, Layout: layout})
	s.regions[name] = r
	return r, nil
}

// Resize gives a region another bound, and keeps its image; one that would not fit is an error.
func (s *Store) Resize(name string, most uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.regions[name]
	if old == nil || old.max == most {
		return nil
	}
	if old.head.Size > most {
		return fmt.Errorf("region %s has %d bytes, and the spec allows %d: raise size of memory %q, or remove %s to begin with an empty region", name, old.head.Size, most, name, filepath.Join(s.dir, name+".image"))
	}
	const ext = ".resized"
	path := filepath.Join(s.dir, name+".image")
	os.Remove(filepath.Join(s.dir, name+ext+".image"))
	r, err := s.openRegion(name+ext, most)
	if err != nil {
		return fmt.Errorf("region %s: %w", name, err)
	}
	for i, v := range old.table[:min(len(old.table), len(r.table))] {
		if v != 0 {
			copy(r.data[i*image.Block:][:image.Block], old.data[i*image.Block:])
			r.table[i] = v
		}
	}
	r.setHead(old.head)
	r.log.close()
	os.Remove(r.log.path)
	r.log, old.log = old.log, nil
	if err := os.Rename(filepath.Join(s.dir, name+ext+".image"), path); err != nil {
		return fmt.Errorf("region %s: %w", name, err)
	}
	old.close()
	r.Name = name
	s.regions[name] = r
	return nil
}

// Head is the newest complete image.
func (r *Region) Head() image.Head { return r.head }

// Max is the most bytes that the region may have.
func (r *Region) Max() uint64 { return r.max }

// Data is the image's content, for reading; it changes with the next commit.
func (r *Region) Data() []byte { return r.data[:image.Blocks(r.head.Size)*image.Block] }

// BlockSum is the sum of a block of the image.
func (r *Region) BlockSum(block uint32) uint32 { return r.table[block] }

// Log is the message log beside the region.
func (r *Region) Log() *Log { return r.log }

func (r *Region) slot(n uint64) []byte { return r.mem[slotOff+slotSize*(n&1):][:slotSize] }

func (r *Region) setHead(h image.Head) {
	n := atomic.LoadUint64(word(r.mem, counterOff)) + 1
	putHead(r.slot(n), h)
	atomic.StoreUint64(word(r.mem, counterOff), n)
	r.head = h
}

func putHead(b []byte, h image.Head) {
	for i, v := range [...]uint64{uint64(h.Epoch), uint64(h.Gen), h.Number, h.FileSeq, h.LogSeq, uint64(h.Made), h.Size, uint64(h.Layout), h.Sum} {
		le.PutUint64(b[8*i:], v)
	}
	le.PutUint32(b[headBytes:], sum(b[:headBytes]))
}

func getHead(b []byte) (image.Head, bool) {
	u := func(i int) uint64 { return le.Uint64(b[8*i:]) }
	h := image.Head{Epoch: cluster.Epoch(u(0)), Gen: cluster.Generation(u(1)), Number: u(2), FileSeq: u(3), LogSeq: u(4), Made: int64(u(5)), Size: u(6), Layout: uint32(u(7)), Sum: u(8)}
	return h, le.Uint32(b[headBytes:]) == sum(b[:headBytes])
}

func (r *Region) readHead() (image.Head, error) {
	n := atomic.LoadUint64(word(r.mem, counterOff))
	if n == 0 {
		return image.Head{}, nil
	}
	h, ok := getHead(r.slot(n))
	if !ok || h.Size == 0 || h.Size > r.max {
		return h, errors.New("the head's checksum is wrong")
	}
	return h, nil
}

// verify compares every block with the table and the table with the head.
func (r *Region) verify(path string) error {
	if r.head.Size == 0 {
		return errors.New("it has no head")
	}
	there, err := r.there(path)
	if err != nil {
		return err
	}
	var total uint64
	for i, want := range r.table {
		got := uint32(0)
		if there[i/64]&(1<<(i%64)) != 0 {
			got = image.BlockSum(r.data[i*image.Block:][:image.Block])
		}
		if got != want {
			return fmt.Errorf("block %d of image %d has the sum %08x, want %08x", i, r.head.Number, got, want)
		}
		total += image.Part(uint32(i), want)
	}
	if total != r.head.Sum {
		return fmt.Errorf("image %d has the sum %016x, want %016x", r.head.Number, total, r.head.Sum)
	}
	return nil
}

// there says which blocks have memory: to look at the others would give them some.
func (r *Region) there(path string) (set []uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	set = make([]uint64, (len(r.table)+63)/64)
	base := int64(len(r.mem) - len(r.data))
	for off := base; ; {
		from, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return set, nil
		} else if err != nil {
			return nil, err
		}
		to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		for i := (from - base) / image.Block; i*image.Block < to-base && i < int64(len(r.table)); i++ {
			set[i/64] |= 1 << (i % 64)
		}
		off = to
	}
}

func sum(b []byte) uint32 { return crcOf(0, b) }
