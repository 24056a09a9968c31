package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// LastStatusFile is where the daemon leaves its newest Status, for `hanode status` to read when the daemon is dead. It
// is a help for people only: nothing decides by it, and losing it costs nothing.
const LastStatusFile = "last-status.json"

// SaveLastStatus replaces the file in one step. It does not fsync: an old one after a power cut is as good.
func SaveLastStatus(dir string, s *Status) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("write the last known status: %w", err)
	}
	path := filepath.Join(dir, LastStatusFile)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o640); err != nil {
		return fmt.Errorf("write the last known status: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write the last known status: %w", err)
	}
	return nil
}

// LoadLastStatus reads it, marked as last known and with its age at now.
func LoadLastStatus(dir string, now time.Time) (*Status, error) {
	path := filepath.Join(dir, LastStatusFile)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the last known status: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxReply+1))
	if err == nil && len(b) > MaxReply {
		err = errors.New("it is too large")
	}
	s := new(Status)
	if err == nil {
		err = json.Unmarshal(b, s)
	}
	if err != nil {
		return nil, fmt.Errorf("read the last known status %s: %w", path, err)
	}
	s.Source = SourceLastKnown
	s.AgeMs = Ms(max(0, now.Sub(s.At.Time).Truncate(time.Millisecond)))
	s.Cluster.Quorum, s.Cluster.Leader = false, ""
	return s, nil
}
