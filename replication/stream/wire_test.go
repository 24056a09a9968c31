package stream

import (
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication"
	"github.com/hanode/hanode/replication/stream/replica"
)

func FuzzFrames(f *testing.F) {
	var b [frameHead + ackSize]byte
	f.Add(ack{epoch: 1, gen: 2, accepted: 3, durable: 2, whole: true}.put(&b))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < frameHead {
			return
		}
		h, err := parseHead(b)
		if err == nil && (h.n < 0 || h.n > maxData) {
			t.Fatalf("a frame of %d bytes is let through", h.n)
		}
		if err == nil && h.typ == frameAck {
			parseAck(h, b[frameHead:])
		}
		records(b, 1, 2, cluster.Position{})
	})
}

func TestEveryFlippedBitOfAHeadIsFound(t *testing.T) {
	var b [frameHead]byte
	head{frameData, 1000, 7, 8, 9}.put(b[:])
	for i := range frameHead * 8 {
		c := b
		c[i/8] ^= 1 << (i % 8)
		if _, err := parseHead(c[:]); err == nil {
			t.Fatalf("bit %d flipped, and the frame is taken", i)
		}
	}
}

// evil is a source that a test speaks for: it says its hello and begins a session with node 2 of the group.
func evil(t *testing.T, g *group, change func(*hello)) (net.Conn, hello) {
	t.Helper()
	n := g.nodes[1]
	a, b := tcpPair()
	go n.s.AddConn(0, b)
	t.Cleanup(func() { a.Close() })
	h := g.nodes[0].s.hello()
	h.Leads = true
	if change != nil {
		change(&h)
	}
	x, err := control(frameHello, h.Epoch, h.Gen, h)
	if err != nil {
		t.Fatal(err)
	}
	a.Write(x)
	return a, h
}

// readAll returns what the other side says until it closes the connection: the refusal, if there was one.
func readAll(t *testing.T, c net.Conn) (why string, closed bool) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	var b [frameHead]byte
	for {
		h, err := readHead(c, &b)
		if err != nil {
			ne, ok := err.(net.Error)
			return why, !(ok && ne.Timeout())
		}
		p := make([]byte, h.n)
		if _, err := io.ReadFull(c, p); err != nil {
			return why, true
		}
		if h.typ == frameRefuse {
			var r refusal
			json.Unmarshal(p, &r)
			why = r.Why
		}
	}
}

func TestAPeerThatDoesNotBelongHereIsRefused(t *testing.T) {
	g := newGroup(t, 2)
	g.lead(1)
	g.awaitInSync(1, 2)
	g.cutBetween(1, 2, true)
	for _, c := range []struct {
		what   string
		change func(*hello)
		say    string
	}{
		{"another cluster", func(h *hello) { h.Cluster = "x" }, "cluster"},
		{"another service", func(h *hello) { h.Service = "x" }, "service"},
		{"other volumes", func(h *hello) { h.Volumes = []string{"a", "b"} }, "volumes"},
		{"a later protocol", func(h *hello) { h.Min, h.Max = 9, 9 }, "upgrade"},
		{"this node itself", func(h *hello) { h.Run.Member = 2 }, "member"},
		{"a history that goes backwards", func(h *hello) {
			h.History = replication.History{{Epoch: 5, Gen: 5, First: 5}, {Epoch: 4, Gen: 5, First: 6}}
		}, "backwards"},
	} {
		conn, _ := evil(t, g, c.change)
		if why, closed := readAll(t, conn); !closed || !strings.Contains(why, c.say) {
			t.Errorf("%s: closed %v, %q", c.what, closed, why)
		}
	}
}

