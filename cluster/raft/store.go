package raft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// ErrStalled is the answer to a write while the disk is slower than the deadline. The write may still happen.
var ErrStalled = errors.New("the disk under the Raft log is stalled")

var errStoreClosed = errors.New("the Raft store is closed")

// dbName is the file that holds log, term, vote and identity.
const dbName = "raft.db"

// Keys of hashicorp/raft that get special treatment, and ours.
const (
	keyTerm     = "CurrentTerm"
	keyVoteTerm = "LastVoteTerm"
	keyVoteCand = "LastVoteCand"
	keyVote     = "hanode-vote" // term and candidate in one record: one fsync, and never one without the other
	keyProbe    = "hanode-probe"
	keyIdentity = "hanode-identity"
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // cached by the standard library

// store is LogStore and StableStore for hashicorp/raft: raft-boltdb with a checksum on every record and a deadline on
// every write. One worker goroutine writes, in order, so that a probe which has succeeded proves that every late write
// before it has ended.
type store struct {
	bolt     *raftboltdb.BoltStore
	path     string
	deadline time.Duration
	slow     func() time.Duration
	ballast  *ballast

	jobs    chan *job
	closed  chan struct{}
	running atomic.Bool // the worker runs; before, writes are done in place and without a deadline
	opening atomic.Bool // NewRaft is reading: errors are returned to it, never ended with Goexit
	stalled atomic.Bool
	failed  atomic.Pointer[error]
	stallCh chan stall  // capacity 1
	leading func() bool // whether this member leads, asked when a stall begins
	fatalCh chan error  // capacity 1
	onFull  func(error)
	times   latencies

	voteMu   sync.Mutex
	voteTerm uint64 // announced by SetUint64(LastVoteTerm), written together with the candidate
}

type job struct {
	fn    func() error
	done  chan error
	state atomic.Int32
}

const (
	jobWaiting int32 = iota
	jobRunning
	jobAbandoned
)

func newStore(path string, deadline time.Duration, slow func() time.Duration, b *ballast, onFull func(error)) (*store, error) {
	var bolt *raftboltdb.BoltStore
	err := guarded(func() (err error) {
		bolt, err = raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: boltOptions(false)})
		return err
	})
	if err != nil {
		return nil, explainOpen(path, err)
	}
	return &store{
		bolt: bolt, path: path, deadline: deadline, slow: slow, ballast: b, onFull: onFull,
		jobs: make(chan *job, 64), closed: make(chan struct{}), stallCh: make(chan stall, 1), leading: func() bool { return false }, fatalCh: make(chan error, 1),
	}, nil
}

// boltOptions: the free list is kept in memory only (it is rebuilt at Open from a file of a few MiB), in a map.
func boltOptions(readOnly bool) *bbolt.Options {
	return &bbolt.Options{
		Timeout:        time.Second,
		ReadOnly:       readOnly,
		NoFreelistSync: true,
		FreelistType:   bbolt.FreelistMapType,
		NoStatistics:   true,
	}
}

// work is the worker. It ends when the store is closed; a write that hangs in the kernel holds it until the kernel
// lets go.
func (s *store) work() {
	for {
		select {
		case j := <-s.jobs:
			if !j.state.CompareAndSwap(jobWaiting, jobRunning) {
				continue
			}
			j.done <- s.carryOut(j.fn)
		case <-s.closed:
			return
		}
	}
}

func (s *store) carryOut(fn func() error) error {
	if err := s.failure(); err != nil {
		return err
	}
	start := time.Now()
	if s.slow != nil {
		if d := s.slow(); d > 0 {
			select {
			case <-time.After(d):
			case <-s.closed:
				return errStoreClosed
			}
		}
	}
	err := fn()
	if err != nil && isFull(err) && s.ballast.release() {
		s.onFull(err)
		err = fn()
	}
	s.times.add(time.Since(start))
	if err != nil {
		return s.fatal(fmt.Errorf("write to %s: %w; the file is not to be trusted any more: check the disk, then start again", s.path, err))
	}
	return nil
}

// fatal makes the store refuse everything from now on and remembers the first reason.
func (s *store) fatal(err error) error {
	if s.failed.CompareAndSwap(nil, &err) {
		s.fatalCh <- err
	}
	return s.failure()
}

