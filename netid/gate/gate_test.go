package gate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/hanode/hanode/cluster"
)

var forms = []Form{TCX, Clsact, NFT}

func eachForm(t *testing.T, f func(*testing.T, Form)) {
	t.Parallel()
	for _, form := range forms {
		t.Run(string(form), func(t *testing.T) {
			t.Parallel()
			f(t, form)
		})
	}
}

func TestTheVIPIsShutUntilARefreshAndShutAgainAtTheDeadlineOnEveryWay(t *testing.T) {
	eachForm(t, func(t *testing.T, form Form) {
		w := newWorld(t)
		c := startChild(t, w.node)
		c.open(form)
		c.vips(1, all...)
		w.mustAnswer(t, false, "before the first refresh")
		c.lease(1, time.Minute)
		w.mustAnswer(t, true, "before the deadline")
		deadline := c.lease(1, testLease/2)
		waitFor(deadline)
		w.mustAnswer(t, false, "after the deadline")
		c.lease(1, time.Minute)
		w.mustAnswer(t, true, "after another refresh")
		c.do(order{Do: "refresh", Service: 1})
		w.mustAnswer(t, false, "after Close")
		stats := c.do(order{Do: "stats"}).Stats
		for _, name := range counterNames[:countPassed] {
			if stats[name] == 0 {
				t.Errorf("nothing was counted as %s: %v", name, stats)
			}
		}
		c.do(order{Do: "remove"})
		w.mustAnswer(t, true, "after Remove")
	})
}

// The lease of these tests, renewed like that of a quick profile.
const (
	testLease = 200 * time.Millisecond
	testRenew = 50 * time.Millisecond
)

func TestTheVIPFallsSilentAtTheDeadlineWhenTheDaemonIsKilledOrStopped(t *testing.T) {
	eachForm(t, func(t *testing.T, form Form) {
		for name, sig := range map[string]unix.Signal{"kill": unix.SIGKILL, "stop": unix.SIGSTOP} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				c := startChild(t, w.node)
				c.open(form)
				c.vips(1, all...)
				outside, local := w.client.stream(t, vip4), w.node.stream(t, vip6)
				if err := c.say.Encode(order{Do: "renew", Service: 1, Lease: testLease, Every: testRenew}); err != nil {
					t.Fatal(err)
				}
				var deadline cluster.Instant
				for range 8 {
					deadline = c.next().Deadline
				}
				c.signal(sig)
				deadline = max(deadline, c.rest())
				waitFor(deadline)
				for who, st := range map[string]*stream{"outside": outside, "host itself": local} {
					st.end()
					last, n := st.answered()
					if n < 50 || last >= deadline {
						t.Errorf("%s: %d answers, the last to a request sent %v after the deadline", who, n, last.Sub(deadline))
					}
					// The last deadline that was told may not have been set.
					if early := deadline.Sub(st.refused()); early > testRenew+nftMaxSlack {
						t.Errorf("%s: shut %v before the deadline", who, early)
					}
					t.Logf("%s: %d answers, the last %v before the deadline", who, n, deadline.Sub(last))
				}
			})
		}
	})
}

// rest reads what the child said before a signal took effect and returns its last deadline.
func (c *child) rest() (last cluster.Instant) {
	c.t.Helper()
	said := make(chan answer, 100)
	go func() {
		defer close(said)
		for {
			var a answer
			if c.hear.Decode(&a) != nil {
				return
			}
			said <- a
		}
	}()
	for {
		select {
		case a, ok := <-said:
			if !ok {
				return last
			}
			last = a.Deadline
		case <-time.After(testLease / 2): // stopped: the pipe stays open
			return last
		}
	}
}

func TestTheKernelTellsOfANewInterface(t *testing.T) {
	a, b := newSpace(t), newSpace(t)
	var events *linkEvents
	a.must(t, "listen", func() (err error) { events, err = openLinkEvents(); return err })
	defer events.sock.Close()
	wire(t, a, "new0", b, "new1")
	for end := time.Now().Add(2 * time.Second); ; {
		devs, ok, err := events.next(end)
		if err != nil || !ok {
			t.Fatalf("no event of a new interface: ok %v, %v", ok, err)
		}
		if slices.ContainsFunc(devs, func(d device) bool { return d.name == "new0" && d.framing == ethernet && d.index > 0 }) {
			return
		}
	}
}

