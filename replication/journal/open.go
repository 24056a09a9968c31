package journal

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/hanode/hanode/cluster"
)

// Damage is the error for bytes that had been durable and are not what was written.
type Damage struct {
	File   string
	Offset int64
	What   string
}

func (d *Damage) Error() string {
	return fmt.Sprintf("%s is damaged at byte %d: %s. It is not used; the disk may be failing. "+
		"When that is mended, make this copy anew from the other node: `hanode volume replace`", d.File, d.Offset, d.What)
}

// Foreign is the error for a file that belongs to somebody else.
type Foreign struct{ File, Found, Want string }

func (f *Foreign) Error() string {
	return fmt.Sprintf("%s belongs to %s, not to %s: it is left alone. Move it away, or give the volume its own backing directory", f.File, f.Found, f.Want)
}

// Recovered is what Open found.
type Recovered struct {
	New         bool // there was no journal: an empty one was made
	First, Last uint64
	Applied     uint64
	Torn        *Torn    // what a power cut or a killed process had left half written is gone
	Removed     []string // files that no longer counted
}

// Torn is where the records end that were found whole.
type Torn struct {
	File   string
	Offset int64
}

// found is a segment's file as Open sees it.
type found struct {
	segment
	bad   error // of its first block
	frame frame // its first one
	based bool  // frame is whole
}

type opening struct {
	*Journal
	all    []*found // by number
	chain  []*found
	slot   *slots
	result Recovered
	err    error // of reading ahead
}

// Open opens the journal in dir, or makes an empty one. Nothing else uses it meanwhile (the caller holds the volume's lock).
// The records up to the applied position are not read: damage there costs the others' catching up, and Reader says so.
// Errors: *Damage, *Foreign, ErrBroken, and those of the disk.
func Open(dir string, fs FS, limits Limits) (*Journal, Recovered, error) {
	limits, err := limits.withDefaults()
	if err != nil {
		return nil, Recovered{}, fmt.Errorf("the journal %s: %w", dir, err)
	}
	j := &Journal{dir: dir, fs: fs, lim: limits, head: make([]byte, frameSize), need: make(chan struct{}, 1), nextNo: 1}
	j.cond = sync.Cond{L: &j.mu}
	o := &opening{Journal: j}
	if err := o.open(); err != nil {
		for _, f := range o.all {
			if f.f != nil {
				f.f.Close()
			}
		}
		for _, list := range [][]*segment{j.segs, j.free} {
			for _, s := range list {
				s.f.Close()
			}
		}
		if j.slots != nil {
			j.slots.f.Close()
		}
		return nil, Recovered{}, fmt.Errorf("open the journal: %w", err)
	}
	o.result.First, o.result.Last, o.result.Applied = j.First(), j.last.Seq, j.applied
	return j, o.result, nil
}

func (o *opening) open() error {
	names, err := o.fs.List(o.dir)
	if errors.Is(err, iofs.ErrNotExist) {
		if err = o.fs.MakeDir(o.dir); err == nil {
			err = o.fs.SyncDir(filepath.Dir(o.dir))
		}
	}
	if err != nil {
		return err
	}
	if slices.Contains(names, brokenName) {
		return fmt.Errorf("%w: %s says why. What it holds may not be what was written: make this copy anew from the other node: `hanode volume replace`",
			ErrBroken, join(o.dir, brokenName))
	}
	if o.slots, err = openSlots(o.fs, o.dir); err != nil {
		return err
	}
	if err := o.look(names); err != nil {
		return err
	}
	head := len(o.all) - 1
	for head >= 0 && !o.all[head].based {
		head--
	}
	if head < 0 {
		return o.create()
	}
	if o.slots == nil {
		return &Damage{join(o.dir, slotName), 0, "it is missing"}
	}
	if err := o.link(head); err != nil {
		return err
	}
	if err := o.lineages(); err != nil {
		return err
	}
	return o.recover()
}

// look opens every segment and reads its beginning.
func (o *opening) look(names []string) error {
	for _, name := range names {
		no, ok := segNo(name)
		if !ok {
			if strings.HasSuffix(name, ".tmp") {
				if err := o.drop(join(o.dir, name)); err != nil {
					return err
				}
			}
			continue
		}
		f := &found{segment: segment{no: no, path: join(o.dir, name)}}
		o.all = append(o.all, f)
		o.nextNo = no + 1 // the names are sorted
		if err := o.lookAt(f); err != nil {
			return err
		}
	}
	return nil
}

