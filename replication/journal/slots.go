package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	iofs "io/fs"

	"github.com/hanode/hanode/replication/journal/disk"
)

// The applied position is kept in a file of two blocks of 4096 bytes that are written in turn, so that one of them is always whole:
//
//	 0  4  "HApp"
//	 4  4  CRC-32C of bytes 8 to 47
//	 8  8  format version, 1
//	16  8  number of this writing
//	24  8  lineage: number of the newest segment that began with a cut or a reset
//	32  8  applied sequence
//	40  8  the sequence up to which everything was durable
//
// The lineage says to which stretch of the journal the position belongs: a cut or a reset carries its own applied position in its first frame, and
// what was written for an older stretch does not count.
const (
	slotMagic = "HApp"
	slotName  = "applied"
	slotStep  = 4096
	slotSize  = 48
)

type slots struct {
	f       disk.File
	turn    uint64
	lineage uint64
	applied uint64
	durable uint64
	before  uint64 // what the other block says: a damaged block costs no more than this
}

func encodeSlot(turn, lineage, applied, durable uint64) []byte {
	b := make([]byte, slotSize)
	le := binary.LittleEndian
	copy(b, slotMagic)
	le.PutUint64(b[8:], 1)
	le.PutUint64(b[16:], turn)
	le.PutUint64(b[24:], lineage)
	le.PutUint64(b[32:], applied)
	le.PutUint64(b[40:], durable)
	le.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	return b
}

// openSlots reads the file; nil if there is none.
func openSlots(fs FS, dir string) (*slots, error) {
	name := join(dir, slotName)
	f, err := fs.Open(name)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	s := &slots{f: f}
	whole := 0
	for i := range int64(2) {
		b := make([]byte, slotSize)
		if _, err := f.ReadAt(b, i*slotStep); err != nil && !errors.Is(err, io.EOF) {
			f.Close()
			return nil, err
		}
		le := binary.LittleEndian
		if string(b[:4]) != slotMagic || crc32.Checksum(b[8:], castagnoli) != le.Uint32(b[4:]) {
			continue
		}
		if v := le.Uint64(b[8:]); v != 1 {
			f.Close()
			return nil, fmt.Errorf("%s has format %d, this version of hanode reads format 1: run the version that wrote it", name, v)
		}
		turn, lineage, applied := le.Uint64(b[16:]), le.Uint64(b[24:]), le.Uint64(b[32:])
		if whole++; turn > s.turn {
			s.turn, s.lineage, s.applied, s.durable, s.before = turn, lineage, applied, le.Uint64(b[40:]), s.applied
		} else {
			s.before = applied
		}
	}
	if whole == 0 {
		f.Close()
		return nil, &Damage{name, 0, "neither of its two blocks is whole"}
	}
	return s, nil
}

// newSlots makes the file, durably.
func newSlots(fs FS, dir string) (*slots, error) {
	tmp := join(dir, slotName+".tmp")
	f, err := fs.Create(tmp)
	if err != nil {
		return nil, err
	}
	s := &slots{f: f}
	if err = f.Allocate(2 * slotStep); err == nil {
		if err = s.write(0, 0, 0); err == nil {
			if err = s.write(0, 0, 0); err == nil {
				if err = fs.Rename(tmp, join(dir, slotName)); err == nil {
					err = fs.SyncDir(dir)
				}
			}
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

func (s *slots) write(lineage, applied, durable uint64) error {
	turn := s.turn + 1
	if err := s.f.WriteVec([][]byte{encodeSlot(turn, lineage, applied, durable)}, int64(turn%2)*slotStep); err != nil {
		return err
	}
	if err := s.f.Sync(); err != nil {
		return err
	}
	s.turn, s.before, s.lineage, s.applied, s.durable = turn, s.applied, lineage, applied, durable
	return nil
}

// Checkpoint says that everything up to applied is in the backing trees, durably: redo begins behind it. Records up to there are made durable first, so
// that a tree is never ahead of its journal. An older position than the last one changes nothing. Records are released up to the position of the checkpoint
// before the last; the last one given again makes both say the same, so that everything up to it can go.
func (j *Journal) Checkpoint(applied uint64) error {
	j.ckmu.Lock()
	defer j.ckmu.Unlock()
	j.mu.Lock()
	last, old := j.last.Seq, j.applied
	err := j.broken
	nothing := applied < old || applied == old && j.slots.before >= applied
	if err == nil && applied > last {
		err = fmt.Errorf("checkpoint at %d: the journal ends at %d", applied, last)
	}
	if err == nil && applied > old {
		err = j.syncTo(applied)
	}
	j.mu.Unlock()
	if err != nil || nothing {
		return err
	}
	return j.checkpoint(applied)
}

// checkpoint writes the applied position. ckmu is held.
func (j *Journal) checkpoint(applied uint64) error {
	if err := j.slots.write(j.lineage, applied, j.Durable()); err != nil {
		return j.fail(fmt.Errorf("write the applied position: %w", err))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.applied = applied
	return nil
}
