package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/journal/faultfs"
)

var update = flag.Bool("update", false, "write the golden bytes of the present format")

func sum(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	return b
}

var aState = State{Cluster: "c1", Epoch: 7, Gen: 9, History: replication.History{{Epoch: 1, Gen: 1, First: 1}, {Epoch: 7, Gen: 9, First: 100}},
	Inconsistent: true, Why: "resync from a", Alone: &Turn{7, 8}, Clean: true, Boot: "b", NextID: 1 << 33}

var aHeader = Header{Cluster: "c1", Service: "db", Volume: "data", Number: 2}

// TestWhatThisFormatWroteIsReadForEver fails when a byte of a released format changes: then it needs another version number.
func TestWhatThisFormatWroteIsReadForEver(t *testing.T) {
	s := &segment{no: 5, salt: 0x1122334455667788, size: 3 * headSize}
	h := segHead{no: s.no, salt: s.salt, size: s.size, cluster: "c1", service: "db"}
	b := h.encode()
	pos := cluster.Position{Epoch: 3, Gen: 4, Seq: 10}
	rec := record(pos, 50, 1)
	first := frame{kind: baseCut, first: 4, last: cluster.Position{Epoch: 3, Gen: 3, Seq: 9}, durable: 9, applied: 8}
	fr := frame{kind: records, len: len(rec), first: 10, last: pos, durable: 9, based: true}
	hb := make([]byte, frameSize)
	first.encode(hb, s, headSize)
	b = append(b, hb...)
	fr.encode(hb, s, headSize+frameSize)
	b = append(append(b, hb...), rec...)
	state, err := encodeDoc(stateMagic, aState)
	must(t, err)
	header, err := encodeDoc(volMagic, aHeader)
	must(t, err)
	for name, b := range map[string][]byte{"segment.v1": b, "applied.v1": encodeSlot(3, 5, 8, 9), "state.v1": state, "header.v1": header} {
		file := filepath.Join("testdata", name)
		if *update {
			must(t, os.MkdirAll("testdata", 0o755), os.WriteFile(file, b, 0o644))
		}
		want, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(b, want) {
			t.Errorf("%s: the bytes written today differ from those of the format (%v)", name, err)
		}
	}
	got, ok := decodeFrame(b[headSize+frameSize:], s, headSize+frameSize)
	if h2, err := decodeSegHead(b); err != nil || h2 != h || !ok || !reflect.DeepEqual(got, fr) {
		t.Errorf("read back %+v (%v), %+v", h2, err, got)
	}
}

func TestTheStateIsReplacedAsAWhole(t *testing.T) {
	old := State{Cluster: "c1", Epoch: 6, Boot: "a"}
	for _, cut := range []bool{true, false} {
		for n, fired := 1, true; fired; n++ {
			for seed := range uint64(20) {
				fs := faultfs.New(seed)
				must(t, fs.MakeDir("v"), StoreState(fs, "v", old))
				if cut {
					fs.CutAt(n)
				} else {
					fs.FailAt(n, 0, errors.New("EIO"))
				}
				err := StoreState(fs, "v", aState)
				fired = fs.Fired()
				got, lerr := LoadState(fs.Reboot(), "v", "c1")
				if lerr != nil || !reflect.DeepEqual(got, old) && !reflect.DeepEqual(got, aState) || err == nil && got.Epoch != 7 {
					t.Fatalf("operation %d, seed %d: stored (%v), loaded %+v (%v)", n, seed, err, got, lerr)
				}
			}
		}
	}
}

func TestAStateThatCannotBeTrustedIsRefused(t *testing.T) {
	fs := faultfs.New(1)
	must(t, fs.MakeDir("v"))
	if _, err := LoadState(fs, "v", "c1"); !errors.Is(err, ErrNoState) {
		t.Error(err)
	}
	must(t, StoreState(fs, "v", aState))
	if _, err := LoadState(fs, "v", "c2"); !errors.As(err, new(*Foreign)) {
		t.Error(err)
	}
	for off := range int64(len(fs.Content("v/state"))) {
		fs.Flip("v/state", off, 4)
		if _, err := LoadState(fs, "v", "c1"); !errors.As(err, new(*Damage)) {
			t.Fatalf("byte %d: %v", off, err)
		}
		fs.Flip("v/state", off, 4)
	}
	f, err := fs.Open("v/state")
	b := fs.Content("v/state")
	b[8] = 2
	must(t, err, f.WriteVec([][]byte{sum(b)}, 0))
	if _, err := LoadState(fs, "v", "c1"); err == nil || !strings.Contains(err.Error(), "run the version that wrote it") {
		t.Error(err)
	}
}

func TestABackingDirectoryWithoutItsHeaderIsNotFilled(t *testing.T) {
	fs := faultfs.New(1)
	must(t, fs.MakeDir("v"))
	if err := CheckHeader(fs, "v", aHeader); !errors.Is(err, ErrNoState) || !strings.Contains(err.Error(), "not the backing directory of a volume") {
		t.Error(err)
	}
	must(t, WriteHeader(fs, "v", aHeader), WriteHeader(fs, "v", aHeader), CheckHeader(fs, "v", aHeader))
	for _, h := range []Header{{"c2", "db", "data", 2}, {"c1", "x", "data", 2}, {"c1", "db", "x", 2}, {"c1", "db", "data", 1}} {
		if err := CheckHeader(fs, "v", h); !errors.As(err, new(*Foreign)) {
			t.Errorf("%v: %v", h, err)
		}
		if err := WriteHeader(fs, "v", h); !errors.As(err, new(*Foreign)) {
			t.Errorf("overwritten with %v: %v", h, err)
		}
	}
}
