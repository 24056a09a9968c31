package raft

import (
	"errors"
	"fmt"

	hraft "github.com/hashicorp/raft"
)

// Bootstrap makes a new group in dir: serverID is its first voter, others are voters from the beginning as well (then
// each of them is bootstrapped with the same set). It refuses a directory that has been used.
func Bootstrap(dir, clusterID, serverID string, others ...string) error {
	cfg := Config{Dir: dir, ClusterID: clusterID, ServerID: serverID, Ballast: -1}.withDefaults()
	if dir == "" || clusterID == "" || serverID == "" {
		return errors.New("bootstrap needs a directory, a cluster id and a server id")
	}
	st, err := openDir(cfg)
	if err != nil {
		return err
	}
	defer st.closeFile()
	if err := claim(st, clusterID, serverID); err != nil {
		return err
	}
	snaps, err := openSnapshots(cfg)
	if err != nil {
		return err
	}
	var c hraft.Configuration
	for _, id := range append([]string{serverID}, others...) {
		c.Servers = append(c.Servers, hraft.Server{Suffrage: hraft.Voter, ID: hraft.ServerID(id), Address: hraft.ServerAddress(id)})
	}
	if len(others) > 0 {
		sortServers(c.Servers)
	}
	_, trans := hraft.NewInmemTransport(hraft.ServerAddress(serverID))
	err = hraft.BootstrapCluster(cfg.hashicorp(), st, st, snaps, trans, c)
	if errors.Is(err, hraft.ErrCantBootstrap) {
		return fmt.Errorf("%s holds a Raft log already: it is not made anew; put it aside first if that is wanted", dir)
	}
	if err != nil {
		return fmt.Errorf("bootstrap %s: %w", dir, err)
	}
	return nil
}

// Fork says how Recover makes a group of one out of what one member holds.
type Fork struct {
	Dir          string
	ServerID     string
	OldClusterID string // what the directory belongs to
	NewClusterID string // what it belongs to afterwards; members of the old cluster are refused from then on
	FSM          FSM    // a fresh one; it is spent afterwards
	Command      []byte // applied as the last entry, e.g. ForceFork; may be nil. Voters follows with the same index
}

// Recover rewrites the configuration to this one server and ends the old cluster for this directory. All entries of the
// log count as committed, although some may never have been: it is for a quorum that is lost for good, and the caller
// has made sure that no other member runs. After a crash in the middle it can be repeated.
func Recover(f Fork) error {
	cfg := Config{Dir: f.Dir, ClusterID: f.NewClusterID, ServerID: f.ServerID, FSM: f.FSM, Ballast: -1}.withDefaults()
	if f.NewClusterID == "" || f.NewClusterID == f.OldClusterID || f.FSM == nil {
		return errors.New("recover needs a state machine and a cluster id that differs from the old one")
	}
	st, err := openDir(cfg)
	if err != nil {
		return err
	}
	defer st.closeFile()
	if claim(st, f.NewClusterID, f.ServerID) == nil {
		return nil // done before: the identity is the last thing that is written
	}
	if err := claim(st, f.OldClusterID, f.ServerID); err != nil {
		return err
	}
	snaps, err := openSnapshots(cfg)
	if err != nil {
		return err
	}
	one := hraft.Configuration{Servers: []hraft.Server{{Suffrage: hraft.Voter, ID: hraft.ServerID(f.ServerID), Address: hraft.ServerAddress(f.ServerID)}}}
	m := &machine{fsm: f.FSM, cluster: f.OldClusterID}
	r := &forkReplayer{replayer: replayer{m: m}, logs: st, fork: f, one: one.Servers}
	r.accept = func(clusterID string) bool {
		r.forked = clusterID == f.NewClusterID // by an attempt that did not get to its end
		return r.forked || clusterID == f.OldClusterID
	}
	_, trans := hraft.NewInmemTransport(hraft.ServerAddress(f.ServerID))
	if err := hraft.RecoverCluster(cfg.hashicorp(), r, st, st, snaps, trans, one); err != nil {
		return fmt.Errorf("recover %s: %w", f.Dir, err)
	}
	return st.set(keyIdentity, []byte(f.NewClusterID+"\n"+f.ServerID))
}

// forkReplayer adds the fork to the state just before the snapshot that RecoverCluster makes, and stamps it with the
// new cluster id. It also feeds the state machine the configurations, in their places, which RecoverCluster leaves out.
type forkReplayer struct {
	replayer
	logs   hraft.LogStore
	fork   Fork
	one    []hraft.Server
	forked bool
}

func (r *forkReplayer) Apply(l *hraft.Log) interface{} {
	r.configurations(l.Index)
	return r.replayer.Apply(l)
}

// configurations passes on those between what was seen and before.
func (r *forkReplayer) configurations(before uint64) {
	for i := r.seen + 1; i < before; i++ {
		var l hraft.Log
		if r.logs.GetLog(i, &l) == nil && l.Type == hraft.LogConfiguration {
			r.StoreConfiguration(i, hraft.DecodeConfiguration(l.Data))
		}
	}
}

// Snapshot puts the fork at the index after the last. A later leader uses that one for an entry of its own that no
// state machine sees, so it comes up only once.
func (r *forkReplayer) Snapshot() (hraft.FSMSnapshot, error) {
	last, err := r.logs.LastIndex()
	if err != nil {
		return nil, err
	}
	r.configurations(last + 1)
	if !r.forked {
		index := r.m.applied.Load() + 1
		if r.fork.Command != nil {
			r.m.fsm.Apply(index, r.fork.Command)
		}
		r.m.fsm.Voters(index, r.one)
		r.seen = index
		r.m.advance(index)
	}
	r.m.confIndex.Store(1) // where RecoverCluster puts the configuration
	r.m.cluster = r.fork.NewClusterID
	return r.replayer.Snapshot()
}

func sortServers(s []hraft.Server) {
	for i := 1; i < len(s); i++ {
		for j := i; j > 0 && s[j].ID < s[j-1].ID; j-- {
			s[j], s[j-1] = s[j-1], s[j]
		}
	}
}
