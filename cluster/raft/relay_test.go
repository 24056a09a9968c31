package raft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func TestRelayFramesComeBackAsTheyWere(t *testing.T) {
	q := relayRequest{kind: relayPropose, hops: 1, millis: 77, data: []byte("command")}
	b, err := readFrame(bytes.NewReader(q.encode()))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeRequest(b); err != nil || got.kind != q.kind || got.hops != 1 || got.millis != 77 || string(got.data) != "command" {
		t.Fatalf("%+v %v", got, err)
	}
	a := relayAnswer{code: codeNotLeader, index: 9, leader: "a-1", data: []byte("why")}
	b, err = readFrame(bytes.NewReader(a.encode()))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeAnswer(b); err != nil || got.code != a.code || got.index != 9 || got.leader != "a-1" || string(got.data) != "why" {
		t.Fatalf("%+v %v", got, err)
	}
}

func TestALongFrameIsRefusedBeforeItIsRead(t *testing.T) {
	head := binary.BigEndian.AppendUint32(nil, maxFrame+1)
	if _, err := readFrame(io.MultiReader(bytes.NewReader(head), neverEnding{})); !errors.Is(err, errFrame) {
		t.Fatalf("%v", err)
	}
	head = binary.BigEndian.AppendUint32(nil, maxFrame)
	if allocs := testing.AllocsPerRun(10, func() { readFrame(bytes.NewReader(head)) }); allocs > 4 {
		t.Fatalf("%v allocations for a promise", allocs)
	}
}

type neverEnding struct{}

func (neverEnding) Read(b []byte) (int, error) { return len(b), nil }

func TestAMemberThatIsSilentIsLeftBeforeAnythingIsSentToIt(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := NewRelay(func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}, 50*time.Millisecond)
	defer r.Close()
	start := time.Now()
	_, err = r.call(context.Background(), "x", relayRequest{kind: relayPropose, data: []byte("x")})
	if !errors.Is(err, errNotSent) || time.Since(start) > 2*time.Second {
		t.Fatalf("after %v: %v", time.Since(start), err)
	}
}

func FuzzRelayFrames(f *testing.F) {
	f.Add(relayRequest{kind: relayPropose, hops: 2, millis: 5, data: []byte("x")}.encode())
	f.Add(relayRequest{kind: relayAsk}.encode())
	f.Add(relayAnswer{code: codeUnknown, index: 1, leader: "a-1", data: []byte("why")}.encode())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		body, err := readFrame(bytes.NewReader(b))
		if err != nil {
			return
		}
		if q, err := decodeRequest(body); err == nil && !bytes.Equal(q.encode()[4:], body) {
			t.Fatalf("request %x became %x", body, q.encode()[4:])
		}
		if a, err := decodeAnswer(body); err == nil && !bytes.Equal(a.encode()[4:], body) {
			t.Fatalf("answer %x became %x", body, a.encode()[4:])
		}
	})
}

func FuzzSnapshotFrame(f *testing.F) {
	whole, _ := snapFrame{cluster: "c", index: 5, confIndex: 1, state: []byte("state")}.encode()
	f.Add(whole)
	f.Add(whole[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readSnapFrame(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := s.encode()
		if err != nil || !bytes.HasPrefix(b, again) {
			t.Fatalf("%x became %x, %v", b, again, err)
		}
	})
}
