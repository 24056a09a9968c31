package volume

import (
	"github.com/hanode/hanode/replication"
)

// Ticket is the Log's name for an operation in flight.
type Ticket uint64

// Log gives operations their positions and says when they may be applied and answered.
type Log interface {
	// Submit gives op its position and takes its record; op may be reused afterwards. An error: nothing happened.
	Submit(op *replication.Op) (Ticket, error)
	// Wait returns nil when the operation may be applied. EIO: it may never be applied or acknowledged.
	Wait(Ticket) error
	// Done is told that an operation for which Wait returned nil was applied, or why not.
	Done(Ticket, error)
	// Sync returns nil when everything submitted before the call is as durable as the mode of the volume says.
	Sync() error
}
