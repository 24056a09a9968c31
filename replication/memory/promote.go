package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication/memory/image"
)

// recycle gives the buffers of an image back (w.mu is held).
func (w *follower) recycle(in *incoming) {
	if in == nil {
		return
	}
	for _, a := range in.parts {
		if a.buf == nil {
			continue
		}
		if len(w.free[a.r]) >= 2 {
			a.buf.Close()
			continue
		}
		const keep = 32 << 20
		if uint64(len(a.entries))*image.Block > keep {
			a.buf.Trim(a.r.data() + keep)
		}
		w.free[a.r] = append(w.free[a.r], a.buf)
	}
	in.parts = nil
}

// abandon drops what is arriving from the active of before (w.mu is held). Its connection ends, and with it the reader that fills the buffers.
func (w *follower) abandon() {
	if w.from != nil {
		w.from.conn.Close()
		w.from = nil
	}
}

// lost is called by the reader of a connection when it has ended.
func (w *follower) lost(p *peer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.from == p {
		w.from = nil
	}
	for tx, in := range w.open {
		if in.p == p {
			w.recycle(in)
			delete(w.open, tx)
		}
	}
}

// watchFiles looks for images whose files have arrived.
func (s *Server) watchFiles(ctx context.Context) {
	t := time.NewTicker(2 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		w := &s.follow
		w.mu.Lock()
		if w.keeper.Waiting() > 0 {
			if err := w.use(s, w.keeper.Files(s.filesHeld())); err != nil {
				s.log.Warn("an image could not be used", "err", err)
				w.abandon()
			}
		}
		w.mu.Unlock()
	}
}

// promote ends following: complete images whose files are there are used, the others left.
func (s *Server) promote(e cluster.Epoch) (left []string, err error) {
	w := &s.follow
	w.mu.Lock()
	defer w.mu.Unlock()
	if e < w.keeper.Epoch() {
		return nil, fmt.Errorf("lead the memory of service %s in epoch %d: epoch %d was seen", s.cfg.Service, e, w.keeper.Epoch())
	}
	usable, rest := w.keeper.Promote(s.filesHeld())
	err = w.use(s, usable)
	for _, c := range rest {
		for _, r := range c.Regions {
			left = append(left, fmt.Sprintf("image %d of region %s goes with files at %d, and they are at %d: not used", r.Head.Number, r.Name, r.Head.FileSeq, s.filesHeld()))
		}
		w.recycle(w.waiting[c.ID])
		delete(w.waiting, c.ID)
	}
	w.abandon()
	if err != nil {
		return left, err
	}
	_, err = w.keeper.Admit(e, false)
	return left, err
}
