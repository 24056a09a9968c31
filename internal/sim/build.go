package sim

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/state"
)

// specState is the spec as the operators last wrote it.
type specState struct {
	spec    cluster.Spec
	removed []string
	adding  []*host // members whose MemberAdd is under way
}

// build founds a cluster: its members, its first log, its spec.
func (w *world) build() {
	w.wan = w.chance(6)
	w.buggify = !w.chance(3)
	w.quiet = w.chance(5)
	sizes := [][2]int{{2, 1}, {2, 1}, {2, 1}, {2, 1}, {2, 3}, {3, 2}, {3, 0}, {3, 1}}
	size := sizes[w.rng.IntN(len(sizes))]
	for i := range size[0] + size[1] {
		h := w.newHost(string(rune('a'+i)), cluster.RoleNode)
		if i >= size[0] {
			h.name, h.role = fmt.Sprintf("w%d", i-size[0]+1), cluster.RoleWitness
		}
		w.hosts = append(w.hosts, h)
	}
	w.growLinks()
	w.enter(&state.Command{Init: &state.Init{ClusterID: "5e", Name: "sim", Level: state.FeatureLevel}})
	w.enter(&state.Command{MemberAdd: &state.MemberAdd{Member: w.hosts[0].member()}}) // the founder needs no token
	for i, h := range w.hosts[1:] {
		hash := []byte{byte(i)}
		w.enter(&state.Command{TokenCreate: &state.Token{Hash: hash, Role: h.role, Until: 1 << 60}})
		w.enter(&state.Command{MemberAdd: &state.MemberAdd{Member: h.member(), TokenHash: hash}})
	}
	n := len(w.hosts)
	if w.chance(4) {
		n = 1
	} else if n%2 == 0 {
		n--
	}
	first := entry{}
	for i := range n {
		first.voters = append(first.voters, w.hosts[i].serverID())
		first.hosts = append(first.hosts, i)
	}
	w.raft.log = append(w.raft.log, first)
	w.raft.voters = first.hosts
	w.firstSpec(size[0])
	for _, h := range w.hosts {
		h.raft.stored = len(w.raft.log)
		h.start()
	}
	w.after(0, w.raftLoop)
	w.after(time.Second, w.roster)
	w.after(w.between(time.Second, 3*time.Second), w.nemesis)
	w.after(w.between(2*time.Second, 4*time.Second), w.operator)
	w.after(time.Second, w.volumeLoop)
}

func (w *world) newHost(name string, role cluster.Role) *host {
	h := &host{w: w, i: len(w.hosts), name: name, role: role, raft: part{leader: -1}}
	binary.BigEndian.PutUint64(h.id[:], w.rng.Uint64())
	h.wallOff = w.rng.Int64N(2000) - 1000
	h.reboot()
	return h
}

func (h *host) member() state.Member {
	return state.Member{ID: h.id, Name: h.name, Role: h.role, Site: "default", Addrs: []string{"192.0.2.1:7400"}}
}

// enter puts a command into the log that all members start with.
func (w *world) enter(c *state.Command) {
	c.At, c.Who = 1_700_000_000_000, "operator"
	w.raft.log = append(w.raft.log, entry{data: c.Encode()})
}

func (w *world) firstSpec(nodes int) {
	s := &w.specs.spec
	s.Profile = []string{"fast", "normal", "normal", "wan"}[w.rng.IntN(4)]
	if w.wan && s.Profile == "fast" {
		s.Profile = "normal"
	}
	s.MaxFailovers, s.FailoversWithin = 3, 20*time.Second
	if w.chance(2) {
		s.MaxFailovers = 1000
	}
	for i := range 1 + w.rng.IntN(2) {
		s.Services = append(s.Services, w.newService([]string{"web", "db"}[i], nodes))
	}
	w.enter(w.specCommand(0))
}

func (w *world) newService(name string, nodes int) cluster.ServiceSpec {
	s := cluster.ServiceSpec{Name: name, Run: "active", Failover: "automatic", Failback: "manual", FailbackAfter: 3 * time.Second, ColdStartWait: 6 * time.Second,
		WitnessLost: "protect"}
	for i := range nodes {
		s.Nodes = append(s.Nodes, w.hosts[i].name)
	}
	if w.chance(2) {
		s.Nodes[0], s.Nodes[1] = s.Nodes[1], s.Nodes[0]
	}
	if w.chance(2) {
		s.Volumes = []cluster.VolumeSpec{{Name: "data"}}
	}
	if w.chance(4) {
		s.Failback = "automatic"
	}
	if w.chance(8) {
		s.Failover = "manual"
	}
	if w.chance(8) {
		s.WitnessLost = "hold"
	}
	if w.o.Seed%7 == 3 { // two of them are too much for one node, and the one called web is worth more
		s.Load, s.Priority, s.Volumes = 60, 50, nil
		if name == "web" {
			s.Priority = 100
		}
	}
	return s
}

func (w *world) specCommand(base uint64) *state.Command {
	b, err := w.specs.spec.Encode()
	if err != nil {
		w.fail("encode the spec: %v", err)
	}
	return &state.Command{Who: "operator", SpecApply: &state.SpecApply{Base: base, Compiled: b, Remove: w.specs.removed}}
}
