package stream

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
)

// wire is one connection: writes may come from several goroutines, reads from one.
type wire struct {
	conn  net.Conn
	r     *bufio.Reader
	head  [frameHead]byte
	now   func() cluster.Instant
	wmu   sync.Mutex
	limit cluster.Instant // the deadline that the connection has for writing
	heard cluster.Instant // ... and for reading
}

func newWire(conn net.Conn, now func() cluster.Instant) *wire {
	return &wire{conn: conn, r: bufio.NewReaderSize(conn, 128<<10), now: now}
}

// write sends whole frames. A peer that does not take them in time loses the connection.
func (w *wire) write(b []byte) error { return w.writeWithin(b, deadConn) }

func (w *wire) writeWithin(b []byte, most time.Duration) error {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	if now := w.now(); most < deadConn {
		w.limit = 0
		w.conn.SetWriteDeadline(time.Now().Add(most))
	} else if w.limit.Sub(now) < deadConn/2 {
		w.limit = now.Add(deadConn)
		w.conn.SetWriteDeadline(time.Now().Add(deadConn))
	}
	_, err := w.conn.Write(b)
	if err != nil {
		w.conn.Close() // its reader tells the rest
	}
	return err
}

func (w *wire) frame(h head) error {
	var b [frameHead]byte
	h.put(b[:])
	return w.write(b[:])
}

// next reads the head of the next frame. The deadline is moved only when nothing is buffered: then the read may wait.
func (w *wire) next() (head, error) {
	if w.r.Buffered() < frameHead {
		if now := w.now(); w.heard.Sub(now) < deadConn/2 {
			w.heard = now.Add(deadConn)
			w.conn.SetReadDeadline(time.Now().Add(deadConn))
		}
	}
	return readHead(w.r, &w.head)
}

func (w *wire) control(h head, v any) error {
	b := make([]byte, h.n)
	if _, err := io.ReadFull(w.r, b); err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	return nil
}

// refuse says why this side ends the session.
func (w *wire) refuse(r refusal) {
	if b, err := control(frameRefuse, r.Epoch, 0, r); err == nil {
		w.write(b)
	}
}

// AddConn takes a connection to another copy, after TLS. The connection is the stream's, whatever comes of it. from is the member that TLS has
// authenticated: one that says it is another one is refused. 0: whoever it says (tests without TLS).
func (s *Stream) AddConn(from cluster.MemberNo, conn net.Conn) {
	<-s.running
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || s.failed != nil || len(s.conns) >= 16 {
		conn.Close()
		return
	}
	s.conns[conn] = struct{}{}
	s.wg.Go(func() {
		defer func() {
			conn.Close()
			s.mu.Lock()
			delete(s.conns, conn)
			s.facts.Broadcast()
			s.mu.Unlock()
			s.changed()
		}()
		if err := s.session(s.ctx, from, conn); err != nil && s.ctx.Err() == nil {
			s.c.Log.Info("a connection of the stream has ended", "peer", conn.RemoteAddr(), "why", err)
		}
	})
}

// session is one connection from its hellos to its end.
func (s *Stream) session(ctx context.Context, from cluster.MemberNo, conn net.Conn) error {
	w := newWire(conn, s.lately)
	mine := s.hello()
	b, err := control(frameHello, mine.Epoch, mine.Gen, mine)
	if err != nil {
		return err
	}
	if err := w.write(b); err != nil {
		return err
	}
	h, err := w.next()
	if err != nil {
		return err
	}
	var peer hello
	switch h.typ {
	case frameHello:
		err = w.control(h, &peer)
	case frameRefuse:
		return s.refusedBy(w, h)
	default:
		err = fmt.Errorf("%w: it begins with type %d", errFrame, h.typ)
	}
	if err == nil && from != 0 && peer.Run.Member != from {
		err = fmt.Errorf("it says that it is member %d, and its certificate is that of member %d", peer.Run.Member, from)
	}
	if err == nil {
		err = s.fits(&peer)
	}
	if err != nil {
		w.refuse(refusal{Why: err.Error()})
		return err
	}
	switch {
	case mine.Leads && peer.Leads && peer.Epoch > mine.Epoch:
		s.higher(peer.Epoch, "the other node leads in it")
		return errDeposed
	case mine.Leads && peer.Leads:
		w.refuse(refusal{Epoch: mine.Epoch, Why: "this node leads"})
		return errors.New("the other node believes to lead too")
	case mine.Leads:
		return s.lead(ctx, w, &mine, &peer)
	case peer.Leads:
		return s.followSource(ctx, w, &peer)
	}
	w.refuse(refusal{Epoch: mine.Epoch, Why: "neither side leads", Later: true})
	return errors.New("neither side leads")
}

