package volserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/failover/supervise/launch"
	"github.com/hanode/hanode/internal/cgroup"
)

// Subcommand is the hidden subcommand of our binary that is the volume server: cmd/hanode calls Main for it.
const Subcommand = "volume-server"

// Events is what a volume server tells the daemon. Each is called by one goroutine, which must not be held up.
type Events struct {
	Replica  func(Replica)
	CaughtUp func(CaughtUp)
	Dial     func(cluster.MemberNo)
	Higher   func(cluster.Epoch)
	Failed   func(text string)
	Deposed  func(text string)
	Closed   func(conn uint64)
	Alarm    func(code, text string) // text empty: over
}

// Config is what Launch needs.
type Config struct {
	Self   string        // path of our own binary; "": /proc/self/exe
	Group  *cgroup.Group // of the server: not that of the application, whose freeze must not hit it
	Page   *os.File      // the deadline page
	Log    *slog.Logger
	Start  Start
	Events Events
	// Ready bounds the wait for the copy to be opened: the journal is read and every inode is looked at.
	Ready time.Duration
}

// Server is the daemon's end of a volume server. Its methods may be called by any goroutine.
type Server struct {
	cfg   Config
	log   *slog.Logger
	wire  *wire
	child *launch.Running
	done  chan struct{} // closed when the process has ended
	wg    sync.WaitGroup

	mu      sync.Mutex
	seq     uint64
	waiting map[uint64]chan message
	queue   []message
	facts   *Facts // the newest that was not sent yet
	wake    chan struct{}
	gone    bool
	status  string // of the process, when it has ended
}

// maxQueue bounds what waits to be sent: orders are few, and facts replace each other.
const maxQueue = 256

// ErrGone is the error of requests to a volume server that has ended.
var ErrGone = errors.New("the volume server has ended")

// Launch starts a volume server as standby and waits until it has opened its copy. The goroutines that serve it end with the process.
func Launch(ctx context.Context, cfg Config) (*Server, Ready, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ours, theirs, err := pair()
	if err != nil {
		return nil, Ready{}, fmt.Errorf("start the volume server of %s: %w", cfg.Start.Service, err)
	}
	defer theirs.Close()
	out, outW, err := os.Pipe()
	if err != nil {
		ours.close()
		return nil, Ready{}, err
	}
	self := cfg.Self
	if self == "" {
		self = "/proc/self/exe"
	}
	argv0, err := os.Readlink(self)
	if err != nil {
		argv0 = self
	}
	child, err := launch.Start(launch.Program{Self: self, Argv: []string{argv0, Subcommand, cfg.Start.Service}, Env: launch.BaseEnv("", ""), Cgroup: cfg.Group,
		Stdout: outW, Stderr: outW, Files: []*os.File{theirs, cfg.Page}})
	outW.Close()
	if err != nil {
		ours.close()
		out.Close()
		return nil, Ready{}, fmt.Errorf("start the volume server of %s: %w", cfg.Start.Service, err)
	}
	s := attach(cfg, ours)
	s.child = child
	s.wg.Go(func() { s.printed(out) })
	s.wg.Go(func() {
		st, err := child.Wait()
		s.mu.Lock()
		s.status = fmt.Sprint(st, errText(err))
		s.mu.Unlock()
		s.hangUp()
		close(s.done)
	})
	if err := child.Exec(10 * time.Second); err != nil {
		s.Kill()
		return nil, Ready{}, fmt.Errorf("start the volume server of %s: %w", cfg.Start.Service, err)
	}
	ready, err := s.begin(ctx)
	if err != nil {
		s.Kill()
		<-s.done
		return nil, Ready{}, err
	}
	return s, ready, nil
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return " (" + err.Error() + ")"
}

