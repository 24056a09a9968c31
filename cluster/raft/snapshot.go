package raft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"

	hraft "github.com/hashicorp/raft"
)

// Snapshot frame, big endian: magic (8), format (2), length of cluster id (2), index (8), index of the last configuration
// (8), length of state (4), cluster id, state, CRC-32C of all before (4).
const (
	snapMagic  = "HANODESN"
	snapFormat = 1
	snapHead   = 8 + 2 + 2 + 8 + 8 + 4
)

type snapFrame struct {
	cluster   string
	index     uint64 // the last command or configuration in the state
	confIndex uint64
	state     []byte
}

func (f snapFrame) encode() ([]byte, error) {
	if len(f.state) > MaxSnapshot || len(f.cluster) > 256 {
		return nil, fmt.Errorf("snapshot of %d bytes: at most %d are allowed", len(f.state), MaxSnapshot)
	}
	b := make([]byte, 0, snapHead+len(f.cluster)+len(f.state)+4)
	b = append(b, snapMagic...)
	b = binary.BigEndian.AppendUint16(b, snapFormat)
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.cluster)))
	b = binary.BigEndian.AppendUint64(b, f.index)
	b = binary.BigEndian.AppendUint64(b, f.confIndex)
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.state)))
	b = append(b, f.cluster...)
	b = append(b, f.state...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli())), nil
}

func readSnapFrame(r io.Reader) (f snapFrame, err error) {
	var head [snapHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return f, fmt.Errorf("snapshot ends within its head: %w", err)
	}
	if string(head[:8]) != snapMagic {
		return f, errors.New("this is not a snapshot of hanode")
	}
	if v := binary.BigEndian.Uint16(head[8:]); v != snapFormat {
		return f, fmt.Errorf("snapshot has format %d, this version reads %d: upgrade this member", v, snapFormat)
	}
	idLen, stateLen := int(binary.BigEndian.Uint16(head[10:])), binary.BigEndian.Uint32(head[28:])
	if idLen > 256 || stateLen > MaxSnapshot {
		return f, fmt.Errorf("snapshot claims %d bytes: at most %d are allowed", stateLen, MaxSnapshot)
	}
	body := make([]byte, idLen+int(stateLen)+4)
	if _, err := io.ReadFull(r, body); err != nil {
		return f, fmt.Errorf("snapshot is cut short: %w", err)
	}
	sum := crc32.Update(crc32.Checksum(head[:], castagnoli()), castagnoli(), body[:len(body)-4])
	if sum != binary.BigEndian.Uint32(body[len(body)-4:]) {
		return f, errors.New("snapshot is damaged (checksum)")
	}
	f.index, f.confIndex = binary.BigEndian.Uint64(head[12:]), binary.BigEndian.Uint64(head[20:])
	f.cluster, f.state = string(body[:idLen]), body[idLen:len(body)-4]
	return f, nil
}

// machine is what all Raft instances of one Group share of the state machine: how far it is.
type machine struct {
	fsm     FSM
	cluster string

	mu        sync.Mutex // held only to wake waiters
	moved     chan struct{}
	applied   atomic.Uint64 // the last command or configuration that fsm has seen
	confIndex atomic.Uint64
	snapIndex atomic.Uint64
}

// advance wakes whoever waits for an index.
func (m *machine) advance(index uint64) {
	m.applied.Store(index)
	m.mu.Lock()
	if m.moved != nil {
		close(m.moved)
		m.moved = nil
	}
	m.mu.Unlock()
}

// changed is closed with the next advance.
func (m *machine) changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.moved == nil {
		m.moved = make(chan struct{})
	}
	return m.moved
}

// replayer is the hashicorp FSM and ConfigurationStore of one Raft instance. A new instance over the same machine reads
// the log again from its snapshot; what the machine has applied already is skipped.
type replayer struct {
	m      *machine
	seen   uint64            // the last index this instance has passed to us
	accept func(string) bool // which clusters' snapshots are taken; nil: the machine's own
}

func (r *replayer) Apply(l *hraft.Log) interface{} {
	r.seen = l.Index
	if l.Index <= r.m.applied.Load() {
		return nil
	}
	result := r.m.fsm.Apply(l.Index, l.Data)
	r.m.advance(l.Index)
	return result
}

func (r *replayer) StoreConfiguration(index uint64, c hraft.Configuration) {
	r.seen = index
	if index <= r.m.applied.Load() {
		return
	}
	r.m.fsm.Voters(index, c.Servers)
	r.m.confIndex.Store(index)
	r.m.advance(index)
}

func (r *replayer) Snapshot() (hraft.FSMSnapshot, error) {
	index := r.m.applied.Load()
	if r.seen < index {
		return nil, fmt.Errorf("the log is being read again (%d of %d)", r.seen, index)
	}
	state, err := r.m.fsm.Snapshot()
	if err != nil {
		return nil, fmt.Errorf("snapshot of the state machine at %d: %w", index, err)
	}
	b, err := snapFrame{r.m.cluster, index, r.m.confIndex.Load(), state}.encode()
	if err != nil {
		return nil, err
	}
	return &snapshotBytes{m: r.m, index: index, b: b}, nil
}

func (r *replayer) Restore(rc io.ReadCloser) error {
	f, err := readSnapFrame(rc)
	if err != nil {
		return err
	}
	if r.accept == nil && f.cluster != r.m.cluster || r.accept != nil && !r.accept(f.cluster) {
		return fmt.Errorf("snapshot belongs to cluster %s, this is %s", f.cluster, r.m.cluster)
	}
	r.seen = f.index
	r.m.snapIndex.Store(f.index)
	if f.index <= r.m.applied.Load() && f.index != 0 {
		return nil
	}
	if err := r.m.fsm.Restore(f.state); err != nil {
		return fmt.Errorf("restore the state machine at %d: %w", f.index, err)
	}
	r.m.confIndex.Store(f.confIndex)
	r.m.advance(f.index)
	return nil
}

type snapshotBytes struct {
	m     *machine
	index uint64
	b     []byte
}

func (s *snapshotBytes) Persist(sink hraft.SnapshotSink) error {
	if _, err := sink.Write(s.b); err != nil {
		sink.Cancel()
		return err
	}
	if err := sink.Close(); err != nil {
		return err
	}
	s.m.snapIndex.Store(s.index)
	return nil
}

func (s *snapshotBytes) Release() {}
