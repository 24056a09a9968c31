package state

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

// Apply applies one command at its index of the log. A refusal changes nothing. The error is ErrUnknownCommand, after which the member
// must halt.
func (s *State) Apply(index uint64, c *Command) (Outcome, error) {
	o, known := s.dispatch(index, c)
	if !known {
		return o, ErrUnknownCommand
	}
	o.Index = index
	s.LogTime = max(s.LogTime, c.At)
	if o.Result == lock.Accepted && c.Decision != nil {
		o.Decision = s.decide(index, c, o)
	}
	return o, nil
}

func (s *State) dispatch(index uint64, c *Command) (Outcome, bool) {
	if o, mine := s.contract(index, c); mine {
		return o, true
	}
	switch {
	case c.Init != nil:
		return s.init(c.Init), true
	case c.MemberAdd != nil:
		return s.memberAdd(index, c), true
	case c.MemberSet != nil:
		return s.memberSet(index, c), true
	case c.MemberRemove != nil:
		return s.memberRemove(index, c), true
	case c.Join != nil:
		return s.join(index, c), true
	case c.TokenCreate != nil:
		return s.tokenCreate(c.TokenCreate), true
	case c.SpecApply != nil:
		return s.specApply(index, c), true
	case c.Desired != nil:
		return s.desired(index, c), true
	case c.Pin != nil:
		s.Pinned = c.Pin.Profile
		s.event(index, c, "profile", c.Pin.Profile, "info", "profile auto chose "+c.Pin.Profile)
		return Outcome{}, true
	case c.AckAlarm != nil:
		return s.ackAlarm(c.AckAlarm), true
	case c.Fork != nil:
		return s.fork(index, c), true
	case c.Settle != nil:
		return s.settle(c.Settle), true
	case c.Level != nil:
		return s.level(index, c)
	case c.Event != nil:
		s.event(index, c, c.Event.Kind, c.Event.Object, c.Event.Severity, c.Event.Text)
		return Outcome{}, true
	case c.Nop != nil:
		return Outcome{}, true
	}
	if o, ok := s.lockCommand(index, c); ok {
		return o, true
	}
	return Outcome{}, c.Decision != nil && len(c.Unknown) == 0
}

func (s *State) lockCommand(index uint64, c *Command) (Outcome, bool) {
	var no cluster.ServiceNo
	var f func(*Service) lock.Result
	switch {
	case c.Grant != nil:
		no, f = c.Grant.Service, func(v *Service) lock.Result { return v.Lock.Grant(&s.Group, c.Grant.Grant) }
	case c.Force != nil:
		no, f = c.Force.Service, func(v *Service) lock.Result { return v.Lock.Force(&s.Group, c.Force.ForceGrant) }
	case c.Bump != nil:
		no, f = c.Bump.Service, func(v *Service) lock.Result { return v.Lock.Bump(c.Bump.Bump) }
	case c.Degrade != nil:
		no, f = c.Degrade.Service, func(v *Service) lock.Result { return v.Lock.Degrade(c.Degrade.Degrade) }
	case c.InSync != nil:
		no, f = c.InSync.Service, func(v *Service) lock.Result { return v.Lock.AddInSync(&s.Group, c.InSync.InSync) }
	case c.Sticky != nil:
		no, f = c.Sticky.Service, func(v *Service) lock.Result { return v.Lock.Stick(c.Sticky.Sticky) }
	case c.Confirm != nil:
		no, f = c.Confirm.Service, func(v *Service) lock.Result { return v.Lock.Confirm(c.Confirm.Confirm) }
	default:
		return Outcome{}, false
	}
	v := s.Service(no)
	if v == nil {
		return Outcome{Result: lock.Unknown, Text: fmt.Sprintf("service number %d is not in the spec", no)}, true
	}
	before := v.Lock.Holder
	o := Outcome{Result: f(v), Service: no, Epoch: v.Lock.Epoch}
	if o.Result == lock.Accepted && (c.Grant != nil || c.Force != nil) {
		s.moved(v, before, index, c)
	}
	return o, true
}

