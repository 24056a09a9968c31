package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/volserver"
	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/journal/disk"
	"github.com/hanode/hanode/replication/tree"
)

// askCopies bounds how long one node waits for another one's word on its copies.
const askCopies = 700 * time.Millisecond

// dataOf is what the log says of a service's data.
type dataOf struct {
	no      cluster.ServiceNo
	spec    cluster.ServiceSpec
	inSync  []string
	active  string
	self    string
	selfIn  bool
	epoch   cluster.Epoch
	stopped bool
	names   map[cluster.MemberNo]string
}

func (b backend) dataOf(service string) (d dataOf, err error) {
	found := false
	e := b.n.m.On(func(c *core.Core) {
		st := c.State()
		s := st.ServiceByName(service)
		if s == nil || st.Compiled().Service(service) == nil {
			return
		}
		found = true
		d = describeData(c, st, s)
	})
	switch {
	case e != nil:
		return d, api.Errorf(api.CodeFailed, "%v", e)
	case !found:
		return d, api.Errorf(api.CodeNotFound, "there is no service %s", service)
	case len(d.spec.Volumes) == 0:
		return d, api.Errorf(api.CodeNotFound, "service %s has no volumes", service)
	}
	return d, nil
}

func describeData(c *core.Core, st *state.State, s *state.Service) dataOf {
	d := dataOf{no: s.No, spec: *st.Compiled().Service(s.Name), epoch: s.Lock.Epoch, stopped: s.Stopped, self: st.MemberName(c.Self()), selfIn: s.Lock.InSync.Has(c.Self()),
		names: map[cluster.MemberNo]string{}}
	for i := range st.Members {
		d.names[st.Members[i].No] = st.Members[i].Name
	}
	for _, n := range s.Lock.InSync.List() {
		d.inSync = append(d.inSync, st.MemberName(n))
	}
	if n := s.Lock.Holder.Node; n != 0 {
		d.active = st.MemberName(n)
	}
	return d
}

// volumesOf fills in what this node knows of a service's copies.
func (b backend) volumesOf(out *api.Service, s *service) {
	if s.vol == nil {
		return
	}
	d, err := b.dataOf(s.name)
	if err != nil {
		return
	}
	out.InSync = d.inSync
	st, age, why := s.vol.Status()
	if age > 5*time.Second || why != "" {
		out.Note = orDefault(out.Note, why)
	}
	out.Position = position(st.Pos)
	out.Suspensions.Count = int(st.Suspended)
	var copies []api.Copy
	for _, name := range d.spec.Nodes {
		copies = append(copies, b.copyOf(&d, &st, name))
	}
	for _, r := range st.Replicas {
		out.LagBytes = max(out.LagBytes, r.LagBytes)
	}
	for i := range d.spec.Volumes {
		v := &d.spec.Volumes[i]
		one := api.Volume{Name: v.Name, Path: v.Path, Mode: v.Mode, Copies: copies}
		if i < len(st.Volumes) && st.Volumes[i].Divergent > 0 {
			one.SetAside = append(one.SetAside, api.SetAside{Member: d.self, Operations: int64(st.Volumes[i].Divergent), Do: "hanode volume divergent list " + s.name + "/" + v.Name})
		}
		out.Volumes = append(out.Volumes, one)
	}
	if out.Standby == "" && out.Active != "" {
		for _, c := range copies {
			if c.Member != out.Active {
				out.Standby, out.StandbyState = c.Member, c.State
				break
			}
		}
	} else if out.Standby != "" && out.StandbyState == "ready" && slices.Contains(d.inSync, out.Standby) {
		out.StandbyState = "in-sync"
	}
}

// copyOf words one copy: what the log says, and what the active's server sees or the own one does.
func (b backend) copyOf(d *dataOf, st *volserver.Status, name string) api.Copy {
	c := api.Copy{Member: name, State: "unknown", EtaMs: -1}
	if name == d.active || slices.Contains(d.inSync, name) {
		c.State = "all"
		return c
	}
	var r *volserver.Replica
	for i := range st.Replicas {
		if d.names[st.Replicas[i].Member] == name {
			r = &st.Replicas[i]
		}
	}
	switch {
	case name == d.self && st.Own.Resync != nil:
		r = &st.Own
	case r == nil:
		if st.Role == "active" {
			c.State = "away"
		}
		return c
	}
	if p := r.Resync; p != nil {
		c.State, c.DoneBytes, c.TotalBytes, c.RateBytes = "resync", p.DoneBytes, p.TotalBytes, p.Rate
		if p.Left > 0 {
			c.EtaMs = api.Ms(p.Left)
		}
		return c
	}
	switch {
	case !r.Connected:
		c.State = "away"
	case r.State == "resync":
		c.State = "resync"
	default:
		c.State, c.TotalBytes = "behind", r.LagBytes
	}
	return c
}

