package ui

import (
	"fmt"
	"io"
	"strings"

	"github.com/hanode/hanode/internal/api"
)

// Plan draws what an order would do. command is the command that carries it out, without --base; "" when there is none.
func Plan(w io.Writer, p *api.Plan, command string, o Options) {
	wrapTitle(w, o, o.paint(bold, "Plan")+"  "+clean(p.Order))
	if len(p.Changes) > 0 {
		fmt.Fprintln(w)
		changes(w, p, o)
	}
	if len(p.Steps) > 0 {
		fmt.Fprintln(w)
		steps(w, p, o)
	}
	fmt.Fprintln(w)
	if len(p.Steps) > 0 || p.OutageMs > 0 {
		takes := p.ExpectedMs
		for i := 0; p.ExpectedMs == 0 && i < len(p.Steps); i++ {
			takes += p.Steps[i].TookMs
		}
		line := "Takes about " + span(takes.D()) + ". "
		if p.OutageMs > 0 {
			line += "Clients wait about " + span(p.OutageMs.D()) + "."
		} else {
			line += "No client waits."
		}
		wrap(w, o, "", line)
	}
	wrap(w, o, "At risk: ", strings.TrimSuffix(RiskText(p.Risk), ". nothing"))
	for _, m := range p.VerifiedOff {
		wrap(w, o, "Before: ", "make sure that "+m+" is switched off; if it still runs, two members serve")
	}
	for _, t := range p.Warnings {
		wrap(w, o, "Note: ", t)
	}
	Problems(w, p.Problems, o)
	if command != "" {
		if p.Base != 0 {
			command += fmt.Sprintf(" --base %d", p.Base)
		}
		fmt.Fprintln(w)
		next(w, o, []string{command})
	}
}

// RiskText says what an order may lose.
func RiskText(r api.Risk) string {
	if r.None() {
		if r.Text != "" {
			return "nothing. " + clean(r.Text)
		}
		return "nothing (0 bytes)."
	}
	t := fmt.Sprintf("%s in %s that were acknowledged", size(r.Bytes), count(r.Operations, "operation"))
	if r.Unknown {
		t += ", and more that is not known here"
	}
	if r.AgeMs > 0 {
		t += "; the copy is " + span(r.AgeMs.D()) + " old"
	}
	if r.Text != "" {
		t += "; " + clean(r.Text)
	}
	return t + "."
}

func steps(w io.Writer, p *api.Plan, o Options) {
	cols := []column{{"STEP", 4}, {"WHAT", 44}, {"WHO", 8}, {"EXPECTED", 0}}
	var rows [][]cell
	for i, s := range p.Steps {
		n := s.N
		if n == 0 {
			n = i + 1
		}
		rows = append(rows, []cell{c(fmt.Sprint(n)), c(short(s.Text, 52)), c(orDash(strings.Join(s.Who, ", "))), c("~" + span(s.TookMs.D()))})
	}
	table(w, o, cols, rows)
}

func changes(w io.Writer, p *api.Plan, o Options) {
	cols := []column{{"CHANGES", 28}, {"FROM", 8}, {"TO", 8}, {"TAKES EFFECT", 0}}
	var rows [][]cell
	for _, d := range p.Changes {
		st := plain
		switch d.Class {
		case api.ClassNeedsStop:
			st = amber
		case api.ClassRefused:
			st = red
		}
		what := clean(d.Object)
		if d.Key != "" {
			what += ": " + clean(d.Key)
		}
		rows = append(rows, []cell{c(what), c(short(orDash(d.From), 20)), c(short(orDash(d.To), 20)), {effect(d.Class), st}})
	}
	table(w, o, cols, rows)
	if len(p.Unchanged) > 0 {
		wrap(w, o, "Not touched: ", strings.Join(p.Unchanged, ", "))
	}
}

func effect(class string) string {
	switch class {
	case api.ClassLive:
		return "at once"
	case api.ClassNextGrant:
		return "with the next move"
	case api.ClassNeedsStop:
		return "needs a stop"
	}
	return orDash(class)
}

// Problems draws what is wrong with a spec, as compilers do.
func Problems(w io.Writer, ds []api.Diagnostic, o Options) {
	for _, d := range ds {
		place := clean(d.File)
		if d.Line > 0 {
			place += fmt.Sprintf(":%d:%d", d.Line, d.Column)
		}
		if d.Node != "" {
			place = strings.TrimLeft(place+" on "+clean(d.Node), " ")
		}
		sev := d.Severity
		if sev == "" {
			sev = "error"
		}
		fmt.Fprintf(w, "%s: %s: %s\n", place, sev, clean(d.Text))
		if d.Do != "" {
			wrap(w, o, "  do:  ", d.Do)
		}
	}
}
