package vip

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// lookGap is the least time between two comparisons that the kernel's events ask for: a program that fights for an
// address costs us a bounded part of a processor.
const lookGap = 20 * time.Millisecond

// linksEvery is after how many ticks the interfaces are listed although no event told of a change.
const linksEvery = 30

// Run compares what is wanted with what the kernel has, at once, at each tick and when the kernel tells of a change;
// announces; and watches for duplicates. It returns nil when ctx has ended, and an error when it cannot begin. It leaves
// addresses as they are.
func (k *Keeper) Run(ctx context.Context) error {
	var events *os.File
	err := k.ns.in(func() (err error) {
		events, err = openEvents()
		return err
	})
	if err != nil {
		return err
	}
	r := &runner{k: k, changed: make(chan struct{}, 1), listening: map[*wire]bool{}}
	r.ctx, r.cancel = context.WithCancel(ctx)
	defer r.stop(events)
	r.wg.Go(func() { r.readEvents(events) })
	r.loop()
	return nil
}

// runner is the state of one Run.
type runner struct {
	k      *Keeper
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	changed   chan struct{}
	linksToo  atomic.Bool
	listening map[*wire]bool
	ticks     int
	looked    time.Time
}

func (r *runner) loop() {
	tick := time.NewTimer(untilTick(r.k.cfg.Tick))
	defer tick.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	r.linksToo.Store(true)
	lookAt := time.Now()
	for {
		timer.Stop()
		if next := earlier(lookAt, r.k.nextAnnouncement()); !next.IsZero() {
			timer.Reset(time.Until(next))
		}
		select {
		case <-r.ctx.Done():
			return
		case <-tick.C:
			tick.Reset(untilTick(r.k.cfg.Tick))
			if r.ticks++; r.ticks%linksEvery == 0 {
				r.linksToo.Store(true)
			}
			lookAt = time.Now()
		case <-r.changed:
			lookAt = earlier(lookAt, r.looked.Add(lookGap))
		case <-r.k.poke:
			lookAt = earlier(lookAt, r.looked.Add(lookGap))
		case c := <-r.k.claims:
			r.k.hear(c)
		case <-timer.C:
		}
		r.k.announceDue(time.Now())
		if !lookAt.IsZero() && !time.Now().Before(lookAt) {
			r.look()
			lookAt = time.Time{}
		}
	}
}

// untilTick is the time to the next whole multiple of an interval, at which other timers of the process ring as well: it wakes up once for all.
func untilTick(every time.Duration) time.Duration {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil { // it cannot fail for this clock
		return every
	}
	return every - time.Duration(now.Nano())%every
}

// earlier returns the earlier of two times; the zero time is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (r *runner) look() {
	r.k.prep.Lock()
	defer r.k.prep.Unlock()
	if r.k.isClosed() {
		return
	}
	err := r.k.compare(r.linksToo.Swap(false))
	r.looked = time.Now()
	if err != nil {
		r.linksToo.Store(true)
		r.k.mu.Lock()
		say := r.k.limiter.allow(r.looked, err.Error())
		r.k.mu.Unlock()
		if say {
			r.k.log.Warn("VIPs are not as they must be", "err", err)
		}
	}
	r.listen()
}

// listen has a reader on every open socket. prep is held.
func (r *runner) listen() {
	open := map[*wire]bool{}
	for _, w := range r.k.wires {
		open[w] = true
		if !r.listening[w] {
			r.wg.Go(func() { w.listen(r.ctx, r.k.claims) })
		}
	}
	r.listening = open
}

// stop ends the readers and waits for them. The packet sockets stay open.
func (r *runner) stop(events *os.File) {
	r.cancel()
	events.Close()
	for w := range r.listening {
		_ = w.conn.SetReadDeadline(time.Unix(1, 0)) // fails only for a closed socket, whose reader has ended
	}
	r.wg.Wait()
	for w := range r.listening {
		_ = w.conn.SetReadDeadline(time.Time{})
	}
}

// readEvents waits for the kernel to tell of changes. What has changed is looked up, not read from the messages: they
// can be lost (ENOBUFS).
func (r *runner) readEvents(events *os.File) {
	buf := make([]byte, 64<<10)
	for {
		n, err := events.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			r.linksToo.Store(true)
		case err != nil:
			return // closed by stop
		default:
			messages(buf[:n], func(typ, _ uint16, _ uint32, _ []byte) {
				if typ == unix.RTM_NEWLINK || typ == unix.RTM_DELLINK {
					r.linksToo.Store(true)
				}
			})
		}
		select {
		case r.changed <- struct{}{}:
		default:
		}
	}
}

// nextAnnouncement is when the next one is due; zero when nothing is claimed.
func (k *Keeper) nextAnnouncement() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	var at time.Time
	for _, t := range k.tenures {
		at = earlier(at, t.next)
	}
	return at
}

// probeAfter keeps the question whether somebody else has the VIP out of the first moments of a takeover.
const probeAfter = 900 * time.Millisecond

func (k *Keeper) announceDue(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for svc, t := range k.tenures {
		if now.Before(t.next) {
			continue
		}
		slots, _ := k.placed(svc)
		t.next = k.cfg.Announce.next(t.start, now)
		for _, s := range slots {
			k.announceOr(t, s, now.Sub(t.start) >= probeAfter, now)
		}
	}
}

// hear judges somebody's claim: one of a VIP that this node holds, from a MAC that is not this host's, is a duplicate. It
// is told, and the VIP announced again (RFC 5227 section 2.4, way c), but not given up: who is active is decided by the
// lease, and a host that a forger can make give up would be worse.
func (k *Keeper) hear(c claim) {
	now := time.Now()
	vip := c.ip.String()
	k.mu.Lock()
	s := k.slotOf(c.ip)
	if s == nil || s.err != nil || k.tenures[s.Service] == nil || k.ownMAC(c) {
		k.mu.Unlock()
		return
	}
	if k.limiter.allow(now, "defend "+vip) {
		k.announce(s, false)
	}
	// Once in a while for each MAC, and not faster than one a second for all that a forger makes up.
	say := !k.limiter.within(now, vip, time.Second) && k.limiter.allow(now, vip+" "+c.mac.String())
	if say {
		k.limiter.note(now, vip)
	}
	k.mu.Unlock()
	if say {
		k.tell(Event{Kind: Duplicate, Service: s.Service, Prefix: s.Prefix, Interface: c.iface, MAC: c.mac})
	}
}

func (k *Keeper) ownMAC(c claim) bool {
	for _, l := range k.state {
		if bytes.Equal(l.mac, c.mac) {
			return true
		}
	}
	return false
}
