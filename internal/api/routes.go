package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Paths. GET answers one object; POST answers a stream of lines (see frame), because an order may take long.
const (
	pathVersion    = "/v1/version"
	pathStatus     = "/v1/status"
	pathExplain    = "/v1/explain"
	pathEvents     = "/v1/events"
	pathAlarms     = "/v1/alarms"
	pathWait       = "/v1/wait"
	pathLeader     = "/v1/leader"
	pathBundle     = "/v1/debug/bundle"
	pathSpec       = "/v1/spec"
	pathSpecLog    = "/v1/spec/log"
	pathApply      = "/v1/spec/apply"
	pathSwitchover = "/v1/switchover"
	pathFailover   = "/v1/failover"
	pathFailback   = "/v1/failback"
	pathForce      = "/v1/force"
	pathRecover    = "/v1/recover"
	pathService    = "/v1/service"
	pathPause      = "/v1/pause"
	pathResume     = "/v1/resume"
	pathAck        = "/v1/alarms/ack"
	pathToken      = "/v1/token"
	pathMembers    = "/v1/members"
	pathSet        = "/v1/members/set"
	pathReplace    = "/v1/members/replace"
	pathRemove     = "/v1/members/remove"
	pathDrain      = "/v1/members/drain"
	pathUndrain    = "/v1/members/undrain"
	pathTransfer   = "/v1/leader/transfer"
	pathLeave      = "/v1/leave"
)

