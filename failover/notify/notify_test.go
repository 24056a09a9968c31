package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/supervise/launch"
	"github.com/hanode/hanode/internal/rt"
)

// The test binary is its own exec step.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == launch.Subcommand {
		fmt.Fprintln(os.Stderr, launch.Child(os.Args[2:]))
		os.Exit(127)
	}
	goleak.VerifyTestMain(m)
}

func specOf(alerts ...cluster.AlertSpec) *cluster.Spec { return &cluster.Spec{Alerts: alerts} }

func page(argv ...string) cluster.AlertSpec {
	return cluster.AlertSpec{Name: "page", Kind: "exec", Argv: argv, Severity: "warn", Repeat: time.Hour}
}

// office is a Notifier with a fake exec within a synctest bubble.
type office struct {
	*Notifier
	t0   time.Time
	mu   sync.Mutex
	said []string
	exec func(ctx context.Context, env []string) error
}

func newOffice(exec func(context.Context, []string) error) *office {
	o := &office{t0: time.Now(), exec: exec}
	o.Notifier = New(Config{
		Now: func() cluster.Instant { return cluster.Instant(time.Since(o.t0)) + 1 },
		Exec: func(ctx context.Context, argv, env []string, _ []byte) error {
			err := o.exec(ctx, env)
			o.note(fmt.Sprint(argv[0], " ", strings.TrimPrefix(env[0], "HANODE_ALARM_STATE="), " ", err))
			return err
		},
		Broken: func(alert string, err error) { o.note(fmt.Sprintf("broken %s: %v", alert, err)) },
	})
	return o
}

func (o *office) note(s string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.said = append(o.said, fmt.Sprintf("%v %s", time.Since(o.t0).Round(time.Millisecond), s))
}

func (o *office) want(t *testing.T, want ...string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.Equal(o.said, want) {
		t.Errorf("said:\n %s\nwant:\n %s", strings.Join(o.said, "\n "), strings.Join(want, "\n "))
	}
}

func (o *office) run(t *testing.T) (end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestAlarmsRaisedBeforeRunAndAfterwardsAreToldInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(func(context.Context, []string) error { time.Sleep(time.Second); return nil })
		o.SetSpec(specOf(page("/page")))
		o.Raise(al("disk", "a", "crit"))
		end := o.run(t)
		time.Sleep(90 * time.Minute)
		o.Clear("disk", "a")
		time.Sleep(time.Minute)
		o.Raise(al("link", "a", "info"))
		time.Sleep(time.Minute)
		end()
		o.want(t, "1s /page raised <nil>", "1h0m2s /page repeated <nil>", "1h30m1s /page over <nil>")
	})
}

func TestABrokenAlertIsReportedOnceAndWhenItWorksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		works := false
		o := newOffice(func(context.Context, []string) error {
			if works {
				return nil
			}
			return errors.New("no modem")
		})
		o.SetSpec(specOf(page("/page")))
		end := o.run(t)
		o.Raise(al("disk", "a", "crit"))
		time.Sleep(10 * time.Minute)
		if last := o.said[len(o.said)-1]; last != "2m3s broken page: no modem" || len(o.said) != maxTries+1 {
			t.Errorf("%q", o.said)
		}
		works, o.said = true, nil
		o.Raise(al("other", "a", "crit"))
		time.Sleep(time.Minute)
		o.want(t, "10m0s /page raised <nil>", "10m0s broken page: <nil>")
		end()
	})
}

func TestAHangingProgramIsEndedAndHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(func(ctx context.Context, env []string) error { return nil })
		hang := page("/hang")
		hang.Name = "hang"
		o.SetSpec(specOf(hang, page("/page")))
		o.cfg.Exec = func(ctx context.Context, argv, _ []string, _ []byte) error {
			var err error
			if argv[0] == "/hang" {
				<-ctx.Done()
				err = ctx.Err()
			}
			o.note(fmt.Sprint(argv[0], " ", err))
			return err
		}
		o.Raise(al("1", "a", "warn"))
		o.Raise(al("2", "a", "warn"))
		end := o.run(t)
		time.Sleep(40 * time.Second)
		o.want(t, "0s /page <nil>", "0s /page <nil>", "30s /hang context deadline exceeded")
		end() // a second call of it is under way
		o.want(t, "0s /page <nil>", "0s /page <nil>", "30s /hang context deadline exceeded", "43s /hang context canceled")
	})
}

func TestTheAlarmForWhichTheDaemonEndsIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(func(context.Context, []string) error { time.Sleep(2 * time.Second); return nil })
		o.SetSpec(specOf(page("/page")))
		end := o.run(t)
		synctest.Wait()
		o.Raise(al("hopeless", "a", "crit"))
		end()
		o.want(t, "2s /page raised <nil>")
	})
}

func TestARemovedAlertIsBrokenNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(func(context.Context, []string) error { return errors.New("no") })
		o.SetSpec(specOf(page("/page")))
		end := o.run(t)
		o.Raise(al("disk", "a", "crit"))
		time.Sleep(10 * time.Minute)
		o.said = nil
		o.SetSpec(specOf(cluster.AlertSpec{Name: "m", Kind: "mail"}))
		time.Sleep(10 * time.Hour)
		o.want(t, "10m0s broken page: <nil>")
		end()
	})
}

// The wiring as a node does it, with a real program.
func TestAProgramReadsTheAlarmFromStdinAndEnvironment(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	told := make(chan error, 10)
	n := New(Config{Cluster: "shop", Node: "a", Now: rt.Now, Exec: func(ctx context.Context, argv, env []string, input []byte) error {
		r, err := launch.Run(ctx, launch.Program{Argv: argv, Env: append(launch.BaseEnv("", ""), env...), Input: input}, 4096)
		if err == nil && r.Code != 0 {
			err = fmt.Errorf("exit status %d: %s", r.Code, r.FirstLine(256))
		}
		told <- err
		return err
	}})
	n.SetSpec(specOf(page("/bin/sh", "-c", `cat >`+out+`; env | grep ^HANODE_ | sort >>`+out)))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	n.Raise(Alarm{Code: "disk", Object: "db/data", Severity: "crit", Text: "99 % full\x00\x1b[2J\nnext \"line\"", Remedy: "make room", Since: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)})
	select {
	case err := <-told:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was told")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	input, env, _ := strings.Cut(string(b), "\n")
	var m Message
	if err := json.Unmarshal([]byte(input), &m); err != nil {
		t.Fatalf("%q: %v", input, err)
	}
	if want := (Message{"raised", "disk", "crit", "db/data", `99 % full  [2J next "line"`, "make room", "2030-01-02T03:04:05Z", "shop", "a", "page"}); m != want {
		t.Errorf("%+v", m)
	}
	want := `HANODE_ALARM_CODE=disk
HANODE_ALARM_OBJECT=db/data
HANODE_ALARM_REMEDY=make room
HANODE_ALARM_SEVERITY=crit
HANODE_ALARM_STATE=raised
HANODE_ALARM_TEXT=99 % full  [2J next "line"
`
	if env != want {
		t.Errorf("environment:\n%s", env)
	}
}

func TestAMessageIsBounded(t *testing.T) {
	huge := strings.Repeat("\x01\"ä", 1<<20)
	env, input := message(&Config{}, &Job{State: Over, Alarm: Alarm{Code: huge, Object: huge, Severity: huge, Text: huge, Remedy: huge}})
	if len(input) > 16<<10 || len(strings.Join(env, "")) > 16<<10 {
		t.Errorf("%d bytes of input, %d of environment", len(input), len(strings.Join(env, "")))
	}
}
