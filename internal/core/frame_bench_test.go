package core

import "testing"

func BenchmarkAFrameThereAndBack(b *testing.B) {
	f := &Beat{Inc: 7, Leader: 3, Heard: []Heard{{1, 12}, {2, 40}}, Reports: []Report{{Service: 1, Epoch: 9, Ready: true, Serving: true}, {Service: 2, Epoch: 4, Ready: true}}}
	b.ReportAllocs()
	for range b.N {
		if _, err := DecodeFrame(KindBeat, EncodeFrame(f)); err != nil {
			b.Fatal(err)
		}
	}
}