func TestBadFramesEndTheSessionAndChangeNothing(t *testing.T) {
	g := newGroup(t, 2)
	g.lead(1)
	g.awaitInSync(1, 2)
	if err := g.nodes[0].write(1, 10, 0, "good"); err != nil {
		t.Fatal(err)
	}
	g.sameTrees(1, 2)
	g.cutBetween(1, 2, true)
	n := g.nodes[1]
	before := n.s.Status().Position
	rec := func(pos cluster.Position, op replication.Op) []byte {
		op.Volume = max(op.Volume, 1)
		b, err := replication.AppendRecord(nil, pos, &op)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	write := replication.Op{Kind: replication.Write, ID: 11, Data: []byte("evil")}
	data := func(epoch cluster.Epoch, gen cluster.Generation, seq uint64, body []byte) []byte {
		b := make([]byte, frameHead, frameHead+len(body))
		head{frameData, len(body), epoch, gen, seq}.put(b)
		return append(b, body...)
	}
	next := before
	next.Seq++
	gap := next
	gap.Seq++
	damaged := rec(next, write)
	damaged[len(damaged)-1] ^= 1
	for _, c := range []struct {
		what  string
		frame []byte
	}{
		{"a gap", data(next.Epoch, next.Gen, gap.Seq, rec(gap, write))},
		{"a record of another number than the frame says", data(next.Epoch, next.Gen, next.Seq, rec(gap, write))},
		{"a damaged record", data(next.Epoch, next.Gen, next.Seq, damaged)},
		{"an older epoch", data(next.Epoch-1, next.Gen, next.Seq, rec(next, write))},
		{"a record of a later epoch than its frame", data(next.Epoch, next.Gen, next.Seq, rec(cluster.Position{Epoch: next.Epoch + 1, Gen: next.Gen, Seq: next.Seq}, write))},
		{"a record of an older generation than what is here", data(next.Epoch, next.Gen, next.Seq, rec(cluster.Position{Epoch: next.Epoch, Gen: 0, Seq: next.Seq}, write))},
		{"a volume that is not there", data(next.Epoch, next.Gen, next.Seq, rec(next, replication.Op{Kind: replication.Write, Volume: 7, ID: 11}))},
		{"a name that leaves the tree", data(next.Epoch, next.Gen, next.Seq, rec(next, replication.Op{Kind: replication.Unlink, ID: 11, Parent: 1, Name: ".."}))},
		{"no record", data(next.Epoch, next.Gen, next.Seq, nil)},
		{"half a record", data(next.Epoch, next.Gen, next.Seq, rec(next, write)[:60])},
		{"a frame that says that it is huge", func() []byte {
			b := data(next.Epoch, next.Gen, next.Seq, nil)
			head{frameData, maxData + 1, 1, 1, 1}.put(b)
			return b
		}()},
		{"an acknowledgement from a source", func() []byte { var b [frameHead + ackSize]byte; return ack{epoch: next.Epoch}.put(&b) }()},
		{"a part of a resync that is not going on", func() []byte { b := make([]byte, frameHead+5); head{typ: frameChunk, n: 5}.put(b); return b }()},
		{"a second start", func() []byte {
			b, _ := control(frameStart, next.Epoch, next.Gen, start{Plan: replica.PlanTail})
			return b
		}()},
		{"another walk", func() []byte {
			b, _ := control(frameStart, next.Epoch, next.Gen, start{Plan: replica.PlanResync, Again: true})
			return b
		}()},
		{"text", []byte("GET / HTTP/1.1\r\nHost: somebody.example\r\n\r\n")},
	} {
		eventually(t, "the last session has ended", func() bool { n.s.mu.Lock(); defer n.s.mu.Unlock(); return n.s.source == nil })
		conn, h := evil(t, g, nil)
		b, err := control(frameStart, h.Epoch, h.Gen, start{Plan: replica.PlanTail, Fork: before})
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(b)
		conn.Write(c.frame)
		if _, closed := readAll(t, conn); !closed {
			t.Errorf("%s: the session goes on", c.what)
		}
		if at := n.s.Status(); at.Position != before || at.Inconsistent || at.Failed != "" {
			t.Fatalf("%s: the copy is at %+v, was at %v", c.what, at, before)
		}
	}
	g.cutBetween(1, 2, false)
	if err := g.nodes[0].write(1, 10, 0, "still good"); err != nil {
		t.Fatal(err)
	}
	g.sameTrees(1, 2)
}

// deaf is a follower that begins a session and then reads nothing more.
func deaf(t *testing.T, g *group) {
	t.Helper()
	a, b := tcpPair()
	b.(*net.TCPConn).SetWriteBuffer(64 << 10)
	a.(*net.TCPConn).SetReadBuffer(64 << 10)
	t.Cleanup(func() { a.Close() })
	h := g.nodes[1].s.hello()
	h.Leads, h.Dirty = false, false
	x, _ := control(frameHello, h.Epoch, h.Gen, h)
	a.Write(x)
	go g.nodes[0].s.AddConn(0, b)
	var head [frameHead]byte
	for {
		f, err := readHead(a, &head)
		if err != nil {
			t.Fatal(err)
		}
		io.CopyN(io.Discard, a, int64(f.n))
		if f.typ == frameStart {
			var buf [frameHead + ackSize]byte
			a.Write(ack{epoch: h.Epoch, gen: h.Gen, accepted: h.Last, whole: true}.put(&buf))
			return
		}
	}
}

func TestAStandbyThatDoesNotReadHoldsNobodyBackWhoDoesNotWaitForIt(t *testing.T) {
	g := newGroup(t, 2, replica.Async)
	g.lead(1)
	if err := g.nodes[0].write(1, 10, 0, "x"); err != nil {
		t.Fatal(err)
	}
	g.sameTrees(1, 2)
	g.cutBetween(1, 2, true)
	eventually(t, "the session has ended", func() bool { s := g.nodes[0].s; s.mu.Lock(); defer s.mu.Unlock(); return len(s.followers) == 0 })
	deaf(t, g)
	big := strings.Repeat("x", 100_000)
	began := time.Now()
	for i := range 40 {
		if err := g.nodes[0].write(1, replication.FileID(20+i%3), 0, big); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > deadConn-2*time.Second {
		t.Errorf("4 MB took %v", took)
	}
}

func TestADegradeFreesTheWritersOfAStandbyThatDoesNotRead(t *testing.T) {
	g := newGroup(t, 2)
	g.lead(1)
	g.awaitInSync(1, 2)
	g.cutBetween(1, 2, true)
	eventually(t, "the session has ended", func() bool { s := g.nodes[0].s; s.mu.Lock(); defer s.mu.Unlock(); return len(s.followers) == 0 })
	deaf(t, g)
	big := strings.Repeat("x", 500_000)
	errs := make(chan error, 8)
	for i := range 8 {
		go func() { errs <- g.nodes[0].write(1, replication.FileID(20+i), 0, big) }()
	}
	s := g.nodes[0].s
	eventually(t, "the flusher hangs in the connection", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.followers) == 1 && s.followers[0].busy && s.last > s.written+1
	})
	began := time.Now()
	g.degrade(2)
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(began); took > deadConn-3*time.Second {
		t.Errorf("they were free after %v", took)
	}
}

