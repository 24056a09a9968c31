package ui

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/hanode/hanode/internal/api"
)

func worstFirst(alarms []api.Alarm) []api.Alarm {
	l := slices.Clone(alarms)
	slices.SortStableFunc(l, func(a, b api.Alarm) int { return cmp.Compare(rank(a.Severity), rank(b.Severity)) })
	return l
}

func rank(severity string) int {
	return slices.Index([]string{"crit", "warn", "info"}, severity)
}

func severityStyle(s string) style {
	switch s {
	case "crit":
		return red
	case "warn":
		return amber
	}
	return plain
}

// alarmsOnStatus draws the alarms that nobody has acknowledged, and says whether there are any.
func alarmsOnStatus(w io.Writer, alarms []api.Alarm, o Options) bool {
	open, acked := false, 0
	for _, a := range worstFirst(alarms) {
		if a.AckedBy != "" {
			acked++
			continue
		}
		if !open {
			fmt.Fprintln(w)
		}
		open = true
		alarm(w, a, o)
	}
	if acked > 0 {
		fmt.Fprintf(w, "\n%s acknowledged: hanode alarm list\n", count(int64(acked), "alarm"))
	}
	return open
}

func alarm(w io.Writer, a api.Alarm, o Options) {
	head := fmt.Sprintf("%-4s", strings.ToUpper(clean(a.Severity)))
	hang(w, o, o.paint(severityStyle(a.Severity), head)+"  "+clean(a.Code)+"  ", 6, a.Text)
	for i, do := range strings.Split(a.Remedy, "; ") { // each on its own line: a command is better not broken
		switch {
		case do == "":
		case i == 0:
			wrap(w, o, "      do:  ", do)
		default:
			wrap(w, o, "           ", do)
		}
	}
}

// Alarms draws the list, the acknowledged ones too.
func Alarms(w io.Writer, alarms []api.Alarm, o Options) {
	if len(alarms) == 0 {
		fmt.Fprintln(w, "no alarms")
		next(w, o, []string{"hanode status"})
		return
	}
	for _, a := range worstFirst(alarms) {
		alarm(w, a, o)
		line := "      since " + o.clock(a.Since.Time, toSecond)
		if a.Decision != "" {
			line += ", decision " + a.Decision
		}
		if a.AckedBy != "" {
			line += ", acknowledged by " + clean(a.AckedBy)
		}
		fmt.Fprintln(w, line)
	}
	next(w, o, []string{"hanode explain " + clean(worstFirst(alarms)[0].Code)})
}
