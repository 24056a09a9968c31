package ui

import (
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/api/apitest"
)

var update = flag.Bool("update", false, "write the golden files anew; read the difference before you commit it")

var now = apitest.Epoch0

func opts() Options { return Options{Now: now} }

func ago(d time.Duration) api.Time { return api.At(now.Add(-d)) }

func ms(d time.Duration) api.Millis { return api.Ms(d) }

// screens are all golden files: each draws one screen.
func screens() map[string]func(io.Writer) {
	out := map[string]func(io.Writer){}
	status := func(name string, change func(*api.Status)) {
		out["status-"+name] = func(w io.Writer) {
			s := apitest.Healthy()
			change(&s)
			Status(w, &s, opts())
		}
	}
	statuses(status)
	others(out)
	return out
}

func statuses(add func(string, func(*api.Status))) {
	add("healthy", func(*api.Status) {})
	add("failover", failover)
	add("witness-lost", witnessLost)
	add("no-quorum", noQuorum)
	add("down", down)
	add("paused", func(s *api.Status) {
		db := degrade(s, api.ReasonPaused)
		db.PausedUntil = api.At(now.Add(30 * time.Minute))
		db.Operator = &api.OperatorState{State: "paused", By: "alice", Since: ago(5 * time.Minute), Until: db.PausedUntil, Reason: "kernel upgrade"}
		db.IfActiveFails = api.ByYourOrder("b")
	})
	add("held", held)
	add("resync", func(s *api.Status) { resync(s) })
	add("one-member", oneMember)
	add("last-known", func(s *api.Status) {
		s.Source, s.AgeMs, s.Cluster.Quorum, s.Cluster.Leader = api.SourceLastKnown, ms(4*time.Minute), false, ""
	})
	add("local", func(s *api.Status) { s.Source = api.SourceLocal })
	add("two-services", twoServices)
	add("unwell", func(s *api.Status) {
		db := degrade(s, api.ReasonStandbyBehind)
		db.InSync, db.StandbyState, db.IfActiveFails = []string{"a"}, "behind", api.DownUntil("a")
		db.Volumes[0].Copies[1] = api.Copy{Member: "b", State: "behind", TotalBytes: 310 << 20}
		db.Checks[0] = api.Check{Name: "sql", State: "failing", From: "a", Output: "FATAL:  the database\nsystem is \x1b[31mstarting\x1b[0m up"}
		db.Processes[0].Restarts, db.Processes[0].State = 2, "restarting"
		db.Suspensions = api.SuspensionCounts{Count: 3, TotalMs: ms(1200 * time.Millisecond)}
		db.Note = "a is unwell (check sql), not moved: b is not in sync"
	})
	add("no-services", func(s *api.Status) { s.Services = nil })
	add("drained", func(s *api.Status) {
		degrade(s, api.ReasonNoStandby)
		s.Members[1].State = api.MemberDrained
		s.Members[1].Operator = &api.OperatorState{State: "drained", By: "alice", Since: ago(time.Hour)}
		s.Services[0].IfActiveFails, s.Services[0].Standby, s.Services[0].StandbyState = api.DownUntil("a"), "", ""
		s.Members[1].ClockOffsetMs = ms(2300 * time.Millisecond)
	})
}

func degrade(s *api.Status, reason string) *api.Service {
	s.Cluster.Protection = api.Degraded
	db := &s.Services[0]
	db.Protection, db.ProtectionReasons = api.Degraded, []string{reason}
	return db
}

func resync(s *api.Status) *api.Service {
	db := degrade(s, api.ReasonStandbyBehind)
	db.Active, db.Standby, db.StandbyState, db.Epoch, db.Since = "b", "a", "resync", 8, ago(41*time.Second)
	db.InSync, db.IfActiveFails = []string{"b"}, api.DownUntil("b")
	db.Volumes[0].Copies = []api.Copy{{Member: "b", State: "all"},
		{Member: "a", State: "resync", DoneBytes: 192 << 20, TotalBytes: 310 << 20, RateBytes: 48 << 20, EtaMs: ms(3 * time.Second)}}
	return db
}

