package ui

import (
	"fmt"
	"io"
	"strings"

	"github.com/hanode/hanode/internal/api"
)

// Explain draws why something happened, or why nothing did.
func Explain(w io.Writer, x *api.Explanation, o Options) {
	switch {
	case x.Decision != nil:
		decision(w, x, o)
	case x.Alarm != nil:
		alarm(w, *x.Alarm, o)
		if x.Sentence != "" && x.Sentence != x.Alarm.Text {
			fmt.Fprintln(w)
			wrap(w, o, "", x.Sentence)
		}
	default:
		wrap(w, o, "", x.Sentence)
	}
	if x.Decision == nil || len(x.Known.Rows) > 0 {
		known(w, "What is known now", x.Known, o)
	}
	for _, q := range x.WhyNot {
		wrapTitle(w, o, clean(q.Question)+"  "+clean(q.Answer))
	}
	cmds := []string(x.Next)
	if len(cmds) == 0 {
		cmds = []string{"hanode status"}
	}
	fmt.Fprintln(w)
	next(w, o, cmds)
}

func decision(w io.Writer, x *api.Explanation, o Options) {
	d := x.Decision
	head := []string{clean(d.ID), o.clock(d.At.Time, toMilli), decisionTitle(d)}
	wrapTitle(w, o, strings.Join(head, "  "))
	if x.Kind == "service" && x.Sentence != "" && x.Sentence != d.Sentence {
		fmt.Fprintln(w)
		wrap(w, o, "Now: ", x.Sentence)
	}
	if d.Sentence != "" {
		fmt.Fprintln(w)
		wrapAt(w, o, 76, d.Sentence)
	}
	if d.Failed != "" {
		wrap(w, o, "It did not succeed: ", d.Failed)
	}
	if d.Reason != "" {
		wrap(w, o, "Reason given: ", d.Reason)
	}
	timeLine(w, d, o)
	known(w, "What was known", d.Known, o)
	lost := ""
	if d.Lost != "" {
		lost = "Lost: " + clean(d.Lost) + "."
	}
	if d.SetAside != "" {
		lost = strings.TrimLeft(lost+"  Set aside "+clean(d.SetAside)+".", " ")
	}
	if lost != "" {
		if len(d.Known.Rows) == 0 {
			fmt.Fprintln(w)
		}
		wrapTitle(w, o, lost)
	}
	for _, e := range d.Extra {
		wrap(w, o, clean(e.Name)+": ", e.Text)
	}
	for _, q := range d.WhyNot {
		wrapTitle(w, o, clean(q.Question)+"  "+clean(q.Answer))
	}
	if len(d.Related) > 0 {
		wrap(w, o, "See also: ", strings.Join(d.Related, ", "))
	}
}

func decisionTitle(d *api.Decision) string {
	t := d.Kind
	if d.Service != "" {
		t += " of " + clean(d.Service)
	}
	switch {
	case d.From != "" && d.To != "":
		t += fmt.Sprintf(", %s to %s", clean(d.From), clean(d.To))
	case d.To != "":
		t += " on " + clean(d.To)
	}
	if d.EpochTo > d.EpochFrom {
		t += fmt.Sprintf(", epoch %d to %d", d.EpochFrom, d.EpochTo)
	}
	return t + ", ordered by: " + orDash(d.OrderedBy)
}

// wrapTitle writes a line as it is when it fits (with its double spaces), else wrapped.
func wrapTitle(w io.Writer, o Options, line string) {
	if runes(line) <= o.width() {
		fmt.Fprintln(w, line)
		return
	}
	wrap(w, o, "", line)
}

func wrapAt(w io.Writer, o Options, width int, text string) {
	o.Width = min(width, o.width())
	wrap(w, o, "", text)
}

func timeLine(w io.Writer, d *api.Decision, o Options) {
	if len(d.TimeLine) == 0 {
		return
	}
	title := "Time line (ms)"
	if d.Zero != "" {
		title = "Time line (ms " + clean(d.Zero) + ")"
	}
	wide, who := 38, 5
	for _, m := range d.TimeLine {
		wide = max(wide, runes(clean(m.What)))
		who = max(who, runes(strings.Join(m.Who, ", ")))
	}
	wide = min(wide, 46)
	fmt.Fprintf(w, "\n%-*s  who\n", 9+wide, title)
	for _, m := range d.TimeLine {
		offset := fmt.Sprintf("%6d", m.OffsetMs.D().Milliseconds())
		line := fmt.Sprintf("%s   %-*s  %-*s", offset, wide, short(m.What, wide), who, clean(strings.Join(m.Who, ", ")))
		if m.Note != "" {
			note := clean(m.Note)
			if runes(line)+2+runes(note) > o.width() {
				fmt.Fprintln(w, strings.TrimRight(line, " "))
				line = strings.Repeat(" ", 9) + "  " + note
			} else {
				line += "  " + note
			}
		}
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}

func known(w io.Writer, title string, k api.Known, o Options) {
	if len(k.Rows) == 0 || len(k.Members) == 0 {
		return
	}
	first := 19
	for _, r := range k.Rows {
		first = max(first, runes(clean(r.What))+4)
	}
	widths := make([]int, len(k.Members))
	total := first
	for i := range k.Members {
		widths[i] = 14
		for _, r := range k.Rows {
			widths[i] = max(widths[i], runes(value(r, i)))
		}
		total += widths[i] + 3
	}
	if total-3 > o.width() { // too wide for a table: one line for each observation
		fmt.Fprintln(w, "\n"+title)
		for _, r := range k.Rows {
			var vals []string
			for i, m := range k.Members {
				vals = append(vals, m+": "+value(r, i))
			}
			wrap(w, o, "  "+clean(r.What)+"  ", strings.Join(vals, "; "))
		}
		return
	}
	line := fmt.Sprintf("%-*s", first, title)
	for i, m := range k.Members {
		line += fmt.Sprintf("%-*s", widths[i]+3, clean(m))
	}
	fmt.Fprintln(w, "\n"+strings.TrimRight(line, " "))
	for _, r := range k.Rows {
		line := fmt.Sprintf("  %-*s", first-2, clean(r.What))
		for i := range k.Members {
			line += fmt.Sprintf("%-*s", widths[i]+3, value(r, i))
		}
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}

func value(r api.KnownRow, i int) string {
	if i >= len(r.Values) {
		return "-"
	}
	return orDash(r.Values[i])
}
