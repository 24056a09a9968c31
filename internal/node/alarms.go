package node

import (
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/raft"
	"github.com/hanode/hanode/cluster/state"
	"github.com/hanode/hanode/failover/notify"
	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/netid/vip"
)

// alarm is one thing that somebody must look at, on this node.
type alarm struct {
	Code, Object, Severity, Text, Remedy string
	Since                                time.Time
	Last                                 time.Time // when it was raised last
}

// maxAlarms bounds what a node remembers; beyond it new ones are only logged.
const maxAlarms = 256

// alarms are those that stand on this node.
type alarms struct {
	mu  sync.Mutex
	all map[[2]string]alarm
}

// raise sets an alarm, or renews its text.
func (n *Node) raise(code, object, severity, text, remedy string) {
	n.alarms.mu.Lock()
	defer n.alarms.mu.Unlock()
	k := [2]string{code, object}
	a, have := n.alarms.all[k]
	if !have {
		if len(n.alarms.all) >= maxAlarms {
			n.log.Error("too many alarms to remember one more", "code", code, "object", object, "text", text)
			return
		}
		n.log.Warn(text, "alarm", code, "object", object, "do", remedy)
		a.Since = time.Now()
	}
	a.Code, a.Object, a.Severity, a.Text, a.Remedy, a.Last = code, object, severity, text, remedy, time.Now()
	if n.alarms.all == nil {
		n.alarms.all = map[[2]string]alarm{}
	}
	n.alarms.all[k] = a
	n.alerts.Raise(notify.Alarm{Code: code, Object: object, Severity: severity, Text: text, Remedy: remedy, Since: a.Since})
}

// clear ends an alarm.
func (n *Node) clear(code, object string) {
	n.alarms.mu.Lock()
	defer n.alarms.mu.Unlock()
	k := [2]string{code, object}
	if _, have := n.alarms.all[k]; have {
		n.log.Info("alarm over", "alarm", code, "object", object)
		delete(n.alarms.all, k)
		n.alerts.Clear(code, object)
	}
}

// standing lists the alarms, the oldest first.
func (n *Node) standing() []alarm {
	n.alarms.mu.Lock()
	defer n.alarms.mu.Unlock()
	var out []alarm
	for k, a := range n.alarms.all {
		if a.Code == duplicate && time.Since(a.Last) > duplicateLasts {
			delete(n.alarms.all, k)
			n.alerts.Clear(a.Code, a.Object)
			continue
		}
		out = append(out, a)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Since.Before(out[j].Since) })
	return out
}

func (n *Node) alarm(a core.Alarm) {
	if a.Clear {
		n.clear(a.Code, a.Object)
		return
	}
	n.raise(a.Code, a.Object, a.Severity, a.Text, a.Remedy)
}

func (n *Node) onRaftAlarm(a raft.Alarm) {
	name := n.dir.Identity.Name
	switch a.Kind {
	case raft.AlarmRecovered:
		n.clear(string(raft.AlarmStalled), name)
		n.clear(string(raft.AlarmHopeless), name)
	case raft.AlarmHopeless:
		n.raise(string(a.Kind), name, "crit", a.Text, "the services are handed over and this daemon ends: look at the disk of the state directory")
		n.hopeless()
	default:
		n.raise(string(a.Kind), name, "warn", a.Text, "look at the disk of the state directory")
	}
}

// noteMove raises an alarm for each automatic failover, until somebody acknowledges it. It runs on the loop.
func (n *Node) noteMove(cmd *state.Command, o state.Outcome) {
	if o.Err() != nil {
		return
	}
	if a := cmd.AckAlarm; a != nil && a.Code == failedOver {
		n.clear(a.Code, a.Object)
		for _, s := range n.list() {
			if a.Object == "" {
				n.clear(a.Code, s.name)
			}
		}
	}
	if cmd.Grant != nil && cmd.Grant.Automatic && cmd.Decision != nil && n.m.Now().Sub(n.begun) > settleTime {
		d := cmd.Decision
		n.raise(failedOver, d.Service, "warn", fmt.Sprintf("%s was moved from %s to %s by itself: %s", d.Service, d.From, d.To, d.Sentence),
			fmt.Sprintf("read hanode explain D-%d, then hanode alarm ack %s", o.Decision, failedOver))
	}
}

