package gossip

import (
	"fmt"
	"slices"

	"github.com/hanode/hanode/cluster"
	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist asks and tells.
type delegate struct{ g *Gossip }

// NodeMeta is our health, as every member has it.
func (d *delegate) NodeMeta(limit int) []byte {
	b := d.g.cfg.Health().Encode()
	if len(b) > limit {
		return nil
	}
	return b
}

func (d *delegate) NotifyMsg([]byte)                {}
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState is our node id and what State gives.
func (d *delegate) LocalState(bool) []byte {
	if d.g.cfg.State == nil {
		return nil
	}
	state := d.g.cfg.State()
	if len(state) > MaxState {
		d.g.cfg.Log.Warn("gossip: the state is too long and is not shared", "bytes", len(state), "at_most", MaxState)
		return nil
	}
	return append(slices.Clone(d.g.cfg.NodeID[:]), state...)
}

func (d *delegate) MergeRemoteState(b []byte, _ bool) {
	var from cluster.NodeID
	if d.g.cfg.OnState == nil || len(b) < len(from) || len(b) > len(from)+MaxState {
		return
	}
	copy(from[:], b)
	d.g.cfg.OnState(from, slices.Clone(b[len(from):]))
}

func (d *delegate) NotifyJoin(n *memberlist.Node)   { d.g.note(n, true) }
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.g.note(n, true) }
func (d *delegate) NotifyLeave(n *memberlist.Node)  { d.g.note(n, false) }

// NotifyAlive filters who may be a member at all: the name must be the node id that the address stands for, and one of
// ours. Having this method also makes memberlist drop alive messages with a short version list, which crash it.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	id, err := cluster.ParseNodeID(n.Name)
	if err != nil {
		return err
	}
	if !slices.Equal(n.Addr, addrOf(id).IP) || n.Port != port {
		return fmt.Errorf("%s claims the address of another member", n.Name)
	}
	if id != d.g.cfg.NodeID && !slices.Contains(d.g.cfg.Peers(), id) {
		return fmt.Errorf("%s is not a member of this cluster", n.Name)
	}
	return nil
}
