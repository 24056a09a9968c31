package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lease"
	"github.com/hanode/hanode/cluster/link"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/failover/plan"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/core"
)

// backend answers the operator. It reads the core on the loop, and has everything that changes something committed.
type backend struct{ n *Node }

var _ api.Backend = backend{}

func (b backend) Version(context.Context) (*api.Version, error) {
	v := &api.Version{Version: b.n.cfg.Version, Node: b.n.dir.Identity.Name}
	_ = b.n.m.On(func(c *core.Core) { v.FeatureLevel = c.State().FeatureLevel })
	return v, nil
}

func (b backend) Status(ctx context.Context, q api.StatusQuery) (*api.Status, error) {
	st := &api.Status{At: api.At(time.Now()), Node: b.n.dir.Identity.Name, Source: api.SourceLive}
	err := b.n.m.On(func(c *core.Core) { b.status(c, st) })
	if err != nil {
		return nil, api.Errorf(api.CodeFailed, "%v", err)
	}
	if q.Local || !st.Cluster.Quorum {
		st.Source = api.SourceLocal
	}
	b.links(st)
	b.health(st)
	for i := range st.Services {
		b.localService(&st.Services[i])
	}
	if !q.Local {
		b.otherVolumes(ctx, st)
	}
	b.alarms(st)
	return st, nil
}

func (b backend) alarms(st *api.Status) {
	var acks []state.AlarmAck
	_ = b.n.m.On(func(c *core.Core) { acks = append(acks, c.State().Acks...) })
	for _, a := range b.n.standing() {
		out := api.Alarm{Code: a.Code, Severity: a.Severity, Object: a.Object, Since: api.At(a.Since), Text: a.Text, Remedy: a.Remedy}
		for _, k := range acks {
			if k.Code == a.Code && (k.Object == "" || k.Object == a.Object) && k.At >= a.Since.UnixMilli() {
				out.AckedBy = k.Who
			}
		}
		st.Alarms = append(st.Alarms, out)
	}
}

// status runs on the loop.
func (b backend) status(c *core.Core, out *api.Status) {
	s := c.State()
	view := c.View(b.n.m.Now(), time.Now().UnixMilli())
	t := s.Timing()
	out.Cluster = api.Cluster{Name: s.Name, ID: s.ClusterID, Protection: api.Protected, Profile: t.Profile, LeaseMs: api.Ms(t.TTL), SpecVersion: s.Spec.N, FeatureLevel: s.FeatureLevel}
	if n := c.Leader(); n != 0 {
		out.Cluster.Leader = s.MemberName(n)
	}
	heard, total, needed, ok := c.Quorum()
	out.Cluster.Votes = api.Votes{Heard: heard, Total: total, Needed: needed}
	out.Cluster.Quorum = ok
	for i := range s.Members {
		if m := &s.Members[i]; !m.Removed {
			out.Members = append(out.Members, b.member(c, m))
		}
	}
	if !ok {
		out.Cluster.Awaiting = awaiting(c, needed, total)
	}
	for i := range s.Services {
		sv := b.service(c, view, &s.Services[i])
		if worse(sv.Protection, out.Cluster.Protection) {
			out.Cluster.Protection = sv.Protection
		}
		out.Services = append(out.Services, sv)
	}
}

func awaiting(c *core.Core, needed, total int) string {
	var missing []string
	for i := range c.State().Members {
		m := &c.State().Members[i]
		if !m.Removed && c.State().Group.IsVoter(m.No) && m.No != c.Self() && !c.Alive(m.No) {
			missing = append(missing, m.Name)
		}
	}
	return fmt.Sprintf("%s: %d of %d needed", strings.Join(missing, " or "), needed, total)
}

func worse(a, b string) bool {
	rank := map[string]int{api.Protected: 0, api.Degraded: 1, api.Down: 2}
	return rank[a] > rank[b]
}

func (b backend) member(c *core.Core, m *state.Member) api.Member {
	out := api.Member{Name: m.Name, Role: m.Role.String(), Site: m.Site, State: api.MemberUp, Vote: c.State().Group.IsVoter(m.No), Leader: c.Leader() == m.No,
		Version: m.Version, NodeID: m.ID.String()}
	if len(m.Addrs) > 0 {
		out.Advertise = m.Addrs[0]
	}
	age := c.Age(m.No)
	out.HeardMs = api.Ms(age)
	switch {
	case m.No == c.Self():
		out.HeardMs = 0
	case age == plan.Never:
		out.HeardMs, out.State = api.Ms(-time.Millisecond), api.MemberSilent
	case age >= c.State().Timing().Kick:
		out.State = api.MemberSilent
	}
	if out.State == api.MemberUp {
		switch {
		case m.Drained && b.holds(c, m.No):
			out.State = api.MemberDraining
		case m.Drained:
			out.State = api.MemberDrained
		case !out.Vote:
			out.State = api.MemberJoining
		}
	}
	if m.Drained {
		out.Operator = &api.OperatorState{State: "drained", By: m.Who}
	}
	return out
}

