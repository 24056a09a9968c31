// Package stream is the log of a service at work: it gives operations their positions, journals them, sends them to every other copy, receives,
// acknowledges and waits. What must be where before what is acknowledged is decided by stream/replica; this package has its clock, its
// connections, its journal and its trees.
//
// # The active
//
// Submit appends the record to a bounded buffer. Whoever finds nobody flushing flushes everything that is there, with one write to each
// connection and then one to the journal, so that a single writer hands nothing over and many share. A follower that is behind, or to which more is in
// flight than its window allows, is served from the journal by a goroutine of its own until it has caught up. An operation is applied only after
// it is in the own journal and, in mode sync, accepted by every member that the core calls needed. Submit holds writers back while the buffer is full.
//
// # The standby
//
// One goroutine reads a connection: it verifies every record, appends to the journal (page cache), and answers when nothing more is there to be
// read. Sync requests are carried out beside it. The applier reads the journal behind it. What was appended is applied at the latest at promotion.
//
// # Callers
//
// Run owns every goroutine and returns when ctx has ended. The service's trees and journal are used by nobody else; the caller opens and closes them. AddConn
// takes a connection after TLS. Facts come before Lead. Nothing here proposes anything: the callbacks of Events ask the daemon to.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/stream/replica"
	"github.com/hanode/hanode/replication/tree"
)

// Tree is what the stream needs of a volume's backing directory.
type Tree interface {
	Apply(op *replication.Op) (tree.Applied, error)
	Settle() error
	Unsettle()
	PurgeLimbo() error
	Sync() error
	MaxID() replication.FileID
	SetIDBase(replication.FileID)
}

// Volume is one volume of the service; records carry its place in Config.Volumes, from 1.
type Volume struct {
	Name string
	Mode replica.Mode
	Tree Tree
}

// Resyncer compares and copies trees. Both sides have a channel of their own within the connection.
type Resyncer interface {
	// Serve is the source's side: every inode is sent in the state that it is in, while the service runs.
	Serve(ctx context.Context, peer cluster.MemberNo, ch io.ReadWriter) error
	// Fetch is the follower's side: its trees are written to. When it returns nil they hold, of each inode that it was told of, a state at or after its beginning. full: no
	// content of this copy may be trusted without comparing it.
	Fetch(ctx context.Context, peer cluster.MemberNo, ch io.ReadWriter, full bool) error
}

// Events is what the stream tells; each may be nil. They are called one at a time, and may call back.
type Events struct {
	CaughtUp    func(r replica.Run, epoch cluster.Epoch, gen cluster.Generation) // propose InSync
	WantDegrade func(member cluster.MemberNo, why string)                        // propose Degrade
	Dial        func(member cluster.MemberNo)                                    // a connection is wanted
	Higher      func(epoch cluster.Epoch, why string)                            // a standby refused with a later epoch: fence
	Failed      func(err error)                                                  // the own disk does not do what it must
	Deposed     func(why string)                                                 // nothing is acknowledged any more; this process has to end
	Alone       func(stored bool)                                                // the flag that the active goes on alone is durable, or taken away
	Changed     func()                                                           // Status is worth reading
}

// Config is what a stream is made of.
type Config struct {
	Self             replica.Run
	Cluster, Service string
	Volumes          []Volume
	AloneDisk        bool // alone_ack = "disk"
	Journal          *journal.Journal
	State            journal.State             // as found; History is cut to the journal
	Store            func(journal.State) error // replaces it durably
	Dirty            bool                      // the host was rebooted since an unclean end: the trees may hold more than the journal says
	Now              func() cluster.Instant
	Resync           Resyncer                    // nil: a copy that needs one is refused
	SetAside         func(from, to uint64) error // keeps the records from..to and what they touch under divergent/, before they go
	Events           Events
	Checkpoint       time.Duration // how often; 0: 10 s
	Buffer           int           // bytes of records that may wait to be flushed; 0: 1 MiB
	Window           int           // bytes that may be in flight to one follower; 0: 4 MiB
	Log              *slog.Logger
}

func (c *Config) check() error {
	var errs []error
	if c.Journal == nil || c.Store == nil || c.Now == nil {
		errs = append(errs, errors.New("a stream needs a journal, a place for its state and a clock"))
	}
	if len(c.Volumes) == 0 || len(c.Volumes) > 255 {
		errs = append(errs, errors.New("a service has 1 to 255 volumes"))
	}
	for _, v := range c.Volumes {
		if v.Mode < replica.Sync || v.Mode > replica.Async || v.Tree == nil {
			errs = append(errs, errors.New("volume "+v.Name+" has no tree or no mode"))
		}
	}
	if c.Checkpoint == 0 {
		c.Checkpoint = 10 * time.Second
	}
	if c.Buffer == 0 {
		c.Buffer = 1 << 20
	}
	if c.Window == 0 {
		c.Window = 4 << 20
	}
	if need := max(c.Buffer, replication.MaxRecord) + frameHead; c.Journal != nil && c.Journal.MaxAppend() < need {
		errs = append(errs, fmt.Errorf("the segments of the journal take %d bytes at once: make them large enough for %d", c.Journal.MaxAppend(), need))
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.SetAside == nil {
		c.SetAside = func(from, to uint64) error {
			return errors.New("operations that nobody else has cannot be set aside: no place for them is configured")
		}
	}
	return errors.Join(errs...)
}
