package resync

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"

	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/tree"
)

// A frame, little endian: CRC-32C of the rest (4 bytes), "HRs" and the version 1 (4 bytes), then messages. A message: kind (1), length of the body (4), body.
const (
	frameHead   = 8
	messageHead = 5
	magic       = "HRs\x01"
	maxBody     = 384 << 10 // of a message
	dataMost    = 256 << 10 // content in one message
	partMost    = 128 << 10 // of a listing, before the next entry
	maxRow      = 64 << 10  // attributes of an inode
	maxTarget   = 4096
	blockSize   = 4096
	chunkBlocks = 256 // blocks in one request
	hashSize    = 16
)

type kind uint8

const (
	mHello   kind = 1  // f→s: volume, flags, hash key
	mWelcome kind = 2  // s→f: inodes
	mList    kind = 3  // f→s: request, id
	mListing kind = 4  // s→f: request, flags, id, position, 0, the directory itself (with fFirst), entries; with fLast the last one
	mInode   kind = 5  // f→s: request, id
	mNode    kind = 6  // s→f: request, flags, id, position, 0, inode
	mBlocks  kind = 7  // f→s: request, flags, id, offset, length, hashes
	mData    kind = 8  // s→f: request, offset, content
	mZero    kind = 9  // s→f: request, flags, offset, length
	mDiffers kind = 10 // s→f: request, offset, length (compare only)
	mDone    kind = 11 // s→f: request, flags, offset of the next data
	mOpen    kind = 12 // f→s: request
	mOpens   kind = 13 // s→f: request, ids
	mFail    kind = 14 // either: text; then the sender is gone
	mLookup  kind = 16 // f→s: request, id of the directory, name; the answer is mNode
	mBye     kind = 15 // f→s, and back: nothing follows
)

const (
	fGone    = 1  // there is no such inode
	fLast    = 2  // nothing of the directory follows
	fFirst   = 4  // the directory itself is in it
	fZero    = 8  // the follower's range reads as zeros: no hashes
	fHole    = 16 // no blocks are allocated
	fCompare = 32 // say what differs, send nothing
)