func TestANewInterfaceIsGated(t *testing.T) {
	eachForm(t, func(t *testing.T, form Form) {
		w := newWorld(t)
		c := startChild(t, w.node)
		c.open(form)
		c.vips(1, all...)
		late := newSpace(t)
		wire(t, w.node, "n9", late, "l0")
		w.node.up(t, "n9", "10.9.9.1/24")
		late.up(t, "l0", "10.9.9.2/24")
		late.route(t, "10.9.0.0/24", "10.9.9.1")
		eventually(t, 5*time.Second, "the new interface works", func() bool { return late.ping(t, netip.MustParseAddr("10.9.9.1")) })
		if form == NFT && late.ping(t, vip4) {
			t.Error("form nft has no interface to follow, and yet the VIP answers on a new one")
		}
		eventually(t, 2*time.Second, "the VIP is shut on the new interface", func() bool { return !late.ping(t, vip4) })
		c.lease(1, time.Minute)
		if !late.reaches(t, vip4) {
			t.Error("the VIP does not answer on the new interface while open")
		}
	})
}

func TestANextStartShutsWhatTheFormerOneLeftOpenAndTakesOverItsAddresses(t *testing.T) {
	t.Parallel()
	for _, from := range forms {
		for _, to := range forms {
			t.Run(string(from)+" then "+string(to), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				first := startChild(t, w.node)
				first.open(from)
				first.vips(1, all...)
				first.lease(1, time.Minute)
				first.kill()
				flow := w.client.stream(t, vip4)
				eventually(t, time.Second, "the VIP still answers", func() bool { _, n := flow.answered(); return n > 5 })

				second := startChild(t, w.node)
				second.open(to)
				opened := boottime()
				w.mustAnswer(t, false, "after the next start")
				second.vips(1, vip4)
				if last, _ := flow.answered(); last > opened {
					t.Errorf("a request sent %v after Open had returned was answered", last.Sub(opened))
				}
				if flow.reopened() {
					t.Error("the VIP answered again after it had been shut")
				}
				second.lease(1, time.Minute)
				if !w.client.reaches(t, vip4) || w.client.ping(t, vip6) {
					t.Error("after SetVIPs and Refresh: the claimed address must answer and the stranger must not")
				}
				if got := second.do(order{Do: "strangers"}).VIPs; len(got) != 2 {
					t.Errorf("strangers: %v, want the two that were not claimed", got)
				}
				if !w.client.reaches(t, vip6) {
					t.Error("an address that no service has is still shut")
				}
				second.do(order{Do: "remove"})
				mustBeClean(t, w.node)
			})
		}
	}
}

func TestWhatAFormerStartLeftCanBeShutWithoutANewGate(t *testing.T) {
	eachForm(t, func(t *testing.T, form Form) {
		w := newWorld(t)
		c := startChild(t, w.node)
		c.open(form)
		c.vips(1, all...)
		c.lease(1, time.Minute)
		c.kill()
		w.mustAnswer(t, true, "after the kill")
		w.node.must(t, "shut the remains", func() error {
			tag, _ := tagOf("test")
			devs, err := listDevices()
			if err != nil {
				return err
			}
			r, err := findRemains(tag, "hanode_"+tag, devs)
			if err != nil {
				return err
			}
			defer r.release()
			known, err := r.shut()
			if len(known) != len(all) {
				t.Errorf("addresses of the former start: %v, want %v", known, all)
			}
			return err
		})
		w.mustAnswer(t, false, "after it was shut")
	})
}

// mustBeClean fails if the kernel holds anything of any gate in a namespace.
func mustBeClean(t *testing.T, s space) {
	t.Helper()
	s.must(t, "look for remains", func() error {
		devs, err := listDevices()
		if err != nil {
			return err
		}
		tag, _ := tagOf("test")
		r, err := findRemains(tag, "hanode_"+tag, devs)
		if err != nil {
			return err
		}
		defer r.release()
		if len(r.hooks)+len(r.tables) != 0 {
			t.Errorf("left in the kernel: %d hooks, %d tables", len(r.hooks), len(r.tables))
		}
		qdiscs, err := netlink.QdiscList(nil)
		if err != nil {
			return err
		}
		for _, q := range qdiscs {
			if q.Type() == "clsact" {
				t.Errorf("a clsact qdisc is left on interface %d", q.Attrs().LinkIndex)
			}
		}
		return nil
	})
}

func TestTheGateStaysShutAfterShutdownAndWhenTheMountNamespaceOfTheDaemonIsGone(t *testing.T) {
	eachForm(t, func(t *testing.T, form Form) {
		w := newWorld(t)
		c := startChild(t, w.node, "unshare", "--mount")
		c.open(form)
		c.vips(1, all...)
		c.lease(1, time.Minute)
		c.do(order{Do: "shutdown"})
		w.mustAnswer(t, false, "after Shutdown")
		if a := c.try(order{Do: "lease", Service: 1, Lease: time.Minute}); a.Err == "" {
			t.Error("a refresh after Shutdown is no error")
		}
		c.kill()
		w.mustAnswer(t, false, "after the end of the daemon")
	})
}

