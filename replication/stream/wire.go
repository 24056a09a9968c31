package stream

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/stream/replica"
)

// A frame is 40 bytes, little endian, and its payload:
//
//	 0  2  "HS"
//	 2  1  format version, 1
//	 3  1  type
//	 4  4  length of the payload
//	 8  8  epoch of the sender
//	16  8  generation
//	24  8  sequence: of the first record (data), up to where (sync, ack), bytes consumed (credit)
//	32  4  zero
//	36  4  CRC-32C of bytes 0 to 35
//
// The cluster, the service and both sides are named once, in the hello of each side. Records have checksums of their own.
const (
	frameHead    = 40
	frameVersion = 1
	maxData      = 1<<20 + replication.MaxRecord
	maxControl   = 1 << 20
	maxChunk     = 64 << 10
	ackSize      = 32

	protoMin, protoMax = 1, 1
)

type frameType uint8

const (
	frameHello  frameType = 1  // JSON: both sides, first
	frameStart  frameType = 2  // JSON: source to follower: how it goes on
	frameData   frameType = 3  // records
	frameAck    frameType = 4  // seq: accepted; durable, applied, bytes consumed, flags
	frameSync   frameType = 5  // make everything up to seq durable
	frameRefuse frameType = 6  // JSON: why the sender of this ends the session
	frameBeat   frameType = 7  // nothing; both sides, so that a dead connection is noticed
	frameChunk  frameType = 8  // of the channel of the resync
	frameCredit frameType = 9  // seq: bytes of that channel that were consumed
	frameEnd    frameType = 10 // the source's walk has ended; seq: what it may have seen
	frameAgain  frameType = 11 // follower to source: another walk is needed, because ids are missing
	frameTypes  frameType = 12
)

func (t frameType) max() int {
	switch t {
	case frameHello, frameStart, frameRefuse:
		return maxControl
	case frameData:
		return maxData
	case frameAck:
		return ackSize
	case frameChunk:
		return maxChunk
	}
	return 0
}

type head struct {
	typ   frameType
	n     int
	epoch cluster.Epoch
	gen   cluster.Generation
	seq   uint64
}

var errFrame = errors.New("this is not a frame of the stream")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (h head) put(b []byte) {
	le := binary.LittleEndian
	copy(b, "HS")
	b[2], b[3] = frameVersion, byte(h.typ)
	le.PutUint32(b[4:], uint32(h.n))
	le.PutUint64(b[8:], uint64(h.epoch))
	le.PutUint64(b[16:], uint64(h.gen))
	le.PutUint64(b[24:], h.seq)
	le.PutUint32(b[32:], 0)
	le.PutUint32(b[36:], crc32.Checksum(b[:36], castagnoli))
}

// parseHead bounds everything before anybody allocates.
func parseHead(b []byte) (head, error) {
	le := binary.LittleEndian
	h := head{frameType(b[3]), int(le.Uint32(b[4:])), cluster.Epoch(le.Uint64(b[8:])), cluster.Generation(le.Uint64(b[16:])), le.Uint64(b[24:])}
	switch {
	case string(b[:2]) != "HS" || crc32.Checksum(b[:36], castagnoli) != le.Uint32(b[36:]):
		return h, errFrame
	case b[2] != frameVersion:
		return h, fmt.Errorf("%w: version %d, this one speaks %d", errFrame, b[2], frameVersion)
	case h.typ == 0 || h.typ >= frameTypes:
		return h, fmt.Errorf("%w: type %d is not known", errFrame, h.typ)
	case h.n > h.typ.max() || h.n < 0:
		return h, fmt.Errorf("%w: %d bytes in a frame of type %d, which has at most %d", errFrame, h.n, h.typ, h.typ.max())
	}
	return h, nil
}

func readHead(r io.Reader, b *[frameHead]byte) (head, error) {
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return head{}, err
	}
	return parseHead(b[:])
}

