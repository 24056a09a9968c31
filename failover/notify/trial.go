package notify

import (
	"context"
	"fmt"
	"sync"
)

// Trial is what came of telling one alert.
type Trial struct {
	Alert string
	Err   error
}

// Test tells an alarm that does not stand to one alert, or to all that there are (""), now, whatever their severity; and then that it is over. It
// answers for each what came of it; none at all means that there is no such alert.
func (n *Notifier) Test(ctx context.Context, name string, a Alarm) []Trial {
	n.mu.Lock()
	var jobs []Job
	for i := range n.desk.alerts {
		if al := &n.desk.alerts[i]; name == "" || al.id() == name {
			jobs = append(jobs, Job{Alert: al.id(), Argv: al.spec.Argv, State: Raised, Alarm: a})
		}
	}
	n.mu.Unlock()
	out := make([]Trial, len(jobs))
	var wg sync.WaitGroup
	for i, j := range jobs {
		wg.Go(func() {
			out[i] = Trial{Alert: j.Alert}
			for _, j.State = range []string{Raised, Over} {
				if out[i].Err = n.tellOne(ctx, &j); out[i].Err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return out
}

func (n *Notifier) tellOne(ctx context.Context, j *Job) error {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	env, input := message(&n.cfg, j)
	if err := n.cfg.Exec(ctx, j.Argv, env, input); err != nil {
		return fmt.Errorf("%s: %w", j.State, err)
	}
	return nil
}
