package spec

import (
	"net/netip"
	"path"
	"time"

	"github.com/hanode/hanode/cluster"
)

const (
	hour = int64(time.Hour)
	ms   = int64(time.Millisecond)
	day  = 24 * hour
	gib  = int64(1) << 30
)

var modes = []string{"sync", "sync-on-fsync", "async"}

// Root is the table of the language: the file as a block of blocks. It is made anew for each caller.
func Root() *Block {
	return &Block{Doc: "the spec of a cluster", Blocks: []*Block{
		clusterBlock(),
		memberBlock("node", func(s *cluster.Spec) *map[string]cluster.NodeSpec { return &s.Nodes }),
		memberBlock("witness", func(s *cluster.Spec) *map[string]cluster.NodeSpec { return &s.Witnesses }),
		serviceBlock(),
		alertBlock(func(s *cluster.Spec) *[]cluster.AlertSpec { return &s.Alerts }),
	}}
}

func clusterBlock() *Block {
	return &Block{
		Name: "cluster", Always: true, Class: Live, Doc: "settings of the whole cluster",
		make: func(parent any) any { return parent },
		put:  func(any, string, any) {},
		each: func(parent any, f func(any)) { f(parent) },
		Keys: []Key{
			{Name: "profile", Type: Word, Default: "auto", Values: append([]string{"auto"}, cluster.ProfileNames()...), Class: NextGrant,
				Doc:   "all timings with one word; auto is the fastest that every member can keep, measured and pinned in the log",
				field: at(func(s *cluster.Spec) any { return &s.Profile })},
			{Name: "lease", Type: Duration, Min: 100 * ms, Max: 60_000 * ms, Class: NextGrant, Example: `"400ms"`,
				Doc:   "overrides the profile's lease; an error with profile auto",
				Only:  &Cond{"profile", cluster.ProfileNames()},
				field: at(func(s *cluster.Spec) any { return &s.Lease })},
			{Name: "max_failovers", Type: Int, Default: 3, Min: 1, Max: 1000, Class: Live,
				Doc:   "automatic failovers of one service within failovers_within, then it is held until `service clear`",
				field: at(func(s *cluster.Spec) any { return &s.MaxFailovers })},
			{Name: "failovers_within", Type: Duration, Default: 10 * time.Minute, Min: 1000 * ms, Max: 30 * day, Class: Live,
				Doc:   "the time over which max_failovers counts",
				field: at(func(s *cluster.Spec) any { return &s.FailoversWithin })},
		},
	}
}

// memberBlock is node or witness: they are kept in a map, which has no order.
func memberBlock(name string, of func(*cluster.Spec) *map[string]cluster.NodeSpec) *Block {
	type member = namedMember
	b := &Block{
		Name: name, Label: NameLabel, Class: Live, implicit: true, Doc: "what the cluster knows of a " + name + " that has joined",
		make: func(any) any { return &member{NodeSpec: cluster.NodeSpec{Vote: true}} },
		put: func(parent any, l string, v any) {
			m := of(parent.(*cluster.Spec))
			if *m == nil {
				*m = map[string]cluster.NodeSpec{}
			}
			(*m)[l] = v.(*member).NodeSpec
		},
		each: func(parent any, f func(any)) {
			m := *of(parent.(*cluster.Spec))
			for _, n := range sortedKeys(m) {
				f(&member{n, m[n]})
			}
		},
		label: func(v any) string { return v.(*member).name },
		name:  func(v any, l string) { v.(*member).name = l },
		Keys: []Key{
			{Name: "site", Type: String, Default: "default", Class: Live, Doc: "members of one site share its fate", Example: `"paris"`,
				syntax: siteSyntax,
				field:  at(func(n *member) any { return &n.Site })},
		},
	}
	if name == "node" {
		b.Keys = append(b.Keys,
			Key{Name: "capacity", Type: Int, Default: 100, Max: 1_000_000, Unit: "% units of load", Class: Live, Doc: "how much load the node carries",
				field: at(func(n *member) any { return &n.Capacity })},
			Key{Name: "vote", Type: Bool, Default: true, Class: Live, Doc: "whether the node is one of the voters",
				field: at(func(n *member) any { return &n.Vote })})
	}
	return b
}

