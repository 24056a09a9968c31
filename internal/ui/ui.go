// Package ui draws what operators see: status, explain, events, members, plans. Every screen is a pure function from the
// types of internal/api to text of 80 columns; it reads no clock and no terminal, so that each screen stands as a golden
// file in testdata and what is reviewed there is what is seen at night.
//
// It uses the words of the contract with operators and no others. It decides nothing: what happens if the active dies,
// why a service is degraded and what to do next is said by the daemon; ui only finds a next command where the daemon
// gave none. Text that comes from elsewhere (the output of a check, a reason) is stripped of control characters, so that
// nobody can paint on an operator's terminal.
//
// Callers give Options; Colour must be set only when the output is a terminal.
package ui

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Options say how to draw. The zero value draws 80 columns without colour, in UTC.
type Options struct {
	Width  int
	Colour bool
	Zone   *time.Location // of the times on the screen
	Now    time.Time      // decides whether a time needs its date; zero: it never does
}

func (o Options) width() int {
	if o.Width <= 0 {
		return 80
	}
	return o.Width
}

func (o Options) in(t time.Time) time.Time {
	if o.Zone == nil {
		return t.UTC()
	}
	return t.In(o.Zone)
}

// clock is the time of day, with its date when that is not today.
func (o Options) clock(t time.Time, layout string) string {
	if t.IsZero() {
		return "-"
	}
	l := o.in(t)
	if !o.Now.IsZero() && l.Format(time.DateOnly) != o.in(o.Now).Format(time.DateOnly) {
		layout = time.DateOnly + " " + layout
	}
	return l.Format(layout)
}

const (
	toSecond = "15:04:05"
	toMilli  = "15:04:05.000"
)

// A style is a colour of ECMA-48 (SGR). Nothing is said by colour alone.
type style string

const (
	plain style = ""
	bold  style = "1"
	red   style = "31;1"
	amber style = "33"
	green style = "32"
)

func (o Options) paint(s style, text string) string {
	if !o.Colour || s == plain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// cell is one field of a table.
type cell struct {
	text  string
	style style
}

func c(text string) cell { return cell{text: text} }

// column is a column of a table: its head, and the width that it has when there is room for it.
type column struct {
	head string
	want int
}

// table draws columns two spaces apart, each as wide as its widest cell, or as wide as wanted if all then fit.
func table(w io.Writer, o Options, cols []column, rows [][]cell) {
	width := make([]int, len(cols))
	total, wanted := 0, 0
	for i, col := range cols {
		width[i] = runes(col.head)
		for _, r := range rows {
			width[i] = max(width[i], runes(r[i].text))
		}
		total += width[i] + 2
		wanted += max(width[i], col.want) + 2
	}
	if wanted-2 <= o.width() {
		for i := range width[:len(width)-1] {
			width[i] = max(width[i], cols[i].want)
		}
	}
	head := make([]cell, len(cols))
	for i, col := range cols {
		head[i] = cell{col.head, bold}
	}
	for _, r := range append([][]cell{head}, rows...) {
		line := ""
		last := len(r) - 1
		for i, f := range r[:last] {
			line += o.paint(f.style, f.text) + strings.Repeat(" ", width[i]+2-runes(f.text))
		}
		if visible(line)+runes(r[last].text) > o.width() && r[last].style == plain {
			wrap(w, o, line, r[last].text)
			continue
		}
		fmt.Fprintln(w, strings.TrimRight(line+o.paint(r[last].style, r[last].text), " "))
	}
}

func runes(s string) int { return utf8.RuneCountInString(s) }

// visible counts the runes of s that take room on the screen: all but what paint adds.
func visible(s string) int {
	n := runes(s) - 4*strings.Count(s, "\x1b[0m")
	for _, st := range []style{bold, red, amber, green} {
		n -= (len(st) + 3) * strings.Count(s, "\x1b["+string(st)+"m")
	}
	return n
}

// wrap writes text in lines of at most the width; the first begins with head, the others are indented like it.
func wrap(w io.Writer, o Options, head, text string) { hang(w, o, head, visible(head), text) }

// hang is wrap with another indent.
func hang(w io.Writer, o Options, head string, by int, text string) {
	indent := strings.Repeat(" ", by)
	line, empty := head, true
	for _, word := range strings.Fields(clean(text)) {
		gap := " "
		if empty {
			gap = ""
		}
		if !empty && visible(line)+1+runes(word) > o.width() {
			fmt.Fprintln(w, line)
			line, gap = indent, ""
		}
		line += gap + word
		empty = false
	}
	fmt.Fprintln(w, strings.TrimRight(line, " "))
}

// clean makes text harmless for a terminal: one line, no control characters (CVE-2003-0063 and its many successors).
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case unicode.IsControl(r) || r == utf8.RuneError || unicode.Is(unicode.Bidi_Control, r):
			return '?'
		}
		return r
	}, s)
}

// short cuts text to n runes and shows that it did.
func short(s string, n int) string {
	s = clean(s)
	if runes(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// span says a duration to a person: "268 ms", "4.1 s", "12 min", "3 h", "2 d".
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "-"
	case d == 0:
		return "0 ms"
	case d < time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < 10*time.Millisecond && d%time.Millisecond >= 100*time.Microsecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Round(time.Millisecond)/time.Millisecond)
	case d < 10*time.Second && d%time.Second >= 50*time.Millisecond:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", d/time.Hour)
	}
	return fmt.Sprintf("%d d", d/(24*time.Hour))
}

// age is span without fractions of a second.
func age(d time.Duration) string {
	if d < time.Second {
		return "now"
	}
	return span(d.Truncate(time.Second))
}

// size says bytes to a person.
func size(n int64) string {
	f, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if f < 1024 {
			break
		}
		f, unit = f/1024, u
	}
	if unit == "B" || f >= 10 {
		return fmt.Sprintf("%.0f %s", f, unit)
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}

func count(n int64, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return clean(s)
}

func next(w io.Writer, o Options, commands []string) {
	for i, cmd := range commands {
		head := "next:  "
		if i > 0 {
			head = "       "
		}
		fmt.Fprintln(w, o.paint(bold, head)+clean(cmd))
	}
}

// Clock is a time as the screens show it.
func (o Options) Clock(t time.Time) string { return o.clock(t, toSecond) }
