package link_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
)

func TestThreeMembersReachEachOtherOnEveryLink(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.person("a", cluster.RoleNode), twoLinks)
	b := w.start(w.person("b", cluster.RoleNode), twoLinks)
	c := w.start(w.person("w", cluster.RoleWitness), twoLinks)
	hosts := []*host{a, b, c}
	for _, h := range hosts {
		h.echo(link.Raft, nil)
	}
	start := time.Now()
	introduce(hosts...)
	within(t, 5*time.Second, "all keys made", func() bool {
		for _, h := range hosts {
			for _, o := range hosts {
				if h != o && !h.keyed(o.person) {
					return false
				}
			}
		}
		return true
	})
	t.Logf("all keys made after %v", time.Since(start))
	within(t, 5*time.Second, "all links up", func() bool {
		return a.up(b.person) == 2 && a.up(c.person) == 2 && b.up(a.person) == 2 && b.up(c.person) == 2 && c.up(a.person) == 2 && c.up(b.person) == 2
	})
	t.Logf("all links up after %v", time.Since(start))
	for _, h := range hosts {
		for _, o := range hosts {
			if h == o {
				continue
			}
			if err := h.Send(o.person.id, 7, []byte("from "+h.person.name)); err != nil {
				t.Fatal(err)
			}
			d := o.receive()
			if d.From != h.person.id || d.Kind != 7 || string(d.Payload) != "from "+h.person.name || d.Link < 0 || d.At == 0 || d.Sent == 0 {
				t.Errorf("%s received %+v", o.person.name, d)
			}
			conn := dial(t, h, o, link.Raft)
			ask(t, conn, "hello")
			if p, ok := link.PeerOf(conn); !ok || p.ID != o.person.id || p.Name != o.person.name || len(p.Addrs) != 2 {
				t.Errorf("PeerOf = %+v, %v", p, ok)
			}
		}
	}
	time.Sleep(20 * time.Millisecond) // the second copies have come
	for _, h := range hosts {
		if n := len(h.got); n != 0 {
			t.Errorf("%s received %d datagrams twice", h.person.name, n)
		}
	}
	for _, l := range a.Links() {
		if l.RTT <= 0 || l.RTT > time.Second || l.Heard < 0 || l.Received == 0 {
			t.Errorf("link %+v", l)
		}
	}
}

func TestAWitnessServesManyClustersOnOnePort(t *testing.T) {
	w1, w2 := newWorld(t), newWorld(t)
	p1, p2 := w1.person("w", cluster.RoleWitness), w2.person("w", cluster.RoleWitness)
	wit1 := w1.start(p1, oneLink)
	wit2 := w2.add(wit1.e, p2, link.ClusterIdentity{Incarnation: 1})
	a1 := w1.start(w1.person("a", cluster.RoleNode), oneLink)
	a2 := w2.start(w2.person("a", cluster.RoleNode), oneLink)
	wit1.echo(link.Raft, nil)
	wit2.echo(link.Raft, nil)
	introduce(a1, wit1)
	introduce(a2, wit2)
	for _, pair := range [][2]*host{{a1, wit1}, {a2, wit2}} {
		n, wit := pair[0], pair[1]
		within(t, 5*time.Second, "key", func() bool { return n.keyed(wit.person) && wit.keyed(n.person) })
		ask(t, dial(t, n, wit, link.Raft), "x")
		n.Send(wit.person.id, 1, []byte(n.person.cert.Subject.ClusterID))
		if d := wit.receive(); string(d.Payload) != n.person.cert.Subject.ClusterID {
			t.Errorf("a datagram of another cluster came: %q", d.Payload)
		}
	}
	if _, err := wit1.e.AddCluster(link.ClusterIdentity{}); err == nil {
		t.Error("an empty identity was accepted")
	}
	wit2.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err := a2.Dial(ctx, p2.id, link.Raft)
	if err == nil || !strings.Contains(err.Error(), "does not serve cluster") {
		t.Errorf("dial to a witness that left: %v", err)
	}
	ask(t, dial(t, a1, wit1, link.Raft), "the other cluster goes on")
}

func TestAPortInUseIsNamedWithTheRemedy(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.person("a", cluster.RoleNode), oneLink)
	_, err := link.Listen(link.Config{Listen: a.e.Addrs()})
	if err == nil || !strings.Contains(err.Error(), a.e.Addrs()[0].String()) || !strings.Contains(err.Error(), "another program") {
		t.Errorf("Listen on a port in use: %v", err)
	}
}

func TestWhatDoesNotFitIsRefusedAtOnce(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.person("a", cluster.RoleNode), oneLink)
	b := w.start(w.person("b", cluster.RoleNode), oneLink)
	stranger := w.person("c", cluster.RoleNode)
	if err := a.Send(b.person.id, 1, nil); !errors.Is(err, link.ErrUnknownPeer) {
		t.Errorf("before SetPeers: %v", err)
	}
	if _, err := a.Dial(context.Background(), stranger.id, link.Raft); !errors.Is(err, link.ErrUnknownPeer) {
		t.Errorf("dial a stranger: %v", err)
	}
	introduce(a, b)
	within(t, 5*time.Second, "key", func() bool { return a.keyed(b.person) && b.keyed(a.person) })
	if err := a.Send(b.person.id, 1, make([]byte, link.MaxPayload+1)); !errors.Is(err, link.ErrTooLong) {
		t.Errorf("too long: %v", err)
	}
	for _, kind := range []byte{0, 240, 255} {
		if err := a.Send(b.person.id, kind, nil); !errors.Is(err, link.ErrReserved) {
			t.Errorf("kind %d: %v", kind, err)
		}
	}
	if err := a.Send(b.person.id, 1, make([]byte, link.MaxPayload)); err != nil {
		t.Fatal(err)
	}
	if d := b.receive(); len(d.Payload) != link.MaxPayload {
		t.Errorf("%d bytes came", len(d.Payload))
	}
}

