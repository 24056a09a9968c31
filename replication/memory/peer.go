package memory

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
	"unsafe"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/replication/memory/image"
	"github.com/hanode/hanode/replication/memory/store"
	"github.com/hanode/hanode/replication/memory/wire"
)

const (
	// window is how many bytes may be under way to a member before its regions are brought up to date in the background instead.
	window = 64 << 20
	// writeTimeout ends a connection whose other side does not read.
	writeTimeout = 10 * time.Second
	helloTimeout = 5 * time.Second
)

// peer is the connection to another member's server.
type peer struct {
	s      *Server
	member cluster.MemberNo
	conn   net.Conn
	kick   chan struct{} // something is to be brought up to date
	done   chan struct{} // the connection has ended

	wmu   sync.Mutex // writes
	out   []byte
	epoch cluster.Epoch // of the frames that are sent

	mu        sync.Mutex // below; taken after a region's lock, never held while writing
	following bool       // it takes images from this server
	state     map[*region]*peerRegion
	tx        uint64
	sent      []sent // not acknowledged yet, oldest first
	bytes     int    // of them
	syncs     int    // whole images that it refused, one after the other

	// s.mu:
	waiting bool          // checkpoints wait for it although the log may not name it
	since   time.Time     // when that began
	told    bool          // CaughtUp was said
	asked   cluster.Epoch // in which it was asked what it holds
}

// peerRegion is what is known of a region at the other member.
type peerRegion struct {
	defined bool
	synced  bool       // every checkpoint was sent since one that it holds
	full    bool       // not synced: whole image; otherwise the blocks in dirty
	dirty   []uint64   // blocks that it lacks
	base    image.Head // what was sent last
	acked   uint64     // number of the newest image that it holds
	logged  uint64     // the last record that it holds
	refused string     // why it cannot hold the region
}

type sent struct {
	tx    uint64
	regs  []*region
	heads []image.Head
	seq   uint64 // of a record; 0: an image
	bytes int
	at    time.Time
}

// AddConn gives the server a connection of channel memory with another member, after TLS. It belongs to the server from now on and takes the place
// of an older one.
func (s *Server) AddConn(m cluster.MemberNo, conn net.Conn) {
	p := &peer{s: s, member: m, conn: conn, kick: make(chan struct{}, 1), done: make(chan struct{}), state: map[*region]*peerRegion{}}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		conn.Close()
		return
	}
	s.wg.Go(p.run)
	s.mu.Unlock()
}

func (p *peer) run() {
	s := p.s
	err := p.greet()
	if err == nil {
		s.mu.Lock()
		old := s.peers[p.member]
		s.peers[p.member] = p
		active, e := s.role == wire.Active, s.led
		closed := s.closed
		s.mu.Unlock()
		if old != nil {
			old.conn.Close()
		}
		if closed {
			p.conn.Close()
		}
		s.wg.Go(p.sync)
		if active {
			p.ask(e, false)
		}
		err = p.read()
	}
	p.conn.Close()
	close(p.done)
	s.follow.lost(p)
	p.withdraw()
	s.mu.Lock()
	if s.peers[p.member] == p {
		delete(s.peers, p.member)
	}
	if f := s.cfg.Events.Dial; f != nil && !s.closed {
		s.event(func() { f(p.member) })
	}
	closed := s.closed
	s.mu.Unlock()
	if !closed {
		s.log.Info("the connection of regions ended", "peer", p.member, "err", err)
	}
}

// greet makes sure that both speak of the same service in the same version.
func (p *peer) greet() error {
	s := p.s
	p.conn.SetDeadline(time.Now().Add(helloTimeout))
	mine := wire.Greeting{Cluster: s.cfg.Cluster, Service: s.cfg.Service, Member: s.cfg.Self, Oldest: wire.FrameVersion, Newest: wire.FrameVersion}
	sent := make(chan error, 1)
	go func() { sent <- p.sendJSON(wire.PeerHello, 0, mine) }()
	var theirs wire.Greeting
	h, body, err := p.readSmall()
	if err == nil && h.Kind != wire.PeerHello {
		err = fmt.Errorf("%w: the first is not a greeting", wire.ErrFrame)
	}
	if err == nil {
		err = json.Unmarshal(body, &theirs)
	}
	if e := <-sent; err == nil {
		err = e
	}
	switch {
	case err != nil:
		return err
	case theirs.Cluster != mine.Cluster || theirs.Service != mine.Service:
		return fmt.Errorf("member %d speaks of service %s of cluster %s", p.member, theirs.Service, theirs.Cluster)
	case theirs.Member != p.member:
		return fmt.Errorf("member %d calls itself member %d", p.member, theirs.Member)
	case theirs.Oldest > mine.Newest || theirs.Newest < mine.Oldest:
		return fmt.Errorf("member %d speaks versions %d to %d of replicated memory, this one %d to %d: upgrade one of them", p.member, theirs.Oldest, theirs.Newest, mine.Oldest, mine.Newest)
	}
	return p.conn.SetDeadline(time.Time{})
}

