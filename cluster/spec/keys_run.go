package spec

import (
	"time"

	"github.com/hanode/hanode/cluster"
)

// signals are the stop signals, by the names of signal(7) without SIG.
var signals = []string{"TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "WINCH", "ABRT", "KILL"}

func processBlock() *Block {
	type P = cluster.ProcessSpec
	agents := []string{"systemd", "ocf"}
	b := &Block{
		Name: "process", Label: NameLabel, Class: NeedsStop, order: true, Doc: "a program; processes start in file order and stop in reverse",
		Keys: []Key{
			{Name: "start", Kind: true, Type: Argv, Class: NeedsStop, Example: `["/usr/bin/app", "--listen", ":80"]`, Doc: "the program and its arguments",
				field: at(func(p *P) any { return &p.Start })},
			{Name: "systemd", Kind: true, Type: String, Class: NeedsStop, Example: `"app.service"`, Doc: "a systemd unit", syntax: unitSyntax,
				field: at(func(p *P) any { return &p.Systemd })},
			{Name: "ocf", Kind: true, Type: String, Class: NeedsStop, Example: `"heartbeat:pgsql"`, Doc: "an OCF agent, class:name", syntax: ocfSyntax,
				field: at(func(p *P) any { return &p.OCF })},
			{Name: "params", Type: Map, Class: NeedsStop, Example: `{ pgctl = "/usr/bin/pg_ctl" }`, Only: &Cond{"ocf", nil}, Doc: "parameters of the OCF agent",
				syntax: textSyntax, field: at(func(p *P) any { return &p.Params })},
			{Name: "stop", Type: Argv, NotWith: agents, Class: NeedsStop, Example: `["/usr/bin/app", "stop"]`, Doc: "the program that stops it; by default the stop signal",
				field: at(func(p *P) any { return &p.Stop })},
			{Name: "stop_signal", Type: Word, Default: "TERM", Values: signals, NotWith: agents, Class: NeedsStop, Doc: "sent to its main process",
				field: at(func(p *P) any { return &p.StopSignal })},
			{Name: "stop_timeout", Type: Duration, Default: 30 * time.Second, Max: day, Class: NeedsStop, Doc: "how long it may take to stop; then its cgroup is killed",
				field: at(func(p *P) any { return &p.StopTimeout })},
			{Name: "start_timeout", Type: Duration, Default: time.Minute, Min: ms, Max: 7 * day, Class: NeedsStop, Doc: "how long it may take until ready",
				field: at(func(p *P) any { return &p.StartTimeout })},
			{Name: "ready", Type: Word, Default: "checks", Values: []string{"checks", "started", "notify"}, Class: NeedsStop,
				Doc:   "what makes it ready: the checks, that it runs, or its message on NOTIFY_SOCKET",
				field: at(func(p *P) any { return &p.Ready })},
			{Name: "standby", Type: Word, Default: "cold", Values: []string{"cold", "hot"}, Class: NeedsStop,
				Doc:   "hot: it runs on the standby too and is promoted in place",
				field: at(func(p *P) any { return &p.Standby })},
			{Name: "promote", Type: Argv, Class: NeedsStop, Example: `["/usr/bin/app", "promote"]`, Only: &Cond{"standby", []string{"hot"}},
				Doc:   "the program that tells a hot process that it is the active's now",
				field: at(func(p *P) any { return &p.Promote })},
			{Name: "user", Type: String, Default: "root", NotWith: agents, Class: NeedsStop, Example: `"postgres"`, Doc: "whom it runs as", syntax: userSyntax,
				field: at(func(p *P) any { return &p.User })},
			{Name: "group", Type: String, NotWith: agents, Class: NeedsStop, Example: `"postgres"`, Doc: "by default the user's", syntax: userSyntax,
				field: at(func(p *P) any { return &p.Group })},
			{Name: "dir", Type: String, Default: "/", NotWith: agents, Class: NeedsStop, Example: `"/srv/app"`, Doc: "its working directory", syntax: pathSyntax,
				field: at(func(p *P) any { return &p.Dir })},
			{Name: "env", Type: Map, NotWith: agents, Class: NeedsStop, Example: `{ LANG = "C" }`, Doc: "added to its environment", syntax: textSyntax,
				field: at(func(p *P) any { return &p.Env })},
			{Name: "memory_max", Type: Size, Min: 1 << 20, Max: 1 << 50, NotWith: []string{"systemd"}, Unit: "0: no bound", Class: NeedsStop, Example: `"4GiB"`, Doc: "bound of its memory",
				field: at(func(p *P) any { return &p.MemoryMax })},
			{Name: "files_max", Type: Int, Max: 1 << 30, NotWith: []string{"systemd"}, Unit: "0: the system's", Class: NeedsStop, Example: "65536", Doc: "how many files it may have open",
				field: at(func(p *P) any { return &p.FilesMax })},
		},
	}
	return listed(b, func(s *cluster.ServiceSpec) *[]P { return &s.Processes }, func(p *P) *string { return &p.Name })
}

func checkBlock() *Block {
	type C = cluster.CheckSpec
	target := at(func(c *C) any { return &c.Target })
	kind := func(name, example, doc string, syntax func(string) (string, *wrong)) Key {
		return Key{Name: name, Kind: true, Type: String, Class: Live, Example: example, Doc: doc, syntax: syntax, field: target}
	}
	b := &Block{
		Name: "check", Label: NameLabel, Class: Live, Doc: "a test of one aspect of the service",
		kind: func(v any) *string { return &v.(*C).Kind },
		Keys: []Key{
			kind("tcp", `"127.0.0.1:5432"`, "somebody accepts a connection", hostPortSyntax),
			kind("http", `"http://127.0.0.1/health"`, "the answer is a success", httpSyntax),
			kind("postgres", `"host=/run/postgresql user=postgres"`, "the server answers a query", postgresSyntax),
			kind("mysql", `"check@unix(/run/mysqld/mysqld.sock)/"`, "the server answers a query", mysqlSyntax),
			kind("dns", `"example.org@127.0.0.1:53"`, "the server answers for the name", dnsSyntax),
			kind("smtp", `"127.0.0.1:25"`, "the server greets", hostPortSyntax),
			kind("rpc", `"127.0.0.1:111"`, "the program answers the null procedure", hostPortSyntax),
			kind("ping", `"10.0.0.1"`, "the address answers an echo request", hostSyntax),
			{Name: "exec", Kind: true, Type: Argv, Class: Live, Example: `["/usr/local/bin/check-app"]`, Doc: "a program that exits with 0",
				field: at(func(c *C) any { return &c.Argv })},
			kind("systemd", `"app.service"`, "the systemd unit is active", unitSyntax),
			kind("ocf", `"heartbeat:pgsql"`, "the OCF agent's monitor succeeds", ocfSyntax),
			kind("heartbeat", `"app"`, "the application reports to hanode under this name", nameSyntax),
			{Name: "every", Type: Duration, Default: time.Second, Min: 10 * ms, Max: day, Class: Live, Doc: "between two runs",
				field: at(func(c *C) any { return &c.Every })},
			{Name: "timeout", Type: Duration, Default: time.Second, Min: ms, Max: hour, Class: Live, Doc: "how long one run may take",
				field: at(func(c *C) any { return &c.Timeout })},
			{Name: "failures", Type: Int, Default: 3, Min: 1, Max: 1000, Class: Live, Doc: "how many in a row condemn",
				field: at(func(c *C) any { return &c.Failures })},
			{Name: "for", Type: Duration, Min: ms, Max: day, NotWith: []string{"failures"}, Class: Live, Example: `"30s"`, Doc: "condemn by time instead of by failures",
				field: at(func(c *C) any { return &c.For })},
			{Name: "from", Type: List, Default: []string{"active"}, Values: []string{"active", "standby", "witness"}, Class: Live, Example: `["active", "witness"]`, Doc: "who runs it",
				field: at(func(c *C) any { return &c.From })},
		},
		Blocks: []*Block{{
			Name: "on_failure", Class: Live, Doc: "what happens when this check fails", Keys: onFailureKeys(Live), done: onFailureDone,
			make: func(any) any { return new(cluster.OnFailure) },
			put:  func(parent any, _ string, v any) { parent.(*C).OnFailure = v.(*cluster.OnFailure) },
			each: func(parent any, f func(any)) {
				if o := parent.(*C).OnFailure; o != nil {
					f(o)
				}
			},
		}},
	}
	return listed(b, func(s *cluster.ServiceSpec) *[]C { return &s.Checks }, func(c *C) *string { return &c.Name })
}

// backoffMax is where the doubling of on_failure's backoff ends.
const backoffMax = 30 * time.Second

func onFailureDone(v any) {
	o := v.(*cluster.OnFailure)
	o.BackoffMax = max(backoffMax, o.Backoff)
}

// The class is that of the block: the supervision of the processes takes it over only as they start, the checks at once.
func onFailureKeys(class Class) []Key {
	type O = cluster.OnFailure
	return []Key{
		{Name: "restarts", Type: Int, Default: 2, Max: 1000, Class: class, Doc: "attempts on the same node, within the time of `within`",
			field: at(func(o *O) any { return &o.Restarts })},
		{Name: "within", Type: Duration, Default: 10 * time.Minute, Min: 1000 * ms, Max: 30 * day, Class: class, Doc: "the time over which restarts counts",
			field: at(func(o *O) any { return &o.Within })},
		{Name: "backoff", Type: Duration, Default: time.Second, Max: hour, Class: class, Doc: "before the first restart; doubles to 30s",
			field: at(func(o *O) any { return &o.Backoff })},
		{Name: "then", Type: Word, Default: "failover", Values: []string{"failover", "stop", "ignore"}, Class: class, Doc: "after the last restart",
			field: at(func(o *O) any { return &o.Then })},
	}
}

func hookBlock() *Block {
	type H = cluster.HookSpec
	var moments []string
	for _, m := range []string{"start", "stop", "announce", "failover"} {
		moments = append(moments, "before-"+m, "after-"+m)
	}
	return listed(&Block{
		Name: "hook", Label: NameLabel, Class: Live, order: true, Doc: "a program that is run at a moment of the service's life",
		Keys: []Key{
			{Name: "at", Type: Word, Required: true, Values: moments, Class: Live, Example: `"after-start"`, Doc: "when it is run",
				field: at(func(h *H) any { return &h.At })},
			{Name: "exec", Type: Argv, Required: true, Class: Live, Example: `["/usr/local/bin/hook"]`, Doc: "the program and its arguments",
				field: at(func(h *H) any { return &h.Exec })},
			{Name: "timeout", Type: Duration, Default: 10 * time.Second, Min: ms, Max: hour, Class: Live, Doc: "how long it may take",
				field: at(func(h *H) any { return &h.Timeout })},
		},
	}, func(s *cluster.ServiceSpec) *[]H { return &s.Hooks }, func(h *H) *string { return &h.Name })
}

func alertBlock[P any](slice func(*P) *[]cluster.AlertSpec) *Block {
	type A = cluster.AlertSpec
	target := at(func(a *A) any { return &a.Target })
	return listed(&Block{
		Name: "alert", Label: NameLabel, Class: Live, Doc: "whom to tell of alarms",
		kind: func(v any) *string { return &v.(*A).Kind },
		Keys: []Key{
			{Name: "exec", Kind: true, Type: Argv, Class: Live, Example: `["/usr/local/bin/page"]`, Doc: "a program that is run",
				field: at(func(a *A) any { return &a.Argv })},
			{Name: "mail", Kind: true, Type: String, Class: Live, Example: `"oncall@example.org"`, Doc: "an address", syntax: mailSyntax, field: target},
			{Name: "webhook", Kind: true, Type: String, Class: Live, Example: `"https://example.org/alarm"`, Doc: "a URL that is posted to", syntax: httpSyntax, field: target},
			{Name: "syslog", Kind: true, Type: String, Class: Live, Example: `"local"`, Doc: "local, or udp://HOST:PORT, tcp://HOST:PORT", syntax: syslogSyntax, field: target},
			{Name: "severity", Type: Word, Default: "warn", Values: []string{"info", "warn", "crit"}, Class: Live, Doc: "the least that is told",
				field: at(func(a *A) any { return &a.Severity })},
			{Name: "repeat", Type: Duration, Default: time.Hour, Min: 1000 * ms, Max: 30 * day, Class: Live, Doc: "until it is acknowledged",
				field: at(func(a *A) any { return &a.Repeat })},
		},
	}, slice, func(a *A) *string { return &a.Name })
}
