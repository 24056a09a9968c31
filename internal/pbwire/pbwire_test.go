package pbwire

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

type inner struct {
	A uint64 `pb:"1"`
	B string `pb:"2"`
}

type base struct {
	N int64 `pb:"1"`
}

type outer struct {
	base
	S    string            `pb:"2"`
	Raw  []byte            `pb:"3"`
	ID   [4]byte           `pb:"4"`
	In   inner             `pb:"5"`
	Ptr  *inner            `pb:"6"`
	List []inner           `pb:"7"`
	Nums []uint32          `pb:"8"`
	Map  map[string]string `pb:"9"`
	Yes  bool              `pb:"10"`
	Not  int               // no tag: not kept
	Unk  []byte            `pb:"unknown"`
}

func TestEncodingIsThatOfProtocolBuffers(t *testing.T) {
	// Field 1 varint 150 is the example of the specification: 08 96 01. Field 2 "testing": 12 07 74...
	got := Marshal(struct {
		A int32  `pb:"1"`
		B string `pb:"2"`
	}{150, "testing"})
	if want := "089601120774657374696e67"; hex.EncodeToString(got) != want {
		t.Fatalf("got %x, want %s", got, want)
	}
}

func TestWhatIsWrittenIsReadAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := func(l string) inner {
			return inner{rapid.Uint64().Draw(t, l+"a"), rapid.String().Draw(t, l+"b")}
		}
		o := outer{S: rapid.String().Draw(t, "s"), Yes: rapid.Bool().Draw(t, "yes"), In: in("in")}
		o.N = rapid.Int64().Draw(t, "n")
		copy(o.ID[:], rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "id"))
		if rapid.Bool().Draw(t, "ptr") {
			p := in("p")
			o.Ptr = &p
		}
		for i := range rapid.IntRange(0, 3).Draw(t, "list") {
			o.List = append(o.List, in(string(rune('a'+i))))
			o.Nums = append(o.Nums, rapid.Uint32().Draw(t, "num"))
		}
		if k := rapid.String().Draw(t, "k"); k != "" {
			o.Map = map[string]string{k: "v", "z": ""}
		}
		if r := rapid.SliceOf(rapid.Byte()).Draw(t, "raw"); len(r) > 0 {
			o.Raw = r
		}
		var back outer
		if err := Unmarshal(Marshal(&o), &back); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(o, back) {
			t.Fatalf("wrote %+v\nread  %+v", o, back)
		}
	})
}

func TestFieldsOfANewerVersionAreKept(t *testing.T) {
	newer := Marshal(struct {
		S string `pb:"2"`
		X string `pb:"99"`
	}{"s", "from the future"})
	var o outer
	if err := Unmarshal(newer, &o); err != nil {
		t.Fatal(err)
	}
	if again := Marshal(&o); !bytes.Equal(again, newer) {
		t.Fatalf("the unknown field was lost: %x, want %x", again, newer)
	}
}

func FuzzUnmarshalNeverPanics(f *testing.F) {
	f.Add(Marshal(&outer{S: "x", List: []inner{{1, "y"}}, Map: map[string]string{"a": "b"}}))
	f.Add([]byte{0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		var o outer
		if Unmarshal(b, &o) == nil {
			var back outer
			if err := Unmarshal(Marshal(&o), &back); err != nil {
				t.Fatalf("what was read cannot be written and read again: %v", err)
			}
		}
	})
}
