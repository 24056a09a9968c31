package raft

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// ballast is a file that only takes room. When the disk is full it is given up, so that the log can go on while an
// operator makes room; it is made again when there is plenty.
type ballast struct {
	path string
	size int64

	mu   sync.Mutex
	held bool
}

func newBallast(dir string, size int64) *ballast {
	return &ballast{path: filepath.Join(dir, "ballast"), size: size}
}

// fill makes the file unless it is there. It leaves four times its size free for others when it is made again.
func (b *ballast) fill(again bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.size <= 0 || b.held {
		return nil
	}
	if st, err := os.Stat(b.path); err == nil && st.Size() == b.size {
		b.held = true
		return nil
	}
	if again {
		var st unix.Statfs_t
		if err := unix.Statfs(filepath.Dir(b.path), &st); err != nil || int64(st.Bavail)*st.Bsize < 5*b.size {
			return nil
		}
	}
	if err := b.write(); err != nil {
		os.Remove(b.path)
		return fmt.Errorf("make the ballast %s of %d bytes: %w; without it a full disk stops this member", b.path, b.size, err)
	}
	b.held = true
	return nil
}

func (b *ballast) write() error {
	f, err := os.OpenFile(b.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), 0, 0, b.size)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zeros := make([]byte, 64<<10)
	for left := b.size; left > 0; {
		n, err := f.Write(zeros[:min(left, int64(len(zeros)))])
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// release gives the room up. It reports whether there was any.
func (b *ballast) release() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.held {
		return false
	}
	b.held = false
	return os.Remove(b.path) == nil
}

// isFull says that err is a write or an extension of a file that found no room. An fsync that says ENOSPC is not: what
// it lost is lost, so it counts as a failed disk.
func isFull(err error) bool {
	var pe *fs.PathError
	if !errors.As(err, &pe) || pe.Op != "write" && pe.Op != "truncate" {
		return false
	}
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
