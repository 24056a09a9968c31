package region

import (
	"errors"
	"fmt"

	"github.com/hanode/hanode/replication/memory/wire"
)

// Errors that callers may want to tell apart, with errors.Is. The error itself is a sentence that names region and remedy.
var (
	ErrFenced  = errors.New("this process may not act")                   // fenced, standby, or the lease is over: end, or wait to be active
	ErrBusy    = errors.New("the region belongs to another process")      // or too much is under way
	ErrLayout  = errors.New("the region has another layout version")      // see Options.Layout
	ErrTooBig  = errors.New("the size is not allowed")                    // see the spec
	ErrUnknown = errors.New("there is no such region")                    // see the spec
	ErrForeign = errors.New("this process is not one of the service")     // user or cgroup
	ErrLogFull = errors.New("the message log is full")                    // make a checkpoint
	ErrAway    = errors.New("the server of the service's memory is away") // the memory stands; the library connects again by itself
)

var kinds = map[wire.Status]error{wire.NotActive: ErrFenced, wire.Busy: ErrBusy, wire.Layout: ErrLayout, wire.TooBig: ErrTooBig, wire.Unknown: ErrUnknown,
	wire.Foreign: ErrForeign, wire.LogFull: ErrLogFull, wire.Ended: ErrAway}

// answerError is an answer that is not OK.
type answerError struct {
	status wire.Status
	text   string
}

func (e *answerError) Error() string { return e.text }

func (e *answerError) Unwrap() error { return kinds[e.status] }

func away(service string, err error) error {
	return fmt.Errorf("service %s: %w: %w", service, ErrAway, err)
}
