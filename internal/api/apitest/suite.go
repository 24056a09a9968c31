package apitest

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/api"
)

// Suite is what every Backend does. make returns a cluster with one service, db, that is active on a, in sync on b, and
// may run nowhere else; each call a new one.
func Suite(t *testing.T, make func(t *testing.T) api.Backend) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, ctx context.Context, b api.Backend)
	}{
		{"a plan changes nothing", planChangesNothing},
		{"an order on a plan that has moved is refused", movedPlanIsRefused},
		{"a switchover moves the service, and raises the epoch, and is explained", switchoverMoves},
		{"a move to where it is already is refused with a remedy", moveToActiveIsRefused},
		{"what does not exist is not found", unknownIsNotFound},
		{"the spec is a compare-and-set", specIsCompareAndSet},
		{"a service that a file forgets is refused unless it is named", forgottenServiceIsRefused},
		{"a force without acceptance of loss is refused", forceNeedsAcceptance},
		{"a recover with a quorum is refused", recoverNeedsALostQuorum},
		{"waiting ends when the state is there, or with the context", waiting},
		{"events are in order, and following sees new ones", events},
		{"pause and resume", pauseAndResume},
		{"a token is made", tokenIsMade},
		{"everything that can be read answers", readsAnswer},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			c.run(t, ctx, make(t))
		})
	}
}

func none(api.Step) {}

func service(t *testing.T, ctx context.Context, b api.Backend) *api.Service {
	t.Helper()
	s, err := b.Status(ctx, api.StatusQuery{})
	if err != nil {
		t.Fatal(err)
	}
	db := s.Service("db")
	if db == nil {
		t.Fatal("the status has no service db")
	}
	return db
}

func wantCode(t *testing.T, err error, code api.Code) *api.Error {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got %v, want an error of the kind %s", err, code)
	}
	if e.What == "" {
		t.Fatalf("%+v does not say what happened", e)
	}
	return e
}

func planChangesNothing(t *testing.T, ctx context.Context, b api.Backend) {
	before := service(t, ctx, b)
	out, err := b.Switchover(ctx, api.MoveRequest{Service: "db", Order: api.Order{Plan: true}}, none)
	if err != nil {
		t.Fatal(err)
	}
	if out.Plan == nil || len(out.Plan.Steps) == 0 || out.Plan.Base == 0 || out.Decision != "" {
		t.Fatalf("not a plan: %+v", out)
	}
	if s := service(t, ctx, b); s.Active != before.Active || s.Epoch != before.Epoch {
		t.Fatalf("the plan moved the service: %+v", s)
	}
}

func movedPlanIsRefused(t *testing.T, ctx context.Context, b api.Backend) {
	out, err := b.Switchover(ctx, api.MoveRequest{Service: "db", Order: api.Order{Plan: true}}, none)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Pause(ctx, api.PauseRequest{Service: "db", ForMs: api.Ms(time.Minute)}, none); err != nil {
		t.Fatal(err)
	}
	_, err = b.Switchover(ctx, api.MoveRequest{Service: "db", Order: api.Order{Base: out.Plan.Base}}, none)
	wantCode(t, err, api.CodeMoved)
}

func switchoverMoves(t *testing.T, ctx context.Context, b api.Backend) {
	before := service(t, ctx, b)
	steps := 0
	out, err := b.Switchover(ctx, api.MoveRequest{Service: "db", To: "b", Order: api.Order{Reason: "test", Who: "alice"}}, func(api.Step) { steps++ })
	if err != nil {
		t.Fatal(err)
	}
	if out.Decision == "" || out.To != "b" || out.Text == "" || steps == 0 {
		t.Fatalf("%d steps, outcome %+v", steps, out)
	}
	if s := service(t, ctx, b); s.Active != "b" || s.Epoch <= before.Epoch {
		t.Fatalf("active %s in epoch %d, was %d", s.Active, s.Epoch, before.Epoch)
	}
	x, err := b.Explain(ctx, out.Decision)
	if err != nil || x.Decision == nil || x.Decision.OrderedBy == "" || x.Sentence == "" {
		t.Fatalf("explain %s: %+v, %v", out.Decision, x, err)
	}
	if x, err = b.Explain(ctx, "db"); err != nil || x.Sentence == "" {
		t.Fatalf("explain db: %+v, %v", x, err)
	}
}