func failover(s *api.Status) {
	db := resync(s)
	db.LastMove = &api.LastMove{Decision: "D-231", Kind: "failover", From: "a", To: "b", At: ago(41 * time.Second), OutageMs: ms(268 * time.Millisecond),
		ReadyMs: ms(4100 * time.Millisecond), ReadyBy: "postgres", Reason: "a stopped answering on all links"}
	db.Volumes[0].SetAside = []api.SetAside{{Member: "a", Operations: 3, Bytes: 4096}}
	s.Alarms = []api.Alarm{
		{Code: "failed-over", Severity: "warn", Object: "db", Since: ago(40 * time.Second), Text: "db was moved by failover D-231 at 03:07:21",
			Remedy: "read hanode explain D-231, then hanode alarm ack failed-over", Decision: "D-231"},
		{Code: "clock-skew", Severity: "info", Object: "b", Since: ago(time.Hour), Text: "b's wall clock is late", AckedBy: "alice"},
	}
}

func witnessLost(s *api.Status) {
	db := degrade(s, api.ReasonWitnessLost)
	db.IfActiveFails = api.ByYourOrder("b")
	w := &s.Members[2]
	w.State, w.HeardMs, w.Leader, w.Links[0].State = api.MemberSilent, ms(12*time.Second), false, "down"
	s.Cluster.Votes.Heard, s.Cluster.Leader = 2, "b"
	s.Alarms = []api.Alarm{{Code: "witness-lost", Severity: "crit", Object: "w", Since: ago(7 * time.Second),
		Text:   "no member has heard the witness w for 12 s; db goes on on a, and nobody takes over by itself if a dies now",
		Remedy: "look at w: systemctl status hanode-witness; or replace it: hanode member replace w"}}
}

func noQuorum(s *api.Status) {
	s.Source = api.SourceLocal
	for i := 1; i < 3; i++ {
		s.Members[i].State, s.Members[i].HeardMs, s.Members[i].Leader = api.MemberSilent, ms(95*time.Second), false
		for j := range s.Members[i].Links {
			s.Members[i].Links[j].State = "down"
		}
	}
	s.Cluster.Protection, s.Cluster.Quorum, s.Cluster.Leader, s.Cluster.Votes.Heard = api.Down, false, "", 1
	db := &s.Services[0]
	db.Protection, db.State, db.Active, db.StandbyState, db.Since = api.Down, api.StateStopped, "", "down", ago(94*time.Second)
	db.IfActiveFails, db.InSync = api.DownUntil("w or b"), []string{"a", "b"}
	db.Processes, db.Checks = nil, nil
	db.Note = "a holds everything and starts as soon as one more member answers"
}

func down(s *api.Status) {
	resync(s)
	b := &s.Members[1]
	b.State, b.HeardMs, b.Links[0].State, b.Links[1].State = api.MemberSilent, ms(20*time.Second), "down", "down"
	s.Cluster.Protection, s.Cluster.Votes.Heard = api.Down, 2
	db := &s.Services[0]
	db.Protection, db.State, db.Active, db.Standby, db.StandbyState = api.Down, api.StateFailed, "", "a", "behind"
	db.ProtectionReasons, db.Processes, db.Checks = []string{api.ReasonStandbyBehind}, nil, nil
	db.Volumes[0].Copies = []api.Copy{{Member: "b", State: "unknown"}, {Member: "a", State: "behind", DoneBytes: 192 << 20, TotalBytes: 310 << 20}}
	db.Note = "b, the only member that holds everything, is not heard; a lacks 118 MiB"
	s.Alarms = []api.Alarm{{Code: "service-down", Severity: "crit", Object: "db", Since: ago(19 * time.Second), Text: "db is down: b alone holds everything, and is not heard",
		Remedy: "bring b back; or accept the loss: hanode force db --to a --accept-loss"}}
}

func held(s *api.Status) {
	db := degrade(s, api.ReasonHeld)
	db.State, db.IfActiveFails = api.StateHeld, api.HeldAfter(3, 10*time.Minute)
	db.Operator = &api.OperatorState{State: "held", By: "policy", Since: ago(2 * time.Minute), Reason: "3 failovers in 10 min"}
	db.LastMove = &api.LastMove{Decision: "D-240", Kind: "failover", From: "b", To: "a", At: ago(2 * time.Minute), OutageMs: ms(301 * time.Millisecond), ReadyMs: -1,
		ReadyBy: "postgres", Reason: "the check sql failed on b for 3 s after two restarts, and a was well"}
}

