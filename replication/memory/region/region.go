package region

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication/memory/image"
	"github.com/hanode/hanode/replication/memory/store"
	"github.com/hanode/hanode/replication/memory/wire"
)

// Tracking is how changed blocks are found.
type Tracking int

const (
	Auto     Tracking = iota // Kernel where it can, else Compare
	Kernel                   // by the kernel: nothing to do for the application
	Declared                 // the application calls Mark for everything that it writes
	Compare                  // with a copy of the last checkpoint: needs the memory twice
)

// Options say how a region is opened.
type Options struct {
	Size      int    // in bytes; an image that is held may be larger, see Bytes
	Layout    uint32 // version of the application's own format: an image of another one is refused
	AnyLayout bool   // give the image whatever its version is; see Layout
	Discard   bool   // begin empty, whatever is held
	Tracking  Tracking
	Points    bool          // timed: checkpoints are made only within Point, by the goroutine that calls it
	Every     time.Duration // timed: 0: as the spec says
	OnImage   func(*Region) // standby: an image has arrived and Bytes shows it
	OnError   func(error)   // timed: a checkpoint was not made
}

// Region is a named piece of memory.
type Region struct {
	app  *App
	name string
	opt  Options
	no   atomic.Uint32

	gate  sync.RWMutex // Update shares it; a checkpoint has it alone
	mem   []byte       // all that the region may have
	size  int
	live  int // descriptor of mem
	stage stage
	track tracker
	omu   sync.Mutex
	owed  []uint64 // blocks of checkpoints that failed
	info  wire.Info
	ids   []uint32 // of changed blocks, used again

	due  atomic.Bool
	stop chan struct{}
}

// Open gives the process a region of the service. Its content is the newest image, or zero. One process has a region at a time.
func (a *App) Open(name string, opt Options) (*Region, error) {
	r := &Region{app: a, name: name, opt: opt, live: -1, stop: make(chan struct{})}
	if opt.Size < 0 {
		return nil, fmt.Errorf("region %s: %d bytes: %w", name, opt.Size, ErrTooBig)
	}
	if err := r.open(0); err != nil {
		return nil, err
	}
	var err error
	if r.track, err = newTracker(opt.Tracking, r.mem); err == nil {
		err = r.track.clean(r.size)
	}
	if err != nil {
		r.unmap()
		a.ask(&wire.App{Kind: wire.Close, Region: r.no.Load()})
		return nil, fmt.Errorf("region %s: %w", name, err)
	}
	a.mu.Lock()
	a.regions = append(a.regions, r)
	a.mu.Unlock()
	if r.info.Mode == 2 || opt.Every > 0 {
		every := opt.Every
		if every == 0 {
			every = time.Duration(r.info.EveryNs)
		}
		a.wg.Go(func() { r.timer(every) })
	}
	return r, nil
}

