package link

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
)

// A lease datagram: the header, which is authenticated, then the encrypted payload and its tag (AES-256-GCM, NIST SP 800-38D).
//
//	0  class 'L'  1 magic 'h' 'n'  3 version 1   4 cluster tag   12 key id   20 sequence number   28 sent (sender's Instant)
//	36 echo: the sent field of the newest frame that came on this path   44 its age when this one left, µs (32 bits)
//	48 path (sender's address << 3 | receiver's)   49 kind   50 zero (16 bits)   52 payload
const (
	classLease  = 'L'
	classGossip = 'G'
	classProbe  = 'P'
	wireVersion = 1

	headerLen = 52
	tagLen    = 16

	MaxDatagram = 1200                             // bytes on the wire, above UDP
	MaxPayload  = MaxDatagram - headerLen - tagLen // of Send

	kindBeat      = 0    // empty, sent by the mesh itself in gaps
	firstReserved = 0xf0 // kinds from here on are this package's
)

var errShort = errors.New("not a datagram of this protocol")

// header is the decoded front of a lease datagram.
type header struct {
	cluster uint64
	key     uint64
	seq     uint64
	sent    cluster.Instant
	echo    cluster.Instant // receiver's clock; 0: nothing heard on this path
	age     time.Duration
	path    uint8
	kind    byte
}

func (h *header) put(b []byte) {
	_ = b[headerLen-1]
	b[0], b[1], b[2], b[3] = classLease, 'h', 'n', wireVersion
	binary.BigEndian.PutUint64(b[4:], h.cluster)
	binary.BigEndian.PutUint64(b[12:], h.key)
	binary.BigEndian.PutUint64(b[20:], h.seq)
	binary.BigEndian.PutUint64(b[28:], uint64(h.sent))
	binary.BigEndian.PutUint64(b[36:], uint64(h.echo))
	binary.BigEndian.PutUint32(b[44:], uint32(min(max(h.age/time.Microsecond, 0), 1<<32-1)))
	b[48], b[49], b[50], b[51] = h.path, h.kind, 0, 0
}

// parseHeader reads the front of a lease datagram; nothing in it is authenticated yet.
func parseHeader(b []byte) (h header, err error) {
	if len(b) < headerLen+tagLen || len(b) > MaxDatagram || b[0] != classLease || b[1] != 'h' || b[2] != 'n' || b[3] != wireVersion {
		return h, errShort
	}
	h.cluster = binary.BigEndian.Uint64(b[4:])
	h.key = binary.BigEndian.Uint64(b[12:])
	h.seq = binary.BigEndian.Uint64(b[20:])
	h.sent = cluster.Instant(binary.BigEndian.Uint64(b[28:]))
	h.echo = cluster.Instant(binary.BigEndian.Uint64(b[36:]))
	h.age = time.Duration(binary.BigEndian.Uint32(b[44:])) * time.Microsecond
	h.path, h.kind = b[48], b[49]
	if h.seq == 0 || h.path >= MaxLinks*MaxLinks || b[50]|b[51] != 0 {
		return h, errShort
	}
	return h, nil
}

// pathByte is a path as its sender writes it.
func pathByte(own, peers uint8) uint8 { return own<<3 | peers }

// clusterTag is the short cluster id in datagrams.
func clusterTag(id string) uint64 {
	sum := sha256.Sum256([]byte("hanode datagram\x00" + id))
	return binary.BigEndian.Uint64(sum[:])
}

// halfKey is the key of one direction.
type halfKey struct {
	id    uint64
	aead  cipher.AEAD
	iv    [12]byte
	nonce [12]byte // scratch, guarded as the halfKey is
	born  cluster.Instant
}

const halfKeyLen = 32 + 12 + 8

func newHalfKey(material []byte, born cluster.Instant) (halfKey, error) {
	if len(material) != halfKeyLen {
		return halfKey{}, fmt.Errorf("%d bytes of key material, want %d", len(material), halfKeyLen)
	}
	block, err := aes.NewCipher(material[:32])
	if err != nil {
		return halfKey{}, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return halfKey{}, err
	}
	k := halfKey{id: binary.BigEndian.Uint64(material[44:]), aead: aead, born: born}
	copy(k.iv[:], material[32:44])
	return k, nil
}

// setNonce makes the nonce of (path, seq): no two frames under one key share it, because a run never uses a sequence number
// twice and each path has its own byte.
func (k *halfKey) setNonce(path uint8, seq uint64) []byte {
	k.nonce = k.iv
	k.nonce[3] ^= path
	for i := range 8 {
		k.nonce[4+i] ^= byte(seq >> (56 - 8*i))
	}
	return k.nonce[:]
}

// txKey is used under its member's sendMu.
type txKey struct{ halfKey }

// seal writes header and payload into b, which must hold MaxDatagram bytes, and returns the datagram.
func (k *txKey) seal(b []byte, h *header, payload []byte) []byte {
	h.key = k.id
	h.put(b)
	return k.aead.Seal(b[:headerLen], k.setNonce(h.path, h.seq), payload, b[:headerLen])
}

// rxKey opens what one run of one member sent under one key.
type rxKey struct {
	member *member
	run    RunID

	mu        sync.Mutex
	halfKey   halfKey
	confirmed bool // the session was completed; guarded by member.mu
	delivered window
	paths     [MaxLinks * MaxLinks]*window // made when a path is first used
}

// verdict is what open found.
type verdict int

const (
	opened    verdict = iota
	duplicate         // authentic and new on its path, but another path was quicker
	replayed
	forged
)

// open authenticates and decrypts b in place.
func (k *rxKey) open(b []byte, h *header) ([]byte, verdict) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := k.paths[h.path]
	if w != nil && w.seen(h.seq) {
		return nil, replayed
	}
	payload, err := k.halfKey.aead.Open(b[headerLen:headerLen], k.halfKey.setNonce(h.path, h.seq), b[headerLen:], b[:headerLen])
	if err != nil {
		return nil, forged
	}
	if w == nil {
		w = new(window)
		k.paths[h.path] = w
	}
	w.mark(h.seq)
	if !k.delivered.mark(h.seq) {
		return nil, duplicate
	}
	return payload, opened
}