func (s *Stream) hello() hello {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := hello{Min: protoMin, Max: protoMax, Cluster: s.c.Cluster, Service: s.c.Service, Volumes: s.volumes, Run: s.c.Self, Leads: s.act.Leads(),
		Epoch: s.stb.Epoch(), Gen: s.act.Facts().Gen, History: s.state.History, Applied: s.may, Dirty: s.c.Dirty || s.state.Inconsistent}
	if h.Leads {
		h.Epoch, h.Gen, h.Last = s.epoch, s.gen, s.last
	} else {
		h.Last = s.c.Journal.Last().Seq
		h.History = h.History.Cut(h.Last)
	}
	return h
}

func (s *Stream) fits(p *hello) error {
	switch {
	case p.Max < protoMin || p.Min > protoMax:
		return fmt.Errorf("it speaks versions %d to %d of the stream, this node %d to %d: upgrade the older one", p.Min, p.Max, protoMin, protoMax)
	case p.Cluster != s.c.Cluster || p.Service != s.c.Service:
		return fmt.Errorf("it is service %s of cluster %s, and this is %s of %s", p.Service, p.Cluster, s.c.Service, s.c.Cluster)
	case !slices.Equal(p.Volumes, s.volumes):
		return fmt.Errorf("it has the volumes %v, this node %v: both need the same version of the spec", p.Volumes, s.volumes)
	case p.Run.Member == 0 || p.Run.Member == s.c.Self.Member:
		return fmt.Errorf("it says that it is member %d, and this is member %d", p.Run.Member, s.c.Self.Member)
	}
	for i := 1; i < len(p.History); i++ {
		if a, b := p.History[i-1], p.History[i]; b.Epoch < a.Epoch || b.Gen < a.Gen || b.First < a.First {
			return errors.New("its history goes backwards")
		}
	}
	return nil
}

// refusedBy reads a refusal. One with a later epoch ends the tenure (V4).
func (s *Stream) refusedBy(w *wire, h head) error {
	var r refusal
	if err := w.control(h, &r); err != nil {
		return err
	}
	s.mu.Lock()
	higher := s.act.Leads() && r.Epoch > s.act.Facts().Epoch
	s.mu.Unlock()
	if higher {
		s.higher(r.Epoch, r.Why)
	}
	return fmt.Errorf("the other node refuses: %s", r.Why)
}

func (s *Stream) higher(e cluster.Epoch, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.perform(s.act.Fence(fmt.Sprintf("another node knows of epoch %d: %s", e, why)))
	if f := s.c.Events.Higher; f != nil {
		s.tell(func() { f(e, why) })
	}
}

// beats keeps a connection from looking dead.
func (s *Stream) beats(ctx context.Context, w *wire) {
	t := time.NewTicker(beatEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			s.mu.Lock()
			e, g := s.act.Facts().Epoch, s.act.Facts().Gen
			s.mu.Unlock()
			if w.frame(head{typ: frameBeat, epoch: e, gen: g}) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// runTicks lets the core look at the clock, and asks for connections that are missing.
func (s *Stream) runTicks(ctx context.Context) {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			now := s.c.Now()
			s.clock.Store(int64(now))
			s.mu.Lock()
			s.perform(s.act.Tick(now))
			s.settle()
			s.dials()
			s.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

// dials asks for a connection to every admitted member that has none, less and less often. mu is held.
func (s *Stream) dials() {
	f := s.c.Events.Dial
	if f == nil || !s.act.Leads() {
		return
	}
	now := s.c.Now()
	for _, r := range s.act.Facts().Admitted {
		if r.Member == s.c.Self.Member {
			continue
		}
		if s.follower(r.Member) != nil {
			delete(s.dialAt, r.Member)
			continue
		}
		d := s.dialAt[r.Member]
		if d.wait != 0 && now.Sub(d.at) < d.wait {
			continue
		}
		s.dialAt[r.Member] = dialing{now, min(max(2*d.wait, dialEvery), dialAtMost)}
		s.tell(func() { f(r.Member) })
	}
}
