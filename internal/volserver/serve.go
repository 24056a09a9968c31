package volserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/hanode/hanode/cluster"
	"github.com/hanode/hanode/internal/page"
)

// engine is the data path of one service. A small one in the tests stands for the real one.
type engine interface {
	Open(ctx context.Context) (Ready, error)
	SetFacts(Facts)
	Lead(ctx context.Context, e cluster.Epoch) (Led, error)
	Drain(ctx context.Context) error
	Undrain()
	GoAlone()
	Fence(why string) // nothing is acknowledged after it
	Abort()           // mounts answer EIO and go
	AddConn(peer cluster.MemberNo, c net.Conn, incoming bool)
	Status() Status
	Order(ctx context.Context, o Order) (json.RawMessage, error)
	Close(ctx context.Context) error // in good order
}

// host is the process's side of the control socket.
type host struct {
	wire  *wire
	page  *page.Reader
	log   *slog.Logger
	make  func(*host, Start) (engine, error)
	start Start

	eng   engine
	conns *conns
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu    sync.Mutex
	facts Facts
}

// Main is the process. It returns its exit status.
func Main(args []string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{} // the daemon's log has its own
		}
		return a
	}}))
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, "volume-server is for the daemon's own use")
		return 2
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE) // its life is the daemon's business
	w, err := wireOf(os.NewFile(3, "control"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "volume-server is for the daemon's own use:", err)
		return 2
	}
	r, err := page.OpenFD(4)
	if err != nil {
		fmt.Fprintln(os.Stderr, "volume-server is for the daemon's own use:", err)
		return 2
	}
	if err := serve(w, r, log, newEngine); err != nil {
		log.Error("the volume server ends", "err", err)
		return 1
	}
	return 0
}

// serve carries out the daemon's requests until it orders the end, or is gone.
func serve(w *wire, r *page.Reader, log *slog.Logger, make func(*host, Start) (engine, error)) error {
	h := &host{wire: w, page: r, log: log, make: make}
	h.ctx, h.stop = context.WithCancel(context.Background())
	defer h.wg.Wait()
	defer h.stop()
	for {
		m, err := w.receive()
		if err != nil { // the daemon is gone: nothing is acknowledged any more
			h.end("the daemon has ended")
			return nil
		}
		if done := h.handle(m); done {
			return nil
		}
	}
}

// end is the end of this process whatever is under way.
func (h *host) end(why string) {
	if h.eng != nil {
		h.eng.Fence(why)
		h.eng.Abort()
	}
}

// handle carries out one message; requests that take time have goroutines of their own.
func (h *host) handle(m message) (done bool) {
	if m.Kind != kindConn {
		closeAll(m.files)
	}
	if h.eng == nil && m.Kind != kindStart {
		closeAll(m.files)
		if m.Seq != 0 {
			h.answer(m, message{}, errors.New("the volume server has not begun"))
		}
		return false
	}
	switch m.Kind {
	case kindStart:
		return !h.begin(m)
	case kindFacts:
		if m.Facts != nil {
			h.setFacts(*m.Facts)
		}
	case kindLead:
		h.async(m, func(ctx context.Context) (message, error) {
			led, err := h.eng.Lead(ctx, m.Epoch)
			return message{Led: &led}, err
		})
	case kindDrain:
		h.async(m, func(ctx context.Context) (message, error) { return message{}, h.eng.Drain(ctx) })
	case kindUndrain:
		h.eng.Undrain()
	case kindAlone:
		h.eng.GoAlone()
	case kindFence:
		h.eng.Fence(m.Text)
		h.answer(m, message{}, nil)
		h.eng.Abort()
		return true
	case kindConn:
		h.conns.take(m)
	case kindDown:
		if m.Conn != nil {
			h.conns.down(m.Conn.ID)
		}
	case kindStatus:
		h.async(m, func(context.Context) (message, error) {
			st := h.eng.Status()
			st.Conns, st.Handshakes, st.Refused = h.conns.counts()
			return message{Status: &st}, nil
		})
	case kindOrder:
		h.async(m, func(ctx context.Context) (message, error) {
			if m.Order == nil {
				return message{}, errors.New("an order without words")
			}
			b, err := h.eng.Order(ctx, *m.Order)
			return message{Result: b}, err
		})
	case kindStop:
		ctx, cancel := context.WithTimeout(h.ctx, 20*time.Second)
		err := h.eng.Close(ctx)
		cancel()
		h.answer(m, message{}, err)
		return true
	default:
		if m.Seq != 0 {
			h.answer(m, message{}, fmt.Errorf("a request of kind %q is not known", m.Kind))
		}
	}
	return false
}

func (h *host) async(m message, f func(context.Context) (message, error)) {
	h.wg.Go(func() {
		a, err := f(h.ctx)
		h.answer(m, a, err)
	})
}

func (h *host) answer(q, a message, err error) {
	a.Kind, a.Seq = kindAnswer, q.Seq
	if err != nil {
		a.Err = err.Error()
	}
	if err := h.wire.send(a); err != nil {
		h.log.Debug("answer", "to", q.Kind, "err", err)
	}
}

func (h *host) event(m message) {
	if err := h.wire.send(m); err != nil {
		h.log.Debug("event", "kind", m.Kind, "err", err)
	}
}

// begin opens the copy. It says whether the process goes on.
func (h *host) begin(m message) bool {
	if m.Start == nil || h.eng != nil {
		h.answer(m, message{}, errors.New("this volume server has begun already, or was told nothing"))
		return h.eng != nil
	}
	h.start = *m.Start
	h.facts = m.Start.Facts
	eng, err := h.make(h, h.start)
	if err == nil {
		h.eng = eng
		h.conns, err = newConns(h)
	}
	if err != nil {
		h.answer(m, message{}, err)
		return false
	}
	began := time.Now()
	ready, err := eng.Open(h.ctx)
	if err != nil {
		h.answer(m, message{}, err)
		return false
	}
	ready.TookMs = time.Since(began).Milliseconds()
	h.answer(m, message{Ready: &ready}, nil)
	h.setFacts(h.start.Facts)
	return true
}

func (h *host) setFacts(f Facts) {
	h.mu.Lock()
	was := h.facts
	h.facts = f
	h.mu.Unlock()
	h.eng.SetFacts(f)
	if out := was.InSync &^ f.InSync; out != 0 && was.Epoch == f.Epoch && f.Holder == h.start.Self {
		h.conns.left(out)
	}
}

// Facts is what the log says, as last told.
func (h *host) Facts() Facts {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.facts
}
