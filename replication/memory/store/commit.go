package store

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"github.com/hanode/hanode/replication/memory/image"
)

// Entry is one block of a new image: which one, and its sum.
type Entry struct{ Block, Sum uint32 }

// EntrySize is the size of an Entry in a buffer's table.
const EntrySize = 8

// Change is one region of a commit. The table of entries and the blocks lie in a buffer of the store (from TableOff and DataOff on),
// where a redo finds them; Entries and Data are what the caller verified.
type Change struct {
	Region   *Region
	Full     bool // blocks that are not there are zero
	Head     image.Head
	Buffer   string
	TableOff uint64
	DataOff  uint64
	Entries  []Entry
	Data     []byte // len(Entries) blocks
}

// SumAfter is the sum of the region after these entries.
func (r *Region) SumAfter(full bool, entries []Entry) uint64 {
	if full {
		var total uint64
		for _, e := range entries {
			total += image.Part(e.Block, e.Sum)
		}
		return total
	}
	total := r.head.Sum
	for _, e := range entries {
		total += image.Part(e.Block, e.Sum) - image.Part(e.Block, r.table[e.Block])
	}
	return total
}

// A commit record is, little endian: 0 u32 state (1 pending, 0 done), 4 u32 parts, 8 u32 CRC-32C of the tables, 12 u32 CRC-32C of the record from 16 on; from 64 on
// 240 bytes per part: name 64, buffer 80, table offset 8, data offset 8, entries 4, flags 4 (1 full), head 72.
const (
	recordAt = 64
	partSize = 240
)

// Commit makes an image the newest one of its regions. mark is called when nothing can take it back any more, before the blocks are copied: the standby
// acknowledges there. The buffers must stay as they are until Commit returns.
func (s *Store) Commit(changes []Change, mark func()) error {
	if len(changes) == 0 || len(changes) > image.MaxParts {
		return fmt.Errorf("an image of %d regions: 1 to %d", len(changes), image.MaxParts)
	}
	for i := range changes {
		c := &changes[i]
		if c.Head.Size > c.Region.max || len(c.Data) != len(c.Entries)*image.Block || len(c.Buffer) > 79 {
			return fmt.Errorf("region %s: an image of %d bytes with %d blocks does not fit", c.Region.Name, c.Head.Size, len(c.Entries))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := atomic.LoadUint64(s.word(64)) + 1
	rec := s.record(n)
	clear(rec)
	crc := uint32(0)
	for i := range changes {
		c := &changes[i]
		p := rec[recordAt+partSize*i:]
		copy(p[:63], c.Region.Name)
		copy(p[64:64+79], c.Buffer)
		le.PutUint64(p[144:], c.TableOff)
		le.PutUint64(p[152:], c.DataOff)
		le.PutUint32(p[160:], uint32(len(c.Entries)))
		if c.Full {
			p[164] = 1
		}
		putHead72(p[168:], c.Head)
		crc = crcOf(crc, entryBytes(c.Entries))
	}
	le.PutUint32(rec[4:], uint32(len(changes)))
	le.PutUint32(rec[8:], crc)
	le.PutUint32(rec[12:], sum(rec[16:]))
	atomic.StoreUint32(state32(rec), 1)
	atomic.StoreUint64(s.word(64), n) // from here on the image counts
	if mark != nil {
		mark()
	}
	for i := range changes {
		changes[i].apply()
	}
	atomic.StoreUint32(state32(rec), 0)
	s.SetNumber(changes[0].Head.Number)
	return nil
}

func putHead72(b []byte, h image.Head) {
	var full [slotSize]byte
	putHead(full[:], h)
	copy(b[:headBytes], full[:])
}

func (s *Store) record(n uint64) []byte { return s.state[page*(1+n&1):][:page] }

func state32(rec []byte) *uint32 { return (*uint32)(unsafe.Pointer(&rec[0])) }

func crcOf(crc uint32, b []byte) uint32 { return crc32.Update(crc, castagnoli, b) }

func entryBytes(e []Entry) []byte {
	if len(e) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&e[0])), len(e)*EntrySize)
}

