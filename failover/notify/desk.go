package notify

import (
	"slices"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
)

// States of an alarm in a message.
const (
	Raised   = "raised"
	Repeated = "repeated"
	Over     = "over"
)

const (
	maxAlarms  = 256
	maxCalls   = 8                // at once
	maxTries   = 8                // per message: about three minutes
	retryFirst = time.Second      // doubling
	retryMax   = time.Minute      //
	gap        = 10 * time.Second // between two messages of one alarm to one alert, unless it has become more severe
	giveUpFor  = time.Hour        // after maxTries, where the alert has no repeat interval
)

// Job is one message for one alert.
type Job struct {
	Alert string // its name; "service/name" for a service's own
	Argv  []string
	State string // raised, repeated, over
	Alarm Alarm
}

// alert is an alert of the cluster (service "") or of a service.
type alert struct {
	service string
	spec    cluster.AlertSpec
}

func (a *alert) id() string {
	if a.service == "" {
		return a.spec.Name
	}
	return a.service + "/" + a.spec.Name
}

// hears says whether the alarm is one of those that the alert is for.
func (a *alert) hears(al *Alarm) bool {
	owner, _, _ := strings.Cut(al.Object, "/")
	return (a.service == "" || a.service == owner) && rank(al.Severity) >= rank(a.spec.Severity)
}

func rank(severity string) int {
	switch severity {
	case "info":
		return 1
	case "warn":
		return 2
	}
	return 3
}

// Desk is the pure core: it knows what stands, what was told to whom, and so what has to be told when. The zero value
// has no alerts.
type Desk struct {
	alerts []alert
	alarms []*standing // in the order in which they came
	busy   map[string]bool
}

// standing is an alarm that stands, or is over while somebody has not been told so.
type standing struct {
	Alarm
	over, acked bool
	calls       map[string]*call // by alert
}

// call is what one alert knows of one alarm.
type call struct {
	told    int             // rank of the severity that was told last; 0: not told that it stands
	at      cluster.Instant // when that was
	quiet   cluster.Instant // no message before, unless more severe
	retry   cluster.Instant // no attempt before
	tries   int             // that failed, of the present message
	running bool
}

// Set replaces the alerts. What an alert of the same name was told still counts.
func (d *Desk) Set(alerts []alert) {
	d.alerts = alerts
	ids := map[string]bool{}
	for i := range alerts {
		ids[alerts[i].id()] = true
	}
	for _, s := range d.alarms {
		for id, c := range s.calls {
			if !ids[id] && !c.running {
				delete(s.calls, id)
			}
		}
	}
}

// Raise takes an alarm; false: there are too many.
func (d *Desk) Raise(a Alarm) bool {
	if s := d.find(a.Code, a.Object); s != nil {
		if s.over || rank(a.Severity) > rank(s.Severity) {
			s.acked = false
			for _, c := range s.calls {
				if c.tries == 0 {
					c.retry = 0 // what was given up for the old alarm gets a new chance
				}
			}
		}
		s.Alarm, s.over = a, false
		return true
	}
	if len(d.alarms) >= maxAlarms {
		i := slices.IndexFunc(d.alarms, func(s *standing) bool { return s.over && !s.owed() })
		if i < 0 {
			return false
		}
		d.alarms = slices.Delete(d.alarms, i, i+1)
	}
	d.alarms = append(d.alarms, &standing{Alarm: a, calls: map[string]*call{}})
	return true
}

// Clear ends an alarm.
func (d *Desk) Clear(code, object string) {
	if s := d.find(code, object); s != nil {
		s.over = true
	}
}

// Ack ends the repeats of an alarm.
func (d *Desk) Ack(code, object string) {
	if s := d.find(code, object); s != nil {
		s.acked = true
	}
}