type namedMember struct {
	name string
	cluster.NodeSpec
}

func serviceBlock() *Block {
	type S = cluster.ServiceSpec
	auto := []string{"automatic", "manual"}
	b := &Block{
		Name: "service", Label: NameLabel, Class: Live, Doc: "the unit that fails over",
		Keys: []Key{
			{Name: "nodes", Type: List, Required: true, Class: Live, Example: `["a", "b"]`, Doc: "where it may run, in order of preference",
				syntax: nameSyntax,
				field:  at(func(s *S) any { return &s.Nodes })},
			{Name: "run", Type: Word, Default: "active", Values: []string{"active", "everywhere"}, Class: NeedsStop,
				Doc:   "on the active only, or everywhere: no lease, no vip, no volume",
				field: at(func(s *S) any { return &s.Run })},
			{Name: "failover", Type: Word, Default: "automatic", Values: auto, Class: Live, Doc: "whether a failure moves it without an operator",
				field: at(func(s *S) any { return &s.Failover })},
			{Name: "failback", Type: Word, Default: "manual", Values: auto, Class: Live, Doc: "whether it returns to the preferred node by itself",
				field: at(func(s *S) any { return &s.Failback })},
			{Name: "site_failover", Type: Word, Default: "manual", Values: auto, Class: Live, Doc: "whether it may move to another site by itself",
				field: at(func(s *S) any { return &s.SiteFailover })},
			{Name: "failback_after", Type: Duration, Default: 10 * time.Minute, Max: 30 * day, Class: Live,
				Doc:   "how long the preferred node must have been stable and in sync",
				field: at(func(s *S) any { return &s.FailbackAfter })},
			{Name: "max_loss", Type: Duration, Max: 30 * day, Class: Live, Example: `"5s"`, Only: &Cond{"site_failover", []string{"automatic"}},
				Doc:   "how old the copy of another site may be that is promoted without an operator: the one way to promote a member outside the in-sync set",
				field: at(func(s *S) any { return &s.MaxLoss })},
			{Name: "approvers", Type: List, Class: Live, Example: `["alice"]`, Doc: "users one of whom must approve a failover", syntax: userSyntax,
				field: at(func(s *S) any { return &s.Approvers })},
			{Name: "requires", Type: List, Class: NextGrant, Example: `["nginx"]`, Doc: "services that must run on the same node", syntax: nameSyntax,
				field: at(func(s *S) any { return &s.Requires })},
			{Name: "apart", Type: List, Class: NextGrant, Example: `["batch"]`, Doc: "services that must not run on the same node", syntax: nameSyntax,
				field: at(func(s *S) any { return &s.Apart })},
			{Name: "same_files", Type: List, Class: Live, Example: `["/etc/nginx/nginx.conf"]`, Doc: "files compared on all nodes", syntax: pathSyntax,
				field: at(func(s *S) any { return &s.SameFiles })},
			{Name: "priority", Type: Int, Default: 100, Max: 1_000_000, Class: Live, Doc: "higher wins",
				field: at(func(s *S) any { return &s.Priority })},
			{Name: "load", Type: Int, Max: 1_000_000, Unit: "% of capacity", Class: Live, Example: "40", Doc: "what it takes of its node's capacity",
				field: at(func(s *S) any { return &s.Load })},
			{Name: "healthy", Type: Count, Default: "all", Values: []string{"all", "any"}, Min: 1, Max: 1000, Class: Live, Doc: "how many of its checks must succeed",
				field: at(func(s *S) any { return &s.Healthy })},
			{Name: "cold_start_wait", Type: Duration, Default: time.Minute, Max: day, Class: Live,
				Doc:   "after a full outage: how long to wait for the previous active, then for an in-sync other",
				field: at(func(s *S) any { return &s.ColdStartWait })},
			{Name: "alone_ack", Type: Word, Default: "disk", Values: []string{"disk", "memory"}, Class: Live,
				Doc:   "when a write is acknowledged while there is no in-sync standby",
				field: at(func(s *S) any { return &s.AloneAck })},
			{Name: "witness_lost", Type: Word, Default: "protect", Values: []string{"protect", "hold"}, Class: Live,
				Doc:   "protect: the active stays without the witness and nobody takes over; hold: never",
				field: at(func(s *S) any { return &s.WitnessLost })},
			{Name: "fence", Type: Word, Default: "none", Values: []string{"none", "try", "required"}, Class: Live, Doc: "power fencing before a takeover",
				field: at(func(s *S) any { return &s.Fence })},
		},
		Blocks: []*Block{
			vipBlock(), volumeBlock(), remoteBlock(), memoryBlock(), processBlock(), checkBlock(),
			{
				Name: "on_failure", Always: true, Class: Live, Doc: "what happens when a process exits or a check fails",
				Keys: onFailureKeys(NeedsStop), done: onFailureDone,
				make: func(parent any) any { return &parent.(*S).OnFailure },
				put:  func(any, string, any) {},
				each: func(parent any, f func(any)) { f(&parent.(*S).OnFailure) },
			},
			hookBlock(),
			alertBlock(func(s *S) *[]cluster.AlertSpec { return &s.Alerts }),
		},
	}
	return listed(b, func(s *cluster.Spec) *[]S { return &s.Services }, func(s *S) *string { return &s.Name })
}

