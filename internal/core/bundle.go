package core

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A bundle is several frames to one member in one datagram: what a member says at one moment wakes the other up once. Each is kind (1 byte), length (16 bits,
// big endian), payload. A bundle is not put into another one.

// bundleHead is what a frame takes besides its payload.
const bundleHead = 3

// Bundle puts an encoded frame into b, if no more than limit bytes come of it.
func Bundle(b []byte, k Kind, payload []byte, limit int) ([]byte, bool) {
	if len(b)+bundleHead+len(payload) > limit {
		return b, false
	}
	b = append(b, byte(k))
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	return append(b, payload...), true
}

// Unbundle decodes a datagram: one frame, or those of a bundle in their order. A bundle of which one frame cannot be read is refused whole.
func Unbundle(k Kind, b []byte) ([]Frame, error) {
	if k != KindBundle {
		f, err := DecodeFrame(k, b)
		if err != nil {
			return nil, err
		}
		return []Frame{f}, nil
	}
	var out []Frame
	for len(b) > 0 {
		if len(b) < bundleHead {
			return nil, errors.New("a bundle that ends within the head of a frame")
		}
		k, n := Kind(b[0]), int(binary.BigEndian.Uint16(b[1:]))
		if b = b[bundleHead:]; n > len(b) {
			return nil, fmt.Errorf("a bundle that ends within a frame: %d bytes of %d", len(b), n)
		}
		f, err := DecodeFrame(k, b[:n])
		if err != nil {
			return nil, err
		}
		out, b = append(out, f), b[n:]
	}
	return out, nil
}
