package raft

import "sync"

// Beat is the pace of the caller's own messages. Heartbeats of Raft wait for it, so that they leave with them and their answers come back with theirs.
type Beat struct {
	mu   sync.Mutex
	next chan struct{}
}

// Pulse says that the caller sends now. It does not wait.
func (b *Beat) Pulse() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
}

// Next is closed with the next Pulse.
func (b *Beat) Next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = make(chan struct{})
	}
	return b.next
}