func vipBlock() *Block {
	type V = cluster.VIPSpec
	b := listed(&Block{
		Name: "vip", Label: CIDRLabel, Class: NeedsStop, Doc: "an address that moves with the service, with its network's length",
		Keys: []Key{
			{Name: "interface", Type: String, Class: NeedsStop, Example: `"eth0"`, syntax: interfaceSyntax,
				Doc:   "where the address is put; by default the interface in that network, per node",
				field: at(func(v *V) any { return &v.Interface })},
			{Name: "mac", Type: Word, Default: "own", Values: []string{"own", "virtual"}, Class: NeedsStop, Doc: "answer with the node's own MAC or with one that moves",
				field: at(func(v *V) any { return &v.MAC })},
			{Name: "announce", Type: Word, Default: "start", Values: []string{"start", "ready"}, Class: NeedsStop, Doc: "when the address is announced; ready: after the checks",
				field: at(func(v *V) any { return &v.Announce })},
			{Name: "sites", Type: List, Class: Live, Example: `["paris"]`, Doc: "only at these sites; by default at all", syntax: siteSyntax,
				field: at(func(v *V) any { return &v.Sites })},
		},
	}, func(s *cluster.ServiceSpec) *[]V { return &s.VIPs }, func(*V) *string { return nil })
	b.label = func(v any) string { return v.(*V).Prefix.String() }
	b.name = func(v any, l string) { v.(*V).Prefix, _ = netip.ParsePrefix(l) }
	return b
}

