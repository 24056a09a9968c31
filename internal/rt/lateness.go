package rt

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// Lateness measures how late a timer of this process rings: the number by which a member says which profile it can keep
// (TTL must be at least ten times its p99.9). One sleeping goroutine, some microseconds of work per sample.
type Lateness struct {
	hist  *Histogram
	every time.Duration
	now   func() cluster.Instant
}

// NewLateness measures once per every over the last window; 10 ms and 5 minutes are good values.
func NewLateness(every, window time.Duration) *Lateness {
	return &Lateness{hist: NewHistogram(window), every: every, now: Now}
}

// Run measures until ctx ends.
func (l *Lateness) Run(ctx context.Context) error {
	timer := time.NewTimer(l.every)
	defer timer.Stop()
	for {
		due := l.now().Add(l.every)
		timer.Reset(l.every)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		now := l.now()
		l.hist.Record(now, max(now.Sub(due), 0))
	}
}

// P999 is the 99.9th percentile over the window, and the number of samples behind it: with less than 1000 it is the
// maximum.
func (l *Lateness) P999() (time.Duration, int) { return l.hist.Quantile(l.now(), 0.999) }

// Max is the worst of the window.
func (l *Lateness) Max() time.Duration { d, _ := l.hist.Quantile(l.now(), 1); return d }

// Fsync measures how long the disk under a directory takes to make 4 KiB durable.
type Fsync struct {
	dir   string
	every time.Duration
	hist  *Histogram
	now   func() cluster.Instant
}

// FsyncProbe prepares a probe of dir, one sample per every.
func FsyncProbe(dir string, every time.Duration) *Fsync {
	return &Fsync{dir: dir, every: every, hist: NewHistogram(10 * time.Minute), now: Now}
}

// Run takes one sample per interval until ctx ends. An error of the disk ends it and names the file.
func (p *Fsync) Run(ctx context.Context) error {
	f, err := p.open()
	if err != nil {
		return err
	}
	defer f.Close()
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	for {
		if err := p.sample(f); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Burst takes n samples at once: for the moment of starting.
func (p *Fsync) Burst(n int) error {
	f, err := p.open()
	if err != nil {
		return err
	}
	defer f.Close()
	for range n {
		if err := p.sample(f); err != nil {
			return err
		}
	}
	return nil
}

// Quantile returns the q-quantile (0.99 = p99) of the last ten minutes and the number of samples.
func (p *Fsync) Quantile(q float64) (time.Duration, int) { return p.hist.Quantile(p.now(), q) }

// open makes the file without a name, so that nothing is left behind; file systems without O_TMPFILE get a named one.
func (p *Fsync) open() (*os.File, error) {
	f, err := os.OpenFile(p.dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err == nil {
		return f, nil
	}
	f, err = os.CreateTemp(p.dir, ".hanode-fsync-*")
	if err != nil {
		return nil, fmt.Errorf("measure fsync in %s: %w", p.dir, err)
	}
	os.Remove(filepath.Join(p.dir, filepath.Base(f.Name())))
	return f, nil
}

func (p *Fsync) sample(f *os.File) error {
	var block [4096]byte
	asked := p.now()
	block[0] = byte(asked)
	if _, err := f.WriteAt(block[:], 0); err != nil {
		return fmt.Errorf("measure fsync in %s: write: %w", p.dir, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("measure fsync in %s: fsync: %w", p.dir, err)
	}
	now := p.now()
	p.hist.Record(now, now.Sub(asked))
	return nil
}
