package notify

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hanode/hanode/cluster"
)

const sec = cluster.Instant(time.Second)

func on(service, name, severity string, repeat time.Duration) alert {
	return alert{service, cluster.AlertSpec{Name: name, Kind: "exec", Argv: []string{"/bin/" + name}, Severity: severity, Repeat: repeat}}
}

func al(code, object, severity string) Alarm {
	return Alarm{Code: code, Object: object, Severity: severity, Text: "text of " + code}
}

// script drives a desk: each message is told at once, or fails if ok says so.
type script struct {
	t  *testing.T
	d  Desk
	ok func(Job) bool
}

func newScript(t *testing.T, alerts ...alert) *script {
	s := &script{t: t, ok: func(Job) bool { return true }}
	s.d.Set(alerts)
	return s
}

// at returns what is told at now, as "alert state code", and checks the next time.
func (s *script) at(now cluster.Instant, next cluster.Instant, want ...string) {
	s.t.Helper()
	var got []string
	for {
		jobs, _ := s.d.Due(now)
		if len(jobs) == 0 {
			break
		}
		for _, j := range jobs {
			got = append(got, j.Alert+" "+j.State+" "+j.Alarm.Code)
			s.d.Done(now, j, s.ok(j))
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		s.t.Errorf("at %v it told %q, want %q", time.Duration(now), got, want)
	}
	if _, n := s.d.Due(now); n != next {
		s.t.Errorf("at %v the next time is %v, want %v", time.Duration(now), time.Duration(n), time.Duration(next))
	}
}

func TestAnAlarmIsToldRepeatedAndToldToBeOver(t *testing.T) {
	s := newScript(t, on("", "page", "warn", time.Hour))
	s.d.Raise(al("disk", "a", "warn"))
	s.at(1*sec, 3601*sec, "page raised disk")
	s.at(3600*sec, 3601*sec)
	s.at(3601*sec, 7201*sec, "page repeated disk")
	s.d.Clear("disk", "a")
	s.at(4000*sec, 0, "page over disk")
	s.at(9000*sec, 0)
	if len(s.d.alarms) != 0 {
		t.Errorf("it remembers %+v", s.d.alarms)
	}
}

func TestAnAlertHearsWhatIsSevereEnoughAndItsServicesOwn(t *testing.T) {
	s := newScript(t, on("", "all", "info", 0), on("", "page", "crit", 0), on("db", "dba", "warn", 0))
	s.d.Raise(al("1", "db", "info"))
	s.d.Raise(al("2", "web", "warn"))
	s.d.Raise(al("3", "db/data", "warn"))
	s.d.Raise(al("4", "dbx", "crit"))
	s.d.Raise(al("5", "a", "strange"))
	s.at(sec, 0, "all raised 4", "page raised 4", "db/dba raised 3", "all raised 5", "page raised 5", "all raised 2", "all raised 3", "all raised 1")
}

func TestWhoWasNotToldOfAnAlarmIsNotToldThatItIsOver(t *testing.T) {
	s := newScript(t, on("", "all", "info", 0), on("", "page", "crit", 0))
	s.d.Raise(al("disk", "a", "warn"))
	s.at(sec, 0, "all raised disk")
	s.d.Clear("disk", "a")
	s.at(20*sec, 0, "all over disk")
	s.d.Raise(al("brief", "a", "crit")) // over before anybody could be told
	s.d.Clear("brief", "a")
	s.at(21*sec, 0)
	s.d.Clear("never", "raised")
	s.at(22*sec, 0)
}

func TestMoreSevereIsToldAtOnceAndLessSevereIsNot(t *testing.T) {
	s := newScript(t, on("", "all", "info", 0), on("", "page", "crit", 0))
	s.d.Raise(al("disk", "a", "warn"))
	s.at(1*sec, 0, "all raised disk")
	s.d.Raise(al("disk", "a", "crit"))
	s.at(2*sec, 0, "all raised disk", "page raised disk")
	s.d.Raise(al("disk", "a", "warn"))
	s.d.Raise(al("disk", "a", "crit"))
	s.at(3*sec, 0)
	s.d.Raise(al("disk", "a", "info"))
	s.d.Clear("disk", "a")
	s.at(30*sec, 0, "all over disk", "page over disk")
}

func TestAnAlarmThatComesAndGoesIsNotToldEachTime(t *testing.T) {
	s := newScript(t, on("", "page", "warn", 0))
	told := 0
	s.ok = func(Job) bool { told++; return true }
	for now := sec; now < 601*sec; now += sec / 10 {
		s.d.Raise(al("link", "a", "warn"))
		for range 2 {
			jobs, _ := s.d.Due(now)
			for _, j := range jobs {
				s.d.Done(now, j, s.ok(j))
			}
			s.d.Clear("link", "a")
		}
	}
	if told < 10 || told > 61 {
		t.Errorf("told %d times in 10 minutes", told)
	}
}

func TestAcknowledgedIsNotRepeatedUntilItGetsWorseOrComesAgain(t *testing.T) {
	s := newScript(t, on("", "page", "warn", time.Minute))
	s.d.Raise(al("disk", "a", "warn"))
	s.at(0, 60*sec, "page raised disk")
	s.d.Ack("disk", "a")
	s.d.Raise(al("disk", "a", "warn"))
	s.at(100*sec, 0)
	s.d.Raise(al("disk", "a", "crit"))
	s.at(101*sec, 161*sec, "page raised disk")
	s.d.Ack("disk", "a")
	s.d.Clear("disk", "a")
	s.at(200*sec, 0, "page over disk")
	s.d.Raise(al("disk", "a", "warn"))
	s.at(300*sec, 360*sec, "page raised disk")
}

func TestAFailedCallIsTriedAgainLaterAndLaterAndThenRests(t *testing.T) {
	s := newScript(t, on("", "page", "warn", time.Hour))
	tries := 0
	s.ok = func(Job) bool { tries++; return false }
	s.d.Raise(al("disk", "a", "warn"))
	now := cluster.Instant(0)
	for i, wait := range []cluster.Instant{1, 2, 4, 8, 16, 32, 60, 3600, 1, 2} {
		s.at(now, now+wait*sec, "page raised disk")
		if now += wait * sec; tries != i+1 {
			t.Fatalf("%d tries", tries)
		}
	}
	s.ok = func(Job) bool { return true }
	s.at(now, now+3600*sec, "page raised disk")
}

func TestANewAlarmDoesNotWaitForTheRestOfAnOldOne(t *testing.T) {
	for _, change := range []func(*Desk){
		func(d *Desk) { d.Clear("disk", "a"); d.Raise(al("disk", "a", "warn")) },
		func(d *Desk) { d.Raise(al("disk", "a", "crit")) },
		func(d *Desk) { d.Raise(al("other", "a", "warn")) },
	} {
		s := newScript(t, on("", "page", "warn", time.Hour))
		s.ok = func(Job) bool { return false }
		s.d.Raise(al("disk", "a", "warn"))
		for now := cluster.Instant(0); now < 200*sec; now += sec {
			jobs, _ := s.d.Due(now)
			for _, j := range jobs {
				s.d.Done(now, j, false)
			}
		}
		change(&s.d)
		if jobs, _ := s.d.Due(201 * sec); len(jobs) != 1 {
			t.Errorf("it waits: %+v", s.d.alarms[0])
		}
	}
}

func TestAnAlertThatFailsIsNotCalledAtEachFlap(t *testing.T) {
	s := newScript(t, on("", "page", "warn", 0))
	tries := 0
	for now := sec; now < 601*sec; now += sec / 10 {
		s.d.Raise(al("link", "a", "warn"))
		jobs, _ := s.d.Due(now)
		for _, j := range jobs {
			tries++
			s.d.Done(now, j, false)
		}
		s.d.Clear("link", "a")
		s.d.Due(now)
	}
	if tries > 60 {
		t.Errorf("%d tries in 10 minutes", tries)
	}
}

func TestAnAlertIsCalledByOneAtATimeAndInOrder(t *testing.T) {
	s := newScript(t, on("", "page", "warn", 0))
	s.d.Raise(al("1", "a", "warn"))
	s.d.Raise(al("2", "a", "warn"))
	jobs, _ := s.d.Due(sec)
	if len(jobs) != 1 || jobs[0].Alarm.Code != "1" {
		t.Fatalf("%+v", jobs)
	}
	s.d.Clear("1", "a") // while it is being told
	if more, _ := s.d.Due(2 * sec); len(more) != 0 {
		t.Fatalf("two at once: %+v", more)
	}
	s.d.Done(3*sec, jobs[0], true)
	s.at(3*sec, 13*sec, "page raised 2")
	s.at(13*sec, 0, "page over 1")
}

func TestTheNumberOfCallsAndAlarmsIsBounded(t *testing.T) {
	var alerts []alert
	for i := range 20 {
		alerts = append(alerts, on("", fmt.Sprint(i), "warn", 0))
	}
	s := newScript(t, alerts...)
	s.d.Raise(al("disk", "a", "warn"))
	jobs, _ := s.d.Due(sec)
	if len(jobs) != maxCalls {
		t.Fatalf("%d calls at once", len(jobs))
	}
	for i := 1; i < maxAlarms; i++ {
		if !s.d.Raise(al(fmt.Sprint(i), "a", "warn")) {
			t.Fatalf("alarm %d is refused", i)
		}
	}
	if s.d.Raise(al("one more", "a", "warn")) || !s.d.Raise(al("7", "a", "crit")) {
		t.Error("the bound is wrong")
	}
	s.d.Clear("5", "a") // nobody was told of it
	if !s.d.Raise(al("one more", "a", "warn")) || len(s.d.alarms) != maxAlarms {
		t.Error("an alarm that is over takes the place of one that stands")
	}
}

func TestAnAlertThatIsRemovedIsForgotten(t *testing.T) {
	s := newScript(t, on("", "page", "warn", 0), on("", "mail", "warn", 0))
	s.d.Raise(al("disk", "a", "warn"))
	jobs, _ := s.d.Due(sec)
	if len(jobs) != 2 {
		t.Fatal(jobs)
	}
	s.d.Done(sec, jobs[0], true)
	s.d.Set(nil)
	s.d.Clear("disk", "a")
	s.d.Done(sec, jobs[1], true)
	s.at(2*sec, 0)
	if len(s.d.alarms) != 0 || len(s.d.busy) != 0 {
		t.Errorf("it remembers %+v, %v", s.d.alarms, s.d.busy)
	}
}

// Whatever happens, once all is quiet and calls succeed, each alert has been told what is true, and nothing of what is over is kept.
func TestInTheEndEverybodyKnowsWhatIsTrue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := Desk{}
		d.Set([]alert{on("", "page", "crit", time.Minute), on("", "mail", "warn", 0), on("db", "dba", "info", time.Hour)})
		knows := map[string]int{} // alert and alarm: rank told last
		var running []Job
		finish := func(now cluster.Instant, i int, ok bool) {
			j := running[i]
			running = append(running[:i], running[i+1:]...)
			if ok {
				if knows[j.Alert+j.Alarm.Code] = rank(j.Alarm.Severity); j.State == Over {
					delete(knows, j.Alert+j.Alarm.Code)
				}
			}
			d.Done(now, j, ok)
		}
		stands := map[string]string{}
		now := sec
		for range rapid.IntRange(0, 80).Draw(t, "steps") {
			now += cluster.Instant(rapid.IntRange(0, 30000).Draw(t, "ms")) * cluster.Instant(time.Millisecond)
			code := rapid.SampledFrom([]string{"1", "2"}).Draw(t, "code")
			switch rapid.SampledFrom([]string{"raise", "clear", "due", "done", "fail"}).Draw(t, "what") {
			case "raise":
				stands[code] = rapid.SampledFrom([]string{"info", "warn", "crit"}).Draw(t, "severity")
				d.Raise(al(code, "db", stands[code]))
			case "clear":
				delete(stands, code)
				d.Clear(code, "db")
			case "due":
				jobs, _ := d.Due(now)
				running = append(running, jobs...)
			case "done":
				if len(running) > 0 {
					finish(now, 0, true)
				}
			case "fail":
				if len(running) > 0 {
					finish(now, 0, false)
				}
			}
			busy := map[string]bool{}
			for _, j := range running {
				if busy[j.Alert] {
					t.Fatalf("two calls of %s at once", j.Alert)
				}
				busy[j.Alert] = true
			}
		}
		for range 200 {
			now += 60 * sec
			for len(running) > 0 {
				finish(now, 0, true)
			}
			jobs, _ := d.Due(now)
			running = append(running, jobs...)
		}
		for len(running) > 0 {
			finish(now, 0, true)
		}
		d.Due(now)
		for _, code := range []string{"1", "2"} {
			for name, least := range map[string]string{"page": "crit", "mail": "warn", "db/dba": "info"} {
				sev, up := stands[code]
				told := knows[name+code]
				if !up && told != 0 || up && rank(sev) >= rank(least) && told < rank(sev) {
					t.Errorf("%s was told %d of alarm %s, which is %q", name, told, code, sev)
				}
			}
		}
		if len(d.alarms) != len(stands) {
			t.Errorf("%d alarms are kept, %d stand", len(d.alarms), len(stands))
		}
	})
}

func TestOnlyAlertsOfKindExecCanBeRun(t *testing.T) {
	if err := Check(cluster.AlertSpec{Name: "m", Kind: "mail", Target: "x@y"}); err == nil || !strings.Contains(err.Error(), `alert "m": mail is not supported by this version: write exec`) {
		t.Error(err)
	}
	if Check(cluster.AlertSpec{Name: "m", Kind: "exec"}) == nil || Check(cluster.AlertSpec{Name: "m", Kind: "exec", Argv: []string{"/x"}}) != nil {
		t.Error("argv is judged wrongly")
	}
}
