// Package probe measures an outage the way a client has it: it asks a TCP service for one line over a new connection
// every few milliseconds, notes who answered and when, and afterwards says how long nobody answered, how long two
// nodes answered at the same time, and whether anybody answered with an epoch that had already been succeeded.
//
// The probes run as processes of their own inside client hosts and stream their records to a Collector; the analysis is
// pure. Three probes are needed for a judgement about two nodes: one that resolves the address by ARP like any client,
// and one pinned to the MAC of each node, because an address that two nodes have shows only one of them to a client.
//
// All times are CLOCK_BOOTTIME of the one kernel under all hosts, so records of several probes and the instants at
// which faults were injected can be compared. A probe that gets no CPU measures its own lateness as silence: figures of
// a busy machine are upper bounds.
package probe

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

// Why says how an attempt ended.
type Why uint8

const (
	OK Why = iota
	Timeout
	Refused
	Reset
	NoRoute
	EOF
	Other
)

func (w Why) String() string {
	switch w {
	case OK:
		return "ok"
	case Timeout:
		return "timeout"
	case Refused:
		return "refused"
	case Reset:
		return "reset"
	case NoRoute:
		return "noroute"
	case EOF:
		return "eof"
	}
	return "other"
}

// Record is one attempt.
type Record struct {
	Start, End cluster.Instant
	Epoch      uint64 // as the service said; 0: it did not
	Count      uint64 // the service's own counter
	Why        Why
	Node       string // who answered; "" unless Why is OK
}

// Now reads the clock of all records.
func Now() cluster.Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("CLOCK_BOOTTIME: " + err.Error()) // since Linux 2.6.39
	}
	return cluster.Instant(ts.Nano())
}

const (
	recordLen = 48
	maxNode   = 14 // longer names are cut
	headerLen = 16 // name of the probe, filled up with zeros
)

func (r Record) encode(b []byte) {
	binary.LittleEndian.PutUint64(b[0:], uint64(r.Start))
	binary.LittleEndian.PutUint64(b[8:], uint64(r.End))
	binary.LittleEndian.PutUint64(b[16:], r.Epoch)
	binary.LittleEndian.PutUint64(b[24:], r.Count)
	b[32] = byte(r.Why)
	b[33] = byte(copy(b[34:34+maxNode], r.Node))
}

func decode(b []byte) (Record, error) {
	n := int(b[33])
	if n > maxNode || b[32] > byte(Other) {
		return Record{}, fmt.Errorf("record of a probe: %d bytes of name, end %d", n, b[32])
	}
	return Record{
		Start: cluster.Instant(binary.LittleEndian.Uint64(b[0:])),
		End:   cluster.Instant(binary.LittleEndian.Uint64(b[8:])),
		Epoch: binary.LittleEndian.Uint64(b[16:]),
		Count: binary.LittleEndian.Uint64(b[24:]),
		Why:   Why(b[32]),
		Node:  string(b[34 : 34+n]),
	}, nil
}

// sink batches records, because a write each would cost more than the probing.
type sink struct {
	w     interface{ Write([]byte) (int, error) }
	buf   []byte
	since cluster.Instant // of the oldest record in buf
}

const flushAfter = 20_000_000 // ns

func (s *sink) add(r Record) {
	if len(s.buf) == 0 {
		s.since = r.End
	}
	n := len(s.buf)
	s.buf = append(s.buf, make([]byte, recordLen)...)
	r.encode(s.buf[n:])
}

func (s *sink) flush(now cluster.Instant, force bool) error {
	if len(s.buf) == 0 || !force && now-s.since < flushAfter {
		return nil
	}
	_, err := s.w.Write(s.buf)
	s.buf = s.buf[:0]
	return err
}

func header(name string) []byte {
	b := make([]byte, headerLen)
	copy(b, name)
	return b
}