func position(p cluster.Position) api.Position {
	return api.Position{Epoch: uint64(p.Epoch), Generation: uint64(p.Gen), Sequence: p.Seq}
}

// otherVolumes asks the other nodes for what only they know: the active of its followers, a follower of its resync.
func (b backend) otherVolumes(ctx context.Context, st *api.Status) {
	for i := range st.Services {
		s := &st.Services[i]
		if len(s.InSync) == 0 && len(s.Volumes) == 0 {
			continue
		}
		self := b.n.dir.Identity.Name
		if s.Active != "" && s.Active != self {
			if o := b.askService(ctx, s.Active, s.Name); o != nil && len(o.Volumes) > 0 {
				s.Volumes, s.Position, s.LagBytes, s.Suspensions = o.Volumes, o.Position, o.LagBytes, o.Suspensions
			}
		}
		for v := range s.Volumes {
			for k := range s.Volumes[v].Copies {
				c := &s.Volumes[v].Copies[k]
				if c.State != "resync" || c.TotalBytes > 0 || c.Member == self {
					continue
				}
				if o := b.askService(ctx, c.Member, s.Name); o != nil && v < len(o.Volumes) && k < len(o.Volumes[v].Copies) && o.Volumes[v].Copies[k].TotalBytes > 0 {
					*c = o.Volumes[v].Copies[k]
				}
			}
		}
	}
}

func (b backend) askService(ctx context.Context, node, service string) *api.Service {
	ctx, cancel := context.WithTimeout(ctx, askCopies)
	defer cancel()
	c, err := b.peer(node)
	if err != nil {
		return nil
	}
	defer c.Close()
	st, err := c.Status(ctx, api.StatusQuery{Local: true})
	if err != nil {
		return nil
	}
	for i := range st.Services {
		if st.Services[i].Name == service {
			return &st.Services[i]
		}
	}
	return nil
}

// peer reaches the daemon of another node.
func (b backend) peer(name string) (*api.Client, error) {
	var id cluster.NodeID
	alive := false
	if err := b.n.m.On(func(c *core.Core) {
		if m := c.State().MemberByName(name); m != nil {
			id, alive = m.ID, c.Alive(m.No)
		}
	}); err != nil {
		return nil, err
	}
	if !alive {
		return nil, fmt.Errorf("%s is not heard", name)
	}
	return api.Forward(name, func(ctx context.Context) (net.Conn, error) { return b.n.m.Dial(ctx, id, link.API) }), nil
}

// Volume looks at a service's volumes, or orders something about them.
func (b backend) Volume(ctx context.Context, r api.VolumeRequest, p api.Progress) (*api.VolumeAnswer, error) {
	if r.Action == api.VolumeAdopt {
		return b.adopt(r)
	}
	d, err := b.dataOf(r.Service)
	if err != nil {
		return nil, err
	}
	if r.Volume != "" && !slices.ContainsFunc(d.spec.Volumes, func(v cluster.VolumeSpec) bool { return v.Name == r.Volume }) {
		return nil, api.Errorf(api.CodeNotFound, "service %s has no volume %s", r.Service, r.Volume)
	}
	if r.Action != api.VolumeStatus && r.Node != "" && r.Node != d.self && r.Via == "" {
		c, err := b.peer(r.Node)
		if err != nil {
			return nil, api.Errorf(api.CodeUnreachable, "%v", err)
		}
		defer c.Close()
		return c.Volume(ctx, r, p)
	}
	out := &api.VolumeAnswer{Action: r.Action, Service: r.Service, InSync: d.inSync, Active: d.active, Plan: r.Plan}
	if r.Action == api.VolumeStatus {
		b.volumeStatus(ctx, &r, &d, out)
		return out, nil
	}
	s := b.n.byNo(d.no)
	if s == nil || s.vol == nil {
		return nil, api.Errorf(api.CodeFailed, "%s is no node of %s", d.self, r.Service)
	}
	return out, b.volumeOrder(ctx, &r, &d, s, out)
}

