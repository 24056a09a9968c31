package link

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hanode/hanode/cluster"
)

func TestTheWindowTakesEachNumberOnceAndNoneTooOld(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		var top uint64
		seen := map[uint64]bool{}
		base := rapid.SampledFrom([]uint64{1, 63, 1 << 20, 1<<64 - 9000}).Draw(t, "base")
		for range rapid.IntRange(1, 300).Draw(t, "n") {
			step := rapid.SampledFrom([]uint64{0, 1, 2, 60, 64, 1000, 1023, 1024, 1025, 1088, 3000}).Draw(t, "step")
			seq := base + step
			if rapid.Bool().Draw(t, "forward") && base < 1<<64-5000 {
				base += step
			}
			tooOld := top >= windowBits && seq <= top-windowBits
			want := !seen[seq] && !tooOld
			if w.seen(seq) == want {
				t.Fatalf("seen(%d) = %v with top %d", seq, !want, top)
			}
			if got := w.mark(seq); got != want {
				t.Fatalf("mark(%d) = %v with top %d", seq, got, top)
			}
			seen[seq] = true
			top = max(top, seq)
		}
		if w.mark(0) {
			t.Fatal("0 is never a sequence number")
		}
	})
}

func testKeys(t testing.TB) (*txKey, *rxKey) {
	material := bytes.Repeat([]byte{1, 2, 3, 4}, halfKeyLen/4)
	k, err := newHalfKey(material, 0)
	if err != nil {
		t.Fatal(err)
	}
	return &txKey{k}, &rxKey{halfKey: k}
}

func TestNoTwoFramesUnderOneKeyShareANonce(t *testing.T) {
	tx, _ := testKeys(t)
	used := map[string]bool{}
	for path := range uint8(MaxLinks * MaxLinks) {
		for _, seq := range []uint64{1, 2, 255, 256, 1 << 32, 1<<64 - 1, uint64(path) << 56} {
			n := string(tx.setNonce(path, seq))
			if used[n] {
				t.Fatalf("path %d, seq %d: nonce used before", path, seq)
			}
			used[n] = true
		}
	}
}

func TestTheSecondCopyOfAFrameIsKnownForOne(t *testing.T) {
	tx, rx := testKeys(t)
	one, two := make([]byte, MaxDatagram), make([]byte, MaxDatagram)
	h1 := header{seq: 9, path: pathByte(0, 0)}
	h2 := header{seq: 9, path: pathByte(1, 1)}
	a, b := tx.seal(one, &h1, []byte("x")), tx.seal(two, &h2, []byte("x"))
	again := bytes.Clone(b)
	if p, v := rx.open(a, &h1); v != opened || string(p) != "x" {
		t.Errorf("first: %v", v)
	}
	if _, v := rx.open(b, &h2); v != duplicate {
		t.Errorf("second copy: %v", v)
	}
	if _, v := rx.open(again, &h2); v != replayed {
		t.Errorf("the same copy again: %v", v)
	}
}

