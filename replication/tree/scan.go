package tree

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ScanStats is what the scan of Open found.
type ScanStats struct {
	Names, Inodes int64
	Took          time.Duration
	Strays        int // entries without an id
}

// Scanned is what Open found.
func (t *Tree) Scanned() ScanStats { return t.scan }

// scan reads every directory once. Workers take directories from a stack of file ids, which holds 8 bytes for a directory that is not read yet.
type scan struct {
	t     *Tree
	mu    sync.Mutex
	more  *sync.Cond
	stack []FileID
	busy  int
	err   error
	names atomic.Int64
	stray []stray
}

func (t *Tree) scanAll() error {
	start := time.Now()
	h, mnt, err := handleAt(t.rootfd, "")
	if err != nil {
		return handleRefusal(t.dir, err)
	}
	t.mnt = mnt
	if id, err := idOfFd(t.rootfd); err != nil || id != rootID {
		return fmt.Errorf("%s has no file id %d (%v): it is no volume's tree, or its extended attributes were lost in a copy; let a resync fill it", filepath.Join(t.dir, treeName), rootID, err)
	}
	t.index.put(rootID, h)
	t.sawID(rootID)
	if err := t.scanLimbo(); err != nil {
		return err
	}
	s := &scan{t: t, stack: []FileID{rootID}}
	s.more = sync.NewCond(&s.mu)
	for _, id := range append(t.limbo.all(isParked), t.limbo.all(isOpen)...) {
		h, _ := t.index.get(id)
		if fd, err := h.open(t.rootfd, unix.O_RDONLY|unix.O_DIRECTORY); err == nil {
			unix.Close(fd)
			s.stack = append(s.stack, id)
		}
	}
	workers := t.opt.Workers
	if workers <= 0 {
		workers = min(runtime.GOMAXPROCS(0), 8)
	}
	var wg sync.WaitGroup
	for range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s.work()
		}()
	}
	wg.Wait()
	t.strays = s.stray
	t.scan = ScanStats{Names: s.names.Load(), Inodes: int64(t.index.len()), Took: time.Since(start), Strays: len(s.stray)}
	return s.err
}

// scanLimbo takes what lies in limbo into the index; what a crash left of a create there goes.
func (t *Tree) scanLimbo() error {
	names, err := namesIn(t.limbofd)
	if err != nil {
		return fmt.Errorf("list %s: %w", filepath.Join(t.dir, limboName), err)
	}
	for _, name := range names {
		id, err := idAt(t.limbofd, name)
		if err != nil {
			return fmt.Errorf("read the file id of %s: %w", filepath.Join(t.dir, limboName, name), err)
		}
		why, want := parseLimbo(name)
		if why == 0 || id != want {
			if err := t.removeAll(t.limbofd, name); err != nil {
				return fmt.Errorf("remove %s: %w", filepath.Join(t.dir, limboName, name), err)
			}
			continue
		}
		h, _, err := handleAt(t.limbofd, name)
		if err != nil {
			return handleRefusal(t.dir, err)
		}
		t.index.put(id, h)
		t.sawID(id)
		t.limbo.set(id, why)
		var b [8 + 256]byte
		if n, err := getxattrAt(t.limbofd, name, placeXattr, b[:]); err == nil && n > 8 {
			t.limbo.wants[id] = place{idOf([8]byte(b[:8])), string(b[8:n])}
		}
	}
	return nil
}

func namesIn(dirfd int) (names []string, err error) {
	fd, err := unix.Openat(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 1<<15)
	for {
		k, err := unix.Getdents(fd, buf)
		if err != nil || k == 0 {
			return names, err
		}
		eachDirent(buf[:k], func(name string, _ uint32, _ uint64) bool { names = append(names, name); return true })
	}
}

func (s *scan) work() {
	buf := make([]byte, 1<<16)
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for len(s.stack) == 0 && s.busy > 0 && s.err == nil {
			s.more.Wait()
		}
		if len(s.stack) == 0 || s.err != nil {
			s.more.Broadcast()
			return
		}
		dir := s.stack[len(s.stack)-1]
		s.stack = s.stack[:len(s.stack)-1]
		s.busy++
		s.mu.Unlock()
		err := s.read(dir, buf)
		s.mu.Lock()
		s.busy--
		if err != nil && s.err == nil {
			s.err = err
		}
		s.more.Broadcast()
	}
}

func (s *scan) read(dir FileID, buf []byte) error {
	t := s.t
	h, ok := t.index.get(dir)
	if !ok {
		return errMissing
	}
	fd, err := h.open(t.rootfd, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME)
	if err != nil {
		return fail("open the directory", dir, err)
	}
	defer unix.Close(fd)
	for {
		k, err := unix.Getdents(fd, buf)
		if err != nil {
			return fail("list the directory", dir, err)
		}
		if k == 0 {
			return nil
		}
		var found error
		var dirs []FileID
		eachDirent(buf[:k], func(name string, typ uint32, _ uint64) bool {
			var sub FileID
			if sub, found = s.name(dir, fd, name, typ); sub != 0 {
				dirs = append(dirs, sub)
			}
			return found == nil
		})
		if found != nil {
			return found
		}
		if len(dirs) > 0 {
			s.mu.Lock()
			s.stack = append(s.stack, dirs...)
			s.mu.Unlock()
			s.more.Broadcast()
		}
	}
}

// name takes one entry into the index and returns its id if it is a directory.
func (s *scan) name(dir FileID, fd int, name string, typ uint32) (FileID, error) {
	t := s.t
	s.names.Add(1)
	id, err := idAt(fd, name)
	if err != nil {
		return 0, fail(fmt.Sprintf("read the file id of %q in the directory", name), dir, err)
	}
	h, mnt, err := handleAt(fd, name)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil && mnt == t.mnt || err != nil && mnt == 0 {
		return 0, handleRefusal(t.dir, err)
	}
	if mnt != t.mnt {
		return 0, fmt.Errorf("something is mounted on %s: a volume is one file system; unmount it, and protect it as a volume of its own if it is wanted", pathOf(fd, name))
	}
	if id == noID {
		s.mu.Lock()
		s.stray = append(s.stray, stray{dir, name})
		s.mu.Unlock()
		return 0, nil
	}
	if old, had := t.index.put(id, h); had && old != h {
		return 0, fmt.Errorf("%s has file id %x, which another file of the volume has too: somebody copied files with their attributes into the backing directory; remove the copy, or let a resync fill this copy anew",
			pathOf(fd, name), uint64(id))
	} else if had {
		return 0, nil // another name of it
	}
	t.sawID(id)
	if typ == 0 { // a file system that does not say
		if st, err := fstatat(fd, name); err == nil {
			typ = st.Mode & unix.S_IFMT
		}
	}
	if typ == unix.S_IFDIR {
		return id, nil
	}
	return 0, nil
}

// pathOf is where the entry of an open directory lies, for an error.
func pathOf(fd int, name string) string {
	var b [unix.PathMax]byte
	n, err := unix.Readlink(procPath(fd), b[:])
	if err != nil {
		return name
	}
	return filepath.Join(string(b[:n]), name)
}
