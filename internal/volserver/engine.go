package volserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/journal/disk"
	"github.com/hanode/hanode/replication/stream"
	"github.com/hanode/hanode/replication/stream/replica"
	"github.com/hanode/hanode/replication/tree"
	"github.com/hanode/hanode/replication/volume"
)

// works is the real data path: journal, trees, stream and mounts of one service.
type works struct {
	h     *host
	start Start

	journal *journal.Journal
	trees   []*tree.Tree
	stream  *stream.Stream
	mounts  []*volume.FS
	ended   chan struct{} // closed when the stream's Run has returned
	halt    context.CancelFunc
	nudge   chan struct{} // the stream has something to tell

	copying copying

	epoch     atomic.Uint64 // in which operations may be done; 0: this copy does not lead
	suspended atomic.Uint64
	fenced    atomic.Bool

	mu      sync.Mutex
	facts   Facts
	news    chan struct{} // closed and replaced with each change of facts
	wants   map[cluster.MemberNo]string
	wantsAt cluster.Generation
	dirty   bool // the host was rebooted since an unclean end, and this copy has not been compared since
	bad     bool // the state last stored said inconsistent
	led     bool
}

func newEngine(h *host, s Start) (engine, error) {
	if len(s.Volumes) == 0 || len(s.Volumes) > 255 {
		return nil, errors.New("a service has 1 to 255 volumes")
	}
	w := &works{h: h, start: s, news: make(chan struct{}), nudge: make(chan struct{}, 1), wants: map[cluster.MemberNo]string{}, ended: make(chan struct{})}
	w.copying.w = w
	return w, nil
}

// Open opens the copy and mounts it, as standby.
func (w *works) Open(ctx context.Context) (ready Ready, err error) {
	s := &w.start
	if ready.Made, err = s.prepare(); err != nil {
		return ready, err
	}
	first := s.Volumes[0]
	var found journal.Recovered
	w.journal, found, err = journal.Open(filepath.Join(first.Backing, "journal"), disk.OS{}, journal.Limits{Cluster: s.Data, Service: s.Service, Size: first.JournalSize})
	if err != nil {
		return ready, err
	}
	_ = found
	st, err := s.loadState(w.journal, ready.Made)
	if err != nil {
		return ready, err
	}
	w.dirty = !st.Clean && st.Boot != s.Boot
	w.bad = st.Inconsistent
	var volumes []stream.Volume
	for i := range s.Volumes {
		v := &s.Volumes[i]
		t, err := tree.Open(v.Backing, tree.Options{Mount: v.Path, Header: func(dir string) error { return journal.CheckHeader(disk.OS{}, dir, s.header(i)) }})
		if err != nil {
			return ready, fmt.Errorf("volume %s/%s: %w", s.Service, v.Name, err)
		}
		ready.Warnings = append(ready.Warnings, t.Warnings()...)
		w.trees = append(w.trees, t)
		mode, ok := replica.ParseMode(v.Mode)
		if !ok {
			return ready, fmt.Errorf("volume %s/%s: mode %q is not known", s.Service, v.Name, v.Mode)
		}
		volumes = append(volumes, stream.Volume{Name: v.Name, Mode: mode, Tree: t})
	}
	if err := w.store(st); err != nil { // before anything is changed: this boot, and not ended in good order
		return ready, err
	}
	if w.stream, err = stream.New(w.config(st, volumes)); err != nil {
		return ready, err
	}
	run, halt := context.WithCancel(context.WithoutCancel(ctx))
	w.halt = halt
	w.h.wg.Go(func() {
		defer close(w.ended)
		if err := w.stream.Run(run); err != nil {
			w.failed(err)
		}
	})
	w.h.wg.Go(func() { w.tellLoop(run) })
	if err := w.mount(); err != nil {
		return ready, err
	}
	ready.Pos = w.journal.Last()
	if st.Inconsistent {
		ready.Inconsistent = "a resync of this copy has not ended"
		if st.Why != "" {
			ready.Inconsistent = st.Why
		}
	}
	return ready, nil
}

