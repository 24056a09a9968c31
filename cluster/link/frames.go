package link

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// The messages that are exchanged once per connection, before the channel's own bytes: magic, length, JSON.
const (
	frameMagic = "hnf1"
	maxHello   = 2 << 10
	maxJoin    = 64 << 10
)

var errMalformed = errors.New("malformed message")

// writeMessage writes v; limit is the receiver's.
func writeMessage(w io.Writer, v any, limit int) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > limit {
		return fmt.Errorf("message of %d bytes: at most %d are read", len(body), limit)
	}
	b := binary.BigEndian.AppendUint32([]byte(frameMagic), uint32(len(body)))
	_, err = w.Write(append(b, body...))
	return err
}

// readMessage reads into v what writeMessage wrote. It reads no byte more.
func readMessage(r io.Reader, v any, limit int) error {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[4:])
	if string(head[:4]) != frameMagic || n > uint32(limit) {
		return fmt.Errorf("%w: wrong magic, or %d bytes where at most %d are read", errMalformed, n, limit)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	return nil
}
