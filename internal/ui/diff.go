package ui

import (
	"fmt"
	"io"
	"strings"
)

// Diff draws the lines that differ between two texts, with three lines of context, and says whether any do.
func Diff(w io.Writer, fromName, from, toName, to string, o Options) bool {
	a, b := lines(from), lines(to)
	script := edits(a, b)
	if len(script) == 0 {
		return false
	}
	fmt.Fprintln(w, o.paint(bold, "--- "+clean(fromName)))
	fmt.Fprintln(w, o.paint(bold, "+++ "+clean(toName)))
	for _, h := range hunks(script, len(a)) {
		fmt.Fprintf(w, "@@ -%d,%d +%d,%d @@\n", h.a+1, h.aLen, h.b+1, h.bLen)
		at := h.a
		for _, e := range h.edits {
			for ; at < e.a; at++ {
				fmt.Fprintln(w, " "+printable(a[at]))
			}
			for ; at < e.a+e.del; at++ {
				fmt.Fprintln(w, o.paint(red, "-"+printable(a[at])))
			}
			for i := range e.ins {
				fmt.Fprintln(w, o.paint(green, "+"+printable(b[e.b+i])))
			}
		}
		for ; at < h.a+h.aLen; at++ {
			fmt.Fprintln(w, " "+printable(a[at]))
		}
	}
	return true
}

func printable(line string) string { return clean(strings.ReplaceAll(line, "\t", "    ")) }

func lines(s string) []string {
	s = strings.TrimSuffix(s, "\n")
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

// edit replaces del lines at a by ins lines of the other text at b.
type edit struct{ a, del, b, ins int }

// edits finds a shortest script by the longest common subsequence of what is between the common ends. Specs are small;
// where the tables would be too large (4 million cells) everything between the ends is one replacement.
func edits(a, b []string) []edit {
	head := 0
	for head < len(a) && head < len(b) && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < len(a)-head && tail < len(b)-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	x, y := a[head:len(a)-tail], b[head:len(b)-tail]
	if len(x) == 0 && len(y) == 0 {
		return nil
	}
	if len(x)*len(y) > 4<<20 {
		return []edit{{head, len(x), head, len(y)}}
	}
	common := make([][]int32, len(x)+1) // common[i][j]: length for x[i:], y[j:]
	for i := range common {
		common[i] = make([]int32, len(y)+1)
	}
	for i := len(x) - 1; i >= 0; i-- {
		for j := len(y) - 1; j >= 0; j-- {
			if x[i] == y[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out []edit
	for i, j := 0, 0; i < len(x) || j < len(y); {
		if i < len(x) && j < len(y) && x[i] == y[j] {
			i, j = i+1, j+1
			continue
		}
		e := edit{a: head + i, b: head + j}
		for (i < len(x) || j < len(y)) && !(i < len(x) && j < len(y) && x[i] == y[j]) {
			if j == len(y) || i < len(x) && common[i+1][j] >= common[i][j+1] {
				i, e.del = i+1, e.del+1
			} else {
				j, e.ins = j+1, e.ins+1
			}
		}
		out = append(out, e)
	}
	return out
}

type hunk struct {
	a, aLen, b, bLen int
	edits            []edit
}

const context = 3

func hunks(script []edit, lenA int) []hunk {
	var out []hunk
	for _, e := range script {
		start, end := max(0, e.a-context), min(lenA, e.a+e.del+context)
		if n := len(out); n > 0 && start <= out[n-1].a+out[n-1].aLen {
			h := &out[n-1]
			h.edits = append(h.edits, e)
			h.bLen += (end - h.a - h.aLen) - e.del + e.ins
			h.aLen = end - h.a
			continue
		}
		out = append(out, hunk{a: start, aLen: end - start, b: e.b - (e.a - start), bLen: end - start - e.del + e.ins, edits: []edit{e}})
	}
	return out
}
