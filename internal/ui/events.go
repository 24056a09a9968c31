package ui

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hanode/hanode/internal/api"
)

// EventLines draws events one after the other, with a line for each new day.
type EventLines struct {
	w   io.Writer
	o   Options
	day string
}

// NewEventLines draws on w.
func NewEventLines(w io.Writer, o Options) *EventLines { return &EventLines{w: w, o: o} }

// Write draws one event.
func (l *EventLines) Write(e api.Event) {
	at := l.o.in(e.At.Time)
	if day := at.Format(time.DateOnly); day != l.day {
		l.day = day
		fmt.Fprintln(l.w, l.o.paint(bold, day))
	}
	text := e.Text
	var tail []string
	if e.Decision != "" && !strings.Contains(text, e.Decision) {
		tail = append(tail, e.Decision)
	}
	if e.Who != "" && e.Who != "policy" {
		tail = append(tail, "by "+e.Who)
	}
	if len(tail) > 0 {
		text += "  (" + strings.Join(tail, ", ") + ")"
	}
	where := e.Service
	if where == "" {
		where = e.Node
	}
	var b strings.Builder
	o := l.o
	o.Colour = false
	wrap(&b, o, fmt.Sprintf("%s  %-4s  %-8s  ", at.Format(toMilli), clean(e.Severity), orDash(where)), text)
	line := b.String()
	if st := severityStyle(e.Severity); l.o.Colour && st != plain {
		line = line[:14] + l.o.paint(st, line[14:18]) + line[18:]
	}
	io.WriteString(l.w, line)
}