// message is any of them; which fields count depends on the kind.
type message struct {
	kind  kind
	flags uint8
	req   uint32
	id    FileID
	off   int64
	len   int64
	pos   uint64
	self  tree.Item
	items []tree.Item
	data  []byte // content, hashes, key
	ids   []FileID
	text  string
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrFrame is the error for a frame that is not what the other side should send: damaged, oversized or of another version.
var ErrFrame = errors.New("a frame of the resync is not one")

func seal(b, body []byte) []byte {
	b = append(b, 0, 0, 0, 0)
	b = append(append(b, magic...), body...)
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return b
}

func unseal(b []byte) ([]byte, error) {
	switch {
	case len(b) < frameHead || len(b) > MaxFrame:
		return nil, fmt.Errorf("%w: it has %d bytes", ErrFrame, len(b))
	case string(b[4:7]) != magic[:3]:
		return nil, fmt.Errorf("%w: it does not begin with %q", ErrFrame, magic[:3])
	case b[7] != magic[3]:
		return nil, fmt.Errorf("%w: it has version %d, this hanode speaks version %d: bring both nodes to one version", ErrFrame, b[7], magic[3])
	case crc32.Checksum(b[4:], castagnoli) != binary.LittleEndian.Uint32(b):
		return nil, fmt.Errorf("%w: its checksum is wrong", ErrFrame)
	}
	return b[frameHead:], nil
}

// whole is how much of b, which begins with a message, are whole messages of at most n bytes.
func whole(b []byte, n int) int {
	at := 0
	for at < len(b) {
		k := messageHead + int(binary.LittleEndian.Uint32(b[at+1:]))
		if at+k > n && at > 0 {
			return at
		}
		at += k
	}
	return at
}

func (m *message) append(b []byte) []byte {
	at := len(b)
	le := binary.LittleEndian
	b = append(b, byte(m.kind), 0, 0, 0, 0)
	switch m.kind {
	case mHello:
		b = append(append(b, uint8(m.id), m.flags), m.data...)
	case mWelcome:
		b = le.AppendUint64(b, uint64(m.len))
	case mFail:
		b = append(b, m.text[:min(len(m.text), 1000)]...)
	case mBye:
	default:
		b = append(le.AppendUint32(b, m.req), m.flags)
		switch m.kind {
		case mList, mInode, mLookup:
			b = append(le.AppendUint64(le.AppendUint64(b, uint64(m.id)), uint64(m.off)), m.text...)
		case mListing, mNode:
			b = le.AppendUint64(le.AppendUint64(le.AppendUint64(b, uint64(m.id)), m.pos), uint64(m.off))
			if m.flags&fFirst != 0 {
				b = appendItem(b, &m.self)
			}
			for i := range m.items {
				b = appendItem(b, &m.items[i])
			}
		case mBlocks:
			b = append(le.AppendUint64(le.AppendUint64(le.AppendUint64(b, uint64(m.id)), uint64(m.off)), uint64(m.len)), m.data...)
		case mData:
			b = append(le.AppendUint64(b, uint64(m.off)), m.data...)
		case mZero, mDiffers, mDone:
			b = le.AppendUint64(le.AppendUint64(b, uint64(m.off)), uint64(m.len))
		case mOpens:
			for _, id := range m.ids {
				b = le.AppendUint64(b, uint64(id))
			}
		}
	}
	le.PutUint32(b[at+1:], uint32(len(b)-at-messageHead))
	return b
}

func appendItem(b []byte, i *tree.Item) []byte {
	le := binary.LittleEndian
	s := &i.Stat
	for _, v := range [...]uint64{uint64(i.ID), uint64(s.Size), uint64(s.Blocks), uint64(s.Atime), uint64(s.Mtime)} {
		b = le.AppendUint64(b, v)
	}
	for _, v := range [...]uint32{s.Mode, s.Nlink, s.UID, s.GID, s.Rdev} {
		b = le.AppendUint32(b, v)
	}
	b = append(le.AppendUint16(b, uint16(len(i.Name))), i.Name...)
	b = append(le.AppendUint16(b, uint16(len(i.Target))), i.Target...)
	return append(le.AppendUint32(b, uint32(len(i.Xattrs))), i.Xattrs...)
}

// itemLen is the length of an encoded item.
func itemLen(i *tree.Item) int { return 60 + 2 + len(i.Name) + 2 + len(i.Target) + 4 + len(i.Xattrs) }

// reader takes fields off a body; short says that it did not have them.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.short, r.b = true, nil
		return make([]byte, 8)[:min(max(n, 0), 8)]
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u64() uint64 { return binary.LittleEndian.Uint64(r.take(8)) }
func (r *reader) u32() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }
func (r *reader) u16() int    { return int(binary.LittleEndian.Uint16(r.take(2))) }
func (r *reader) u8() uint8   { return r.take(1)[0] }

func (r *reader) text(most int) string {
	n := r.u16()
	if n > most || n > len(r.b) {
		r.short, r.b = true, nil
		return ""
	}
	return string(r.take(n))
}

func (r *reader) item() (i tree.Item) {
	s := &i.Stat
	i.ID, s.Size, s.Blocks, s.Atime, s.Mtime = FileID(r.u64()), int64(r.u64()), int64(r.u64()), int64(r.u64()), int64(r.u64())
	s.Mode, s.Nlink, s.UID, s.GID, s.Rdev = r.u32(), r.u32(), r.u32(), r.u32(), r.u32()
	i.Type = s.Mode & 0o170000
	i.Name, i.Target = r.text(replication.MaxName), r.text(maxTarget)
	n := r.u32()
	if n > maxRow || int(n) > len(r.b) {
		r.short, r.b = true, nil
		return i
	}
	if i.Xattrs = append([]byte(nil), r.take(int(n))...); n == 0 {
		i.Xattrs = nil
	}
	if s.Size < 0 || i.ID == 0 || replication.EachXattr(i.Xattrs, func(string, []byte) error { return nil }) != nil {
		r.short = true
	}
	return i
}