func (b backend) holds(c *core.Core, n cluster.MemberNo) bool {
	for i := range c.State().Services {
		if s := &c.State().Services[i]; s.Lock.Holder.Node == n && !s.Stopped {
			return true
		}
	}
	return false
}

// service tells of one service what the log and the beats say.
func (b backend) service(c *core.Core, view *plan.View, s *state.Service) api.Service {
	look, _ := c.Look(view, s.No)
	out := api.Service{Name: s.Name, Epoch: uint64(s.Lock.Epoch), Since: stamp(s.Since)}
	f, o := look.Facts, look.Outlook
	if f == nil || f.Spec == nil {
		return out
	}
	out.Run, out.Nodes = f.Spec.Run, f.Spec.Nodes
	if f.Spec.Run == "everywhere" {
		b.serviceEverywhere(c, view, s, f, &out)
		return out
	}
	h := s.Lock.Holder
	holder := view.Member(h.Node)
	rep := f.Reports[h.Node]
	alive := holder != nil && holder.Inc == h.Inc && !view.Silent(h.Node) && !f.Released && (rep.Serving || rep.Epoch < s.Lock.Epoch)
	out.State = serviceState(s, look, alive)
	if alive && out.State == api.StateActive && !rep.Ready && !rep.Unhealthy {
		out.State = api.StateStarting // its checks have not succeeded yet
	}
	if alive {
		out.Active = c.State().MemberName(h.Node)
		if h.Node == c.Self() && look.Phase == lease.Serving {
			out.LeaseRemainingMs = api.Ms(look.Deadline.Sub(b.n.m.Now()))
		}
	}
	if o.Standby != 0 {
		out.Standby, out.StandbyState = c.State().MemberName(o.Standby), "ready"
		if r, ok := f.Reports[o.Standby]; ok && !r.Ready && f.Spec.Hot() {
			out.StandbyState = "down"
		}
	}
	out.IfActiveFails, out.ProtectionReasons = o.Text, o.Reasons
	_, total, _, quorum := c.Quorum()
	out.Protection = api.Degraded
	switch {
	case out.State == api.StateStopped:
		out.Protection, out.ProtectionReasons, out.IfActiveFails = api.Protected, nil, "-"
	case !alive:
		out.Protection = api.Down
	case total < 3:
		out.ProtectionReasons = append(out.ProtectionReasons, api.ReasonOneVote)
		out.IfActiveFails = api.DownUntil(out.Active)
	case o.Protected && quorum && out.StandbyState == "ready" && out.State == api.StateActive:
		out.Protection = api.Protected
	}
	if out.Protection == api.Degraded && len(out.ProtectionReasons) == 0 {
		out.ProtectionReasons = append(out.ProtectionReasons, api.ReasonNoStandby)
	}
	b.operator(&out, s)
	for _, v := range f.Spec.VIPs {
		out.Identity = append(out.Identity, api.Identity{Address: v.Prefix.String(), Interface: v.Interface, State: map[bool]string{true: "announced", false: "absent"}[alive]})
	}
	if d := c.State().Decision(s.LastMove); d != nil {
		out.LastMove = &api.LastMove{Decision: decisionID(d.ID), Kind: d.Kind, From: d.From, To: d.To, At: stamp(d.At), OutageMs: millisOr(d.OutageMs), ReadyMs: millisOr(d.ReadyMs), Reason: d.Sentence}
	}
	if out.State != api.StateActive {
		out.Note = look.Verdict
	}
	return out
}

func serviceState(s *state.Service, look core.Look, alive bool) string {
	switch {
	case s.Stopped && alive:
		return api.StateStopping
	case s.Stopped:
		return api.StateStopped
	case s.Lock.Held && !alive:
		return api.StateHeld
	case look.Moving, look.Facts != nil && look.Facts.Released && look.Facts.Kind != "stop":
		return api.StateMoving
	case alive:
		return api.StateActive
	case s.Lock.Epoch == 0:
		return api.StateStarting
	}
	return api.StateFailed
}

func (b backend) operator(out *api.Service, s *state.Service) {
	switch {
	case s.Lock.Held:
		out.Operator = &api.OperatorState{State: "held", Reason: s.HeldWhy}
	case s.Stopped:
		out.Operator = &api.OperatorState{State: "stopped", By: s.StoppedBy}
	case s.PausedUntil > time.Now().UnixMilli():
		out.PausedUntil = stamp(s.PausedUntil)
		out.Operator = &api.OperatorState{State: "paused", By: s.PausedBy, Until: stamp(s.PausedUntil)}
	}
}