// failedOver is the alarm that a service was moved by itself. What the log replays at a start is no news.
const (
	failedOver = "failed-over"
	settleTime = 10 * time.Second
)

// watchMembers raises an alarm for each silent node and for a lost quorum.
func (n *Node) watchMembers() {
	silent := map[string]bool{}
	quorum, awaits := true, ""
	_ = n.m.On(func(c *core.Core) {
		var needed, total int
		_, total, needed, quorum = c.Quorum()
		quorum = quorum || total == 0
		awaits = awaiting(c, needed, total)
		for i := range c.State().Members {
			if m := &c.State().Members[i]; m.Role == cluster.RoleNode && !m.Removed {
				silent[m.Name] = m.No != c.Self() && c.Age(m.No) >= witnessGone
			}
		}
	})
	for name, yes := range silent {
		if yes {
			n.raise("node-silent", name, "warn", "the node "+name+" is heard by nobody", "look at "+name+" and its network; if it is gone for good: hanode member replace "+name)
		}
	}
	for _, a := range n.standing() {
		if a.Code == "node-silent" && !silent[a.Object] {
			n.clear(a.Code, a.Object)
		}
	}
	if quorum {
		n.clear("no-quorum", n.dir.Identity.Cluster)
	} else {
		n.raise("no-quorum", n.dir.Identity.Cluster, "crit", "the voters that are heard here are no majority: nothing can be decided", "waiting for "+awaits)
	}
}

// witnessGone is how long a witness must have been silent for the alarm: as long as the active waits until it goes on without it.
const witnessGone = 5 * time.Second

// watchWitness raises an alarm for each voting witness that nobody has heard for long: the next failure is not survived.
func (n *Node) watchWitness() {
	gone := map[string]bool{}
	_ = n.m.On(func(c *core.Core) {
		for i := range c.State().Members {
			m := &c.State().Members[i]
			if m.Role == cluster.RoleWitness && c.State().Group.IsVoter(m.No) {
				gone[m.Name] = !m.Removed && c.Age(m.No) >= witnessGone
			}
		}
	})
	for name, silent := range gone {
		if silent {
			n.raise("witness-lost", name, "crit", "the witness "+name+" is heard by nobody: without it the next failure stops the services", "look at "+name+" and its network; if it is gone for good: hanode member replace "+name)
		}
	}
	for _, a := range n.standing() {
		if a.Code == "witness-lost" && !gone[a.Object] {
			n.clear(a.Code, a.Object)
		}
	}
}

// watchHeld raises an alarm for each service that is held: nothing moves it until an operator says so.
func (n *Node) watchHeld() {
	held := map[string]string{}
	_ = n.m.On(func(c *core.Core) {
		for i := range c.State().Services {
			if s := &c.State().Services[i]; s.Lock.Held {
				held[s.Name] = s.HeldWhy
			}
		}
	})
	for name, why := range held {
		n.raise("held", name, "crit", name+" is held: "+why, "find out why it failed so often, then hanode service clear "+name)
	}
	for _, a := range n.standing() {
		if a.Code == "held" && held[a.Object] == "" {
			n.clear(a.Code, a.Object)
		}
	}
}

// A duplicate address is over when it has not been seen for this long.
const (
	duplicate      = "duplicate-address"
	duplicateLasts = time.Minute
)

func (n *Node) onVIP(e vip.Event) {
	switch e.Kind {
	case vip.Duplicate:
		if s := n.byNo(e.Service); s == nil || !s.active.Load() {
			return // the next active has it already, and here it is on its way out, behind a shut gate
		}
		n.raise(duplicate, e.Prefix.Addr().String(), "crit", e.String(), "find the machine with this MAC and take the address away from it")
	default:
		n.log.Warn(e.String(), "interface", e.Interface, "address", e.Prefix.String())
	}
}
