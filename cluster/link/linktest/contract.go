package linktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/cluster/link"
)

// Contract is the suite for every Mesh. start makes one mesh for each name, known to each other; it ends them with
// t.Cleanup.
func Contract(t *testing.T, start func(t *testing.T, names ...string) []Mesh) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Mesh, Mesh)
	}{
		{"datagrams arrive whole and once", datagramsArriveOnce},
		{"what cannot be sent is refused", sendRefuses},
		{"a connection carries bytes both ways and names its peer", connectionsCarry},
		{"both ends may write first", bothWriteFirst},
		{"deadlines and ends are seen", endsAreSeen},
		{"who is not allowed is refused", allowDecides},
		{"a removed peer is cut off", removedPeers},
		{"closing ends everything", closingEnds},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := start(t, "a", "b")
			ready(t, m[0], m[1])
			c.test(t, m[0], m[1])
		})
	}
}

// Wait waits for a condition, ten seconds at most.
func Wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// ready waits until both can send to each other.
func ready(t testing.TB, a, b Mesh) {
	t.Helper()
	up := func(m Mesh) bool {
		ls := m.Links()
		return len(ls) > 0 && ls[0].Keyed && ls[0].Up
	}
	Wait(t, "links up", func() bool { return up(a) && up(b) })
}

func dial(t testing.TB, from, to Mesh, ch link.Channel) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, to.Self().ID, ch)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// joined is both ends of one new connection.
func joined(t testing.TB, a, b Mesh, ch link.Channel) (net.Conn, net.Conn) {
	t.Helper()
	l := b.Listener(ch, nil)
	t.Cleanup(func() { l.Close() })
	ca := dial(t, a, b, ch)
	cb, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cb.Close() })
	return ca, cb
}

func datagramsArriveOnce(t *testing.T, a, b Mesh) {
	got := make(chan link.Datagram, 1000)
	b.Receive(func(d link.Datagram) {
		d.Payload = bytes.Clone(d.Payload)
		got <- d
	})
	payload := make([]byte, link.MaxPayload)
	var last uint64
	for i := range 100 {
		payload[0] = byte(i)
		if err := a.Send(b.Self().ID, byte(i+1), payload[:1+i*11]); err != nil {
			t.Fatal(err)
		}
		payload[0] = 0xff // the payload was taken before Send returned
		select {
		case d := <-got:
			if d.From != a.Self().ID || d.Kind != byte(i+1) || len(d.Payload) != 1+i*11 || d.Payload[0] != byte(i) || d.Seq <= last || d.Sent == 0 || d.At == 0 {
				t.Fatalf("datagram %d is %+v", i, d)
			}
			last = d.Seq
		case <-time.After(5 * time.Second):
			t.Fatalf("datagram %d did not come", i)
		}
	}
	time.Sleep(10 * time.Millisecond)
	if len(got) > 0 {
		t.Errorf("%d came twice", len(got))
	}
	if l := b.Links()[0]; l.Peer != a.Self().ID || l.Heard < 0 || l.Heard > 5*time.Second {
		t.Errorf("link %+v", l)
	}
}

func sendRefuses(t *testing.T, a, b Mesh) {
	to := b.Self().ID
	for _, c := range []struct {
		to   cluster.NodeID
		kind byte
		n    int
		want error
	}{
		{cluster.NodeID{9}, 1, 0, link.ErrUnknownPeer}, {a.Self().ID, 1, 0, link.ErrUnknownPeer}, {to, 1, link.MaxPayload + 1, link.ErrTooLong},
		{to, 0, 0, link.ErrReserved}, {to, 240, 0, link.ErrReserved}, {to, 239, link.MaxPayload, nil}, {to, 1, 0, nil},
	} {
		if err := a.Send(c.to, c.kind, make([]byte, c.n)); !errors.Is(err, c.want) {
			t.Errorf("kind %d, %d bytes to %v: %v, want %v", c.kind, c.n, c.to, err, c.want)
		}
	}
	if _, err := a.Dial(context.Background(), cluster.NodeID{9}, link.Raft); !errors.Is(err, link.ErrUnknownPeer) {
		t.Errorf("dial a stranger: %v", err)
	}
	if ps := a.Peers(); len(ps) != 1 || ps[0].ID != to || ps[0].Name != "b" {
		t.Errorf("peers %+v", ps)
	}
}

