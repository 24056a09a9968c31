package ui

import (
	"fmt"
	"io"

	"github.com/hanode/hanode/internal/api"
)

// Outcome is the one line that an order ends with.
func Outcome(w io.Writer, out *api.Outcome, o Options) {
	text := out.Text
	if text == "" {
		text = "done"
	}
	if out.Decision != "" {
		text += " (" + out.Decision + ")"
	}
	if out.To != "" && out.OutageMs >= 0 {
		text += fmt.Sprintf("; VIP answered after %s", span(out.OutageMs.D()))
		if out.ReadyMs >= 0 {
			text += ", ready after " + span(out.ReadyMs.D())
		}
	}
	fmt.Fprintln(w, clean(text))
}

// Error says what happened, why, and what to do.
func Error(w io.Writer, e *api.Error, o Options) {
	for _, s := range e.Steps {
		fmt.Fprintln(w, Step(s, o))
	}
	Problems(w, e.Problems, o)
	wrap(w, o, "hanode: ", e.What)
	if e.Why != "" {
		wrap(w, o, "  why:  ", e.Why)
	}
	if e.Do != "" {
		wrap(w, o, "  do:   ", e.Do)
	}
	if e.Decision != "" {
		fmt.Fprintln(w, "  see:  hanode explain "+clean(e.Decision))
	}
}
