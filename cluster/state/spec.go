package state

import (
	"fmt"
	"slices"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/lock"
)

func (s *State) specApply(index uint64, c *Command) Outcome {
	a := c.SpecApply
	if a.Base != s.Spec.N {
		return Outcome{Result: lock.Conflict, Version: s.Spec.N,
			Text: fmt.Sprintf("the spec in force is version %d, this change is based on %d: read hanode spec show and apply again", s.Spec.N, a.Base)}
	}
	spec, err := cluster.DecodeSpec(a.Compiled)
	if err != nil {
		return Outcome{Result: lock.Conflict, Text: "the compiled spec cannot be read: " + err.Error()}
	}
	var gone []string
	for i := range s.Services {
		if name := s.Services[i].Name; spec.Service(name) == nil && !slices.Contains(a.Remove, name) {
			gone = append(gone, name)
		}
	}
	if len(gone) > 0 {
		return Outcome{Result: lock.Conflict, Text: fmt.Sprintf("the file is without %s, which exists: name it with --remove to delete it", joinNames(gone))}
	}
	if s.Spec.N > 0 {
		s.Specs = append(s.Specs, s.Spec)
		if len(s.Specs) > maxSpecs {
			s.Specs = s.Specs[1:]
		}
	}
	s.Spec = SpecVersion{N: s.Spec.N + 1, Source: a.Source, Compiled: a.Compiled, Who: c.Who, Reason: c.Reason, At: c.At}
	s.compiled = spec
	s.Services = slices.DeleteFunc(s.Services, func(v Service) bool {
		gone := spec.Service(v.Name) == nil
		if gone {
			s.bury(v)
		}
		return gone
	})
	for i := range spec.Services {
		if s.ServiceByName(spec.Services[i].Name) == nil {
			s.serviceCreate(&spec.Services[i])
		}
	}
	s.refreshEligible()
	s.event(index, c, "spec", fmt.Sprint(s.Spec.N), "info", fmt.Sprintf("spec version %d applied by %s", s.Spec.N, c.Who))
	return Outcome{Version: s.Spec.N}
}

// bury keeps the lock of a deleted service: its last holder may not have heard of that yet.
func (s *State) bury(v Service) {
	if v.Lock.Epoch == 0 {
		return
	}
	if len(s.Gone) >= maxGone {
		s.Gone = append(s.Gone[:0:0], s.Gone[1:]...)
	}
	s.Gone = append(s.Gone, Service{No: v.No, Name: v.Name, Lock: v.Lock})
}

// exhume takes the record of a deleted service of this name. It goes on in the next epoch, held by no run of its last holder's node: a Grant needs
// that node's promise, given when everything is shut, or a majority's.
func (s *State) exhume(name string) (Service, bool) {
	for i := range s.Gone {
		if v := s.Gone[i]; v.Name == name {
			s.Gone = append(s.Gone[:i:i], s.Gone[i+1:]...)
			l := &v.Lock
			l.Epoch, l.Gen = l.Epoch+1, l.Gen+1
			l.Holder.Inc = 0
			l.Held, l.InSync, l.Boots = false, 0, nil // Sticky stays: its last holder may be going on alone, and not have heard of this
			return v, true
		}
	}
	return Service{}, false
}

// serviceCreate makes a new service: in epoch 0, held by nobody. Its data, if it has any, are on the first node of its list.
func (s *State) serviceCreate(spec *cluster.ServiceSpec) {
	v, again := s.exhume(spec.Name)
	if !again {
		s.LastService++
		v = Service{No: cluster.ServiceNo(s.LastService), Name: spec.Name}
	}
	at, _ := slices.BinarySearchFunc(s.Services, v.No, func(x Service, n cluster.ServiceNo) int { return int(x.No) - int(n) })
	s.Services = slices.Insert(s.Services, at, v)
}

// withData makes the in-sync set of a service that has got data: they are where it runs, or else on the first node of its list.
func (s *State) withData(v *Service, spec *cluster.ServiceSpec) {
	n := v.Lock.Holder.Node
	if m := s.MemberByName(firstOf(spec.Nodes)); m != nil && (n == 0 || v.Lock.Holder.Inc == 0) {
		n = m.No
	}
	if n == 0 {
		return // that node has not joined yet
	}
	v.Lock.InSync = cluster.SetOf(n)
	v.Lock.Boots = []lock.MemberBoot{{Node: n, Boot: s.Group.Admission(n).Boot}}
	v.Lock.Gen++
}

