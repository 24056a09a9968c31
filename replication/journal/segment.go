package journal

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hanode/hanode/replication/journal/disk"
)

func join(dir, name string) string { return filepath.Join(dir, name) }

const (
	segSuffix = ".seg"
	nextName  = "next.tmp"
	// zeroStep is how much of a new segment is written with zeros between two syncs, so that the syncs of records beside it do not wait long.
	zeroStep = 4 << 20
)

func segName(no uint64) string { return fmt.Sprintf("%016x%s", no, segSuffix) }

// segNo is the number in a segment's name.
func segNo(name string) (uint64, bool) {
	hex, ok := strings.CutSuffix(name, segSuffix)
	if !ok || len(hex) != 16 {
		return 0, false
	}
	no, err := strconv.ParseUint(hex, 16, 64)
	return no, err == nil && no > 0
}

// Run makes segments ahead of their use until ctx ends, so that Append never waits for one. Without it, Append makes them itself.
// A disk that has no room is asked again when a segment is released.
func (j *Journal) Run(ctx context.Context) error {
	for {
		for j.wantsSpare() {
			if _, err := j.make(true); err != nil {
				break // Append meets the same error when it needs the segment, and tells it
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-j.need:
		}
	}
}

func (j *Journal) wantsSpare() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	want := 1
	if j.lim.Size >= 8*j.lim.Segment {
		want = 2
	}
	return len(j.spares) < want && j.broken == nil
}

// take returns a segment for use.
func (j *Journal) take() (*segment, error) {
	j.mu.Lock()
	var s *segment
	for {
		if len(j.spares) > 0 {
			s, j.spares = j.spares[0], j.spares[1:]
		} else if j.making { // Run is about to have one
			j.cond.Wait()
			continue
		}
		break
	}
	j.mu.Unlock()
	j.wake()
	if s != nil {
		return s, nil
	}
	return j.make(false)
}

func (j *Journal) wake() {
	select {
	case j.need <- struct{}{}:
	default:
	}
}

// make makes a segment, as a spare or for use: from a released file if there is one, else from new room.
func (j *Journal) make(spare bool) (*segment, error) {
	j.mu.Lock()
	for j.making {
		j.cond.Wait()
	}
	j.making = true
	s := &segment{no: j.nextNo, size: j.lim.Segment}
	j.nextNo++
	var old *segment
	for i, o := range j.free {
		if o.refs == 0 && o.size == s.size {
			old = o
			j.free = append(j.free[:i:i], j.free[i+1:]...)
			break
		}
	}
	j.mu.Unlock()
	s.path = join(j.dir, segName(s.no))
	err := j.makeFile(s, old)
	if err != nil {
		if s.f != nil {
			s.f.Close()
		}
		_ = j.fs.Remove(join(j.dir, nextName)) // if it stays, Open removes it
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.making = false
	j.cond.Broadcast()
	if err != nil {
		return nil, err
	}
	if spare {
		j.spares = append(j.spares, s)
	}
	return s, nil
}

func (j *Journal) makeFile(s, old *segment) (err error) {
	var salt [8]byte
	if _, err = rand.Read(salt[:]); err != nil {
		return err
	}
	s.salt = binary.LittleEndian.Uint64(salt[:])
	tmp := join(j.dir, nextName)
	if old != nil {
		if s.f = old.f; s.f == nil {
			s.f, err = j.fs.Open(old.path)
		}
		if err == nil {
			err = j.fs.Rename(old.path, tmp)
		}
		if err == nil {
			err = j.fs.SyncDir(j.dir)
		}
		if err == nil {
			err = warm(s.f, s.size)
		}
	} else {
		if s.f, err = j.fs.Create(tmp); err == nil {
			err = j.zero(s)
		}
	}
	if err != nil {
		return err
	}
	h := segHead{no: s.no, salt: s.salt, size: s.size, cluster: j.lim.Cluster, service: j.lim.Service}
	if err = s.f.WriteVec([][]byte{h.encode()}, 0); err != nil {
		return err
	}
	if err = s.f.Sync(); err != nil {
		return err
	}
	if err = j.fs.Rename(tmp, s.path); err != nil {
		return err
	}
	return j.fs.SyncDir(j.dir)
}

// zero gives a new file its room and writes it, so that a sync of records has no metadata to write.
func (j *Journal) zero(s *segment) error {
	if err := s.f.Allocate(s.size); err != nil {
		return err
	}
	z := make([]byte, min(1<<20, s.size))
	for off := int64(0); off < s.size; {
		n := min(int64(len(z)), s.size-off)
		if err := s.f.WriteVec([][]byte{z[:n]}, off); err != nil {
			return err
		}
		if off += n; off%zeroStep == 0 && off < s.size {
			if err := s.f.Sync(); err != nil {
				return err
			}
		}
	}
	return nil
}

// warm reads a file that is used again, so that writing a part of a page need not wait for the page.
func warm(f disk.File, size int64) error {
	b := make([]byte, min(1<<20, size))
	for off := int64(0); off < size; off += int64(len(b)) {
		if _, err := f.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}

// Release lets segments go whose records are all at or before upto and the checkpoint before the last one, oldest first, as long as the journal is larger than Limits.Size.
func (j *Journal) Release(upto uint64) error {
	for {
		j.mu.Lock()
		if j.broken != nil {
			defer j.mu.Unlock()
			return j.broken
		}
		s := j.segs[0]
		if len(j.segs) < 2 || int64(len(j.segs)+len(j.spares))*j.lim.Segment <= j.lim.Size || j.segs[1].base.Seq > min(upto, j.slots.before) || j.syncing && s.dirty {
			j.mu.Unlock()
			return nil
		}
		j.segs = j.segs[1:]
		again := len(j.free) == 0 && s.refs == 0 && !j.syncing
		if again {
			j.free = append(j.free, s)
		}
		j.mu.Unlock()
		if !again {
			if err := j.remove(s); err != nil {
				return fmt.Errorf("release a segment of the journal: %w", err)
			}
		}
		j.wake()
	}
}

// remove drops a segment that is in no list any more, durably.
func (j *Journal) remove(s *segment) error {
	err := j.fs.Remove(s.path)
	if err == nil {
		err = j.fs.SyncDir(j.dir)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.syncing { // the sync may be about to use the file
		j.cond.Wait()
	}
	s.dropped = true
	s.letGo()
	return err
}
