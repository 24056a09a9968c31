// Package journal is the durable, ordered log of the records of one service (docs/replication.md, sections 1 to 4): the bytes that the active
// sends are the bytes in its own journal and in the standby's. The package does not interpret an operation.
//
// What callers may rely on:
//
//   - Append has taken whole, contiguous records or nothing. After nil they are found again after the death of the process; after a nil Sync
//     they survive a power cut. A record whose Append or Sync failed may or may not be found.
//   - What Open finds is a prefix of what was appended, at least up to the last record of which Sync or Checkpoint returned nil.
//     If it cannot give that, it refuses: the error names file, offset and remedy.
//   - Room is there before it is needed: records go into segments that are allocated and written with zeros beforehand. An Append that finds no room
//     fails before it has written anything.
//   - After a failed write or Sync the journal is broken for good, in this process and, as far as a mark can be left, for the next one:
//     the kernel may have dropped dirty pages, and a later fdatasync may succeed without them.
//
// Why it is correct. A sector is written whole or not at all; no other order of writes between two syncs is relied on. A frame
// (frame.go) is believed only where it was written: it carries the random salt of its segment, the segment's number and its own offset. So
// neither old bytes of a recycled file nor bytes that a user put into a volume can be taken for records. Every frame says up to which sequence everything was
// durable when it was written. When Open meets a frame that is not whole, it reads on to the end: if a later frame, or the checkpoint, says that
// this place had been durable, it is damage; otherwise it is what a power cut leaves, and everything from there on goes. (Of the records of the very last
// Sync nothing says that they were durable until a frame, a Checkpoint or Close follows: damage to these, and a crash, look like a torn tail.)
//
// Nothing is overwritten. A cut, a reset and a restart after a torn tail begin a new segment, whose first frame names the segment before and the
// position after which it goes on; one sync of that frame makes the change, at once and whole. Segments that are not in this chain are removed.
package journal

import (
	"errors"
	"fmt"
	"sync"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal/disk"
)

// FS is where a journal lives.
type FS = disk.FS

// Limits are the sizes of a journal and whose it is.
type Limits struct {
	Cluster, Service string // written into every segment; another's is refused
	Size             int64  // journal_size: records are kept for others up to this much
	Segment          int64  // size of one file; 0: a 16th of Size, 8 to 64 MiB
	Max              int64  // an Append beyond this much is refused with ErrFull; 0: twice Size
}

// withDefaults fills in what is 0 and checks the rest.
func (l Limits) withDefaults() (Limits, error) {
	if l.Segment == 0 {
		l.Segment = min(max(l.Size/16, 8<<20), 64<<20)
	}
	if l.Max == 0 {
		l.Max = 2 * l.Size
	}
	var errs []error
	if l.Segment < 2*headSize || l.Segment%headSize != 0 {
		errs = append(errs, fmt.Errorf("segments of %d bytes: choose a multiple of %d", l.Segment, headSize))
	}
	if l.Size < 2*l.Segment {
		errs = append(errs, fmt.Errorf("a journal of %d bytes: choose at least %d, two segments", l.Size, 2*l.Segment))
	}
	if l.Max < l.Size {
		errs = append(errs, fmt.Errorf("at most %d bytes: choose at least the size, %d", l.Max, l.Size))
	}
	if len(l.Cluster) > maxOwner || len(l.Service) > maxOwner {
		errs = append(errs, fmt.Errorf("cluster id or service name of more than %d bytes", maxOwner))
	}
	return l, errors.Join(errs...)
}

var (
	// ErrFull is the error of an Append beyond Limits.Max: what was journalled has not been applied or released.
	ErrFull = errors.New("the journal is full")
	// ErrBroken is the error of everything after a failed write or sync.
	ErrBroken = errors.New("the journal is broken by an earlier error of its disk")
	// ErrClosed is the error of everything after Close.
	ErrClosed = errors.New("the journal is closed")
	// ErrGone is the error of a Read from where the journal no longer, or not yet, reaches, and of a Reader after a Cut or Reset.
	ErrGone = errors.New("these records are not in the journal")
)

// Journal is an open journal. Its methods may be called from several goroutines; records are appended in the order of the calls.
type Journal struct {
	dir string
	fs  FS
	lim Limits

	wmu     sync.Mutex // held by whoever appends, cuts or resets
	head    []byte     // of the frame that is being written
	vec     [2][]byte
	ckmu    sync.Mutex // held by whoever writes the applied position; taken before wmu
	slots   *slots
	lineage uint64 // the newest segment that began with a cut or a reset

	mu      sync.Mutex
	cond    sync.Cond
	segs    []*segment // oldest first; the last one is appended to
	spares  []*segment // made, without a frame
	free    []*segment // released; their files may be used again
	making  bool
	nextNo  uint64
	last    cluster.Position
	durable uint64
	applied uint64
	cuts    uint64 // how often records were dropped: readers of before end
	syncing bool
	broken  error
	need    chan struct{} // a segment was used up or released
}

