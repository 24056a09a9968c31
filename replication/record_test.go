package replication

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/hanode/hanode/cluster"
)

var full = Op{Kind: Rename, Volume: 2, ID: 1 << 40, Parent: 3, Name: "from", NewParent: 4, NewName: "to", Before: 5, Flags: FlagOpen | 2, Valid: 6, Mode: 0o100644,
	UID: 7, GID: 8, Rdev: 9, Off: 10, Len: 11, Atime: -12, Time: 13, Data: []byte("data")}

func TestARecordReadsBackAsItWasWritten(t *testing.T) {
	pos := cluster.Position{Epoch: 3, Gen: 4, Seq: 5}
	b, err := AppendRecord([]byte("before"), pos, &full)
	if err != nil {
		t.Fatal(err)
	}
	b = b[len("before"):]
	if len(b) != EncodedLen(&full) {
		t.Errorf("the record has %d bytes, EncodedLen says %d", len(b), EncodedLen(&full))
	}
	var got Op
	h, err := Parse(append(b, "behind"...), &got)
	if err != nil || h.Pos != pos || h.Len != len(b) || !reflect.DeepEqual(got, full) {
		t.Errorf("read back %+v at %+v (%v), wrote %+v", got, h, err, full)
	}
}

func TestEveryFlippedBitIsFound(t *testing.T) {
	b, _ := AppendRecord(nil, cluster.Position{Epoch: 1, Gen: 1, Seq: 1}, &full)
	for i := range len(b) * 8 {
		c := bytes.Clone(b)
		c[i/8] ^= 1 << (i % 8)
		if _, err := Parse(c, new(Op)); err == nil {
			t.Fatalf("bit %d flipped, and the record is read as if nothing was", i)
		}
	}
}

func TestACutRecordIsShort(t *testing.T) {
	b, _ := AppendRecord(nil, cluster.Position{Epoch: 1, Gen: 1, Seq: 1}, &full)
	for n := range b {
		if _, err := Parse(b[:n], new(Op)); !errors.Is(err, ErrShort) {
			t.Fatalf("%d of %d bytes: %v", n, len(b), err)
		}
	}
}

func TestNamesThatLeaveTheTreeAreRefused(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "a\x00b"} {
		b, err := AppendRecord(nil, cluster.Position{Epoch: 1, Gen: 1, Seq: 1}, &Op{Kind: Unlink, Volume: 1, ID: 2, Parent: 1, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(b, new(Op)); !errors.Is(err, ErrFormat) {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	b, _ := AppendRecord(nil, cluster.Position{Epoch: 1, Gen: 1, Seq: 1}, &full)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var op Op
		h, err := Parse(b, &op)
		if err == nil && (h.Len > len(b) || len(op.Data) > MaxData) {
			t.Fatalf("%+v of %d bytes", h, len(b))
		}
	})
}

func TestForkIsTheLastCommonRecord(t *testing.T) {
	common := History{{1, 1, 1}, {2, 3, 10}}
	for _, c := range []struct {
		what         string
		a, b         History
		aLast, bLast uint64
		want         uint64
		ok           bool
	}{
		{"a prefix", common, common, 30, 20, 20, true},
		{"the other took over at 20; this one went on to 25 in its old turn", common.Add(cluster.Position{Epoch: 3, Gen: 4, Seq: 21}), common, 40, 25, 20, true},
		{"both went on", common.Add(cluster.Position{Epoch: 3, Gen: 4, Seq: 21}), common.Add(cluster.Position{Epoch: 2, Gen: 4, Seq: 15}), 40, 25, 14, true},
		{"one was away for two turns", common.Add(cluster.Position{Epoch: 3, Gen: 4, Seq: 21}), common[:1], 40, 9, 9, true},
		{"nothing in common", common, History{{1, 1, 2}}, 40, 9, 0, false},
		{"an empty copy", common, nil, 40, 0, 0, false},
	} {
		for range 2 {
			if got, ok := Fork(c.a, c.aLast, c.b, c.bLast); got != c.want || ok != c.ok {
				t.Errorf("%s: fork at %d (%v), want %d (%v)", c.what, got, ok, c.want, c.ok)
			}
			c.a, c.b, c.aLast, c.bLast = c.b, c.a, c.bLast, c.aLast
		}
	}
}

func TestCutTakesTurnsBack(t *testing.T) {
	h := History{{1, 1, 1}, {2, 3, 10}, {3, 4, 21}}
	if got := h.Cut(20); len(got) != 2 || got.Last(20) != (cluster.Position{Epoch: 2, Gen: 3, Seq: 20}) {
		t.Errorf("cut at 20: %v", got)
	}
}
