package agent

import (
	"context"
	"slices"
	"time"

	"github.com/hanode/hanode/cluster"
)

const (
	lookEvery = 50 * time.Millisecond  // between two looks at role and life
	fastEvery = 50 * time.Millisecond  // until the first success, at most
	fastExec  = 250 * time.Millisecond // the same for programs, which are dearer
	fastFor   = 60 * time.Second       // how long that goes on in one life
)

// loop runs one check. All fields belong to its goroutine.
type loop struct {
	spec  cluster.CheckSpec
	d     *Deps
	probe prober
	tell  func(Status)
	judge Judge
	look  chan struct{} // role or life may have changed

	role   string
	life   uint64
	paused bool
	here   bool            // the check runs in this role, and is not paused
	began  cluster.Instant // of this role and life
	next   cluster.Instant // when the next run is due
	grid   cluster.Instant // a past due time, from which the next ones are counted
	cancel context.CancelFunc
	done   chan Result // of the run under way
}

func newLoop(spec cluster.CheckSpec, d *Deps, p prober, tell func(Status)) *loop {
	return &loop{spec: spec, d: d, probe: p, tell: tell, judge: NewJudge(spec), done: make(chan Result, 1), look: make(chan struct{}, 1)}
}

func (l *loop) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer l.drop()
	l.begin()
	for {
		if l.moved() {
			l.drop()
			l.begin()
		}
		timer.Reset(l.wait(ctx))
		select {
		case <-ctx.Done():
			return
		case <-l.look:
		case r := <-l.done:
			l.cancel()
			l.cancel = nil
			if ctx.Err() != nil {
				return // the run was cut short by our end, not by a failure
			}
			if !l.moved() {
				l.result(r)
			}
		case <-timer.C:
			if l.judge.Tick(l.d.Now()) {
				l.changed()
			}
		}
	}
}

// moved says that role or life are others than those of the judge, or that the check was paused or is run again.
func (l *loop) moved() bool {
	return l.role != l.d.Role() || l.life != l.d.Life() || l.paused != l.d.Paused(l.spec.Name)
}

// begin starts a new role or life.
func (l *loop) begin() {
	now := l.d.Now()
	l.role, l.life = l.d.Role(), l.d.Life()
	l.paused = l.d.Paused(l.spec.Name)
	l.here = slices.Contains(l.spec.From, l.role) && !l.paused
	l.began, l.next, l.grid = now, now, now
	if l.judge.Reset(now) {
		l.changed()
	}
}

// wait starts a run if one is due and returns how long nothing else is.
func (l *loop) wait(ctx context.Context) time.Duration {
	const long = time.Hour
	now := l.d.Now()
	d := long
	if due := l.judge.Due(); due != 0 {
		d = min(d, due.Sub(now))
	}
	if l.here && l.cancel == nil {
		if l.next <= now {
			l.start(ctx, now)
		} else {
			d = min(d, l.next.Sub(now))
		}
	}
	return max(d, 0)
}

// start starts a run. The next one is due a whole number of intervals after this one was; what was missed is left out.
func (l *loop) start(ctx context.Context, now cluster.Instant) {
	var c context.Context
	c, l.cancel = context.WithCancel(ctx)
	l.grid = l.next
	go func() { l.done <- l.probe(c, &l.spec, l.d) }()
	l.schedule(now)
}

func (l *loop) schedule(now cluster.Instant) {
	every := l.every(now)
	l.next = l.grid.Add(every * (now.Sub(l.grid)/every + 1))
}

func (l *loop) every(now cluster.Instant) time.Duration {
	if l.judge.Status().LastOK != 0 || now.Sub(l.began) >= fastFor {
		return l.spec.Every
	}
	if l.spec.Kind == "exec" {
		return min(l.spec.Every, fastExec)
	}
	return min(l.spec.Every, fastEvery)
}

func (l *loop) result(r Result) {
	now := l.d.Now()
	if l.judge.Result(now, r) {
		l.changed()
	}
	l.schedule(now) // after the first success at the pace of the spec, and without a run at once after a long one
}

func (l *loop) changed() {
	st := l.judge.Status()
	l.d.Log.Debug("check", "check", st.Name, "state", string(st.State), "output", st.Output, "took", st.Took, "role", l.role)
	l.tell(st)
}

// drop ends the run under way, if there is one, and forgets its result.
func (l *loop) drop() {
	if l.cancel != nil {
		l.cancel()
		<-l.done
		l.cancel = nil
	}
}
