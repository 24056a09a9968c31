package store

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication/memory/image"
)

// Buffer is memory of the store in which an image comes together before it is committed: filled by an application (which has it
// mapped too) or by a receiver. It is sparse, and its file outlives the process so that a redo finds it.
type Buffer struct {
	Name string
	Mem  []byte
	file *os.File
}

// BufferSize is what a buffer needs for one image of a region of at most max bytes: the table, then the blocks.
func BufferSize(most uint64) uint64 {
	return tableRoom(image.Blocks(most)) + image.Blocks(most)*image.Block
}

// tableRoom is the room that the table of n entries takes before the blocks, which begin on a page.
func tableRoom(n uint64) uint64 { return (n*EntrySize + page - 1) / page * page }

// TableRoom see tableRoom.
func TableRoom(blocks int) uint64 { return tableRoom(uint64(blocks)) }

// NewBuffer makes a buffer; an older file of this name is replaced. The file cannot shrink: who maps it never meets its end.
func (s *Store) NewBuffer(name string, size uint64) (*Buffer, error) {
	path := filepath.Join(s.dir, name)
	os.Remove(path)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the buffer %s: %w", name, err)
	}
	m, _, err := mapOpen(f, size)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("make the buffer %s of %d bytes: %w", name, size, err)
	}
	return &Buffer{Name: name, Mem: m, file: f}, nil
}

// File is the descriptor to hand to the application. It belongs to the buffer.
func (b *Buffer) File() *os.File { return b.file }

// Trim gives back the memory beyond the first keep bytes. What lay there is gone.
func (b *Buffer) Trim(keep uint64) {
	if uint64(len(b.Mem)) > keep {
		unix.Fallocate(int(b.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(keep), int64(uint64(len(b.Mem))-keep))
	}
}

// Close unmaps the buffer and removes its file.
func (b *Buffer) Close() {
	if b.Mem != nil {
		unix.Munmap(b.Mem)
		b.Mem = nil
		os.Remove(b.file.Name())
		b.file.Close()
	}
}
