// Package disk is the small part of a file system that the journal and its companions use, so that a test can put a failing one in
// its place (replication/journal/faultfs): each operation may fail or be the last one before a power cut.
//
// What is durable: the bytes of a file after its Sync, a name after the SyncDir of its directory. Nothing else. After a failed Sync the
// kernel may have dropped the dirty pages and a later Sync may succeed without them ever having reached the disk: whoever gets an
// error from Sync must take the file for lost.
package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// FS is a file system. Names are paths.
type FS interface {
	MakeDir(dir string) error          // nil if it is there
	Create(name string) (File, error)  // new, for reading and writing; what was there under the name is emptied
	Open(name string) (File, error)    // there already, for reading and writing
	Rename(from, to string) error      //
	Remove(name string) error          //
	List(dir string) ([]string, error) // names, sorted
	SyncDir(dir string) error          //
}

// File is an open file.
type File interface {
	ReadAt(b []byte, off int64) (int, error)
	WriteVec(v [][]byte, off int64) error // all of them, one behind the other: one system call where possible. v may be changed
	Allocate(size int64) error            // the file has at least this size, and room on the disk for it
	Sync() error
	Size() (int64, error)
	Close() error
}

// OS is the machine's file system.
type OS struct{}

func (OS) MakeDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

func (OS) Create(name string) (File, error) {
	return open(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
}

func (OS) Open(name string) (File, error) { return open(name, os.O_RDWR) }

func (OS) Rename(from, to string) error { return os.Rename(from, to) }

func (OS) Remove(name string) error { return os.Remove(name) }

func (OS) List(dir string) ([]string, error) {
	es, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := make([]string, len(es))
	for i, e := range es {
		out[i] = e.Name()
	}
	return out, nil
}

func (OS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

type file struct {
	f  *os.File
	fd int
}

func open(name string, flags int) (File, error) {
	f, err := os.OpenFile(name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return &file{f, int(f.Fd())}, nil // Fd puts it into blocking mode, which a regular file is in anyway
}

func (f *file) ReadAt(b []byte, off int64) (int, error) { return f.f.ReadAt(b, off) }

func (f *file) WriteVec(v [][]byte, off int64) error {
	for len(v) > 0 {
		n, err := unix.Pwritev(f.fd, v, off)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return &os.PathError{Op: "write", Path: f.f.Name(), Err: err}
		case n == 0:
			return &os.PathError{Op: "write", Path: f.f.Name(), Err: io.ErrShortWrite}
		}
		off += int64(n)
		for len(v) > 0 && n >= len(v[0]) {
			n -= len(v[0])
			v = v[1:]
		}
		if len(v) > 0 {
			v[0] = v[0][n:]
		}
	}
	return nil
}

func (f *file) Allocate(size int64) error {
	for {
		err := unix.Fallocate(f.fd, 0, 0, size)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return &os.PathError{Op: fmt.Sprintf("allocate %d bytes for", size), Path: f.f.Name(), Err: err}
		}
		return nil
	}
}

func (f *file) Sync() error {
	for {
		err := unix.Fdatasync(f.fd)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return &os.PathError{Op: "fdatasync", Path: f.f.Name(), Err: err}
		}
		return nil
	}
}

func (f *file) Size() (int64, error) {
	fi, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (f *file) Close() error { return f.f.Close() }