func connectionsCarry(t *testing.T, a, b Mesh) {
	ca, cb := joined(t, a, b, link.Raft)
	for _, e := range []struct {
		c    net.Conn
		want Mesh
	}{{ca, b}, {cb, a}} {
		if p, ok := link.PeerOf(e.c); !ok || p.ID != e.want.Self().ID || p.Name != e.want.Self().Name || p.Role != e.want.Self().Role {
			t.Errorf("PeerOf = %+v, %v", p, ok)
		}
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	sent := make(chan error, 1)
	go func() {
		_, err := ca.Write(want)
		sent <- err
	}()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(cb, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("1 MiB: %v, equal %v", err, bytes.Equal(got, want))
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if _, err := cb.Write([]byte("back")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(ca, got[:4]); err != nil || string(got[:4]) != "back" {
		t.Errorf("%q, %v", got[:4], err)
	}
}

func bothWriteFirst(t *testing.T, a, b Mesh) {
	ca, cb := joined(t, a, b, link.Memory)
	for _, c := range []net.Conn{ca, cb} {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []net.Conn{ca, cb} {
		var buf [5]byte
		if _, err := io.ReadFull(c, buf[:]); err != nil || string(buf[:]) != "hello" {
			t.Errorf("%q, %v", buf, err)
		}
	}
}

func endsAreSeen(t *testing.T, a, b Mesh) {
	ca, cb := joined(t, a, b, link.Raft)
	var buf [8]byte
	cb.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := cb.Read(buf[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read with a deadline: %v", err)
	}
	cb.SetReadDeadline(time.Time{})
	ca.Write([]byte("last"))
	ca.Close()
	if got, err := io.ReadAll(cb); err != nil || string(got) != "last" {
		t.Errorf("%q, %v before the end", got, err)
	}
	if _, err := ca.Write([]byte("x")); err == nil {
		t.Error("wrote to a closed connection")
	}
	if _, err := ca.Read(buf[:]); err == nil {
		t.Error("read from a closed connection")
	}
}

func allowDecides(t *testing.T, a, b Mesh) {
	l := b.Listener(link.Stream, func(p link.Peer) bool { return p.Name != "a" })
	defer l.Close()
	var refused *link.RefusedError
	if _, err := a.Dial(context.Background(), b.Self().ID, link.Stream); !errors.As(err, &refused) || refused.Code != "not-allowed" {
		t.Errorf("not allowed: %v", err)
	}
	if _, err := a.Dial(context.Background(), b.Self().ID, link.API); !errors.As(err, &refused) || refused.Code != "channel" {
		t.Errorf("not served: %v", err)
	}
	all := b.Listener(link.API, func(link.Peer) bool { return true })
	dial(t, a, b, link.API)
	all.Close()
	if _, err := all.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept on a closed listener: %v", err)
	}
	again := b.Listener(link.API, nil)
	defer again.Close()
	dial(t, a, b, link.API)
}

func removedPeers(t *testing.T, a, b Mesh) {
	ca, cb := joined(t, a, b, link.Raft)
	b.SetPeers(nil)
	for what, c := range map[string]net.Conn{"a's end": ca, "b's end": cb} {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s lives: %v", what, err)
		}
	}
	if err := b.Send(a.Self().ID, 1, nil); !errors.Is(err, link.ErrUnknownPeer) {
		t.Errorf("send to a removed peer: %v", err)
	}
	got := make(chan struct{}, 100)
	b.Receive(func(link.Datagram) { got <- struct{}{} })
	for range 10 {
		a.Send(b.Self().ID, 1, nil)
	}
	time.Sleep(10 * time.Millisecond)
	if len(got) > 0 {
		t.Error("a removed peer was heard")
	}
	if len(b.Links()) != 0 {
		t.Errorf("links %+v", b.Links())
	}
}

func closingEnds(t *testing.T, a, b Mesh) {
	ca, _ := joined(t, a, b, link.Raft)
	l := b.Listener(link.API, nil)
	done := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		done <- err
	}()
	b.Close()
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("accept goes on")
	}
	ca.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := ca.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the other end lives: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if c, err := a.Dial(ctx, b.Self().ID, link.API); err == nil {
		c.Close()
		t.Error("dialled a closed mesh")
	}
	b.SetPeers([]link.Peer{a.Self()})
	if err := b.Send(a.Self().ID, 1, nil); err == nil {
		t.Error("a closed mesh sends")
	}
	if _, err := b.Listener(link.Gossip, nil).Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept on a closed mesh: %v", fmt.Sprint(err))
	}
}