func moveToActiveIsRefused(t *testing.T, ctx context.Context, b api.Backend) {
	_, err := b.Switchover(ctx, api.MoveRequest{Service: "db", To: "a"}, none)
	if e := wantCode(t, err, api.CodeRefused); e.Why == "" || e.Do == "" {
		t.Fatalf("%+v does not say why and what to do", e)
	}
}

func unknownIsNotFound(t *testing.T, ctx context.Context, b api.Backend) {
	_, err := b.Switchover(ctx, api.MoveRequest{Service: "nope"}, none)
	wantCode(t, err, api.CodeNotFound)
	_, err = b.Switchover(ctx, api.MoveRequest{Service: "db", To: "nope"}, none)
	wantCode(t, err, api.CodeNotFound)
	_, err = b.Explain(ctx, "nope")
	wantCode(t, err, api.CodeNotFound)
	_, err = b.Spec(ctx, 1<<40)
	wantCode(t, err, api.CodeNotFound)
	_, err = b.Service(ctx, api.ServiceRequest{Service: "nope", Action: api.ActionStart}, none)
	wantCode(t, err, api.CodeNotFound)
	_, err = b.Drain(ctx, api.MemberRequest{Name: "nope"}, none)
	wantCode(t, err, api.CodeNotFound)
	_, err = b.AckAlarm(ctx, api.AckRequest{Code: "nope"}, none)
	wantCode(t, err, api.CodeNotFound)
}

