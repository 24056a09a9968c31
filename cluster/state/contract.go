package state

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

// CheckPause pauses one check of a service, or ends that. A paused check is not run anywhere and condemns nothing.
type CheckPause struct {
	Service string `pb:"1"`
	Check   string `pb:"2"`
	Until   int64  `pb:"3"` // wall clock, ms; 0 ends the pause
	Who     string `pb:"4"`
}

// Approval is an approver's word on the failover of a service whose active in this epoch is lost.
type Approval struct {
	Service string        `pb:"1"`
	Epoch   cluster.Epoch `pb:"2"`
	Yes     bool          `pb:"3"`
	Who     string        `pb:"4"`
	At      int64         `pb:"5"`
}

// Steps of a change of the gossip keyring. Every member must have followed one before the next is proposed.
const (
	KeyAdd  = "add"  // all decrypt with the new key
	KeyUse  = "use"  // all encrypt with it
	KeyDrop = "drop" // nobody decrypts with any other key any more
)

// KeyChange is one step of a rotation of the gossip keys.
type KeyChange struct {
	Step string `pb:"1"`
	Key  []byte `pb:"2"`
}

// maxKeys bounds the ring: a rotation that was left half-way is taken up again, not begun a second time.
const maxKeys = 2

// Needs is the feature level that the cluster must have for a command to be proposed: a member of an older version would halt at it.
func (c *Command) Needs() uint64 {
	if c.CheckPause != nil || c.Approval != nil || c.KeyChange != nil {
		return 2
	}
	return 1
}

// contract applies the commands of this file; false: it is none of them.
func (s *State) contract(index uint64, c *Command) (Outcome, bool) {
	if need := c.Needs(); need > max(1, s.FeatureLevel) {
		return Outcome{Result: lock.Conflict, Text: fmt.Sprintf("this order needs feature level %d and the cluster has %d: when all members run the new version, hanode upgrade finish", need, s.FeatureLevel)}, true
	}
	switch {
	case c.CheckPause != nil:
		return s.checkPause(index, c), true
	case c.Approval != nil:
		return s.approve(index, c), true
	case c.KeyChange != nil:
		return s.keyChange(index, c), true
	}
	return Outcome{}, false
}

func (s *State) checkPause(index uint64, c *Command) Outcome {
	p := *c.CheckPause
	v := s.ServiceByName(p.Service)
	if v == nil {
		return Outcome{Result: lock.Unknown, Text: fmt.Sprintf("there is no service %s", p.Service)}
	}
	spec := s.compiled.Service(p.Service)
	if spec == nil || !slices.ContainsFunc(spec.Checks, func(k cluster.CheckSpec) bool { return k.Name == p.Check }) {
		return Outcome{Result: lock.Unknown, Text: fmt.Sprintf("%s has no check %s", p.Service, p.Check)}
	}
	v.Paused = slices.DeleteFunc(v.Paused, func(k CheckPause) bool { return k.Check == p.Check })
	kind, text := "check-resume", fmt.Sprintf("check %s of %s is run again", p.Check, p.Service)
	if p.Until != 0 {
		v.Paused = append(v.Paused, p)
		kind, text = "check-pause", fmt.Sprintf("check %s of %s is paused", p.Check, p.Service)
	}
	s.event(index, c, kind, p.Service, "info", text+", ordered by "+c.Who)
	return Outcome{Service: v.No}
}

func (s *State) approve(index uint64, c *Command) Outcome {
	a := *c.Approval
	v := s.ServiceByName(a.Service)
	switch {
	case v == nil:
		return Outcome{Result: lock.Unknown, Text: fmt.Sprintf("there is no service %s", a.Service)}
	case v.Lock.Epoch != a.Epoch:
		return Outcome{Result: lock.Conflict, Epoch: v.Lock.Epoch, Text: fmt.Sprintf("%s is in epoch %d by now, and this word is on epoch %d: look at hanode status again", a.Service, v.Lock.Epoch, a.Epoch)}
	}
	v.Approval = &a
	kind, text := "declined", fmt.Sprintf("the failover of %s was declined by %s", a.Service, c.Who)
	if a.Yes {
		kind, text = "approved", fmt.Sprintf("the failover of %s was approved by %s", a.Service, c.Who)
	}
	s.event(index, c, kind, a.Service, "info", text)
	return Outcome{Service: v.No, Epoch: v.Lock.Epoch}
}

// Approved says what an approver has said of the loss of the present active: yes or no, and who; who is "" while nobody has.
func (v *Service) Approved() (yes bool, who string) {
	if v.Approval == nil || v.Approval.Epoch != v.Lock.Epoch {
		return false, ""
	}
	return v.Approval.Yes, v.Approval.Who
}

func (s *State) keyChange(index uint64, c *Command) Outcome {
	k := c.KeyChange
	at := slices.IndexFunc(s.GossipKeys, func(g GossipKey) bool { return bytes.Equal(g.Key, k.Key) })
	switch {
	case k.Step == KeyAdd && len(k.Key) != 32:
		return Outcome{Result: lock.Conflict, Text: fmt.Sprintf("a key of %d bytes: gossip uses 32", len(k.Key))}
	case k.Step == KeyAdd && at < 0 && len(s.GossipKeys) >= maxKeys:
		return Outcome{Result: lock.Conflict, Text: "a change of keys is under way: let it end first"}
	case k.Step == KeyAdd && at < 0:
		s.GossipKeys = append(s.GossipKeys, GossipKey{k.Key})
	case at < 0:
		return Outcome{Result: lock.Unknown, Text: "that key is not in the ring"}
	case k.Step == KeyUse:
		s.GossipKeys[0], s.GossipKeys[at] = s.GossipKeys[at], s.GossipKeys[0]
	case k.Step == KeyDrop && at != 0:
		return Outcome{Result: lock.Conflict, Text: "that key is not the one in use"}
	case k.Step == KeyDrop:
		s.GossipKeys = s.GossipKeys[:1]
	}
	s.event(index, c, "key-"+k.Step, "gossip", "info", "gossip keys: step "+k.Step)
	return Outcome{}
}

// level raises the feature level. One that this version cannot apply is as an unknown command: the member must halt.
func (s *State) level(index uint64, c *Command) (Outcome, bool) {
	want := c.Level.Level
	if want > FeatureLevel {
		return Outcome{}, false
	}
	for i := range s.Members {
		if m := &s.Members[i]; !m.Removed && max(1, m.Level) < want {
			return Outcome{Result: lock.Conflict, Text: fmt.Sprintf("%s runs %s, which knows feature level %d: upgrade it first", m.Name, m.Version, max(1, m.Level))}, true
		}
	}
	if want > s.FeatureLevel {
		s.FeatureLevel = want
		s.event(index, c, "level", fmt.Sprint(want), "info", fmt.Sprintf("the cluster has feature level %d", want))
	}
	return Outcome{}, true
}
