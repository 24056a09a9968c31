package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Code says what kind of error it is. Each has one exit status of the command and one status of HTTP.
type Code string

const (
	CodeFailed      Code = "failed"      // exit 1
	CodeUsage       Code = "usage"       // exit 2: wrong usage
	CodeInvalid     Code = "invalid"     // exit 2: invalid spec; see Problems
	CodeNotFound    Code = "not-found"   // exit 2: no such service, member, decision, version
	CodeRefused     Code = "refused"     // exit 3: for safety
	CodeMoved       Code = "moved"       // exit 3: the state that the order rests on is not the present one
	CodeDenied      Code = "denied"      // exit 3: this user may not
	CodeNoQuorum    Code = "no-quorum"   // exit 4
	CodeUnreachable Code = "unreachable" // exit 4
	CodeTimeout     Code = "timeout"     // exit 5
)

// Exit statuses of every command.
const (
	ExitDone        = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitRefused     = 3
	ExitUnreachable = 4
	ExitTimeout     = 5
)

type codeRow struct{ exit, http int }

func (c Code) row() codeRow {
	switch c {
	case CodeUsage, CodeInvalid:
		return codeRow{ExitUsage, http.StatusBadRequest}
	case CodeNotFound:
		return codeRow{ExitUsage, http.StatusNotFound}
	case CodeRefused, CodeMoved:
		return codeRow{ExitRefused, http.StatusConflict}
	case CodeDenied:
		return codeRow{ExitRefused, http.StatusForbidden}
	case CodeNoQuorum, CodeUnreachable:
		return codeRow{ExitUnreachable, http.StatusServiceUnavailable}
	case CodeTimeout:
		return codeRow{ExitTimeout, http.StatusGatewayTimeout}
	}
	return codeRow{ExitFailed, http.StatusInternalServerError}
}

// Error is what an operator is told: what happened, why, and what to do about it.
type Error struct {
	Code     Code             `json:"code"`
	What     string           `json:"what"` // "switchover to b refused"
	Why      string           `json:"why"`  // "its copy of the volume is 312 MiB behind"
	Do       string           `json:"do"`   // "wait until `hanode status` shows b in sync"
	Decision string           `json:"decision"`
	Problems List[Diagnostic] `json:"problems"`
	Steps    List[Step]       `json:"steps"` // what had been done, and undone, before it ended
	Exit     int              `json:"exit"`  // filled when it is sent
	cause    error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.What)
	if e.Why != "" {
		b.WriteString(": " + e.Why)
	}
	if e.Do != "" {
		b.WriteString(" (do: " + e.Do + ")")
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.cause }

// Refusal is an order that was not carried out for safety.
func Refusal(what, why, do string) *Error {
	return &Error{Code: CodeRefused, What: what, Why: why, Do: do}
}

// Errorf is an error of a kind; %w keeps the cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, What: err.Error(), cause: errors.Unwrap(err)}
}

// AsError makes an *Error of any error: what the operator may act on stays, the end of a context becomes a timeout, and
// everything else is CodeFailed.
func AsError(err error) *Error {
	var e *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: CodeTimeout, What: "timed out", Why: err.Error(),
			Do: "the order may still be carried out: see hanode events", cause: err}
	}
	return &Error{Code: CodeFailed, What: err.Error(), cause: err}
}

// ExitStatus is the exit status of a command that ended with err.
func ExitStatus(err error) int {
	if err == nil {
		return ExitDone
	}
	return AsError(err).Code.row().exit
}
