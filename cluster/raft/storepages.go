package raft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"os"
)

// Layout of a bbolt file, in the byte order of the machine: go.etcd.io/bbolt internal/common, page.go, meta.go, bucket.go.
const (
	pageHead    = 16 // id u64, flags u16, count u16, overflow u32
	metaLen     = 64 // magic, version, page size, flags u32; root, sequence, freelist, pages, txid, checksum u64
	elemLen     = 16 // branch: position, key length u32, page u64; leaf: flags, position, key length, value length u32
	flagBranch  = 0x01
	flagLeaf    = 0x02
	bucketEntry = 0x01 // flag of a leaf element whose value is a bucket: root page u64, sequence u64, a page if root is 0
	maxDepth    = 32
)

// pageCheck reads the pages of one bbolt file. Each page may be used once.
type pageCheck struct {
	f     *os.File
	size  uint64 // of a page
	pages uint64 // high-water mark
	root  uint64
	used  map[uint64]bool
}

// checkPages wants both head pages whole, the file as long as the newer one says, and every number in every page that is
// in use within its bounds. bbolt is content with one head page and falls back to the older: that would take back the
// last transaction, a vote perhaps, without a word. (A power cut does not damage a head page, it fits into one sector.)
func checkPages(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	c := &pageCheck{f: f, used: map[uint64]bool{}}
	if err := c.head(); err != nil {
		return &DamagedError{File: path, What: err.Error()}
	}
	if err := c.page(c.root, 0, nil, nil); err != nil {
		return &DamagedError{File: path, What: err.Error()}
	}
	return nil
}

func (c *pageCheck) head() error {
	st, err := c.f.Stat()
	if err != nil {
		return err
	}
	var newest uint64
	for n := uint64(0); n < 2; n++ {
		var m [pageHead + metaLen]byte
		_, err := c.f.ReadAt(m[:], int64(n*c.size))
		b := m[pageHead:]
		h := fnv.New64a()
		h.Write(b[:56])
		if err != nil || h.Sum64() != binary.NativeEndian.Uint64(b[56:]) {
			return fmt.Errorf("head page %d is not valid", n)
		}
		if txid := binary.NativeEndian.Uint64(b[48:]); n == 0 || txid > newest {
			newest, c.pages, c.root = txid, binary.NativeEndian.Uint64(b[40:]), binary.NativeEndian.Uint64(b[16:])
		}
		c.size = uint64(binary.NativeEndian.Uint32(b[8:]))
	}
	if c.pages > 1<<30 || uint64(st.Size()) < c.pages*c.size {
		return fmt.Errorf("it was cut short: %d bytes, its head page speaks of %d", st.Size(), c.pages*c.size)
	}
	return nil
}

// page checks page id and all below it: keys rise, beginning at from, and stay below below (nil: no bound).
func (c *pageCheck) page(id uint64, depth int, from, below []byte) error {
	if id < 2 || id >= c.pages || depth > maxDepth {
		return fmt.Errorf("page %d does not exist", id)
	}
	var head [pageHead]byte
	if _, err := c.f.ReadAt(head[:], int64(id*c.size)); err != nil {
		return fmt.Errorf("page %d cannot be read: %w", id, err)
	}
	overflow := uint64(binary.NativeEndian.Uint32(head[12:]))
	if binary.NativeEndian.Uint64(head[:]) != id || id+overflow >= c.pages {
		return fmt.Errorf("page %d is damaged", id)
	}
	for i := id; i <= id+overflow; i++ {
		if c.used[i] {
			return fmt.Errorf("page %d is used twice", i)
		}
		c.used[i] = true
	}
	b := make([]byte, (overflow+1)*c.size) // at most the file
	if _, err := c.f.ReadAt(b, int64(id*c.size)); err != nil {
		return fmt.Errorf("page %d cannot be read: %w", id, err)
	}
	if err := c.elements(b, depth, from, below); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements checks the elements of a page, given whole.
func (c *pageCheck) elements(b []byte, depth int, from, below []byte) error {
	flags, count := binary.NativeEndian.Uint16(b[8:]), int(binary.NativeEndian.Uint16(b[10:]))
	if flags != flagBranch && flags != flagLeaf || flags == flagBranch && count == 0 || pageHead+count*elemLen > len(b) {
		return fmt.Errorf("it has %d elements of kind %#x", count, flags)
	}
	// bbolt writes keys and values without gaps, right behind the elements: that shows a count that is too small. An
	// empty page was zeroed.
	next := uint64(pageHead + count*elemLen)
	if count == 0 && len(bytes.Trim(b[pageHead:min(pageHead+elemLen, len(b))], "\x00")) > 0 {
		return fmt.Errorf("it says that it is empty and is not")
	}
	keys, rest := make([][]byte, count), make([][]byte, count)
	for i := range keys {
		at := pageHead + i*elemLen
		u32 := func(off int) uint64 { return uint64(binary.NativeEndian.Uint32(b[at+off:])) }
		start, key, value := uint64(at)+u32(0), u32(4), uint64(0)
		if flags == flagLeaf {
			start, key, value = uint64(at)+u32(4), u32(8), u32(12)
		}
		if start != next || start+key+value > uint64(len(b)) {
			return fmt.Errorf("element %d is out of bounds", i)
		}
		next = start + key + value
		keys[i], rest[i] = b[start:start+key], b[start+key:start+key+value]
		low, high := bytes.Compare(keys[i], from), -1
		if below != nil {
			high = bytes.Compare(keys[i], below)
		}
		if from != nil && (low < 0 || i > 0 && low == 0) || high >= 0 {
			return fmt.Errorf("element %d is out of order", i)
		}
		from = keys[i]
	}
	for i := range keys {
		at := pageHead + i*elemLen
		var err error
		if flags == flagBranch {
			upper := below
			if i+1 < count {
				upper = keys[i+1]
			}
			err = c.page(binary.NativeEndian.Uint64(b[at+8:]), depth+1, keys[i], upper)
		} else if kind := binary.NativeEndian.Uint32(b[at:]); kind == bucketEntry {
			err = c.bucket(rest[i], depth)
		} else if kind != 0 {
			err = fmt.Errorf("element %d is of kind %#x", i, kind)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bucket checks the value of a bucket entry: a root page, or a small page within the value.
func (c *pageCheck) bucket(v []byte, depth int) error {
	if len(v) < 16 {
		return fmt.Errorf("a bucket has no root")
	}
	if root := binary.NativeEndian.Uint64(v); root != 0 {
		return c.page(root, depth+1, nil, nil)
	}
	if v = v[16:]; len(v) < pageHead || binary.NativeEndian.Uint16(v[8:]) != flagLeaf || depth > 1 {
		return fmt.Errorf("a small bucket is damaged")
	}
	return c.elements(v, depth+1, nil, nil)
}