func TestShutdownWithoutAnyAddressLeavesNothing(t *testing.T) {
	eachForm(t, func(t *testing.T, form Form) {
		s := newSpace(t)
		s.up(t, "lo")
		c := startChild(t, s)
		c.open(form)
		c.vips(1, vip4)
		c.vips(1)
		c.do(order{Do: "shutdown"})
		mustBeClean(t, s)
	})
}

func TestAGateThatSomebodyRemovedIsPutBack(t *testing.T) {
	eachForm(t, func(t *testing.T, form Form) {
		w := newWorld(t)
		c := startChild(t, w.node)
		c.open(form)
		c.vips(1, all...)
		before := c.do(order{Do: "stats"}).Stats["mended"]
		w.node.must(t, "remove the gate", func() error {
			g := &Gate{}
			g.tag, _ = tagOf("test")
			g.table = "hanode_" + g.tag
			return g.removeAll(nothing, false)
		})
		for way, answers := range w.ways(t) {
			eventually(t, 4*time.Second, way+" is shut again", func() bool { return !answers() })
		}
		if got := c.do(order{Do: "stats"}).Stats["mended"]; got <= before {
			t.Errorf("mended: %d before, %d after", before, got)
		}
		c.lease(1, time.Minute)
		w.mustAnswer(t, true, "after the next refresh")
	})
}

func TestAShutNodeStaysAClientOfTheActiveOne(t *testing.T) {
	eachForm(t, func(t *testing.T, form Form) {
		w := newWorld(t)
		theirs4, theirs6 := netip.MustParseAddr("10.9.0.200"), netip.MustParseAddr("fd09::200")
		w.client.up(t, "c0", theirs4.String()+"/32", theirs6.String()+"/128")
		c := startChild(t, w.node)
		c.open(form)
		c.vips(1, theirs4, theirs6)
		if !w.node.reaches(t, theirs4) || !w.node.reaches(t, theirs6) {
			t.Error("the host of a shut gate cannot reach the VIP where it is active")
		}
	})
}

func TestAnAddressBelongsToOneServiceOnly(t *testing.T) {
	eachForm(t, func(t *testing.T, form Form) {
		w := newWorld(t)
		c := startChild(t, w.node)
		c.open(form)
		c.vips(1, vip4)
		c.vips(2, vip6)
		if a := c.try(order{Do: "vips", Service: 2, VIPs: []netip.Addr{vip6, vip4}}); !strings.Contains(a.Err, "belongs to service 1") {
			t.Errorf("a second owner: %q", a.Err)
		}
		if a := c.try(order{Do: "vips", Service: 3, VIPs: []netip.Addr{netip.MustParseAddr("::ffff:10.9.0.100")}}); a.Err == "" {
			t.Error("the same address in another form was accepted")
		}
		for _, bad := range []string{"0.0.0.0", "224.0.0.1", "ff02::1"} {
			if a := c.try(order{Do: "vips", Service: 3, VIPs: []netip.Addr{netip.MustParseAddr(bad)}}); a.Err == "" {
				t.Errorf("%s was accepted", bad)
			}
		}
		c.lease(2, time.Minute)
		if !w.client.reaches(t, vip6) || w.client.ping(t, vip4) {
			t.Error("a refresh of one service must open that one only")
		}
		c.vips(1)
		if !w.client.reaches(t, vip4) {
			t.Error("a forgotten address is still dropped")
		}
		c.vips(2, vip6, vip4)
		c.lease(2, time.Minute)
		if !w.client.reaches(t, vip4) {
			t.Error("an address that moved to an open service is shut")
		}
		if a := c.try(order{Do: "lease", Service: 2, Lease: time.Hour}); a.Err == "" {
			t.Error("a deadline in an hour was accepted")
		}
		if w.client.ping(t, vip4) {
			t.Error("a deadline that cannot be right left the gate open")
		}
	})
}

func TestOperatorsCanListTheRuleset(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skipf("needs nft(8): %v", err)
	}
	s := newSpace(t)
	s.up(t, "lo")
	s.must(t, "list", func() error {
		g, err := Open(Config{Form: NFT, Name: "test"})
		if err != nil {
			return err
		}
		defer g.Remove()
		if err := errors.Join(g.SetVIPs(1, all), g.Refresh(1, boottime().Add(time.Minute))); err != nil {
			return err
		}
		listed, err := exec.Command(nft, "list", "ruleset").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w", listed, err)
		}
		for _, want := range []string{vip6.String() + " timeout 59s", "ip daddr @known4 ip daddr != @open4 counter", "arp saddr ip @known4"} {
			if !strings.Contains(string(listed), want) {
				t.Errorf("the list does not contain %q:\n%s", want, listed)
			}
		}
		return nil
	})
}