// parse reads the message at the beginning of b. Its data is a part of b.
func parse(b []byte) (m message, rest []byte, err error) {
	if len(b) < messageHead {
		return m, nil, fmt.Errorf("%w: %d bytes are left over", ErrFrame, len(b))
	}
	m.kind = kind(b[0])
	n := int(binary.LittleEndian.Uint32(b[1:]))
	if n > maxBody || n > len(b)-messageHead {
		return m, nil, fmt.Errorf("%w: message %d of %d bytes", ErrFrame, m.kind, n)
	}
	r := reader{b: b[messageHead : messageHead+n]}
	switch m.kind {
	case mHello:
		m.id, m.flags, m.data = FileID(r.u8()), r.u8(), r.take(hashSize)
	case mWelcome:
		m.len = int64(r.u64())
	case mFail:
		m.text = string(r.take(len(r.b)))
	case mBye:
	case mList, mInode:
		m.req, m.flags, m.id, m.off = r.u32(), r.u8(), FileID(r.u64()), int64(r.u64())
	case mLookup:
		m.req, m.flags, m.id, m.off = r.u32(), r.u8(), FileID(r.u64()), int64(r.u64())
		m.text = string(r.take(min(len(r.b), replication.MaxName)))
	case mListing, mNode:
		m.req, m.flags, m.id, m.pos, m.off = r.u32(), r.u8(), FileID(r.u64()), r.u64(), int64(r.u64())
		if m.flags&fFirst != 0 {
			m.self = r.item()
		}
		for len(r.b) > 0 {
			m.items = append(m.items, r.item())
		}
	case mBlocks:
		m.req, m.flags, m.id, m.off, m.len = r.u32(), r.u8(), FileID(r.u64()), int64(r.u64()), int64(r.u64())
		m.data = r.take(len(r.b))
		r.short = r.short || !m.asks()
	case mData:
		m.req, m.flags, m.off = r.u32(), r.u8(), int64(r.u64())
		m.data = r.take(len(r.b))
		r.short = r.short || m.off < 0 || len(m.data) > dataMost
	case mZero, mDiffers, mDone:
		m.req, m.flags, m.off, m.len = r.u32(), r.u8(), int64(r.u64()), int64(r.u64())
		r.short = r.short || m.off < 0 || m.len < 0
	case mOpen:
		m.req, m.flags = r.u32(), r.u8()
	case mOpens:
		m.req, m.flags = r.u32(), r.u8()
		for len(r.b) >= 8 {
			m.ids = append(m.ids, FileID(r.u64()))
		}
	default:
		return m, nil, fmt.Errorf("%w: message of kind %d", ErrFrame, m.kind)
	}
	if r.short || len(r.b) > 0 {
		return m, nil, fmt.Errorf("%w: message %d of %d bytes contradicts itself", ErrFrame, m.kind, n)
	}
	return m, b[messageHead+n:], nil
}

// asks says whether a request for blocks is one that may be asked.
func (m *message) asks() bool {
	if m.off < 0 || m.len <= 0 || m.off%blockSize != 0 || m.len > chunkBlocks*blockSize || m.off > 1<<62 {
		return false
	}
	if m.flags&fZero != 0 {
		return len(m.data) == 0
	}
	return int64(len(m.data)) == (m.len+blockSize-1)/blockSize*hashSize
}

// Conn makes a Channel of a connection, or of a part of one, that nobody else uses meanwhile. If rw has a method Close, the channel's Close
// calls it; else Close gives rw up: what is under way on it ends when its owner ends it.
func Conn(rw io.ReadWriter) Channel {
	c := &conn{rw: rw, closed: make(chan struct{})}
	c.closer, _ = rw.(io.Closer)
	return c
}

type conn struct {
	rw      io.ReadWriter
	closer  io.Closer
	once    sync.Once
	closed  chan struct{}
	mu      sync.Mutex // of Send
	out, in []byte
}

func (c *conn) Close() (err error) {
	c.once.Do(func() {
		close(c.closed)
		if c.closer != nil {
			err = c.closer.Close()
		}
	})
	return err
}

// until carries fn out. If rw cannot be closed, it is left alone when the channel is.
func (c *conn) until(fn func() error) error {
	if c.closer != nil {
		return fn()
	}
	done := make(chan error, 1)
	go func() { done <- fn() }() // ends with rw at the latest
	select {
	case err := <-done:
		return err
	case <-c.closed:
		return net.ErrClosed
	}
}

func (c *conn) Send(frame []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
	}
	c.out = append(binary.LittleEndian.AppendUint32(c.out[:0], uint32(len(frame))), frame...)
	return c.until(func() error {
		_, err := c.rw.Write(c.out)
		return err
	})
}

func (c *conn) Recv() ([]byte, error) {
	err := c.until(c.recv)
	return c.in, err
}

func (c *conn) recv() error {
	var head [4]byte
	if _, err := io.ReadFull(c.rw, head[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > MaxFrame {
		return fmt.Errorf("%w: it says that it has %d bytes", ErrFrame, n)
	}
	if cap(c.in) < int(n) {
		c.in = make([]byte, n)
	}
	c.in = c.in[:n]
	if _, err := io.ReadFull(c.rw, c.in); err != nil {
		return fmt.Errorf("a frame is cut short: %w", err)
	}
	return nil
}