// frame is one line of a stream: a step, an event, or the end (result or error). A stream without an end was cut off.
type frame struct {
	Step   *Step           `json:"step,omitempty"`
	Event  *Event          `json:"event,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

type errorBody struct {
	Error *Error `json:"error"`
}

func (s *Server) routes() http.Handler {
	b := s.cfg.Backend
	mux := http.NewServeMux()
	get(mux, pathVersion, func(ctx context.Context, _ *http.Request) (any, error) { return b.Version(ctx) })
	get(mux, pathStatus, func(ctx context.Context, r *http.Request) (any, error) {
		return b.Status(ctx, StatusQuery{Local: r.URL.Query().Get("local") == "true"})
	})
	get(mux, pathExplain, func(ctx context.Context, r *http.Request) (any, error) {
		return b.Explain(ctx, r.URL.Query().Get("target"))
	})
	get(mux, pathAlarms, func(ctx context.Context, _ *http.Request) (any, error) {
		l, err := b.Alarms(ctx)
		return List[Alarm](l), err
	})
	get(mux, pathLeader, func(ctx context.Context, _ *http.Request) (any, error) { return b.Leader(ctx) })
	get(mux, pathMembers, func(ctx context.Context, _ *http.Request) (any, error) {
		l, err := b.Members(ctx)
		return List[Member](l), err
	})
	get(mux, pathSpecLog, func(ctx context.Context, _ *http.Request) (any, error) {
		l, err := b.SpecLog(ctx)
		return List[SpecChange](l), err
	})
	get(mux, pathSpec, func(ctx context.Context, r *http.Request) (any, error) {
		v, err := version(r)
		if err != nil {
			return nil, err
		}
		return b.Spec(ctx, v)
	})
	mux.HandleFunc("GET "+pathBundle, func(w http.ResponseWriter, r *http.Request) { s.archive(w, r, "debug bundle", b.DebugBundle) })

	post(mux, pathEvents, func(ctx context.Context, q *EventQuery, w *stream) (any, error) {
		return struct{}{}, b.Events(ctx, *q, func(e Event) error { return w.line(frame{Event: &e}) })
	})
	post(mux, pathWait, func(ctx context.Context, r *WaitRequest, w *stream) (any, error) { return b.Wait(ctx, *r, w.step) })
	order(mux, pathApply, b.Apply)
	order(mux, pathSwitchover, b.Switchover)
	order(mux, pathFailover, b.Failover)
	order(mux, pathFailback, b.Failback)
	order(mux, pathForce, b.Force)
	order(mux, pathRecover, b.Recover)
	order(mux, pathService, b.Service)
	order(mux, pathPause, b.Pause)
	order(mux, pathResume, b.Resume)
	order(mux, pathAck, b.AckAlarm)
	order(mux, pathSet, b.MemberSet)
	order(mux, pathReplace, b.MemberReplace)
	order(mux, pathRemove, b.MemberRemove)
	order(mux, pathDrain, b.Drain)
	order(mux, pathUndrain, b.Undrain)
	order(mux, pathTransfer, b.TransferLeader)
	order(mux, pathLeave, b.Leave)
	order(mux, pathToken, func(ctx context.Context, r TokenRequest, _ Progress) (*Token, error) { return b.TokenCreate(ctx, r) })
	s.routeUpkeep(mux)
	s.routeVolumes(mux)
	s.routeInternal(mux)
	if s.cfg.Metrics != nil {
		mux.Handle("GET /metrics", s.cfg.Metrics)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, &Error{Code: CodeNotFound, What: fmt.Sprintf("%s %.100s is not known here", r.Method, r.URL.Path),
			Why: "the command and the daemon are of different versions, or this is not a hanode command", Do: "hanode version"})
	})
	return s.guard(mux)
}

// guard lets nobody in who may not operate, and nobody keep us waiting.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(plain http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(plain)
		w := &patient{ResponseWriter: plain, rc: rc, patience: s.cfg.Patience}
		if r.Method == http.MethodPost {
			_ = rc.SetReadDeadline(time.Now().Add(s.cfg.Patience)) // fails only on a connection that is gone
		}
		r = withPeer(r)
		if p := peerOf(r.Context()); p.denied != nil {
			s.cfg.Log.Warn("request refused", "path", r.URL.Path, "who", p.who, "why", p.denied.Why)
			refuse(w, p.denied)
			return
		}
		if e := forbidden(peerOf(r.Context()), r); e != nil {
			s.cfg.Log.Warn("order refused", "path", r.URL.Path, "who", peerOf(r.Context()).who, "why", e.Why)
			refuse(w, e)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func version(r *http.Request) (uint64, error) {
	q := r.URL.Query().Get("version")
	if q == "" {
		return 0, nil
	}
	v, err := strconv.ParseUint(q, 10, 64)
	if err != nil {
		return 0, Errorf(CodeUsage, "spec version %.40q: want a number, as hanode spec log prints it", q)
	}
	return v, nil
}

// get registers a request that answers one object.
func get(mux *http.ServeMux, path string, answer func(context.Context, *http.Request) (any, error)) {
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		v, err := answer(r.Context(), r)
		if err != nil {
			refuse(w, AsError(err))
			return
		}
		reply(w, http.StatusOK, v)
	})
}

// post registers a request with a body that answers a stream.
func post[R any](mux *http.ServeMux, path string, answer func(context.Context, *R, *stream) (any, error)) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		req := new(R)
		if err := readBody(w, r, req); err != nil {
			refuse(w, AsError(err))
			return
		}
		if o, ok := any(req).(interface{ order() *Order }); ok {
			stamp(o.order(), peerOf(r.Context()))
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		st := &stream{w: w, rc: http.NewResponseController(w), cancel: cancel}
		w.Header().Set("Content-Type", "application/x-ndjson")
		st.end(answer(ctx, req, st))
	})
}

// order registers an order.
func order[R, A any](mux *http.ServeMux, path string, do func(context.Context, R, Progress) (*A, error)) {
	post(mux, path, func(ctx context.Context, r *R, w *stream) (any, error) { return do(ctx, *r, w.step) })
}

// stamp records who ordered. On the Unix socket the kernel says it; a member is trusted to say it.
func stamp(o *Order, p peer) {
	if p.member == "" {
		o.Who, o.Via = p.who, ""
		return
	}
	o.Via = p.member
	if o.Who == "" {
		o.Who = "somebody on " + p.member
	}
}

// readBody reads one JSON object of at most MaxRequest bytes. An unknown key is refused: half an order is none.
func readBody(w http.ResponseWriter, r *http.Request, into any) error {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return Errorf(CodeUsage, "Content-Type %.60q: want application/json", r.Header.Get("Content-Type"))
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxRequest))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return &Error{Code: CodeUsage, What: "request refused", Why: fmt.Sprintf("it is larger than %d bytes", MaxRequest),
			Do: "make the spec smaller; large things belong into files that it names"}
	case err != nil:
		return Errorf(CodeUsage, "the request did not arrive whole: %w", err)
	}
	if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil {
		return err // an order may take longer than its arrival
	}
	if err := strict(body, into); err != nil {
		return &Error{Code: CodeUsage, What: "request not understood", Why: err.Error(),
			Do: "compare the versions: hanode version", cause: err}
	}
	return nil
}

func reply(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		refuse(w, Errorf(CodeFailed, "the answer cannot be written as JSON: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

func refuse(w http.ResponseWriter, e *Error) {
	reply(w, e.Code.row().http, errorBody{withExit(e)})
}

func withExit(e *Error) *Error {
	c := *e
	c.Exit = e.Code.row().exit
	return &c
}

// stream writes lines. When a write fails, because the client is gone or does not read, the request's context ends.
type stream struct {
	mu     sync.Mutex
	w      http.ResponseWriter
	rc     *http.ResponseController
	cancel context.CancelFunc
	err    error
}

func (s *stream) step(st Step) { _ = s.line(frame{Step: &st}) }

func (s *stream) line(f frame) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if len(b) >= MaxLine {
		return Errorf(CodeFailed, "an answer of %d bytes: one line carries at most %d", len(b), MaxLine)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if _, s.err = s.w.Write(append(b, '\n')); s.err == nil {
		s.err = s.rc.Flush()
	}
	if s.err != nil {
		s.cancel()
	}
	return s.err
}

func (s *stream) end(v any, err error) {
	if err == nil {
		var b []byte
		if b, err = json.Marshal(v); err == nil {
			if err = s.line(frame{Result: b}); err == nil {
				return
			}
		}
	}
	_ = s.line(frame{Error: withExit(AsError(err))})
}

// archive streams a file. An error on the way cuts the stream, so that the client does not take half of it for the whole.
func (s *Server) archive(w http.ResponseWriter, r *http.Request, what string, write func(context.Context, io.Writer) error) {
	w.Header().Set("Content-Type", "application/gzip")
	out := &begun{Writer: w}
	if err := write(r.Context(), out); err != nil {
		if !out.any {
			refuse(w, AsError(err))
			return
		}
		s.cfg.Log.Warn(what+" cut off", "why", err)
		panic(http.ErrAbortHandler)
	}
}

// patient gives every write a deadline of its own.
type patient struct {
	http.ResponseWriter
	rc       *http.ResponseController
	patience time.Duration
}

func (p *patient) Unwrap() http.ResponseWriter { return p.ResponseWriter }

func (p *patient) Write(b []byte) (int, error) {
	_ = p.rc.SetWriteDeadline(time.Now().Add(p.patience)) // fails only on a connection that is gone
	return p.ResponseWriter.Write(b)
}

// begun tells whether anything was written.
type begun struct {
	io.Writer
	any bool
}

func (d *begun) Write(b []byte) (int, error) {
	d.any = true
	return d.Writer.Write(b)
}
