package rt

import "time"

// Ticker rings at whole multiples of its interval on CLOCK_BOOTTIME, so that all tickers of a process, and the turns of its beats, ring together: the process
// wakes up once for all of them. Next must be called after each ring.
type Ticker struct {
	C     <-chan time.Time
	timer *time.Timer
	every time.Duration
}

// NewTicker starts one.
func NewTicker(every time.Duration) *Ticker {
	t := &Ticker{timer: time.NewTimer(rest(every)), every: every}
	t.C = t.timer.C
	return t
}

// Next sets it to the next multiple.
func (t *Ticker) Next() { t.timer.Reset(rest(t.every)) }

// Stop ends it.
func (t *Ticker) Stop() { t.timer.Stop() }

// rest is the time to the next multiple. One that is too near to be worth a ring of its own is left out.
func rest(every time.Duration) time.Duration {
	d := every - time.Duration(Now())%every
	if d < every/8 {
		d += every
	}
	return d
}
