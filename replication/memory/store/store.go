// Package store keeps the images of a service's regions on one member, so that they survive the end of the process that
// keeps them. The directory belongs on a tmpfs: an image is in memory, and a power cut may take it (the standby has it).
//
// # Why no image is ever torn
//
// A commit first writes one record that says where all blocks of the new image lie (in a buffer that the application or the
// receiver has filled), with the checksum of the table of their checksums, and makes it valid by one store of a counter. From
// then on the image counts. Only then are the blocks copied over the image before, the heads replaced, and the record marked as
// done. A process that is killed before the store leaves the image before; after it, Open copies again, from the start:
// the copying is the same whatever part of it was already done. All regions of one image stand in one record.
//
// Open verifies every block of every image against the table, and the table against the head. What does not agree is not used:
// the region is reported as damaged and empty, and its member asks for the whole image.
//
// Stores into a shared mapping of a file are seen in program order by whoever maps the file later, also when the process that
// made them was killed; nothing here is meant to survive the machine.
package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

const (
	page       = 4096
	stateMagic = "HMemSta1"
	version    = 1
	stateSize  = 3 * page
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

// ErrDamaged is what Damaged errors wrap.
var ErrDamaged = errors.New("damaged")

// Store is the directory of one service. Its methods may be called by several goroutines; those on one region by one at a time.
type Store struct {
	dir      string
	identity uint64
	state    []byte
	lock     *os.File

	mu      sync.Mutex // commits, and the set of regions
	regions map[string]*Region
	damaged []error
}

// Open opens or makes the directory, whose images belong to the service that identity names (cluster and service); another one's
// directory is refused. One process at a time: a second one is refused.
func Open(dir, identity string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("images in %s: %w", dir, err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("images in %s: %w", dir, err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("images in %s are in use by another process: %w", dir, err)
	}
	s := &Store{dir: dir, identity: hash(identity), lock: lock, regions: map[string]*Region{}}
	if err := s.open(); err != nil {
		s.Close()
		return nil, fmt.Errorf("images in %s: %w", dir, err)
	}
	return s, nil
}

func hash(s string) uint64 {
	h := uint64(14695981039346656037) // FNV-1a
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// The state file: page 0 is
//
//	 0  8  "HMemSta1"
//	 8  4  format version, 1
//	16  8  hash of the identity
//	24  8  highest epoch seen
//	32  8  highest number given
//	64  8  counter: the commit record in page 1 + (counter & 1) is the last one
//
// and pages 1 and 2 are commit records (see commit.go).
func (s *Store) open() error {
	fresh, err := mapFile(filepath.Join(s.dir, "state"), stateSize, &s.state)
	if err != nil {
		return err
	}
	if fresh || string(s.state[:8]) == "\x00\x00\x00\x00\x00\x00\x00\x00" {
		le.PutUint32(s.state[8:], version)
		le.PutUint64(s.state[16:], s.identity)
		copy(s.state, stateMagic)
	}
	switch {
	case string(s.state[:8]) != stateMagic || le.Uint32(s.state[8:]) != version:
		return fmt.Errorf("the state file is not of this format (version %d): remove the directory, the standby has the images", version)
	case le.Uint64(s.state[16:]) != s.identity:
		return errors.New("they belong to another service or cluster: remove the directory if it is not needed")
	}
	names, err := filepath.Glob(filepath.Join(s.dir, "*.image"))
	if err != nil {
		return err
	}
	for _, path := range names {
		name := strings.TrimSuffix(filepath.Base(path), ".image")
		if strings.HasSuffix(name, ".resized") { // the process ended within Resize
			os.Remove(path)
			continue
		}
		if r, err := s.openRegion(name, 0); err == nil {
			s.regions[name] = r
		} else {
			s.damage(name, err)
		}
	}
	if err := s.redo(); err != nil {
		s.damaged = append(s.damaged, err)
	}
	for name, r := range s.regions {
		if err := r.verify(filepath.Join(s.dir, name+".image")); err != nil {
			s.damage(name, err)
		}
	}
	return nil
}

// damage drops a region that cannot be used.
func (s *Store) damage(name string, err error) {
	s.damaged = append(s.damaged, fmt.Errorf("region %s: %w: %w; the whole image is taken from another member", name, ErrDamaged, err))
	if r := s.regions[name]; r != nil {
		r.close()
		delete(s.regions, name)
	}
	os.Remove(filepath.Join(s.dir, name+".image"))
	os.Remove(filepath.Join(s.dir, name+".log"))
}

// Damaged says what Open could not use.
func (s *Store) Damaged() []error { return s.damaged }

// Dir is the store's directory.
func (s *Store) Dir() string { return s.dir }

// Epoch is the highest epoch seen.
func (s *Store) Epoch() cluster.Epoch { return cluster.Epoch(atomic.LoadUint64(s.word(24))) }

// SetEpoch notes an epoch.
func (s *Store) SetEpoch(e cluster.Epoch) {
	atomic.StoreUint64(s.word(24), max(uint64(e), uint64(s.Epoch())))
}

// Number is the highest number of an image seen or given.
func (s *Store) Number() uint64 { return atomic.LoadUint64(s.word(32)) }

// SetNumber notes a number.
func (s *Store) SetNumber(n uint64) { atomic.StoreUint64(s.word(32), max(n, s.Number())) }

func (s *Store) word(off int) *uint64 { return word(s.state, off) }

func word(b []byte, off int) *uint64 { return (*uint64)(unsafe.Pointer(&b[off])) }

// Close unmaps everything. No method may be called during or after it.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.regions {
		r.close()
	}
	s.regions = nil
	if s.state != nil {
		unix.Munmap(s.state)
		s.state = nil
	}
	return s.lock.Close()
}

// mapFile maps size bytes of a file, which it makes or lengthens. fresh: it was empty.
func mapFile(path string, size uint64, m *[]byte) (fresh bool, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return false, err
	}
	defer f.Close()
	*m, fresh, err = mapOpen(f, size)
	if err != nil {
		return false, fmt.Errorf("map %s: %w", path, err)
	}
	return fresh, nil
}

func mapOpen(f *os.File, size uint64) (m []byte, fresh bool, err error) {
	st, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	if st.Size() < int64(size) {
		if err := f.Truncate(int64(size)); err != nil {
			return nil, false, err
		}
	}
	m, err = unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return m, st.Size() == 0, err
}