func TestAStandbyThatAcknowledgesWhatItWasNotSentIsDropped(t *testing.T) {
	g := newGroup(t, 2)
	g.lead(1)
	g.awaitInSync(1, 2)
	g.cutBetween(1, 2, true)
	errs := make(chan error, 1)
	go func() { errs <- g.nodes[0].write(1, 10, 0, "waits") }()
	eventually(t, "it waits", func() bool { return g.nodes[0].s.Status().Waiting == 1 })
	a, b := tcpPair()
	go g.nodes[0].s.AddConn(0, b)
	h := g.nodes[1].s.hello()
	x, _ := control(frameHello, h.Epoch, h.Gen, h)
	a.Write(x)
	for _, y := range []ack{{epoch: h.Epoch, accepted: 1 << 40}, {epoch: h.Epoch, accepted: 5, durable: 9}} {
		var buf [frameHead + ackSize]byte
		a.Write(y.put(&buf))
	}
	if _, closed := readAll(t, a); !closed {
		t.Error("the session goes on")
	}
	select {
	case err := <-errs:
		t.Errorf("acknowledged: %v", err)
	default:
	}
	g.cutBetween(1, 2, false)
	if err := <-errs; err != nil {
		t.Error(err)
	}
}

func TestACopyThatSaysItIsAnotherMemberThanItsCertificateIsRefused(t *testing.T) {
	g := newGroup(t, 2, replica.Sync)
	g.lead(1)
	g.awaitInSync(1, 2)
	for _, c := range []struct {
		from    cluster.MemberNo
		refused bool
	}{{3, true}, {1, false}} {
		a, b := tcpPair()
		t.Cleanup(func() { a.Close() })
		go g.nodes[1].s.AddConn(c.from, b)
		h := g.nodes[0].s.hello()
		x, err := control(frameHello, h.Epoch, h.Gen, h)
		if err != nil {
			t.Fatal(err)
		}
		a.Write(x)
		a.(*net.TCPConn).CloseWrite()
		if why, _ := readAll(t, a); strings.Contains(why, "its certificate is that of member 3") != c.refused {
			t.Errorf("certificate of member %d, hello of member 1: %q", c.from, why)
		}
	}
}
