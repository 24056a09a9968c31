package volume

import (
	"bufio"
	"bytes"
	"hash/maphash"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

// stores looks after what the kernel does not tell: an O_RDWR descriptor that was opened while others read the file by passthrough maps the backing
// file itself, so that what is stored through a shared mapping of it never comes by the server. While such a descriptor is open, or such a mapping is there,
// /proc is looked through every storesEvery; while there is a mapping, the file is read each time, and what has changed is recorded, so that the standby is
// at most that much behind what was stored. msync through such a mapping does not wait for the standby: the log says so, once for each time. At
// the end a file of at most storesKnown bytes is compared with what it was when the descriptor was opened, so that a mapping that came and went
// between two looks is found too; with a larger file such a short one is missed. Everything else about such a descriptor, fsync included, is as
// usual. A file that was opened with O_RDWR lately is not passed through (modes.go), so this is for the first such open of a file that somebody
// has had open for reading for longer than mixedWait.
type stores struct {
	mu   sync.Mutex
	ids  map[replication.FileID]*stored
	busy bool
	wg   sync.WaitGroup
}

// stored is what is known of the content of a watched file.
type stored struct {
	sums   []uint64 // of its chunks
	known  bool     // sums are of the whole file, as it was recorded
	mapped bool     // at the last look
}

const (
	storesEvery = 50 * time.Millisecond
	storesChunk = 64 << 10
	storesKnown = 64 << 20
)

var storesSeed = maphash.MakeSeed()

// watch begins to look after a file, until it is neither open nor mapped any more. It returns before the descriptor is given to its user.
func (s *stores) watch(v *FS, id replication.FileID, file *tree.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids == nil {
		s.ids = map[replication.FileID]*stored{}
	}
	if s.ids[id] == nil {
		st := &stored{}
		if a, err := v.tree.Stat(id); err == nil && a.Size <= storesKnown {
			st.known = st.compare(file, func(int64, []byte) error { return nil }) == nil
		}
		s.ids[id] = st
	}
	if !s.busy {
		s.busy = true
		s.wg.Go(func() { s.run(v) })
	}
}

// run ends when nothing is left to look after or the volume is aborted.
func (s *stores) run(v *FS) {
	tick := time.NewTicker(storesEvery)
	defer tick.Stop()
	m, err := mountOf(v.cfg.Mount)
	if err != nil || m == nil {
		return
	}
	for {
		select {
		case <-v.aborted:
			return
		case <-v.served:
			return
		case <-tick.C:
		}
		mapped := mappedShared(m)
		s.mu.Lock()
		ids := make(map[replication.FileID]*stored, len(s.ids))
		for id, st := range s.ids {
			ids[id] = st
		}
		s.mu.Unlock()
		over := map[replication.FileID]bool{}
		for id, st := range ids {
			over[id] = !mapped[id] && !v.unsafelyOpen(id)
			if mapped[id] || st.mapped || over[id] && st.known {
				v.catchUp(id, st, mapped[id])
			}
		}
		s.mu.Lock()
		for id := range ids {
			if over[id] && !v.unsafelyOpen(id) {
				delete(s.ids, id)
			}
		}
		if len(s.ids) == 0 {
			s.busy = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
	}
}

func (v *FS) unsafelyOpen(id replication.FileID) bool {
	n := v.nodes.get(id)
	defer v.nodes.put(n)
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.modes.unsafe > 0
}

// catchUp records what was stored through a mapping.
func (v *FS) catchUp(id replication.FileID, st *stored, mapped bool) {
	if mapped && !st.mapped {
		v.logger.Warn("a process maps a file for writing that others have open for reading only: what it stores reaches the standby within 0.1 s, and msync does not wait for it",
			"id", id, "remedy", "open it for reading and writing before others read it")
	}
	st.mapped = mapped
	n := v.nodes.get(id)
	defer v.nodes.put(n)
	n.use.Lock() // no write is in flight: what is read is what was recorded, but for what was stored
	defer n.use.Unlock()
	f, err := v.tree.OpenFile(id, unix.O_RDONLY)
	if err != nil {
		return
	}
	defer f.Close()
	err = st.compare(f, func(off int64, b []byte) error {
		return v.record(&replication.Op{Kind: replication.Write, ID: id, Off: off, Data: b})
	})
	st.known = st.known || err == nil
}

// compare reads the file and gives each chunk that is not what it was to changed.
func (st *stored) compare(f *tree.File, changed func(off int64, b []byte) error) error {
	buf := make([]byte, storesChunk)
	for i := 0; ; i++ {
		k, err := f.ReadAt(buf, int64(i)*storesChunk)
		if err != nil && err != io.EOF {
			return err
		}
		if k == 0 {
			st.sums = st.sums[:min(i, len(st.sums))]
			return nil
		}
		sum := maphash.Bytes(storesSeed, buf[:k])
		switch {
		case i == len(st.sums):
			st.sums = append(st.sums, ^sum)
			fallthrough
		case st.sums[i] != sum:
			if err := changed(int64(i)*storesChunk, buf[:k]); err != nil {
				return err
			}
			st.sums[i] = sum
		}
	}
}

// record takes an operation through gate and log that is in the tree already.
func (v *FS) record(op *replication.Op) error {
	if st := v.mayChange(); st != 0 {
		return unix.Errno(st)
	}
	op.Volume, op.Time = v.cfg.Index, now()
	t, err := v.log.Submit(op)
	if err != nil {
		return err
	}
	err = v.log.Wait(t)
	if err == nil {
		v.log.Done(t, nil)
		v.stats.Stored.Add(uint64(len(op.Data)))
	}
	return err
}

// mappedShared finds which files of the mount somebody may store into by a shared mapping.
func mappedShared(m *mountInfo) map[replication.FileID]bool {
	out := map[replication.FileID]bool{}
	dev := m.devHex()
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return out
	}
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		f, err := os.Open(filepath.Join("/proc", p.Name(), "maps"))
		if err != nil {
			continue
		}
		for sc := bufio.NewScanner(f); sc.Scan(); {
			// address perms offset dev inode path
			line := sc.Bytes()
			if !bytes.Contains(line, dev) {
				continue
			}
			w := bytes.Fields(line)
			if len(w) < 5 || len(w[1]) < 4 || w[1][1] != 'w' || w[1][3] != 's' {
				continue
			}
			if id, err := strconv.ParseUint(string(w[4]), 10, 64); err == nil {
				out[replication.FileID(id)] = true
			}
		}
		f.Close()
	}
	return out
}
