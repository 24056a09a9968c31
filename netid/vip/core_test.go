package vip

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/hanode/hanode/cluster"
)

func TestReconcile(t *testing.T) {
	p := netip.MustParsePrefix
	const sec, nodad, noroute, tentative = unix.IFA_F_SECONDARY, unix.IFA_F_NODAD, unix.IFA_F_NOPREFIXROUTE, unix.IFA_F_TENTATIVE
	own := kernelAddr{1, p("10.0.0.1/24"), 0, 0, forever}
	v4 := kernelAddr{1, p("10.0.0.50/24"), sec | noroute, Proto, forever}
	v6 := kernelAddr{1, p("fd00::50/64"), nodad | noroute, Proto, forever}
	w4, w6 := want{v4.prefix, 1, true, true}, want{v6.prefix, 1, true, true}
	with := func(a kernelAddr, f func(*kernelAddr)) kernelAddr { f(&a); return a }
	for _, c := range []struct {
		name     string
		wants    []want
		kern     []kernelAddr
		lifetime uint32
		out      string
	}{
		{"nothing wanted, nothing there", nil, []kernelAddr{own}, 0, "[]"},
		{"all as wanted", []want{w4, w6}, []kernelAddr{own, v4, v6}, 0, "[]"},
		{"missing", []want{w4, w6}, []kernelAddr{own, v4}, 0, "[{add 1 fd00::50/64}]"},
		{"missing, the interface down", []want{{v4.prefix, 1, false, true}}, []kernelAddr{own}, 0, "[]"},
		{"left by a crash", nil, []kernelAddr{own, v4, v6}, 0, "[{remove 1 10.0.0.50/24} {remove 1 fd00::50/64}]"},
		{"put there by hand", nil, []kernelAddr{own, with(v4, func(a *kernelAddr) { a.proto = 0 })}, 0, "[{remove 1 10.0.0.50/24}]"},
		{"marked but no longer in the spec", nil, []kernelAddr{with(own, func(a *kernelAddr) { a.proto = Proto })}, 0, "[{remove 1 10.0.0.1/24}]"},
		{"on another interface too", []want{w4}, []kernelAddr{own, v4, with(v4, func(a *kernelAddr) { a.link = 2 })}, 0, "[{remove 2 10.0.0.50/24}]"},
		{"on another interface only: removed first", []want{w4}, []kernelAddr{own, with(v4, func(a *kernelAddr) { a.link = 2 })}, 0,
			"[{remove 2 10.0.0.50/24} {add 1 10.0.0.50/24}]"},
		{"with another length", []want{w4}, []kernelAddr{own, with(v4, func(a *kernelAddr) { a.prefix = p("10.0.0.50/32") })}, 0,
			"[{remove 1 10.0.0.50/32} {add 1 10.0.0.50/24}]"},
		{"without the mark, the kernel keeps marks", []want{w4, w6}, []kernelAddr{own, with(v4, func(a *kernelAddr) { a.proto = 0 }), v6}, 0,
			"[{refresh 1 10.0.0.50/24}]"},
		{"without the mark, the kernel keeps none", []want{w4}, []kernelAddr{own, with(v4, func(a *kernelAddr) { a.proto = 0 })}, 0, "[]"},
		{"tentative", []want{w6}, []kernelAddr{with(v6, func(a *kernelAddr) { a.flags |= tentative })}, 0, "[{reseat 1 fd00::50/64}]"},
		{"prefix route not as wanted, IPv4", []want{{v4.prefix, 1, true, false}}, []kernelAddr{v4}, 0, "[{reseat 1 10.0.0.50/24}]"},
		{"prefix route not as wanted, IPv6", []want{{v6.prefix, 1, true, false}}, []kernelAddr{v6}, 0, "[{refresh 1 fd00::50/64}]"},
		{"the VIP is primary, the own address secondary", []want{w4},
			[]kernelAddr{with(v4, func(a *kernelAddr) { a.flags = noroute }), with(own, func(a *kernelAddr) { a.flags = sec })}, 0,
			"[{reseat 1 10.0.0.50/24}]"},
		{"lifetime fresh", []want{w4}, []kernelAddr{own, with(v4, func(a *kernelAddr) { a.valid = 3 })}, 3, "[]"},
		{"lifetime runs", []want{w4}, []kernelAddr{own, with(v4, func(a *kernelAddr) { a.valid = 2 })}, 3, "[{refresh 1 10.0.0.50/24}]"},
		{"lifetime wanted", []want{w4}, []kernelAddr{own, v4}, 3, "[{refresh 1 10.0.0.50/24}]"},
		{"lifetime no longer wanted", []want{w4}, []kernelAddr{own, with(v4, func(a *kernelAddr) { a.valid = 2 })}, 0, "[{refresh 1 10.0.0.50/24}]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ours := func(a kernelAddr) bool {
				return a.proto == Proto || a.prefix.Addr() == v4.prefix.Addr() || a.prefix.Addr() == v6.prefix.Addr()
			}
			if got := fmt.Sprint(reconcile(c.wants, c.kern, ours, c.lifetime)); got != c.out {
				t.Errorf("got  %s\nwant %s", got, c.out)
			}
		})
	}
}

