package stream

import (
	"fmt"
	"io"
	"sync"
)

// channelWindow bounds what one side of a resync may have sent that the other has not consumed: the connection's reader never waits for it.
const channelWindow = 1 << 20

// channel is the resync's part of a connection.
type channel struct {
	w    *wire
	mu   sync.Mutex
	cond sync.Cond

	in       []byte
	ended    bool // the other side has said that its walk is over
	end      uint64
	err      error
	sent     uint64
	credited uint64 // of what was sent
	read     uint64
	told     uint64 // of what was read
}

func newChannel(w *wire) *channel {
	c := &channel{w: w}
	c.cond.L = &c.mu
	return c
}

// Write sends p in chunks, as far as the other side has room.
func (c *channel) Write(p []byte) (n int, err error) {
	b := make([]byte, frameHead, frameHead+min(len(p), maxChunk))
	for len(p) > 0 {
		k := min(len(p), maxChunk)
		c.mu.Lock()
		for c.err == nil && c.sent-c.credited+uint64(k) > channelWindow {
			c.cond.Wait()
		}
		if err := c.err; err != nil {
			c.mu.Unlock()
			return n, err
		}
		c.sent += uint64(k)
		c.mu.Unlock()
		head{typ: frameChunk, n: k}.put(b[:frameHead])
		b = append(b[:frameHead], p[:k]...)
		if err := c.w.write(b); err != nil {
			return n, err
		}
		n += k
		p = p[k:]
	}
	return n, nil
}

// Read waits for something; io.EOF after the end of the walk.
func (c *channel) Read(p []byte) (int, error) {
	c.mu.Lock()
	for c.err == nil && len(c.in) == 0 && !c.ended {
		c.cond.Wait()
	}
	switch {
	case len(c.in) > 0:
	case c.err != nil:
		defer c.mu.Unlock()
		return 0, c.err
	default:
		c.mu.Unlock()
		return 0, io.EOF
	}
	n := copy(p, c.in)
	c.in = c.in[n:]
	if len(c.in) == 0 {
		c.in = nil
	}
	c.read += uint64(n)
	tell := uint64(0)
	if c.read-c.told >= channelWindow/4 {
		c.told, tell = c.read, c.read
	}
	c.mu.Unlock()
	if tell > 0 {
		if err := c.w.frame(head{typ: frameCredit, seq: tell}); err != nil {
			return n, err
		}
	}
	return n, nil
}

// take is given the frames of the channel by the connection's reader.
func (c *channel) take(w *wire, h head) error {
	if c == nil {
		return fmt.Errorf("%w: a part of a resync, and there is none", errFrame)
	}
	var b []byte
	if h.typ == frameChunk {
		c.mu.Lock()
		room := channelWindow - len(c.in)
		c.mu.Unlock()
		if h.n > room {
			return fmt.Errorf("%w: more of a resync than there is room for", errFrame)
		}
		b = make([]byte, h.n)
		if _, err := io.ReadFull(w.r, b); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch h.typ {
	case frameChunk:
		c.in = append(c.in, b...)
	case frameCredit:
		if h.seq > c.sent || h.seq < c.credited {
			return fmt.Errorf("%w: credit for what was not sent", errFrame)
		}
		c.credited = h.seq
	case frameEnd:
		c.ended, c.end = true, h.seq
	}
	c.cond.Broadcast()
	return nil
}

// awaitEnd drops what comes until the source's walk has ended, and returns what it may have seen.
func (c *channel) awaitEnd() (uint64, error) {
	b := make([]byte, 4096)
	for {
		if _, err := c.Read(b); err == io.EOF {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.end, nil
		} else if err != nil {
			return 0, err
		}
	}
}

// rewind makes ready for another walk.
func (c *channel) rewind() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in, c.ended = nil, false
}

// Close gives the channel up from this side: Read and Write return, and the resync ends with an error, and with it the connection.
func (c *channel) Close() error {
	c.close(io.ErrClosedPipe)
	return nil
}

func (c *channel) close(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	c.cond.Broadcast()
}
