package apitest

import (
	"time"

	"github.com/hanode/hanode/internal/api"
)

// Healthy is the status of two nodes and a witness at Epoch0, with one service.
func Healthy() api.Status {
	link := func(addr string, rtt time.Duration) api.Link {
		return api.Link{Address: addr, RTTMs: api.Ms(rtt), State: "up"}
	}
	two := func(host string) []api.Link {
		return []api.Link{link("10.0.0."+host+":7400", 200*time.Microsecond), link("10.1.0."+host+":7400", 300*time.Microsecond)}
	}
	return api.Status{
		At: api.At(Epoch0), Node: "a", Source: api.SourceLive,
		Cluster: api.Cluster{Name: "shop", ID: "6f1c0a52", Protection: api.Protected, Quorum: true, Votes: api.Votes{Heard: 3, Total: 3, Needed: 2},
			Leader: "w", Profile: "fast", LeaseMs: ms(250), SpecVersion: 14, FeatureLevel: 1},
		Members: []api.Member{
			{Name: "a", Role: "node", Site: "paris", State: api.MemberUp, Vote: true, Version: "1.0.3", Links: two("11"), Advertise: "10.0.0.11:7400"},
			{Name: "b", Role: "node", Site: "paris", State: api.MemberUp, Vote: true, HeardMs: ms(12), Version: "1.0.3", Links: two("12"), Advertise: "10.0.0.12:7400"},
			{Name: "w", Role: "witness", Site: "lyon", State: api.MemberUp, Vote: true, Leader: true, HeardMs: ms(21), Version: "1.0.3",
				Links: []api.Link{link("10.2.0.13:7400", 4100*time.Microsecond)}, Advertise: "10.2.0.13:7400"},
		},
		Services: []api.Service{{
			Name: "db", State: api.StateActive, Run: "active", Protection: api.Protected, IfActiveFails: api.TakesOver("b"),
			Active: "a", Standby: "b", StandbyState: "in-sync", Nodes: []string{"a", "b"}, Epoch: 7, Since: api.At(Epoch0.Add(-50 * time.Hour)),
			LeaseRemainingMs: ms(231), InSync: []string{"a", "b"}, Position: api.Position{Epoch: 7, Generation: 1, Sequence: 88120},
			Identity: []api.Identity{{Address: "10.0.0.50/24", Interface: "ens3", State: "announced"}},
			Volumes: []api.Volume{{Name: "data", Path: "/var/lib/postgresql/15/main", Mode: "sync-on-fsync", Copies: []api.Copy{
				{Member: "a", State: "all"}, {Member: "b", State: "all"}}}},
			Processes: []api.Process{{Name: "postgres", State: "running", PID: 4711}},
			Checks:    []api.Check{{Name: "sql", State: "ok", TookMs: ms(3), From: "a"}},
		}},
	}
}
