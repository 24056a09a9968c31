// Package image is what an image of memory is and when it may be used: heads, order, checksums, and the rules by which a
// standby takes images. It is pure: no I/O, no clock, no goroutine.
//
// # The rules (D9 of the protocol)
//
// An image is the content of one or several regions at one moment, taken together under one number. It is used only when it
// is complete: every block has arrived and every checksum is right. Until then the image before it is the newest, and the
// pieces of the next one are nowhere that anybody reads. An image carries the epoch in which it was taken, and whoever has
// seen a later epoch refuses it. It carries the sequence of the service's files at its moment, and is neither acknowledged
// nor used where the files are behind that: an image is never newer than the files it goes with. Promotion takes the newest
// complete image of which that is true, and says what it left.
//
// Numbers belong to the service, not to a region: regions that were taken together carry the same number, and (epoch, number)
// falls on a copy only where another active's state replaces what nobody acknowledged.
package image

import (
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/hanode/hanode/cluster"
)

// Block is the unit in which content is compared, sent and stored, in bytes.
const Block = 4096

// MaxName bounds the name of a region in bytes.
const MaxName = 63

// MaxParts bounds the regions of one image.
const MaxParts = 16

// Head is what an image says of one region.
type Head struct {
	Epoch   cluster.Epoch      `json:"epoch"`
	Gen     cluster.Generation `json:"gen"`
	Number  uint64             `json:"number"`
	FileSeq uint64             `json:"file_seq"` // the service's files must be at or after this sequence
	LogSeq  uint64             `json:"log_seq"`  // the last record of the region's message log that the image contains
	Made    int64              `json:"made"`     // wall clock in ns since 1970, for people
	Size    uint64             `json:"size"`
	Layout  uint32             `json:"layout"` // version of the application's own format
	Sum     uint64             `json:"sum"`
}

// Newer says whether h was taken after o.
func (h Head) Newer(o Head) bool {
	return h.Epoch > o.Epoch || h.Epoch == o.Epoch && h.Number > o.Number
}

// Same says whether two copies hold the same image.
func (h Head) Same(o Head) bool {
	return h.Epoch == o.Epoch && h.Number == o.Number && h.Sum == o.Sum && h.Size == o.Size && h.Layout == o.Layout
}

// Blocks is the number of blocks that size bytes occupy.
func Blocks(size uint64) uint64 { return (size + Block - 1) / Block }

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	zeroSum    = crc32.Checksum(make([]byte, Block), castagnoli)
)

// BlockSum is the checksum of one block: CRC-32C, turned so that a block of zeros has the sum 0.
func BlockSum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) ^ zeroSum }

// Part is what one block adds to the sum of its region: the sum of a region is the sum of its parts, so that a checkpoint
// costs what its changed blocks cost, and a region that was never written has the sum 0. (The mixing is the finalizer of
// MurmurHash3, which is a bijection: the same block at another place, or another block, gives another part.)
func Part(block uint32, sum uint32) uint64 {
	if sum == 0 {
		return 0
	}
	x := uint64(block)<<32 | uint64(sum)
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return x
}

// CheckName says whether a region may be called so: letters, digits, "-", "_" and "."; it names files too.
func CheckName(name string) error {
	ok := name != "" && len(name) <= MaxName && name[0] != '.' && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
	if !ok {
		return fmt.Errorf("%q cannot be the name of a region: use 1 to %d letters, digits, \"-\", \"_\" and \".\", not beginning with \".\"", name, MaxName)
	}
	return nil
}

// CheckSize says whether a region may have this size, where limit is what the spec allows.
func CheckSize(name string, size, limit uint64) error {
	switch {
	case size == 0:
		return fmt.Errorf("region %s: a size of 0 bytes: ask for 1 to %d bytes", name, limit)
	case size > limit:
		return fmt.Errorf("region %s: %d bytes are more than the %d that the spec allows: raise size of memory %q in the spec, or ask for less", name, size, limit, name)
	}
	return nil
}
