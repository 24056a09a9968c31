package node

import (
	"sort"

	"github.com/hanode/hanode/failover/agent"
	"github.com/hanode/hanode/failover/supervise"
	"github.com/hanode/hanode/internal/api"
)

// onCheck takes a check's change of state. Checks condemn only after the service has been ready once in this tenure, or after the
// processes' start_timeout.
func (s *service) onCheck(c agent.Status) {
	s.mu.Lock()
	if s.checks == nil {
		s.checks = map[string]agent.Status{}
	}
	s.checks[c.Name] = c
	all := map[string]agent.Status{}
	for k, v := range s.checks {
		all[k] = v
	}
	specs, healthy := s.spec.Checks, s.spec.Healthy
	ready := agent.Ready(all, specs, healthy, s.role())
	failed, why := agent.Failed(all, specs, healthy, s.role())
	judging := s.readyAt != 0 || s.pastStart()
	s.mu.Unlock()
	s.w.log.Info("check", "service", s.name, "check", c.Name, "state", string(c.State), "output", c.Output)
	switch {
	case ready && s.active.Load():
		s.ready("check " + c.Name + " " + string(c.State))
		s.wellAgain()
		s.flush("")
	case failed && judging && s.active.Load():
		s.failed(why, s.spec.OnFailure.Then)
	case ready:
		s.wellAgain()
	}
}

// pastStart says whether the processes have had their time to become ready. Called with mu held.
func (s *service) pastStart() bool {
	if s.openedAt == 0 {
		return false
	}
	for i := range s.spec.Processes {
		if s.w.now().Sub(s.openedAt) < s.spec.Processes[i].StartTimeout {
			return false
		}
	}
	return true
}

// wellAgain ends an illness that a check had reported.
func (s *service) wellAgain() {
	s.mu.Lock()
	ill := s.health.unhealthy != "" && s.health.byCheck
	if ill {
		s.health.unhealthy, s.health.gaveUp, s.health.byCheck = "", "", false
	}
	s.mu.Unlock()
	if ill {
		s.tell()
	}
}

// checkStates is what status shows.
func (s *service) checkStates(from string) []api.Check {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []api.Check
	for _, c := range s.checks {
		out = append(out, api.Check{Name: c.Name, State: string(c.State), Output: c.Output, TookMs: api.Ms(c.Took), From: from})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func (s *service) role() string {
	if s.active.Load() {
		return supervise.Active
	}
	return supervise.Standby
}