func volumeBlock() *Block {
	type V = cluster.VolumeSpec
	return listed(&Block{
		Name: "volume", Label: NameLabel, Class: NeedsStop, Doc: "a directory tree that is replicated",
		Keys: []Key{
			{Name: "path", Type: String, Required: true, Class: NeedsStop, Example: `"/var/lib/app"`, Doc: "where it is mounted, the same on all nodes", syntax: mountSyntax,
				field: at(func(v *V) any { return &v.Path })},
			{Name: "backing", Type: String, Class: Refused, Example: `"/srv/app-data"`, syntax: mountSyntax,
				Doc: "where the bytes live; by default <parent of path>/.hanode-<base of path>",
				derive: func(v any) string {
					p := v.(*V).Path
					return path.Join(path.Dir(p), ".hanode-"+path.Base(p))
				},
				field: at(func(v *V) any { return &v.Backing })},
			{Name: "mode", Type: Word, Default: "sync", Values: modes, Class: NextGrant, Doc: "what is on the standby when a write is acknowledged",
				field: at(func(v *V) any { return &v.Mode })},
			{Name: "max_lag", Type: Duration, Default: 30 * time.Second, Min: ms, Max: 30 * day, Class: Live, Only: &Cond{"mode", []string{"async"}},
				Doc:   "how far the standby may be behind before an alarm is raised",
				field: at(func(v *V) any { return &v.MaxLag })},
			{Name: "journal_size", Type: Size, Default: gib, Min: 16 << 20, Max: 1 << 44, Class: NeedsStop, Doc: "how much the journal keeps",
				field: at(func(v *V) any { return &v.JournalSize })},
			{Name: "resync_rate", Type: Size, Max: 1 << 44, Unit: "per second; 0: adaptive", Class: Live, Example: `"50MiB"`, Doc: "bound of a resync",
				field: at(func(v *V) any { return &v.ResyncRate })},
		},
	}, func(s *cluster.ServiceSpec) *[]V { return &s.Volumes }, func(v *V) *string { return &v.Name })
}

func remoteBlock() *Block {
	type R = cluster.RemoteSpec
	return listed(&Block{
		Name: "remote", Label: SiteLabel, Class: Live, Doc: "how the service's data go to the members of another site",
		Keys: []Key{
			{Name: "mode", Type: Word, Default: "async", Values: modes, Class: NextGrant, Doc: "what is at that site when a write is acknowledged",
				field: at(func(r *R) any { return &r.Mode })},
			{Name: "max_lag", Type: Duration, Default: 30 * time.Second, Min: ms, Max: 30 * day, Class: Live, Only: &Cond{"mode", []string{"async"}},
				Doc:   "how far the site may be behind before an alarm is raised",
				field: at(func(r *R) any { return &r.MaxLag })},
			{Name: "max_rate", Type: Size, Max: 1 << 44, Unit: "per second; 0: no bound", Class: Live, Example: `"10MiB"`, Doc: "bound of the traffic to the site",
				field: at(func(r *R) any { return &r.MaxRate })},
			{Name: "compress", Type: Bool, Class: Live, Example: "true", Doc: "compress what is sent",
				field: at(func(r *R) any { return &r.Compress })},
		},
	}, func(s *cluster.ServiceSpec) *[]R { return &s.Remotes }, func(r *R) *string { return &r.Site })
}

func memoryBlock() *Block {
	type M = cluster.MemorySpec
	return listed(&Block{
		Name: "memory", Label: NameLabel, Class: NeedsStop, Doc: "a region of application memory that is replicated by checkpoint",
		Keys: []Key{
			{Name: "size", Type: Size, Required: true, Min: 4096, Max: 1 << 40, Class: NeedsStop, Example: `"64MiB"`, Doc: "of the region",
				field: at(func(m *M) any { return &m.Size })},
			{Name: "checkpoint", Type: Word, Default: "sync", Values: []string{"sync", "timed", "async"}, Class: NextGrant,
				Doc:   "sync: the application waits for the standby; timed: every so often; async: it does not wait",
				field: at(func(m *M) any { return &m.Checkpoint })},
			{Name: "every", Type: Duration, Required: true, Min: ms, Max: day, Class: Live, Example: `"100ms"`, Only: &Cond{"checkpoint", []string{"timed"}},
				Doc:   "between two timed checkpoints",
				field: at(func(m *M) any { return &m.Every })},
		},
	}, func(s *cluster.ServiceSpec) *[]M { return &s.Memories }, func(m *M) *string { return &m.Name })
}
