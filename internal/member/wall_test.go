package member

import (
	"context"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/core"
)

// Row k of the protocol's situations: no role and no lease depends on the wall clock, and who is connected stays so.
func TestAJumpOfAWallClockByTenYearsChangesNoRoleAndKeepsNobodyOut(t *testing.T) {
	a, b, w := trio(t)
	a.apply(t, webSpec)
	eventually(t, "a active", func() bool { return a.active() == 1 })
	const years = 10 * 365 * 24 * time.Hour
	commit := func(h *host, what string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if _, err := h.m.Commit(ctx, &state.Command{Who: "test", Nop: &state.Nop{}}); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, jump := range []struct {
		h    *host
		what string
		by   time.Duration
	}{{a, "the active", years}, {a, "the active", -years}, {w, "the witness", -years}} {
		jump.h.skew.Store(int64(jump.by))
		for end := time.Now().Add(400 * time.Millisecond); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
			if a.active() != 1 || b.active() != 0 {
				t.Fatalf("the clock of %s jumped by %v: a is active in epoch %d, b in %d", jump.what, jump.by, a.active(), b.active())
			}
		}
		commit(jump.h, "an order of "+jump.what+" whose clock has jumped")

		// A member that starts now makes new handshakes with all.
		other := w
		if jump.h == w {
			other = b
		}
		other.stop()
		other.start()
		eventually(t, "the restarted member is back though the clock of "+jump.what+" jumped by "+jump.by.String(), func() bool {
			ok := false
			_ = other.m.On(func(c *core.Core) { ok = c.Joined() && c.Alive(1) })
			_ = jump.h.m.On(func(c *core.Core) { ok = ok && c.Alive(c.State().MemberByName(other.name).No) })
			return ok
		})
		jump.h.skew.Store(0)
	}
}