func (w *works) config(st journal.State, volumes []stream.Volume) stream.Config {
	s := &w.start
	return stream.Config{
		Self: replica.Run{Member: s.Self.Member, Inc: s.Self.Inc}, Cluster: s.Cluster, Service: s.Service, Volumes: volumes, AloneDisk: s.AloneDisk, Journal: w.journal,
		State: st, Store: w.store, Dirty: w.dirty, Now: boottime, Log: w.h.log, Resync: &w.copying, SetAside: w.setAside,
		Events: stream.Events{
			CaughtUp: func(r replica.Run, e cluster.Epoch, g cluster.Generation) {
				w.h.event(message{Kind: kindCaughtUp, Caught: &CaughtUp{Run{r.Member, r.Inc}, e, g}})
			},
			WantDegrade: w.wantDegrade,
			Dial:        func(m cluster.MemberNo) { w.h.event(message{Kind: kindDial, Member: m}) },
			Higher:      func(e cluster.Epoch, why string) { w.h.event(message{Kind: kindHigher, Epoch: e, Text: why}) },
			Failed:      w.failed,
			Deposed: func(why string) {
				w.epoch.Store(0)
				w.h.event(message{Kind: kindDeposed, Text: why})
			},
			Changed: w.changed,
		},
	}
}

// store replaces the state of the copy. It keeps the boot in which the copy was last known to be whole, until it is known to be so again.
func (w *works) store(st journal.State) error {
	w.mu.Lock()
	if w.bad && !st.Inconsistent || w.led {
		w.dirty = false // compared from end to end, or what everybody else is compared with
	}
	w.bad = st.Inconsistent
	if !w.dirty {
		st.Boot = w.start.Boot
	}
	if st.Clean && w.dirty {
		st.Clean = false
	}
	w.mu.Unlock()
	return journal.StoreState(disk.OS{}, w.start.Volumes[0].Backing, st)
}

func (w *works) failed(err error) {
	w.h.event(message{Kind: kindFailed, Text: err.Error()})
}

func (w *works) mount() error {
	for i := range w.start.Volumes {
		v := &w.start.Volumes[i]
		fs, err := volume.New(volume.Config{Service: w.start.Service, Volume: v.Name, Index: uint8(i + 1), Mount: v.Path, Tree: w.trees[i],
			Log: &log{w: w, log: w.stream.Log(uint8(i + 1))}, Gate: w.gate, Logger: w.h.log})
		if err != nil {
			return err
		}
		w.mounts = append(w.mounts, fs)
		w.h.wg.Go(fs.Serve)
	}
	return nil
}

func boottime() cluster.Instant {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("CLOCK_BOOTTIME: " + err.Error())
	}
	return cluster.Instant(t.Nano())
}

// SetFacts takes what the log says.
func (w *works) SetFacts(f Facts) {
	w.mu.Lock()
	was := w.facts
	w.facts = f
	if f.Gen != w.wantsAt {
		clear(w.wants)
		w.wantsAt = f.Gen
	}
	close(w.news)
	w.news = make(chan struct{})
	led := w.led
	w.mu.Unlock()
	if led && f.Holder == w.start.Self && f.Grant == was.Grant && f.Epoch > was.Epoch {
		w.bumped(f.Epoch)
	} else if led && (f.Holder != w.start.Self || f.Grant != was.Grant) {
		w.epoch.Store(0)
	}
	r := replica.Facts{Epoch: f.Epoch, Grant: f.Grant, Gen: f.Gen, Holder: replica.Run{Member: f.Holder.Member, Inc: f.Holder.Inc}, InSync: f.InSync, Sticky: f.Sticky, Closed: f.Closed}
	for _, p := range f.Peers {
		r.Admitted = append(r.Admitted, replica.Run{Member: p.Member, Inc: p.Inc})
	}
	w.stream.SetFacts(r)
}

// bumped goes on in the next epoch of the same tenure.
func (w *works) bumped(e cluster.Epoch) {
	for _, fs := range w.mounts {
		if err := fs.SetRole(volume.Active, e); err != nil {
			w.h.log.Warn("the next epoch", "epoch", e, "err", err)
		}
	}
	if w.epoch.Load() != 0 {
		w.epoch.Store(uint64(e))
	}
}