func (s *store) failure() error {
	if p := s.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// stall is the beginning of one.
type stall struct {
	why string
	led bool // this member led until then
}

// stall makes the store refuse writes until resume. It returns before Raft hears of it, so what led is still known.
func (s *store) stall(why string) {
	if s.stalled.CompareAndSwap(false, true) {
		s.stallCh <- stall{why, s.leading()}
	}
}

// resume ends a stall. The caller has thrown away the Raft instance that saw it.
func (s *store) resume() {
	s.stalled.Store(false)
	select {
	case <-s.stallCh:
	default:
	}
}

// write carries fn out, or gives up after the deadline and begins a stall.
func (s *store) write(what string, fn func() error) error {
	if !s.running.Load() {
		return s.carryOut(fn)
	}
	if err := s.failure(); err != nil {
		return err
	}
	if s.stalled.Load() {
		return ErrStalled
	}
	j := &job{fn: fn, done: make(chan error, 1)}
	select {
	case s.jobs <- j:
	default:
		s.stall(fmt.Sprintf("%d writes wait", cap(s.jobs)))
		return ErrStalled
	}
	late := time.NewTimer(s.deadline)
	defer late.Stop()
	select {
	case err := <-j.done:
		return err
	case <-late.C:
		j.state.CompareAndSwap(jobWaiting, jobAbandoned)
		s.stall(fmt.Sprintf("%s took more than %v", what, s.deadline))
		return ErrStalled
	case <-s.closed:
		return errStoreClosed
	}
}

// writeTerm is write for the current term, for which hashicorp/raft panics on any error. It begins the stall in time as
// well, but keeps its caller waiting until the term is on disk; if that never happens it ends the calling goroutine.
// No harm is done by that: the instance is being thrown away, and its goroutines count themselves out when they end.
func (s *store) writeTerm(fn func() error) error {
	if !s.running.Load() || s.opening.Load() {
		return s.write("the term", fn)
	}
	j := &job{fn: fn, done: make(chan error, 1)}
	select {
	case s.jobs <- j:
	case <-s.closed:
		runtime.Goexit()
	}
	late := time.NewTimer(s.deadline)
	defer late.Stop()
	for {
		select {
		case err := <-j.done:
			if err != nil {
				runtime.Goexit()
			}
			return nil
		case <-late.C:
			s.stall(fmt.Sprintf("writing the term took more than %v", s.deadline))
		case <-s.closed:
			runtime.Goexit()
		}
	}
}

// probe measures one write while the store is stalled. It waits as long as it takes, or until stop is closed.
func (s *store) probe(stop <-chan struct{}) (time.Duration, error) {
	start := time.Now()
	j := &job{done: make(chan error, 1), fn: func() error {
		return s.bolt.Set([]byte(keyProbe), binary.BigEndian.AppendUint64(nil, uint64(start.UnixNano())))
	}}
	select {
	case s.jobs <- j:
	case <-stop:
		return 0, errStoreClosed
	}
	select {
	case err := <-j.done:
		return time.Since(start), err
	case <-stop:
		return 0, errStoreClosed
	}
}

// close ends the worker's waiting. The file is closed by closeFile once the worker is gone.
func (s *store) close() { close(s.closed) }

// read judges the error of a read: a missing record is an answer, anything else makes the store unusable.
func (s *store) read(err error) error {
	if err == nil || errors.Is(err, hraft.ErrLogNotFound) || errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	err = s.fatal(fmt.Errorf("read %s: %w; put a copy of %s aside, empty the directory and let this member join again", s.path, err, filepath.Dir(s.path)))
	if s.running.Load() && !s.opening.Load() {
		runtime.Goexit() // hashicorp/raft would panic; OnFatal ends the process in order
	}
	return err
}

// Log entries. The checksum travels in the Extensions field on disk only; it is not sent to other members.

func logSum(l *hraft.Log, ext []byte) uint32 {
	var head [17]byte
	binary.BigEndian.PutUint64(head[0:], l.Index)
	binary.BigEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	c := crc32.Update(0, castagnoli(), head[:])
	c = crc32.Update(c, castagnoli(), l.Data)
	return crc32.Update(c, castagnoli(), ext)
}

// unseal checks an entry as it came from disk against its place and its checksum, and takes the checksum off.
func unseal(index uint64, l *hraft.Log) error {
	if l.Index != index || len(l.Extensions) < 4 {
		return fmt.Errorf("log entry %d is damaged", index)
	}
	sum, ext := binary.BigEndian.Uint32(l.Extensions), l.Extensions[4:]
	if logSum(l, ext) != sum {
		return fmt.Errorf("log entry %d is damaged (checksum)", index)
	}
	l.Extensions = nil
	if len(ext) > 0 {
		l.Extensions = ext
	}
	return nil
}

func (s *store) FirstIndex() (uint64, error) { i, err := s.bolt.FirstIndex(); return i, s.read(err) }
func (s *store) LastIndex() (uint64, error)  { i, err := s.bolt.LastIndex(); return i, s.read(err) }

func (s *store) GetLog(index uint64, l *hraft.Log) error {
	if err := s.read(s.bolt.GetLog(index, l)); err != nil {
		return err
	}
	return s.read(unseal(index, l))
}

func (s *store) StoreLog(l *hraft.Log) error { return s.StoreLogs([]*hraft.Log{l}) }

func (s *store) StoreLogs(logs []*hraft.Log) error {
	sealed := make([]hraft.Log, len(logs))
	ptrs := make([]*hraft.Log, len(logs))
	for i, l := range logs {
		sealed[i] = *l
		sealed[i].Extensions = append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(l.Extensions)), logSum(l, l.Extensions)), l.Extensions...)
		ptrs[i] = &sealed[i]
	}
	return s.write("appending to the log", func() error { return s.bolt.StoreLogs(ptrs) })
}