// attach makes the daemon's end of a pair.
func attach(cfg Config, w *wire) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, log: cfg.Log.With("service", cfg.Start.Service), wire: w, done: make(chan struct{}), waiting: map[uint64]chan message{}, wake: make(chan struct{}, 1)}
	s.wg.Go(s.listen)
	s.wg.Go(s.deliver)
	return s
}

func (s *Server) begin(ctx context.Context) (Ready, error) {
	limit := s.cfg.Ready
	if limit == 0 {
		limit = 10 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a, err := s.ask(ctx, message{Kind: kindStart, Start: &s.cfg.Start})
	if err != nil {
		return Ready{}, err
	}
	if a.Ready == nil {
		return Ready{}, errors.New("the volume server answers something else")
	}
	return *a.Ready, nil
}

// printed passes on what the process prints.
func (s *Server) printed(r *os.File) {
	defer r.Close()
	b := bufio.NewScanner(r)
	b.Buffer(nil, 64<<10)
	for b.Scan() {
		s.log.Info(b.Text(), "process", Subcommand)
	}
	io.Copy(io.Discard, r)
}

// listen takes answers and events until the socket closes.
func (s *Server) listen() {
	for {
		m, err := s.wire.receive()
		if err != nil {
			s.hangUp()
			return
		}
		closeAll(m.files)
		if m.Seq != 0 {
			s.mu.Lock()
			w := s.waiting[m.Seq]
			delete(s.waiting, m.Seq)
			s.mu.Unlock()
			if w != nil {
				w <- m
			}
			continue
		}
		s.event(m)
	}
}

func (s *Server) event(m message) {
	e := &s.cfg.Events
	switch {
	case m.Kind == kindReplica && m.Replica != nil && e.Replica != nil:
		e.Replica(*m.Replica)
	case m.Kind == kindCaughtUp && m.Caught != nil && e.CaughtUp != nil:
		e.CaughtUp(*m.Caught)
	case m.Kind == kindDial && e.Dial != nil:
		e.Dial(m.Member)
	case m.Kind == kindHigher && e.Higher != nil:
		e.Higher(m.Epoch)
	case m.Kind == kindFailed && e.Failed != nil:
		e.Failed(m.Text)
	case m.Kind == kindDeposed && e.Deposed != nil:
		e.Deposed(m.Text)
	case m.Kind == kindClosed && m.Conn != nil && e.Closed != nil:
		e.Closed(m.Conn.ID)
	case m.Kind == kindAlarm && e.Alarm != nil:
		e.Alarm(m.Err, m.Text)
	}
}

// hangUp ends every request that waits.
func (s *Server) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return
	}
	s.gone = true
	s.wire.close()
	for _, m := range s.queue {
		closeAll(m.files)
	}
	s.queue = nil
	for seq, w := range s.waiting {
		delete(s.waiting, seq)
		w <- message{Err: ErrGone.Error()}
	}
	close(s.wake)
}

// deliver sends what is queued: the loop of the daemon never waits for the socket.
func (s *Server) deliver() {
	for range s.wake {
		for m, ok := s.next(); ok; m, ok = s.next() {
			err := s.wire.send(m)
			closeAll(m.files)
			if err != nil {
				s.hangUp()
				return
			}
		}
	}
}

// next is what is to be sent next: facts first.
func (s *Server) next() (m message, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.facts != nil:
		m, s.facts = message{Kind: kindFacts, Facts: s.facts}, nil
	case len(s.queue) > 0:
		m = s.queue[0]
		s.queue = s.queue[1:]
	default:
		return m, false
	}
	return m, true
}

// post queues a message; its files are closed when it was sent.
func (s *Server) post(m message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || len(s.queue) >= maxQueue {
		closeAll(m.files)
		return ErrGone
	}
	s.queue = append(s.queue, m)
	s.nudge()
	return nil
}

