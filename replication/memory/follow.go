package memory

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication/memory/image"
	"github.com/hanode/hanode/replication/memory/store"
	"github.com/hanode/hanode/replication/memory/wire"
)

// follower is a server as a standby: what comes from the active.
type follower struct {
	mu      sync.Mutex // taken before a region's lock
	keeper  image.Keeper
	from    *peer                // the active that is followed
	open    map[uint64]*incoming // images that are arriving, by tx
	waiting map[uint64]*incoming // complete, and newer than the files
	free    map[*region][]*store.Buffer
	next    int
}

// maxOpen bounds the images that arrive at the same time, maxWaiting those that wait for the files.
const (
	maxOpen    = 8
	maxWaiting = 64
)

// incoming is an image that is arriving.
type incoming struct {
	p      *peer
	tx     uint64
	epoch  cluster.Epoch
	moment bool
	parts  map[uint32]*arriving
	commit []wire.CommitPart
}

// arriving is one region of it.
type arriving struct {
	r       *region
	buf     *store.Buffer
	entries []store.Entry
	slots   map[uint32]int // only where blocks may come again
}

// data is where the blocks of a buffer begin.
func (r *region) data() uint64 { return store.TableRoom(int(image.Blocks(r.spec.Size))) }

func (w *follower) close() {
	for _, bufs := range w.free {
		for _, b := range bufs {
			b.Close()
		}
	}
	w.free = nil
}

// ask is the active's word that it leads. It is followed if the log says the same; if the log does not say it yet, this waits.
func (w *follower) ask(p *peer, h *wire.Head) error {
	s := p.s
	var ask wire.Asking
	if err := json.Unmarshal(h.Body, &ask); err != nil {
		return fmt.Errorf("%w: %w", wire.ErrFrame, err)
	}
	if err := s.awaitEpoch(h.Epoch); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s.mu.Lock()
	f, role := s.facts, s.role
	s.mu.Unlock()
	again := ask.Again && w.from == p
	if f.epoch > h.Epoch && !again || f.holder != p.member || role != wire.Standby || h.Epoch < w.keeper.Epoch() {
		return p.refuseEpoch(max(f.epoch, w.keeper.Epoch()), fmt.Sprintf("epoch %d of service %s is over: epoch %d, member %d is active", h.Epoch, s.cfg.Service, f.epoch, f.holder))
	}
	dropped, err := w.keeper.Admit(h.Epoch, again)
	if err != nil {
		return err
	}
	if !again {
		dropped = append(dropped, w.keeper.Restart()...)
	}
	for _, c := range dropped {
		w.recycle(w.waiting[c.ID])
		delete(w.waiting, c.ID)
	}
	s.store.SetEpoch(h.Epoch)
	if again {
		return nil
	}
	if w.from != p {
		w.abandon()
	}
	w.from = p
	var have wire.Having
	for _, r := range s.list {
		r.mu.Lock()
		if r.img != nil {
			w.keeper.Hold(r.spec.Name, r.img.Head())
			have.Regions = append(have.Regions, wire.Held{Name: r.spec.Name, Head: r.img.Head(), LastSeq: r.img.Log().Last()})
		}
		r.mu.Unlock()
	}
	return p.sendJSON(wire.PeerHave, h.Epoch, have)
}

// awaitEpoch waits until the log knows of an epoch: a frame may be quicker than the log.
func (s *Server) awaitEpoch(e cluster.Epoch) error {
	const patience = 10 * time.Second
	late := false
	t := time.AfterFunc(patience, func() {
		s.mu.Lock()
		late = true
		s.changed.Broadcast()
		s.mu.Unlock()
	})
	defer t.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.facts.epoch < e {
		if late || s.closed {
			return fmt.Errorf("epoch %d is not in this member's log after %v", e, patience)
		}
		s.changed.Wait()
	}
	return nil
}

func (p *peer) refuseEpoch(e cluster.Epoch, text string) error {
	return p.sendJSON(wire.PeerRefuse, e, wire.Refusal{Epoch: e, Text: text})
}

// followed says whether frames of this connection count; if not, the sender is told why (w.mu is held).
func (w *follower) followed(p *peer, h *wire.Head) bool {
	s := p.s
	s.mu.Lock()
	f, role := s.facts, s.role
	s.mu.Unlock()
	if w.from == p && f.holder == p.member && role == wire.Standby && h.Epoch >= w.keeper.Epoch() {
		return true
	}
	p.refuseEpoch(max(f.epoch, w.keeper.Epoch()), fmt.Sprintf("a frame of epoch %d: epoch %d, member %d is active", h.Epoch, f.epoch, f.holder))
	return false
}

