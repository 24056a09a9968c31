package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/hanode/hanode/cluster"
)

// A segment begins with a block of 4096 bytes, little endian:
//
//	 0  4  "HSeg"
//	 4  4  CRC-32C of bytes 8 to 511
//	 8  4  format version, 1
//	12  4  length of this block, 4096
//	16  8  number of the segment, never used again
//	24  8  salt, random
//	32  8  size of the file
//	40  1+100  length and text of the cluster's id
//	141 1+100  length and text of the service's name
//
// and goes on with frames. Each frame is a header of 88 bytes and the records that one Append took:
//
//	 0  4  "HFrm"
//	 4  4  CRC-32C of bytes 8 to 87
//	 8  8  salt of the segment
//	16  8  number of the segment
//	24  8  offset of this frame in the file
//	32  4  kind: 1 base, 2 base after a cut, 3 base after a reset, 4 records; bit 8: the segment's base was durable when this was written
//	36  4  length of the records that follow
//	40  8  first sequence of the records; of a base: number of the segment before, 0 if none counts
//	48  8  epoch, 56 generation, 64 sequence: of the last record; of a base: of the record before the first of this segment
//	72  8  the sequence up to which everything was durable when this was written
//	80  8  of a base: the applied position as of then
//
// A frame header is believed only at its own place in its own segment: bytes of an earlier use of the file, or bytes that a user wrote into
// a volume, are none. The records carry their own checksums.
const (
	segMagic   = "HSeg"
	frameMagic = "HFrm"
	segVersion = 1
	headSize   = 4096
	headUsed   = 512
	frameSize  = 88
	maxOwner   = 100
)

type kind uint32

const (
	base      kind = 1
	baseCut   kind = 2
	baseReset kind = 3
	records   kind = 4

	kindBased = 1 << 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errFormat = errors.New("format")

type segHead struct {
	no, salt         uint64
	size             int64
	cluster, service string
}

func (h *segHead) encode() []byte {
	b := make([]byte, headSize)
	le := binary.LittleEndian
	copy(b, segMagic)
	le.PutUint32(b[8:], segVersion)
	le.PutUint32(b[12:], headSize)
	le.PutUint64(b[16:], h.no)
	le.PutUint64(b[24:], h.salt)
	le.PutUint64(b[32:], uint64(h.size))
	b[40] = byte(copy(b[41:41+maxOwner], h.cluster))
	b[141] = byte(copy(b[142:142+maxOwner], h.service))
	le.PutUint32(b[4:], crc32.Checksum(b[8:headUsed], castagnoli))
	return b
}

// decodeSegHead errors: why b is not the beginning of a segment of this format.
func decodeSegHead(b []byte) (h segHead, err error) {
	le := binary.LittleEndian
	switch {
	case len(b) < headUsed || string(b[:4]) != segMagic:
		return h, fmt.Errorf("it does not begin like a segment of a journal")
	case crc32.Checksum(b[8:headUsed], castagnoli) != le.Uint32(b[4:]):
		return h, fmt.Errorf("the checksum of its first block is wrong")
	case le.Uint32(b[8:]) != segVersion:
		return h, fmt.Errorf("it has %w %d, this version of hanode reads format %d: run the version that wrote it", errFormat, le.Uint32(b[8:]), segVersion)
	case b[40] > maxOwner || b[141] > maxOwner || le.Uint32(b[12:]) != headSize:
		return h, fmt.Errorf("its first block contradicts itself")
	}
	return segHead{no: le.Uint64(b[16:]), salt: le.Uint64(b[24:]), size: int64(le.Uint64(b[32:])),
		cluster: string(b[41 : 41+int(b[40])]), service: string(b[142 : 142+int(b[141])])}, nil
}

type frame struct {
	kind    kind
	len     int
	first   uint64 // records: first sequence; base: number of the segment before
	last    cluster.Position
	durable uint64
	applied uint64
	based   bool
}

func (f *frame) isBase() bool { return f.kind < records }

// encode puts the frame's header, as it stands at off of segment s, into b.
func (f *frame) encode(b []byte, s *segment, off int64) {
	le := binary.LittleEndian
	copy(b, frameMagic)
	le.PutUint64(b[8:], s.salt)
	le.PutUint64(b[16:], s.no)
	le.PutUint64(b[24:], uint64(off))
	k := uint32(f.kind)
	if f.based {
		k |= kindBased
	}
	le.PutUint32(b[32:], k)
	le.PutUint32(b[36:], uint32(f.len))
	le.PutUint64(b[40:], f.first)
	le.PutUint64(b[48:], uint64(f.last.Epoch))
	le.PutUint64(b[56:], uint64(f.last.Gen))
	le.PutUint64(b[64:], f.last.Seq)
	le.PutUint64(b[72:], f.durable)
	le.PutUint64(b[80:], f.applied)
	le.PutUint32(b[4:], crc32.Checksum(b[8:frameSize], castagnoli))
}

// decodeFrame reads the frame's header at off of segment s; ok is false for anything that was not written there.
func decodeFrame(b []byte, s *segment, off int64) (f frame, ok bool) {
	le := binary.LittleEndian
	if len(b) < frameSize || string(b[:4]) != frameMagic || le.Uint64(b[8:]) != s.salt || le.Uint64(b[16:]) != s.no ||
		le.Uint64(b[24:]) != uint64(off) || crc32.Checksum(b[8:frameSize], castagnoli) != le.Uint32(b[4:]) {
		return f, false
	}
	k := le.Uint32(b[32:])
	f = frame{kind: kind(k &^ kindBased), based: k&kindBased != 0, len: int(le.Uint32(b[36:])), first: le.Uint64(b[40:]),
		last:    cluster.Position{Epoch: cluster.Epoch(le.Uint64(b[48:])), Gen: cluster.Generation(le.Uint64(b[56:])), Seq: le.Uint64(b[64:])},
		durable: le.Uint64(b[72:]), applied: le.Uint64(b[80:])}
	if f.kind == 0 || f.kind > records || int64(f.len) > s.size-off-frameSize || f.isBase() != (off == headSize) || f.isBase() && f.len != 0 {
		return f, false
	}
	return f, true
}