func TestARemovedMemberLosesKeysAndConnections(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.person("a", cluster.RoleNode), oneLink)
	b := w.start(w.person("b", cluster.RoleNode), oneLink)
	b.echo(link.Raft, nil)
	introduce(a, b)
	within(t, 5*time.Second, "key", func() bool { return a.keyed(b.person) && b.keyed(a.person) })
	c := dial(t, a, b, link.Raft)
	ask(t, c, "x")
	b.SetPeers(nil)
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the connection of a removed member lives: %v", err)
	}
	before := b.e.Counters().DatagramsNoKey
	a.Send(b.person.id, 1, []byte("still here"))
	within(t, time.Second, "its datagrams are refused", func() bool { return b.e.Counters().DatagramsNoKey > before })
	if n := len(b.got); n != 0 {
		t.Errorf("%d datagrams of a removed member came through", n)
	}
	_, err := a.Dial(context.Background(), b.person.id, link.Raft)
	var refused *link.RefusedError
	if !errors.As(err, &refused) || refused.Code != "not-member" {
		t.Errorf("a removed member dials: %v", err)
	}
}

func TestSendAllocatesNothing(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.person("a", cluster.RoleNode), twoLinks)
	b := w.start(w.person("b", cluster.RoleNode), twoLinks)
	introduce(a, b)
	within(t, 5*time.Second, "key", func() bool { return a.keyed(b.person) })
	b.Receive(nil)
	payload := make([]byte, 400)
	least := 1000.0 // the other goroutines of the process count too: one quiet try is enough
	for range 10 {
		least = min(least, testing.AllocsPerRun(100, func() {
			if err := a.Send(b.person.id, 3, payload); err != nil {
				t.Fatal(err)
			}
		}))
	}
	if least > 0 && !raceEnabled {
		t.Errorf("%.2f allocations per Send", least)
	}
}

func TestGossipReachesMembersByTheirIDs(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.person("a", cluster.RoleNode), oneLink)
	b := w.start(w.person("b", cluster.RoleNode), oneLink)
	got := make(chan string, 10)
	b.Gossip().Receive(func(d link.GossipDatagram) {
		got <- fmt.Sprint(d.From == a.person.id, d.Source == a.e.Addrs()[0], " ", string(d.Payload))
	})
	introduce(a, b)
	if err := a.Gossip().Send(b.person.id, []byte("ping")); err != nil {
		t.Fatal(err)
	}
	select {
	case s := <-got:
		if s != "true true ping" {
			t.Error(s)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("no gossip came")
	}
	if err := a.Gossip().Send(b.person.id, make([]byte, link.MaxGossip+1)); !errors.Is(err, link.ErrTooLong) {
		t.Error(err)
	}
	l := b.Gossip().Listener()
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Write([]byte("hi"))
			c.Close()
		}
	}()
	c, err := a.Gossip().Dial(context.Background(), b.person.id)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 2)
	if _, err := c.Read(buf); err != nil || string(buf) != "hi" {
		t.Errorf("%q, %v", buf, err)
	}
}

func TestIPv6AndWildcardListenersWork(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct{ listen, reach string }{{"[::1]:0", "::1"}, {"[::]:0", "127.0.0.1"}, {"[::]:0", "::1"}, {"0.0.0.0:0", "127.0.0.1"}} {
		if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
			t.Skip("needs IPv6 on the loopback interface: ", err)
		} else {
			l.Close()
		}
		var hosts []*host
		for _, name := range []string{"a", "b"} {
			h := w.start(w.person(name, cluster.RoleNode), []netip.AddrPort{netip.MustParseAddrPort(c.listen)})
			hosts = append(hosts, h)
		}
		a, b := hosts[0], hosts[1]
		at := func(h *host) link.Peer {
			p := h.Self()
			p.Addrs = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(c.reach), h.e.Addrs()[0].Port())}
			return p
		}
		a.SetPeers([]link.Peer{at(b)})
		b.SetPeers([]link.Peer{at(a)})
		b.echo(link.Raft, nil)
		keyedBoth(t, a, b)
		ask(t, dial(t, a, b, link.Raft), c.listen)
	}
}

func BenchmarkSendOnTwoLinks(b *testing.B) {
	w := newWorld(b)
	x := w.start(w.person("a", cluster.RoleNode), twoLinks)
	y := w.start(w.person("b", cluster.RoleNode), twoLinks)
	introduce(x, y)
	keyedBoth(b, x, y)
	came := make(chan struct{}, 1)
	y.Receive(func(link.Datagram) {
		select {
		case came <- struct{}{}:
		default:
		}
	})
	payload := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		if err := x.Send(y.person.id, 1, payload); err != nil {
			b.Fatal(err)
		}
		<-came
	}
}
