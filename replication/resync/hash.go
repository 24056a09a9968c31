package resync

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
)

// hasher compares blocks by GMAC (NIST SP 800-38D): a universal hash of 128 bits under a key that is random for each run and never leaves the two
// nodes. For two blocks that differ, whoever wrote them, it is equal with a probability of at most 257/2^128, because they were written without knowledge of
// the key. It is the fastest hash of 128 bits in the standard library where the processor multiplies without carry.
type hasher struct{ aead cipher.AEAD }

func newKey() ([]byte, error) {
	key := make([]byte, hashSize)
	_, err := rand.Read(key)
	return key, err
}

func newHasher(key []byte) (*hasher, error) {
	c, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	g, err := cipher.NewGCM(c)
	return &hasher{g}, err
}

var nonce [12]byte // always the same: the hashes are compared, they authenticate nothing

// append appends the hashes of the blocks of content.
func (h *hasher) append(out, content []byte) []byte {
	for len(content) > 0 {
		n := min(len(content), blockSize)
		out = h.aead.Seal(out, nonce[:], nil, content[:n])
		content = content[n:]
	}
	return out
}
