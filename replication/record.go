package replication

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/hanode/hanode/cluster"
)

// The header of a record, little endian:
//
//	 0  4  "HRec"
//	 4  4  length of the whole record in bytes
//	 8  4  CRC-32C (RFC 3720, appendix B.4) of everything from byte 12 on
//	12  1  format version, 1
//	13  1  kind
//	14  1  record flags: 1 = a reader that does not know the kind may skip it
//	15  1  volume
//	16  8  epoch
//	24  8  generation
//	32  8  sequence
//	40  4  length of the data, which end the record
//	44  4  zero
//
// then the operation's fields (108 bytes and two names), then the data.
const (
	HeaderSize = 48
	fieldsSize = 108
	// MaxRecord bounds a record in bytes; readers refuse a longer length before they allocate.
	MaxRecord = HeaderSize + fieldsSize + 2*(2+MaxName) + MaxData

	recordMagic   = "HRec"
	recordVersion = 1
)

// Errors of Parse. Whoever reads a file takes ErrShort and ErrSum at its end for a torn tail, anywhere else for damage.
var (
	ErrShort   = errors.New("the record is cut short")
	ErrSum     = errors.New("the record's checksum is wrong")
	ErrFormat  = errors.New("this is not a record of this format")
	ErrUnknown = errors.New("the record's kind is not known to this version")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Head is what a record says of itself before its operation is read.
type Head struct {
	Pos    cluster.Position
	Kind   Kind
	Volume uint8
	Len    int // of the whole record, in bytes
	Skip   bool
}

// EncodedLen is the length of op's record in bytes.
func EncodedLen(op *Op) int {
	return HeaderSize + fieldsSize + 2 + len(op.Name) + 2 + len(op.NewName) + len(op.Data)
}

// AppendRecord appends op's record at pos to b. Errors: a field that is too long for the format.
func AppendRecord(b []byte, pos cluster.Position, op *Op) ([]byte, error) {
	switch {
	case len(op.Data) > MaxData:
		return b, fmt.Errorf("an operation of %d bytes: at most %d fit into a record", len(op.Data), MaxData)
	case len(op.Name) > MaxName || len(op.NewName) > MaxName:
		return b, fmt.Errorf("a name of more than %d bytes", MaxName)
	case op.Volume == 0:
		return b, errors.New("an operation on no volume")
	}
	at := len(b)
	le := binary.LittleEndian
	b = append(b, recordMagic...)
	b = le.AppendUint32(b, uint32(EncodedLen(op)))
	b = le.AppendUint32(b, 0)
	b = append(b, recordVersion, byte(op.Kind), 0, op.Volume)
	b = le.AppendUint64(b, uint64(pos.Epoch))
	b = le.AppendUint64(b, uint64(pos.Gen))
	b = le.AppendUint64(b, pos.Seq)
	b = le.AppendUint32(b, uint32(len(op.Data)))
	b = le.AppendUint32(b, 0)
	for _, v := range [...]uint64{uint64(op.ID), uint64(op.Parent), uint64(op.NewParent), uint64(op.Before)} {
		b = le.AppendUint64(b, v)
	}
	for _, v := range [...]uint32{op.Flags, op.Valid, op.Mode, op.UID, op.GID, op.Rdev} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range [...]int64{op.Off, op.Len, op.Atime, op.Time} {
		b = le.AppendUint64(b, uint64(v))
	}
	b = le.AppendUint64(b, 0) // for later
	b = le.AppendUint64(b, 0)
	b = le.AppendUint16(b, uint16(len(op.Name)))
	b = append(b, op.Name...)
	b = le.AppendUint16(b, uint16(len(op.NewName)))
	b = append(b, op.NewName...)
	b = append(b, op.Data...)
	le.PutUint32(b[at+8:], crc32.Checksum(b[at+12:], castagnoli))
	return b, nil
}

// ParseHead reads the header of the record at the beginning of b, without its checksum. Errors: ErrShort, ErrFormat.
func ParseHead(b []byte) (Head, error) {
	if len(b) < HeaderSize {
		return Head{}, ErrShort
	}
	le := binary.LittleEndian
	n := le.Uint32(b[4:])
	if string(b[:4]) != recordMagic || b[12] != recordVersion || n < HeaderSize+fieldsSize+4 || n > MaxRecord || b[15] == 0 {
		return Head{}, ErrFormat
	}
	return Head{
		Pos:    cluster.Position{Epoch: cluster.Epoch(le.Uint64(b[16:])), Gen: cluster.Generation(le.Uint64(b[24:])), Seq: le.Uint64(b[32:])},
		Kind:   Kind(b[13]),
		Volume: b[15],
		Len:    int(n),
		Skip:   b[14]&1 != 0,
	}, nil
}

// Check reads the header and verifies the checksum of the record at the beginning of b. Errors: ErrShort, ErrSum, ErrFormat.
func Check(b []byte) (Head, error) {
	h, err := ParseHead(b)
	switch {
	case err != nil:
		return h, err
	case len(b) < h.Len:
		return h, ErrShort
	case crc32.Checksum(b[12:h.Len], castagnoli) != binary.LittleEndian.Uint32(b[8:]):
		return h, ErrSum
	}
	return h, nil
}

// Parse reads and verifies the record at the beginning of b. op.Data is a part of b. Errors: as Check; ErrUnknown for a kind of a later version
// (h.Skip says whether it may be skipped); ErrFormat for names that no directory entry can have.
func Parse(b []byte, op *Op) (h Head, err error) {
	if h, err = Check(b); err != nil {
		return h, err
	}
	le := binary.LittleEndian
	data := int(le.Uint32(b[40:]))
	f := b[HeaderSize:h.Len]
	u64 := func(i int) uint64 { return le.Uint64(f[i:]) }
	u32 := func(i int) uint32 { return le.Uint32(f[i:]) }
	*op = Op{
		Kind: h.Kind, Volume: h.Volume,
		ID: FileID(u64(0)), Parent: FileID(u64(8)), NewParent: FileID(u64(16)), Before: FileID(u64(24)),
		Flags: u32(32), Valid: u32(36), Mode: u32(40), UID: u32(44), GID: u32(48), Rdev: u32(52),
		Off: int64(u64(60)), Len: int64(u64(68)), Atime: int64(u64(76)), Time: int64(u64(84)),
	}
	f = f[fieldsSize:]
	for _, s := range [...]*string{&op.Name, &op.NewName} {
		if len(f) < 2 || len(f)-2 < int(le.Uint16(f)) || le.Uint16(f) > MaxName {
			return h, ErrFormat
		}
		*s = string(f[2 : 2+le.Uint16(f)])
		f = f[2+le.Uint16(f):]
	}
	if len(f) != data {
		return h, ErrFormat
	}
	op.Data = f
	if int(h.Kind) >= len(kindText) || kindText[h.Kind] == "" {
		return h, ErrUnknown
	}
	if !op.named() {
		return h, ErrFormat
	}
	return h, nil
}

// named says whether every name that the operation uses is one that a directory entry can have.
func (op *Op) named() bool {
	entry := func(s string) bool { return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00") }
	switch op.Kind {
	case Create:
		return op.Parent == 0 || entry(op.Name)
	case Link, Unlink, Rmdir:
		return entry(op.Name)
	case Rename:
		return entry(op.Name) && entry(op.NewName)
	case SetXattr, DelXattr:
		return op.Name != "" && !strings.Contains(op.Name, "\x00")
	}
	return true
}
