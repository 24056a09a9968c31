package resync

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Compared is how a file of a set stands to the present volume.
type Compared struct {
	AsideFile
	Now   string // "equal", "content differs", "gone", "not kept", …
	First int64  // the first byte that differs
}

func (f *AsideFile) content(dir, set string) string {
	return filepath.Join(dir, set, "files", fmt.Sprint(f.Number), fmt.Sprintf("%016x", uint64(f.ID)))
}

// Diff compares a set with the trees as they are now.
func Diff(ctx context.Context, dir, set string, trees []*Tree) ([]Compared, error) {
	s, err := ReadSet(dir, set)
	if err != nil {
		return nil, err
	}
	var out []Compared
	for _, f := range s.Files {
		c := Compared{AsideFile: f}
		if int(f.Number) > len(trees) || f.Number == 0 {
			c.Now = "its volume is no more"
		} else if c.Now, c.First, err = compare(ctx, &f, f.content(dir, set), trees[f.Number-1]); err != nil {
			return nil, fmt.Errorf("compare file id %x of %s: %w", uint64(f.ID), set, err)
		}
		out = append(out, c)
	}
	return out, nil
}

func compare(ctx context.Context, f *AsideFile, kept string, t *Tree) (now string, first int64, err error) {
	i, err := t.Inode(f.ID)
	switch {
	case gone(err) && f.Kind == "not here":
		return "gone, as it was", 0, nil
	case gone(err):
		return "gone", 0, nil
	case err != nil:
		return "", 0, err
	case kindText(i.Type) != f.Kind:
		return "it was " + f.Kind + ", now it is a " + kindText(i.Type), 0, nil
	case f.Omitted != "":
		return "its content was not kept: " + f.Omitted, 0, nil
	case !f.Kept && (i.Target != f.Target || i.Stat.Mode&0o7777 != f.Mode || i.Stat.UID != f.UID || i.Stat.GID != f.GID):
		return "attributes differ", 0, nil
	case !f.Kept:
		return "equal", 0, nil
	}
	old, err := os.Open(kept)
	if err != nil {
		return "", 0, err
	}
	defer old.Close()
	cur, err := t.OpenFile(f.ID, unix.O_RDONLY)
	if err != nil {
		return "", 0, err
	}
	defer cur.Close()
	at, err := firstDifference(ctx, old, cur, max(f.Size, i.Stat.Size))
	switch {
	case err != nil:
		return "", 0, err
	case at >= 0 || f.Size != i.Stat.Size:
		return fmt.Sprintf("content differs: %d bytes then, %d now", f.Size, i.Stat.Size), max(at, 0), nil
	case i.Stat.Mode&0o7777 != f.Mode || i.Stat.UID != f.UID || i.Stat.GID != f.GID:
		return "attributes differ", 0, nil
	}
	return "equal", 0, nil
}

// nextData is where the data goes on from off; size: nowhere.
func nextData(f seeker, off, size int64) int64 {
	at, err := f.Seek(off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size
	} else if err != nil {
		return off
	}
	return min(at, size)
}

// firstDifference compares two files as if they went on with zeros; -1: they are equal.
func firstDifference(ctx context.Context, a, b seeker, size int64) (int64, error) {
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if off = min(nextData(a, off, size), nextData(b, off, size)); off == size {
			break
		}
		n := min(int64(len(x)), size-off)
		for _, r := range []struct {
			f seeker
			b []byte
		}{{a, x[:n]}, {b, y[:n]}} {
			k, err := r.f.ReadAt(r.b, off)
			if err != nil && err != io.EOF {
				return 0, err
			}
			clear(r.b[k:])
		}
		if !bytes.Equal(x[:n], y[:n]) {
			for i := range n {
				if x[i] != y[i] {
					return off + i, nil
				}
			}
		}
		off += n
	}
	return -1, nil
}

// Restore copies the kept content of a file to a path that does not exist: into the mounted volume, from where it is replicated like any file, or elsewhere.
// which is one of the file's paths, as "VOLUME:PATH" or PATH, or its id in hexadecimal.
func Restore(ctx context.Context, dir, set, which, to string) (AsideFile, error) {
	s, err := ReadSet(dir, set)
	if err != nil {
		return AsideFile{}, err
	}
	var found []AsideFile
	for _, f := range s.Files {
		if fmt.Sprintf("%x", uint64(f.ID)) == which || slices.Contains(f.Paths, which) || slices.ContainsFunc(f.Paths, func(p string) bool { return f.Volume+":"+p == which }) {
			found = append(found, f)
		}
	}
	switch {
	case len(found) == 0:
		return AsideFile{}, fmt.Errorf("%s has no file %q: `hanode volume divergent diff` shows what it has", set, which)
	case len(found) > 1:
		return AsideFile{}, fmt.Errorf("%s has %d files that were at %q: name one by its id (%x, %x, …)", set, len(found), which, uint64(found[0].ID), uint64(found[1].ID))
	case !found[0].Kept:
		return found[0], fmt.Errorf("the content of %q was not kept (%s): the records of what was done to it are in %s", which, found[0].Kind+" "+found[0].Omitted, filepath.Join(dir, set, recordsName))
	}
	f := found[0]
	src, err := os.Open(f.content(dir, set))
	if err != nil {
		return f, err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return f, fmt.Errorf("%s exists, and is not overwritten: name another place", to)
	} else if err != nil {
		return f, err
	}
	err = fill(ctx, dst, src, &f)
	if cerr := dst.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return f, fmt.Errorf("restore %q to %s, which is incomplete: %w", which, to, err)
	}
	return f, nil
}

func fill(ctx context.Context, dst, src *os.File, f *AsideFile) error {
	if _, err := copySparse(ctx, dst, src, f.Size); err != nil {
		return err
	}
	if err := dst.Chown(int(f.UID), int(f.GID)); err != nil {
		return err
	}
	if err := unix.Fchmod(int(dst.Fd()), f.Mode); err != nil {
		return err
	}
	at := time.Unix(0, f.Mtime)
	if err := os.Chtimes(dst.Name(), at, at); err != nil {
		return err
	}
	return dst.Sync()
}

// Discard removes a set for good: the operator has taken from it what was wanted.
func Discard(dir, set string) error {
	if _, err := ReadSet(dir, set); err != nil {
		return err
	}
	away := filepath.Join(dir, asideTmp+"-discarded")
	if err := os.RemoveAll(away); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, set), away); err != nil { // at once: it is never half there
		return err
	}
	if err := os.RemoveAll(away); err != nil {
		return err
	}
	return syncDir(dir)
}