// moved notes when a service was granted, and which automatic failovers it had of late.
func (s *State) moved(v *Service, before lock.Holder, index uint64, c *Command) {
	v.Since = c.At
	if c.Grant != nil && c.Grant.Automatic {
		v.Moves = append(v.Moves, c.At)
		if len(v.Moves) > 32 {
			v.Moves = v.Moves[1:]
		}
	}
	text := fmt.Sprintf("%s is active on %s, epoch %d", v.Name, s.MemberName(v.Lock.Holder.Node), v.Lock.Epoch)
	if before.Node != 0 && before.Node != v.Lock.Holder.Node {
		text = fmt.Sprintf("%s moved from %s to %s, epoch %d", v.Name, s.MemberName(before.Node), s.MemberName(v.Lock.Holder.Node), v.Lock.Epoch)
	}
	s.event(index, c, "granted", v.Name, "info", text)
}

func (s *State) init(c *Init) Outcome {
	if s.ClusterID != "" {
		return Outcome{Result: lock.Conflict, Text: "the cluster exists already"}
	}
	s.ClusterID, s.Name, s.FeatureLevel = c.ClusterID, c.Name, max(1, c.Level)
	s.GossipKeys = []GossipKey{{c.GossipKey}}
	if c.Restored != nil {
		return s.restored(c.Restored)
	}
	return Outcome{}
}

func (s *State) memberAdd(index uint64, c *Command) Outcome {
	m := c.MemberAdd.Member
	replace := ""
	var t *Token
	if len(s.Members) == 0 && len(c.MemberAdd.TokenHash) > 0 {
		return Outcome{Result: lock.Conflict, Text: "the cluster is still being founded: try again in a moment"}
	}
	if len(s.Members) > 0 {
		t = s.token(c.MemberAdd.TokenHash)
		switch {
		case t == nil:
			return Outcome{Result: lock.Unknown, Text: "this token is not known to the cluster: make a new one with hanode token create"}
		case t.Used:
			return Outcome{Result: lock.Conflict, Text: "this token was used already: make a new one with hanode token create"}
		case t.Until < c.At:
			return Outcome{Result: lock.Conflict, Text: "this token has expired: make a new one with hanode token create"}
		case t.Role != m.Role:
			return Outcome{Result: lock.Conflict, Text: fmt.Sprintf("this token is for a %s, not for a %s", t.Role, m.Role)}
		case t.Name != "" && t.Name != m.Name:
			return Outcome{Result: lock.Conflict, Text: fmt.Sprintf("this token is for %s, not for %s", t.Name, m.Name)}
		}
		replace = t.Replace
	}
	if have := s.MemberByName(m.Name); have != nil && have.Name != replace {
		return Outcome{Result: lock.Conflict, Text: fmt.Sprintf("a member named %s exists: choose another name, or make a token with --replace %s", m.Name, m.Name)}
	}
	if have := s.MemberByID(m.ID); have != nil {
		return Outcome{Result: lock.Conflict, Text: fmt.Sprintf("this state directory belongs to %s already", have.Name)}
	}
	if len(s.Members) >= cluster.MaxMembers {
		return Outcome{Result: lock.Conflict, Text: fmt.Sprintf("%d members have joined this cluster in its life and that is the most it can number: make a new cluster", cluster.MaxMembers)}
	}
	if t != nil {
		t.Used = true
	}
	if old := s.MemberByName(replace); old != nil {
		s.remove(old)
	}
	m.No = cluster.MemberNo(len(s.Members) + 1)
	m.Removed, m.Drained = false, false
	s.Members = append(s.Members, m)
	s.refreshVoters()
	s.refreshEligible()
	s.event(index, c, "member-added", m.Name, "info", fmt.Sprintf("%s %s joined", m.Role, m.Name))
	return Outcome{Member: m.No}
}

func (s *State) memberSet(index uint64, c *Command) Outcome {
	m := s.MemberByName(c.MemberSet.Name)
	if m == nil {
		return Outcome{Result: lock.Unknown, Text: fmt.Sprintf("there is no member %s", c.MemberSet.Name)}
	}
	if len(c.MemberSet.Addrs) > 0 {
		m.Addrs = c.MemberSet.Addrs
	}
	if c.MemberSet.Site != "" {
		m.Site = c.MemberSet.Site
	}
	if c.MemberSet.Drain {
		m.Drained, m.Who = true, c.Who
		s.event(index, c, "drained", m.Name, "warn", fmt.Sprintf("%s is drained by %s", m.Name, c.Who))
	}
	if c.MemberSet.Undrain {
		m.Drained, m.Who = false, ""
		s.event(index, c, "undrained", m.Name, "info", fmt.Sprintf("%s may carry services again", m.Name))
	}
	return Outcome{Member: m.No}
}

