package node

import (
	"context"
	"sort"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/agent"
	"github.com/hanode/hanode/failover/supervise"
	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/rt"
)

// onCheck takes a check's change of state.
func (s *service) onCheck(c agent.Status) {
	s.w.log.Info("check", "service", s.name, "check", c.Name, "state", string(c.State), "output", c.Output)
	s.mu.Lock()
	if s.checks == nil {
		s.checks = map[string]agent.Status{}
	}
	s.checks[c.Name] = c
	s.mu.Unlock()
	s.judge("check " + c.Name + " " + string(c.State))
}

// judgeEvery is how often the checks are judged even if none has changed: the time to become ready may have ended meanwhile.
const judgeEvery = 500 * time.Millisecond

// keepJudging judges from time to time, until ctx ends.
func (s *service) keepJudging(ctx context.Context) {
	t := rt.NewTicker(judgeEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			t.Next()
			s.judge("checks ok")
			s.tryAgain()
		}
	}
}

// judge decides what the checks say of the service. They condemn only after it has been ready once in this tenure, or after the
// processes' start_timeout.
func (s *service) judge(news string) {
	s.mu.Lock()
	all := map[string]agent.Status{}
	for k, v := range s.checks {
		all[k] = v
	}
	specs, healthy := s.unpaused(), s.spec.Healthy
	ready := agent.Ready(all, specs, healthy, s.role())
	failed, why := agent.Failed(all, specs, healthy, s.role())
	judging := s.readyAt != 0 || s.pastStart()
	ill := s.health.unhealthy != ""
	s.mu.Unlock()
	active := s.serving()
	switch {
	case ready && active:
		s.ready(news)
		s.nowUp()
		s.wellAgain()
		s.flush("")
	case ready:
		s.wellAgain()
	case failed && judging && active && !ill:
		s.condemn(why, s.after(all))
	}
}

// after is what is to follow on the failure: what the failed check itself says, else what the service says.
func (s *service) after(all map[string]agent.Status) cluster.OnFailure {
	for i := range s.spec.Checks {
		c := &s.spec.Checks[i]
		if c.OnFailure != nil && all[c.Name].State == agent.StateFailed {
			return *c.OnFailure
		}
	}
	return s.spec.OnFailure
}

// condemned notes that checks have failed for good.
func (s *service) condemned(why, then string) {
	s.mu.Lock()
	s.health.byCheck = true
	s.mu.Unlock()
	s.failed(why, then)
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
	for i := range s.spec.Checks {
		if name := s.spec.Checks[i].Name; s.checkPaused(name) {
			out = append(out, api.Check{Name: name, State: "paused", Output: "not run, by order of an operator", From: from})
		}
	}
	for _, c := range s.checks {
		if s.checkPaused(c.Name) {
			continue
		}
		out = append(out, api.Check{Name: c.Name, State: string(c.State), Output: c.Output, TookMs: api.Ms(c.Took), From: from})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func (s *service) role() string {
	if s.serving() {
		return supervise.Active
	}
	return supervise.Standby
}