// Due returns the messages that are to be sent at now, each of which must be followed by Done, and when the next one
// will be if nothing happens before; 0: never. The most severe come first, then the oldest. Of one alert one message is
// under way at a time.
func (d *Desk) Due(now cluster.Instant) (jobs []Job, next cluster.Instant) {
	if d.busy == nil {
		d.busy = map[string]bool{}
	}
	d.forget(now)
	first := slices.Clone(d.alarms)
	slices.SortStableFunc(first, func(a, b *standing) int { return rank(b.Severity) - rank(a.Severity) })
	for _, s := range first {
		for i := range d.alerts {
			a := &d.alerts[i]
			id := a.id()
			c := s.calls[id]
			if c == nil {
				c = new(call)
			}
			state, at := c.wants(s, a)
			switch {
			case state == "" || d.busy[id] || at <= now && len(d.busy) >= maxCalls: // the end of a call brings us back
			case at > now:
				if next == 0 || at < next {
					next = at
				}
			default:
				s.calls[id], d.busy[id], c.running = c, true, true
				jobs = append(jobs, Job{Alert: id, Argv: a.spec.Argv, State: state, Alarm: s.Alarm})
			}
		}
	}
	return jobs, next
}

// wants says which message is next, if any, and when.
func (c *call) wants(s *standing, a *alert) (state string, at cluster.Instant) {
	switch {
	case s.over && c.told > 0:
		return Over, max(c.quiet, c.retry)
	case s.over || !a.hears(&s.Alarm):
		return "", 0
	case c.told == 0:
		return Raised, max(c.quiet, c.retry)
	case rank(s.Severity) > c.told:
		return Raised, c.retry
	case a.spec.Repeat > 0 && !s.acked:
		return Repeated, max(c.at.Add(a.spec.Repeat), c.retry)
	}
	return "", 0
}

// Done takes the end of a job that Due returned. gaveUp says that it has failed too often and rests; otherwise retry is
// when a failed one is tried again.
func (d *Desk) Done(now cluster.Instant, j Job, ok bool) (gaveUp bool, retry time.Duration) {
	delete(d.busy, j.Alert)
	s := d.find(j.Alarm.Code, j.Alarm.Object)
	if s == nil || s.calls[j.Alert] == nil {
		return false, 0
	}
	c, a := s.calls[j.Alert], d.alert(j.Alert)
	c.running = false
	switch {
	case a == nil: // it was removed meanwhile
		delete(s.calls, j.Alert)
		return false, 0
	case ok:
		*c = call{told: rank(j.Alarm.Severity), at: now, quiet: now.Add(gap)}
		if j.State == Over {
			c.told = 0
		}
		return false, 0
	}
	if c.tries++; c.tries < maxTries {
		retry = min(retryFirst<<(c.tries-1), retryMax)
		c.retry = now.Add(retry)
		return false, retry
	}
	rest := giveUpFor
	if a.spec.Repeat > 0 {
		rest = a.spec.Repeat
	}
	c.tries, c.retry = 0, now.Add(rest)
	if j.State == Over {
		c.told = 0
	}
	return true, 0
}

func (d *Desk) alert(id string) *alert {
	for i := range d.alerts {
		if d.alerts[i].id() == id {
			return &d.alerts[i]
		}
	}
	return nil
}

func (d *Desk) find(code, object string) *standing {
	for _, s := range d.alarms {
		if s.Code == code && s.Object == object {
			return s
		}
	}
	return nil
}

// owed says that somebody was told of the alarm, or is just being told.
func (s *standing) owed() bool {
	for _, c := range s.calls {
		if c.told > 0 || c.running {
			return true
		}
	}
	return false
}

// forget drops the alarms that are over, of which nobody needs to be told so, and which would find no alert closed to
// them if they came again.
func (d *Desk) forget(now cluster.Instant) {
	d.alarms = slices.DeleteFunc(d.alarms, func(s *standing) bool {
		for _, c := range s.calls {
			if max(c.quiet, c.retry) > now {
				return false
			}
		}
		return s.over && !s.owed()
	})
}