// readSmall reads a frame without blocks.
func (p *peer) readSmall() (wire.Head, []byte, error) {
	var b [wire.FrameHeader]byte
	h, err := wire.ReadHead(p.conn, &b)
	if err != nil {
		return h, nil, err
	}
	body := make([]byte, h.Len)
	if _, err := io.ReadFull(p.conn, body); err != nil {
		return h, nil, err
	}
	return h, body, h.Check(body)
}

// read serves frames until the connection ends.
func (p *peer) read() error {
	var b [wire.FrameHeader]byte
	for {
		h, err := wire.ReadHead(p.conn, &b)
		if err != nil {
			return err
		}
		if h.Kind == wire.PeerPages {
			if err := p.s.follow.pages(p, &h); err != nil {
				return err
			}
			continue
		}
		body := make([]byte, h.Len)
		if _, err := io.ReadFull(p.conn, body); err != nil {
			return err
		}
		if err := h.Check(body); err != nil {
			return err
		}
		h.Body = body
		if err := p.frame(&h); err != nil {
			return err
		}
	}
}

func (p *peer) frame(h *wire.Head) error {
	w := &p.s.follow
	switch h.Kind {
	case wire.PeerAck, wire.PeerLogged:
		p.onAck(h)
		return nil
	case wire.PeerHave:
		var have wire.Having
		if err := json.Unmarshal(h.Body, &have); err != nil {
			return fmt.Errorf("%w: %w", wire.ErrFrame, err)
		}
		p.onHave(h.Epoch, &have)
		return nil
	case wire.PeerRefuse:
		var r wire.Refusal
		if err := json.Unmarshal(h.Body, &r); err != nil {
			return fmt.Errorf("%w: %w", wire.ErrFrame, err)
		}
		p.onRefuse(&r)
		return nil
	case wire.PeerAsk:
		return w.ask(p, h)
	case wire.PeerDefine:
		return w.define(p, h)
	case wire.PeerCommit:
		return w.commit(p, h)
	case wire.PeerRecord:
		return w.record(p, h)
	}
	return fmt.Errorf("%w: kind %d", wire.ErrFrame, h.Kind)
}

// write sends bytes; a failure ends the connection.
func (p *peer) write(b []byte) error {
	p.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := p.conn.Write(b)
	if err != nil {
		p.conn.Close()
	}
	return err
}

func (p *peer) sendFrame(f *wire.Frame) error {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	p.out = wire.AppendFrame(p.out[:0], f)
	return p.write(p.out)
}

func (p *peer) sendJSON(kind wire.FrameKind, e cluster.Epoch, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return p.sendFrame(&wire.Frame{Kind: kind, Epoch: e, Body: body})
}

// ask tells the other member that this one leads.
func (p *peer) ask(e cluster.Epoch, again bool) {
	if !again {
		p.s.mu.Lock()
		p.asked = e
		p.s.mu.Unlock()
	}
	body, _ := json.Marshal(wire.Asking{Again: again})
	p.wmu.Lock()
	defer p.wmu.Unlock()
	p.epoch = max(p.epoch, e)
	p.out = wire.AppendFrame(p.out[:0], &wire.Frame{Kind: wire.PeerAsk, Epoch: e, Body: body})
	p.write(p.out)
}

// raise lets frames of a Bump's epoch be preceded by its announcement, although SetFacts has not come to it yet (p.wmu is held).
func (p *peer) raise(e cluster.Epoch) {
	if e > p.epoch {
		p.epoch = e
		p.out = wire.AppendFrame(p.out, &wire.Frame{Kind: wire.PeerAsk, Epoch: e, Body: []byte(`{"again":true}`)})
	}
}

// reset forgets what is known of the other member (at a promotion).
func (p *peer) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.following, p.waiting = false, false
	p.state, p.sent, p.bytes = map[*region]*peerRegion{}, nil, 0
}

// onHave: the other member follows this one; what it holds decides what it is sent.
func (p *peer) onHave(e cluster.Epoch, have *wire.Having) {
	s := p.s
	s.mu.Lock()
	ok := s.role == wire.Active && e >= p.asked
	s.mu.Unlock()
	if !ok {
		return
	}
	held := map[string]wire.Held{}
	for _, h := range have.Regions {
		held[h.Name] = h
	}
	lock(s.list)
	p.mu.Lock()
	p.following = true
	for _, r := range s.list {
		if r.img == nil {
			continue
		}
		// Everything begins with a moment: all regions or none, because they may have been taken together. What it holds already is not sent again.
		st := &peerRegion{full: true}
		if h, ok := held[r.spec.Name]; ok && h.Head.Same(r.img.Head()) {
			st.full, st.base, st.dirty = false, h.Head, newBits(image.Blocks(r.spec.Size))
		}
		p.state[r] = st
	}
	p.mu.Unlock()
	unlock(s.list)
	p.poke()
}

func newBits(blocks uint64) []uint64 { return make([]uint64, (blocks+63)/64) }

