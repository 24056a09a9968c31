package rt

import (
	"testing"
	"time"
)

func TestAnAlarmRingsWhenItWasSetToLast(t *testing.T) {
	a, err := NewAlarm()
	if err != nil {
		t.Fatal(err)
	}
	rang := make(chan bool)
	go func() {
		for ok := true; ok; {
			ok = a.Wait()
			rang <- ok
		}
	}()
	for _, d := range []time.Duration{20 * time.Millisecond, 0, -time.Hour} {
		a.Set(Now().Add(time.Hour))
		due := Now().Add(d)
		a.Set(due)
		select {
		case <-rang:
			if late := Now().Sub(due); late < 0 {
				t.Errorf("it rang %v too early", -late)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("set to %v from now it did not ring", d)
		}
	}
	a.Set(Now().Add(time.Hour))
	a.Close()
	select {
	case ok := <-rang:
		if ok {
			t.Error("it rang when it was closed")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("closing it does not end the wait")
	}
	a.Set(Now()) // does no harm
}
