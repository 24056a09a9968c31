package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/hanode/hanode/internal/api"
)

// What load balancers and monitoring ask from outside: read-only, without a login, only where --health says so.
//
//	GET /service/NAME/active    200 where the service is active on this node, else 503
//	GET /service/NAME/standby   200 where this node would take it over now, else 503
//	GET /status                 the status as JSON
//	GET /metrics                figures for Prometheus

func (b backend) outside(metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, ok bool, text string) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if !ok {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = io.WriteString(w, text+"\n")
	}
	service := func(pick func(s *api.Service, self string) bool, word string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			st, err := b.Status(r.Context(), api.StatusQuery{Local: true})
			if err != nil {
				answer(w, false, "not known")
				return
			}
			s := st.Service(r.PathValue("name"))
			if s == nil {
				http.Error(w, "no such service", http.StatusNotFound)
				return
			}
			ok := pick(s, st.Node)
			text := word
			if !ok {
				text = "not " + word
			}
			answer(w, ok, text)
		}
	}
	mux.HandleFunc("GET /service/{name}/active", service(func(s *api.Service, self string) bool { return s.Active == self && s.State == api.StateActive }, "active"))
	mux.HandleFunc("GET /service/{name}/standby", service(func(s *api.Service, self string) bool {
		return s.Standby == self && (s.StandbyState == "ready" || s.StandbyState == "in-sync") && s.Active != self
	}, "standby"))
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		st, err := b.Status(r.Context(), api.StatusQuery{Local: true})
		if err != nil {
			answer(w, false, "not known")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(st) // the client is gone: nobody could be told
	})
	mux.Handle("GET /metrics", metrics)
	return mux
}

// checkHealth refuses what is no address to listen on.
func checkHealth(addr string) error {
	if addr == "" {
		return nil
	}
	if ap, err := netip.ParseAddrPort(addr); err != nil || ap.Port() == 0 {
		return fmt.Errorf("--health %s: give an address of this machine and a port, as 127.0.0.1:9744", addr)
	}
	return nil
}

// serveHealth answers from outside, where that was asked for.
func (n *Node) serveHealth(ctx context.Context) error {
	if n.cfg.Health == "" {
		return nil
	}
	l, err := net.Listen("tcp", n.cfg.Health)
	if err != nil {
		return fmt.Errorf("--health %s: %w", n.cfg.Health, err)
	}
	srv := &http.Server{Handler: backend{n}.outside(n.metrics.handler()), ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("--health %s: %w", n.cfg.Health, err)
	}
	return nil
}