func oneMember(s *api.Status) {
	s.Members, s.Services = s.Members[:1], s.Services[:1]
	s.Cluster.Votes, s.Cluster.Leader = api.Votes{Heard: 1, Total: 1, Needed: 1}, "a"
	s.Members[0].Links = nil
	db := degrade(s, api.ReasonOneVote)
	db.ProtectionReasons = []string{api.ReasonNoStandby, api.ReasonOneVote}
	db.Standby, db.StandbyState, db.InSync, db.IfActiveFails = "", "", []string{"a"}, api.DownUntil("a")
	db.Volumes[0].Copies = db.Volumes[0].Copies[:1]
}

func twoServices(s *api.Status) {
	web := s.Services[0]
	web.Name, web.Active, web.Standby, web.Volumes, web.IfActiveFails, web.Epoch = "web1", "b", "a", nil, api.AfterApproval("a"), 3
	web.Protection, web.ProtectionReasons = api.Degraded, []string{api.ReasonApprovalNeeded}
	nginx := api.Service{Name: "nginx", Run: "everywhere", State: api.StateActive, Protection: api.Protected, Nodes: []string{"a", "b"}, Since: ago(3 * time.Hour), IfActiveFails: api.OthersGoOn}
	resync(s)
	s.Services = append(s.Services, web, nginx)
}

func explained() *api.Explanation {
	at := time.Date(2026, 3, 1, 3, 7, 21, 204e6, time.UTC)
	m := func(off int, what, note string, who ...string) api.Moment {
		return api.Moment{OffsetMs: ms(time.Duration(off) * time.Millisecond), What: what, Who: who, Note: note}
	}
	return &api.Explanation{Target: "D-231", Kind: "decision", Decision: &api.Decision{
		ID: "D-231", At: api.At(at), Service: "db", Kind: "failover", From: "a", To: "b", EpochFrom: 7, EpochTo: 8, OrderedBy: "policy",
		Sentence: "b took over because a, the active, was heard by nobody for 275 ms, and b held every acknowledged write.",
		Zero:     "after a was last heard",
		TimeLine: []api.Moment{
			m(0, "last beat of a heard, on both links", "", "b", "w"),
			m(151, "3 beats missed on 2 of 2 links", "", "b", "w"),
			m(275, "a's lease will not be renewed any more", "(lease of a over: 250)", "b", "w"),
			m(289, "grant of epoch 8 to b committed", "log index 40213", "w"),
			m(297, "journal tail applied (212 operations)", "", "b"),
			m(304, "10.0.0.50 on ens3, announced", "", "b"),
			m(306, "first answer to a client on the VIP", "", "b"),
			m(4166, "check sql ok", "postgres recovery 3.8 s", "b"),
		},
		Known: api.Known{Members: []string{"a", "b", "w"}, Rows: []api.KnownRow{
			{What: "heard by", Values: []string{"nobody", "w", "b"}},
			{What: "in sync", Values: []string{"", "yes (7,1,88120)", ""}},
			{What: "health", Values: []string{"ok, last beat", "ok", "ok"}}}},
		Lost: "nothing acknowledged", SetAside: "on a: 3 operations never acknowledged",
		WhyNot: []api.WhyNot{{Question: "Why not later or sooner?", Answer: "profile fast: 3 beats, lease 250 ms (spec version 14)"}},
	}}
}