func (w *follower) region(s *Server, no uint32) (*region, error) {
	if no == 0 || int(no) > len(s.list) {
		return nil, fmt.Errorf("%w: region %d", wire.ErrFrame, no)
	}
	return s.list[no-1], nil
}

// define: the active has this region.
func (w *follower) define(p *peer, h *wire.Head) error {
	s := p.s
	var d wire.Definition
	if err := json.Unmarshal(h.Body, &d); err != nil {
		return fmt.Errorf("%w: %w", wire.ErrFrame, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.followed(p, h) {
		return nil
	}
	r := s.regions[d.Name]
	var err error
	switch {
	case r == nil:
		err = fmt.Errorf("region %s is not in this member's spec: the members have different versions of the spec, wait or apply it again", d.Name)
	case r.no != d.Number:
		err = fmt.Errorf("region %s is number %d here and %d on the active: the members have different versions of the spec, wait or apply it again", d.Name, r.no, d.Number)
	default:
		if err = image.CheckSize(d.Name, d.Size, r.spec.Size); err == nil {
			err = w.keeper.CheckLayout(d.Name, d.Layout)
		}
	}
	if err != nil {
		return p.sendJSON(wire.PeerRefuse, h.Epoch, wire.Refusal{Epoch: h.Epoch, Region: d.Name, Text: err.Error()})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.img == nil {
		if r.img, err = s.store.Make(d.Name, d.Size, r.spec.Size, d.Layout); err != nil {
			return p.sendJSON(wire.PeerRefuse, h.Epoch, wire.Refusal{Epoch: h.Epoch, Region: d.Name, Text: err.Error()})
		}
		w.keeper.Hold(d.Name, r.img.Head())
	}
	return nil
}

// pages takes blocks into the buffer of their image.
func (w *follower) pages(p *peer, h *wire.Head) error {
	var fixed [wire.PagesFixed + wire.PageBlocks*store.EntrySize]byte
	if _, err := io.ReadFull(p.conn, fixed[:wire.PagesFixed]); err != nil {
		return err
	}
	n, again := getU32(fixed[:]), getU32(fixed[4:])&1 != 0
	if err := wire.CheckPages(h.Len, n); err != nil {
		return err
	}
	table := fixed[wire.PagesFixed : wire.PagesFixed+int(n)*store.EntrySize]
	if _, err := io.ReadFull(p.conn, table); err != nil {
		return err
	}
	if err := h.Check(fixed[:wire.PagesFixed+len(table)]); err != nil {
		return err
	}
	w.mu.Lock()
	if !w.followed(p, h) {
		w.mu.Unlock()
		_, err := io.CopyN(io.Discard, p.conn, int64(n)*image.Block)
		return err
	}
	a, err := w.arriving(p, h)
	w.mu.Unlock()
	if err != nil {
		return err
	}
	entries := make([]store.Entry, n)
	for i := range entries {
		entries[i] = store.Entry{Block: getU32(table[8*i:]), Sum: getU32(table[8*i+4:])}
		if uint64(entries[i].Block) >= image.Blocks(a.r.spec.Size) {
			return fmt.Errorf("%w: block %d of region %s, which has at most %d", wire.ErrFrame, entries[i].Block, a.r.spec.Name, image.Blocks(a.r.spec.Size))
		}
	}
	return a.take(p.conn, entries, again)
}

func getU32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// arriving finds or makes the buffer of a region of an image that is arriving (w.mu is held). The buffer belongs to the connection's reader until the image is
// complete.
func (w *follower) arriving(p *peer, h *wire.Head) (*arriving, error) {
	r, err := w.region(p.s, h.Region)
	if err != nil {
		return nil, err
	}
	in, err := w.incoming(p, h)
	if err != nil {
		return nil, err
	}
	a := in.parts[h.Region]
	if a == nil {
		a = &arriving{r: r}
		if a.buf, err = w.buffer(p.s, r); err != nil {
			return nil, err
		}
		in.parts[h.Region] = a
	}
	return a, nil
}

func (w *follower) incoming(p *peer, h *wire.Head) (*incoming, error) {
	in := w.open[h.Tx]
	if in == nil {
		if len(w.open) >= maxOpen {
			return nil, fmt.Errorf("%w: more than %d images at the same time", wire.ErrFrame, maxOpen)
		}
		in = &incoming{p: p, tx: h.Tx, epoch: h.Epoch, parts: map[uint32]*arriving{}}
		if w.open == nil {
			w.open, w.waiting, w.free = map[uint64]*incoming{}, map[uint64]*incoming{}, map[*region][]*store.Buffer{}
		}
		w.open[h.Tx] = in
	}
	return in, nil
}

func (w *follower) buffer(s *Server, r *region) (*store.Buffer, error) {
	if free := w.free[r]; len(free) > 0 {
		b := free[len(free)-1]
		w.free[r] = free[:len(free)-1]
		return b, nil
	}
	w.next++
	return s.store.NewBuffer(fmt.Sprintf("%s.in%d", r.spec.Name, w.next), store.BufferSize(r.spec.Size))
}

// take reads blocks from the connection into the buffer, each to the place of its number if it came before, and verifies them.
func (a *arriving) take(conn io.Reader, entries []store.Entry, again bool) error {
	at := len(a.entries)
	if again && a.slots == nil {
		a.slots = map[uint32]int{}
		for i, e := range a.entries {
			a.slots[e.Block] = i
		}
	}
	for i, e := range entries {
		slot := len(a.entries)
		if a.slots != nil {
			if have, ok := a.slots[e.Block]; ok {
				slot = have
			}
			a.slots[e.Block] = slot
		}
		if slot == len(a.entries) {
			if uint64(slot) >= image.Blocks(a.r.spec.Size) {
				return fmt.Errorf("%w: more than %d blocks of region %s", wire.ErrFrame, slot, a.r.spec.Name)
			}
			a.entries = append(a.entries, e)
		} else {
			a.entries[slot] = e
		}
		if a.slots != nil {
			if err := a.read(conn, slot, 1); err != nil {
				return err
			}
		} else if i == len(entries)-1 {
			return a.read(conn, at, len(entries))
		}
	}
	return nil
}

func (a *arriving) read(conn io.Reader, slot, n int) error {
	b := a.buf.Mem[a.r.data()+uint64(slot)*image.Block:][:n*image.Block]
	if _, err := io.ReadFull(conn, b); err != nil {
		return err
	}
	for i, e := range a.entries[slot : slot+n] {
		if image.BlockSum(b[i*image.Block:][:image.Block]) != e.Sum {
			return fmt.Errorf("%w: block %d of region %s has another checksum", wire.ErrFrame, e.Block, a.r.spec.Name)
		}
	}
	return nil
}

// commit: the image is complete.
func (w *follower) commit(p *peer, h *wire.Head) error {
	parts, moment, err := wire.ParseCommit(h.Body)
	if err != nil {
		return err
	}
	s := p.s
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.followed(p, h) {
		return nil
	}
	in, err := w.incoming(p, h)
	if err != nil {
		return err
	}
	delete(w.open, h.Tx)
	in.commit, in.moment, in.epoch = parts, moment, h.Epoch
	c := image.Complete{ID: h.Tx, Epoch: h.Epoch, Moment: moment}
	for _, pt := range parts {
		r, err := w.region(s, pt.Region)
		if err != nil {
			return err
		}
		if a := in.parts[pt.Region]; a == nil {
			in.parts[pt.Region] = &arriving{r: r}
		} else if !moment && uint32(len(a.entries)) != pt.Blocks {
			return fmt.Errorf("%w: image %d of region %s says that it has %d blocks, and %d came", wire.ErrFrame, pt.Head.Number, r.spec.Name, pt.Blocks, len(a.entries))
		}
		c.Regions = append(c.Regions, image.Region{Name: r.spec.Name, Full: pt.Full, Base: pt.Base, Head: pt.Head})
	}
	if w.keeper.Waiting() >= maxWaiting {
		return fmt.Errorf("%d images wait for the files", maxWaiting)
	}
	w.waiting[h.Tx] = in
	usable, err := w.keeper.Take(c, s.filesHeld())
	if err != nil {
		delete(w.waiting, h.Tx)
		w.recycle(in)
		again := !errors.Is(err, image.ErrLayout)
		return p.sendJSON(wire.PeerRefuse, h.Epoch, wire.Refusal{Epoch: h.Epoch, Region: c.Regions[0].Name, Again: again, Text: err.Error()})
	}
	return w.use(s, usable)
}

func (s *Server) filesHeld() uint64 {
	if s.cfg.FilesHeld == nil {
		return 1<<64 - 1
	}
	return s.cfg.FilesHeld()
}

// use makes complete images the newest ones, in order, and acknowledges them (w.mu is held).
func (w *follower) use(s *Server, usable []image.Complete) error {
	var errs []error
	for _, c := range usable {
		in := w.waiting[c.ID]
		delete(w.waiting, c.ID)
		if err := w.keep(s, in); err != nil {
			errs = append(errs, err)
		}
		w.recycle(in)
	}
	return errors.Join(errs...)
}

func (w *follower) keep(s *Server, in *incoming) error {
	regs := make([]*region, 0, len(in.commit))
	slices.SortFunc(in.commit, func(a, b wire.CommitPart) int { return int(a.Region) - int(b.Region) })
	for _, pt := range in.commit {
		regs = append(regs, in.parts[pt.Region].r)
	}
	lock(regs)
	defer unlock(regs)
	changes := make([]store.Change, len(regs))
	for i, pt := range in.commit {
		a := in.parts[pt.Region]
		if a.r.img == nil {
			return fmt.Errorf("%w: region %s was not defined", wire.ErrFrame, a.r.spec.Name)
		}
		ch := store.Change{Region: a.r.img, Full: pt.Full, Head: pt.Head, Entries: a.entries, DataOff: a.r.data()}
		if a.buf != nil {
			ch.Buffer = a.buf.Name
			ch.Data = a.buf.Mem[a.r.data():][:len(a.entries)*image.Block]
			copy(a.buf.Mem, entryBytes(a.entries))
		}
		if sum := a.r.img.SumAfter(pt.Full, a.entries); sum != pt.Head.Sum {
			return fmt.Errorf("%w: image %d of region %s would have the sum %016x, the active's has %016x", wire.ErrFrame, pt.Head.Number, a.r.spec.Name, sum, pt.Head.Sum)
		}
		changes[i] = ch
	}
	lineage := make([]bool, len(regs)) // the message log there continues
	for i, r := range regs {
		lineage[i] = !in.moment || r.img.Head().Epoch == in.epoch && r.img.Log().Last() >= in.commit[i].Head.LogSeq
	}
	err := s.store.Commit(changes, func() {
		in.p.sendFrame(&wire.Frame{Kind: wire.PeerAck, Epoch: in.epoch, Tx: in.tx})
	})
	if err != nil {
		return err
	}
	for i, r := range regs {
		if !lineage[i] {
			r.img.Log().Reset(in.commit[i].Head.LogSeq)
		}
		r.noteView(in.commit[i].Full, changes[i].Entries)
	}
	s.shown(regs)
	return nil
}

func entryBytes(e []store.Entry) []byte {
	if len(e) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&e[0])), len(e)*store.EntrySize)
}

