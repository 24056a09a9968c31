package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	iofs "io/fs"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
)

// Two small files stand beside the journal. Both are 16 bytes, little endian, and a text in JSON:
//
//	 0  4  "HSta" (state) or "HVol" (header)
//	 4  4  CRC-32C of bytes 8 to the end
//	 8  4  format version, 1
//	12  4  length of the text
//
// Each is replaced as a whole: written beside, synced, renamed, the directory synced. A reader takes it whole or refuses it.
const (
	stateName  = "state"
	headerName = "header"
	stateMagic = "HSta"
	volMagic   = "HVol"
	docVersion = 1
	docHead    = 16
	maxDoc     = 4 << 20
)

// Turn of the alone flag: the epoch and generation in which the active went on alone.
type Turn struct {
	Epoch cluster.Epoch      `json:"epoch"`
	Gen   cluster.Generation `json:"gen"`
}

// State is what one copy of a service's data knows of itself, durably (docs/replication.md, section 1).
type State struct {
	Cluster      string              `json:"cluster"`
	Epoch        cluster.Epoch       `json:"epoch"`
	Gen          cluster.Generation  `json:"gen"`
	History      replication.History `json:"history"`
	Inconsistent bool                `json:"inconsistent"`    // a resync has begun and not ended: the tree is nothing that ever was
	Why          string              `json:"why,omitempty"`   // it is inconsistent
	Alone        *Turn               `json:"alone,omitempty"` // the active acknowledges by itself
	Clean        bool                `json:"clean"`           // the last run ended in good order: everything is durable
	Boot         string              `json:"boot"`            // of the host, as of the last run
	NextID       replication.FileID  `json:"next_id"`         // ids below may have been given
}

// ErrNoState is the error of LoadState and CheckHeader when there is no such file.
var ErrNoState = errors.New("there is none")

// LoadState reads the state in dir. Errors: ErrNoState, *Damage, *Foreign.
func LoadState(fs FS, dir, clusterID string) (State, error) {
	var s State
	if err := loadDoc(fs, join(dir, stateName), stateMagic, &s); err != nil {
		return State{}, fmt.Errorf("read the state of the copy: %w", err)
	}
	if s.Cluster != clusterID {
		return State{}, &Foreign{join(dir, stateName), "cluster " + s.Cluster, "cluster " + clusterID}
	}
	return s, nil
}

// StoreState replaces the state in dir; after nil it is durable, after an error it is the old one or the new one.
func StoreState(fs FS, dir string, s State) error {
	if err := storeDoc(fs, dir, stateName, stateMagic, s); err != nil {
		return fmt.Errorf("write the state of the copy: %w", err)
	}
	return nil
}

// Header is whose a backing directory is. It is written once.
type Header struct {
	Cluster string `json:"cluster"`
	Service string `json:"service"`
	Volume  string `json:"volume"`
	Number  uint8  `json:"number"` // of the volume in the service, from 1: records carry it
}

func (h Header) String() string {
	return fmt.Sprintf("volume %s/%s (number %d) of cluster %s", h.Service, h.Volume, h.Number, h.Cluster)
}

// WriteHeader writes the identity of a backing directory, which has none yet.
func WriteHeader(fs FS, dir string, h Header) error {
	if err := CheckHeader(fs, dir, h); !errors.Is(err, ErrNoState) {
		if err == nil {
			return nil // an earlier attempt ended here
		}
		return err
	}
	if err := storeDoc(fs, dir, headerName, volMagic, h); err != nil {
		return fmt.Errorf("write the identity of the volume: %w", err)
	}
	return nil
}

// CheckHeader verifies that dir is the backing directory of the volume that h names. Errors: ErrNoState, *Damage, *Foreign.
func CheckHeader(fs FS, dir string, h Header) error {
	name := join(dir, headerName)
	var d Header
	if err := loadDoc(fs, name, volMagic, &d); errors.Is(err, ErrNoState) {
		return fmt.Errorf("%s is not the backing directory of a volume: it has no file `header`: %w. It is not filled by itself; "+
			"make the copy with `hanode volume replace`, or mount what belongs there", dir, err)
	} else if err != nil {
		return fmt.Errorf("read the identity of the volume: %w", err)
	}
	if d != h {
		return &Foreign{name, d.String(), h.String()}
	}
	return nil
}

func loadDoc(fs FS, name, magic string, v any) error {
	f, err := fs.Open(name)
	if errors.Is(err, iofs.ErrNotExist) {
		return fmt.Errorf("%s: %w", name, ErrNoState)
	} else if err != nil {
		return err
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil {
		return err
	}
	if n < docHead || n > maxDoc {
		return &Damage{name, 0, fmt.Sprintf("it has %d bytes", n)}
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	le := binary.LittleEndian
	switch {
	case string(b[:4]) != magic:
		return &Damage{name, 0, "it does not begin with " + magic}
	case crc32.Checksum(b[8:], castagnoli) != le.Uint32(b[4:]) || int64(le.Uint32(b[12:])) != n-docHead:
		return &Damage{name, 4, "its checksum is wrong"}
	case le.Uint32(b[8:]) != docVersion:
		return fmt.Errorf("%s has %w %d, this version of hanode reads format %d: run the version that wrote it", name, errFormat, le.Uint32(b[8:]), docVersion)
	}
	if err := json.Unmarshal(b[docHead:], v); err != nil {
		return &Damage{name, docHead, err.Error()}
	}
	return nil
}

func encodeDoc(magic string, v any) ([]byte, error) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	if text.Len() > maxDoc-docHead {
		return nil, fmt.Errorf("%d bytes: at most %d", text.Len(), maxDoc-docHead)
	}
	b := make([]byte, docHead, docHead+text.Len())
	le := binary.LittleEndian
	copy(b, magic)
	le.PutUint32(b[8:], docVersion)
	le.PutUint32(b[12:], uint32(text.Len()))
	b = append(b, text.Bytes()...)
	le.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	return b, nil
}

func storeDoc(fs FS, dir, name, magic string, v any) error {
	b, err := encodeDoc(magic, v)
	if err != nil {
		return err
	}
	tmp := join(dir, name+".tmp")
	f, err := fs.Create(tmp)
	if err != nil {
		return err
	}
	defer f.Close()
	if err = f.WriteVec([][]byte{b}, 0); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = fs.Rename(tmp, join(dir, name)); err != nil {
		return err
	}
	return fs.SyncDir(dir)
}
