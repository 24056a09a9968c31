// Package notify tells people of alarms: it runs the programs of the spec's alerts.
//
// It never raises an alarm by itself and never decides what is one; it keeps nothing over a restart of the daemon, after
// which alarms that still stand are told again.
//
// # What a program is told
//
// The alarm as one JSON object on stdin, and as HANODE_ALARM_CODE, _SEVERITY, _OBJECT, _TEXT, _REMEDY and _STATE in its
// environment. The state is raised, repeated (it still stands after the alert's repeat interval) or over. Only who was
// told of an alarm is told that it is over; the text then begins with "over: ", so that a program that does not look at
// the state does not alarm anybody in vain. Exit status 0 means told; anything else is tried again.
//
// # Why it is correct
//
// The core (Desk) is pure and level-triggered: for each alarm and alert it compares what was told with what is true, so
// an alarm that comes and goes many times costs one call per 10 seconds and direction, not one per change, and a call
// that failed is made good by the next one. There is at most one call per alert at a time, so an alert hears of an alarm
// in order. All is bounded: 256 alarms, 8 calls at once, 30 seconds per call, 8 attempts per message.
//
// # What callers must do
//
// Config.Exec must start the program so that it does not inherit what the daemon is (failover/supervise/launch does), and
// kill it with everything that it started at the end of its context. Raise and Clear may be called from anywhere, also
// before Run; they take a lock for some microseconds and never wait for a program.
package notify

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
)

// Alarm is something that somebody must look at. Code and Object together say which one it is.
type Alarm struct {
	Code     string
	Object   string // the service, member, link, or volume as service/volume; a service's alerts hear of what is its own
	Severity string // info, warn, crit; anything else counts as crit
	Text     string
	Remedy   string
	Since    time.Time // wall clock, for people only
}

// Config is what a Notifier needs.
type Config struct {
	Cluster, Node string // names, for the message
	Now           func() cluster.Instant
	Log           *slog.Logger // nil: none
	// Exec runs a program with env added to a plain environment and input as its stdin until it ends or ctx does.
	Exec func(ctx context.Context, argv, env []string, input []byte) error
	// Broken is told when an alert was given up for now (err), and when it works again or was removed (nil). Optional.
	Broken func(alert string, err error)
}

// Notifier runs alerts.
type Notifier struct {
	cfg  Config
	wake chan struct{}

	mu     sync.Mutex
	desk   Desk
	broken map[string]bool
}

const (
	execTimeout = 30 * time.Second
	lastWords   = 3 * time.Second // for calls that are due or under way when Run is to end
)

// New returns a Notifier without alerts; it starts nothing.
func New(cfg Config) *Notifier {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Broken == nil {
		cfg.Broken = func(string, error) {}
	}
	return &Notifier{cfg: cfg, wake: make(chan struct{}, 1), broken: map[string]bool{}}
}

// Check says whether this version can run an alert.
func Check(a cluster.AlertSpec) error {
	switch {
	case a.Kind != "exec":
		return fmt.Errorf("alert %q: %s is not supported by this version: write exec = [argv] and let the program send it", a.Name, a.Kind)
	case len(a.Argv) == 0 || a.Argv[0] == "":
		return fmt.Errorf("alert %q: exec is empty: give the program and its arguments as a list", a.Name)
	}
	return nil
}

// SetSpec makes the alerts those of s. Alerts that Check refuses are left out and logged.
func (n *Notifier) SetSpec(s *cluster.Spec) {
	var alerts []alert
	add := func(service string, list []cluster.AlertSpec) {
		for _, a := range list {
			if err := Check(a); err != nil {
				n.cfg.Log.Warn(err.Error(), "service", service)
				continue
			}
			alerts = append(alerts, alert{service: service, spec: a})
		}
	}
	add("", s.Alerts)
	for i := range s.Services {
		add(s.Services[i].Name, s.Services[i].Alerts)
	}
	var gone []string
	n.with(func() {
		n.desk.Set(alerts)
		for id := range n.broken {
			if n.desk.alert(id) == nil {
				delete(n.broken, id)
				gone = append(gone, id)
			}
		}
	})
	for _, id := range gone {
		n.cfg.Broken(id, nil)
	}
}

// Raise says that an alarm stands. One that stands already gets the new text; it is told again at once only if it has
// become more severe.
func (n *Notifier) Raise(a Alarm) {
	taken := false
	n.with(func() { taken = n.desk.Raise(a) })
	if !taken {
		n.cfg.Log.Error("nobody is told of this alarm: too many stand", "alarm", a.Code, "object", a.Object, "text", a.Text)
	}
}

// Clear says that an alarm is over.
func (n *Notifier) Clear(code, object string) { n.with(func() { n.desk.Clear(code, object) }) }

// Ack says that somebody has seen an alarm: it is not repeated unless it becomes more severe, or is over and comes again.
func (n *Notifier) Ack(code, object string) { n.with(func() { n.desk.Ack(code, object) }) }

func (n *Notifier) with(f func()) {
	n.mu.Lock()
	f()
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// outcome is a call that has ended.
type outcome struct {
	job Job
	err error
}

// Run tells until ctx ends and returns nil then. What is due at that moment or under way gets 3 seconds more, so that
// the alarm for which a daemon ends is heard; then it is killed. Nothing is left.
func (n *Notifier) Run(ctx context.Context) error {
	calls, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	done := make(chan outcome, maxCalls)
	timer := time.NewTimer(0)
	defer timer.Stop()
	running := 0
	for {
		running += n.start(calls, done, timer)
		select {
		case <-ctx.Done():
			running += n.start(calls, done, timer)
			kill := time.AfterFunc(lastWords, cancel)
			defer kill.Stop()
			for ; running > 0; running-- {
				n.ended(<-done)
			}
			return nil
		case o := <-done:
			running--
			n.ended(o)
		case <-n.wake:
		case <-timer.C:
		}
	}
}

// start starts the calls that are due and sets the timer for the next one.
func (n *Notifier) start(ctx context.Context, done chan<- outcome, timer *time.Timer) int {
	now := n.cfg.Now()
	n.mu.Lock()
	jobs, next := n.desk.Due(now)
	n.mu.Unlock()
	wait := time.Hour
	if next != 0 {
		wait = min(wait, max(next.Sub(now), 0))
	}
	timer.Reset(wait)
	for _, j := range jobs {
		go func() {
			c, cancel := context.WithTimeout(ctx, execTimeout)
			defer cancel()
			env, input := message(&n.cfg, &j)
			done <- outcome{j, n.cfg.Exec(c, j.Argv, env, input)}
		}()
	}
	return len(jobs)
}

func (n *Notifier) ended(o outcome) {
	id := o.job.Alert
	n.mu.Lock()
	gaveUp, retry := n.desk.Done(n.cfg.Now(), o.job, o.err == nil)
	news := gaveUp && !n.broken[id] || o.err == nil && n.broken[id]
	if gaveUp {
		n.broken[id] = true
	} else if o.err == nil {
		delete(n.broken, id)
	}
	n.mu.Unlock()
	log := n.cfg.Log.With("alert", id, "alarm", o.job.Alarm.Code, "object", o.job.Alarm.Object, "state", o.job.State)
	switch {
	case o.err == nil:
		log.Info("alert told")
	case gaveUp:
		log.Error("alert not told: given up until it is due again", "err", o.err)
	default:
		log.Warn("alert not told", "err", o.err, "again_in", retry)
	}
	if news {
		n.cfg.Broken(id, o.err)
	}
}