func (o *opening) lookAt(f *found) (err error) {
	if f.f, err = o.fs.Open(f.path); err != nil {
		return err
	}
	if f.size, err = f.f.Size(); err != nil {
		return err
	}
	c := cursor{s: &f.segment, stop: min(f.size, headSize+frameSize)}
	b, err := c.bytes(0, headSize+frameSize)
	if err != nil {
		return err
	}
	h, bad := decodeSegHead(b)
	switch {
	case errors.Is(bad, errFormat):
		return fmt.Errorf("%s: %w", f.path, bad)
	case bad == nil && (h.cluster != o.lim.Cluster || h.service != o.lim.Service):
		return &Foreign{f.path, fmt.Sprintf("service %q of cluster %s", h.service, h.cluster), fmt.Sprintf("service %q of cluster %s", o.lim.Service, o.lim.Cluster)}
	case bad == nil && h.no != f.no:
		bad = fmt.Errorf("it says that it is segment %d", h.no)
	case bad == nil && h.size != f.size:
		bad = fmt.Errorf("it has %d bytes and should have %d", f.size, h.size)
	}
	if f.bad = bad; bad != nil {
		return nil
	}
	f.salt = h.salt
	f.frame, f.based = decodeFrame(b[min(len(b), headSize):], &f.segment, headSize)
	if f.based {
		f.base = f.frame.last
	} else if f.began(b[min(len(b), headSize):]) {
		f.bad = errors.New("the first frame's checksum is wrong")
	}
	return nil
}

// began says whether a first frame that is not whole was once written: it lies in one sector, so that a power cut does not tear it.
func (f *found) began(b []byte) bool {
	if len(b) < frameSize {
		return false
	}
	w := frame{kind: base}
	want := make([]byte, frameSize)
	w.encode(want, &f.segment, headSize)
	same := 0
	for _, p := range [][2]int{{0, 4}, {8, 16}, {16, 24}} {
		if string(b[p[0]:p[1]]) == string(want[p[0]:p[1]]) {
			same++
		}
	}
	return same >= 2 || string(b[8:16]) == string(want[8:16])
}

// create makes an empty journal, where at most an earlier attempt at that is.
func (o *opening) create() error {
	for _, f := range o.all {
		if f.bad != nil || o.written(f) >= 0 {
			return &Damage{f.path, 0, fmt.Sprintf("no segment has a whole beginning: %v", f.bad)}
		}
	}
	if o.slots != nil && (o.slots.applied > 0 || o.slots.lineage > 0) {
		return &Damage{o.dir, 0, fmt.Sprintf("the records up to %d were applied and the segments are gone", o.slots.applied)}
	}
	if o.err != nil {
		return o.err
	}
	for _, f := range o.all {
		f.f.Close()
		if err := o.drop(f.path); err != nil {
			return err
		}
	}
	o.all = nil
	var err error
	if o.slots == nil {
		if o.slots, err = newSlots(o.fs, o.dir); err != nil {
			return err
		}
	}
	o.result.New = true
	return o.anew(frame{kind: baseReset}, 0)
}

// link finds the chain of segments that ends at the given one.
func (o *opening) link(head int) error {
	o.chain = []*found{o.all[head]}
	for i := head; ; {
		f := o.all[i]
		if f.frame.kind == baseReset || f.based && f.frame.first == 0 {
			return nil
		}
		prev := -1
		for k := range i {
			if f.based && o.all[k].no == f.frame.first || !f.based && o.all[k].based {
				prev = k
			}
		}
		if prev < 0 {
			return nil // what was before was released
		}
		p := o.all[prev]
		switch history := f.based && f.base.Seq <= o.slots.before; {
		case history && !p.based:
			return nil // only others could want it
		case p.bad != nil:
			return &Damage{p.path, 0, p.bad.Error()}
		}
		i, o.chain = prev, append([]*found{p}, o.chain...)
	}
}

// lineages finds out which applied position counts.
func (o *opening) lineages() error {
	o.applied, o.lineage = o.slots.applied, o.slots.lineage
	for i := len(o.chain) - 1; i >= 0; i-- {
		f := o.chain[i]
		if f.based && f.frame.kind != base {
			if f.no > o.slots.lineage {
				o.applied, o.lineage = f.frame.applied, f.no
			}
			break
		}
	}
	for _, f := range o.all {
		if f.no == o.lineage && (!f.based || f.frame.kind == base) {
			return &Damage{f.path, headSize, "it should begin with a cut or a reset"}
		}
	}
	if last := o.chain[len(o.chain)-1]; o.lineage > last.no {
		return &Damage{join(o.dir, segName(o.lineage)), 0, "it is missing"}
	}
	return nil
}

// hole is where what was appended is not found.
type hole struct {
	i   int // in the chain
	off int64
	seq uint64
}