func (s *Server) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// ask sends a request and waits for its answer.
func (s *Server) ask(ctx context.Context, m message) (message, error) {
	got := make(chan message, 1)
	s.mu.Lock()
	if s.gone {
		s.mu.Unlock()
		return message{}, ErrGone
	}
	s.seq++
	m.Seq = s.seq
	s.waiting[m.Seq] = got
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.waiting, m.Seq)
		s.mu.Unlock()
	}()
	if err := s.post(m); err != nil {
		return message{}, err
	}
	select {
	case a := <-got:
		if a.Err == ErrGone.Error() {
			return a, ErrGone
		}
		if a.Err != "" {
			return a, errors.New(a.Err)
		}
		return a, nil
	case <-ctx.Done():
		return message{}, fmt.Errorf("the volume server of %s has not answered to %s: %w", s.cfg.Start.Service, m.Kind, ctx.Err())
	}
}

// SetFacts passes on what the log says. It never waits; newer facts replace older ones that were not sent yet.
func (s *Server) SetFacts(f Facts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return
	}
	s.facts = &f
	s.nudge()
}

// Lead is the promotion: the tail is applied, the epoch is durable, the volumes are writable. It waits for facts that name the epoch.
func (s *Server) Lead(ctx context.Context, e cluster.Epoch) (Led, error) {
	a, err := s.ask(ctx, message{Kind: kindLead, Epoch: e})
	if err != nil || a.Led == nil {
		return Led{}, err
	}
	return *a.Led, nil
}

// Drain holds new operations back and returns when nothing is in flight any more.
func (s *Server) Drain(ctx context.Context) error {
	_, err := s.ask(ctx, message{Kind: kindDrain})
	return err
}

// Undrain is a move that does not take place.
func (s *Server) Undrain() { s.post(message{Kind: kindUndrain}) }

// Alone lets the active go on without its followers while the witness is lost; it makes that known on its disk first.
func (s *Server) Alone() { s.post(message{Kind: kindAlone}) }

// Fence ends the tenure. When it returns nil nothing is in flight, and nothing will be acknowledged; mounts are aborted and the process ends after that.
func (s *Server) Fence(ctx context.Context, why string) error {
	_, err := s.ask(ctx, message{Kind: kindFence, Text: why})
	if errors.Is(err, ErrGone) {
		return nil
	}
	return err
}

// Give hands a connection over. c is closed here in either case.
func (s *Server) Give(c Conn, tcp *net.TCPConn) error {
	defer tcp.Close()
	f, err := tcp.File()
	if err != nil {
		return err
	}
	return s.post(message{Kind: kindConn, Conn: &c, files: []*os.File{f}})
}

// Down says that a connection is to be given up: its path has failed.
func (s *Server) Down(id uint64) { s.post(message{Kind: kindDown, Conn: &Conn{ID: id}}) }

// Status asks how it stands.
func (s *Server) Status(ctx context.Context) (Status, error) {
	a, err := s.ask(ctx, message{Kind: kindStatus})
	if err != nil || a.Status == nil {
		return Status{}, err
	}
	return *a.Status, nil
}

// Order has an operator's order carried out.
func (s *Server) Order(ctx context.Context, o Order) (json.RawMessage, error) {
	a, err := s.ask(ctx, message{Kind: kindOrder, Order: &o})
	return a.Result, err
}

// Stop ends a standby in good order: everything is made durable and unmounted.
func (s *Server) Stop(ctx context.Context) error {
	if _, err := s.ask(ctx, message{Kind: kindStop}); err != nil && !errors.Is(err, ErrGone) {
		return err
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Kill ends the process at once; the kernel aborts its mounts.
func (s *Server) Kill() {
	if s.child != nil {
		s.child.Signal(syscall.SIGKILL)
	}
}

// Pid is the process.
func (s *Server) Pid() int { return s.child.Pid }

// Wait waits until the process has ended and nothing of this end runs any more.
func (s *Server) Wait() {
	<-s.done
	s.wg.Wait()
}

// Done is closed when the process has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Ended says how it has ended.
func (s *Server) Ended() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}