// apply copies the blocks over the image before. It may be repeated.
func (c *Change) apply() {
	r := c.Region
	if c.Full {
		there := make([]uint64, (len(r.table)+63)/64)
		for _, e := range c.Entries {
			there[e.Block/64] |= 1 << (e.Block % 64)
		}
		for i := range r.table {
			if r.table[i] != 0 && there[i/64]&(1<<(i%64)) == 0 {
				clear(r.data[i*image.Block:][:image.Block])
				r.table[i] = 0
			}
		}
	}
	for i, e := range c.Entries {
		copy(r.data[uint64(e.Block)*image.Block:], c.Data[i*image.Block:][:image.Block])
		r.table[e.Block] = e.Sum
	}
	r.setHead(c.Head)
	r.log.covered(c.Head.LogSeq)
}

// redo finishes the commit during which the process before ended.
func (s *Store) redo() error {
	rec := s.record(atomic.LoadUint64(s.word(64)))
	if atomic.LoadUint32(state32(rec)) != 1 {
		return nil
	}
	err := s.redoRecord(rec)
	atomic.StoreUint32(state32(rec), 0)
	if err != nil {
		return fmt.Errorf("finish the last image: %w", err) // the regions that it had begun to change do not pass verify
	}
	return nil
}

func (s *Store) redoRecord(rec []byte) error {
	n := int(le.Uint32(rec[4:]))
	if le.Uint32(rec[12:]) != sum(rec[16:]) || n == 0 || n > image.MaxParts {
		return errors.New("the record's checksum is wrong")
	}
	changes := make([]Change, 0, n)
	crc := uint32(0)
	for i := range n {
		p := rec[recordAt+partSize*i:][:partSize]
		var full [slotSize]byte
		copy(full[:], p[168:168+headBytes])
		le.PutUint32(full[headBytes:], sum(full[:headBytes]))
		h, _ := getHead(full[:])
		c := Change{Region: s.regions[text(p[:64])], Buffer: text(p[64:144]), TableOff: le.Uint64(p[144:]), DataOff: le.Uint64(p[152:]), Full: p[164] == 1, Head: h}
		if c.Region == nil {
			return fmt.Errorf("region %s is not there", text(p[:64]))
		}
		if err := c.load(s.dir, uint64(le.Uint32(p[160:]))); err != nil {
			return err
		}
		crc = crcOf(crc, entryBytes(c.Entries))
		changes = append(changes, c)
	}
	if crc != le.Uint32(rec[8:]) {
		return errors.New("the tables of its blocks changed")
	}
	for i := range changes {
		if err := changes[i].check(); err != nil {
			return err
		}
	}
	for i := range changes {
		changes[i].apply()
	}
	s.SetNumber(changes[0].Head.Number)
	return nil
}

func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// load reads the entries and blocks from the buffer's file.
func (c *Change) load(dir string, n uint64) error {
	f, err := os.Open(filepath.Join(dir, filepath.Base(c.Buffer)))
	if err != nil {
		return err
	}
	defer f.Close()
	if n > image.Blocks(c.Region.max) {
		return fmt.Errorf("%d blocks of region %s, which has at most %d", n, c.Region.Name, image.Blocks(c.Region.max))
	}
	c.Entries, c.Data = make([]Entry, n), make([]byte, n*image.Block)
	if _, err := f.ReadAt(entryBytes(c.Entries), int64(c.TableOff)); err != nil && n > 0 {
		return err
	}
	if _, err := f.ReadAt(c.Data, int64(c.DataOff)); err != nil && n > 0 {
		return err
	}
	return nil
}

func (c *Change) check() error {
	for i, e := range c.Entries {
		if uint64(e.Block) >= image.Blocks(c.Region.max) {
			return fmt.Errorf("block %d of region %s, which has at most %d", e.Block, c.Region.Name, image.Blocks(c.Region.max))
		}
		if image.BlockSum(c.Data[i*image.Block:][:image.Block]) != e.Sum {
			return fmt.Errorf("block %d of region %s is not what was committed", e.Block, c.Region.Name)
		}
	}
	return nil
}
