package tree

import "sync"

// index knows the file handle of every file id: 32 bytes an entry in Go maps without pointers, about 50 bytes a file with the
// maps' free room; the collector does not look into them.
type index struct {
	shards [64]struct {
		mu sync.RWMutex
		m  map[FileID]handle
	}
}

func (x *index) init() {
	for i := range x.shards {
		x.shards[i].m = make(map[FileID]handle)
	}
}

func (x *index) get(id FileID) (handle, bool) {
	s := &x.shards[shard(id)]
	s.mu.RLock()
	h, ok := s.m[id]
	s.mu.RUnlock()
	return h, ok
}

func (x *index) has(id FileID) bool {
	_, ok := x.get(id)
	return ok
}

// put returns the handle that the id had before, if it had one.
func (x *index) put(id FileID, h handle) (old handle, had bool) {
	s := &x.shards[shard(id)]
	s.mu.Lock()
	old, had = s.m[id]
	s.m[id] = h
	s.mu.Unlock()
	return old, had
}

func (x *index) drop(id FileID) {
	s := &x.shards[shard(id)]
	s.mu.Lock()
	delete(s.m, id)
	s.mu.Unlock()
}

func (x *index) len() (n int) {
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.RLock()
		n += len(s.m)
		s.mu.RUnlock()
	}
	return n
}

func shard(id FileID) uint8 { return uint8((uint64(id)*0x9e3779b97f4a7c15)>>58) & 63 }