func others(out map[string]func(io.Writer)) {
	out["explain-decision"] = func(w io.Writer) { Explain(w, explained(), opts()) }
	out["explain-nothing"] = func(w io.Writer) {
		Explain(w, &api.Explanation{Target: "db", Kind: "service", Sentence: "a is unwell (check sql), not moved: b is not in sync",
			Known: api.Known{Members: []string{"a", "b", "w"}, Rows: []api.KnownRow{
				{What: "heard by", Values: []string{"b, w", "a, w", "a, b"}}, {What: "in sync", Values: []string{"yes", "no, 118 MiB behind", "-"}},
				{What: "health", Values: []string{"check sql failing", "ok", "ok"}}}},
			WhyNot: []api.WhyNot{{Question: "Why not b?", Answer: "it lacks 118 MiB; in sync in about 3 s"}},
			Next:   []string{"hanode wait db --for in-sync"}}, opts())
	}
	out["explain-alarm"] = func(w io.Writer) {
		s := apitest.Healthy()
		witnessLost(&s)
		Explain(w, &api.Explanation{Target: "witness-lost", Kind: "alarm", Alarm: &s.Alarms[0], Sentence: "w was last heard at 03:07:50 by a and b, on one link of one.",
			Next: []string{"hanode member replace w"}}, opts())
	}
	out["explain-five-members"] = func(w io.Writer) {
		x := explained()
		x.Decision.TimeLine, x.Decision.At, x.Decision.Failed = nil, ago(26*time.Hour), "b did not become ready in 10 min, and a was granted again"
		x.Decision.OrderedBy, x.Decision.Reason = "alice", "kernel upgrade"
		x.Decision.Known.Members = []string{"alpha", "beta", "gamma", "delta", "witness"}
		Explain(w, x, opts())
	}
	out["events"] = func(w io.Writer) {
		l := NewEventLines(w, opts())
		l.Write(api.Event{At: ago(4 * time.Hour), Severity: "info", Service: "db", Text: "paused for 30 min", Who: "alice", Decision: "D-230"})
		l.Write(api.Event{At: ago(41 * time.Second), Severity: "crit", Service: "db", Decision: "D-231", Who: "policy",
			Text: "failover a to b, epoch 7 to 8: a was heard by nobody for 275 ms, and b held every acknowledged write"})
		l.Write(api.Event{At: ago(37 * time.Second), Severity: "info", Node: "a", Text: "a is back: 3 operations set aside, resync of 310 MiB"})
	}
	out["member-list"] = func(w io.Writer) { s := apitest.Healthy(); Members(w, s.Members, "a", opts()) }
	out["member-list-drained"] = func(w io.Writer) {
		s := apitest.Healthy()
		s.Members[1].State, s.Members[1].Links[1].State = api.MemberDrained, "down"
		s.Members[1].Operator = &api.OperatorState{State: "drained", By: "alice", Since: ago(time.Hour), Reason: "new disks"}
		Members(w, s.Members, "a", opts())
	}
	plans(out)
	out["alarm-list"] = func(w io.Writer) { s := apitest.Healthy(); failover(&s); Alarms(w, s.Alarms, opts()) }
	out["alarm-none"] = func(w io.Writer) { Alarms(w, nil, opts()) }
	out["spec-log"] = func(w io.Writer) {
		SpecLog(w, []api.SpecChange{{Version: 13, At: ago(50 * time.Hour), By: "root", Summary: "db: new"},
			{Version: 14, At: ago(time.Hour), By: "alice", Summary: "db: check sql every 1s to 2s", Reason: "too many log lines"}}, opts())
	}
	out["leader"] = func(w io.Writer) {
		Leader(w, &api.Leadership{Leader: "b", Since: ago(time.Hour), Preferred: "w", Why: "w is preferred: its death never coincides with a takeover", Next: []string{"hanode leader --to w"}}, opts())
	}
	out["witness"] = func(w io.Writer) {
		Witness(w, &api.WitnessStatus{At: api.At(now), Running: true, Listen: "10.2.0.13:7400", Version: "1.0.3", Clusters: []api.WitnessCluster{
			{Name: "shop", ID: "6f1c0a5277aa", Member: "w", State: "up", Vote: true, Quorum: true, Votes: api.Votes{Heard: 3, Total: 3, Needed: 2}, Leader: "w"},
			{Name: "mail", ID: "00aa11bb22cc", Member: "w2", State: "silent", Votes: api.Votes{Heard: 1, Total: 3, Needed: 2}, Note: "a and b are not heard since 03:01:02"}},
			Next: []string{"hanode-witness list"}}, opts())
	}
}

