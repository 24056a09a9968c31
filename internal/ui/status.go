package ui

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hanode/hanode/internal/api"
)

// Status draws the whole cluster. Its last column is the product: what happens if one more thing is lost.
func Status(w io.Writer, s *api.Status, o Options) {
	statusHead(w, s, o)
	if len(s.Members) > 0 {
		fmt.Fprintln(w)
		memberTable(w, s.Members, s.Node, s.Source == api.SourceLastKnown, o)
	}
	if len(s.Services) > 0 {
		fmt.Fprintln(w)
		serviceTable(w, s, o)
		details(w, s, o)
	}
	open := alarmsOnStatus(w, s.Alarms, o)
	if cmds := NextFor(s); len(cmds) > 0 && !open {
		fmt.Fprintln(w)
		next(w, o, cmds)
	}
}

func statusHead(w io.Writer, s *api.Status, o Options) {
	cl := &s.Cluster
	stale := s.Source == api.SourceLastKnown
	if stale {
		fmt.Fprintln(w, o.paint(red, fmt.Sprintf("LAST KNOWN STATE, %s old: hanode on this machine does not answer.", age(s.AgeMs.D()))))
		fmt.Fprintln(w, "What the other members do now is not known here: ask hanode status there.")
		fmt.Fprintln(w)
	}
	protection := o.paint(protectionStyle(cl.Protection), strings.ToUpper(cl.Protection))
	if stale {
		protection = "was " + strings.ToUpper(cl.Protection)
	}
	parts := []string{o.paint(bold, clean(cl.Name)), protection}
	switch {
	case stale:
	case cl.Quorum && cl.Leader != "":
		parts = append(parts, fmt.Sprintf("quorum %d/%d (leader %s)", cl.Votes.Heard, cl.Votes.Total, cl.Leader))
	case cl.Quorum:
		parts = append(parts, fmt.Sprintf("quorum %d/%d (no leader yet)", cl.Votes.Heard, cl.Votes.Total))
	default:
		parts = append(parts, o.paint(red, fmt.Sprintf("NO QUORUM %d/%d", cl.Votes.Heard, cl.Votes.Total)))
	}
	if cl.Profile != "" {
		parts = append(parts, fmt.Sprintf("profile %s, lease %s", cl.Profile, span(cl.LeaseMs.D())))
	}
	fmt.Fprintf(w, "%s    %s\n", strings.Join(parts, "  "), o.clock(s.At.Time, toSecond))
	if s.Source == api.SourceLocal && cl.Quorum {
		fmt.Fprintf(w, "only what %s knows by itself (--local)\n", s.Node)
	}
	if !cl.Quorum && !stale {
		wrap(w, o, "waiting for ", Awaited(s))
	}
}

// Awaited says whose return would restore the quorum: "w or b: 2 of 3 needed".
func Awaited(s *api.Status) string {
	if s.Cluster.Awaiting != "" {
		return s.Cluster.Awaiting
	}
	var names []string
	for _, m := range s.Members {
		if m.Vote && m.State != api.MemberUp && m.Name != s.Node {
			names = append(names, m.Name)
		}
	}
	who := strings.Join(names, " or ")
	if who == "" {
		who = "a leader"
	}
	return fmt.Sprintf("%s: %d of %d needed", who, s.Cluster.Votes.Needed, s.Cluster.Votes.Total)
}

func protectionStyle(p string) style {
	switch p {
	case api.Protected:
		return green
	case api.Degraded:
		return amber
	}
	return red
}

func serviceTable(w io.Writer, s *api.Status, o Options) {
	cols := []column{{"SERVICE", 7}, {"STATE", 6}, {"ACTIVE", 8}, {"STANDBY", 10}, {"EPOCH", 5}, {"SINCE", 10}, {"IF THE ACTIVE DIES", 0}}
	var rows [][]cell
	for i := range s.Services {
		v := &s.Services[i]
		active, standby := orDash(v.Active), orDash(v.Standby)
		if v.Run == "everywhere" {
			active, standby = strings.Join(v.Nodes, ", "), "-"
		}
		if v.Standby != "" && v.StandbyState != "" && v.StandbyState != "in-sync" {
			standby += " " + v.StandbyState
		}
		epoch, since := "-", "-"
		if v.Epoch > 0 {
			epoch = fmt.Sprint(v.Epoch)
		}
		if !v.Since.IsZero() {
			since = age(s.At.Sub(v.Since.Time))
		}
		fate := cell{text: orDash(v.IfActiveFails), style: amber}
		switch {
		case strings.HasPrefix(v.IfActiveFails, "DOWN"):
			fate.style = red
		case strings.HasSuffix(v.IfActiveFails, "by itself"):
			fate.style = green
		}
		state := cell{v.State, stateStyle(v.State)}
		if s.Source == api.SourceLastKnown {
			state, fate = c("was "+v.State), c("not known here")
		}
		rows = append(rows, []cell{c(clean(v.Name)), state, c(active), c(standby), c(epoch), c(since), fate})
	}
	table(w, o, cols, rows)
}

