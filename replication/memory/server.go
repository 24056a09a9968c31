// Package memory is the server of a service's replicated memory on one member. It runs in the process that keeps the service's data.
//
// Applications of the service connect to its Unix socket, open regions, and make checkpoints: the changed blocks, in staging memory that
// both have mapped. As the active, the server sends each checkpoint to the standbys, makes it the newest image of its own, and answers when
// every member of the in-sync set holds it. As a standby it takes images from the active and shows them to the application that waits there.
//
// # What makes it safe
//
//   - Old epochs are refused: the server knows the log's epoch (SetFacts), remembers the highest that it saw, and takes images only from the
//     member that the log names, in the log's epoch (gate G6, D2). A refusal carries the epoch, and the sender fences itself (HigherEpoch).
//   - Nothing is answered with "held" before every member of the in-sync set holds it; a member leaves that set only by the log (D4, D6).
//   - Deposed, everything pending ends with an error, and no later checkpoint is taken: the application's answer says that it is fenced (D7). The deadline
//     page is looked at before each checkpoint, so that this holds also while the daemon does not run (gate G1).
//   - No image is torn, mixed or newer than its files: see packages image and store.
//
// It never decides who is active or in sync.
package memory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/page"
	"github.com/hanode/hanode/replication/memory/image"
	"github.com/hanode/hanode/replication/memory/store"
	"github.com/hanode/hanode/replication/memory/wire"
)

// Spec is one region that the service may have.
type Spec struct {
	Name       string
	Size       uint64 // most that it may have, in bytes
	Checkpoint string // sync, timed, async
	Every      time.Duration
}

// Config says what a server is for.
type Config struct {
	Cluster, Service string
	Self             cluster.MemberNo
	Dir              string // for the images, on a tmpfs; 0700
	Socket           string // of the applications
	SocketMode       os.FileMode
	SocketGID        int // -1: unchanged
	Regions          []Spec
	Page             *os.File // the deadline page; nil: none (tests)

	// Admit says whether a process may use the socket; nil: only processes of this process's user.
	Admit func(Peer) error
	// FileSeq is the last sequence of the service's files that was submitted, on the active; FilesHeld up to where the files are on this member. nil: no files.
	FileSeq, FilesHeld func() uint64

	Events Events
	Log    *slog.Logger
}

// Events are called one after the other, on a goroutine of the server. nil: nobody cares.
type Events struct {
	// CaughtUp: propose InSync(epoch, gen) of the member: it holds everything, and from now on checkpoints wait for it.
	CaughtUp func(m cluster.MemberNo, e cluster.Epoch, g cluster.Generation)
	// HigherEpoch: a standby refused this server with a later epoch: fence.
	HigherEpoch func(e cluster.Epoch)
	// Dial: a connection of channel memory to the member is wanted, or the one that was there has ended.
	Dial func(m cluster.MemberNo)
	// Health: an application reported itself healthy or failed.
	Health func(pid int, healthy bool, text string)
	// Ready: an application answered that it has taken its role in this epoch.
	Ready func(pid int, e cluster.Epoch)
}

// Server see the package.
type Server struct {
	cfg   Config
	log   *slog.Logger
	store *store.Store
	page  *page.Reader
	ln    *net.UnixListener
	list  []*region // by number, from 1

	mu       sync.Mutex // everything below; never held while a connection is written or a region's lock is waited for
	role     uint16
	facts    facts
	led      cluster.Epoch
	number   uint64
	regions  map[string]*region
	sessions map[*session]bool
	peers    map[cluster.MemberNo]*peer
	flights  []*flight
	proposed cluster.MemberSet // checkpoints wait for them although the log does not name them yet
	changed  *sync.Cond        // facts or role
	closed   bool
	events   []func()
	wake     chan struct{}

	follow follower
	wg     sync.WaitGroup
}

type facts struct {
	epoch  cluster.Epoch
	gen    cluster.Generation
	holder cluster.MemberNo
	inSync cluster.MemberSet
}

// region is a region of the spec on this member.
type region struct {
	spec  Spec
	no    uint32     // its number towards applications and on connections
	mu    sync.Mutex // one checkpoint, record, opening at a time, in the order in which they are sent
	img   *store.Region
	buf   *store.Buffer // of the active's next image
	view  *opened       // the application's memory that follows the images
	told  bool          // that application was told of an image that it has not taken
	owner *session      // s.mu
	since time.Time     // when the newest image was complete here (s.mu)
}

// NewServer opens the images and the socket. It serves nobody before Serve.
func NewServer(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, log: cfg.Log, regions: map[string]*region{}, sessions: map[*session]bool{}, peers: map[cluster.MemberNo]*peer{}, wake: make(chan struct{}, 1), role: wire.Standby}
	s.changed = sync.NewCond(&s.mu)
	if len(cfg.Regions) > image.MaxParts {
		return nil, fmt.Errorf("service %s has %d regions: at most %d", cfg.Service, len(cfg.Regions), image.MaxParts)
	}
	if err := s.open(); err != nil {
		s.Close()
		return nil, fmt.Errorf("memory of service %s: %w", cfg.Service, err)
	}
	return s, nil
}

