package core

import (
	"bytes"
	"reflect"
	"testing"
)

func TestABundleIsReadAsItWasMade(t *testing.T) {
	beat, ack := &Beat{Inc: 7, Leader: 3, Heard: []Heard{{1, 12}}}, &Ack{Inc: 4, Sent: 99, VoterInc: 2, Leases: []Lease{{Service: 1, Epoch: 5, TTL: 1e6}}}
	var b []byte
	for _, f := range []Frame{ack, beat} {
		var ok bool
		if b, ok = Bundle(b, f.Kind(), EncodeFrame(f), 1132); !ok {
			t.Fatal("no room in an empty bundle")
		}
	}
	got, err := Unbundle(KindBundle, b)
	if err != nil || len(got) != 2 || !reflect.DeepEqual(got[0], ack) || !reflect.DeepEqual(got[1], beat) {
		t.Fatalf("%v, %v", got, err)
	}
	if got, err := Unbundle(KindBeat, EncodeFrame(beat)); err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], beat) {
		t.Fatalf("a frame alone: %v, %v", got, err)
	}
	if full, ok := Bundle(b, KindBeat, make([]byte, 1132), 1132); ok || !bytes.Equal(full, b) {
		t.Error("a frame was put into a bundle that has no room for it")
	}
	for n := 1; n < len(b); n++ {
		if got, err := Unbundle(KindBundle, b[:n]); err == nil && len(got) != 1 {
			t.Errorf("the first %d bytes are read as %v", n, got)
		}
	}
	if _, err := Unbundle(KindBundle, append([]byte{byte(KindBundle), 0, 3}, 1, 0, 0)); err == nil {
		t.Error("a bundle within a bundle is read")
	}
}

func FuzzUnbundle(f *testing.F) {
	b, _ := Bundle(nil, KindBeat, EncodeFrame(&Beat{Inc: 1}), 1000)
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = Unbundle(KindBundle, b) })
}