func (s *store) DeleteRange(min, max uint64) error {
	return s.write("deleting from the log", func() error { return s.bolt.DeleteRange(min, max) })
}

// Stable values carry a checksum over key and value.

func sealValue(key string, v []byte) []byte {
	sum := crc32.Update(crc32.Update(0, castagnoli(), []byte(key)), castagnoli(), v)
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, len(v)+4), v...), sum)
}

func unsealValue(key string, b []byte) ([]byte, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("record %q is damaged", key)
	}
	v := b[:len(b)-4]
	if string(sealValue(key, v)[len(v):]) != string(b[len(v):]) {
		return nil, fmt.Errorf("record %q is damaged (checksum)", key)
	}
	return v, nil
}

func (s *store) get(key string) ([]byte, error) {
	b, err := s.bolt.Get([]byte(key))
	if err = s.read(err); err != nil {
		return nil, err
	}
	v, err := unsealValue(key, b)
	return v, s.read(err)
}

func (s *store) set(key string, v []byte) error {
	b := sealValue(key, v)
	return s.write("writing "+key, func() error { return s.bolt.Set([]byte(key), b) })
}

func (s *store) vote() (term uint64, candidate []byte, err error) {
	v, err := s.get(keyVote)
	if err != nil {
		return 0, nil, err
	}
	if len(v) < 8 {
		return 0, nil, s.read(fmt.Errorf("record %q is damaged", keyVote))
	}
	return binary.BigEndian.Uint64(v), v[8:], nil
}

func (s *store) Set(key, v []byte) error {
	if string(key) != keyVoteCand {
		return s.set(string(key), v)
	}
	s.voteMu.Lock()
	defer s.voteMu.Unlock()
	return s.set(keyVote, append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(v)), s.voteTerm), v...))
}

func (s *store) Get(key []byte) ([]byte, error) {
	if string(key) == keyVoteCand {
		_, cand, err := s.vote()
		return cand, err
	}
	return s.get(string(key))
}

// SetUint64 of LastVoteTerm only notes the term: persistVote of hashicorp/raft, its only caller, sets the candidate
// next and grants the vote only if that succeeded.
func (s *store) SetUint64(key []byte, v uint64) error {
	b := sealValue(string(key), binary.BigEndian.AppendUint64(nil, v))
	switch string(key) {
	case keyVoteTerm:
		s.voteMu.Lock()
		s.voteTerm = v
		s.voteMu.Unlock()
		return nil
	case keyTerm:
		return s.writeTerm(func() error { return s.bolt.Set(key, b) })
	}
	return s.write("writing "+string(key), func() error { return s.bolt.Set(key, b) })
}

func (s *store) GetUint64(key []byte) (uint64, error) {
	if string(key) == keyVoteTerm {
		term, _, err := s.vote()
		return term, err
	}
	v, err := s.get(string(key))
	if err != nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, s.read(fmt.Errorf("record %q is damaged", key))
	}
	return binary.BigEndian.Uint64(v), nil
}