func (b backend) volumeStatus(ctx context.Context, r *api.VolumeRequest, d *dataOf, out *api.VolumeAnswer) {
	if s := b.n.byNo(d.no); s != nil && s.vol != nil {
		out.Nodes = append(out.Nodes, b.volumeNode(d, s.vol))
	}
	for _, name := range d.spec.Nodes {
		if r.Local || name == d.self {
			continue
		}
		asking, cancel := context.WithTimeout(ctx, askCopies)
		one := api.VolumeNode{Node: name, State: "unknown", Why: "it is not reached"}
		if c, err := b.peer(name); err == nil {
			q := *r
			q.Local = true
			if a, err := c.Volume(asking, q, nil); err == nil && len(a.Nodes) == 1 {
				one = a.Nodes[0]
			}
			c.Close()
		}
		cancel()
		out.Nodes = append(out.Nodes, one)
	}
	slices.SortFunc(out.Nodes, func(x, y api.VolumeNode) int {
		return slices.Index(d.spec.Nodes, x.Node) - slices.Index(d.spec.Nodes, y.Node)
	})
	// What the active sees of a follower stands with the follower.
	for i := range out.Nodes {
		n := &out.Nodes[i]
		if slices.Contains(d.inSync, n.Node) {
			n.State = "all"
		}
	}
}

func (b backend) volumeNode(d *dataOf, v *volumes) api.VolumeNode {
	st, age, why := v.Status()
	n := api.VolumeNode{Node: d.self, Role: st.Role, State: "unknown", Why: why, Position: position(st.Pos), Durable: st.Durable, Applied: st.Applied, Suspended: st.Suspended, Alone: st.Alone}
	if age > 5*time.Second && why == "" {
		n.Why = "its volume server has not answered for " + age.Round(time.Second).String()
	}
	if st.Inconsistent != "" {
		n.Why = st.Inconsistent
	}
	n.Copy = b.copyOf(d, &st, d.self)
	n.State = n.Copy.State
	if n.State == "unknown" && st.Role == "standby" {
		n.State = "behind"
	}
	for _, r := range st.Replicas {
		n.LagBytes, n.LagOperations = max(n.LagBytes, r.LagBytes), max(n.LagOperations, r.LagOps)
		n.WaitingMs = max(n.WaitingMs, api.Ms(time.Duration(r.WaitingMs)*time.Millisecond))
	}
	for _, x := range st.Volumes {
		n.Volumes = append(n.Volumes, api.VolumeOne{Name: x.Name, Path: x.Path, Backing: x.Backing, Mode: x.Mode, Mounted: x.Mounted, Files: x.Files, FreeBytes: x.FreeBytes, Operations: x.Ops,
			WriteBytes: x.WriteBytes, AckP50Us: x.AckP50Us, AckP99Us: x.AckP99Us, SetAside: x.Divergent})
	}
	return n
}

// refused is a refusal for safety.
func refused(what, why, do string) error {
	return &api.Error{Code: api.CodeRefused, What: what, Why: why, Do: do}
}

func (b backend) volumeOrder(ctx context.Context, r *api.VolumeRequest, d *dataOf, s *service, out *api.VolumeAnswer) error {
	if strings.HasPrefix(r.Action, api.VolumeDivergent) {
		return divergentOrder(ctx, r, s, out)
	}
	name := r.Service
	what := fmt.Sprintf("volume %s of %s on %s refused", r.Action, name, d.self)
	if d.active == d.self && s.active.Load() {
		return refused(what, d.self+" is the active: its copy is the one that counts", "name the node whose copy is meant: --node NAME")
	}
	changes := r.Action == api.VolumeResync || r.Action == api.VolumeReplace
	if changes && d.selfIn {
		return refused(what, "this copy is in sync, and would be missing for the next failure", "stop the node's copy first (hanode volume disconnect "+name+" --node "+d.self+"), wait until it is no longer in sync, and order it again")
	}
	switch r.Action {
	case api.VolumeResync:
		out.Text = append(out.Text, "the copy on "+d.self+" is compared with the active's from end to end; only what differs crosses")
		if r.Plan {
			return nil
		}
		return s.vol.distrust(ctx, "a comparison of all content was ordered")
	case api.VolumeReplace:
		out.Text = append(out.Text, "the backing directories that are missing on "+d.self+" are made anew and filled from the active")
		if r.Plan {
			return nil
		}
		return s.vol.forget()
	case api.VolumeDisconnect, api.VolumeConnect:
		off := r.Action == api.VolumeDisconnect
		if off {
			out.Text = append(out.Text, "the copy on "+d.self+" follows no more, and "+name+" is degraded until hanode volume connect "+name+" --node "+d.self)
		} else {
			out.Text = append(out.Text, "the copy on "+d.self+" follows again")
		}
		if r.Plan {
			return nil
		}
		return s.vol.disconnect(off)
	}
	return api.Errorf(api.CodeUsage, "a volume cannot be told to %q", r.Action)
}