func TestAnUnknownKeyIsHeededOnceASecond(t *testing.T) {
	e, err := Listen(Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	addr := netip.MustParseAddrPort("127.0.0.1:9")
	m := &Mesh{e: e, self: Peer{Addrs: e.Addrs()}, tag: 5}
	p := newMember(m, Peer{ID: cluster.NodeID{1}, Addrs: []netip.AddrPort{addr}})
	m.members.Store(&map[cluster.NodeID]*member{p.id: p})
	e.byTag.Store(&map[uint64]*Mesh{5: m})
	heeded := func(tag uint64, from netip.AddrPort, at time.Duration) bool {
		p.keying.force = false
		e.unknownKey(&header{cluster: tag}, from, cluster.Instant(time.Hour+at))
		return p.keying.force
	}
	for i, c := range []struct {
		tag  uint64
		from netip.AddrPort
		at   time.Duration
		want bool
	}{
		{6, addr, 0, false}, {5, e.Addrs()[0], 0, false}, {5, addr, 0, true}, {5, addr, 900 * time.Millisecond, false}, {5, addr, 1100 * time.Millisecond, true},
	} {
		if got := heeded(c.tag, c.from, c.at); got != c.want {
			t.Errorf("%d: heeded %v", i, got)
		}
	}
}

func FuzzDatagram(f *testing.F) {
	tx, _ := testKeys(f)
	b := make([]byte, MaxDatagram)
	f.Add(bytes.Clone(tx.seal(b, &header{cluster: 1, seq: 1, sent: 5, path: 9, kind: 3}, []byte("renew"))), []byte("x"))
	f.Add([]byte("Lhn\x01"), []byte{})
	f.Add([]byte("Phn\x01q0123456789abcdef"), []byte{})
	f.Add([]byte("Ghn\x01"), bytes.Repeat([]byte{7}, MaxPayload))
	e, err := Listen(Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(e.Close)
	f.Fuzz(func(t *testing.T, raw, payload []byte) {
		e.datagram(e.socks[0], bytes.Clone(raw), e.Addrs()[0], 1)
		h, err := parseHeader(raw)
		if err != nil {
			return
		}
		head := make([]byte, headerLen)
		h.put(head)
		if !bytes.Equal(head, raw[:headerLen]) {
			t.Fatalf("header %x was read as %+v, which is %x", raw[:headerLen], h, head)
		}
		tx, rx := testKeys(t)
		if _, v := rx.open(bytes.Clone(raw), &h); v == opened && h.key != tx.id {
			t.Fatal("opened under another key's id")
		}
		if len(payload) > MaxPayload {
			return
		}
		sealed := tx.seal(make([]byte, MaxDatagram), &h, payload)
		h2, err := parseHeader(sealed)
		if err != nil {
			t.Fatal(err)
		}
		_, fresh := testKeys(t)
		got, v := fresh.open(sealed, &h2)
		if v != opened || !bytes.Equal(got, payload) {
			t.Fatalf("%v, %q", v, got)
		}
	})
}

func FuzzJoinMessage(f *testing.F) {
	f.Add([]byte(`{"min":1,"max":1,"name":"b","role":1,"id":"00112233445566778899aabbccddeeff","addrs":["10.0.0.1:7400"],"nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}`))
	f.Add([]byte(`{"addrs":["10.0.0.1:0"]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var b bytes.Buffer
		b.WriteString(frameMagic)
		b.Write([]byte{0, 0, byte(len(body) >> 8), byte(len(body))})
		b.Write(body)
		var w joinMessage
		if readMessage(&b, &w, maxJoin) != nil {
			return
		}
		r, err := w.decode(netip.AddrPort{})
		if err == nil && (len(r.Addrs) > MaxLinks || len(r.Secret) > maxSecret || r.ID.IsZero()) {
			t.Fatalf("let through: %+v", r)
		}
		readMessage(bytes.NewReader(body), &w, maxJoin)
	})
}

func BenchmarkSealAndOpen(b *testing.B) {
	tx, rx := testKeys(b)
	buf, payload := make([]byte, MaxDatagram), make([]byte, 200)
	for i := range b.N {
		h := header{seq: uint64(i + 1)}
		if _, v := rx.open(tx.seal(buf, &h, payload), &h); v != opened {
			b.Fatal(v)
		}
	}
}

func TestGuessesLockTheirSourceOutAndNoOther(t *testing.T) {
	g := guesses{max: 5}
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	now := cluster.Instant(time.Hour)
	for range 4 {
		g.wrong(a, now)
	}
	if g.locked(a, now) != 0 {
		t.Error("locked after four")
	}
	g.wrong(a, now)
	if d := g.locked(a, now); d != time.Minute {
		t.Errorf("after five locked for %v", d)
	}
	if g.locked(b, now) != 0 {
		t.Error("another source is locked")
	}
	now = now.Add(time.Minute)
	for range 5 {
		g.wrong(a, now)
	}
	if d := g.locked(a, now); d != 2*time.Minute {
		t.Errorf("the second time locked for %v", d)
	}
	for i := range 4 * guessSources {
		g.wrong(netip.AddrFrom4([4]byte{11, byte(rand.N(256)), byte(i >> 8), byte(i)}), now)
	}
	if len(g.by) > guessSources+1 {
		t.Errorf("%d sources are kept", len(g.by))
	}
	if g.locked(a, now) == 0 {
		t.Error("a flood of sources freed a locked one")
	}
	v6 := netip.MustParseAddr("fd00::1")
	g2 := guesses{max: 1}
	g2.wrong(v6, now)
	if g2.locked(netip.MustParseAddr("fd00::2"), now) == 0 {
		t.Error("another address of the same /64 is free")
	}
}

func TestAMessageLongerThanItsLimitIsNotRead(t *testing.T) {
	var b bytes.Buffer
	var v hello
	if err := writeMessage(&b, v, maxHello); err != nil {
		t.Fatal(err)
	}
	fits := b.Len() - 8
	if err := readMessage(bytes.NewReader(b.Bytes()), &v, fits); err != nil {
		t.Errorf("at its limit: %v", err)
	}
	if err := readMessage(&b, &v, fits-1); !errors.Is(err, errMalformed) || b.Len() != fits {
		t.Errorf("one byte above its limit: %v, %d bytes left of %d", err, b.Len(), fits)
	}
	if err := writeMessage(&b, v, fits-1); err == nil {
		t.Error("wrote what nobody will read")
	}
}
