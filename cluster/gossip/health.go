package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Health is what a member says about itself. It must fit into memberlist's 512 bytes.
type Health struct {
	Version   string        // of the program, at most 64 bytes
	Load      float64       // 1-minute load average, per CPU; kept to a hundredth
	FsyncP99  time.Duration // of the Raft log
	Lateness  time.Duration // p99.9 of how late a timer fires
	FreeDisk  uint64        // bytes on the file system with the least room
	FreeRatio uint8         // the same in percent
	LinksUp   uint8
	LinksDown uint8
	Degraded  bool   // the member knows something about itself that an operator should look at
	Note      string // what that is, at most 200 bytes
	Wall      int64  // the member's wall clock when it said so, in ms; 0: not said
	Realtime  bool   // it runs under real-time scheduling
	EBPF      bool   // its gate is the eBPF program
}

// The frame: format (1), then fields of tag (1), length (1), value. Unknown tags are skipped: fields are only added.
const (
	healthFormat = 1

	tagVersion   = 1
	tagLoad      = 2
	tagFsync     = 3
	tagLateness  = 4
	tagFreeDisk  = 5
	tagFreeRatio = 6
	tagLinks     = 7
	tagDegraded  = 8
	tagNote      = 9
	tagWall      = 10
	tagRealtime  = 11
	tagEBPF      = 12
)

// Encode returns at most 340 bytes: texts that are too long are cut.
func (h Health) Encode() []byte {
	b := []byte{healthFormat}
	number := func(tag byte, v uint64) {
		if v != 0 {
			b = binary.BigEndian.AppendUint64(append(b, tag, 8), v)
		}
	}
	text := func(tag byte, s string, limit int) {
		if s = s[:min(len(s), limit)]; s != "" {
			b = append(append(b, tag, byte(len(s))), s...)
		}
	}
	text(tagVersion, h.Version, 64)
	number(tagLoad, uint64(max(h.Load, 0)*100))
	number(tagFsync, uint64(max(h.FsyncP99, 0)))
	number(tagLateness, uint64(max(h.Lateness, 0)))
	number(tagFreeDisk, h.FreeDisk)
	number(tagFreeRatio, uint64(h.FreeRatio))
	b = append(b, tagLinks, 2, h.LinksUp, h.LinksDown)
	if h.Degraded {
		b = append(b, tagDegraded, 0)
	}
	text(tagNote, h.Note, 200)
	number(tagWall, uint64(max(h.Wall, 0)))
	if h.Realtime {
		b = append(b, tagRealtime, 0)
	}
	if h.EBPF {
		b = append(b, tagEBPF, 0)
	}
	return b
}

var errHealth = errors.New("malformed health")

// DecodeHealth reads what Encode wrote, of this or a later version.
func DecodeHealth(b []byte) (h Health, err error) {
	if len(b) == 0 || len(b) > 512 {
		return h, errHealth
	}
	if b[0] != healthFormat {
		return h, fmt.Errorf("health of format %d, this version reads %d", b[0], healthFormat)
	}
	for b = b[1:]; len(b) > 0; {
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return Health{}, errHealth
		}
		tag, v := b[0], b[2:2+int(b[1])]
		b = b[2+len(v):]
		if !h.set(tag, v) {
			return Health{}, errHealth
		}
	}
	return h, nil
}

// set puts one field in its place; false: its value is malformed.
func (h *Health) set(tag byte, v []byte) bool {
	var n uint64
	switch tag {
	case tagLoad, tagFsync, tagLateness, tagFreeDisk, tagFreeRatio, tagWall:
		if len(v) != 8 {
			return false
		}
		n = binary.BigEndian.Uint64(v)
	}
	switch tag {
	case tagVersion:
		h.Version = string(v)
	case tagLoad:
		h.Load = float64(n) / 100
	case tagFsync:
		h.FsyncP99 = time.Duration(n &^ (1 << 63))
	case tagLateness:
		h.Lateness = time.Duration(n &^ (1 << 63))
	case tagFreeDisk:
		h.FreeDisk = n
	case tagFreeRatio:
		h.FreeRatio = uint8(min(n, 100))
	case tagLinks:
		if len(v) != 2 {
			return false
		}
		h.LinksUp, h.LinksDown = v[0], v[1]
	case tagDegraded:
		h.Degraded = true
	case tagNote:
		h.Note = string(v)
	case tagRealtime:
		h.Realtime = true
	case tagEBPF:
		h.EBPF = true
	case tagWall:
		h.Wall = int64(n &^ (1 << 63))
	}
	return true
}