// segment is one file.
type segment struct {
	no, salt uint64
	size     int64
	path     string
	f        disk.File
	base     cluster.Position // of the record before its first
	last     uint64           // its last record that counts
	end      int64            // where the next frame goes; 0: not read yet
	marks    []mark
	dirty    bool
	based    bool // its first frame is durable
	refs     int  // readers
	dropped  bool
}

// mark says that a frame whose first record is seq begins at off.
type mark struct {
	seq uint64
	off int64
}

// markEvery bounds the memory of an index: one mark for so many bytes.
const markEvery = 256 << 10

func (s *segment) mark(seq uint64, off int64) {
	if n := len(s.marks); n == 0 || off-s.marks[n-1].off >= markEvery {
		s.marks = append(s.marks, mark{seq, off})
	}
}

// Last is the position of the last record.
func (j *Journal) Last() cluster.Position {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// First is the sequence of the oldest record kept; Last().Seq+1 if there is none.
func (j *Journal) First() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.segs[0].base.Seq + 1
}

// Durable is the sequence up to which everything survives a power cut.
func (j *Journal) Durable() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.durable
}

// Applied is the position of the last Checkpoint.
func (j *Journal) Applied() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.applied
}

// Room is how many bytes Append will find room for without asking the disk for more.
func (j *Journal) Room() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.segs[len(j.segs)-1]
	return max(s.size-s.end-frameSize, 0) + int64(len(j.spares))*(j.lim.Segment-headSize-2*frameSize)
}

// MaxAppend bounds the bytes of one Append.
func (j *Journal) MaxAppend() int { return int(j.lim.Segment - headSize - 2*frameSize) }

// Append adds whole records, the first of which is at first; they follow the last one without a gap. Checksums are not verified: whoever receives
// records from elsewhere has done that (replication.Check). After an error without ErrBroken nothing was written.
func (j *Journal) Append(first cluster.Position, b []byte) error {
	j.wmu.Lock()
	defer j.wmu.Unlock()
	last, err := j.contiguous(first, b)
	if err != nil || len(b) == 0 {
		return err
	}
	return j.append(first.Seq, last, b)
}

// contiguous verifies that b is what may follow and returns its last position.
func (j *Journal) contiguous(first cluster.Position, b []byte) (cluster.Position, error) {
	j.mu.Lock()
	last, err := j.last, j.broken
	j.mu.Unlock()
	if err != nil {
		return last, err
	}
	if len(b) > j.MaxAppend() {
		return last, fmt.Errorf("append to the journal: %d bytes at once, at most %d fit into a segment", len(b), j.MaxAppend())
	}
	for at, n := 0, 0; at < len(b); n++ {
		h, err := replication.ParseHead(b[at:])
		switch {
		case err != nil:
			return last, fmt.Errorf("append to the journal: byte %d: %w", at, err)
		case h.Len > len(b)-at:
			return last, fmt.Errorf("append to the journal: byte %d: %w", at, replication.ErrShort)
		case n == 0 && h.Pos != first:
			return last, fmt.Errorf("append to the journal: the first record is at %v, not at %v", h.Pos, first)
		case h.Pos.Seq != last.Seq+1 || h.Pos.Epoch < last.Epoch || h.Pos.Gen < last.Gen:
			return last, fmt.Errorf("append to the journal: %v cannot follow %v", h.Pos, last)
		}
		last, at = h.Pos, at+h.Len
	}
	return last, nil
}

