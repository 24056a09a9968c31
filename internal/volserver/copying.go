package volserver

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication/resync"
)

// copying is the resync of the service's trees, with what is shown of it.
type copying struct {
	w *works

	mu   sync.Mutex
	done []resync.Progress // of each volume, in this node's own copying; nil: there is none
	from time.Time
}

func (c *copying) volumes() *resync.Volumes {
	log := c.w.h.log
	return &resync.Volumes{Trees: c.w.trees, Rate: c.w.start.Volumes[0].ResyncRate,
		Busy:     func() bool { return c.w.stream.Status().Waiting > 0 }, // applications go first
		Position: func() uint64 { return c.w.stream.Status().Position.Seq },
		Progress: func(volume int, p resync.Progress) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if volume >= 1 && volume <= len(c.done) {
				c.done[volume-1] = p
			}
		},
		Ended: func(volume int, r resync.Result) {
			log.Info("a walk of the resync has ended", "volume", c.w.start.Volumes[volume-1].Name, "inodes", r.Inodes, "created", r.Created, "changed", r.Changed,
				"compared_bytes", r.Bytes, "written_bytes", r.Written, "received_bytes", r.Received, "took", r.Took)
		}}
}

// Serve is the source's side.
func (c *copying) Serve(ctx context.Context, peer cluster.MemberNo, ch io.ReadWriter) error {
	return c.volumes().Serve(ctx, peer, ch)
}

// Fetch is the follower's side.
func (c *copying) Fetch(ctx context.Context, peer cluster.MemberNo, ch io.ReadWriter, full bool) error {
	c.mu.Lock()
	c.done, c.from = make([]resync.Progress, len(c.w.trees)), time.Now()
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.done = nil
		c.mu.Unlock()
	}()
	return c.volumes().Fetch(ctx, peer, ch, full)
}

// progress is how far this node's copying has come; nil: there is none.
func (c *copying) progress() *Resync {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		return nil
	}
	out := &Resync{}
	for _, p := range c.done {
		out.DoneBytes += p.Bytes
		out.TotalBytes += p.BytesAll
		out.Files += p.Inodes
		out.Left += p.Left()
	}
	if s := time.Since(c.from).Seconds(); s > 0 {
		out.Rate = int64(float64(out.DoneBytes) / s)
	}
	return out
}