func plans(out map[string]func(io.Writer)) {
	step := func(n int, d time.Duration, text string, who ...string) api.Step {
		return api.Step{N: n, Text: text, Who: who, TookMs: ms(d)}
	}
	out["plan-switchover"] = func(w io.Writer) {
		Plan(w, &api.Plan{Order: "switchover of db, a to b", Base: 40213, ExpectedMs: ms(4200 * time.Millisecond), OutageMs: ms(30 * time.Millisecond),
			Steps: []api.Step{step(1, 2*time.Millisecond, "hold new writes", "a"), step(2, 8*time.Millisecond, "the standby confirms everything", "a", "b"),
				step(3, 6*time.Millisecond, "grant of epoch 8 to b", "w"), step(4, 4184*time.Millisecond, "10.0.0.50 announced, postgres ready", "b")}}, "hanode switchover db", opts())
	}
	out["plan-apply"] = func(w io.Writer) {
		Plan(w, &api.Plan{Order: "apply of ha.hcl on spec version 14", Base: 14, Unchanged: []string{"nginx", "web1"}, Changes: []api.SpecDelta{
			{Object: "service db, check sql", Key: "every", From: "1s", To: "2s", Class: api.ClassLive},
			{Object: "cluster", Key: "profile", From: "fast", To: "normal", Class: api.ClassNextGrant},
			{Object: "service db, volume data", Key: "path", From: "/var/lib/postgresql/15/main", To: "/srv/pg", Class: api.ClassNeedsStop},
			{Object: "service mail", From: "-", To: "new", Class: api.ClassLive}},
			Warnings: []string{"db must be stopped for a change of its volume's path: hanode service stop db, apply, hanode service start db"}}, "hanode apply ha.hcl", opts())
	}
	out["plan-force"] = func(w io.Writer) {
		Plan(w, &api.Plan{Order: "force of db to a", Base: 40310, ExpectedMs: ms(5 * time.Second), OutageMs: ms(5 * time.Second), VerifiedOff: []string{"b"},
			Risk: api.Risk{Bytes: 118 << 20, Operations: 2211, AgeMs: ms(23 * time.Second), Unknown: true}, Steps: []api.Step{step(1, time.Second, "grant of epoch 9 to a, which is not in sync", "w")}}, "", opts())
	}
	out["problems"] = func(w io.Writer) {
		Problems(w, []api.Diagnostic{{File: "ha.hcl", Line: 12, Column: 5, Text: `unknown key "intervall"`, Do: `did you mean "every"?`},
			{File: "ha.hcl", Line: 3, Column: 1, Node: "b", Severity: "error", Text: "no interface has the network of 10.0.0.50/24"}}, opts())
	}
}

func TestEveryScreenIsAsReviewed(t *testing.T) {
	for name, draw := range screens() {
		var b strings.Builder
		draw(&b)
		path := filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("%v; go test -update writes it", err)
			continue
		}
		if got := b.String(); got != string(want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
	}
}

func TestScreensKeepToTheWidthAndToTheWords(t *testing.T) {
	files, err := filepath.Glob("testdata/*.golden")
	if err != nil || len(files) != len(screens()) {
		t.Fatalf("%d golden files for %d screens, %v", len(files), len(screens()), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if word := Unsayable(string(b)); word != "" {
			t.Errorf("%s says %q", f, word)
		}
		for i, line := range strings.Split(string(b), "\n") {
			if runes(line) > 80 && !strings.Contains(f, "problems") {
				t.Errorf("%s:%d has %d columns: %s", f, i+1, runes(line), line)
			}
			if line != strings.TrimRight(line, " ") {
				t.Errorf("%s:%d ends in blanks", f, i+1)
			}
			if strings.ContainsAny(line, "\x1b\a\r") {
				t.Errorf("%s:%d has control characters", f, i+1)
			}
		}
	}
	for text, want := range map[string]string{"a promise": "promise", "Sticky": "sticky", "a compromise": "", "the systemd unit": ""} {
		if got := Unsayable(text); got != want {
			t.Errorf("Unsayable(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestColourChangesNothingButColour(t *testing.T) {
	s := apitest.Healthy()
	failover(&s)
	var plainText, colour strings.Builder
	Status(&plainText, &s, opts())
	o := opts()
	o.Colour = true
	Status(&colour, &s, o)
	stripped := colour.String()
	for _, st := range []style{bold, red, amber, green} {
		stripped = strings.ReplaceAll(stripped, "\x1b["+string(st)+"m", "")
	}
	if stripped = strings.ReplaceAll(stripped, "\x1b[0m", ""); stripped != plainText.String() || stripped == colour.String() {
		t.Errorf("with colour:\n%s\nwithout:\n%s", stripped, plainText.String())
	}
}

func TestDurationsAreSaidAsPeopleDo(t *testing.T) {
	for d, want := range map[time.Duration]string{200 * time.Microsecond: "0.2 ms", 4100 * time.Microsecond: "4.1 ms", 268 * time.Millisecond: "268 ms",
		4100 * time.Millisecond: "4.1 s", 41 * time.Second: "41 s", 12 * time.Minute: "12 min", 3 * time.Hour: "3 h", 50 * time.Hour: "2 d", -1: "-",
		999700 * time.Microsecond: "1000 ms", 2 * time.Second: "2 s"} {
		if got := span(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
