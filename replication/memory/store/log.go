package store

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LogSize is the room of a message log in bytes.
const LogSize = 16 << 20

// MaxRecord bounds one record of a message log in bytes.
const MaxRecord = 32 << 10

// ErrLogFull says that a message log has no room.
var ErrLogFull = errors.New("the message log is full")

// Log is the message log beside a region: small records since the newest image. A record: u32 length (written last; 0: the end),
// u32 CRC-32C of sequence and data, u64 sequence, the data, padded to 8 bytes.
type Log struct {
	mu    sync.Mutex
	path  string
	mem   []byte
	end   uint64 // where the next record goes
	first uint64 // sequence of the first record there; 0: none
	last  uint64 // sequence of the last record ever; 0: none
	image uint64 // the newest image contains the records up to here
}

const recordHead = 16

func openLog(path string) (*Log, error) {
	l := &Log{path: path}
	if _, err := mapFile(path, LogSize, &l.mem); err != nil {
		return nil, err
	}
	l.scan()
	return l, nil
}

func (l *Log) scan() {
	l.end, l.first = 0, 0
	for {
		seq, _, next, ok := l.at(l.end)
		if !ok || l.last != 0 && l.first != 0 && seq != l.last+1 {
			break
		}
		if l.first == 0 {
			l.first = seq
		}
		l.last, l.end = seq, next
	}
	clear(l.mem[l.end:min(l.end+recordHead, LogSize)])
}

// at reads the record at off.
func (l *Log) at(off uint64) (seq uint64, data []byte, next uint64, ok bool) {
	if off+recordHead > LogSize {
		return 0, nil, 0, false
	}
	h := l.mem[off:]
	n := uint64(atomic.LoadUint32((*uint32)(unsafe.Pointer(&h[0]))))
	if n == 0 || n-1 > MaxRecord || off+recordHead+n-1 > LogSize {
		return 0, nil, 0, false
	}
	data = h[recordHead : recordHead+n-1]
	if le.Uint32(h[4:]) != crcOf(sum(h[8:16]), data) {
		return 0, nil, 0, false
	}
	return le.Uint64(h[8:]), data, off + step(n-1), true
}

func step(n uint64) uint64 { return (recordHead + n + 7) / 8 * 8 }

// Append adds the record with this sequence, which must follow the last one.
func (l *Log) Append(seq uint64, data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(data) > MaxRecord {
		return fmt.Errorf("a record of %d bytes: at most %d", len(data), MaxRecord)
	}
	if last := max(l.last, l.image); seq != last+1 {
		return fmt.Errorf("record %d does not follow record %d", seq, last)
	}
	if l.end+step(uint64(len(data)))+recordHead > LogSize {
		if err := l.compact(); err != nil {
			return err
		}
		if l.end+step(uint64(len(data)))+recordHead > LogSize {
			return fmt.Errorf("%w (%d MiB): make a checkpoint, which empties it", ErrLogFull, LogSize>>20)
		}
	}
	h := l.mem[l.end:]
	next := l.end + step(uint64(len(data)))
	clear(l.mem[next : next+recordHead])
	copy(h[recordHead:], data)
	le.PutUint64(h[8:], seq)
	le.PutUint32(h[4:], crcOf(sum(h[8:16]), data))
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&h[0])), uint32(len(data))+1)
	if l.first == 0 {
		l.first = seq
	}
	l.last, l.end = seq, next
	return nil
}

// covered notes that the newest image contains the records up to seq.
func (l *Log) covered(seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.image = max(l.image, seq)
	if l.first != 0 && l.last <= l.image {
		l.empty()
	}
	l.last = max(l.last, seq)
}

func (l *Log) empty() {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&l.mem[0])), 0)
	l.end, l.first = 0, 0
}

// Reset drops every record; the next one is seq+1.
func (l *Log) Reset(seq uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.empty()
	l.last, l.image = seq, seq
}

// compact drops the records that the newest image contains, by a new file in place of the old one.
func (l *Log) compact() error {
	if l.first == 0 || l.first > l.image {
		return nil
	}
	fresh := &Log{path: l.path + ".new"}
	os.Remove(fresh.path)
	if _, err := mapFile(fresh.path, LogSize, &fresh.mem); err != nil {
		return err
	}
	fresh.last, fresh.image = l.image, l.image
	err := l.each(l.image, fresh.Append)
	if err == nil {
		err = os.Rename(fresh.path, l.path)
	}
	if err != nil {
		fresh.close()
		return err
	}
	unix.Munmap(l.mem)
	l.mem, l.end, l.first, l.last = fresh.mem, fresh.end, fresh.first, max(l.last, fresh.last)
	return nil
}

// Last is the sequence of the last record.
func (l *Log) Last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(l.last, l.image)
}

// Each gives every record after the sequence to fn, whose data it must not keep.
func (l *Log) Each(after uint64, fn func(seq uint64, data []byte) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.each(after, fn)
}

func (l *Log) each(after uint64, fn func(seq uint64, data []byte) error) error {
	for off := uint64(0); off < l.end; {
		seq, data, next, ok := l.at(off)
		if !ok {
			return fmt.Errorf("the message log %s is damaged at byte %d", l.path, off)
		}
		if seq > after {
			if err := fn(seq, data); err != nil {
				return err
			}
		}
		off = next
	}
	return nil
}

func (l *Log) close() {
	if l.mem != nil {
		unix.Munmap(l.mem)
		l.mem = nil
	}
}
