package memory

import (
	"fmt"
	"os"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication/memory/image"
	"github.com/hanode/hanode/replication/memory/store"
	"github.com/hanode/hanode/replication/memory/wire"
)

// prepare makes sure that there is an image of the region that fits what the application asked for.
func (s *Server) prepare(r *region, o *opened, ask *wire.Opening) error {
	s.follow.mu.Lock()
	defer s.follow.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	s.mu.Lock()
	role := s.role
	s.mu.Unlock()
	if role == wire.Fenced {
		return s.fencedError()
	}
	discard := ask.Flags&wire.OpenDiscard != 0 && role == wire.Active
	if r.img == nil || discard {
		img, err := s.store.Make(r.spec.Name, o.size, r.spec.Size, o.layout)
		if err != nil {
			return err
		}
		r.img = img
		if role == wire.Active {
			return s.begin(r)
		}
		s.follow.keeper.Hold(r.spec.Name, r.img.Head())
	}
	h := r.img.Head()
	if role == wire.Standby {
		want := ask.Layout
		if ask.Flags&wire.OpenAnyLayout != 0 {
			want = 0
		}
		s.follow.keeper.Want(r.spec.Name, want)
	}
	if h.Number > 0 && h.Layout != ask.Layout && ask.Flags&wire.OpenAnyLayout == 0 {
		return refuse(wire.Layout, "region %s holds an image of layout version %d, and this application has version %d: start the version that wrote it, open it with any layout and convert it, or discard it", r.spec.Name, h.Layout, ask.Layout)
	}
	o.size = max(o.size, h.Size)
	return nil
}

// begin commits the empty image of a region that is new on the active (r.mu).
func (s *Server) begin(r *region) error {
	h := r.img.Head()
	h.Made = time.Now().UnixNano()
	s.mu.Lock()
	s.number++
	h.Epoch, h.Gen, h.Number = s.led, s.facts.gen, s.number
	_, peers := s.snapshot()
	r.since = time.Now()
	s.mu.Unlock()
	if err := s.store.Commit([]store.Change{{Region: r.img, Full: true, Head: h}}, nil); err != nil {
		return err
	}
	for _, p := range peers {
		p.lose(r)
	}
	return nil
}

// checkpoint makes what lies in staging memory the newest image of its regions, and answers when the in-sync members hold it.
func (c *session) checkpoint(m *wire.App) error {
	s := c.s
	var few [2]wire.Part
	parts, err := wire.ParseParts(m.Body, few[:0])
	if err != nil {
		return refuse(wire.Invalid, "service %s: %v", s.cfg.Service, err)
	}
	if err := s.mayAct(); err != nil {
		return err
	}
	slices.SortFunc(parts, func(a, b wire.Part) int { return int(a.Region) - int(b.Region) })
	regs := make([]*region, len(parts))
	for i, p := range parts {
		o := c.open[p.Region]
		if o == nil || i > 0 && parts[i-1].Region == p.Region {
			return refuse(wire.Unknown, "service %s: region %d was not opened on this connection, or is there twice", s.cfg.Service, p.Region)
		}
		regs[i] = o.r
	}
	lock(regs)
	done, err := c.commit(m, parts, regs)
	unlock(regs)
	answer(done)
	return err
}

func lock(regs []*region) {
	for _, r := range regs {
		r.mu.Lock()
	}
}

func unlock(regs []*region) {
	for _, r := range regs {
		r.mu.Unlock()
	}
}

// commit does the work of checkpoint (the regions' locks are held).
func (c *session) commit(m *wire.App, parts []wire.Part, regs []*region) ([]*flight, error) {
	s := c.s
	changes := make([]store.Change, len(parts))
	news := false
	for i, p := range parts {
		o := c.open[p.Region]
		ch, err := o.load(p)
		if err != nil {
			return nil, err
		}
		old := o.r.img.Head()
		ch.Head = old
		ch.Head.Size, ch.Head.Layout, ch.Head.LogSeq = o.size, o.layout, o.r.img.Log().Last()
		news = news || len(ch.Entries) > 0 || ch.Head != old
		changes[i] = ch
	}
	f := &flight{c: c, regs: regs, m: wire.App{Kind: m.Kind | wire.Answer, ID: m.ID}}
	if !news { // the newest image is this one
		for i := range changes {
			f.numbers = append(f.numbers, changes[i].Head.Number)
			f.m.Value = max(f.m.Value, changes[i].Head.Number)
		}
		return s.fly(f, nil)
	}
	return s.fly(f, changes)
}

