// Package voltest has logs for a volume without a stream: for tests of the file system and for the benchmark's loopback.
//
// Accept takes every operation at once and keeps nothing: with it a volume is a plain loopback file system, which is what the
// cost of replication is compared with. Withhold accepts only what it is told to, so that tests can look at what is visible before.
package voltest

import (
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/volume"
)

// Accept is a log that accepts everything at once. SyncFn, if set, is what Sync does.
type Accept struct {
	seq    atomic.Uint64
	SyncFn func() error
}

// Submit counts.
func (l *Accept) Submit(*replication.Op) (volume.Ticket, error) {
	return volume.Ticket(l.seq.Add(1)), nil
}

// Wait does not.
func (l *Accept) Wait(volume.Ticket) error { return nil }

// Done is not interested.
func (l *Accept) Done(volume.Ticket, error) {}

// Sync calls SyncFn.
func (l *Accept) Sync() error {
	if l.SyncFn != nil {
		return l.SyncFn()
	}
	return nil
}

// Withhold is a log whose operations wait until Let or Refuse is called. It keeps a record of each and of what was applied in which order.
type Withhold struct {
	mu      sync.Mutex
	moved   sync.Cond
	hold    bool
	refused bool
	let     volume.Ticket // up to here operations may go on
	given   volume.Ticket
	Ops     []replication.Op // in the order of Submit, data copied
	Applied []volume.Ticket
	Failed  []error
}

// NewWithhold makes a log that accepts at once until Hold is called.
func NewWithhold() *Withhold {
	l := &Withhold{}
	l.moved.L = &l.mu
	return l
}

// Hold makes operations wait from now on.
func (l *Withhold) Hold() {
	l.mu.Lock()
	l.hold, l.let = true, l.given
	l.mu.Unlock()
}

// Let lets n more operations go on; n < 0: all, from now on too.
func (l *Withhold) Let(n int) {
	l.mu.Lock()
	if n < 0 {
		l.hold = false
	}
	l.let += volume.Ticket(max(n, 0))
	l.moved.Broadcast()
	l.mu.Unlock()
}

// Refuse ends everything that waits, and all that comes, with EIO, as a deposition does.
func (l *Withhold) Refuse() {
	l.mu.Lock()
	l.refused = true
	l.moved.Broadcast()
	l.mu.Unlock()
}

// AwaitWaiting returns when n operations were submitted that may not go on yet.
func (l *Withhold) AwaitWaiting(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.hold || int(l.given)-int(l.let) < n {
		l.moved.Wait()
	}
}

// Submitted is the number of operations so far.
func (l *Withhold) Submitted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.given)
}

// Snapshot copies the operations submitted and the order of their application.
func (l *Withhold) Snapshot() ([]replication.Op, []volume.Ticket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]replication.Op(nil), l.Ops...), append([]volume.Ticket(nil), l.Applied...)
}

// Submit keeps the operation.
func (l *Withhold) Submit(op *replication.Op) (volume.Ticket, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refused {
		return 0, syscall.EIO
	}
	kept := *op
	kept.Data = append([]byte(nil), op.Data...)
	l.Ops = append(l.Ops, kept)
	l.given++
	l.moved.Broadcast()
	return l.given, nil
}

// Wait waits for Let or Refuse.
func (l *Withhold) Wait(t volume.Ticket) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.hold && t > l.let && !l.refused {
		l.moved.Wait()
	}
	if l.refused && l.hold && t > l.let {
		return syscall.EIO
	}
	return nil
}

// Done keeps what was applied.
func (l *Withhold) Done(t volume.Ticket, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.Applied = append(l.Applied, t)
	if err != nil {
		l.Failed = append(l.Failed, err)
	}
}

// Sync returns when everything submitted before was let go.
func (l *Withhold) Sync() error {
	l.mu.Lock()
	t := l.given
	l.mu.Unlock()
	return l.Wait(t)
}