// Lead is the promotion.
func (w *works) Lead(ctx context.Context, e cluster.Epoch) (Led, error) {
	began := time.Now()
	for {
		w.mu.Lock()
		f, news := w.facts, w.news
		w.mu.Unlock()
		if f.Epoch >= e {
			break
		}
		select {
		case <-news:
		case <-ctx.Done():
			return Led{}, fmt.Errorf("the log has not said epoch %d here: %w", e, ctx.Err())
		}
	}
	before := w.stream.Status()
	w.mu.Lock()
	w.led = true
	w.mu.Unlock()
	pos, err := w.stream.Lead(ctx, e)
	if err != nil {
		w.mu.Lock()
		w.led = false
		w.mu.Unlock()
		return Led{}, err
	}
	for _, fs := range w.mounts {
		if err := fs.SetRole(volume.Active, e); err != nil {
			return Led{}, err
		}
	}
	w.epoch.Store(uint64(e))
	w.mu.Lock()
	now := w.facts
	w.mu.Unlock()
	switch { // the log may have moved on meanwhile
	case now.Holder != w.start.Self || now.Grant > e:
		w.epoch.Store(0)
		return Led{}, fmt.Errorf("epoch %d was granted meanwhile", now.Epoch)
	case now.Epoch > e:
		w.bumped(now.Epoch)
	}
	led := Led{Pos: pos, TookUs: time.Since(began).Microseconds()}
	if pos.Seq > before.Applied {
		led.Applied = pos.Seq - before.Applied
	}
	return led, nil
}

func (w *works) Drain(ctx context.Context) error {
	_, err := w.stream.Drain(ctx)
	return err
}

func (w *works) Undrain() { w.stream.Undrain() }
func (w *works) GoAlone() { w.stream.GoAlone() }

// Fence ends what was being done: nothing is acknowledged after it.
func (w *works) Fence(why string) {
	w.epoch.Store(0)
	w.fenced.Store(true)
	if w.stream != nil {
		w.stream.Fence(why)
	}
}

// Abort answers whatever is asked of the mounts with EIO and takes them away. Holders are killed: they would read on from the kernel's cache.
func (w *works) Abort() {
	for _, fs := range w.mounts {
		if _, err := fs.Abort(true); err != nil {
			w.h.log.Warn("abort", "err", err)
		}
	}
	w.shut()
}

// shut ends the stream and closes the files.
func (w *works) shut() {
	if w.halt == nil {
		return
	}
	w.halt()
	<-w.ended
	for _, t := range w.trees {
		t.Close()
	}
	w.journal.Close()
	w.halt = nil
}

// Close ends a standby in good order.
func (w *works) Close(context.Context) error {
	var errs []error
	for _, fs := range w.mounts {
		if err := fs.Close(); err != nil {
			_, err = fs.Abort(true)
			errs = append(errs, err)
		}
	}
	if w.halt != nil {
		w.halt()
		<-w.ended
		errs = append(errs, w.stream.Shutdown())
		for _, t := range w.trees {
			errs = append(errs, t.Close())
		}
		errs = append(errs, w.journal.Close())
		w.halt = nil
	}
	return errors.Join(errs...)
}

func (w *works) AddConn(p cluster.MemberNo, c net.Conn, _ bool) { w.stream.AddConn(p, c) }

func (w *works) Order(ctx context.Context, o Order) (json.RawMessage, error) {
	if o.What == "distrust" {
		return nil, w.distrust(o.Volume)
	}
	return w.divergent(ctx, o)
}

// log is the stream's log of one volume, behind what the deadline page says.
type log struct {
	w   *works
	log *stream.Log
}

func (l *log) Submit(op *replication.Op) (volume.Ticket, error) {
	if err := l.w.hold(); err != nil {
		return 0, err
	}
	seq, err := l.log.Submit(op)
	return volume.Ticket(seq), err
}

func (l *log) Wait(t volume.Ticket) error {
	if err := l.log.Wait(uint64(t)); err != nil {
		return err
	}
	return l.w.gate() // the lease may have run out meanwhile
}

func (l *log) Done(t volume.Ticket, err error) { l.log.Done(uint64(t), err) }

func (l *log) Sync() error {
	if err := l.w.hold(); err != nil {
		return err
	}
	if err := l.log.Sync(); err != nil {
		return err
	}
	return l.w.gate()
}