// load reads one region's blocks from the staging memory and takes their sums: what the application does there afterwards changes nothing.
func (o *opened) load(p wire.Part) (store.Change, error) {
	r := o.r
	n := uint64(p.Blocks)
	room := store.TableRoom(int(p.Blocks))
	total := room + n*image.Block
	if n > image.Blocks(o.size) || p.Offset > store.BufferSize(r.spec.Size) || p.Offset+total > store.BufferSize(r.spec.Size) {
		return store.Change{}, refuse(wire.Invalid, "region %s: a checkpoint of %d blocks at %d lies outside of its staging memory: nothing was taken", r.spec.Name, n, p.Offset)
	}
	ch := store.Change{Region: r.img, Buffer: r.buf.Name, DataOff: room}
	if n == 0 {
		return ch, nil
	}
	if got, err := o.stage.ReadAt(r.buf.Mem[:total], int64(p.Offset)); err != nil || uint64(got) != total {
		return ch, fmt.Errorf("region %s: read the staging memory: %w", r.spec.Name, err)
	}
	ch.Entries = unsafe.Slice((*store.Entry)(unsafe.Pointer(&r.buf.Mem[0])), n)
	ch.Data = r.buf.Mem[room:total]
	next := uint64(0)
	for i := range ch.Entries {
		e := &ch.Entries[i]
		if uint64(e.Block) < next || uint64(e.Block) >= image.Blocks(o.size) {
			return ch, refuse(wire.Invalid, "region %s: block %d of a checkpoint is out of order or beyond the region's %d bytes: nothing was taken", r.spec.Name, e.Block, o.size)
		}
		next = uint64(e.Block) + 1
		e.Sum = image.BlockSum(ch.Data[i*image.Block:][:image.Block])
	}
	return ch, nil
}

