package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/volserver"
)

// data is what a service needs of its volumes.
type data interface {
	Run(context.Context)
	Ready(context.Context) error
	Lead(ctx context.Context, e cluster.Epoch, current func() bool) (volserver.Led, error)
	Leads() bool
	Drain(context.Context) error
	Undrain()
	Fence(ctx context.Context, why string) error
	Gone(context.Context) error
}

// lead makes the volumes writable, before anything of the service starts.
func (s *service) lead(ctx context.Context, e cluster.Epoch) bool {
	led, err := s.data.Lead(ctx, e, func() bool { return s.active.Load() })
	if err != nil {
		if s.active.Load() && ctx.Err() == nil {
			s.failed("the volumes could not be made writable: "+err.Error(), "failover")
			s.flush("")
		}
		return false
	}
	s.step(fmt.Sprintf("volumes writable (%d operations of the journal's tail applied)", led.Applied), fmt.Sprintf("position %d,%d,%d", led.Pos.Epoch, led.Pos.Gen, led.Pos.Seq))
	return s.active.Load()
}

// fenceWait bounds how long a Release waits for the volume server's word that nothing is in flight (rule H6); goneWait, for the end of its process.
const (
	fenceWait = 50 * time.Millisecond
	goneWait  = 20 * time.Second
)

// quiet makes sure that nothing acts and nothing is in flight. A process that is blocked in a request to a volume neither freezes nor dies before the
// request is answered: where the end was not planned, the kill comes first and the volume server answers EIO.
func (s *service) quiet(ctx context.Context, o orderClose) error {
	if s.data == nil {
		return s.still(ctx)
	}
	fence := func() error {
		c, cancel := context.WithTimeout(ctx, fenceWait)
		defer cancel()
		return s.data.Fence(c, o.why)
	}
	if o.planned {
		if err := s.still(ctx); err != nil {
			return err
		}
		return fence()
	}
	dead := make(chan error, 1)
	go func() {
		k, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		dead <- s.procs.Kill(k)
	}()
	return errors.Join(fence(), <-dead)
}

// drainWait bounds how long a planned move waits for what is in flight on the volumes.
const drainWait = 30 * time.Second

// drain finishes what is in flight on the volumes, and holds what is new.
func (s *service) drain(ctx context.Context) error {
	if s.data == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, drainWait)
	defer cancel()
	if err := s.data.Drain(ctx); err != nil {
		return fmt.Errorf("finish what is in flight on the volumes of %s: %w", s.name, err)
	}
	return nil
}
