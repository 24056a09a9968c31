package member

import (
	"context"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/rt"
)

// Notify keeps systemd informed (sd_notify(3)) until ctx ends, where it asks for that: ready when the log has admitted this run, or a run of one of
// several members; alive as long as every loop takes its turn; stopping at the end. A start may have to wait for a quorum for as long as it takes, so
// its time-out is put off meanwhile.
func Notify(ctx context.Context, members ...*Member) error {
	return NotifyOf(ctx, func() []*Member { return members })
}

// notifyEvery is how often the manager hears from a daemon that has no watchdog.
const notifyEvery = time.Second

// NotifyOf is Notify for members that come and go.
func NotifyOf(ctx context.Context, members func() []*Member) error {
	if ok, err := daemon.SdNotify(false, "STATUS=starting"); !ok || err != nil {
		return nil // nobody listens
	}
	every := notifyEvery
	if d, err := daemon.SdWatchdogEnabled(false); err == nil && d > 0 {
		every = min(every, d/3)
	}
	t := rt.NewTicker(every)
	defer t.Stop()
	for ready := false; ; {
		joined, alive := turns(members(), every)
		switch {
		case joined && !ready:
			ready = true
			say(daemon.SdNotifyReady + "\nSTATUS=takes part in the cluster")
		case !ready:
			say("EXTEND_TIMEOUT_USEC=30000000\nSTATUS=waits for a quorum that admits this member")
		}
		if alive {
			say(daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			say(daemon.SdNotifyStopping + "\nSTATUS=handing over")
			return nil
		case <-t.C:
			t.Next()
		}
	}
}

func say(what string) { _, _ = daemon.SdNotify(false, what) } // if nobody listens any more, nobody waits for it

// turns asks every loop for a turn. A loop that has ended is no longer asked about: its member is reported elsewhere.
func turns(members []*Member, within time.Duration) (joined, alive bool) {
	alive = true
	for _, m := range members {
		turn := make(chan bool, 1)
		go func() {
			in := false
			_ = m.On(func(c *core.Core) { in = c.Joined() })
			turn <- in
		}()
		select {
		case in := <-turn:
			joined = joined || in
		case <-time.After(within):
			alive = false
		}
	}
	return joined, alive
}
