package ui

import (
	"fmt"
	"io"
	"strings"

	"github.com/hanode/hanode/internal/api"
)

// SpecLog draws the versions of the spec, the newest first.
func SpecLog(w io.Writer, log []api.SpecChange, o Options) {
	cols := []column{{"VERSION", 7}, {"AT", 8}, {"BY", 8}, {"CHANGE", 0}}
	var rows [][]cell
	for i := len(log) - 1; i >= 0; i-- {
		l := log[i]
		what := clean(l.Summary)
		if l.Reason != "" {
			what += " (" + clean(l.Reason) + ")"
		}
		rows = append(rows, []cell{c(fmt.Sprint(l.Version)), c(o.clock(l.At.Time, toSecond)), c(orDash(l.By)), c(what)})
	}
	table(w, o, cols, rows)
	if len(log) > 1 {
		fmt.Fprintln(w)
		next(w, o, []string{fmt.Sprintf("hanode spec diff %d", log[len(log)-2].Version)})
	}
}

// Leader draws who leads.
func Leader(w io.Writer, l *api.Leadership, o Options) {
	if l.Leader == "" {
		fmt.Fprintln(w, "nobody leads now")
		next(w, o, []string{"hanode status"})
		return
	}
	line := l.Leader + " leads since " + o.clock(l.Since.Time, toSecond)
	if l.Preferred != "" && l.Preferred != l.Leader {
		line += "; preferred is " + l.Preferred
	}
	wrap(w, o, "", line)
	if l.Why != "" {
		wrap(w, o, "", l.Why)
	}
	next(w, o, l.Next)
}

// Step is the line of a step that was done: how long after the order, what, who, how long it took.
func Step(s api.Step, o Options) string {
	line := fmt.Sprintf("%8s  %s", "+"+span(s.AtMs.D()), clean(s.Text))
	if len(s.Who) > 0 {
		line += " [" + clean(strings.Join(s.Who, ", ")) + "]"
	}
	switch s.State {
	case "", "done":
		if s.TookMs > 0 {
			line += "  " + span(s.TookMs.D())
		}
	case "failed":
		line += "  " + o.paint(red, "failed")
	default:
		line += "  " + clean(s.State)
	}
	return line
}

// Witness draws what a witness process serves.
func Witness(w io.Writer, s *api.WitnessStatus, o Options) {
	state := o.paint(green, "running")
	if !s.Running {
		state = o.paint(red, "NOT RUNNING")
	}
	fmt.Fprintf(w, "witness  %s  %s  %s    %s\n", state, orDash(s.Listen), orDash(s.Version), o.clock(s.At.Time, toSecond))
	if len(s.Clusters) == 0 {
		fmt.Fprintln(w, "it serves no cluster yet")
	} else {
		fmt.Fprintln(w)
		WitnessClusters(w, s.Clusters, o)
	}
	for _, cl := range s.Clusters {
		if cl.Note != "" {
			wrap(w, o, "  "+clean(cl.Name)+"  ", cl.Note)
		}
	}
	if len(s.Next) > 0 {
		fmt.Fprintln(w)
		next(w, o, s.Next)
	}
}

// WitnessClusters draws the clusters of a witness.
func WitnessClusters(w io.Writer, l []api.WitnessCluster, o Options) {
	cols := []column{{"CLUSTER", 10}, {"ID", 8}, {"AS", 6}, {"STATE", 7}, {"VOTE", 4}, {"QUORUM", 10}, {"LEADER", 0}}
	var rows [][]cell
	for _, cl := range l {
		vote := "no"
		if cl.Vote {
			vote = "yes"
		}
		quorum := cell{fmt.Sprintf("%d/%d", cl.Votes.Heard, cl.Votes.Total), plain}
		if !cl.Quorum {
			quorum = cell{"none " + quorum.text, red}
		}
		rows = append(rows, []cell{c(clean(cl.Name)), c(clean(cl.ID[:min(8, len(cl.ID))])), c(orDash(cl.Member)), c(orDash(cl.State)), c(vote), quorum, c(orDash(cl.Leader))})
	}
	table(w, o, cols, rows)
}
