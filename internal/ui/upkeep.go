package ui

import (
	"fmt"
	"io"
	"strings"

	"github.com/hanode/hanode/internal/api"
)

// Checks draws the checks with what they say on each node.
func Checks(w io.Writer, l []api.CheckLine, o Options) {
	if len(l) == 0 {
		fmt.Fprintln(w, "no checks")
		next(w, o, []string{"hanode spec show"})
		return
	}
	cols := []column{{"CHECK", 10}, {"KIND", 6}, {"EVERY", 6}, {"NODE", 4}, {"STATE", 8}, {"TOOK", 6}, {"OUTPUT", 0}}
	var rows [][]cell
	bad := ""
	for _, k := range l {
		st := amber
		switch k.State {
		case "ok":
			st = green
		case "failed":
			st = red
		}
		out := k.Output
		if k.State == "paused" {
			out = "until " + o.clock(k.PausedUntil.Time, toSecond) + ", by " + orDash(k.PausedBy)
		}
		name := clean(k.Service) + "/" + clean(k.Name)
		if bad == "" && (k.State == "failing" || k.State == "failed") {
			bad = name
		}
		rows = append(rows, []cell{c(name), c(clean(k.Kind)), c(span(k.EveryMs.D())), c(orDash(k.Node)), {k.State, st}, c(span(k.TookMs.D())), c(short(out, 120))})
	}
	table(w, o, cols, rows)
	cmd := "hanode check run " + clean(l[0].Service) + "/" + clean(l[0].Name)
	if bad != "" {
		cmd = "hanode check run " + bad
	}
	fmt.Fprintln(w)
	next(w, o, []string{cmd})
}

// Upgrade draws what runs where.
func Upgrade(w io.Writer, s *api.UpgradeStatus, o Options) {
	fmt.Fprintf(w, "feature level %d in force, %d known to every member\n\n", s.Level, s.Known)
	var rows [][]cell
	for _, m := range s.Members {
		rows = append(rows, []cell{c(clean(m.Name)), c(m.Role), c(m.State), c(orDash(m.Version)), c(fmt.Sprint(m.Level))})
	}
	table(w, o, []column{{"MEMBER", 6}, {"ROLE", 7}, {"STATE", 7}, {"VERSION", 12}, {"KNOWS LEVEL", 0}}, rows)
	fmt.Fprintln(w)
	wrap(w, o, "", s.Text)
	if len(s.Order) > 1 {
		wrap(w, o, "in this order: ", strings.Join(s.Order, ", "))
	}
}

// Nagios is the one line that monitoring plug-ins print, and their exit status: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (Monitoring Plugins
// Development Guidelines). The figures behind the bar are for graphs.
func Nagios(s *api.Status) (string, int) {
	word, code := "OK", 0
	worse := func(w string, c int) {
		if c > code {
			word, code = w, c
		}
	}
	var said []string
	serving := 0
	for i := range s.Services {
		v := &s.Services[i]
		if v.State == api.StateActive {
			serving++
		}
		switch v.Protection {
		case api.Protected:
			continue
		case api.Degraded:
			worse("WARNING", 1)
		default:
			worse("CRITICAL", 2)
		}
		said = append(said, fmt.Sprintf("%s %s (%s)", clean(v.Name), clean(v.State), orDash(v.IfActiveFails)))
	}
	open := 0
	for _, a := range s.Alarms {
		if a.AckedBy != "" {
			continue
		}
		open++
		if a.Severity == "crit" {
			worse("CRITICAL", 2)
			said = append(said, clean(a.Code)+" "+clean(a.Object))
		} else if a.Severity == "warn" {
			worse("WARNING", 1)
			said = append(said, clean(a.Code)+" "+clean(a.Object))
		}
	}
	switch {
	case s.Source == api.SourceLastKnown:
		word, code = "CRITICAL", 2
		said = append([]string{"hanode does not answer; last known state is " + age(s.AgeMs.D()) + " old"}, said...)
	case !s.Cluster.Quorum:
		word, code = "CRITICAL", 2
		said = append([]string{"no quorum, waiting for " + Awaited(s)}, said...)
	}
	if len(said) == 0 {
		said = []string{fmt.Sprintf("every service survives the next failure (%d of %d active)", serving, len(s.Services))}
	}
	line := fmt.Sprintf("HANODE %s - %s: %s", word, clean(s.Cluster.Name), strings.ReplaceAll(strings.Join(said, "; "), "|", "/"))
	return fmt.Sprintf("%s | votes=%d;;;0;%d services=%d;;;0;%d alarms=%d", line, s.Cluster.Votes.Heard, s.Cluster.Votes.Total, serving, len(s.Services), open), code
}