func stateStyle(state string) style {
	switch state {
	case api.StateActive:
		return green
	case api.StateFailed, api.StateHeld, api.StateSuspended:
		return red
	}
	return amber
}

// details tells, for each service, what a person must know beside its row. Nothing is told of a service that is well.
func details(w io.Writer, s *api.Status, o Options) {
	for i := range s.Services {
		v := &s.Services[i]
		var b strings.Builder
		lastMove(&b, s, v, o)
		operator(&b, s, v, o)
		volumes(&b, v, o)
		why(&b, v, o)
		parts(&b, v, o)
		if b.Len() == 0 {
			continue
		}
		fmt.Fprintln(w)
		if len(s.Services) > 1 {
			fmt.Fprintln(w, o.paint(bold, clean(v.Name)))
		}
		io.WriteString(w, b.String())
	}
}

func label(name string) string { return fmt.Sprintf("  %-8s ", name) }

// recent is how long a move is told of after it happened.
const recent = 24 * time.Hour

func lastMove(w io.Writer, s *api.Status, v *api.Service, o Options) {
	m := v.LastMove
	if m == nil || s.At.Sub(m.At.Time) > recent {
		return
	}
	line := fmt.Sprintf("  %s %s to %s %s ago", o.paint(bold, strings.ToUpper(m.Kind)), orDash(m.From), m.To, age(s.At.Sub(m.At.Time)))
	if m.From == "" {
		line = fmt.Sprintf("  %s on %s %s ago", o.paint(bold, strings.ToUpper(m.Kind)), m.To, age(s.At.Sub(m.At.Time)))
	}
	if m.Reason != "" {
		line += ": " + clean(m.Reason)
	}
	line += "."
	if hint := "  hanode explain " + v.Name; visible(line)+runes(hint) <= o.width() {
		fmt.Fprintln(w, line+hint)
	} else {
		head, rest, _ := strings.Cut(strings.TrimPrefix(line, "  "), " ")
		hang(w, o, "  "+head+" ", len(label("")), rest)
		fmt.Fprintln(w, label("")+strings.TrimSpace(hint))
	}
	answered, ready := "VIP has not answered yet", orDash(m.ReadyBy)+" not ready yet"
	if len(v.Identity) == 0 {
		answered = ""
	} else if m.OutageMs >= 0 {
		answered = "VIP answered again after " + span(m.OutageMs.D())
	}
	if m.ReadyMs >= 0 {
		ready = orDash(m.ReadyBy) + " ready after " + span(m.ReadyMs.D())
	}
	if m.ReadyBy == "" {
		ready = ""
	}
	wrap(w, o, label(""), strings.Trim(answered+", "+ready, ", "))
}

// operator tells what a person has ordered: paused, stopped, held.
func operator(w io.Writer, s *api.Status, v *api.Service, o Options) {
	op := v.Operator
	if op == nil {
		if !v.PausedUntil.IsZero() {
			wrap(w, o, label("paused"), "until "+o.clock(v.PausedUntil.Time, toSecond)+": no automatic action; hanode resume "+v.Name)
		}
		return
	}
	text := operatorText(op, s.At.Time, o)
	switch op.State {
	case "paused":
		text += "; no automatic action until then, hanode resume " + v.Name + " ends it"
	case "held":
		text += "; hanode service clear " + v.Name + " ends it"
	case "stopped":
		text += "; hanode service start " + v.Name + " ends it"
	}
	wrap(w, o, label(op.State), text)
}

func operatorText(op *api.OperatorState, at time.Time, o Options) string {
	text := ""
	if !op.Until.IsZero() {
		text = fmt.Sprintf("until %s, ", o.clock(op.Until.Time, toSecond))
		if !at.IsZero() && op.Until.After(at) {
			text = fmt.Sprintf("until %s (%s more), ", o.clock(op.Until.Time, toSecond), age(op.Until.Sub(at)))
		}
	}
	text += "by " + orDash(op.By) + " since " + o.clock(op.Since.Time, toSecond)
	if op.Reason != "" {
		text += ": " + op.Reason
	}
	return text
}