func (s *State) memberRemove(index uint64, c *Command) Outcome {
	m := s.MemberByName(c.MemberRemove.Name)
	if m == nil {
		return Outcome{Result: lock.Unknown, Text: fmt.Sprintf("there is no member %s", c.MemberRemove.Name)}
	}
	s.remove(m)
	s.event(index, c, "member-removed", m.Name, "warn", m.Name+" was removed")
	return Outcome{Member: m.No}
}

func (s *State) remove(m *Member) {
	m.Removed = true
	s.refreshVoters()
	s.refreshEligible()
}

func (s *State) join(index uint64, c *Command) Outcome {
	m := s.MemberByID(c.Join.ID)
	if m == nil || m.Removed {
		return Outcome{Result: lock.Unknown, Text: "this member is not, or no longer, one of the cluster: join it again with a new token"}
	}
	o := Outcome{Member: m.No, Result: s.Group.Join(m.No, c.Join.Inc, c.Join.Boot)}
	if o.Result != lock.Accepted {
		o.Text = "a newer run of this member was admitted: its state directory was restored from an old copy, or is used twice"
		return o
	}
	m.Version, m.Level = c.Join.Version, c.Join.Level
	for i := range s.Services {
		s.Services[i].Lock.FirstBoot(m.No, c.Join.Boot)
	}
	s.event(index, c, "member-up", m.Name, "info", m.Name+" started")
	return o
}

func (s *State) token(hash []byte) *Token {
	for i := range s.Tokens {
		if bytes.Equal(s.Tokens[i].Hash, hash) {
			return &s.Tokens[i]
		}
	}
	return nil
}

func (s *State) tokenCreate(t *Token) Outcome {
	if t.Replace != "" && s.MemberByName(t.Replace) == nil {
		return Outcome{Result: lock.Unknown, Text: fmt.Sprintf("there is no member %s to replace", t.Replace)}
	}
	if len(s.Members) == 0 {
		return Outcome{Result: lock.Conflict, Text: "the cluster is still being founded: try again in a moment"}
	}
	if len(s.Tokens) >= maxTokens {
		s.Tokens = s.Tokens[1:]
	}
	s.Tokens = append(s.Tokens, *t)
	return Outcome{}
}

// VotersChanged takes note of the servers that vote, from the Raft log, in its order. A set counts from when all its members
// are known.
func (s *State) VotersChanged(serverIDs []string) {
	s.Voters = append([]string(nil), serverIDs...)
	s.refreshVoters()
}

func (s *State) refreshVoters() {
	var set cluster.MemberSet
	for _, id := range s.Voters {
		m := s.memberByServerID(id)
		if m == nil {
			return
		}
		set = set.With(m.No)
	}
	if set != 0 {
		s.Group.SetVoters(set)
	}
}

func (s *State) memberByServerID(id string) *Member {
	for i := range s.Members {
		if s.Members[i].ServerID() == id {
			return &s.Members[i]
		}
	}
	return nil
}

func (s *State) settle(c *Settle) Outcome {
	var all []*lock.Service
	closed := map[*lock.Service][]lock.Promise{}
	for i := range s.Services {
		v := &s.Services[i].Lock
		all = append(all, v)
		for _, cl := range c.Closed {
			if cl.Service == s.Services[i].No && cl.Epoch == v.Epoch {
				closed[v] = cl.Promises
			}
		}
	}
	return Outcome{Result: s.Group.Settle(c.C, all, closed)}
}

func (s *State) ackAlarm(a *AlarmAck) Outcome {
	for i := range s.Acks {
		if s.Acks[i].Code == a.Code && s.Acks[i].Object == a.Object {
			s.Acks[i] = *a
			return Outcome{}
		}
	}
	if len(s.Acks) >= maxEvents {
		s.Acks = s.Acks[1:]
	}
	s.Acks = append(s.Acks, *a)
	return Outcome{}
}

func (s *State) event(index uint64, c *Command, kind, object, severity, text string) {
	s.LastEvent++
	e := Event{ID: s.LastEvent, At: c.At, Kind: kind, Object: object, Text: text, Severity: severity, Index: index}
	if c.Decision != nil {
		e.Decision = c.Decision.ID
		if e.Decision == 0 {
			e.Decision = s.LastDecision + 1
		}
	}
	if len(s.Events) >= maxEvents {
		s.Events = append(s.Events[:0:0], s.Events[len(s.Events)-maxEvents+1:]...)
	}
	s.Events = append(s.Events, e)
}

func joinNames(names []string) string { return strings.Join(names, ", ") }
