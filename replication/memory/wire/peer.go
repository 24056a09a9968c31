package wire

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication/memory/image"
)

// FrameHeader is the size of a frame's header, MaxFrame bounds a frame and PageBlocks the blocks of one frame.
const (
	FrameHeader  = 40
	MaxFrame     = 1 << 20
	PageBlocks   = 240
	FrameVersion = 1
	entrySize    = 8
	partSize     = 184
	frameMagic   = "HMem"
)

// FrameKind is what a frame between two members is.
type FrameKind uint8

const (
	PeerHello  FrameKind = 1  // both, first: JSON Greeting
	PeerAsk    FrameKind = 2  // active: I lead in this epoch. JSON Asking
	PeerHave   FrameKind = 3  // standby: what it holds. JSON Having
	PeerRefuse FrameKind = 4  // standby: JSON Refusal
	PeerDefine FrameKind = 5  // active: JSON Definition
	PeerPages  FrameKind = 6  // active: blocks of one region of an image
	PeerCommit FrameKind = 7  // active: the image is complete
	PeerAck    FrameKind = 8  // standby: the image is held; the header's tx says which
	PeerRecord FrameKind = 9  // active: a record of a message log; tx is its sequence
	PeerLogged FrameKind = 10 // standby: the record is held
)

// Frame is a frame's header and what follows it.
type Frame struct {
	Kind   FrameKind
	Region uint32 // number that Definition gave
	Epoch  cluster.Epoch
	Gen    cluster.Generation
	Tx     uint64
	Body   []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// PutHeader writes the header of a frame whose body has n bytes, of which head are given here (blocks of memory follow later and have sums of
// their own):
//
//	 0  4  "HMem"
//	 4  4  length of the whole frame
//	 8  4  CRC-32C of bytes 12 to 40 and of the body without blocks
//	12  1  version, 1
//	13  1  kind
//	14  2  zero
//	16  4  region
//	20  4  zero
//	24  8  epoch
//	32  8  tx
//
// The generation travels in the images' heads.
func PutHeader(b []byte, f *Frame, n int, head []byte) {
	copy(b, frameMagic)
	le.PutUint32(b[4:], uint32(FrameHeader+n))
	b[12], b[13], b[14], b[15] = FrameVersion, byte(f.Kind), 0, 0
	le.PutUint32(b[16:], f.Region)
	le.PutUint32(b[20:], 0)
	le.PutUint64(b[24:], uint64(f.Epoch))
	le.PutUint64(b[32:], f.Tx)
	le.PutUint32(b[8:], crc32.Update(crc32.Checksum(b[12:FrameHeader], castagnoli), castagnoli, head))
}

// AppendFrame appends a whole frame without blocks to b.
func AppendFrame(b []byte, f *Frame) []byte {
	at := len(b)
	b = append(b, make([]byte, FrameHeader)...)
	PutHeader(b[at:], f, len(f.Body), f.Body)
	return append(b, f.Body...)
}

// ErrFrame says that what came is not a frame: the connection is of no more use.
var ErrFrame = errors.New("not a frame of replicated memory")

// Head is a frame's header as it was read.
type Head struct {
	Frame
	Len int // of the body
	crc uint32
	sum uint32 // of the header
}

// ReadHead reads a frame's header.
func ReadHead(r io.Reader, b *[FrameHeader]byte) (Head, error) {
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Head{}, err
	}
	n := le.Uint32(b[4:])
	if string(b[:4]) != frameMagic || b[12] != FrameVersion || n < FrameHeader || n > MaxFrame {
		return Head{}, fmt.Errorf("%w: magic %q, version %d, %d bytes", ErrFrame, b[:4], b[12], n)
	}
	h := Head{Len: int(n) - FrameHeader, crc: le.Uint32(b[8:]), sum: crc32.Checksum(b[12:], castagnoli)}
	h.Kind, h.Region, h.Epoch, h.Tx = FrameKind(b[13]), le.Uint32(b[16:]), cluster.Epoch(le.Uint64(b[24:])), le.Uint64(b[32:])
	return h, nil
}

// Check verifies the header together with the body without blocks.
func (h *Head) Check(body []byte) error {
	if crc32.Update(h.sum, castagnoli, body) != h.crc {
		return fmt.Errorf("%w: its checksum is wrong", ErrFrame)
	}
	return nil
}

// Pages has a body of: blocks u32, flags u32 (1: blocks may come again within the image, the last one counts), 8 bytes per block (number u32, sum u32), the blocks.
const PagesFixed = 8