func firstOf(l []string) string {
	if len(l) == 0 {
		return ""
	}
	return l[0]
}

// refreshEligible recomputes which members may be granted each service: the nodes of its list that are members.
func (s *State) refreshEligible() {
	if s.compiled == nil {
		return
	}
	for i := range s.Services {
		v := &s.Services[i]
		spec := s.compiled.Service(v.Name)
		if spec == nil {
			continue
		}
		if spec.HasData() && (!v.Lock.Data || v.Lock.InSync == 0) {
			s.withData(v, spec)
		}
		v.Lock.Data = spec.HasData()
		v.Lock.Eligible = 0
		for _, name := range spec.Nodes {
			if m := s.MemberByName(name); m != nil && m.Role == cluster.RoleNode {
				v.Lock.Eligible = v.Lock.Eligible.With(m.No)
			}
		}
	}
}

func (s *State) desired(index uint64, c *Command) Outcome {
	d := c.Desired
	v := s.ServiceByName(d.Service)
	if v == nil {
		return Outcome{Result: lock.Unknown, Text: fmt.Sprintf("there is no service %s", d.Service)}
	}
	text := ""
	switch d.Want {
	case "run":
		v.Stopped, v.StoppedBy = false, ""
		text = fmt.Sprintf("%s is to run", v.Name)
	case "stop":
		v.Stopped, v.StoppedBy = true, c.Who
		text = fmt.Sprintf("%s is to be stopped", v.Name)
	case "restart":
		v.Restarts++
		text = fmt.Sprintf("%s is to be restarted", v.Name)
	case "pause":
		v.PausedUntil, v.PausedBy = d.Until, c.Who
		text = fmt.Sprintf("automatic actions on %s are paused", v.Name)
	case "resume":
		v.PausedUntil, v.PausedBy = 0, ""
		text = fmt.Sprintf("automatic actions on %s are on again", v.Name)
	case "hold":
		v.Lock.Held, v.HeldWhy = true, c.Reason
		text = fmt.Sprintf("%s is held where it is: %s", v.Name, c.Reason)
	case "clear":
		v.Lock.Held, v.HeldWhy, v.Moves = false, "", nil
		text = fmt.Sprintf("%s is no longer held", v.Name)
	default:
		return Outcome{Result: lock.Unknown, Text: fmt.Sprintf("a service cannot be told to %q", d.Want)}
	}
	s.event(index, c, "service-"+d.Want, v.Name, "info", text+", ordered by "+c.Who)
	return Outcome{Service: v.No}
}

// decide records a new decision, or adds to one: steps are appended, what is set replaces what was there.
func (s *State) decide(index uint64, c *Command, o Outcome) uint64 {
	d := *c.Decision
	if have := s.Decision(d.ID); have != nil {
		have.add(d)
		return have.ID
	}
	if d.ID != 0 {
		return 0 // too old: dropped from the state already
	}
	s.LastDecision++
	d.ID, d.Index = s.LastDecision, index
	if d.At == 0 {
		d.At = c.At
	}
	if c.Grant != nil || c.Force != nil {
		d.EpochTo = o.Epoch
		if v := s.Service(o.Service); v != nil {
			v.LastMove = d.ID
		}
	}
	if len(s.Decisions) >= maxDecisions {
		s.Decisions = append(s.Decisions[:0:0], s.Decisions[len(s.Decisions)-maxDecisions+1:]...)
	}
	s.Decisions = append(s.Decisions, d)
	return d.ID
}

// maxSteps bounds the time line of one decision.
const maxSteps = 64

func (d *Decision) add(n Decision) {
	if len(d.Steps)+len(n.Steps) <= maxSteps {
		d.Steps = append(d.Steps, n.Steps...)
		slices.SortStableFunc(d.Steps, func(a, b Step) int { return int(a.Us - b.Us) })
	}
	if n.Sentence != "" {
		d.Sentence = n.Sentence
	}
	if n.Outcome != "" {
		d.Outcome = n.Outcome
	}
	if n.OutageMs != 0 {
		d.OutageMs = n.OutageMs
	}
	if n.ReadyMs != 0 {
		d.ReadyMs = n.ReadyMs
	}
	if n.Lost != "" {
		d.Lost = n.Lost
	}
	if n.EpochTo != 0 {
		d.EpochTo = n.EpochTo
	}
}