// hello is what each side says of itself and of its copy.
type hello struct {
	Min     int                 `json:"min"` // protocol versions
	Max     int                 `json:"max"`
	Cluster string              `json:"cluster"`
	Service string              `json:"service"`
	Volumes []string            `json:"volumes"`
	Run     replica.Run         `json:"run"`
	Leads   bool                `json:"leads"`
	Epoch   cluster.Epoch       `json:"epoch"`
	Gen     cluster.Generation  `json:"gen"`
	History replication.History `json:"history"`
	Last    uint64              `json:"last"`
	Applied uint64              `json:"applied"` // up to which record it may have applied
	Dirty   bool                `json:"dirty"`   // its trees may hold what its journal does not say
}

// start is how the source goes on.
type start struct {
	Plan    replica.Plan        `json:"plan"`
	Fork    cluster.Position    `json:"fork"` // the next record is the one after it
	History replication.History `json:"history,omitempty"`
	Common  uint64              `json:"common,omitempty"` // resync: what the follower has after this, nobody else has
	Again   bool                `json:"again,omitempty"`  // a further walk of the same resync
}

// refusal is why a session ends.
type refusal struct {
	Epoch cluster.Epoch `json:"epoch"` // the highest that the refusing side knows of
	Why   string        `json:"why"`
	Later bool          `json:"later"` // it may be tried again
}

func control(t frameType, epoch cluster.Epoch, gen cluster.Generation, v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(text) > maxControl {
		return nil, fmt.Errorf("a frame of %d bytes: at most %d", len(text), maxControl)
	}
	b := make([]byte, frameHead, frameHead+len(text))
	head{typ: t, n: len(text), epoch: epoch, gen: gen}.put(b)
	return append(b, text...), nil
}

type ack struct {
	epoch                                cluster.Epoch
	gen                                  cluster.Generation
	accepted, durable, applied, consumed uint64
	whole                                bool
}

// put writes the frame.
func (a ack) put(b *[frameHead + ackSize]byte) []byte {
	head{frameAck, ackSize, a.epoch, a.gen, a.accepted}.put(b[:])
	le := binary.LittleEndian
	le.PutUint64(b[frameHead:], a.durable)
	le.PutUint64(b[frameHead+8:], a.applied)
	le.PutUint64(b[frameHead+16:], a.consumed)
	flags := uint64(0)
	if a.whole {
		flags = 1
	}
	le.PutUint64(b[frameHead+24:], flags)
	return b[:]
}

func parseAck(h head, b []byte) (ack, error) {
	if len(b) != ackSize {
		return ack{}, fmt.Errorf("%w: an acknowledgement of %d bytes", errFrame, len(b))
	}
	le := binary.LittleEndian
	return ack{h.epoch, h.gen, h.seq, le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])&1 != 0}, nil
}

// records verifies what a data frame carries: whole records, contiguous from first on, of positions that never fall, of volumes that are there.
// turned says that an epoch or generation begins in them.
func records(b []byte, first uint64, volumes int, after cluster.Position) (last cluster.Position, turned bool, err error) {
	last = after
	var op replication.Op
	for seq := first; len(b) > 0; seq++ {
		h, err := replication.Parse(b, &op)
		switch {
		case err != nil && !(errors.Is(err, replication.ErrUnknown) && h.Skip):
			return last, turned, fmt.Errorf("record %d: %w", seq, err)
		case h.Pos.Seq != seq:
			return last, turned, fmt.Errorf("record %d where %d should be", h.Pos.Seq, seq)
		case h.Pos.Epoch < last.Epoch || h.Pos.Gen < last.Gen:
			return last, turned, fmt.Errorf("record %d is of epoch %d generation %d, after epoch %d generation %d", seq, h.Pos.Epoch, h.Pos.Gen, last.Epoch, last.Gen)
		case int(h.Volume) > volumes:
			return last, turned, fmt.Errorf("record %d is of volume %d, and there are %d", seq, h.Volume, volumes)
		}
		turned = turned || h.Pos.Epoch != last.Epoch || h.Pos.Gen != last.Gen
		last = h.Pos
		b = b[h.Len:]
	}
	if last == after {
		return last, false, errors.New("a data frame without a record")
	}
	return last, turned, nil
}

// turnsOf adds to a history the turns that the records begin.
func turnsOf(h replication.History, b []byte) replication.History {
	for len(b) > 0 {
		x, err := replication.ParseHead(b)
		if err != nil {
			return h
		}
		h = h.Add(x.Pos)
		b = b[x.Len:]
	}
	return h
}
