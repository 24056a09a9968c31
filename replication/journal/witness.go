package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// witness reads f from off on, wherever frames may begin, and returns the highest sequence up to which any of them says that everything was
// durable; -1 if there is no frame. A frame whose segment's beginning had been durable counts as a witness of that beginning.
func (o *opening) witness(f *found, off int64) int64 {
	best := int64(-1)
	var salt [8]byte
	binary.LittleEndian.PutUint64(salt[:], f.salt)
	o.search(f, off, salt[:], 8, func(b []byte, at int64) {
		if fr, ok := decodeFrame(b, &f.segment, at); ok {
			w := fr.durable
			if fr.based && !f.based {
				w = ^uint64(0) >> 1
			}
			best = max(best, int64(w))
		}
	})
	return best
}

// written is witness for a whole segment, but for its first frame.
func (o *opening) written(f *found) int64 { return o.witness(f, headSize+1) }

// search calls found for each place at or after off where a frame could begin: word stands back bytes behind it.
func (o *opening) search(f *found, off int64, word []byte, back int64, found func(b []byte, at int64)) {
	const step = 1 << 20
	buf := make([]byte, min(step+frameSize+8, f.size))
	for ; off < f.size; off += step {
		n, err := f.f.ReadAt(buf[:min(int64(len(buf)), f.size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			o.err = errors.Join(o.err, err)
			return
		}
		b := buf[:n]
		for i := 0; ; i++ {
			k := bytes.Index(b[i:], word)
			if k < 0 {
				break
			}
			if i += k; int64(i) >= back && int64(i)-back < step {
				found(b[int64(i)-back:], off+int64(i)-back)
			}
		}
	}
}