// PagesHead is the length of the body without blocks, and CheckPages whether a body of n bytes can have so many blocks.
func PagesHead(blocks int) int { return PagesFixed + entrySize*blocks }

// CheckPages see PagesHead.
func CheckPages(n int, blocks uint32) error {
	if blocks == 0 || blocks > PageBlocks || n != PagesHead(int(blocks))+int(blocks)*image.Block {
		return fmt.Errorf("%w: %d bytes with %d blocks", ErrFrame, n, blocks)
	}
	return nil
}

// CommitPart is one region of PeerCommit.
type CommitPart struct {
	Region uint32
	Full   bool
	Blocks uint32 // that were sent
	Base   image.Head
	Head   image.Head
}

// AppendCommit makes the body of PeerCommit: flags u32 (1: the state of several regions at one moment, each with the number of its own), parts u32, then each part.
func AppendCommit(b []byte, parts []CommitPart, moment bool) []byte {
	b = le.AppendUint32(b, flag(moment))
	b = le.AppendUint32(b, uint32(len(parts)))
	for i := range parts {
		p := &parts[i]
		b = le.AppendUint32(b, p.Region)
		b = le.AppendUint32(b, flag(p.Full))
		b = le.AppendUint32(b, p.Blocks)
		b = le.AppendUint32(b, 0)
		b = appendHead(b, &p.Base)
		b = appendHead(b, &p.Head)
		b = append(b, make([]byte, partSize-16-2*72)...)
	}
	return b
}

func flag(is bool) uint32 {
	if is {
		return 1
	}
	return 0
}

// ParseCommit reads the body of PeerCommit.
func ParseCommit(b []byte) (parts []CommitPart, moment bool, err error) {
	if len(b) < 8 || le.Uint32(b[4:]) == 0 || le.Uint32(b[4:]) > image.MaxParts || len(b) != 8+partSize*int(le.Uint32(b[4:])) {
		return nil, false, fmt.Errorf("%w: an end of an image of %d bytes", ErrFrame, len(b))
	}
	moment = le.Uint32(b) == 1
	for b = b[8:]; len(b) > 0; b = b[partSize:] {
		parts = append(parts, CommitPart{Region: le.Uint32(b), Full: le.Uint32(b[4:]) == 1, Blocks: le.Uint32(b[8:]), Base: parseHead(b[16:]), Head: parseHead(b[88:])})
	}
	return parts, moment, nil
}

func appendHead(b []byte, h *image.Head) []byte {
	for _, v := range [...]uint64{uint64(h.Epoch), uint64(h.Gen), h.Number, h.FileSeq, h.LogSeq, uint64(h.Made), h.Size, uint64(h.Layout), h.Sum} {
		b = le.AppendUint64(b, v)
	}
	return b
}

func parseHead(b []byte) image.Head {
	u := func(i int) uint64 { return le.Uint64(b[8*i:]) }
	return image.Head{Epoch: cluster.Epoch(u(0)), Gen: cluster.Generation(u(1)), Number: u(2), FileSeq: u(3), LogSeq: u(4), Made: int64(u(5)), Size: u(6), Layout: uint32(u(7)), Sum: u(8)}
}

// Greeting is the body of PeerHello.
type Greeting struct {
	Cluster string           `json:"cluster"`
	Service string           `json:"service"`
	Member  cluster.MemberNo `json:"member"`
	Oldest  int              `json:"oldest"` // versions of the frames that are understood
	Newest  int              `json:"newest"`
}

// Asking is the body of PeerAsk. Again: the epoch grew under the same active (Bump); nothing is compared anew.
type Asking struct {
	Again bool `json:"again,omitempty"`
}

// Having is the body of PeerHave.
type Having struct {
	Regions []Held `json:"regions,omitempty"`
}

// Held is one region of a standby, with the images that are complete and wait for the files.
type Held struct {
	Name    string     `json:"name"`
	Head    image.Head `json:"head"`
	LastSeq uint64     `json:"last_seq"`
}

// Refusal is the body of PeerRefuse. With a region: that one cannot be held, or must be sent anew; without: the sender's epoch is over.
type Refusal struct {
	Epoch  cluster.Epoch `json:"epoch"`
	Region string        `json:"region,omitempty"`
	Again  bool          `json:"again,omitempty"` // the whole image would help
	Text   string        `json:"text"`
}

// Definition is the body of PeerDefine: from now on the region has this number on this connection.
type Definition struct {
	Number uint32 `json:"number"`
	Name   string `json:"name"`
	Size   uint64 `json:"size"`
	Layout uint32 `json:"layout"`
}