func (s *Server) open() (err error) {
	if s.store, err = store.Open(s.cfg.Dir, s.cfg.Cluster+"/"+s.cfg.Service); err != nil {
		return err
	}
	for _, d := range s.store.Damaged() {
		s.log.Warn("an image cannot be used", "err", d)
	}
	s.number = s.store.Number()
	for i, sp := range s.cfg.Regions {
		if err := errors.Join(image.CheckName(sp.Name), image.CheckSize(sp.Name, sp.Size, 1<<40), s.store.Resize(sp.Name, sp.Size)); err != nil {
			return err
		}
		if s.regions[sp.Name] != nil {
			return fmt.Errorf("region %s is there twice", sp.Name)
		}
		r := &region{spec: sp, no: uint32(i + 1), img: s.store.Region(sp.Name), since: time.Now()}
		if r.img != nil {
			s.follow.keeper.Hold(sp.Name, r.img.Head())
		}
		if r.buf, err = s.store.NewBuffer(sp.Name+".next", store.BufferSize(sp.Size)); err != nil {
			return err
		}
		s.regions[sp.Name] = r
		s.list = append(s.list, r)
	}
	if _, err := s.follow.keeper.Admit(max(s.store.Epoch(), s.follow.keeper.Epoch()), true); err != nil {
		return err
	}
	if s.cfg.Page != nil {
		if s.page, err = page.OpenFD(int(s.cfg.Page.Fd())); err != nil {
			return err
		}
	}
	return s.listen()
}

func (s *Server) listen() error {
	if err := os.MkdirAll(filepath.Dir(s.cfg.Socket), 0o755); err != nil {
		return err
	}
	if err := os.Remove(s.cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: s.cfg.Socket, Net: "unixpacket"})
	if err != nil {
		return err
	}
	s.ln = ln
	mode := s.cfg.SocketMode
	if mode == 0 {
		mode = 0o660
	}
	if err := os.Chmod(s.cfg.Socket, mode); err != nil {
		return err
	}
	if s.cfg.SocketGID > 0 {
		return os.Chown(s.cfg.Socket, -1, s.cfg.SocketGID)
	}
	return nil
}

// Close gives everything back that NewServer took, if Serve was not called.
func (s *Server) Close() error {
	var errs []error
	if s.ln != nil {
		errs = append(errs, s.ln.Close())
	}
	for _, r := range s.list {
		if r.buf != nil {
			r.buf.Close()
		}
	}
	s.follow.close()
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	if s.page != nil {
		s.page.Close()
	}
	return errors.Join(errs...)
}

// Serve serves applications and other members until ctx ends, then closes everything.
func (s *Server) Serve(ctx context.Context) error {
	s.wg.Go(func() { s.accept() })
	s.wg.Go(func() { s.emit(ctx) })
	s.wg.Go(func() { s.watchFiles(ctx) })
	<-ctx.Done()
	s.mu.Lock()
	s.closed = true
	s.fail(&refused{wire.Ended, "the server of the service's memory ends"})
	sessions, peers := s.snapshot()
	s.changed.Broadcast()
	s.mu.Unlock()
	s.ln.Close()
	s.ln = nil
	for _, c := range sessions {
		c.conn.Close()
	}
	for _, p := range peers {
		p.conn.Close()
	}
	s.wg.Wait()
	return s.Close()
}

func (s *Server) snapshot() (sessions []*session, peers []*peer) {
	for c := range s.sessions {
		sessions = append(sessions, c)
	}
	for _, p := range s.peers {
		peers = append(peers, p)
	}
	return sessions, peers
}

// event queues a call of the owner (s.mu is held).
func (s *Server) event(f func()) {
	s.events = append(s.events, f)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Server) emit(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		s.mu.Lock()
		events := s.events
		s.events = nil
		s.mu.Unlock()
		for _, f := range events {
			f()
		}
	}
}

// SetFacts tells what the log says of the service, at each change.
func (s *Server) SetFacts(e cluster.Epoch, g cluster.Generation, holder cluster.MemberNo, inSync cluster.MemberSet) {
	s.mu.Lock()
	before := s.facts
	if e < before.epoch || e == before.epoch && g < before.gen {
		s.mu.Unlock()
		return
	}
	s.facts = facts{e, g, holder, inSync}
	active := s.role == wire.Active
	if g != before.gen || e != before.epoch {
		s.proposed = 0
		for _, p := range s.peers {
			p.waiting, p.told = false, false
		}
	}
	bump := active && holder == s.cfg.Self && e > before.epoch && e > s.led
	if bump {
		s.led = e
	}
	var done []*flight
	if active {
		done = s.settle()
	}
	sessions, peers := s.snapshot()
	s.changed.Broadcast()
	s.mu.Unlock()
	if active && holder != s.cfg.Self {
		s.Fence()
		return
	}
	answer(done)
	if bump {
		s.store.SetEpoch(e)
		for _, p := range peers {
			p.ask(e, true)
		}
		for _, c := range sessions {
			c.tellRole()
		}
	}
	if active {
		for _, p := range peers {
			p.consider()
		}
	}
}