func (p *peer) poke() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// lose notes that the other member needs the whole region (r.mu is held).
func (p *peer) lose(r *region) {
	p.mu.Lock()
	if p.following {
		p.state[r] = &peerRegion{full: true}
	}
	p.mu.Unlock()
	p.poke()
}

// has says whether the member holds what the application waits for (s.mu is held).
func (p *peer) has(f *flight) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, r := range f.regs {
		st := p.state[r]
		if st == nil || f.seq == 0 && st.acked < f.numbers[i] || f.seq != 0 && st.logged < f.seq {
			return false
		}
	}
	return true
}

// sendImage sends a checkpoint, if the member is up to date in all its regions; if not, it notes what the member lacks (the regions' locks are held).
func (p *peer) sendImage(regs []*region, changes []store.Change) {
	p.mu.Lock()
	if !p.following {
		p.mu.Unlock()
		return
	}
	size, synced := 0, true
	for i, r := range regs {
		st := p.state[r]
		if st == nil {
			st = &peerRegion{full: true}
			p.state[r] = st
		}
		synced = synced && st.synced
		size += len(changes[i].Data)
	}
	if !synced || p.bytes > window {
		for i, r := range regs {
			p.state[r].lack(r, changes[i].Entries)
		}
		p.mu.Unlock()
		p.poke()
		return
	}
	p.tx++
	tx := p.tx
	var few [1]wire.CommitPart
	parts := few[:0]
	sn := sent{tx: tx, regs: regs, bytes: size, at: time.Now()}
	for i, r := range regs {
		st := p.state[r]
		parts = append(parts, wire.CommitPart{Region: r.no, Blocks: uint32(len(changes[i].Entries)), Base: st.base, Head: changes[i].Head})
		sn.heads = append(sn.heads, changes[i].Head)
		st.base = changes[i].Head
	}
	p.sent = append(p.sent, sn)
	p.bytes += size
	p.mu.Unlock()
	p.wmu.Lock()
	defer p.wmu.Unlock()
	p.out = p.out[:0]
	p.raise(parts[0].Head.Epoch)
	for i, r := range regs {
		if p.blocks(r.no, tx, 0, changes[i].Entries, changes[i].Data) != nil {
			return
		}
	}
	p.out = wire.AppendFrame(p.out, &wire.Frame{Kind: wire.PeerCommit, Epoch: p.epoch, Tx: tx, Body: wire.AppendCommit(nil, parts, false)})
	p.write(p.out)
}

// lack notes blocks that the member does not have.
func (st *peerRegion) lack(r *region, entries []store.Entry) {
	st.synced = false
	if st.full && st.dirty == nil {
		return // everything is still to come
	}
	if st.dirty == nil {
		st.dirty = newBits(image.Blocks(r.spec.Size))
	}
	for _, e := range entries {
		st.dirty[e.Block/64] |= 1 << (e.Block % 64)
	}
}

// small is up to where blocks are copied behind their header, so that one write takes all.
const small = 64 << 10

// blocks writes frames of blocks; small ones are left in p.out for the next write (p.wmu is held).
func (p *peer) blocks(no uint32, tx uint64, flags uint32, entries []store.Entry, data []byte) error {
	for len(entries) > 0 {
		n := min(len(entries), wire.PageBlocks)
		head := wire.PagesHead(n)
		at := len(p.out)
		p.out = append(p.out, make([]byte, wire.FrameHeader+head)...)
		b := p.out[at+wire.FrameHeader:]
		putU32(b, uint32(n))
		putU32(b[4:], flags)
		copy(b[wire.PagesFixed:], unsafe.Slice((*byte)(unsafe.Pointer(&entries[0])), n*store.EntrySize))
		wire.PutHeader(p.out[at:], &wire.Frame{Kind: wire.PeerPages, Region: no, Epoch: p.epoch, Tx: tx}, head+n*image.Block, b)
		if len(data) <= small {
			p.out = append(p.out, data[:n*image.Block]...)
		} else {
			if err := p.write(p.out); err != nil {
				return err
			}
			p.out = p.out[:0]
			if err := p.write(data[:n*image.Block]); err != nil {
				return err
			}
		}
		entries, data = entries[n:], data[n*image.Block:]
	}
	return nil
}

func putU32(b []byte, v uint32) {
	b[0], b[1], b[2], b[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
}

// sendRecord sends a record of a message log, if the member is up to date in the region (r.mu is held).
func (p *peer) sendRecord(r *region, seq uint64, data []byte) {
	p.mu.Lock()
	st := p.state[r]
	if !p.following || st == nil || !st.synced {
		p.mu.Unlock()
		return // it comes with the region's image
	}
	p.sent = append(p.sent, sent{regs: []*region{r}, seq: seq, bytes: len(data), at: time.Now()})
	p.bytes += len(data)
	p.mu.Unlock()
	p.wmu.Lock()
	defer p.wmu.Unlock()
	p.out = wire.AppendFrame(p.out[:0], &wire.Frame{Kind: wire.PeerRecord, Region: r.no, Epoch: p.epoch, Tx: seq, Body: data})
	p.write(p.out)
}
