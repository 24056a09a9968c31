package gate

import (
	"testing"
	"time"
)

var forms = []Form{TCX, Clsact, NFT}

func eachForm(t *testing.T, f func(*testing.T, Form)) {
	for _, form := range forms {
		t.Run(string(form), func(t *testing.T) { f(t, form) })
	}
}

func TestTheVIPIsShutUntilARefreshAndShutAgainAtTheDeadlineOnEveryWay(t *testing.T) {
	eachForm(t, func(t *testing.T, form Form) {
		w := newWorld(t)
		w.mustAnswer(t, true, "without a gate")
		c := startChild(t, w.node)
		c.open(form)
		c.vips(1, all...)
		w.mustAnswer(t, false, "before the first refresh")
		deadline := c.lease(1, 300*time.Millisecond)
		w.mustAnswer(t, true, "before the deadline")
		eventually(t, time.Second, "the deadline passes", func() bool { return boottime() >= deadline })
		w.mustAnswer(t, false, "after the deadline")
		c.lease(1, time.Minute)
		w.mustAnswer(t, true, "after another refresh")
		c.do(order{Do: "refresh", Service: 1})
		w.mustAnswer(t, false, "after Close")
		stats := c.do(order{Do: "stats"}).Stats
		for _, name := range counterNames[:countPassed] {
			if stats[name] == 0 {
				t.Errorf("nothing was counted as %s: %v", name, stats)
			}
		}
		c.do(order{Do: "remove"})
		w.mustAnswer(t, true, "after Remove")
	})
}
