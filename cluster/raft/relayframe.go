package raft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Relay frames, big endian, on a stream between members:
//
//	request:  length u32 of what follows, version u8, kind u8, hops u8, time allowed u32 (ms), data
//	answer:   length u32 of what follows, version u8, code u8, index u64, length of leader u8, leader, data
//
// While a proposal is dealt with, answers with the code "working" come at once and then every 50 ms, so that a connection
// that leads nowhere is told from a slow commit.
//
// data of an answer is the encoded result, the text of an error, or for an ask the term (u64) followed by 1 if stalled.
const (
	relayVersion = 1
	maxFrame     = MaxCommand + 512
	reqHead      = 1 + 1 + 1 + 4
	ansHead      = 1 + 1 + 8 + 1
)

type relayKind uint8

const (
	relayPropose relayKind = 1
	relayAsk     relayKind = 2 // where is the member's state machine; also: does it live
)

type relayCode uint8

const (
	codeDone      relayCode = 0
	codeNotLeader relayCode = 1 // certainly not taken
	codeUnknown   relayCode = 2 // may be committed
	codeRefused   relayCode = 3 // certainly not taken, and will not be
	codeWorking   relayCode = 4 // not an answer: the request has arrived and is being dealt with
)

type relayRequest struct {
	kind   relayKind
	hops   uint8  // how often it may still be passed on
	millis uint32 // time allowed
	data   []byte
}

type relayAnswer struct {
	code   relayCode
	index  uint64
	leader string
	data   []byte
}

var errFrame = errors.New("malformed relay frame")

func (q relayRequest) encode() []byte {
	b := make([]byte, 0, 4+reqHead+len(q.data))
	b = binary.BigEndian.AppendUint32(b, uint32(reqHead+len(q.data)))
	b = append(b, relayVersion, byte(q.kind), q.hops)
	b = binary.BigEndian.AppendUint32(b, q.millis)
	return append(b, q.data...)
}

func decodeRequest(b []byte) (q relayRequest, err error) {
	if len(b) < reqHead {
		return q, errFrame
	}
	if b[0] != relayVersion {
		return q, fmt.Errorf("relay frame of version %d, this member speaks %d", b[0], relayVersion)
	}
	q = relayRequest{kind: relayKind(b[1]), hops: b[2], millis: binary.BigEndian.Uint32(b[3:]), data: b[reqHead:]}
	if q.kind != relayPropose && q.kind != relayAsk || len(q.data) > MaxCommand {
		return q, errFrame
	}
	return q, nil
}

func (a relayAnswer) encode() []byte {
	leader := a.leader[:min(len(a.leader), 255)]
	b := make([]byte, 0, 4+ansHead+len(leader)+len(a.data))
	b = binary.BigEndian.AppendUint32(b, uint32(ansHead+len(leader)+len(a.data)))
	b = append(b, relayVersion, byte(a.code))
	b = binary.BigEndian.AppendUint64(b, a.index)
	b = append(b, byte(len(leader)))
	b = append(b, leader...)
	return append(b, a.data...)
}

func decodeAnswer(b []byte) (a relayAnswer, err error) {
	if len(b) < ansHead || len(b) < ansHead+int(b[10]) {
		return a, errFrame
	}
	if b[0] != relayVersion {
		return a, fmt.Errorf("relay frame of version %d, this member speaks %d", b[0], relayVersion)
	}
	n := ansHead + int(b[10])
	a = relayAnswer{code: relayCode(b[1]), index: binary.BigEndian.Uint64(b[2:]), leader: string(b[ansHead:n]), data: b[n:]}
	if a.code > codeWorking {
		return a, errFrame
	}
	return a, nil
}

// readFrame reads one frame's body. It allocates as the bytes arrive, not as they are promised.
func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", errFrame, n, maxFrame)
	}
	const chunk = 16 << 10
	b := make([]byte, min(n, chunk))
	for got := 0; ; {
		m, err := io.ReadFull(r, b[got:])
		if got += m; err != nil {
			return nil, io.ErrUnexpectedEOF
		}
		if got == int(n) {
			return b, nil
		}
		b = append(b, make([]byte, min(int(n)-got, got))...)
	}
}
