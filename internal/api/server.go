package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Config is what a Server needs.
type Config struct {
	Backend Backend
	Socket  string // path of the Unix socket; "": Run is not used
	Group   string // of the operators; "": DefaultGroup
	Log     *slog.Logger
	Metrics http.Handler // answers GET /metrics, for the operators on the Unix socket and for members; nil: nobody does
	MaxConn int          // connections at a time, per listener; 0: 64. Further ones wait in the kernel's queue.
	// Patience is how long a request may take to arrive whole, and each write of an answer to be taken; 0: 10 s.
	Patience time.Duration
}

// Server carries a Backend over sockets. It starts nothing until Run or ServeMembers.
type Server struct {
	cfg Config
	mux http.Handler
}

// NewServer checks cfg and fills its defaults.
func NewServer(cfg Config) (*Server, error) {
	var errs []error
	if cfg.Backend == nil {
		errs = append(errs, errors.New("api: Backend is nil: nobody would answer"))
	}
	if cfg.Socket != "" && len(cfg.Socket) > 107 {
		errs = append(errs, fmt.Errorf("api: socket path of %d bytes: choose at most 107 (unix(7))", len(cfg.Socket)))
	}
	if cfg.MaxConn < 0 {
		errs = append(errs, fmt.Errorf("api: MaxConn %d: choose 1 or more, or 0 for 64", cfg.MaxConn))
	}
	if cfg.Patience < 0 {
		errs = append(errs, fmt.Errorf("api: Patience %v: choose more than 0, or 0 for 10 s", cfg.Patience))
	}
	if cfg.Patience == 0 {
		cfg.Patience = 10 * time.Second
	}
	if cfg.MaxConn == 0 {
		cfg.MaxConn = 64
	}
	if cfg.Group == "" {
		cfg.Group = DefaultGroup
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg}
	s.mux = s.routes()
	return s, errors.Join(errs...)
}

// Run serves the Unix socket until ctx ends. The socket belongs to root and the operators' group (0660); without that
// group only root gets in (0600). It returns when every request has ended.
func (s *Server) Run(ctx context.Context) error {
	ln, err := s.listen()
	if err != nil {
		return fmt.Errorf("listen on %s: %w", s.cfg.Socket, err)
	}
	defer os.Remove(s.cfg.Socket)
	return s.serve(ctx, ln, func(c net.Conn) peer { return unixPeer(c, s.cfg.Group) })
}

// ServeMembers serves requests that other members pass on, until ctx ends; it closes ln. identify says which member is
// at the other end (its name, from the certificate) or why it may not ask; it runs once per connection and may do the
// handshake. The peer is trusted to say which user gave the order.
func (s *Server) ServeMembers(ctx context.Context, ln net.Listener, identify func(context.Context, net.Conn) (string, error)) error {
	return s.serve(ctx, ln, func(c net.Conn) peer {
		hctx, cancel := context.WithTimeout(ctx, s.cfg.Patience)
		defer cancel()
		name, err := identify(hctx, c)
		if err != nil {
			return peer{denied: Denied(err.Error(), "")}
		}
		return peer{member: name}
	})
}

// listen makes the socket under another name first, so that nobody sees it before its mode is right, and so that a
// socket left by a crash is replaced in one step. A socket that answers belongs to a daemon that lives.
func (s *Server) listen() (net.Listener, error) {
	path := s.cfg.Socket
	if path == "" {
		return nil, errors.New("api: no socket path was given")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, errors.New("another hanode answers there; stop it first, or choose another --socket")
	}
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	if err := errors.Join(s.permit(fresh), os.Rename(fresh, path)); err != nil {
		ln.Close()
		os.Remove(fresh)
		return nil, err
	}
	return ln, nil
}

func (s *Server) permit(path string) error {
	g, err := user.LookupGroup(s.cfg.Group)
	if err != nil {
		s.cfg.Log.Info("only root may operate", "why", "there is no such group", "group", s.cfg.Group, "next", "groupadd "+s.cfg.Group)
		return os.Chmod(path, 0o600)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fmt.Errorf("group %s has the number %q", s.cfg.Group, g.Gid)
	}
	if err := os.Chown(path, -1, gid); err != nil {
		s.cfg.Log.Warn("only this user may operate", "why", err, "group", s.cfg.Group)
		return os.Chmod(path, 0o600)
	}
	return os.Chmod(path, 0o660)
}

// serve answers on ln until ctx ends, and then waits for the requests that run: their contexts have ended too.
func (s *Server) serve(ctx context.Context, ln net.Listener, identify func(net.Conn) peer) error {
	var running sync.WaitGroup // the goroutines of the connections; only hs.Serve adds to it
	hs := &http.Server{
		Handler: s.mux,
		ConnState: func(_ net.Conn, st http.ConnState) {
			switch st {
			case http.StateNew:
				running.Add(1)
			case http.StateClosed:
				running.Done()
			}
		},
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			p := new(lazyPeer)
			p.find = sync.OnceValue(func() peer { return identify(unwrap(c)) })
			return context.WithValue(ctx, lazyKey{}, p)
		},
	}
	done := make(chan error, 1)
	go func() {
		done <- hs.Serve(&limited{Listener: ln, free: make(chan struct{}, s.cfg.MaxConn), closed: make(chan struct{})})
	}()
	select {
	case err := <-done:
		hs.Close()
		running.Wait()
		return fmt.Errorf("api: the listener ended: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = hs.Shutdown(grace)
	_ = hs.Close()
	<-done
	running.Wait()
	return nil
}

// lazyPeer finds the peer at the first request and not in the accepting goroutine, where a slow handshake would keep
// everybody else waiting.
type lazyPeer struct{ find func() peer }

type lazyKey struct{}

func withPeer(r *http.Request) *http.Request {
	p, ok := r.Context().Value(lazyKey{}).(*lazyPeer)
	if !ok {
		return r
	}
	return r.WithContext(context.WithValue(r.Context(), peerKey{}, p.find()))
}

// limited accepts a connection only when fewer than cap(free) are open.
type limited struct {
	net.Listener
	free   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &counted{Conn: c, release: sync.OnceFunc(func() { <-l.free })}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type counted struct {
	net.Conn
	release func()
}

func (c *counted) Close() error {
	defer c.release()
	return c.Conn.Close()
}

func unwrap(c net.Conn) net.Conn {
	if w, ok := c.(*counted); ok {
		return w.Conn
	}
	return c
}