func TestTwoGatesInOneNamespaceDoNotDisturbEachOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := startChild(t, w.node), startChild(t, w.node)
	a.open(TCX)
	a.vips(1, vip4)
	a.lease(1, time.Minute)
	b.do(order{Do: "open", Config: childConfig{Form: TCX, Name: "another"}})
	b.vips(1, vip6)
	if !w.client.reaches(t, vip4) {
		t.Error("another gate's start shut this one")
	}
	b.do(order{Do: "remove"})
	a.do(order{Do: "refresh", Service: 1})
	if w.client.ping(t, vip4) || !w.client.reaches(t, vip6) {
		t.Error("another gate's removal took this one along, or left its own")
	}
}

func TestFastestRefusesTheFormWhoseClockStandsStillInSuspend(t *testing.T) {
	if _, err := Open(Config{Form: NFT, Fastest: true}); err == nil || !strings.Contains(err.Error(), "fastest") {
		t.Errorf("nft in fastest: %v", err)
	}
	if forms, _ := (Config{Fastest: true}).forms(); slices.Contains(forms, NFT) {
		t.Errorf("auto in fastest tries %v", forms)
	}
	if _, err := Open(Config{Form: "iptables"}); err == nil || !strings.Contains(err.Error(), "choose") {
		t.Errorf("an unknown form: %v", err)
	}
}

func TestAutoTakesTheFirstFormThatWorks(t *testing.T) {
	s := newSpace(t)
	c := startChild(t, s) // lo is down there: nothing can be tested with real packets
	c.open(Auto)
	if got := c.do(order{Do: "remove"}); got.Err != "" {
		t.Error(got.Err)
	}
}

func TestAMachineWhereNoFormWorksIsToldTheReasonOfEach(t *testing.T) {
	s := newSpace(t)
	s.up(t, "lo")
	c := startChild(t, s, "setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", "--clear-groups")
	a := c.try(order{Do: "open", Config: childConfig{Form: Auto, Name: "test"}})
	for _, want := range []string{"refuses to arm", "form tcx:", "form clsact:", "form nft:"} {
		if !strings.Contains(a.Err, want) {
			t.Errorf("the refusal does not say %q: %s", want, a.Err)
		}
	}
}

func TestRunLeavesNothingBehind(t *testing.T) {
	s := newSpace(t)
	s.up(t, "lo")
	before := goleak.IgnoreCurrent()
	s.must(t, "open and run", func() error {
		g, err := Open(Config{Name: "test"})
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		return errors.Join(g.Run(ctx), g.Remove())
	})
	goleak.VerifyNone(t, before)
	mustBeClean(t, s)
}

func TestRefreshDoesNotAllocate(t *testing.T) {
	for _, form := range forms {
		s := newSpace(t)
		s.up(t, "lo")
		s.must(t, "measure", func() error {
			g, err := Open(Config{Form: form, Name: "test"})
			if err != nil {
				return err
			}
			defer g.Remove()
			if err := g.SetVIPs(1, all); err != nil {
				return err
			}
			n := testing.AllocsPerRun(100, func() { err = errors.Join(err, g.Refresh(1, boottime().Add(time.Second))) })
			if n > 0 {
				t.Errorf("form %s: %v allocations in each refresh", form, n)
			}
			return err
		})
	}
}

func BenchmarkRefresh(b *testing.B) {
	for _, form := range forms {
		b.Run(string(form), func(b *testing.B) {
			s := newSpace(b)
			s.up(b, "lo")
			s.must(b, "measure", func() error {
				g, err := Open(Config{Form: form, Name: "test"})
				if err != nil {
					return err
				}
				defer g.Remove()
				if err := g.SetVIPs(1, all); err != nil {
					return err
				}
				b.ReportAllocs()
				for b.Loop() {
					if err := g.Refresh(1, boottime().Add(time.Second)); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
}

// BenchmarkPacket is what one packet costs in the kernel, as the kernel itself measures it.
func BenchmarkPacket(b *testing.B) {
	needsRoot(b)
	m, err := newMaps("hg1_bench")
	if err != nil {
		b.Fatal(err)
	}
	defer m.close()
	p, err := loadPrograms("hg1_bench", m)
	if err != nil {
		b.Fatal(err)
	}
	defer p.close()
	for _, a := range all {
		if err := m.put(a, 1); err != nil {
			b.Fatal(err)
		}
	}
	m.setDeadline(1, boottime().Add(time.Hour))
	for _, s := range append(specimens(vip4, vip6), specimen{"IPv4 of another", ingress, vip4, specimens(vipF.Next(), vip6)[0].data}) {
		b.Run(s.name, func(b *testing.B) {
			_, took, err := p[s.dir][ethernet].Benchmark(s.data, max(b.N, 1000), nil)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(took.Nanoseconds()), "ns/op")
		})
	}
}
