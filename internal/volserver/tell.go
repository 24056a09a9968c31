package volserver

import (
	"context"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication/stream"
)

const (
	tellEvery  = 10 * time.Millisecond // at most so often
	tellAlways = time.Second           // at least so often
	stallTold  = 20 * time.Millisecond // an acknowledgement that is awaited for so long is news
)

// changed notes that there is something to tell. It never waits.
func (w *works) changed() {
	select {
	case w.nudge <- struct{}{}:
	default:
	}
}

// wantDegrade is the stream's wish to go on without a follower, whatever it waits for: it may not take anything away from a copy that the log calls in sync.
func (w *works) wantDegrade(m cluster.MemberNo, why string) {
	w.mu.Lock()
	w.wants[m] = why
	w.mu.Unlock()
	w.changed()
}

// tellLoop tells the daemon of the copies: at each change, each second, and while something waits.
func (w *works) tellLoop(ctx context.Context) {
	t := time.NewTicker(tellEvery)
	defer t.Stop()
	var last time.Time
	told := map[cluster.MemberNo]Replica{}
	due := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.nudge:
			due = true
			continue
		case <-t.C:
		}
		st := w.stream.Status()
		always := time.Since(last) >= tellAlways
		if always {
			last = time.Now()
		}
		for _, r := range w.replicas(&st) {
			was, known := told[r.Member]
			if !always && known && !news(was, r) && !(due && was.State != r.State) {
				continue
			}
			told[r.Member] = r
			w.h.event(message{Kind: kindReplica, Replica: &r})
		}
		due = false
	}
}

// news says whether what the core decides by has changed.
func news(a, b Replica) bool {
	return a.Connected != b.Connected || a.Good != b.Good || a.Failed != b.Failed || a.State != b.State ||
		(a.WaitingMs == 0) != (b.WaitingMs == 0) || b.WaitingMs > 0 && b.WaitingMs >= a.WaitingMs+50
}

// replicas are the copies as they are told: this one, and on the active each follower.
func (w *works) replicas(st *stream.Status) []Replica {
	own := Replica{Member: w.start.Self.Member, Pos: st.Position, Durable: st.Durable, Good: !st.Inconsistent, Connected: true, State: "standby", Failed: st.Failed}
	if st.Leads {
		own.State = "active"
	} else if st.Source != 0 {
		own.State = "following"
	}
	if own.Resync = w.copying.progress(); own.Resync != nil {
		own.State = "resync"
	}
	out := []Replica{own}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range st.Replicas {
		x := Replica{Member: r.Member, Durable: r.Durable, Good: r.Phase == "in sync" || r.Phase == "at the tail" || r.Phase == "waiting for in-sync", Connected: r.Connected, State: r.Phase,
			LagBytes: int64(r.LagBytes), LagOps: int64(r.Lag), Failed: w.wants[r.Member]}
		x.Pos = cluster.Position{Epoch: st.Position.Epoch, Gen: st.Position.Gen, Seq: r.Accepted}
		if r.Stalled >= stallTold {
			x.WaitingMs = r.Stalled.Milliseconds()
		}
		out = append(out, x)
	}
	return out
}

// Status is everything that is shown.
func (w *works) Status() Status {
	st := w.stream.Status()
	out := Status{Role: "standby", Epoch: st.Position.Epoch, Pos: st.Position, Durable: st.Durable, Applied: st.Applied, Failed: st.Failed, Alone: st.Alone, Suspended: w.suspended.Load()}
	switch {
	case w.fenced.Load():
		out.Role = "fenced"
	case st.Leads:
		out.Role = "active"
	}
	if st.Inconsistent {
		out.Inconsistent = "a resync of this copy has not ended"
	}
	for _, r := range w.replicas(&st) {
		if r.Member == w.start.Self.Member {
			out.Own = r
			continue
		}
		out.Replicas = append(out.Replicas, r)
	}
	for i, fs := range w.mounts {
		v := &w.start.Volumes[i]
		x := Volume{Name: v.Name, Path: v.Path, Backing: v.Backing, Mode: v.Mode, Mounted: true, Files: w.trees[i].Scanned().Inodes}
		if s, err := w.trees[i].Statfs(); err == nil {
			x.FreeBytes = int64(s.Bavail) * s.Bsize
			x.UsedBytes = int64(s.Blocks-s.Bfree) * s.Bsize
		}
		n := fs.Stats()
		x.Ops, x.WriteBytes, x.GateRefused = n.Changes.Load()+n.Writes.Load(), n.WriteBytes.Load(), n.Gate.Load()
		x.AckP50Us, x.AckP99Us = float64(n.Ack.Quantile(0.5))/1e3, float64(n.Ack.Quantile(0.99))/1e3
		x.Divergent = setsAside(v.Backing)
		out.Volumes = append(out.Volumes, x)
	}
	return out
}
