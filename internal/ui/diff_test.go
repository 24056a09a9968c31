package ui

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestADiffShowsWhatChangedWithItsPlace(t *testing.T) {
	from := "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\nten\n"
	to := "one\ntwo\nTHREE\nfour\nfive\nsix\nseven\neight\nnine\nnine and a half\nten\n"
	var b strings.Builder
	if !Diff(&b, "version 1", from, "version 2", to, Options{}) {
		t.Fatal("no difference")
	}
	want := `--- version 1
+++ version 2
@@ -1,10 +1,11 @@
 one
 two
-three
+THREE
 four
 five
 six
 seven
 eight
 nine
+nine and a half
 ten
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	if Diff(&b, "", from, "", from, Options{}) {
		t.Error("a text differs from itself")
	}
}

func TestTheEditsTurnOneTextIntoTheOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.SampledFrom([]string{"a", "b", "c"})
		a, b := rapid.SliceOf(word).Draw(t, "a"), rapid.SliceOf(word).Draw(t, "b")
		var got []string
		at := 0
		script := edits(a, b)
		for _, e := range script {
			got = append(got, a[at:e.a]...)
			got = append(got, b[e.b:e.b+e.ins]...)
			at = e.a + e.del
		}
		got = append(got, a[at:]...)
		if strings.Join(got, " ") != strings.Join(b, " ") {
			t.Fatalf("%v became %v, want %v", a, got, b)
		}
		for _, h := range hunks(script, len(a)) {
			if h.a < 0 || h.b < 0 || h.a+h.aLen > len(a) || h.b+h.bLen > len(b) {
				t.Fatalf("hunk %+v is outside of %d and %d lines", h, len(a), len(b))
			}
		}
	})
}