// noteView notes what the waiting application's memory lacks now (r.mu is held).
func (r *region) noteView(full bool, entries []store.Entry) {
	o := r.view
	if o == nil {
		return
	}
	if o.stale == nil {
		o.stale = newBits(image.Blocks(r.spec.Size))
	}
	if full {
		for i := range o.stale {
			o.stale[i] = ^uint64(0)
		}
		return
	}
	for _, e := range entries {
		o.stale[e.Block/64] |= 1 << (e.Block % 64)
	}
}

// shown tells the waiting applications of new images.
func (s *Server) shown(regs []*region) {
	now := time.Now()
	for _, r := range regs {
		s.mu.Lock()
		r.since = now
		c := r.owner
		s.mu.Unlock()
		if c != nil && r.view != nil {
			c.send(&wire.App{Kind: wire.Image, Region: r.no, Value: r.img.Head().Number})
		}
	}
}

// record takes a record of a message log.
func (w *follower) record(p *peer, h *wire.Head) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.followed(p, h) {
		return nil
	}
	r, err := w.region(p.s, h.Region)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.img == nil {
		return fmt.Errorf("%w: a record of region %s, which was not defined", wire.ErrFrame, r.spec.Name)
	}
	if h.Tx > r.img.Log().Last() {
		if err := r.img.Log().Append(h.Tx, h.Body); err != nil {
			return p.sendJSON(wire.PeerRefuse, h.Epoch, wire.Refusal{Epoch: h.Epoch, Region: r.spec.Name, Again: true, Text: err.Error()})
		}
	}
	return p.sendFrame(&wire.Frame{Kind: wire.PeerLogged, Region: h.Region, Epoch: h.Epoch, Tx: h.Tx})
}