// divergentOrder is about what was set aside from this node's copy.
func divergentOrder(ctx context.Context, r *api.VolumeRequest, s *service, out *api.VolumeAnswer) error {
	if r.Plan && r.Action != api.VolumeDivergent && r.Action != api.VolumeDiff {
		out.Text = append(out.Text, map[string]string{api.VolumeRestore: r.File + " of set " + r.Set + " is written to " + r.Dir,
			api.VolumeDiscard: "set " + r.Set + " is removed for good"}[r.Action])
		return nil
	}
	args, err := json.Marshal(map[string]string{"set": r.Set, "file": r.File, "to": r.Dir})
	if err != nil {
		return err
	}
	out.Report, err = s.vol.Order(ctx, volserver.Order{What: r.Action, Args: args})
	if err != nil {
		return api.Errorf(api.CodeFailed, "%v", err)
	}
	return nil
}

// adopt makes an existing directory the backing of a volume that is about to be in the spec: by a rename, nothing is copied.
func (b backend) adopt(r api.VolumeRequest) (*api.VolumeAnswer, error) {
	if r.Dir == "" || r.Volume == "" {
		return nil, api.Errorf(api.CodeUsage, "adopt wants SERVICE/VOLUME and --from DIR, the directory that becomes the volume and its mount point")
	}
	backing := path.Join(path.Dir(r.Dir), ".hanode-"+path.Base(r.Dir))
	number := uint8(1)
	if d, err := b.dataOf(r.Service); err == nil {
		if i := slices.IndexFunc(d.spec.Volumes, func(v cluster.VolumeSpec) bool { return v.Name == r.Volume }); i >= 0 {
			if d.epoch > 0 || !d.stopped {
				return nil, refused("adopt of "+r.Dir+" refused", r.Service+" has this volume already", "hanode volume status "+r.Service)
			}
			number, backing = uint8(i+1), d.spec.Volumes[i].Backing
		}
	}
	id := b.n.dir.Identity.ClusterID
	h := journal.Header{Cluster: id, Service: r.Service, Volume: r.Volume, Number: number}
	rep, err := tree.Adopt(tree.Adoption{From: r.Dir, Backing: backing, Plan: r.Plan, Header: func(dir string) error {
		if number == 1 {
			if err := journal.StoreState(disk.OS{}, dir, journal.State{Cluster: id, Clean: true, Boot: bootID(), NextID: 0}); err != nil {
				return err
			}
		}
		return journal.WriteHeader(disk.OS{}, dir, h)
	}})
	if err != nil {
		return nil, refused("adopt of "+r.Dir+" refused", err.Error(), "mend that and order it again")
	}
	out := &api.VolumeAnswer{Action: r.Action, Service: r.Service, Plan: r.Plan}
	out.Text = append(out.Text, fmt.Sprintf("%s with %d files and %d directories becomes %s/tree; nothing is copied", r.Dir, rep.Files, rep.Dirs, backing))
	for _, l := range rep.Leaving {
		out.Text = append(out.Text, fmt.Sprintf("the link %s leads to %s, which is not replicated with it", l.Path, l.Target))
		if l.Block != "" {
			out.Text = append(out.Text, l.Block)
		}
	}
	out.Next = append(out.Next, fmt.Sprintf("put  volume %q { path = %q }  into service %q, with this node first in its list, and hanode apply", r.Volume, r.Dir, r.Service))
	return out, nil
}