func specIsCompareAndSet(t *testing.T, ctx context.Context, b api.Backend) {
	s, err := b.Spec(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	text := "# changed\n" + s.Text
	out, err := b.Apply(ctx, api.ApplyRequest{File: "f", Text: text, SpecVersion: s.Version}, none)
	if err != nil || out.Spec <= s.Version || out.Decision == "" {
		t.Fatalf("apply: %+v, %v", out, err)
	}
	_, err = b.Apply(ctx, api.ApplyRequest{File: "f", Text: s.Text, SpecVersion: s.Version}, none)
	wantCode(t, err, api.CodeMoved)
	now, err := b.Spec(ctx, 0)
	if err != nil || now.Text != text || now.Version != out.Spec {
		t.Fatalf("the spec is %+v, %v", now, err)
	}
	log, err := b.SpecLog(ctx)
	if err != nil || len(log) < 2 {
		t.Fatalf("the log has %d lines, %v", len(log), err)
	}
}

func forgottenServiceIsRefused(t *testing.T, ctx context.Context, b api.Backend) {
	_, err := b.Apply(ctx, api.ApplyRequest{File: "f", Text: "# nothing\n"}, none)
	wantCode(t, err, api.CodeRefused)
}

func forceNeedsAcceptance(t *testing.T, ctx context.Context, b api.Backend) {
	_, err := b.Force(ctx, api.ForceRequest{Service: "db", To: "b"}, none)
	wantCode(t, err, api.CodeRefused)
}

func recoverNeedsALostQuorum(t *testing.T, ctx context.Context, b api.Backend) {
	st, err := b.Status(ctx, api.StatusQuery{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Recover(ctx, api.RecoverRequest{Keep: st.Node, VerifiedOff: []string{"a", "b", "w"}}, none)
	wantCode(t, err, api.CodeRefused)
}

func waiting(t *testing.T, ctx context.Context, b api.Backend) {
	if _, err := b.Wait(ctx, api.WaitRequest{Service: "db", For: api.WaitActive}, none); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Service(ctx, api.ServiceRequest{Service: "db", Action: api.ActionStop}, none); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err := b.Wait(short, api.WaitRequest{Service: "db", For: api.WaitActive}, none)
	if api.ExitStatus(err) != api.ExitTimeout {
		t.Fatalf("got %v, want a timeout", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := b.Wait(ctx, api.WaitRequest{Service: "db", For: api.WaitActive}, none)
		done <- err
	}()
	if _, err := b.Service(ctx, api.ServiceRequest{Service: "db", Action: api.ActionStart}, none); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	_, err = b.Wait(ctx, api.WaitRequest{Service: "db", For: "happiness"}, none)
	wantCode(t, err, api.CodeUsage)
}

func events(t *testing.T, ctx context.Context, b api.Backend) {
	if _, err := b.Switchover(ctx, api.MoveRequest{Service: "db"}, none); err != nil {
		t.Fatal(err)
	}
	var last uint64
	old := 0
	if err := b.Events(ctx, api.EventQuery{}, func(e api.Event) error {
		if e.Seq <= last {
			t.Errorf("event %d after %d", e.Seq, last)
		}
		last = e.Seq
		old++
		return nil
	}); err != nil || old == 0 {
		t.Fatalf("%d events, %v", old, err)
	}
	stop := errors.New("enough")
	seen := 0
	err := b.Events(ctx, api.EventQuery{Follow: true}, func(api.Event) error {
		if seen++; seen == old {
			go func() { _, _ = b.Switchover(ctx, api.MoveRequest{Service: "db"}, none) }()
		}
		if seen > old {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) {
		t.Fatalf("got %v after %d events, want to see one more than %d", err, seen, old)
	}
}

func pauseAndResume(t *testing.T, ctx context.Context, b api.Backend) {
	out, err := b.Pause(ctx, api.PauseRequest{Service: "db", ForMs: api.Ms(time.Hour)}, none)
	if err != nil || out.Decision == "" {
		t.Fatalf("%+v, %v", out, err)
	}
	if s := service(t, ctx, b); s.PausedUntil.IsZero() {
		t.Fatal("not paused")
	}
	if _, err := b.Resume(ctx, api.PauseRequest{All: true}, none); err != nil {
		t.Fatal(err)
	}
	if s := service(t, ctx, b); !s.PausedUntil.IsZero() {
		t.Fatal("still paused")
	}
}

func tokenIsMade(t *testing.T, ctx context.Context, b api.Backend) {
	tok, err := b.TokenCreate(ctx, api.TokenRequest{Role: "node", TTLMs: api.Ms(10 * time.Minute)})
	if err != nil || tok.Token == "" || tok.Expires.IsZero() {
		t.Fatalf("%+v, %v", tok, err)
	}
}

func readsAnswer(t *testing.T, ctx context.Context, b api.Backend) {
	if v, err := b.Version(ctx); err != nil || v.Version == "" {
		t.Fatalf("version: %+v, %v", v, err)
	}
	if m, err := b.Members(ctx); err != nil || len(m) == 0 {
		t.Fatalf("members: %+v, %v", m, err)
	}
	if l, err := b.Leader(ctx); err != nil || l.Leader == "" {
		t.Fatalf("leader: %+v, %v", l, err)
	}
	if _, err := b.Alarms(ctx); err != nil {
		t.Fatal(err)
	}
	if s, err := b.Status(ctx, api.StatusQuery{Local: true}); err != nil || s.Source != api.SourceLocal {
		t.Fatalf("local status: %+v, %v", s, err)
	}
	var buf bytes.Buffer
	if err := b.DebugBundle(ctx, &buf); err != nil || !bytes.HasPrefix(buf.Bytes(), []byte{0x1f, 0x8b}) {
		t.Fatalf("debug bundle of %d bytes, %v", buf.Len(), err)
	}
}
