package region

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/internal/page"
)

// stage is the memory in which checkpoints wait until the server has taken them: a ring of chunks.
type stage struct {
	mu     sync.Mutex
	freed  *sync.Cond
	mem    []byte
	gen    int
	chunks []*chunk // oldest first
}

type chunk struct {
	off, size uint64
	gen       int
	done      bool
}

func (s *stage) open(fd int, size uint64) error {
	defer unix.Close(fd)
	mem, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mem != nil {
		unix.Munmap(s.mem)
	}
	if s.freed == nil {
		s.freed = sync.NewCond(&s.mu)
	}
	s.mem, s.chunks = mem, nil
	s.gen++
	s.freed.Broadcast()
	return nil
}

// alloc waits until size bytes are free.
func (s *stage) alloc(size uint64, a *App) (*chunk, error) {
	size = (size + page.Size - 1) / page.Size * page.Size
	s.mu.Lock()
	defer s.mu.Unlock()
	if size > uint64(len(s.mem)) {
		return nil, fmt.Errorf("a checkpoint of %d bytes does not fit into %d bytes of staging memory", size, len(s.mem))
	}
	for {
		if off, ok := s.room(size); ok {
			c := &chunk{off: off, size: size, gen: s.gen}
			s.chunks = append(s.chunks, c)
			return c, nil
		}
		if a.gone.Load() {
			return nil, away(a.service, errors.New("nothing takes checkpoints"))
		}
		s.freed.Wait()
	}
}

// room finds space behind the newest chunk, or at the beginning.
func (s *stage) room(size uint64) (uint64, bool) {
	n := len(s.chunks)
	if n == 0 {
		return 0, true
	}
	first, last := s.chunks[0].off, s.chunks[n-1]
	end := last.off + last.size
	if last.off >= first {
		if end+size <= uint64(len(s.mem)) {
			return end, true
		}
		return 0, size <= first
	}
	return end, end+size <= first
}

func (s *stage) free(c *chunk) {
	if c == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.gen != s.gen {
		return
	}
	c.done = true
	for len(s.chunks) > 0 && s.chunks[0].done {
		s.chunks = s.chunks[1:]
	}
	s.freed.Broadcast()
}

func (s *stage) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mem != nil {
		unix.Munmap(s.mem)
		s.mem = nil
	}
}

func ptr[T any](p *T) unsafe.Pointer { return unsafe.Pointer(p) }
