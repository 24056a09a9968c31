package spec

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"unicode"

	"github.com/hashicorp/hcl/v2"
)

// maxDiagnostics bounds what one file can make us say.
const maxDiagnostics = 100

// Diagnostic is one thing that is wrong with a spec, where it is, and what to do about it.
type Diagnostic struct {
	File   string `json:"file"`
	Line   int    `json:"line"`            // from 1
	Column int    `json:"column"`          // from 1, in characters
	Width  int    `json:"width"`           // of the marked text, in characters, at least 1
	Source string `json:"source"`          // the offending line
	Where  string `json:"where,omitempty"` // the block, as in: service "db", process "postgres"
	What   string `json:"what"`            // what is wrong
	Remedy string `json:"remedy"`          // what to write instead, or the allowed values

	absent bool // something is not there: nothing to say of a file whose rest could not be read
}

// String is the diagnostic as it is shown: position and sentence, the line with a caret, the remedy.
func (d Diagnostic) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: ", d.File, d.Line, d.Column)
	if d.Where != "" {
		fmt.Fprintf(&b, "%s: ", d.Where)
	}
	b.WriteString(printable(d.What))
	if line, caret := d.marked(); line != "" {
		no := strconv.Itoa(d.Line)
		fmt.Fprintf(&b, "\n  %s | %s\n  %s | %s", no, line, strings.Repeat(" ", len(no)), caret)
	}
	if d.Remedy != "" {
		fmt.Fprintf(&b, "\n  %s", printable(d.Remedy))
	}
	return b.String()
}

// marked returns the offending line, cut to a screen's width round the mark, and the line of carets below it.
func (d Diagnostic) marked() (line, caret string) {
	const width = 110
	runes := []rune(printable(strings.ReplaceAll(d.Source, "\t", " ")))
	if strings.TrimSpace(string(runes)) == "" {
		return "", ""
	}
	at, n := d.Column-1, max(d.Width, 1)
	at = min(max(at, 0), len(runes))
	if cut := at - width/2; cut > 0 && len(runes) > width {
		runes, at = runes[cut:], at-cut
	}
	if len(runes) > width {
		runes = runes[:width]
	}
	n = max(1, min(n, len(runes)-at))
	return string(runes), strings.Repeat(" ", at) + strings.Repeat("^", n)
}

// printable replaces what a terminal would obey by question marks: the text may come from somebody else's file.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// Diagnostics is everything that is wrong with one spec, in the order of the file. It is an error; because an empty
// list in an error variable would not be nil, assign Err() and not the list itself.
type Diagnostics []Diagnostic

// List returns the diagnostics one by one.
func (ds Diagnostics) List() []Diagnostic { return ds }

// Err is nil when nothing is wrong.
func (ds Diagnostics) Err() error {
	if len(ds) == 0 {
		return nil
	}
	return ds
}

// Error shows all diagnostics, each with its line and remedy.
func (ds Diagnostics) Error() string {
	var b strings.Builder
	for i, d := range ds {
		if i > 0 {
			b.WriteString("\n\n")
		}
		b.WriteString(d.String())
	}
	return b.String()
}

// journal collects diagnostics while a file is read.
type journal struct {
	file  string
	lines []string
	found Diagnostics
}

func newJournal(file string, src []byte) *journal {
	return &journal{file: file, lines: strings.Split(string(src), "\n")}
}

// add notes one more thing that is wrong in the block called where.
func (j *journal) add(at hcl.Range, where, what, remedy string) {
	d := Diagnostic{File: j.file, Line: max(at.Start.Line, 1), Column: max(at.Start.Column, 1), Where: where, What: what, Remedy: remedy, Width: 1}
	if at.End.Line == at.Start.Line && at.End.Column > at.Start.Column {
		d.Width = at.End.Column - at.Start.Column
	}
	if d.Line <= len(j.lines) {
		d.Source = strings.TrimRight(j.lines[d.Line-1], "\r")
		if at.End.Line > at.Start.Line { // goes over several lines: mark the rest of the first
			d.Width = max(1, len([]rune(d.Source))-d.Column+1)
		}
	}
	j.found = append(j.found, d)
}

// lacks notes that something does not stand in the block that begins at at.
func (j *journal) lacks(at hcl.Range, where, what, remedy string) {
	j.add(at, where, what, remedy)
	j.found[len(j.found)-1].absent = true
}

// list is what was found, in the order of the file.
func (j *journal) list() Diagnostics {
	sort.SliceStable(j.found, func(a, b int) bool {
		x, y := j.found[a], j.found[b]
		if x.Line != y.Line {
			return x.Line < y.Line
		}
		return x.Column < y.Column
	})
	if n := len(j.found); n > maxDiagnostics {
		last := j.found[maxDiagnostics-1]
		last.What = fmt.Sprintf("and %d more", n-maxDiagnostics+1)
		last.Where, last.Remedy = "", "correct the first ones and check again"
		j.found = append(j.found[:maxDiagnostics-1], last)
	}
	return j.found
}

// wrong says what is wrong with a value and what to write instead.
type wrong struct{ what, remedy string }
