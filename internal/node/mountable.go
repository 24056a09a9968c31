package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication/tree"
)

// roomForVolume is the least that a new volume needs for its journal and names.
const roomForVolume = 64 << 20

// mountable says whether a volume may be mounted at path with its bytes at backing. What is served here already stays so.
func (n *Node) mountable(path, backing string) error {
	for _, s := range n.list() {
		for i := range s.spec.Volumes {
			if v := &s.spec.Volumes[i]; v.Path == path && v.Backing == backing {
				return nil
			}
		}
	}
	return errors.Join(pointFree(path), backingFit(path, backing))
}

// pointFree wants an empty directory, or none, that nothing is mounted on.
func pointFree(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !st.IsDir():
		return fmt.Errorf("%s is no directory", path)
	}
	up, err := os.Lstat(filepath.Dir(path))
	if err != nil {
		return err
	}
	if device(st) != device(up) {
		return fmt.Errorf("something is mounted on %s: unmount it first", path)
	}
	es, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	if len(es) > 0 {
		return fmt.Errorf("%s is not empty (%s, ...): move it away, apply, and make it the volume: hanode volume adopt S/V --from DIR", path, es[0].Name())
	}
	return nil
}

func device(fi os.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Dev
	}
	return 0
}

// backingFit wants a file system with room, extended attributes and file handles, and a directory that is not there, empty, or a volume's.
func backingFit(path, backing string) error {
	at := backing
	for {
		if _, err := os.Lstat(at); err == nil {
			break
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		up := filepath.Dir(at)
		if up == at {
			return fmt.Errorf("no directory above %s is there", backing)
		}
		at = up
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(at, &fs); err != nil {
		return fmt.Errorf("statfs of %s: %w", at, err)
	}
	switch free := int64(fs.Bavail) * fs.Bsize; {
	case fs.Flags&unix.ST_RDONLY != 0:
		return fmt.Errorf("the file system of %s is read-only", at)
	case fs.Type == unix.FUSE_SUPER_MAGIC:
		return fmt.Errorf("%s lies within another volume or FUSE file system: choose a directory on a local one with backing =", at)
	case free < roomForVolume:
		return fmt.Errorf("the file system of %s has %d MiB free, and a volume needs %d MiB at least", at, free>>20, roomForVolume>>20)
	}
	if at == backing {
		if es, err := os.ReadDir(backing); err == nil && len(es) > 0 {
			if _, err := os.Lstat(filepath.Join(backing, "header")); err != nil {
				return fmt.Errorf("%s holds something that is no volume of hanode: name another directory with backing =", backing)
			}
			return nil
		}
	}
	return probeBacking(at)
}

// probeBacking makes a volume's directories for a moment: it says what the file system lacks.
func probeBacking(at string) error {
	dir, err := os.MkdirTemp(at, ".hanode-probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := tree.Make(dir); err != nil {
		return err
	}
	t, err := tree.Open(dir, tree.Options{})
	if err != nil {
		return err
	}
	return t.Close()
}