// fly gives an image its number, sends it and keeps it. Without changes it only waits for the newest one.
func (s *Server) fly(f *flight, changes []store.Change) ([]*flight, error) {
	files := uint64(0)
	if s.cfg.FileSeq != nil {
		files = s.cfg.FileSeq()
	}
	now := time.Now()
	f.begun = now
	s.mu.Lock()
	if s.role != wire.Active {
		defer s.mu.Unlock()
		return nil, s.fencedError()
	}
	if len(s.flights) >= maxPending {
		defer s.mu.Unlock()
		return nil, refuse(wire.Busy, "service %s: %d checkpoints wait for the standby: wait for one before you make another", s.cfg.Service, maxPending)
	}
	if changes != nil {
		s.number++
		f.m.Value = s.number
		for i := range changes {
			h := &changes[i].Head
			f.numbers = append(f.numbers, s.number)
			h.Epoch, h.Gen, h.Number, h.FileSeq, h.Made = s.led, s.facts.gen, s.number, files, now.UnixNano()
		}
		for _, r := range f.regs {
			r.since = now
		}
	}
	s.flights = append(s.flights, f)
	var few [4]*peer
	peers := few[:0]
	for _, p := range s.peers {
		peers = append(peers, p)
	}
	s.mu.Unlock()
	if changes != nil {
		for i := range changes {
			changes[i].Head.Sum = changes[i].Region.SumAfter(false, changes[i].Entries)
		}
		for _, p := range peers {
			p.sendImage(f.regs, changes)
		}
		if err := s.store.Commit(changes, nil); err != nil {
			panic("a verified image was refused by the store: " + err.Error()) // stopping beats guessing: the standby holds it already
		}
		for i := range changes {
			f.regs[i].trim(changes[i].DataOff + uint64(len(changes[i].Data)))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settle(), nil
}

// trim gives back the memory of a large image's buffer.
func (r *region) trim(used uint64) {
	const keep = 32 << 20
	if used > keep {
		r.buf.Trim(keep)
	}
}

// append adds a record to the message log beside the region.
func (c *session) append(m *wire.App, o *opened) error {
	s, r := c.s, o.r
	if err := s.mayAct(); err != nil {
		return err
	}
	r.mu.Lock()
	seq := r.img.Log().Last() + 1
	if err := r.img.Log().Append(seq, m.Body); err != nil {
		r.mu.Unlock()
		return refuse(wire.LogFull, "region %s: %v", r.spec.Name, err)
	}
	f := &flight{c: c, regs: []*region{r}, seq: seq, m: wire.App{Kind: m.Kind | wire.Answer, ID: m.ID, Region: r.no, Value: seq}, begun: time.Now()}
	s.mu.Lock()
	if s.role != wire.Active {
		s.mu.Unlock()
		r.mu.Unlock()
		return s.fencedError()
	}
	s.flights = append(s.flights, f)
	_, peers := s.snapshot()
	s.mu.Unlock()
	for _, p := range peers {
		p.sendRecord(r, seq, m.Body)
	}
	r.mu.Unlock()
	s.mu.Lock()
	done := s.settle()
	s.mu.Unlock()
	answer(done)
	return nil
}

func (c *session) grow(m *wire.App, o *opened) error {
	s, r := c.s, o.r
	if err := s.mayAct(); err != nil {
		return err
	}
	if err := image.CheckSize(r.spec.Name, m.Value, r.spec.Size); err != nil {
		return refuse(wire.TooBig, "%v", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.Value < o.size {
		return refuse(wire.Invalid, "region %s has %d bytes and cannot shrink to %d", r.spec.Name, o.size, m.Value)
	}
	if err := o.live.Truncate(int64(round(m.Value))); err != nil {
		return fmt.Errorf("region %s: grow to %d bytes: %w", r.spec.Name, m.Value, err)
	}
	o.size = m.Value
	info := s.info(o)
	c.send(&wire.App{Kind: m.Kind | wire.Answer, ID: m.ID, Region: r.no, Value: o.size, Body: info.Append(nil)})
	return nil
}

// take brings the application's memory to the newest image: on a standby, what has changed since the last time.
func (c *session) take(m *wire.App, o *opened) error {
	if err := c.s.settled(c, o.r); err != nil {
		return err
	}
	if err := o.show(m.Flags&1 != 0); err != nil {
		return err
	}
	o.r.mu.Lock()
	info := c.s.info(o)
	o.r.mu.Unlock()
	c.send(&wire.App{Kind: m.Kind | wire.Answer, ID: m.ID, Region: o.r.no, Value: info.Number, Body: info.Append(nil)})
	return nil
}

// replay gives the records that the newest image does not contain.
func (c *session) replay(m *wire.App, o *opened) error {
	r := o.r
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.img.Head().LogSeq
	err := r.img.Log().Each(last, func(seq uint64, data []byte) error {
		last = seq
		c.send(&wire.App{Kind: wire.Record | wire.Answer, ID: m.ID, Region: r.no, Value: seq, Body: data})
		return nil
	})
	if err != nil {
		return err
	}
	c.send(&wire.App{Kind: m.Kind | wire.Answer, ID: m.ID, Region: r.no, Value: last})
	return nil
}

// show copies blocks of the newest image into the application's memory: all of them, or those that changed since the last time.
func (o *opened) show(all bool) error {
	r := o.r
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.img.Head()
	if h.Size > o.size {
		if err := o.live.Truncate(int64(round(h.Size))); err != nil {
			return fmt.Errorf("region %s: grow to %d bytes: %w", r.spec.Name, h.Size, err)
		}
		o.size = h.Size
	}
	n := image.Blocks(h.Size)
	if !all && o.stale == nil {
		return nil
	}
	if all {
		if err := zero(o.live); err != nil {
			return fmt.Errorf("region %s: %w", r.spec.Name, err)
		}
	}
	data := r.img.Data()
	for i := uint64(0); i < n; i++ {
		if !all && o.stale[i/64] == 0 {
			i |= 63
			continue
		}
		if all && r.img.BlockSum(uint32(i)) == 0 || !all && o.stale[i/64]&(1<<(i%64)) == 0 {
			continue
		}
		if _, err := o.live.WriteAt(data[i*image.Block:][:image.Block], int64(i*image.Block)); err != nil {
			return fmt.Errorf("region %s: write block %d of image %d: %w", r.spec.Name, i, h.Number, err)
		}
	}
	o.stale = nil
	r.view = o
	return nil
}

// zero empties memory that may have anything in it.
func zero(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, st.Size())
}