// Whatever is there and whatever is wanted: carrying out the changes leads to a state that needs none, has every wanted
// address once and nothing else of ours, and has every address that is not ours untouched.
func TestReconcileReachesWhatIsWantedInOneStepAndTouchesNothingElse(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		marks := rapid.Bool().Draw(rt, "the kernel keeps marks")
		protos := []uint8{0}
		if marks {
			protos = []uint8{0, 1, Proto}
		}
		addr := rapid.Custom(func(rt *rapid.T) kernelAddr {
			ip := netip.AddrFrom4([4]byte{10, 0, 0, rapid.ByteRange(1, 8).Draw(rt, "host")})
			if rapid.Bool().Draw(rt, "v6") {
				ip = netip.AddrFrom16([16]byte{0: 0xfd, 15: rapid.ByteRange(1, 8).Draw(rt, "host")})
			}
			return kernelAddr{
				link:   rapid.IntRange(1, 3).Draw(rt, "link"),
				prefix: netip.PrefixFrom(ip, rapid.SampledFrom([]int{24, 32}).Draw(rt, "bits")),
				flags:  rapid.SampledFrom([]uint32{0, unix.IFA_F_NOPREFIXROUTE, unix.IFA_F_TENTATIVE}).Draw(rt, "flags"),
				proto:  rapid.SampledFrom(protos).Draw(rt, "proto"),
				valid:  rapid.SampledFrom([]uint32{1, 3, forever}).Draw(rt, "valid"),
			}
		})
		kern := rapid.SliceOfNDistinct(addr, 0, 8, func(a kernelAddr) string { return fmt.Sprint(a.link, a.prefix) }).Draw(rt, "kernel")
		if marks { // such a kernel marks its own loopback address
			kern = append(kern, kernelAddr{4, netip.MustParsePrefix("127.0.0.1/8"), 0, 1, forever})
		}
		var wants []want
		for _, a := range rapid.SliceOfNDistinct(addr, 0, 4, func(a kernelAddr) netip.Addr { return a.prefix.Addr() }).Draw(rt, "wanted") {
			wants = append(wants, want{a.prefix, a.link, true, a.flags == unix.IFA_F_NOPREFIXROUTE})
		}
		known := func(ip netip.Addr) bool {
			return slices.ContainsFunc(wants, func(w want) bool { return w.prefix.Addr() == ip })
		}
		ours := func(a kernelAddr) bool { return a.proto == Proto || known(a.prefix.Addr()) }
		after := simulate(kern, wants, reconcile(wants, kern, ours, 3), marks)
		if again := reconcile(wants, after, ours, 3); len(again) != 0 {
			rt.Fatalf("a second look still wants %v", again)
		}
		for _, a := range kern {
			if !ours(a) && !slices.Contains(after, a) {
				rt.Fatalf("%v is not ours and was touched", a)
			}
		}
		for _, w := range wants {
			n := 0
			for _, a := range after {
				if a.prefix.Addr() == w.prefix.Addr() {
					n++
				}
			}
			if n != 1 {
				rt.Fatalf("%v is there %d times", w.prefix, n)
			}
		}
	})
}