func volumes(w io.Writer, v *api.Service, o Options) {
	for _, vol := range v.Volumes {
		head := label("volume")
		if !allThere(vol) {
			var copies []string
			for _, cp := range vol.Copies {
				copies = append(copies, copyText(cp))
			}
			line := head + clean(vol.Name) + "  " + strings.Join(copies, "   ")
			if runes(line) <= o.width() {
				fmt.Fprintln(w, line)
			} else {
				wrap(w, o, head, vol.Name+"  "+strings.Join(copies, "; "))
			}
			head = label("")
		}
		for _, a := range vol.SetAside {
			what := "never acknowledged"
			if a.Acknowledged {
				what = "ACKNOWLEDGED before: put aside, not lost"
			}
			wrap(w, o, head, fmt.Sprintf("set aside from %s: %s, %s", a.Member, count(a.Operations, "operation"), what))
			if a.Do != "" {
				fmt.Fprintln(w, label("")+clean(a.Do))
			}
			head = label("")
		}
	}
}

func allThere(v api.Volume) bool {
	for _, cp := range v.Copies {
		if cp.State != "all" {
			return false
		}
	}
	return true
}

func copyText(cp api.Copy) string {
	switch {
	case cp.State == "resync" && cp.TotalBytes > 0:
		t := fmt.Sprintf("%s: %d %% of %s, %s/s", cp.Member, 100*cp.DoneBytes/cp.TotalBytes, size(cp.TotalBytes), size(cp.RateBytes))
		if cp.EtaMs >= 0 {
			t += ", in sync in ~" + span(cp.EtaMs.D())
		}
		return t
	case cp.State == "behind" && cp.TotalBytes > 0:
		return fmt.Sprintf("%s: %s behind", cp.Member, size(cp.TotalBytes-cp.DoneBytes))
	}
	return cp.Member + ": " + orDash(cp.State)
}

// why tells the reasons of a protection that is not whole. What another line has told already is left out.
func why(w io.Writer, v *api.Service, o Options) {
	var told []string
	for _, r := range v.ProtectionReasons {
		switch {
		case r == api.ReasonStandbyBehind && len(v.Volumes) > 0:
		case r == api.ReasonPaused && (v.Operator != nil || !v.PausedUntil.IsZero()):
		default:
			told = append(told, reasonText(r, v))
		}
	}
	if len(told) > 0 {
		wrap(w, o, label(v.Protection), strings.Join(told, "; "))
	}
	if v.Note != "" {
		wrap(w, o, label(""), v.Note)
	}
}

func reasonText(r string, v *api.Service) string {
	switch r {
	case api.ReasonNoStandby:
		return "no-standby: no other member can take over"
	case api.ReasonStandbyBehind:
		return "standby-behind: " + orDash(v.Standby) + " does not hold everything yet"
	case api.ReasonWitnessLost:
		return "witness-lost: the active goes on without it, and nobody takes over by itself"
	case api.ReasonApprovalNeeded:
		return "approval-needed: a person must agree to the next failover"
	case api.ReasonPaused:
		return "paused: no automatic action"
	case api.ReasonHeld:
		return "held: it moved too often, and stays until hanode service clear " + v.Name
	case api.ReasonOneVote:
		return "one-vote: the loss of any member stops all, until a second node and a witness have joined"
	}
	return r
}

// parts tells which processes and checks are unwell, and whether writes were held.
func parts(w io.Writer, v *api.Service, o Options) {
	for _, p := range v.Processes {
		if p.State == "running" || p.State == "stopped" && v.State == api.StateStopped {
			continue
		}
		t := clean(p.Name) + " " + orDash(p.State)
		if p.Restarts > 0 {
			t += ", " + count(int64(p.Restarts), "restart")
		}
		wrap(w, o, label("process"), t)
	}
	for _, ch := range v.Checks {
		if ch.State == "ok" {
			continue
		}
		t := clean(ch.Name) + " " + orDash(ch.State)
		if ch.From != "" {
			t += " on " + ch.From
		}
		if ch.Output != "" {
			t += ": " + short(ch.Output, 120)
		}
		wrap(w, o, label("check"), t)
	}
	if n := v.Suspensions; n.Count > 0 {
		wrap(w, o, label("writes"), fmt.Sprintf("were suspended %s near the end of a lease, %s in all", times(n.Count), span(n.TotalMs.D())))
	}
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
