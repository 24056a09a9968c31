package node

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
)

func TestANodeThatWasLateSaysSoAndGivesAwayInCalmWhatItHadThen(t *testing.T) {
	tr := newTrio(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	tr.protected(ctx)
	c := &tr.a.conscience
	if err := tr.a.m.On(func(*core.Core) { tr.a.onLate(400*time.Millisecond, 600*time.Millisecond) }); err != nil {
		t.Fatal(err)
	}
	if got := c.due(time.Now()); got != nil {
		t.Fatalf("%v is to be given away before there is calm", got)
	}
	eventually(t, "the alarm stands", func() bool {
		for _, a := range tr.a.standing() {
			if a.Code == "late" && strings.Contains(a.Text, "400ms") {
				return true
			}
		}
		return false
	})
	due := c.due(time.Now().Add(accuseCalm))
	if len(due) != 1 {
		t.Fatalf("%v is to be given away, want one service", due)
	}
	for no, epoch := range due {
		tr.a.giveAway(ctx, no, epoch+1) // another tenure: not accused
		tr.a.giveAway(ctx, no, epoch)
	}
	eventually(t, "b is active in epoch 2", func() bool {
		st, err := backend{tr.b}.Status(ctx, api.StatusQuery{})
		return err == nil && st.Service("db").Active == "b" && st.Service("db").Epoch == 2
	})
	x, err := backend{tr.b}.Explain(ctx, "db")
	if err != nil || !strings.Contains(x.Sentence, "a accuses itself: its own loop was 400ms late") {
		t.Errorf("explain says %q, %v", x.Sentence, err)
	}
	_ = tr.a.m.On(func(*core.Core) { tr.a.onLate(300*time.Millisecond, 600*time.Millisecond) })
	if got := c.due(time.Now().Add(accuseCalm)); got != nil {
		t.Errorf("%v is to be given away a second time within %v", got, accusePause)
	}
}
