package node

import (
	"context"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/supervise"
)

// A service that runs everywhere has no lease, no address and no data: each node of its list runs it for itself, as long as its daemon lives. What it
// says of its health is for the services that require it.

func (s *service) everywhere() bool { return s.spec.Run == "everywhere" }

// serving says whether the processes run here in the role of the active.
func (s *service) serving() bool { return s.active.Load() || s.everywhere() }

// startEverywhere starts it; what runs already is left alone.
func (s *service) startEverywhere(ctx context.Context) {
	if len(s.procs.Processes()) > 0 && s.running() {
		s.up()
		return
	}
	s.life.Add(1)
	s.mu.Lock()
	s.openedAt, s.readyAt, s.zero = s.w.now(), 0, s.w.now()
	s.mu.Unlock()
	if err := s.hook(ctx, "before-start", nil); err != nil {
		s.failed(err.Error(), "ignore")
		return
	}
	if err := s.procs.Start(ctx, supervise.Active, 0); err != nil {
		if ctx.Err() == nil {
			s.failed("the processes could not be started: "+err.Error(), "ignore")
		}
		return
	}
	s.hook(ctx, "after-start", nil)
	s.mu.Lock()
	s.health.up = len(s.spec.Checks) == 0 // else the checks say so
	s.mu.Unlock()
	s.tell()
	if len(s.spec.Checks) == 0 {
		s.ready("processes run")
	}
}

// nowUp notes that the checks of a service that runs everywhere have succeeded.
func (s *service) nowUp() {
	if !s.everywhere() {
		return
	}
	s.mu.Lock()
	was := s.health.up
	s.health.up = true
	s.mu.Unlock()
	if !was {
		s.tell()
	}
}

// againEvery is after how long a service that gave up is started once more where nobody else can take it: one that runs everywhere.
const againEvery = 30 * time.Second

// tryAgain starts a service that runs everywhere once more after it has given up.
func (s *service) tryAgain() {
	if !s.everywhere() || s.w.stopped(s.no) {
		return
	}
	s.mu.Lock()
	due := s.health.gaveUp != "" && !s.health.byCheck && s.health.then != "stop" && time.Since(s.gaveUpAt) >= againEvery
	if due {
		s.gaveUpAt = time.Now()
	}
	s.mu.Unlock()
	if due {
		s.post(orderRestart{"it had given up"})
	}
}

// stopped stops the processes by order of an operator.
func (s *service) stopped(ctx context.Context) {
	if s.running() && len(s.procs.Processes()) > 0 {
		s.hook(ctx, "before-stop", nil)
		defer s.hook(ctx, "after-stop", nil)
	}
	if err := s.procs.Stop(ctx); err != nil {
		s.w.log.Warn("stop the processes", "service", s.name, "err", err)
	}
}

// post hands an order to the service's own goroutine from another one.
func (s *service) post(o any) {
	select {
	case s.orders <- o:
	default:
		s.w.log.Error("a service does not take orders any more", "service", s.name)
	}
}

// condemn follows on a failed check: the processes are restarted as often as on_failure says, then what it says.
func (s *service) condemn(why string, f cluster.OnFailure) {
	if len(s.spec.Processes) == 0 || f.Restarts == 0 {
		s.condemned(why, f.Then)
		return
	}
	now := time.Now()
	s.mu.Lock()
	var late []time.Time
	for _, t := range s.restarts {
		if now.Sub(t) < f.Within {
			late = append(late, t)
		}
	}
	if s.restarted.Load() < s.asked {
		s.mu.Unlock()
		return // one is under way
	}
	n := len(late)
	wait := min(f.Backoff<<min(n, 20), max(f.BackoffMax, f.Backoff))
	again := n < f.Restarts
	if again && n > 0 && now.Sub(late[n-1]) < wait {
		s.mu.Unlock()
		return // the next attempt is not due yet; the checks are judged again in a moment
	}
	if again {
		late = append(late, now)
		s.asked = s.restarted.Load() + 1
	}
	s.restarts = late
	s.mu.Unlock()
	if !again {
		s.condemned(why, f.Then)
		return
	}
	s.step("restart "+ordinal(n+1, f.Restarts)+": "+why, "")
	s.flush("")
	s.post(orderRestart{why})
}