func (r *Region) open(flags uint32) error {
	o := wire.Opening{Layout: r.opt.Layout, Flags: flags, Name: r.name}
	if r.opt.AnyLayout {
		o.Flags |= wire.OpenAnyLayout
	}
	if r.opt.Discard && flags&wire.OpenBring == 0 {
		o.Flags |= wire.OpenDiscard
	}
	var fds []int
	if flags&wire.OpenBring != 0 {
		fds = []int{r.live}
	}
	a, err := r.app.ask(&wire.App{Kind: wire.Open, Value: uint64(max(r.opt.Size, r.size)), Body: o.Append(nil)}, fds...)
	if err != nil {
		return err
	}
	if len(a.fds) != 2 {
		return fmt.Errorf("region %s: the server sent %d descriptors, want 2", r.name, len(a.fds))
	}
	if err := r.info.Parse(a.m.Body); err != nil {
		return err
	}
	r.no.Store(a.m.Region)
	r.size = int(r.info.Size)
	if r.live < 0 {
		r.live = a.fds[0]
		if r.mem, err = unix.Mmap(r.live, 0, int(round(r.info.Max)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
			return fmt.Errorf("region %s: map %d bytes: %w", r.name, r.info.Max, err)
		}
	} else {
		unix.Close(a.fds[0])
	}
	if err := r.stage.open(a.fds[1], r.info.Stage); err != nil {
		return fmt.Errorf("region %s: map its staging memory: %w", r.name, err)
	}
	return nil
}

// reopen gives the region to a new server, with its memory.
func (r *Region) reopen() error {
	r.gate.Lock()
	defer r.gate.Unlock()
	if err := r.open(wire.OpenBring); err != nil {
		return err
	}
	r.owe(r.allBlocks()) // what the server holds may be older
	return nil
}

func (r *Region) allBlocks() []uint32 {
	ids := make([]uint32, image.Blocks(uint64(r.size)))
	for i := range ids {
		ids[i] = uint32(i)
	}
	return ids
}

func round(size uint64) uint64 { return image.Blocks(size) * image.Block }

// Name is the region's name.
func (r *Region) Name() string { return r.name }

// Bytes is the region's memory.
func (r *Region) Bytes() []byte { return r.mem[:r.size:r.size] }

// Image is the number of the image that was there when the region was opened, or was taken last as a standby; 0: there was none. Layout is its layout version.
func (r *Region) Image() (number uint64, layout uint32) {
	r.gate.RLock()
	defer r.gate.RUnlock()
	return r.info.Number, r.info.Layout
}

// Update calls f with the region's memory. No checkpoint is made meanwhile: what f writes is in one image as a whole, or not at all.
func (r *Region) Update(f func(b []byte)) {
	r.gate.RLock()
	defer r.gate.RUnlock()
	f(r.Bytes())
}

// Mark declares that n bytes from off on were, or will be, written before the next checkpoint (Declared only). It must be within the same Update as the writing.
func (r *Region) Mark(off, n int) {
	if d, ok := r.track.(*declared); ok {
		d.mark(off, n)
	}
}

// Checkpoint returns when every member that takes part in protection holds the region as it is now.
func (r *Region) Checkpoint() error { return r.app.Checkpoint(r) }

// Start makes a checkpoint of the region as it is now, and returns at once; Wait on the handle returns when it is held.
func (r *Region) Start() (*Handle, error) { return r.app.Start(r) }

// Handle is a checkpoint or a record that is under way.
type Handle struct {
	ch    chan reply
	parts []part
	once  sync.Once
	num   uint64
	err   error
}

type part struct {
	r     *Region
	chunk *chunk
	ids   []uint32
}

// Wait returns when the members hold it, with its number.
func (h *Handle) Wait() (uint64, error) {
	h.once.Do(func() {
		r, err := wait(h.ch)
		h.num, h.err = r.m.Value, err
	})
	return h.num, h.err
}

// Checkpoint makes one image of several regions, and returns when it is held.
func (a *App) Checkpoint(regions ...*Region) error {
	h, err := a.Start(regions...)
	if err != nil {
		return err
	}
	_, err = h.Wait()
	return err
}

// Start makes one image of several regions as they are now, and returns at once. Each handle must be waited for.
func (a *App) Start(regions ...*Region) (*Handle, error) {
	if len(regions) == 0 || len(regions) > wire.MaxParts {
		return nil, fmt.Errorf("a checkpoint of %d regions: 1 to %d", len(regions), wire.MaxParts)
	}
	for _, r := range sorted(regions) {
		r.gate.Lock()
		defer r.gate.Unlock()
	}
	h := &Handle{parts: make([]part, 0, len(regions))}
	parts := make([]wire.Part, 0, wire.MaxParts)
	for _, r := range regions {
		p, off, err := r.copyChanged()
		if err != nil {
			h.answered(err)
			return nil, err
		}
		h.parts = append(h.parts, p)
		parts = append(parts, wire.Part{Region: r.no.Load(), Blocks: uint32(len(p.ids)), Offset: off})
	}
	ch, err := a.start(&wire.App{Kind: wire.Checkpoint, Body: wire.AppendParts(make([]byte, 0, 64), parts)}, 1, h.answered)
	if err != nil {
		h.answered(err)
		return nil, err
	}
	h.ch = ch
	return h, nil
}

// answered frees the staging memory; the next checkpoint must have what did not get through.
func (h *Handle) answered(err error) {
	for _, p := range h.parts {
		if err != nil {
			p.r.owe(p.ids)
		}
		p.r.stage.free(p.chunk)
	}
}

func sorted(regions []*Region) []*Region {
	if len(regions) == 1 {
		return regions
	}
	out := append([]*Region(nil), regions...)
	for i := range out { // few
		for k := i; k > 0 && out[k].no.Load() < out[k-1].no.Load(); k-- {
			out[k], out[k-1] = out[k-1], out[k]
		}
	}
	return out
}

// copyChanged copies the changed blocks to staging memory (the gate is held).
func (r *Region) copyChanged() (p part, off uint64, err error) {
	ids, err := r.track.changed(r.ids[:0], r.size)
	if err != nil {
		return p, 0, fmt.Errorf("region %s: find the changed blocks: %w", r.name, err)
	}
	r.ids = ids
	r.omu.Lock()
	if r.owed != nil {
		ids = merge(ids, r.owed, r.size)
		r.owed = nil
	}
	r.omu.Unlock()
	p = part{r: r, ids: append([]uint32(nil), ids...)}
	if len(ids) == 0 {
		return p, 0, nil
	}
	room := store.TableRoom(len(ids))
	if p.chunk, err = r.stage.alloc(room+uint64(len(ids))*image.Block, r.app); err != nil {
		r.owe(ids)
		return p, 0, err
	}
	to := r.stage.mem[p.chunk.off:]
	table := unsafe.Slice((*store.Entry)(unsafe.Pointer(&to[0])), len(ids))
	to = to[room:]
	for i, id := range ids {
		table[i] = store.Entry{Block: id}
		copy(to[i*image.Block:], r.mem[uint64(id)*image.Block:][:image.Block])
	}
	return p, p.chunk.off, nil
}

// owe notes blocks that the next checkpoint must have.
func (r *Region) owe(ids []uint32) {
	if len(ids) == 0 {
		return
	}
	r.omu.Lock()
	defer r.omu.Unlock()
	if r.owed == nil {
		r.owed = make([]uint64, (len(r.mem)/image.Block+63)/64)
	}
	for _, id := range ids {
		r.owed[id/64] |= 1 << (id % 64)
	}
}

func merge(ids []uint32, owed []uint64, size int) []uint32 {
	for _, id := range ids {
		owed[id/64] |= 1 << (id % 64)
	}
	out := make([]uint32, 0, 2*len(ids))
	for id := uint32(0); uint64(id) < image.Blocks(uint64(size)); id++ {
		if owed[id/64]&(1<<(id%64)) != 0 {
			out = append(out, id)
		}
	}
	return out
}

// Append adds a record to the region's message log and returns when the members hold it. A checkpoint of the region empties the log: make it after the
// region contains what the records say.
func (r *Region) Append(record []byte) error {
	h, err := r.StartAppend(record)
	if err == nil {
		_, err = h.Wait()
	}
	return err
}

// StartAppend is Append that does not wait.
func (r *Region) StartAppend(record []byte) (*Handle, error) {
	if len(record) > store.MaxRecord {
		return nil, fmt.Errorf("region %s: a record of %d bytes: at most %d", r.name, len(record), store.MaxRecord)
	}
	ch, err := r.app.start(&wire.App{Kind: wire.Append, Region: r.no.Load(), Body: record}, 1, nil)
	if err != nil {
		return nil, err
	}
	return &Handle{ch: ch}, nil
}

// Replay gives f each record since the newest image, in order. Call it when the process has become active, before anything else is done with the region.
func (r *Region) Replay(f func(record []byte) error) error {
	ch, err := r.app.start(&wire.App{Kind: wire.Replay, Region: r.no.Load()}, 1024, nil)
	if err != nil {
		return err
	}
	for {
		a, e := wait(ch)
		if e != nil {
			return errors.Join(err, e)
		}
		if a.m.Kind == wire.Replay|wire.Answer {
			return err
		}
		if err == nil {
			err = f(a.m.Body)
		}
	}
}

// Grow makes the region larger, where it is: slices from Bytes before stay valid, and Bytes returns a longer one. The spec bounds it.
func (r *Region) Grow(size int) error {
	r.gate.Lock()
	defer r.gate.Unlock()
	if size < r.size {
		return fmt.Errorf("region %s has %d bytes and cannot shrink to %d", r.name, r.size, size)
	}
	if _, err := r.app.ask(&wire.App{Kind: wire.Grow, Region: r.no.Load(), Value: uint64(size)}); err != nil {
		return err
	}
	err := r.track.grow(r.size, size)
	r.size = size
	return err
}

// take brings the memory to the newest image.
func (r *Region) take() error {
	r.gate.Lock()
	defer r.gate.Unlock()
	a, err := r.app.ask(&wire.App{Kind: wire.Take, Region: r.no.Load()})
	if err != nil {
		return err
	}
	if err := r.info.Parse(a.m.Body); err != nil {
		return err
	}
	r.size = int(r.info.Size)
	r.omu.Lock()
	r.owed = nil
	r.omu.Unlock()
	return r.track.clean(r.size)
}

// Restore throws away what was written since the newest image.
func (r *Region) Restore() error {
	r.gate.Lock()
	defer r.gate.Unlock()
	a, err := r.app.ask(&wire.App{Kind: wire.Take, Flags: 1, Region: r.no.Load()})
	if err != nil {
		return err
	}
	if err := r.info.Parse(a.m.Body); err != nil {
		return err
	}
	r.omu.Lock()
	r.owed = nil
	r.omu.Unlock()
	return r.track.clean(r.size)
}

// Point is a consistent point: if a timed checkpoint is due it is made here, else this costs a nanosecond (Options.Points).
func (r *Region) Point() {
	if r.due.Load() && r.due.CompareAndSwap(true, false) {
		r.timed()
	}
}

func (r *Region) timer(every time.Duration) {
	t := time.NewTicker(max(every, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-r.app.done:
			return
		case <-t.C:
		}
		if role, _ := r.app.Role(); role != Active {
			continue
		}
		if r.opt.Points {
			r.due.Store(true)
		} else {
			r.timed()
		}
	}
}

func (r *Region) timed() {
	h, err := r.Start()
	if err == nil {
		if r.opt.Points {
			r.app.wg.Go(func() { r.report(h) })
			return
		}
		r.report(h)
		return
	}
	if r.opt.OnError != nil {
		r.opt.OnError(err)
	}
}

func (r *Region) report(h *Handle) {
	if _, err := h.Wait(); err != nil && r.opt.OnError != nil {
		r.opt.OnError(err)
	}
}

// Close gives the region back. Its memory must not be touched any more.
func (r *Region) Close() error {
	a := r.app
	a.mu.Lock()
	for i := range a.regions {
		if a.regions[i] == r {
			a.regions = append(a.regions[:i:i], a.regions[i+1:]...)
			break
		}
	}
	a.mu.Unlock()
	close(r.stop)
	_, err := a.ask(&wire.App{Kind: wire.Close, Region: r.no.Load()})
	r.gate.Lock()
	defer r.gate.Unlock()
	r.unmap()
	return err
}

func (r *Region) unmap() {
	if r.track != nil {
		r.track.close()
	}
	if r.mem != nil {
		unix.Munmap(r.mem)
		r.mem, r.size = nil, 0
	}
	if r.live >= 0 {
		unix.Close(r.live)
		r.live = -1
	}
	r.stage.close()
}
