package tree

import (
	"context"
	"encoding/binary"
	"path"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
)

const rootID = replication.RootID

// Entry is a name in a directory.
type Entry struct {
	Name   string
	ID     FileID
	Type   uint32 // S_IFMT
	Cookie uint64 // where ReadDir goes on after it
}

// ReadDir lists a directory from a cookie on (0: from the beginning), at most most entries, without "." and "..". Nothing follows when it returns none. A
// cookie stays good while names come and go: what is there all the time is listed once. Cookies are those of the backing file system, which makes
// them differ from node to node.
func (t *Tree) ReadDir(parent FileID, cookie uint64, most int) ([]Entry, error) {
	n, err := t.acquireDir(parent)
	if err != nil {
		return nil, err
	}
	defer t.release(n)
	pfd, err := t.fd(n, pathFd)
	if err != nil {
		return nil, err
	}
	fd, err := t.openDir(pfd) // a descriptor of its own, for its position
	if err != nil {
		return nil, fail("open the directory", parent, err)
	}
	defer t.closeFd(fd)
	if cookie != 0 {
		if _, err := unix.Seek(fd, int64(cookie), unix.SEEK_SET); err != nil {
			return nil, fail("go on in the directory", parent, err)
		}
	}
	unlock := t.rlockDir(parent)
	defer unlock()
	var out []Entry
	buf := make([]byte, min(max(most*48, 1<<10), 1<<16))
	for len(out) < most {
		k, err := unix.Getdents(fd, buf)
		if err != nil {
			return out, fail("list the directory", parent, err)
		}
		if k == 0 {
			return out, nil
		}
		var inner error
		eachDirent(buf[:k], func(name string, typ uint32, off uint64) bool {
			if len(out) == most {
				return false
			}
			id, err := idAt(fd, name)
			if err != nil {
				inner = err
				return false
			}
			if id != 0 && id != noID {
				out = append(out, Entry{Name: name, ID: id, Type: typ, Cookie: off})
			}
			return true
		})
		if inner != nil {
			return out, fail("list the directory", parent, inner)
		}
	}
	return out, nil
}

// openDir opens a directory for reading it, from a descriptor of any kind.
func (t *Tree) openDir(dirfd int) (int, error) {
	for try := 0; ; try++ {
		fd, err := unix.Openat(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
		if err == nil {
			t.cache.open.Add(1)
			return fd, nil
		}
		if err != unix.EMFILE && err != unix.ENFILE || try == 3 || !t.cache.sweep() {
			return -1, err
		}
	}
}

// eachDirent calls fn for each entry of what getdents64 returned, but "." and "..", until it says no.
func eachDirent(b []byte, fn func(name string, typ uint32, off uint64) bool) {
	for len(b) >= 19 {
		k := int(binary.NativeEndian.Uint16(b[16:]))
		if k < 19 || k > len(b) {
			return
		}
		off := binary.NativeEndian.Uint64(b[8:])
		typ := uint32(b[18]) << 12
		name := b[19:k]
		for i, c := range name {
			if c == 0 {
				name = name[:i]
				break
			}
		}
		b = b[k:]
		if s := string(name); s != "." && s != ".." && !fn(s, typ, off) {
			return
		}
	}
}

// Dir is a part of a directory that Walk shows.
type Dir struct {
	ID      FileID
	Path    string // from the root of the volume, "" for the root: for people, it may be out of date
	Stat    Stat
	Xattrs  map[string][]byte
	Entries []Entry
	First   bool // the first part of this directory
	Last    bool // nothing of this directory follows
}

// walkPart bounds the entries that a walk holds of one directory.
const walkPart = 4096

// Walk shows every directory, parents first, in parts of a few thousand entries. Each part is at a state of its own when operations are applied meanwhile; a
// directory that moves while it runs may be missed or shown twice. It keeps the ids and names of the directories on the way, no more.
func (t *Tree) Walk(ctx context.Context, fn func(Dir) error) error {
	type todo struct {
		id   FileID
		path string
	}
	stack := []todo{{rootID, ""}}
	for len(stack) > 0 {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		d := Dir{ID: at.id, Path: at.path, First: true}
		var err error
		if d.Stat, err = t.Stat(at.id); err == nil {
			d.Xattrs, err = t.Xattrs(at.id)
		}
		for cookie := uint64(0); err == nil && !d.Last; {
			if err = ctx.Err(); err != nil {
				break
			}
			if d.Entries, err = t.ReadDir(at.id, cookie, walkPart); err != nil {
				break
			}
			d.Last = len(d.Entries) < walkPart
			for _, e := range d.Entries {
				cookie = e.Cookie
				if e.Type == unix.S_IFDIR {
					stack = append(stack, todo{e.ID, path.Join(at.path, e.Name)})
				}
			}
			err = fn(d)
			d.First = false
		}
		if err != nil && errno(err) == unix.ESTALE && at.id != rootID {
			continue // gone meanwhile
		}
		if err != nil {
			return err
		}
	}
	return nil
}