// append writes one frame. wmu is held.
func (j *Journal) append(first uint64, last cluster.Position, b []byte) error {
	j.mu.Lock()
	s, durable, err := j.segs[len(j.segs)-1], j.durable, j.broken
	based := s.based
	j.mu.Unlock()
	if err != nil {
		return err
	}
	if s.end+frameSize+int64(len(b)) > s.size {
		if s, err = j.rotate(); err != nil {
			return err
		}
		based = false
	}
	f := frame{kind: records, len: len(b), first: first, last: last, durable: durable, based: based}
	f.encode(j.head, s, s.end)
	j.vec = [2][]byte{j.head, b}
	err = s.f.WriteVec(j.vec[:], s.end)
	j.vec = [2][]byte{}
	if err != nil {
		return j.fail(fmt.Errorf("append to the journal: %w", err))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	s.mark(first, s.end)
	s.end += frameSize + int64(len(b))
	s.last, s.dirty = last.Seq, true
	j.last = last
	return nil
}

// rotate goes on in the next segment. wmu is held.
func (j *Journal) rotate() (*segment, error) {
	j.mu.Lock()
	held := int64(len(j.segs)+1) * j.lim.Segment
	j.mu.Unlock()
	if held > max(j.lim.Max, 2*j.lim.Segment) {
		return nil, fmt.Errorf("append to the journal of %s: %d MiB of records are neither applied nor released: %w", j.lim.Service, held>>20, ErrFull)
	}
	s, err := j.take()
	if err != nil {
		return nil, fmt.Errorf("append to the journal: the next segment: %w", err)
	}
	j.mu.Lock()
	f := frame{kind: base, first: j.segs[len(j.segs)-1].no, last: j.last, durable: j.durable, applied: j.applied}
	j.mu.Unlock()
	if err := j.writeBase(s, &f); err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.segs = append(j.segs, s)
	return s, nil
}

// writeBase writes the first frame of s.
func (j *Journal) writeBase(s *segment, f *frame) error {
	var b [frameSize]byte
	f.encode(b[:], s, headSize)
	if err := s.f.WriteVec([][]byte{b[:]}, headSize); err != nil {
		return j.fail(fmt.Errorf("begin a segment of the journal: %w", err))
	}
	s.base, s.last, s.end, s.dirty, s.marks = f.last, f.last.Seq, headSize+frameSize, true, nil
	return nil
}

// Sync makes everything durable that was appended before the call. Calls that meet while one is being carried out share the next one.
func (j *Journal) Sync() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.syncTo(j.last.Seq)
}

// syncTo is Sync up to a sequence. mu is held.
func (j *Journal) syncTo(want uint64) error {
	for j.durable < want || j.broken != nil {
		switch {
		case j.broken != nil:
			return j.broken
		case j.syncing:
			j.cond.Wait()
		default:
			if err := j.syncNow(); err != nil {
				return err
			}
		}
	}
	return nil
}

// syncNow carries a sync out. mu is held, and let go meanwhile.
func (j *Journal) syncNow() error {
	j.syncing = true
	upto := j.last.Seq
	var buf [4]*segment
	dirty := buf[:0]
	for _, s := range j.segs {
		if s.dirty {
			s.dirty = false
			dirty = append(dirty, s)
		}
	}
	j.mu.Unlock()
	var err error
	for _, s := range dirty {
		if err = s.f.Sync(); err != nil {
			err = j.fail(fmt.Errorf("make the journal durable: %w", err))
			break
		}
	}
	j.mu.Lock()
	if err == nil {
		j.durable = max(j.durable, upto)
		for _, s := range dirty {
			s.based = true
		}
	}
	j.syncing = false
	j.cond.Broadcast()
	return err
}

// brokenName is the file whose presence says that this journal must not be used again.
const brokenName = "broken"

// fail makes the journal broken for good and returns the error of everything that follows.
func (j *Journal) fail(err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken == nil {
		j.broken = fmt.Errorf("%w: %w", ErrBroken, err)
		j.leaveMark(err)
		j.cond.Broadcast()
	}
	return j.broken
}

// leaveMark tells the next Open what happened. It may fail too: the disk is what failed.
func (j *Journal) leaveMark(why error) { _ = writeMark(j.fs, j.dir, why.Error()+"\n") }

func writeMark(fs FS, dir, text string) error {
	f, err := fs.Create(join(dir, brokenName))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.WriteVec([][]byte{[]byte(text)}, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return fs.SyncDir(dir)
}

// Close makes everything durable and closes the files. Run has returned before.
func (j *Journal) Close() error {
	j.ckmu.Lock()
	defer j.ckmu.Unlock()
	j.wmu.Lock()
	defer j.wmu.Unlock()
	err := j.Sync()
	if err == nil && j.Durable() > j.slots.durable {
		err = j.checkpoint(j.Applied()) // says how far everything was durable
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.syncing {
		j.cond.Wait()
	}
	if j.broken == nil || !errors.Is(j.broken, ErrClosed) {
		for _, list := range [][]*segment{j.segs, j.spares, j.free} {
			for _, s := range list {
				s.dropped = true
				s.letGo()
			}
		}
		j.slots.f.Close()
		j.broken = ErrClosed
	}
	return err
}

// letGo closes a dropped segment that nobody reads.
func (s *segment) letGo() {
	if s.dropped && s.refs == 0 && s.f != nil {
		s.f.Close()
		s.f = nil
	}
}
