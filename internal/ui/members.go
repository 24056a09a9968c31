package ui

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/hanode/hanode/internal/api"
)

// Members draws the members; self is the one that answers.
func Members(w io.Writer, members []api.Member, self string, o Options) {
	memberTable(w, members, self, false, o)
	fmt.Fprintln(w)
	cols := []column{{"MEMBER", 6}, {"VOTE", 4}, {"ADDRESS", 20}, {"LINKS", 0}}
	var rows [][]cell
	for _, m := range members {
		vote := "no"
		if m.Vote {
			vote = "yes"
		}
		if m.Leader {
			vote += ", leads"
		}
		for i, l := range m.Links {
			row := []cell{c(""), c(""), c(""), c(linkText(l))}
			if i == 0 {
				row = []cell{c(clean(m.Name)), c(vote), c(orDash(m.Advertise)), c(linkText(l))}
			}
			rows = append(rows, row)
		}
		if len(m.Links) == 0 {
			rows = append(rows, []cell{c(clean(m.Name)), c(vote), c(orDash(m.Advertise)), c("-")})
		}
	}
	table(w, o, cols, rows)
	for _, m := range members {
		if m.Operator != nil {
			wrap(w, o, "  "+clean(m.Name)+"  ", m.Operator.State+" "+operatorText(m.Operator, o.Now, o)+"; hanode member undrain "+m.Name+" ends it")
		}
	}
	fmt.Fprintln(w)
	next(w, o, nextForMembers(members))
}

func linkText(l api.Link) string {
	if l.State != "up" {
		return clean(l.Address) + " " + orDash(l.State)
	}
	if l.RTTMs == 0 {
		return clean(l.Address) + " up"
	}
	return clean(l.Address) + " up, " + span(l.RTTMs.D())
}

func nextForMembers(members []api.Member) []string {
	nodes, witness := 0, false
	for _, m := range members {
		if m.State == api.MemberDrained || m.State == api.MemberDraining {
			return []string{"hanode member undrain " + m.Name}
		}
		if m.Role == "witness" {
			witness = true
		} else {
			nodes++
		}
	}
	switch {
	case nodes < 2:
		return []string{"hanode token create --role node"}
	case !witness:
		return []string{"hanode token create --role witness"}
	}
	return []string{"hanode status"}
}

func memberTable(w io.Writer, members []api.Member, self string, stale bool, o Options) {
	cols := []column{{"MEMBER", 6}, {"ROLE", 7}, {"SITE", 5}, {"STATE", 5}, {"HEARD", 5}, {"LINKS", 23}, {"CLOCK", 5}, {"VERSION", 0}}
	var rows [][]cell
	for _, m := range members {
		heard := span(m.HeardMs.D().Truncate(time.Millisecond))
		switch {
		case stale:
			heard = "-"
		case m.Name == self:
			heard = "local"
		case m.HeardMs < 0:
			heard = "never"
		}
		st := green
		switch m.State {
		case api.MemberUp:
		case api.MemberJoining, api.MemberDraining, api.MemberDrained:
			st = amber
		default:
			st = red
		}
		state := cell{m.State, st}
		if stale {
			state = c("was " + m.State)
		}
		rows = append(rows, []cell{c(clean(m.Name)), c(m.Role), c(orDash(m.Site)), state, c(heard), c(links(m)), clock(m, self), c(orDash(m.Version))})
	}
	table(w, o, cols, rows)
}

// links counts a member's links and shows the quickest that is up.
func links(m api.Member) string {
	if len(m.Links) == 0 {
		return "-"
	}
	var up []api.Millis
	for _, l := range m.Links {
		if l.State == "up" {
			up = append(up, l.RTTMs)
		}
	}
	text := fmt.Sprintf("%d/%d up", len(up), len(m.Links))
	if len(up) > 0 && slices.Min(up) > 0 {
		text += "  " + span(slices.Min(up).D())
	}
	return text
}

// clockOff is the difference of wall clocks that is worth a word. Nothing is decided by it; logs and certificates
// become confusing.
const clockOff = 500 * time.Millisecond

func clock(m api.Member, self string) cell {
	off := m.ClockOffsetMs.D()
	switch {
	case m.State != api.MemberUp && m.State != api.MemberDrained && m.Name != self:
		return c("-")
	case off > clockOff:
		return cell{"+" + span(off), amber}
	case off < -clockOff:
		return cell{"-" + span(-off), amber}
	}
	return c("ok")
}