// Led is what a promotion found.
type Led struct {
	Regions []RegionStatus
	Left    []string // images that were newer than the files, and are not used
}

// Lead makes this member the active in this epoch. The files must be at their end already: images newer than they are, are left.
func (s *Server) Lead(e cluster.Epoch, g cluster.Generation) (Led, error) {
	var led Led
	left, err := s.promote(e)
	if err != nil {
		return led, err
	}
	led.Left = left
	s.store.SetEpoch(e)
	s.mu.Lock()
	s.number = max(s.number, s.store.Number())
	s.role, s.led = wire.Active, e
	if e > s.facts.epoch {
		s.facts = facts{e, g, s.cfg.Self, cluster.SetOf(s.cfg.Self)}
	}
	s.proposed = 0
	for _, p := range s.peers {
		p.reset()
	}
	sessions, peers := s.snapshot()
	s.changed.Broadcast()
	s.mu.Unlock()
	for _, c := range sessions {
		c.tellRole()
	}
	for _, p := range peers {
		p.ask(e, false)
	}
	led.Regions = s.Status().Regions
	return led, nil
}

// Fence ends the right to make checkpoints: what is pending ends with an error, and so does everything later.
func (s *Server) Fence() {
	s.mu.Lock()
	if s.role == wire.Fenced {
		s.mu.Unlock()
		return
	}
	was := s.role
	s.role = wire.Fenced
	var done []*flight
	if was == wire.Active {
		done = s.fail(s.fencedError())
	}
	sessions, _ := s.snapshot()
	s.changed.Broadcast()
	s.mu.Unlock()
	answer(done)
	for _, c := range sessions {
		c.tellRole()
	}
}

func (s *Server) fencedError() *refused {
	return &refused{wire.NotActive, fmt.Sprintf("fenced: epoch %d of service %s is over on this member; nothing was acknowledged since; end, or wait to be active again", s.led, s.cfg.Service)}
}

// refused is an answer that is not OK.
type refused struct {
	status wire.Status
	text   string
}

func (r *refused) Error() string { return r.text }

func refuse(status wire.Status, format string, args ...any) *refused {
	return &refused{status, fmt.Sprintf(format, args...)}
}

// mayAct says why no checkpoint is taken now, if so.
func (s *Server) mayAct() error {
	s.mu.Lock()
	role, led := s.role, s.led
	s.mu.Unlock()
	switch role {
	case wire.Active:
	case wire.Fenced:
		return s.fencedError()
	default:
		return refuse(wire.NotActive, "this member is standby for service %s: only the active makes checkpoints", s.cfg.Service)
	}
	if s.page == nil {
		return nil
	}
	snap := s.page.Load()
	switch now := boottime(); {
	case snap.MayAct(now) && snap.Epoch >= led:
		return nil
	case snap.State == page.Draining:
		return refuse(wire.NotActive, "fenced: service %s is being handed over, and this member no longer acts in epoch %d", s.cfg.Service, snap.Epoch)
	default:
		return refuse(wire.NotActive, "fenced: the lease of service %s, epoch %d, has run out on this member; nothing was acknowledged since", s.cfg.Service, snap.Epoch)
	}
}

// waitSet is who must hold a checkpoint before it is acknowledged (s.mu).
func (s *Server) waitSet() cluster.MemberSet {
	return (s.facts.inSync | s.proposed).Without(s.cfg.Self)
}

// flight is a question of an application that is answered when all who must hold it do.
type flight struct {
	c       *session
	m       wire.App // the answer
	regs    []*region
	numbers []uint64 // of the image of each
	seq     uint64   // of a record; 0: an image
	begun   time.Time
	err     *refused
}

// settle takes out what may be answered now (s.mu).
func (s *Server) settle() (done []*flight) {
	set := s.waitSet()
	s.flights = slices.DeleteFunc(s.flights, func(f *flight) bool {
		for m := set; m != 0; m &= m - 1 {
			p := s.peers[first(m)]
			if p == nil || !p.has(f) {
				return false
			}
		}
		done = append(done, f)
		return true
	})
	return done
}

func first(set cluster.MemberSet) cluster.MemberNo {
	for n := cluster.MemberNo(1); ; n++ {
		if set.Has(n) {
			return n
		}
	}
}

// fail takes out everything, to be answered with an error (s.mu).
func (s *Server) fail(err *refused) (done []*flight) {
	done, s.flights = s.flights, nil
	for _, f := range done {
		f.err = err
	}
	return done
}

// answer tells applications (no lock is held).
func answer(done []*flight) {
	for _, f := range done {
		if f.err != nil {
			f.m.Status, f.m.Body = f.err.status, []byte(f.err.text)
		}
		f.c.send(&f.m)
	}
}
