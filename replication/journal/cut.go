package journal

import (
	"fmt"

	"github.com/hanode/hanode/cluster"
)

// Cut drops every record after the given one, durably: after a crash either all or none of them are there. If any of them may have been
// applied, the caller has marked the copy inconsistent before; the applied position falls to the cut.
func (j *Journal) Cut(after uint64) error {
	j.ckmu.Lock()
	defer j.ckmu.Unlock()
	j.wmu.Lock()
	defer j.wmu.Unlock()
	if err := j.Sync(); err != nil {
		return err
	}
	j.mu.Lock()
	last, first := j.last, j.segs[0].base.Seq+1
	j.mu.Unlock()
	if after >= last.Seq {
		return nil
	}
	if after+1 < first {
		return fmt.Errorf("cut the journal after %d: it begins at %d: %w", after, first, ErrGone)
	}
	keep, pos, err := j.find(after)
	if err != nil {
		return fmt.Errorf("cut the journal after %d: %w", after, err)
	}
	return j.anew(frame{kind: baseCut, first: j.segs[keep].no, last: pos, durable: pos.Seq, applied: min(j.Applied(), pos.Seq)}, keep+1)
}

// find says in which segment a record is, and its position. wmu is held.
func (j *Journal) find(seq uint64) (int, cluster.Position, error) {
	i := 0
	for i+1 < len(j.segs) && j.segs[i+1].base.Seq <= seq {
		i++
	}
	if j.segs[i].base.Seq == seq {
		return i, j.segs[i].base, nil
	}
	r, err := j.Read(seq)
	if err != nil {
		return 0, cluster.Position{}, err
	}
	defer r.Close()
	h, _, err := r.next()
	return i, h.Pos, err
}

// Reset empties the journal, durably and at once: the next record is the one after at. Everything up to at is applied, durably.
func (j *Journal) Reset(at cluster.Position) error {
	j.ckmu.Lock()
	defer j.ckmu.Unlock()
	j.wmu.Lock()
	defer j.wmu.Unlock()
	return j.anew(frame{kind: baseReset, last: at, durable: at.Seq, applied: at.Seq}, 0)
}

// anew goes on in a new segment that begins with f, behind the first keep segments. ckmu and wmu are held.
func (j *Journal) anew(f frame, keep int) error {
	j.mu.Lock()
	err := j.broken
	j.mu.Unlock()
	if err != nil {
		return err
	}
	s, err := j.take()
	if err != nil {
		return fmt.Errorf("a new segment of the journal: %w", err)
	}
	if err := j.writeBase(s, &f); err != nil {
		return err
	}
	if err := s.f.Sync(); err != nil {
		return j.fail(fmt.Errorf("begin a segment of the journal: %w", err))
	}
	s.dirty, s.based = false, true
	j.mu.Lock()
	for j.syncing {
		j.cond.Wait()
	}
	gone := append([]*segment(nil), j.segs[keep:]...)
	j.segs = append(j.segs[:keep:keep], s)
	if keep > 0 {
		j.segs[keep-1].last = f.last.Seq
	}
	j.last, j.durable, j.applied = f.last, f.last.Seq, f.applied
	if f.kind != base {
		j.lineage = s.no
	}
	j.cuts++
	j.mu.Unlock()
	if f.kind != base { // in both blocks: a position of before would count again if this segment were lost
		for range 2 {
			if err := j.checkpoint(f.applied); err != nil {
				return err
			}
		}
	}
	for i := len(gone) - 1; i >= 0; i-- {
		if err := j.remove(gone[i]); err != nil {
			return fmt.Errorf("remove a segment of the journal: %w", err) // Open removes it: it is in no chain any more
		}
	}
	return nil
}

// Discard removes the journal in dir, whatever is wrong with it: for a copy that is about to be made anew. Nothing else uses it meanwhile.
func Discard(dir string, fs FS) error {
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	// The mark goes last: a journal that is half gone is not mistaken for a whole one.
	if err := writeMark(fs, dir, "it was being discarded\n"); err != nil {
		return err
	}
	for _, n := range names {
		if n == brokenName {
			continue
		}
		if err := fs.Remove(join(dir, n)); err != nil {
			return err
		}
	}
	if err := fs.SyncDir(dir); err != nil {
		return err
	}
	if err := fs.Remove(join(dir, brokenName)); err != nil {
		return err
	}
	return fs.SyncDir(dir)
}
