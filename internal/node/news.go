package node

import (
	"context"
	"sync"

	"github.com/hanode/hanode/internal/core"
	"github.com/hanode/hanode/internal/member"
)

// news wakes those who wait for the log to say something.
type news struct {
	mu    sync.Mutex
	ch    chan struct{}
	index uint64
}

func (w *news) init() { w.ch = make(chan struct{}) }

func (w *news) applied(index uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.index = index
	close(w.ch)
	w.ch = make(chan struct{})
}

// reached says whether the log was applied here up to an index.
func (w *news) reached(index uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.index >= index
}

// wait asks until the answer is yes or ctx ends, anew whenever the log has moved.
func (w *news) wait(ctx context.Context, yes func() bool) bool {
	for {
		w.mu.Lock()
		ch := w.ch
		w.mu.Unlock()
		if yes() {
			return true
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return false
		}
	}
}

// orders are the planned moves that somebody waits for.
type orders struct {
	mu   sync.Mutex
	last uint64
	wait map[uint64]chan core.OrderDone
}

func (o *orders) init() { o.wait = map[uint64]chan core.OrderDone{} }

// give hands an order to the core and waits for what comes of it.
func (o *orders) give(ctx context.Context, m *member.Member, ord *core.Order) (core.OrderDone, error) {
	done := make(chan core.OrderDone, 1)
	o.mu.Lock()
	o.last++
	ord.ID = o.last
	o.wait[ord.ID] = done
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		delete(o.wait, ord.ID)
		o.mu.Unlock()
	}()
	m.Step(ord)
	select {
	case d := <-done:
		return d, d.Err
	case <-ctx.Done():
		return core.OrderDone{}, ctx.Err()
	}
}

func (n *Node) orderDone(d core.OrderDone) {
	n.orders.mu.Lock()
	defer n.orders.mu.Unlock()
	if ch := n.orders.wait[d.ID]; ch != nil {
		ch <- d
		delete(n.orders.wait, d.ID)
	}
}
