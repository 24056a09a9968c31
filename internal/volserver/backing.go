package volserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hanode/hanode/replication/journal"
	"github.com/hanode/hanode/replication/journal/disk"
	"github.com/hanode/hanode/replication/tree"
)

// header is the identity of the i-th volume's backing directory.
func (s *Start) header(i int) journal.Header {
	return journal.Header{Cluster: s.Data, Service: s.Service, Volume: s.Volumes[i].Name, Number: uint8(i + 1)}
}

// prepare makes sure that every backing directory is this volume's, and makes those that may be made. It says whether it made any.
func (s *Start) prepare() (made bool, err error) {
	for i := range s.Volumes {
		dir := s.Volumes[i].Backing
		err := journal.CheckHeader(disk.OS{}, dir, s.header(i))
		if err == nil {
			continue
		}
		if !errors.Is(err, journal.ErrNoState) && !errors.Is(err, os.ErrNotExist) {
			return made, err
		}
		empty, e := untouched(dir)
		switch {
		case e != nil:
			return made, e
		case !empty:
			return made, fmt.Errorf("%w (it holds something else)", err)
		case !s.Make:
			return made, fmt.Errorf("the backing directory %s of volume %s/%s is missing or empty, and this node has had its data: mount the disk that belongs there, or order a new copy: hanode volume replace %s/%s",
				dir, s.Service, s.Volumes[i].Name, s.Service, s.Volumes[i].Name)
		}
		if err := tree.Make(dir); err != nil {
			return made, fmt.Errorf("make the backing directory of volume %s/%s: %w", s.Service, s.Volumes[i].Name, err)
		}
		if err := journal.WriteHeader(disk.OS{}, dir, s.header(i)); err != nil {
			return made, err
		}
		made = true
	}
	return made, nil
}

// untouched says whether a directory is not there, or holds nothing but what an interrupted making of it has left.
func untouched(dir string) (bool, error) {
	es, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("backing directory %s: %w", dir, err)
	}
	for _, e := range es {
		if n := e.Name(); n != "tree" && n != "limbo" && n != "lost+found" {
			return false, nil
		}
		if e.Name() == "lost+found" {
			continue
		}
		in, err := os.ReadDir(filepath.Join(dir, e.Name()))
		if err != nil || len(in) > 0 {
			return false, err
		}
	}
	return true, nil
}

// loadState reads what the copy knows of itself. A copy whose state is missing although its journal is not empty is not trusted.
func (s *Start) loadState(j *journal.Journal, made bool) (journal.State, error) {
	dir := s.Volumes[0].Backing
	st, err := journal.LoadState(disk.OS{}, dir, s.Data)
	if errors.Is(err, journal.ErrNoState) {
		st = journal.State{Cluster: s.Data, Boot: s.Boot, Clean: true}
		if !made || j.Last().Seq > 0 {
			st.Inconsistent, st.Why = true, "its file `state` is missing"
		}
		return st, journal.StoreState(disk.OS{}, dir, st)
	}
	return st, err
}

// setsAside counts what was set aside from a copy.
func setsAside(dir string) int {
	es, err := os.ReadDir(filepath.Join(dir, "divergent"))
	if err != nil {
		return 0
	}
	return len(es)
}

// distrust marks this copy as one whose every byte has to be compared. The process has to end after it.
func (w *works) distrust(why string) error {
	if w.epoch.Load() != 0 {
		return errors.New("this copy is the active's: it is the one that others are compared with")
	}
	w.Fence(why)
	w.Abort()
	dir := w.start.Volumes[0].Backing
	st, err := journal.LoadState(disk.OS{}, dir, w.start.Data)
	if err != nil {
		return err
	}
	st.Inconsistent, st.Why, st.Clean = true, why, false
	return journal.StoreState(disk.OS{}, dir, st)
}
