package volserver

import (
	"fmt"
	"syscall"
	"time"

	"github.com/hanode/hanode/internal/page"
)

var (
	errGate = fmt.Errorf("the lease of this node is over: %w", syscall.EIO)
)

// epochLag is how long the page may name the next epoch of the same tenure (a Bump) before the facts do.
const epochLag = 200 * time.Millisecond

// gate is asked before and after each request on the active (gate G1): the page names the epoch that this server leads, and its deadline has not passed.
func (w *works) gate() error {
	_, err := w.look()
	return err
}

// look reads the page until it speaks of the epoch that is led here.
func (w *works) look() (page.Snapshot, error) {
	var since time.Time
	for {
		s := w.h.page.Load()
		e := w.epoch.Load()
		switch {
		case e == 0 || !s.MayAct(boottime()) || uint64(s.Epoch) < e:
			return s, errGate
		case uint64(s.Epoch) == e:
			return s, nil
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > epochLag:
			return s, errGate // another tenure's: this server has not heard that its own is over
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// hold keeps a new operation back while the lease has gone without a renewal for 60 % of its length (rule H4): what is begun then might never be
// acknowledged. A renewal lets it go on; the deadline ends it with EIO.
func (w *works) hold() error {
	counted := false
	for {
		s, err := w.look()
		if err != nil {
			return err
		}
		if boottime() < s.Deadline.Add(-s.TTL*40/100) {
			return nil
		}
		if !counted {
			w.suspended.Add(1)
			counted = true
		}
		time.Sleep(500 * time.Microsecond)
	}
}
