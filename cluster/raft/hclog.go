package raft

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// hcLog lets hashicorp/raft write to slog. Its levels are one step too loud for us: a member that is away makes an
// "error" of every RPC although nothing is wrong with this one. The same message is passed on once a second at most.
type hcLog struct {
	log  *slog.Logger
	args []any
	name string
	seen *recent
}

func newHCLog(l *slog.Logger) hclog.Logger { return &hcLog{log: l, seen: &recent{}} }

// recent remembers when a message was last written; hashicorp's messages are constants, so the map stays small, and it
// is emptied at 256 all the same.
type recent struct {
	mu   sync.Mutex
	last map[string]time.Time
	held map[string]int
}

func (r *recent) pass(msg string, now time.Time) (suppressed int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil || len(r.last) > 256 {
		r.last, r.held = map[string]time.Time{}, map[string]int{}
	}
	if t, seen := r.last[msg]; seen && now.Sub(t) < time.Second {
		r.held[msg]++
		return 0, false
	}
	suppressed = r.held[msg]
	r.last[msg], r.held[msg] = now, 0
	return suppressed, true
}

func (h *hcLog) Log(level hclog.Level, msg string, args ...interface{}) {
	to := slog.LevelDebug
	switch level {
	case hclog.Error:
		to = slog.LevelWarn
	case hclog.Warn:
		to = slog.LevelInfo
	}
	if !h.log.Enabled(context.Background(), to) {
		return
	}
	more, ok := h.seen.pass(msg, time.Now())
	if !ok {
		return
	}
	all := make([]any, 0, len(h.args)+len(args)+2)
	all = append(append(all, h.args...), args...)
	for i, a := range all {
		if f, isFormat := a.(hclog.Format); isFormat && len(f) > 0 {
			all[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	if more > 0 {
		all = append(all, "suppressed", more)
	}
	h.log.Log(context.Background(), to, "raft: "+msg, all...)
}

func (h *hcLog) Trace(msg string, args ...interface{}) { h.Log(hclog.Trace, msg, args...) }
func (h *hcLog) Debug(msg string, args ...interface{}) { h.Log(hclog.Debug, msg, args...) }
func (h *hcLog) Info(msg string, args ...interface{})  { h.Log(hclog.Info, msg, args...) }
func (h *hcLog) Warn(msg string, args ...interface{})  { h.Log(hclog.Warn, msg, args...) }
func (h *hcLog) Error(msg string, args ...interface{}) { h.Log(hclog.Error, msg, args...) }

func (h *hcLog) IsTrace() bool { return false }
func (h *hcLog) IsDebug() bool { return h.log.Enabled(context.Background(), slog.LevelDebug) }
func (h *hcLog) IsInfo() bool  { return h.IsDebug() }
func (h *hcLog) IsWarn() bool  { return true }
func (h *hcLog) IsError() bool { return true }

func (h *hcLog) ImpliedArgs() []interface{} { return h.args }
func (h *hcLog) With(args ...interface{}) hclog.Logger {
	n := *h
	n.args = append(append([]any{}, h.args...), args...)
	return &n
}
func (h *hcLog) Name() string { return h.name }
func (h *hcLog) Named(name string) hclog.Logger {
	n := *h
	n.name = name
	return &n
}
func (h *hcLog) ResetNamed(name string) hclog.Logger { return h.Named(name) }
func (h *hcLog) SetLevel(hclog.Level)                {}
func (h *hcLog) GetLevel() hclog.Level               { return hclog.Debug }
func (h *hcLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(h.StandardWriter(nil), "", 0)
}
func (h *hcLog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return hcWriter{h} }

type hcWriter struct{ h *hcLog }

func (w hcWriter) Write(p []byte) (int, error) {
	w.h.Debug(string(p))
	return len(p), nil
}