// recover reads the records from the applied position on and decides where they end.
func (o *opening) recover() error {
	start := -1
	for i, f := range o.chain {
		if f.based && f.base.Seq <= o.applied {
			start = i
		}
	}
	if start < 0 {
		return &Damage{o.chain[0].path, headSize, fmt.Sprintf("the records from %d on are needed, and the oldest segment begins at %d", o.applied+1, o.chain[0].base.Seq+1)}
	}
	for i := range start {
		if o.chain[i].last = o.chain[i+1].base.Seq; !o.chain[i].based {
			return &Damage{o.chain[i].path, headSize, "its first frame is missing"}
		}
	}
	last := o.chain[start].base
	var gap *hole
	i := start
	for ; i < len(o.chain); i++ {
		f := o.chain[i]
		limit := ^uint64(0)
		if i+1 < len(o.chain) && o.chain[i+1].based {
			limit = o.chain[i+1].base.Seq
		}
		end, bad, err := o.scan(f, &last, limit)
		if err != nil {
			return err
		}
		if i+1 == len(o.chain) || bad && last.Seq < limit {
			gap = &hole{i, end, last.Seq + 1}
			break
		}
		last = o.chain[i+1].base
	}
	torn, err := o.judge(gap)
	if err != nil {
		return err
	}
	return o.settle(i, last, gap, torn)
}

// scan reads the records of f up to limit. bad says that it met something else at end; last moves along.
func (o *opening) scan(f *found, last *cluster.Position, limit uint64) (end int64, bad bool, err error) {
	c := cursor{s: &f.segment, stop: f.size}
	f.last, f.end = last.Seq, headSize+frameSize
	if last.Seq >= limit {
		return f.end, false, nil
	}
	for {
		fr, ok, err := c.frame(f.end)
		if err != nil || !ok || fr.first != last.Seq+1 {
			return f.end, true, err
		}
		f.mark(fr.first, f.end)
		pos, stop := f.end+frameSize, f.end+frameSize+int64(fr.len)
		for pos < stop {
			h, _, wrong, err := c.record(pos, stop)
			if err != nil || wrong != nil || h.Pos.Seq != last.Seq+1 {
				return pos, true, err
			}
			*last, f.last = h.Pos, h.Pos.Seq
			if pos += int64(h.Len); last.Seq >= limit {
				return pos, false, nil
			}
		}
		f.end = stop
	}
}

// judge says whether the place at which the records end is the end (torn false), or what a power cut left (torn true). If it had been durable: *Damage.
func (o *opening) judge(h *hole) (torn bool, err error) {
	f := o.chain[h.i]
	witness := o.witness(f, h.off)
	torn = witness >= 0
	for _, g := range o.all {
		if g.no <= f.no {
			continue
		}
		if g.bad != nil { // its beginning was durable before it got its name
			return false, &Damage{g.path, 0, g.bad.Error()}
		}
		w := o.written(g)
		if g.based {
			w = max(w, int64(g.frame.durable))
		}
		torn, witness = torn || w >= 0, max(witness, w)
	}
	if o.err != nil {
		return false, o.err
	}
	if o.slots.lineage == o.lineage {
		witness = max(witness, int64(o.slots.durable))
	}
	if witness >= int64(h.seq) || o.applied >= h.seq {
		return false, &Damage{f.path, h.off, fmt.Sprintf("record %d should be here, and had been durable", h.seq)}
	}
	return torn, nil
}

// settle takes what was found into use.
func (o *opening) settle(head int, last cluster.Position, gap *hole, torn bool) error {
	kept := o.chain[:head+1]
	for _, f := range kept {
		f.segment.based = true
		o.segs = append(o.segs, &f.segment)
		if f.end > 0 { // read above: it may never have been synced
			if err := f.f.Sync(); err != nil {
				return o.fail(err)
			}
		}
	}
	if err := o.slots.f.Sync(); err != nil { // nor this
		return o.fail(err)
	}
	o.last, o.durable = last, last.Seq
	for _, f := range o.all {
		if slices.Contains(kept, f) {
			continue
		}
		if f.no > kept[head].no && f.size == o.lim.Segment && len(o.free) < 2 { // a spare, or void from its beginning: its file is used again
			o.free = append(o.free, &f.segment)
			continue
		}
		f.f.Close()
		if err := o.drop(f.path); err != nil {
			return err
		}
	}
	o.all = nil
	if torn || gap.off != o.chain[head].end {
		o.result.Torn = &Torn{o.chain[head].path, gap.off}
		s := o.segs[len(o.segs)-1]
		return o.anew(frame{kind: base, first: s.no, last: last, durable: last.Seq, applied: o.applied}, len(o.segs))
	}
	return nil
}

// drop removes a file that does not count.
func (o *opening) drop(path string) error {
	o.result.Removed = append(o.result.Removed, filepath.Base(path))
	if err := o.fs.Remove(path); err != nil {
		return err
	}
	return o.fs.SyncDir(o.dir)
}
