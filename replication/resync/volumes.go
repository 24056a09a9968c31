package resync

import (
	"context"
	"io"

	"github.com/hanode/hanode/cluster"
)

// Volumes are the volumes of a service, as a stream resynchronises them: one after the other over one channel (stream.Resyncer).
type Volumes struct {
	Trees    []*Tree // in the order of their numbers, from 1
	Rate     int64   // resync_rate; 0: as fast as Busy allows
	Busy     func() bool
	Position func() uint64
	Progress func(volume int, p Progress) // nil: not told
	Ended    func(volume int, r Result)   // nil: not told
}

// Serve is the source's side.
func (v *Volumes) Serve(ctx context.Context, _ cluster.MemberNo, rw io.ReadWriter) error {
	ch := Conn(rw)
	for i, t := range v.Trees {
		if err := Source(ctx, ch, t, SourceOptions{Volume: uint8(i + 1), Rate: v.Rate, Busy: v.Busy, Position: v.Position}); err != nil {
			return err
		}
	}
	return nil
}

// Fetch is the follower's side. Afterwards the trees hold every inode that the walk met, in a state at or after its beginning.
func (v *Volumes) Fetch(ctx context.Context, _ cluster.MemberNo, rw io.ReadWriter, full bool) error {
	ch := Conn(rw)
	for i, t := range v.Trees {
		opt := TargetOptions{Volume: uint8(i + 1), Full: full}
		if v.Progress != nil {
			opt.Progress = func(p Progress) { v.Progress(i+1, p) }
		}
		r, err := Run(ctx, ch, t, opt)
		if err != nil {
			return err
		}
		if v.Ended != nil {
			v.Ended(i+1, r)
		}
	}
	return nil
}