func millisOr(ms int64) api.Millis {
	if ms == 0 {
		return api.Ms(-time.Millisecond)
	}
	return api.Ms(time.Duration(ms) * time.Millisecond)
}

func stamp(ms int64) api.Time {
	if ms == 0 {
		return api.Time{}
	}
	return api.At(time.UnixMilli(ms))
}

func decisionID(id uint64) string { return "D-" + strconv.FormatUint(id, 10) }

// localService adds what only this node knows: processes and checks.
func (b backend) localService(out *api.Service) {
	for _, s := range b.n.list() {
		if s.name != out.Name {
			continue
		}
		for _, p := range s.procs.Processes() {
			out.Processes = append(out.Processes, api.Process{Name: p.Name, State: p.State, PID: p.PID, Restarts: p.Restarts})
		}
		out.Checks = append(out.Checks, s.checkStates(b.n.dir.Identity.Name)...)
		b.volumesOf(out, s)
	}
}

func (b backend) links(st *api.Status) {
	ls := b.n.m.Mesh().Links()
	for i := range st.Members {
		for _, l := range ls {
			if l.Peer.String() == st.Members[i].NodeID {
				state := "down"
				if l.Up {
					state = "up"
				}
				st.Members[i].Links = append(st.Members[i].Links, api.Link{Address: l.Remote.String(), RTTMs: api.Ms(l.RTT), State: state})
			}
		}
	}
}

func (b backend) Alarms(ctx context.Context) ([]api.Alarm, error) {
	st, err := b.Status(ctx, api.StatusQuery{Local: true})
	if err != nil {
		return nil, err
	}
	return st.Alarms, nil
}

func (b backend) Leader(context.Context) (*api.Leadership, error) {
	out := &api.Leadership{}
	_, _, out.Term = b.n.m.Group().Leader()
	err := b.n.m.On(func(c *core.Core) {
		if n := c.Leader(); n != 0 {
			out.Leader = c.State().MemberName(n)
		}
	})
	return out, err
}

// commit has a command committed and turns what went wrong into words for the operator.
func (b backend) commit(ctx context.Context, cmd *state.Command) (state.Outcome, error) {
	o, err := b.n.m.Commit(ctx, cmd)
	switch {
	case err != nil && errors.Is(err, context.DeadlineExceeded):
		if e := b.noQuorum(); e != nil {
			return o, e
		}
		return o, api.Errorf(api.CodeNoQuorum, "no leader took the order: %v", err)
	case err != nil:
		return o, api.Errorf(api.CodeNoQuorum, "%v", err)
	case o.Err() != nil:
		return o, api.Refusal("refused", o.Err().Error(), "hanode status")
	}
	// Whoever gave an order here sees it done here.
	wait, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	b.n.news.wait(wait, func() bool { return b.n.news.reached(o.Index) })
	return o, nil
}

// noQuorum says why no order can be recorded, and what leads out; nil: a majority is heard.
func (b backend) noQuorum() error {
	var heard, total, needed int
	ok := true
	var silent []string
	if err := b.n.m.On(func(c *core.Core) {
		heard, total, needed, ok = c.Quorum()
		for i := range c.State().Members {
			if m := &c.State().Members[i]; !m.Removed && m.No != c.Self() && !c.Alive(m.No) {
				silent = append(silent, m.Name)
			}
		}
	}); err != nil || ok {
		return nil
	}
	who := strings.Join(silent, " and ")
	return &api.Error{Code: api.CodeNoQuorum, What: "no order can be recorded: there is no quorum", Why: fmt.Sprintf("%d of %d votes are heard and %d are needed: %s cannot be reached", heard, total, needed, who),
		Do: fmt.Sprintf("start %s again; what is gone for good is left behind by: hanode recover --keep %s", who, b.n.dir.Identity.Name)}
}

// serveAPI answers on the operators' socket and to other members.
func (n *Node) serveAPI(ctx context.Context) error {
	srv, err := api.NewServer(api.Config{Backend: backend{n}, Socket: n.cfg.Socket, Group: n.cfg.Group, Log: n.log, Metrics: n.metrics.handler()})
	if err != nil {
		return err
	}
	l := n.m.Mesh().Listener(link.API, func(p link.Peer) bool { return p.Role == cluster.RoleNode })
	done := make(chan error, 1)
	go func() {
		done <- srv.ServeMembers(ctx, l, func(_ context.Context, c net.Conn) (string, error) {
			p, ok := link.PeerOf(c)
			if !ok {
				return "", errors.New("nobody is known at the other end")
			}
			return p.Name, nil
		})
	}()
	err = srv.Run(ctx)
	l.Close()
	return errors.Join(err, <-done)
}
