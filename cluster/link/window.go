package link

// window remembers which of the last windowBits sequence numbers were seen (as RFC 6479 does for IPsec). Older ones count as
// seen.
type window struct {
	top  uint64                    // the greatest seen; 0: none
	bits [windowBits/64 + 1]uint64 // one word more: the word of the newest is only partly used
}

const windowBits = 1024

func (w *window) seen(seq uint64) bool {
	if seq > w.top {
		return false
	}
	return seq == 0 || w.top-seq >= windowBits || w.bits[seq/64%uint64(len(w.bits))]&(1<<(seq%64)) != 0
}

// mark records seq and says whether it is new.
func (w *window) mark(seq uint64) bool {
	if w.seen(seq) {
		return false
	}
	if seq > w.top {
		n := uint64(len(w.bits))
		for word, left := w.top/64, min(seq/64-w.top/64, n); left > 0; left-- {
			word++
			w.bits[word%n] = 0
		}
		w.top = seq
	}
	w.bits[seq/64%uint64(len(w.bits))] |= 1 << (seq % 64)
	return true
}
