package supervise

import (
	"fmt"
	"log/slog"
	"sync"
	"syscall"

	"github.com/hanode/hanode/cluster"
)

// EventKind says what happened to a process.
type EventKind int

const (
	Started    EventKind = iota + 1 // the program runs
	Ready                           // it serves, by the rule of its spec (started, notify); with ready = checks the checks say it
	Exited                          // it ended by itself
	Restarting                      // it will be started again at RestartAt
	GaveUp                          // it will not be started again; Then says what the spec wants
	Stopped                         // it ended because it was told to, and nothing of it is left
	StopKilled                      // it did not stop in time and was killed
	Promoted                        // it was told that it is active now
)

func (k EventKind) String() string {
	names := [...]string{"", "started", "ready", "exited", "restarting", "gave up", "stopped", "stop killed", "promoted"}
	if k < 1 || int(k) >= len(names) {
		return fmt.Sprintf("event(%d)", int(k))
	}
	return names[k]
}

// Event is one thing that happened to a process.
type Event struct {
	Kind      EventKind
	Service   string
	Process   string
	Role      string // active or standby
	Epoch     cluster.Epoch
	Pid       int
	Code      int            // Exited: exit status, -1 if a signal ended it
	Signal    syscall.Signal // Exited: the signal, 0 if none
	At        cluster.Instant
	RestartAt cluster.Instant // Restarting
	Then      string          // GaveUp: failover, stop or ignore
	Reason    string
}

// maxEvents bounds the queue between the processes and a slow listener; beyond it the oldest is dropped, and that is
// logged.
const maxEvents = 4096

// eventQueue hands events to one listener in their order, without ever making a process wait for it.
type eventQueue struct {
	mu     sync.Mutex
	events []Event
	wake   chan struct{}
	log    *slog.Logger
}

func newEventQueue(log *slog.Logger) *eventQueue {
	return &eventQueue{wake: make(chan struct{}, 1), log: log}
}

func (q *eventQueue) put(e Event) {
	q.mu.Lock()
	if len(q.events) >= maxEvents {
		q.log.Error("an event was dropped: the listener is too slow", "service", e.Service, "event", q.events[0].Kind.String())
		q.events = q.events[1:]
	}
	q.events = append(q.events, e)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// run delivers until done is closed and the queue is empty.
func (q *eventQueue) run(done <-chan struct{}, deliver func(Event)) {
	for {
		q.mu.Lock()
		batch := q.events
		q.events = nil
		q.mu.Unlock()
		for _, e := range batch {
			if deliver != nil {
				deliver(e)
			}
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-q.wake:
		case <-done:
			q.mu.Lock()
			empty := len(q.events) == 0
			q.mu.Unlock()
			if empty {
				return
			}
		}
	}
}
