package demoapp

import (
	"strconv"
	"testing"

	"github.com/hanode/hanode/internal/page"
)

func TestTheEpochIsThatOfThePage(t *testing.T) {
	w, err := page.Create("echo")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	epoch, err := PageEpoch(strconv.Itoa(int(w.File().Fd())))
	if err != nil {
		t.Fatal(err)
	}
	w.Set(7, 1, page.Active)
	if got := epoch(); got != 7 {
		t.Errorf("epoch %d, want 7", got)
	}
	if f, err := PageEpoch(""); f != nil || err != nil {
		t.Errorf("without a page: %p, %v", f, err)
	}
	for _, bad := range []string{"x", "0"} {
		if _, err := PageEpoch(bad); err == nil {
			t.Errorf("%q was taken for a page", bad)
		}
	}
}