// simulate is a kernel that carries out changes.
func simulate(kern []kernelAddr, wants []want, changes []change, marks bool) []kernelAddr {
	kern = slices.Clone(kern)
	for _, c := range changes {
		kern = slices.DeleteFunc(kern, func(a kernelAddr) bool { return a.link == c.link && a.prefix == c.prefix })
		if c.op == remove {
			continue
		}
		a := kernelAddr{c.link, c.prefix, 0, 0, 3}
		if marks {
			a.proto = Proto
		}
		for _, w := range wants {
			if w.prefix == c.prefix && w.noPrefixRoute {
				a.flags = unix.IFA_F_NOPREFIXROUTE
			}
		}
		kern = append(kern, a)
	}
	return kern
}

func TestAnnouncementsComeInABurstThenOnceAMinuteAndAreNotMadeUpFor(t *testing.T) {
	var c AnnounceConfig
	c.setDefaults()
	start := time.Now()
	var got []time.Duration
	for at := start; len(got) < 9; {
		at = c.next(start, at)
		got = append(got, at.Sub(start))
	}
	const ms, s = time.Millisecond, time.Second
	want := []time.Duration{50 * ms, 200 * ms, 500 * ms, s, 2 * s, 3 * s, 5 * s, 65 * s, 125 * s}
	if !slices.Equal(got, want) {
		t.Errorf("announcements at %v, want %v", got, want)
	}
	if at := c.next(start, start.Add(2500*ms)); at.Sub(start) != 3*s {
		t.Errorf("after a stop until 2.5 s the next is at %v, want 3s", at.Sub(start))
	}
}

func TestTheListOfVIPsSurvivesAndDamageIsNoticed(t *testing.T) {
	dir := t.TempDir()
	if got, err := readList(dir); got != nil || err != nil {
		t.Fatalf("without a file: %v, %v", got, err)
	}
	want := []netip.Addr{netip.MustParseAddr("10.0.0.50"), netip.MustParseAddr("fd00::50")}
	if err := writeList(dir, []netip.Addr{want[1], want[0], want[1]}); err != nil {
		t.Fatal(err)
	}
	if got, err := readList(dir); !slices.Equal(got, want) || err != nil {
		t.Fatalf("read %v, %v", got, err)
	}
	path := filepath.Join(dir, listName)
	whole, _ := os.ReadFile(path)
	for i := range whole {
		bad := slices.Clone(whole)
		bad[i] ^= 1 << rand.IntN(8)
		os.WriteFile(path, bad, 0o600)
		if got, err := readList(dir); err == nil {
			t.Fatalf("byte %d changed: read %v without an error", i, got)
		}
		os.WriteFile(path, whole[:i], 0o600)
		if got, err := readList(dir); err == nil {
			t.Fatalf("cut off at %d: read %v without an error", i, got)
		}
	}
}

func TestTheKernelsMessagesCannotMakeUsPanic(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(rt, "bytes")
		messages(b, func(_, flags uint16, _ uint32, body []byte) { _ = ackError(flags|0x300, body) })
		parseAddr(b)
		parseLink(b)
	})
}

func TestTheSameTroubleIsToldOnceInAWhile(t *testing.T) {
	s, now := seldom{}, time.Now()
	if !s.allow(now, "x") || s.allow(now.Add(9*time.Second), "x") || !s.allow(now.Add(10*time.Second), "x") {
		t.Error("want the first and the one after ten seconds")
	}
	for i := range 5000 {
		s.allow(now, fmt.Sprint(i))
	}
	if len(s) > 1024 {
		t.Errorf("%d keys are remembered", len(s))
	}
}

func TestTheVirtualMACIDIsTheSameOnEveryNodeAndNeverZero(t *testing.T) {
	seen := map[byte]bool{}
	for n := range 255 {
		seen[Address{Service: cluster.ServiceNo(n + 1)}.vmacID()] = true
	}
	if len(seen) != 255 || seen[0] {
		t.Errorf("255 services have %d ids, 0 among them: %v", len(seen), seen[0])
	}
	if id := (Address{Service: 3, VMACID: 9}).vmacID(); id != 9 {
		t.Errorf("id %d, want the given one", id)
	}
}
