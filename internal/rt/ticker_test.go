package rt

import (
	"testing"
	"time"
)

func TestTickersRingTogether(t *testing.T) {
	const every = 40 * time.Millisecond
	a, b := NewTicker(every), NewTicker(2*every)
	defer a.Stop()
	defer b.Stop()
	best := every
	for range 4 { // a busy machine is late now and then, but not each time
		select {
		case <-b.C:
			b.Next()
			best = min(best, time.Duration(Now())%every)
		case <-time.After(5 * time.Second):
			t.Fatal("it does not ring")
		}
		select {
		case <-a.C:
			a.Next()
		case <-time.After(5 * time.Second):
			t.Fatal("the other one does not ring")
		}
	}
	if best > every/4 {
		t.Errorf("they ring %v after a multiple of %v, at best", best, every)
	}
}
